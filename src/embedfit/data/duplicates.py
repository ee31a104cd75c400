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
import sys
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

from embedfit import progress
from embedfit.data.nearness import Text, near, without_a_letter
from embedfit.data.wordings import Wordings, mixed, sharing
from embedfit.words import words_of

if TYPE_CHECKING:
    from embedfit.data.dataset import Dataset

_RAREST = 5
"""Number of rarest words by which texts are looked up, or one more than may differ if that is larger."""
_RUN = 10
"""Length in words of the runs by which texts are looked up that may differ in five words or more, so have at least sixty."""
_RUNS_A_COMPARISON = 32
"""Number of runs that can be made in the time of one comparison of two texts."""
_QUOTED = 5
"""Minimum number of words of a query that quotes the document with the same id as a whole, or is quoted by it."""
_FEW = 4
"""Up to this many texts that share a key are compared without a look at their words."""


class Duplicates:
    """Copies and near copies among texts, by position.

    A thousand copies of a text are one group and not half a million pairs.

    Attributes:
        group_of: Number of each text's group of copies. Groups are numbered by their first texts.
        near: Pairs of groups that are near copies.
    """

    def __init__(self, same: Sequence[Sequence[int]], near: Sequence[tuple[int, int]]) -> None:
        """Keep groups of copies, by position, and pairs of groups that are near copies."""
        self.group_of: npt.NDArray[np.int32] = np.zeros(sum(map(len, same)), np.int32)
        for number, group in enumerate(same):
            self.group_of[list(group)] = number
        self.near = tuple(near)

    @classmethod
    def of_groups(cls, group_of: npt.NDArray[np.int32], near: Sequence[tuple[int, int]]) -> Duplicates:
        """Return the duplicates with these attributes."""
        duplicates = cls((), near)
        duplicates.group_of = group_of
        return duplicates

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duplicates) and np.array_equal(self.group_of, other.group_of) and self.near == other.near

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Duplicates(same={self.same}, near={self.near})"

    @property
    def same(self) -> tuple[tuple[int, ...], ...]:
        """Groups of texts with the same words. Every text is in one group, most of them alone."""
        return tuple(members(self.group_of))

    @functools.cached_property
    def chain_of(self) -> npt.NDArray[np.int32]:
        """Number of each text's chain: the texts that copies and near copies connect.

        The first and the last text of a long chain may have little in common.
        """
        if not self.near:
            return self.group_of
        groups = int(self.group_of.max()) + 1
        return _component_of(groups, np.array(self.near, np.int64).reshape(-1, 2))[self.group_of]

    @property
    def chains(self) -> tuple[tuple[int, ...], ...]:
        """Chains of at least two texts."""
        return tuple(members(self.chain_of, least=2))

    def pairs(self) -> Iterator[tuple[int, int]]:
        """Yield every pair of copies or near copies, the smaller position first."""
        same = self.same
        for group in same:
            yield from itertools.combinations(group, 2)
        for left, right in self.near:
            for i, j in itertools.product(same[left], same[right]):
                yield min(i, j), max(i, j)


def connected(count: int, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, ...]]:
    """Return the connected groups of the numbers below ``count``. Numbers and groups are in ascending order."""
    return list(members(_component_of(count, np.array(pairs, np.int64).reshape(-1, 2))))


def _component_of(count: int, pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """Return the number of each number's connected group. Groups are numbered by their first members."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = pairs.T
    _, component = connected_components(coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count)), directed=False)
    return numbered(component)


def numbered(names: npt.NDArray[np.generic]) -> npt.NDArray[np.int32]:
    """Return numbers in place of names: equal names have one number, and new numbers come in ascending order."""
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    number = np.empty(len(first), np.int32)
    number[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    numbers: npt.NDArray[np.int32] = number[inverse.reshape(-1)]
    return numbers


def members(group_of: npt.NDArray[np.int32], *, least: int = 1) -> Iterator[tuple[int, ...]]:
    """Yield the positions in each group of at least so many members, in the order of the groups' numbers."""
    sizes = np.bincount(group_of)
    order = np.argsort(group_of, kind="stable").astype(np.int32)
    ends = np.cumsum(sizes)
    chosen = np.flatnonzero(sizes >= least)
    for size, end in zip(sizes[chosen].tolist(), ends[chosen].tolist(), strict=True):
        yield (int(order[end - 1]),) if size == 1 else tuple(order[end - size : end].tolist())


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
    copies: dict[str, list[str]] = {id: [] for id in theirs}
    for chain in near_duplicates(texts).chains:
        same = [our_ids[place] for place in chain if place < len(our_ids)]
        copies |= {their_ids[place - len(our_ids)]: same for place in chain if place >= len(our_ids)}
    return copies


def nearly_same(left: str, right: str) -> bool:
    """Return whether two texts are copies or near copies, by the rule of `near_duplicates`."""
    return near(_cut(left), _cut(right))


@functools.lru_cache(maxsize=2**13)  # mining compares the same documents many times
def _cut(text: str) -> Text:
    return Text.of(text)


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


class Said:
    """Texts that are added one by one and looked up by the rule of `near_duplicates`."""

    def __init__(self) -> None:
        self._texts: list[Text] = []
        self._numbers: dict[str, int] = {}
        self._holders: defaultdict[Hashable, list[int]] = defaultdict(list)

    def __len__(self) -> int:
        return len(self._texts)

    def find(self, text: str) -> int | None:
        """Return the position of the first copy or near copy of a text, or None."""
        own = Text.of(text)
        numbers = sorted({number for key in self._keys(own) for number in self._holders.get(key, ())})
        return next((number for number in numbers if near(own, self._texts[number])), None)

    def add(self, text: str) -> int:
        """Add a text, and return its position."""
        own = Text.of(text)
        for key in self._keys(own):
            self._holders[key].append(len(self._texts))
        self._texts.append(own)
        return len(self._texts) - 1

    def _keys(self, text: Text) -> Iterator[Hashable]:
        """Yield the keys that near copies share: one word more than may differ, in the same order for all texts.

        The frequency of words is not known yet. Long and late words tend to be rare.
        """
        for word in text.words:
            self._numbers.setdefault(word, len(self._numbers))
        ordered = sorted(text.words, key=lambda word: (-len(word), -self._numbers[word]))[: text.edits + 1] if text.edits else []
        yield from ((word, ordered[:place].count(word)) for place, word in enumerate(ordered))
        yield from ((key, rest) for key, word in text.twins() for rest in without_a_letter(word))


@functools.lru_cache(maxsize=4)  # a run needs the queries for its check, split and leaks, and the documents
def _duplicates_among(texts: tuple[str, ...]) -> Duplicates:
    wordings, group_of = Wordings.distinct(texts)
    return Duplicates.of_groups(group_of, _near_pairs(wordings))


def _near_pairs(wordings: Wordings) -> list[tuple[int, int]]:
    """Return the pairs of near copies among texts without copies."""
    text = functools.lru_cache(maxsize=2**16)(wordings.text)
    pairs = {pair for pair in _twins(wordings) if near(text(pair[0]), text(pair[1]))}
    if not wordings.edits.any():
        return sorted(pairs)
    ranks = wordings.ranks()

    @functools.lru_cache(maxsize=2**14)
    def coded(number: int) -> Sequence[Hashable]:
        row = ranks[wordings.row(number)].tolist()
        # Comparing words as characters is twice as fast.
        return "".join(map(chr, row)) if len(ranks) <= sys.maxunicode else row

    edits = wordings.edits.tolist()
    for left, right in _candidates(wordings, edits):
        most = min(edits[left], edits[right])
        if Levenshtein.distance(coded(left), coded(right), score_cutoff=most) <= most:
            pairs.add((min(left, right), max(left, right)))
    return sorted(pairs)


def _twins(wordings: Wordings) -> Iterator[tuple[int, int]]:
    """Yield the pairs that may differ only in accents, in order or by a typo, the smaller number first."""
    for owners, words in wordings.twins():
        if len(owners) <= _FEW:
            yield from itertools.combinations(owners, 2)
            continue
        numbers: defaultdict[str, list[int]] = defaultdict(list)
        for owner, word in zip(owners, words, strict=True):
            for rest in without_a_letter(word):
                numbers[rest].append(owner)
        for some in numbers.values():
            yield from itertools.combinations(some, 2)


def _candidates(wordings: Wordings, edits: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the pairs that may be near copies by the number of words that differ. Some pairs come several times."""
    lengths = np.diff(wordings.starts)
    for most in range(1, _RAREST):
        own = wordings.edits == most
        if own.any():
            numbers = np.flatnonzero((wordings.edits >= most) & (lengths <= lengths[own].max() + most)).astype(np.int32)
            pairs = _sharing_rare_words(wordings, numbers, most)
            yield from ((left, right) for left, right in pairs if min(edits[left], edits[right]) == most)
    yield from _sharing_rare_words_or_runs(wordings, edits, np.flatnonzero(wordings.edits >= _RAREST).tolist())


def _sharing_rare_words(wordings: Wordings, numbers: npt.NDArray[np.int32], most: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of numbered texts that may be within so many edits, judged by their rarest words."""
    words = mixed(*wordings.rare(numbers, _RAREST))
    chosen = list(itertools.combinations(range(_RAREST), _RAREST - most))
    step = 2**14
    with progress.bar("looking for near duplicates", len(numbers)) as advance:

        def keys() -> Iterator[tuple[npt.NDArray[np.uint64], npt.NDArray[np.int32]]]:
            for start in range(0, len(numbers), step):
                block = words[start : start + step]
                sums = np.stack([block[:, list(columns)].sum(axis=1) for columns in chosen], axis=1)
                yield sums.reshape(-1), np.repeat(numbers[start : start + step], len(chosen))

        for (owners,) in sharing(keys, words.size * len(chosen) // _RAREST):
            yield from itertools.combinations(owners.tolist(), 2)
        advance(len(numbers))


def _sharing_rare_words_or_runs(wordings: Wordings, edits: Sequence[int], numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of numbered texts that may be near copies.

    Long texts of common words share many words by chance, but no run of ten. Texts with a page in common share runs, but no rare
    word. Both keys find all pairs, so each text is looked up by the key that fewer texts share.
    """
    ranks, lengths = wordings.ranks(), np.diff(wordings.starts).tolist()
    by_word: defaultdict[Hashable, list[int]] = defaultdict(list)
    by_run: defaultdict[Hashable, list[int]] = defaultdict(list)
    with progress.bar("looking for near duplicates among long texts", len(numbers)) as advance:
        for number in numbers:
            row, pieces = ranks[wordings.row(number)].tolist(), edits[number] + 1
            rarest = _rarest(row, pieces)
            lists = [by_word[key] for key in rarest if key in by_word]
            if sum(map(len, lists)) > len(row) // _RUNS_A_COMPARISON:
                runs = {tuple(row[place : place + _RUN]) for place in range(len(row) - _RUN + 1)}
                lists = min(lists, [by_run[key] for key in runs if key in by_run], key=lambda lists: sum(map(len, lists)))
            yield from ((other, number) for other in set().union(*lists) if abs(lengths[other] - len(row)) < pieces)
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
