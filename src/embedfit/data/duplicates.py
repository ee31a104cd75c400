"""Which texts say the same, and which nearly do: copies that must not stand on both sides of a split.

Two texts say the same if they have the same words (`embedfit.words`). They nearly do if, accents aside, one becomes the other

- by changing, adding or leaving out at most one word in twelve (the Levenshtein distance, counted in words),
- by putting the words in another order, where there are at least four,
- by one slip of the pen: a letter changed, added, left out, or two of them swapped, in one word of at least five letters, where
  there are at least two other words.

So a text under twelve words is near no text with another word. Nothing but the two texts decides whether they are near.

The search is exact. Of two texts within n edits of each other, each lacks at most n words of the other; so of the n + m
rarest words of the one and those of the other, at least m are the same, and only texts that share m such words are compared
(J. Wang, G. Li and J. Feng, Can we beat the prefix filtering?, SIGMOD 2012; with m = 1 it is the prefix filter of
R. Bayardo, Y. Ma and R. Srikant, Scaling up all pairs similarity search, WWW 2007). And of n + 1 pieces of the one, at least one
stands in the other as it is (G. Li, D. Deng, J. Wang and J. Feng, Pass-Join, PVLDB 2011): of long texts only those that share
a run of ten words are compared. Slips of the pen are found by leaving out each letter in turn, as SymSpell does.
"""

from __future__ import annotations

import functools
import itertools
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rapidfuzz.distance import OSA, Levenshtein

from embedfit import console
from embedfit.words import plain, words_of

if TYPE_CHECKING:
    from embedfit.data.dataset import Dataset

_WORDS_PER_EDIT = 12
"""So many words for each one that may differ. docs/decisions.md has the figures."""
_REORDERED = 4
"""Texts of at least so many words may have them in another order."""
_LETTERS, _OTHER_WORDS = 5, 2
"""A slip of the pen is one in a word of at least so many letters, beside at least so many others: "card" and "care" are two words, and
so are "store" and "stove"."""
_RAREST = 5
"""Texts are looked up by so many of their rarest words, or by one more than may differ where that is more."""
_RUN = 10
"""Texts of which five words or more may differ, so of at least sixty, are looked up by runs of so many words."""
_RUNS_A_COMPARISON = 32
"""To compare two texts takes about as long as to make so many runs."""
_QUOTED = 5
"""A query and a document of the same id are one if either stands in the other whole, and has at least so many words."""
_FIELDS = 3
"""Lines (or parts between bars or semicolons) that begin with a name and a colon make a record, if there are so many."""
_FIELD_NAME = re.compile(r"(?:^|[\n|;])[ \t]*((?:[^\s:|;]+[ \t]+){0,3}[^\s:|;]+)[ \t]*:(?=\s|$)")


@dataclass(frozen=True)
class Duplicates:
    """What is said more than once by some texts, which are named by their positions.

    A thousand copies of a text are one group and not half a million pairs.

    Attributes:
        same: Groups of texts with the same words. Every text is in one of them, most of them alone.
        near: Pairs of groups, as indexes of ``same``, that say nearly the same.
    """

    same: tuple[tuple[int, ...], ...]
    near: tuple[tuple[int, int], ...]

    @functools.cached_property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """Groups of texts that hang together: two that say nearly the same, a third that is near one of them, and so on.

        Every text is in one of them. The first and the last of a long chain may have little in common.
        """
        return tuple(
            tuple(sorted(place for number in numbers for place in self.same[number])) for numbers in connected(len(self.same), self.near)
        )

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield every two texts that say the same or nearly, the smaller position first."""
        for group in self.same:
            yield from itertools.combinations(group, 2)
        for one, other in self.near:
            for i, j in itertools.product(self.same[one], self.same[other]):
                yield min(i, j), max(i, j)


def connected(count: int, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Return the groups that pairs of the numbers below ``count`` make, each in order, the one with the smallest number first."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    _, component = connected_components(coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count)), directed=False)
    groups: dict[int, list[int]] = {}
    for number, name in enumerate(component.tolist()):
        groups.setdefault(name, []).append(number)
    return [tuple(group) for group in groups.values()]


def near_duplicates(texts: Sequence[str]) -> Duplicates:
    """Return which texts say the same, and which nearly do.

    The names of a record's fields (``Name: ...``, on lines of their own or between bars or semicolons) do not make it longer: how
    many words may differ is told by the others alone.

    The last few answers are kept, so that asking again about the same texts costs nothing.
    """
    return _found(tuple(texts))


def copies_among(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, list[str]]:
    """Return, for each text of theirs by its id, the ids of ours that say the same or nearly, or hang together with it through others."""
    texts = [*ours.values(), *theirs.values()]
    our_ids, their_ids = list(ours), list(theirs)
    copies: dict[str, list[str]] = {}
    for chain in near_duplicates(texts).chains:
        same = [our_ids[place] for place in chain if place < len(our_ids)]
        copies |= {their_ids[place - len(our_ids)]: same for place in chain if place >= len(our_ids)}
    return copies


def nearly_same(one: str, other: str) -> bool:
    """Return whether two texts say the same or nearly, as `near_duplicates` would of the two alone."""
    return _near(_cut(one), _cut(other))


@functools.lru_cache(maxsize=2**13)  # mining compares the same documents again and again
def _cut(text: str) -> _Text:
    return _Text.of(text)


def queries_that_are_documents(dataset: Dataset) -> frozenset[str]:
    """Return the ids of the queries that are themselves a document, as where similar tickets are looked for with a ticket.

    Such a query has the id of a document that is not right for it, and the words: one says the same as the other or nearly, or
    stands in it whole. The id alone does not tell, as queries and documents are often both numbered from 1.
    """
    return frozenset(
        id
        for id in dataset.queries.keys() & dataset.corpus.keys()
        if id not in dataset.relevant(id) and _is_document(dataset.queries[id].text, dataset.corpus[id].title, dataset.corpus[id].text)
    )


@functools.lru_cache(maxsize=2**16)  # every search asks
def _is_document(query: str, title: str, text: str) -> bool:
    whole = f"{title} {text}"
    if any(part.strip() and nearly_same(query, part) for part in (title, text, whole)):
        return True
    asked = words_of(query)
    return any(
        min(len(asked), len(words)) >= _QUOTED and (_stands_in(asked, words) or _stands_in(words, asked))
        for words in map(words_of, (text, whole))
    )


def _stands_in(some: tuple[str, ...], words: tuple[str, ...]) -> bool:
    return f" {' '.join(some)} " in f" {' '.join(words)} "


@dataclass(frozen=True)
class _Text:
    """A text as compared.

    Attributes:
        words: All of them, folded.
        plain: The same without accents.
        edits: How many of them may differ.
    """

    words: tuple[str, ...]
    plain: tuple[str, ...]
    edits: int

    @classmethod
    def of(cls, text: str) -> _Text:
        words = tuple(map(sys.intern, words_of(text)))  # of a word that stands a million times, one string is kept
        names = _FIELD_NAME.findall(text) if text.count(":") >= _FIELDS else []
        own = len(words) - (sum(len(words_of(name)) for name in names) if len(names) >= _FIELDS else 0)
        return cls(words, words if all(map(str.isascii, words)) else tuple(map(plain, words)), own // _WORDS_PER_EDIT)

    def twins(self) -> Iterator[tuple[int, str]]:
        """Yield what a text has in common with each one that differs from it by accents, order or a slip of the pen alone.

        That is a hash of its words without one, which is given too; or of all of them.
        """
        yield hash(self.plain if len(self.plain) < _REORDERED else tuple(sorted(self.plain))), ""
        if not self.edits and len(self.plain) > _OTHER_WORDS:  # where a word may differ, so may a letter
            for place, word in enumerate(self.plain):
                if _may_slip(word):
                    yield hash((place, *self.plain[:place], *self.plain[place + 1 :])), word


def _near(one: _Text, other: _Text) -> bool:
    first, second = one.plain, other.plain
    if first == second:
        return True
    edits = min(one.edits, other.edits)
    if edits and Levenshtein.distance(first, second, score_cutoff=edits) <= edits:
        return True
    if len(first) != len(second):
        return False
    if len(first) >= _REORDERED and sorted(first) == sorted(second):
        return True
    if one.edits or other.edits or len(first) <= _OTHER_WORDS:
        return False
    differing = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
    return len(differing) == 1 and _slipped(*differing[0])


def _may_slip(word: str) -> bool:
    return len(word) >= _LETTERS - 1 and word.isalpha()


def _slipped(one: str, other: str) -> bool:
    """Return whether one word is the other with a slip of the pen."""
    longer = max(len(one), len(other))
    return longer >= _LETTERS and _may_slip(one) and _may_slip(other) and OSA.distance(one, other, score_cutoff=1) <= 1


def _without_a_letter(word: str) -> set[str]:
    """Return a word, and what is left of it without each of its letters: of two that differ by a slip, one is in both sets."""
    return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}


class Said:
    """Texts that come one by one, each compared with all before it; what is near is what `near_duplicates` says."""

    def __init__(self) -> None:
        self._texts: list[_Text] = []
        self._numbers: dict[str, int] = {}
        self._holders: defaultdict[Hashable, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._texts)

    def find(self, text: str) -> int | None:
        """Return the position of the first text that says the same or nearly, None if there is none."""
        own = _Text.of(text)
        numbers = sorted({number for key in self._keys(own) for number in self._holders.get(key, ())})
        return next((number for number in numbers if _near(own, self._texts[number])), None)

    def add(self, text: str) -> int:
        """Add a text, and return its position."""
        own = _Text.of(text)
        for key in self._keys(own):
            self._holders[key].append(len(self._texts))
        self._texts.append(own)
        return len(self._texts) - 1

    def _keys(self, text: _Text) -> Iterator[Hashable]:
        """Yield what near texts have in common: as many words, and one more, as may differ; by one order for all texts.

        How rare a word will be is not known yet. Long words and those that came late tend to be.
        """
        for word in text.plain:
            self._numbers.setdefault(word, len(self._numbers))
        ordered = sorted(text.plain, key=lambda word: (-len(word), -self._numbers[word]))[: text.edits + 1] if text.edits else []
        yield from ((word, ordered[:place].count(word)) for place, word in enumerate(ordered))
        yield from ((key, rest) for key, word in text.twins() for rest in _without_a_letter(word))


@functools.lru_cache(maxsize=4)  # a run asks about the queries for its check, its split and its leaks, and about the documents
def _found(texts: tuple[str, ...]) -> Duplicates:
    groups: dict[tuple[str, ...], list[int]] = {}
    same: list[_Text] = []
    for position, text in enumerate(texts):
        own = _Text.of(text)
        group = groups.setdefault(own.words, [])
        if not group:
            same.append(own)
        group.append(position)
    return Duplicates(tuple(map(tuple, groups.values())), tuple(_near_pairs(same)))


def _near_pairs(texts: Sequence[_Text]) -> list[tuple[int, int]]:
    """Return each two of some texts, no two of which say the same, that say nearly the same."""
    texts_with = Counter(word for text in texts for word in set(text.plain))
    rank = {word: number for number, (word, _) in enumerate(reversed(texts_with.most_common()))}  # the rarest word has rank 0
    ranks = [[rank[word] for word in text.plain] for text in texts]
    # As characters, words are compared twice as fast.
    coded: Sequence[Sequence[Hashable]] = ["".join(map(chr, row)) for row in ranks] if len(rank) <= sys.maxunicode else ranks
    pairs = {pair for pair in _twins(texts) if _near(texts[pair[0]], texts[pair[1]])}
    for candidates in _candidates(texts, ranks):
        for one, other in candidates:
            edits = min(texts[one].edits, texts[other].edits)
            if Levenshtein.distance(coded[one], coded[other], score_cutoff=edits) <= edits:
                pairs.add((min(one, other), max(one, other)))
    return sorted(pairs)


def _candidates(texts: Sequence[_Text], ranks: Sequence[Sequence[int]]) -> Iterator[Iterator[tuple[int, int]]]:
    """Yield the pairs that can be near by the number of words that differ."""
    for edits in sorted({text.edits for text in texts if 0 < text.edits < _RAREST}):
        longest = max(len(row) for row, text in zip(ranks, texts, strict=True) if text.edits == edits) + edits
        numbers = [number for number, text in enumerate(texts) if text.edits >= edits and len(ranks[number]) <= longest]
        found = _sharing_rare_words(ranks, numbers, edits)
        yield ((one, other) for one, other in found if min(texts[one].edits, texts[other].edits) == edits)
    yield _sharing_rare_words_or_runs(texts, ranks, [number for number, text in enumerate(texts) if text.edits >= _RAREST])


def _twins(texts: Sequence[_Text]) -> Iterator[tuple[int, int]]:
    """Yield each two texts, the smaller number first, that can differ by accents, order or a slip of the pen alone."""
    holders: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for number, text in enumerate(texts):
        for key, word in text.twins():
            holders[key].append((number, word))
    for members in holders.values():
        if len(members) > 1:
            numbers: defaultdict[str, list[int]] = defaultdict(list)
            for number, word in members:
                for rest in _without_a_letter(word):
                    numbers[rest].append(number)
            for some in numbers.values():
                yield from itertools.combinations(some, 2)


def _sharing_rare_words(ranks: Sequence[Sequence[int]], numbers: Sequence[int], edits: int) -> Iterator[tuple[int, int]]:
    """Yield each two of the texts of these numbers that can be within so many edits, as far as their rarest words tell."""
    shared = _RAREST - edits
    holders: defaultdict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    with console.progress("looking for near duplicates", len(numbers)) as advance:
        for number in numbers:
            counted = _rarest(ranks[number], _RAREST)
            found: set[int] = set()
            for words in itertools.combinations(counted, shared):
                found.update(holders[words])
                holders[words].append(number)
            yield from ((other, number) for other in found)
            advance(1)


def _sharing_rare_words_or_runs(
    texts: Sequence[_Text], ranks: Sequence[Sequence[int]], numbers: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield each two of the texts of these numbers that can be near.

    Long texts of common words share many words by chance, but no run of ten; those with a page in common share runs, but no rare
    word. Either finds all pairs, so each text is looked up by what fewer others have.
    """
    by_word: defaultdict[Hashable, list[int]] = defaultdict(list)
    by_run: defaultdict[Hashable, list[int]] = defaultdict(list)
    with console.progress("looking for near duplicates among long texts", len(numbers)) as advance:
        for number in numbers:
            row, pieces = ranks[number], texts[number].edits + 1
            rarest = _rarest(row, pieces)
            lists = [by_word[key] for key in rarest if key in by_word]
            if sum(map(len, lists)) > len(row) // _RUNS_A_COMPARISON:
                runs = {tuple(row[place : place + _RUN]) for place in range(len(row) - _RUN + 1)}
                lists = min(lists, [by_run[key] for key in runs if key in by_run], key=lambda lists: sum(map(len, lists)))
            yield from ((other, number) for other in set().union(*lists) if abs(len(ranks[other]) - len(row)) < pieces)
            for word in rarest:
                by_word[word].append(number)
            for piece in range(pieces):
                start = piece * len(row) // pieces
                by_run[tuple(row[start : start + _RUN])].append(number)
            advance(1)


def _rarest(ranks: Sequence[int], count: int) -> list[tuple[int, int]]:
    """Return so many of a text's rarest words. The second "the" of a text is another word than its first, or two would count as one."""
    rarest = sorted(ranks)[:count]
    seen: Counter[int] = Counter()
    counted = []
    for word in rarest:
        counted.append((word, seen[word]))
        seen[word] += 1
    return counted
