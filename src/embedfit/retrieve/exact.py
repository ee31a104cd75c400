"""The exact k nearest documents in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from embedfit.encode.encoder import Vectors
from embedfit.errors import ModelError
from embedfit.retrieve.run import Ranked

_DOCUMENTS, _QUERIES = 2048, 1024
"""Documents and queries multiplied at a time: enough for BLAS, and the products stay in the cache of the CPU."""
_CHUNK = 64
"""Documents of a chunk; the largest product of each chunk is looked at first."""
_SPARE = 2**17
"""Candidates held at most, beyond twice the result."""
_PAIRS = 1024
"""Pairs of a query and a candidate that are scored again at a time."""


def top_k(queries: Vectors, documents: Vectors, k: int) -> Ranked:
    """Return the k nearest documents of each query by inner product, exactly.

    Documents are read once, in blocks: they may be a `numpy.memmap` larger than memory. Further memory is two blocks, and about the
    size of the result. A score is the inner product in float64, rounded to float32, so it depends on neither blocks nor threads, and
    equal vectors have equal scores.

    Args:
        queries: Query vectors; float32, shape (n, dimensions).
        documents: Document vectors; float32, shape (m, dimensions).
        k: Number of documents for each query; at most m are returned.

    Returns:
        Positions and scores, each of shape (n, min(k, m)), best first; equal scores in order of position.

    Raises:
        ModelError: A vector is not finite.
    """
    k = min(k, len(documents))
    positions, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    if not scores.size:
        return positions, scores
    tops = range(0, len(queries), _QUERIES)
    searches = [_Search(queries[top : top + _QUERIES], documents, k) for top in tops]
    space = np.empty(_DOCUMENTS * min(_QUERIES, len(queries)), np.float32)
    for first in range(0, len(documents), _DOCUMENTS):
        block = np.ascontiguousarray(documents[first : first + _DOCUMENTS])
        longest = float(_lengths(block).max())
        for search in searches:
            search.see(block, first, longest, space)
    for top, search in zip(tops, searches, strict=True):
        positions[top : top + _QUERIES], scores[top : top + _QUERIES] = search.result()
    return positions, scores


class _Search:
    """The k best documents of some queries, among the documents seen so far.

    Products of a block are in float32, and BLAS decides the order of summation, which changes their last bits. So a document stays a
    candidate while its product is no further below the k-th best than both may be off. The candidates left at the end are scored
    again in float64.

    Args:
        queries: Query vectors; shape (n, dimensions).
        documents: All document vectors; shape (m, dimensions).
        k: Number of documents for each query, from 1 to m.
    """

    def __init__(self, queries: Vectors, documents: Vectors, k: int) -> None:
        self.queries, self.documents, self.k = queries, documents, k
        # |computed - exact| is at most (d u / (1 - d u)) |query| |document|, for any order of summation (Higham 2002,
        # section 3.1, and Cauchy-Schwarz), u = 2^-24. Two products may be off, and the factor of 4 also covers the rounding here.
        self._error = 4 * (queries.shape[1] + 2) * 2.0**-24 * _lengths(queries)
        self._longest = 0.0
        self._kth = np.full(len(queries), -np.inf)
        self._parts: list[_Pairs] = []
        self._held = 0

    def see(self, block: Vectors, first: int, longest: float, space: npt.NDArray[np.float32]) -> None:
        """Look at the next documents.

        Args:
            block: Vectors of the next documents; shape (b, dimensions).
            first: Position of the first of these documents.
            longest: Largest length of these vectors.
            space: Working memory for the products; at least n times b numbers, with b rounded up to whole chunks.
        """
        self._longest = max(self._longest, longest)
        n, padded = len(self.queries), -(-len(block) // _CHUNK) * _CHUNK
        products = space[: padded * n].reshape(padded, n)
        np.matmul(block, self.queries.T, out=products[: len(block)])
        products[len(block) :] = -np.inf
        if first == 0 and len(block) >= self.k:
            self._kth = np.partition(products, padded - self.k, axis=0)[padded - self.k].astype(np.float64)
        # After the first blocks almost no product is large enough. To look at the largest product of each chunk first is as fast as
        # the memory.
        least = self._least()
        chunks = products.reshape(-1, _CHUNK, n)
        chunk, query = np.nonzero(chunks.max(axis=1) > least)
        values = chunks[chunk, :, query]
        hit, offset = np.nonzero(values > least[query, None])
        self._hold(_Pairs(query[hit], first + chunk[hit] * _CHUNK + offset, values[hit, offset]))

    def result(self) -> Ranked:
        """Return positions and scores of the best documents, each of shape (n, k)."""
        best = self._best(self._pairs())
        return best.positions.reshape(-1, self.k), best.scores.reshape(-1, self.k)

    def _least(self) -> npt.NDArray[np.float32]:
        """Return, for each query, the product above which a document may still be among the best."""
        lower = self._kth - self._error * self._longest
        with np.errstate(over="ignore"):
            least: npt.NDArray[np.float32] = np.nextafter(lower.astype(np.float32), np.float32(-np.inf))
        return least

    def _hold(self, pairs: _Pairs) -> None:
        self._parts.append(pairs)
        self._held += len(pairs.scores)
        most = 2 * self.k * len(self.queries) + _SPARE
        if self._held <= most:
            return
        pairs = self._pairs()
        pairs = pairs.take(np.argsort((pairs.queries << 33) - _ordered(pairs.scores)))
        first, count = _groups(pairs.queries, len(self.queries))
        enough = count >= self.k
        self._kth[enough] = pairs.scores[first[enough] + self.k - 1]
        pairs = pairs.take(pairs.scores > self._least()[pairs.queries])
        if len(pairs.scores) > most - _SPARE // 2:  # many are nearly equal: tell them apart now
            pairs = self._best(pairs)
        self._parts, self._held = [pairs], len(pairs.scores)

    def _pairs(self) -> _Pairs:
        return _Pairs(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))

    def _best(self, pairs: _Pairs) -> _Pairs:
        """Return the k best documents of each query, or all if there are fewer, by their scores in float64, best first."""
        scores = np.empty(len(pairs.scores), np.float32)
        for start in range(0, len(scores), _PAIRS):
            rows = slice(start, start + _PAIRS)
            left, right = self.queries[pairs.queries[rows]], self.documents[pairs.positions[rows]]
            scores[rows] = np.einsum("ij,ij->i", left.astype(np.float64), right.astype(np.float64))
        order = np.lexsort((pairs.positions, -scores, pairs.queries))
        pairs = _Pairs(pairs.queries[order], pairs.positions[order], scores[order])
        first, _ = _groups(pairs.queries, len(self.queries))
        return pairs.take(np.arange(len(order)) - first[pairs.queries] < self.k)


class _Pairs(NamedTuple):
    """Pairs of a query and a candidate, and their scores; each of shape (pairs,)."""

    queries: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]

    def take(self, which: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> _Pairs:
        return _Pairs(self.queries[which], self.positions[which], self.scores[which])


def _groups(sorted_numbers: npt.NDArray[np.int64], n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return, for each number below n, where it begins in the sorted numbers, and how often it occurs."""
    count = np.bincount(sorted_numbers, minlength=n)
    return np.cumsum(count) - count, count


def _lengths(vectors: Vectors) -> npt.NDArray[np.float64]:
    """Return the length of each vector, to about the precision of float32.

    Raises:
        ModelError: A vector is not finite.
    """
    squares = np.einsum("ij,ij->i", vectors, vectors).astype(np.float64)
    if not np.isfinite(squares).all():  # perhaps too large for float32 alone
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    if not np.isfinite(squares).all():
        raise ModelError("some vectors are not finite; fix: encode them again, or with another model")
    lengths: npt.NDArray[np.float64] = np.sqrt(squares)
    return lengths


def merged(parts: Sequence[Ranked], k: int) -> Ranked:
    """Return the k best of each query from rankings of the same queries over different documents.

    Args:
        parts: At least one ranking; each has positions and scores of shape (n, any number).
        k: Number of documents to keep; fewer are returned if the rankings have fewer.

    Returns:
        Positions and scores, best first; equal scores in order of position, whatever order the parts have.
    """
    return best_pairs(np.concatenate([part[0] for part in parts], axis=1), np.concatenate([part[1] for part in parts], axis=1), k)


def best_pairs(positions: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], k: int) -> Ranked:
    """Return the k best of some documents of each query, best first; equal scores in order of position.

    Args:
        positions: Positions of the documents, each at most once in a row; shape (n, m).
        scores: Scores of the documents; shape (n, m).
        k: Number of documents to keep, at most m.
    """
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(scores, order, axis=1)


def best_of(scores: npt.NDArray[np.float32], k: int) -> Ranked:
    """Return the positions and scores of the k best of each row, best first; equal scores in order of position.

    Args:
        scores: Scores of all documents; shape (n, m).
        k: Number of documents for each row; at most m are returned.
    """
    return _unpacked(_best(_keys(scores, 0), k))


def _keys(scores: npt.NDArray[np.float32], first: int) -> npt.NDArray[np.int64]:
    """Pack (score, position) into whole numbers that sort like the pairs, so that no two are equal.

    The bits of a float sort like the float once those of negative numbers are inverted. The position, counted down, goes below them:
    of two equal scores, the earlier one has the larger number.
    """
    positions = np.arange(first, first + scores.shape[1], dtype=np.int64)
    keys: npt.NDArray[np.int64] = (_ordered(scores) << 32) | (0xFFFFFFFF - positions)
    return keys


def _ordered(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return whole numbers in the same order as the scores."""
    bits = scores.view(np.int32).astype(np.int64)
    ordered: npt.NDArray[np.int64] = np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    return ordered


def _unpacked(keys: npt.NDArray[np.int64]) -> Ranked:
    ordered = keys >> 32
    bits = np.where(ordered >= 0, ordered, -ordered | -0x80000000)
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF), bits.astype(np.int32).view(np.float32)


def _best(keys: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """Return the k largest keys of each row, the largest first."""
    if keys.shape[1] > k:
        keys = np.partition(keys, -k, axis=1)[:, -k:]
    best: npt.NDArray[np.int64] = np.sort(keys, axis=1)[:, ::-1]
    return best
