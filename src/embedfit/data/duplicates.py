"""Copies and near copies of texts, which must not be on both sides of a split.

Two texts are copies if they have the same words (`embedfit.words`). They are near copies if, accents aside, one becomes the other

- by changing, adding or leaving out at most one word in twelve (the Levenshtein distance, counted in words),
- by putting the words in another order, where there are at least four,
- by one typo: a letter changed, added, left out, or two letters swapped, in one word of at least five letters, where
  there are at least two other words.

So a text under twelve words is no near copy of a text with a different word. The rule depends on the two texts only.

The search is exact. Of two texts within n edits of each other, each lacks at most n words of the other; so of the n + m
rarest words of the one and those of the other, at least m are the same, and only texts that share m such words are compared
(J. Wang, G. Li and J. Feng, Can we beat the prefix filtering?, SIGMOD 2012; with m = 1 it is the prefix filter of
R. Bayardo, Y. Ma and R. Srikant, Scaling up all pairs similarity search, WWW 2007). And of n + 1 pieces of the one, at least one
occurs unchanged in the other (G. Li, D. Deng, J. Wang and J. Feng, Pass-Join, PVLDB 2011): of long texts only those that share
a run of ten words are compared. Typos are found by deleting each letter in turn, as SymSpell does.
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
"""Words of a text for each word that may differ. docs/decisions.md has the figures."""
_REORDERED = 4
"""Minimum number of words of a text whose words may be reordered."""
_LETTERS, _OTHER_WORDS = 5, 2
"""Minimum number of letters of a word with a typo, and of other words in the text. "card" and "care" are different words, and so are
"store" and "stove"."""
_RAREST = 5
"""Number of rarest words by which texts are looked up, or one more than may differ if that is larger."""
_RUN = 10
"""Length in words of the runs by which texts are looked up that may differ in five words or more, so have at least sixty."""
_RUNS_A_COMPARISON = 32
"""Number of runs that can be made in the time of one comparison of two texts."""
_QUOTED = 5
"""Minimum number of words of a query that quotes the document with the same id as a whole, or is quoted by it."""
_FIELDS = 3
"""Minimum number of lines (or parts between bars or semicolons) that start with a name and a colon, in a record."""
_FIELD_NAME = re.compile(r"(?:^|[\n|;])[ \t]*((?:[^\s:|;]+[ \t]+){0,3}[^\s:|;]+)[ \t]*:(?=\s|$)")


@dataclass(frozen=True)
class Duplicates:
    """Copies and near copies among texts, by position.

    A thousand copies of a text are one group and not half a million pairs.

    Attributes:
        same: Groups of texts with the same words. Every text is in one group, most of them alone.
        near: Pairs of groups that are near copies, as indexes into ``same``.
    """

    same: tuple[tuple[int, ...], ...]
    near: tuple[tuple[int, int], ...]

    @functools.cached_property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """Groups of texts that copies and near copies connect.

        Every text is in one group. The first and the last text of a long chain may have little in common.
        """
        return tuple(
            tuple(sorted(place for number in numbers for place in self.same[number])) for numbers in connected(len(self.same), self.near)
        )

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield every pair of copies or near copies, the smaller position first."""
        for group in self.same:
            yield from itertools.combinations(group, 2)
        for left, right in self.near:
            for i, j in itertools.product(self.same[left], self.same[right]):
                yield min(i, j), max(i, j)


def connected(count: int, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Return the connected groups of the numbers below ``count``. Numbers and groups are in ascending order."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    _, component = connected_components(coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count)), directed=False)
    groups: dict[int, list[int]] = {}
    for number, name in enumerate(component.tolist()):
        groups.setdefault(name, []).append(number)
    return [tuple(group) for group in groups.values()]


def near_duplicates(texts: Sequence[str]) -> Duplicates:
    """Return the copies and near copies among texts.

    The field names of a record (``Name: ...``, on separate lines or between bars or semicolons) do not count towards the number of
    words that may differ.

    The last few results are cached.
    """
    return _duplicates_among(tuple(texts))


def copies_among(ours: Mapping[str, str], theirs: Mapping[str, str]) -> dict[str, list[str]]:
    """Return {id in ``theirs``: ids in ``ours``} of the texts that copies and near copies connect."""
    texts = [*ours.values(), *theirs.values()]
    our_ids, their_ids = list(ours), list(theirs)
    copies: dict[str, list[str]] = {}
    for chain in near_duplicates(texts).chains:
        same = [our_ids[place] for place in chain if place < len(our_ids)]
        copies |= {their_ids[place - len(our_ids)]: same for place in chain if place >= len(our_ids)}
    return copies


def nearly_same(left: str, right: str) -> bool:
    """Return whether two texts are copies or near copies, by the rule of `near_duplicates`."""
    return _near(_cut(left), _cut(right))


@functools.lru_cache(maxsize=2**13)  # mining compares the same documents many times
def _cut(text: str) -> _Text:
    return _Text.of(text)


def queries_that_are_documents(dataset: Dataset) -> frozenset[str]:
    """Return the ids of the queries that are documents themselves, as in a search for similar tickets.

    Such a query has the id of a document that is not relevant to it, and its text: one is a copy or near copy of the other, or
    contains it. The id alone does not suffice, since queries and documents are often both numbered from 1.
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
    """A text in the form that is compared.

    Attributes:
        words: Words, folded.
        plain: Words without accents.
        edits: Number of words that may differ.
    """

    words: tuple[str, ...]
    plain: tuple[str, ...]
    edits: int

    @classmethod
    def of(cls, text: str) -> _Text:
        words = tuple(map(sys.intern, words_of(text)))  # one string for all occurrences of a word
        names = _FIELD_NAME.findall(text) if text.count(":") >= _FIELDS else []
        own = len(words) - (sum(len(words_of(name)) for name in names) if len(names) >= _FIELDS else 0)
        return cls(words, words if all(map(str.isascii, words)) else tuple(map(plain, words)), own // _WORDS_PER_EDIT)

    def twins(self) -> Iterator[tuple[int, str]]:
        """Yield (hash, word) keys that texts share if they differ only in accents, in order or by a typo.

        The hash is that of all words, with an empty word; or of all words but one, with that word.
        """
        yield hash(self.plain if len(self.plain) < _REORDERED else tuple(sorted(self.plain))), ""
        if not self.edits and len(self.plain) > _OTHER_WORDS:  # if a word may differ, a letter may too
            for place, word in enumerate(self.plain):
                if _may_slip(word):
                    yield hash((place, *self.plain[:place], *self.plain[place + 1 :])), word


def _near(left: _Text, right: _Text) -> bool:
    first, second = left.plain, right.plain
    if first == second:
        return True
    edits = min(left.edits, right.edits)
    if edits and Levenshtein.distance(first, second, score_cutoff=edits) <= edits:
        return True
    if len(first) != len(second):
        return False
    if len(first) >= _REORDERED and sorted(first) == sorted(second):
        return True
    if left.edits or right.edits or len(first) <= _OTHER_WORDS:
        return False
    differing = [pair for pair in zip(first, second, strict=True) if pair[0] != pair[1]]
    return len(differing) == 1 and _slipped(*differing[0])


def _may_slip(word: str) -> bool:
    return len(word) >= _LETTERS - 1 and word.isalpha()


def _slipped(left: str, right: str) -> bool:
    """Return whether two words differ by one typo."""
    longer = max(len(left), len(right))
    return longer >= _LETTERS and _may_slip(left) and _may_slip(right) and OSA.distance(left, right, score_cutoff=1) <= 1


def _without_a_letter(word: str) -> set[str]:
    """Return a word, and the word without each of its letters. The sets of two words that differ by a typo overlap."""
    return {word, *(word[:place] + word[place + 1 :] for place in range(len(word)))}


class Said:
    """Texts that are added one by one and looked up by the rule of `near_duplicates`."""

    def __init__(self) -> None:
        self._texts: list[_Text] = []
        self._numbers: dict[str, int] = {}
        self._holders: defaultdict[Hashable, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._texts)

    def find(self, text: str) -> int | None:
        """Return the position of the first copy or near copy of a text, or None."""
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
        """Yield the keys that near copies share: one word more than may differ, in the same order for all texts.

        The frequency of words is not known yet. Long and late words tend to be rare.
        """
        for word in text.plain:
            self._numbers.setdefault(word, len(self._numbers))
        ordered = sorted(text.plain, key=lambda word: (-len(word), -self._numbers[word]))[: text.edits + 1] if text.edits else []
        yield from ((word, ordered[:place].count(word)) for place, word in enumerate(ordered))
        yield from ((key, rest) for key, word in text.twins() for rest in _without_a_letter(word))


@functools.lru_cache(maxsize=4)  # a run needs the queries for its check, split and leaks, and the documents
def _duplicates_among(texts: tuple[str, ...]) -> Duplicates:
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
    """Return the pairs of near copies among texts without copies."""
    texts_with = Counter(word for text in texts for word in set(text.plain))
    rank = {word: number for number, (word, _) in enumerate(reversed(texts_with.most_common()))}  # the rarest word has rank 0
    ranks = [[rank[word] for word in text.plain] for text in texts]
    # Comparing words as characters is twice as fast.
    coded: Sequence[Sequence[Hashable]] = ["".join(map(chr, row)) for row in ranks] if len(rank) <= sys.maxunicode else ranks
    pairs = {pair for pair in _twins(texts) if _near(texts[pair[0]], texts[pair[1]])}
    for candidates in _candidates(texts, ranks):
        for left, right in candidates:
            edits = min(texts[left].edits, texts[right].edits)
            if Levenshtein.distance(coded[left], coded[right], score_cutoff=edits) <= edits:
                pairs.add((min(left, right), max(left, right)))
    return sorted(pairs)


def _candidates(texts: Sequence[_Text], ranks: Sequence[Sequence[int]]) -> Iterator[Iterator[tuple[int, int]]]:
    """Yield the pairs that may be near copies by the number of words that differ."""
    for edits in sorted({text.edits for text in texts if 0 < text.edits < _RAREST}):
        longest = max(len(row) for row, text in zip(ranks, texts, strict=True) if text.edits == edits) + edits
        numbers = [number for number, text in enumerate(texts) if text.edits >= edits and len(ranks[number]) <= longest]
        pairs = _sharing_rare_words(ranks, numbers, edits)
        yield ((left, right) for left, right in pairs if min(texts[left].edits, texts[right].edits) == edits)
    yield _sharing_rare_words_or_runs(texts, ranks, [number for number, text in enumerate(texts) if text.edits >= _RAREST])


def _twins(texts: Sequence[_Text]) -> Iterator[tuple[int, int]]:
    """Yield the pairs that may differ only in accents, in order or by a typo, the smaller number first."""
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
    """Yield the pairs of numbered texts that may be within so many edits, judged by their rarest words."""
    shared = _RAREST - edits
    holders: defaultdict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    with console.progress("looking for near duplicates", len(numbers)) as advance:
        for number in numbers:
            counted = _rarest(ranks[number], _RAREST)
            candidates: set[int] = set()
            for words in itertools.combinations(counted, shared):
                candidates.update(holders[words])
                holders[words].append(number)
            yield from ((other, number) for other in candidates)
            advance(1)


def _sharing_rare_words_or_runs(
    texts: Sequence[_Text], ranks: Sequence[Sequence[int]], numbers: Sequence[int]
) -> Iterator[tuple[int, int]]:
    """Yield the pairs of numbered texts that may be near copies.

    Long texts of common words share many words by chance, but no run of ten. Texts with a page in common share runs, but no rare
    word. Both keys find all pairs, so each text is looked up by the key that fewer texts share.
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
    """Return the rarest words of a text, each with its occurrence number, so that a repeated word counts twice."""
    rarest = sorted(ranks)[:count]
    seen: Counter[int] = Counter()
    counted = []
    for word in rarest:
        counted.append((word, seen[word]))
        seen[word] += 1
    return counted
