"""Vectors of 8 bits and of 1 bit per dimension, and their search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedfit.encode.encoder import Vectors
from embedfit.retrieve.exact import best_pairs, merged, top_k
from embedfit.retrieve.run import Ranked

_CANDIDATES = 4
"""Documents that are rescored, as a multiple of k."""


@dataclass(frozen=True)
class Int8:
    """Document vectors in one byte per dimension, as sentence-transformers quantises them.

    A code is one of 256 steps between the smallest and the largest value of its dimension in the corpus.

    Attributes:
        codes: Codes, shape (documents, dimensions).
        starts: Smallest value of each dimension, shape (dimensions,).
        steps: Width of a step in each dimension, shape (dimensions,).
    """

    codes: npt.NDArray[np.int8]
    starts: npt.NDArray[np.float32]
    steps: npt.NDArray[np.float32]

    @classmethod
    def of(cls, documents: Vectors) -> Int8:
        """Quantise vectors over the range of their own values."""
        from sentence_transformers.util.quantization import quantize_embeddings

        ranges = np.stack([documents.min(axis=0), documents.max(axis=0)])
        codes = [
            np.asarray(quantize_embeddings(documents[rows], "int8", ranges=ranges), np.int8) for rows in _blocks(len(documents), DOCUMENTS)
        ]
        steps = (ranges[1] - ranges[0]) / 255
        # As in the library: if all documents are equal, any step works.
        return cls(np.concatenate(codes), ranges[0], np.where(steps == 0, np.float32(1), steps))

    def search(self, queries: Vectors, k: int) -> Ranked:
        """Return the k best documents of each query by the product of the fp32 query and the dequantised document.

        The codes are converted to fp32 block by block, because numpy multiplies integers many times slower: int8 saves memory
        here, not time. The starts are left out, as they add the same to all products of a query.
        """
        scaled = queries * self.steps
        parts = [_moved(top_k(scaled, self.codes[rows].astype(np.float32), k), rows.start) for rows in _blocks(len(self.codes), DOCUMENTS)]
        return merged(parts, k)

    def lowest_cosine(self, documents: Vectors) -> float:
        """Return the lowest cosine of a dequantised vector, at the middle of its steps, with its original."""
        return min(
            lowest_cosine(documents[rows], self.starts + (self.codes[rows] + np.float32(128.5)) * self.steps)
            for rows in _blocks(len(documents), DOCUMENTS)
        )


@dataclass(frozen=True)
class Binary:
    """Document vectors in one bit per dimension, whether it is above zero, as sentence-transformers quantises them.

    Attributes:
        bits: Bits, eight to a byte; shape (documents, bytes).
        dimensions: Dimensions of the original vectors.
    """

    bits: npt.NDArray[np.uint8]
    dimensions: int

    @classmethod
    def of(cls, vectors: Vectors) -> Binary:
        """Quantise vectors."""
        from sentence_transformers.util.quantization import quantize_embeddings

        return cls(np.asarray(quantize_embeddings(vectors, "ubinary"), np.uint8), vectors.shape[1])

    def search(self, queries: Vectors, k: int) -> Ranked:
        """Return the k nearest documents of each query by Hamming distance, the number of differing bits. Scores are its negative."""
        documents, query_words = self._words(), Binary.of(queries)._words()
        blocks = []
        for block in _blocks(len(queries), QUERIES):
            parts = [
                _moved(_hamming_top_k(query_words[block], documents[rows], k), rows.start) for rows in _blocks(len(documents), DOCUMENTS)
            ]
            blocks.append(merged(parts, k))
        return _stacked(blocks)

    def search_and_rescore(self, queries: Vectors, k: int) -> Ranked:
        """Return the k best documents of each query among the 4k nearest by Hamming distance.

        They are ranked by the product of the fp32 query and the document's signs, 1 and -1 (Yamada, Asai and Hajishirzi 2021),
        which needs nothing but the bits.
        """
        candidates = np.sort(self.search(queries, _CANDIDATES * k)[0], axis=1)
        blocks = []
        for block in _blocks(len(queries), max(1, QUERIES // k)):
            near = candidates[block]
            signs = np.unpackbits(self.bits[near], axis=-1, count=self.dimensions).astype(np.float32) * 2 - 1
            scores = np.einsum("qd,qcd->qc", queries[block], signs)
            blocks.append(best_pairs(near, scores, k))
        return _stacked(blocks)

    def _words(self) -> npt.NDArray[np.uint64]:
        padding = -self.bits.shape[1] % 8
        return np.pad(self.bits, ((0, 0), (0, padding))).view(np.uint64)


def _hamming_top_k(queries: npt.NDArray[np.uint64], documents: npt.NDArray[np.uint64], k: int) -> Ranked:
    distances = np.zeros((len(queries), len(documents)), np.uint16)
    for word in range(documents.shape[1]):
        distances += np.bitwise_count(queries[:, word, None] ^ documents[None, :, word])
    # Distance and position in one number: no two are equal, and of two equally near documents the earlier has the smaller.
    # It fits in 32 bits: 16 for the distance, 14 for the position in a block.
    keys = distances.astype(np.int32) * len(documents) + np.arange(len(documents), dtype=np.int32)
    if k < len(documents):
        keys = np.partition(keys, k - 1, axis=1)[:, :k]
    keys = np.sort(keys, axis=1)
    return (keys % len(documents)).astype(np.int64), -(keys // len(documents)).astype(np.float32)


def _moved(ranked: Ranked, start: int) -> Ranked:
    """Return the ranking of a block of documents with positions among all documents."""
    return ranked[0] + start, ranked[1]


def _stacked(parts: Sequence[Ranked]) -> Ranked:
    return np.concatenate([positions for positions, _ in parts]), np.concatenate([scores for _, scores in parts])


def _blocks(total: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


DOCUMENTS, QUERIES = 16_384, 512
"""Documents and queries in one block, so that memory does not grow with their product."""


def lowest_cosine(left: Vectors, right: Vectors) -> float:
    """Return the lowest cosine between corresponding rows."""
    # In fp64, because the tolerance is near the last digit of fp32.
    first, second = left.astype(np.float64), right.astype(np.float64)
    return float(((first * second).sum(axis=1) / (np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1))).min())
