"""Which texts say the same, and which nearly do: copies that must not stand on both sides of a split.

Two texts say the same if they have the same words, whatever their case, white space and punctuation. They nearly do if
one becomes the other by changing, adding or leaving out at most one word in twelve (the Levenshtein distance, counted in
words). So a text under twelve words has no near duplicates: one word makes a short question another question.

The search is exact. Of two texts within n edits of each other, each lacks at most n words of the other; so of the n + m
rarest words of the one and those of the other, at least m are the same, and only texts that share m such words are compared
(J. Wang, G. Li and J. Feng, Can we beat the prefix filtering?, SIGMOD 2012; with m = 1 it is the prefix filter of
R. Bayardo, Y. Ma and R. Srikant, Scaling up all pairs similarity search, WWW 2007).
"""

from __future__ import annotations

import functools
import itertools
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from embedfit import console
from embedfit.data import normalised

_WORDS_PER_EDIT = 12
"""So many words for each one that may differ. docs/decisions.md has the figures."""

_BOILERPLATE_SHARE, _BOILERPLATE_TEXTS = 0.99, 20
"""A word of at least this share of the texts is a form's, such as a field's label; only so many texts can tell."""

_RAREST = 5
"""Texts are looked up by so many of their rarest words, or by one more than may differ where that is more."""

_SCRIPTS_WITHOUT_SPACES = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR")


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

    Words that (nearly) all of twenty texts or more share, such as the field labels of records, do not make texts longer:
    how many words may differ is told by the others alone.

    The last few answers are kept, so that asking again about the same texts costs nothing.
    """
    return _found(tuple(texts))


def nearly_same(one: str, other: str) -> bool:
    """Return whether two texts say the same or nearly, as `near_duplicates` would of the two alone."""
    first, second = words_of(one), words_of(other)
    edits = min(len(first), len(second)) // _WORDS_PER_EDIT
    return first == second or (edits > 0 and Levenshtein.distance(first, second, score_cutoff=edits) <= edits)


def words_of(text: str) -> tuple[str, ...]:
    """Return a text's words as compared here: what stands between white space, case folded, without punctuation.

    Where a script sets no spaces between words, each character counts as a word. A text of punctuation alone keeps it.
    """
    folded = normalised(text)
    return tuple(folded.translate(_FOLDED).split() or folded.split())


class Said:
    """Texts that come one by one, each compared with all before it; what is near is what `near_duplicates` says.

    No word counts as a form's here, so give texts without the labels of their fields.
    """

    def __init__(self) -> None:
        self._texts: list[tuple[int, ...]] = []
        self._numbers: dict[str, int] = {}
        self._lengths: list[int] = []
        self._holders: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._texts)

    def find(self, text: str) -> int | None:
        """Return the position of the first text that says the same or nearly, None if there is none."""
        words = self._words(text)
        near = sorted({number for word in self._rarest(words) for number in self._holders[word]})
        for number in near:
            edits = min(len(words), len(self._texts[number])) // _WORDS_PER_EDIT
            if Levenshtein.distance(words, self._texts[number], score_cutoff=edits) <= edits:
                return number
        return None

    def add(self, text: str) -> int:
        """Add a text, and return its position."""
        words = self._words(text)
        for word in self._rarest(words):
            self._holders[word].append(len(self._texts))
        self._texts.append(words)
        return len(self._texts) - 1

    def _words(self, text: str) -> tuple[int, ...]:
        found = []
        for word in words_of(text):
            if word not in self._numbers:
                self._numbers[word] = len(self._numbers)
                self._lengths.append(len(word))
            found.append(self._numbers[word])
        return tuple(found)

    def _rarest(self, words: tuple[int, ...]) -> list[tuple[int, int]]:
        """Return as many words, and one more, as may differ; which ones is free, but must be by one order for all texts.

        How rare a word will be is not known yet. Long words and those that came late tend to be.
        """
        ordered = sorted(words, key=lambda word: (-self._lengths[word], -word))[: len(words) // _WORDS_PER_EDIT + 1]
        return [(word, ordered[:place].count(word)) for place, word in enumerate(ordered)]


class _Folded(dict[int, str]):
    """What each character becomes before a text is cut at its white space; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if unicodedata.category(character).startswith("P"):
            self[code] = ""
        elif unicodedata.name(character, "").startswith(_SCRIPTS_WITHOUT_SPACES):
            self[code] = f" {character} "
        else:
            self[code] = character
        return self[code]


_FOLDED = _Folded()


@functools.lru_cache(maxsize=4)  # a run asks about the queries for its check, its split and its leaks, and about the documents
def _found(texts: tuple[str, ...]) -> Duplicates:
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, text in enumerate(texts):
        groups.setdefault(words_of(text), []).append(position)
    return Duplicates(tuple(map(tuple, groups.values())), tuple(_near_pairs(list(groups))))


def _near_pairs(texts: Sequence[tuple[str, ...]]) -> list[tuple[int, int]]:
    """Return each two of some distinct texts, given as words, that say nearly the same."""
    texts_with = Counter(word for text in texts for word in set(text))
    rank = {word: number for number, (word, _) in enumerate(reversed(texts_with.most_common()))}  # the rarest word has rank 0
    enough = _BOILERPLATE_SHARE * len(texts) if len(texts) >= _BOILERPLATE_TEXTS else math.inf
    lengths = [sum(texts_with[word] < enough for word in text) for text in texts]
    ranks = [[rank[word] for word in text] for text in texts]
    pairs = []
    for edits in sorted({length // _WORDS_PER_EDIT for length in lengths} - {0}):
        least, below = edits * _WORDS_PER_EDIT, (edits + 1) * _WORDS_PER_EDIT
        # The shorter of a pair says how many words may differ, and the longer has at most that many more.
        numbers = [number for number, length in enumerate(lengths) if least <= length < below + edits]
        for one, other in _sharing_rare_words(ranks, numbers, edits):
            shorter = min(lengths[one], lengths[other])
            if shorter < below and Levenshtein.distance(ranks[one], ranks[other], score_cutoff=edits) <= edits:
                pairs.append((one, other))
    return sorted(pairs)


def _sharing_rare_words(ranks: Sequence[Sequence[int]], numbers: Sequence[int], edits: int) -> Iterator[tuple[int, int]]:
    """Yield each two of the texts of these numbers that can be within so many edits, as far as their rarest words tell."""
    shared = max(1, _RAREST - edits)
    holders: defaultdict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    with console.progress("looking for near duplicates", len(numbers)) as advance:
        for number in numbers:
            rarest = sorted(ranks[number])[: edits + shared]
            # The second "the" of a text is another word than its first, or two would count as one.
            counted = [(word, rarest[:place].count(word)) for place, word in enumerate(rarest)]
            found: set[int] = set()
            for words in itertools.combinations(counted, shared):
                found.update(holders[words])
                holders[words].append(number)
            yield from ((other, number) for other in found)
            advance(1)
