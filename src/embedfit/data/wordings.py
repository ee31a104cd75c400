"""The words of many texts as numbers, in arrays: a million short texts take tens of MiB."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.data.nearness import OTHER_WORDS, REORDERED, Text, edits_of, may_slip
from embedfit.words import plain, words_of

_Hashes: TypeAlias = npt.NDArray[np.uint64]
_Integers: TypeAlias = npt.NDArray[np.int32]
_BLOCK = 2**18
"""Words that are handled at once."""
_KEYS = 2**20
"""Keys that are compared at once, where the number of passes allows it."""
_PASSES = 16
"""Maximum number of passes over the texts, of which each handles a share of the keys."""
_FACTOR = 0x9E3779B97F4A7C15
"""Odd number whose powers weigh the words of a text by their places."""


@dataclass(frozen=True)
class Wordings:
    """The words of texts, without accents.

    Attributes:
        vocabulary: Words by number.
        numbers: Numbers of the words of all texts, one text after another.
        starts: Place of each text's first word, and the number of all words.
        edits: Number of words that may differ, for each text.
    """

    vocabulary: Sequence[str]
    numbers: _Integers
    starts: npt.NDArray[np.int64]
    edits: _Integers

    @classmethod
    def distinct(cls, texts: Sequence[str]) -> tuple[Wordings, _Integers]:
        """Return the texts without copies, in the order of their first occurrence, and for each text the number of its own there.

        Copies have the same words with the same accents.
        """
        number_of, numbers, starts, edits = _Numbers(), array("i"), array("q", [0]), array("i")
        for text in texts:
            words = words_of(text)
            numbers.extend(map(number_of.__getitem__, words))
            starts.append(len(numbers))
            edits.append(edits_of(text, len(words)))
        spelt = cls(list(number_of), np.frombuffer(numbers, np.int32), np.frombuffer(starts, np.int64), np.frombuffer(edits, np.int32))
        group_of, first = spelt._copies()
        bare = _Numbers()
        bare_of = np.fromiter(map(bare.__getitem__, map(plain, spelt.vocabulary)), np.int32, len(spelt.vocabulary))
        lengths = np.diff(spelt.starts)
        kept = spelt.numbers[np.repeat(first, lengths)]
        starts_of_first = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[first])])
        return cls(list(bare), bare_of[kept], starts_of_first, spelt.edits[first]), group_of

    def __len__(self) -> int:
        return len(self.edits)

    def row(self, number: int) -> _Integers:
        """Return the words of a text, as numbers."""
        return self.numbers[self.starts[number] : self.starts[number + 1]]

    def text(self, number: int) -> Text:
        """Return a text in the form that is compared."""
        return Text(tuple(self.vocabulary[word] for word in self.row(number).tolist()), int(self.edits[number]))

    def ranks(self) -> _Integers:
        """Return the rank of each word by its rarity. The rarest word has rank 0."""
        rank = np.empty(len(self.vocabulary), np.int32)
        rank[np.argsort(np.bincount(self.numbers, minlength=len(rank)), kind="stable")] = np.arange(len(rank), dtype=np.int32)
        return rank

    def twins(self) -> Iterator[tuple[list[int], list[str]]]:
        """Yield the texts that share a key, in ascending order, with the word that the key leaves out of each.

        Texts share a key if they differ only in accents, in order or by a typo. It is a hash of all words, with an empty word; or of all
        words but one, with that word. The keys are compared in several passes, so that they take bounded memory.
        """
        codes, bag = _codes(2, len(self.vocabulary))
        slips = np.fromiter(map(may_slip, self.vocabulary), bool, len(self.vocabulary))
        count = len(self) + int(np.diff(self.starts)[self.edits == 0].sum())
        for owners, words in sharing(lambda: self._keys(codes, bag, slips), count):
            yield owners.tolist(), [self.vocabulary[word] if word >= 0 else "" for word in words.tolist()]

    def _keys(self, codes: _Hashes, bag: _Hashes, slips: npt.NDArray[np.bool_]) -> Iterator[tuple[_Hashes, _Integers, _Integers]]:
        """Yield the keys of a block of texts, the numbers of these texts, and the word that each key leaves out, or -1."""
        for begin, end in self._blocks():
            places = self.starts[begin : end + 1] - self.starts[begin]
            numbers = self.numbers[self.starts[begin] : self.starts[end]]
            lengths, texts = np.diff(places), np.arange(begin, end, dtype=np.int32)
            terms = codes[numbers] * _powers(places)
            sums = _sums(terms, places)
            keys = np.where(lengths < REORDERED, sums, _sums(bag[numbers], places))
            yield keys, texts, np.full(len(keys), -1, np.int32)
            left_out = slips[numbers] & np.repeat((self.edits[begin:end] == 0) & (lengths > OTHER_WORDS), lengths)
            owner = np.repeat(texts, lengths)[left_out]
            yield sums[owner - begin] - terms[left_out], owner, numbers[left_out]

    def rare(self, numbers: _Integers, count: int) -> tuple[_Integers, _Integers]:
        """Return the ranks of the rarest words of some texts, the rarest first, and the occurrence number of each within its text.

        Args:
            numbers: Numbers of the texts.
            count: Number of words; each text has as many.
        """
        rank = self.ranks()
        rarest = np.empty((len(numbers), count), np.int32)
        for place, number in enumerate(numbers.tolist()):
            rarest[place] = np.sort(rank[self.row(number)])[:count]
        again = np.zeros_like(rarest)
        for column in range(1, count):
            again[:, column] = np.where(rarest[:, column] == rarest[:, column - 1], again[:, column - 1] + 1, 0)
        return rarest, again

    def _copies(self) -> tuple[_Integers, npt.NDArray[np.bool_]]:
        """Return the number of each text's group of copies, and whether a text is the first of its group.

        Texts are told apart by hashes of 128 bits.
        """
        hashes = np.zeros((2, len(self)), np.uint64)
        for column, codes in enumerate(_codes(2, len(self.vocabulary))):
            for begin, end in self._blocks():
                places = self.starts[begin : end + 1] - self.starts[begin]
                hashes[column, begin:end] = _sums(codes[self.numbers[self.starts[begin] : self.starts[end]]] * _powers(places), places)
        order = np.lexsort(hashes)  # stable
        new = np.ones(len(self), bool)
        new[1:] = False
        for values in hashes:
            in_order = values[order]
            new[1:] |= in_order[1:] != in_order[:-1]
        del hashes
        first_of = order[new][np.cumsum(new) - 1]  # the first text of the group, for each text in this order
        first = np.zeros(len(self), bool)
        first[order[new]] = True
        group_of = np.empty(len(self), np.int32)
        group_of[order] = (np.cumsum(first) - 1)[first_of]
        return group_of, first

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Yield (first text, one behind the last) of blocks of a bounded number of words."""
        begin = 0
        while begin < len(self):
            end = max(begin + 1, int(np.searchsorted(self.starts, self.starts[begin] + _BLOCK, "right")) - 1)
            yield begin, min(end, begin + _BLOCK)
            begin = min(end, begin + _BLOCK)


def sharing(blocks: Callable[[], Iterator[tuple[npt.NDArray[Any], ...]]], count: int) -> Iterator[tuple[npt.NDArray[Any], ...]]:
    """Yield the entries that share a key, in their order.

    The keys are compared in several passes, of which each handles a share of them, so that they take little memory.

    Args:
        blocks: Function that yields keys, and columns of what each key stands for.
        count: Number of keys.
    """
    passes = np.uint64(min(_PASSES, 1 + count // _KEYS))
    for number in range(int(passes)):
        parts = []
        for keys, *columns in blocks():
            chosen = (keys >> np.uint64(32)) % passes == number
            parts.append([column[chosen] for column in (keys, *columns)])
        if not parts:
            return
        keys, *columns = (np.concatenate(column) for column in zip(*parts, strict=True))
        parts.clear()
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        again = np.flatnonzero(keys[1:] == keys[:-1])
        first = again[np.diff(again, prepend=-2) > 1]
        last = again[np.diff(again, append=len(keys) + 1) > 1] + 1
        for start, end in zip(first.tolist(), last.tolist(), strict=True):
            entries = order[start : end + 1]
            yield tuple(column[entries] for column in columns)


def mixed(values: _Integers, seconds: _Integers) -> _Hashes:
    """Return a hash of each pair of numbers (D. Steele, G. Lea and C. Flood, Fast splittable pseudorandom number generators, 2014)."""
    hashes = (values.astype(np.uint64) << np.uint64(32)) + seconds.astype(np.uint64) * np.uint64(_FACTOR) + np.uint64(1)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes = (hashes ^ (hashes >> np.uint64(shift))) * np.uint64(factor)
    return hashes ^ (hashes >> np.uint64(31))


class _Numbers(dict[str, int]):
    """Words with numbers. A new word gets the next number."""

    def __missing__(self, word: str) -> int:
        number = self[word] = len(self)
        return number


def _codes(count: int, words: int) -> _Hashes:
    """Return some random numbers for each word, the same in every process."""
    return np.random.default_rng(0).integers(2**64, size=(count, words), dtype=np.uint64)


def _powers(places: npt.NDArray[np.int64]) -> _Hashes:
    """Return the weight of each word by its place in its text."""
    lengths = np.diff(places)
    weights = np.full(int(lengths.max(initial=0)), _FACTOR, np.uint64)
    weights = np.cumprod(weights, dtype=np.uint64)
    powers: _Hashes = weights[np.arange(places[-1]) - np.repeat(places[:-1], lengths)]
    return powers


def _sums(values: _Hashes, places: npt.NDArray[np.int64]) -> _Hashes:
    """Return the sum of the values of each text, modulo 2^64."""
    totals = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    sums: _Hashes = totals[places[1:]] - totals[places[:-1]]
    return sums
