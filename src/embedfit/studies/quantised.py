"""Vectors of 8 bits and of one bit, and what they cost in quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedfit.encode.encoder import Vectors
from embedfit.retrieve.exact import best_pairs, merged, top_k
from embedfit.retrieve.run import Ranked

_CANDIDATES = 4
"""The rescoring looks at this many times k documents."""


@dataclass(frozen=True)
class Int8:
    """Documents in one byte for each dimension, as sentence-transformers quantises them.

    A code is one of 256 steps between the least and the greatest value of its dimension in the corpus.

    Attributes:
        codes: Shape (documents, dimensions).
        starts: The least value of each dimension.
        steps: The width of its steps.
    """

    codes: npt.NDArray[np.int8]
    starts: npt.NDArray[np.float32]
    steps: npt.NDArray[np.float32]

    @classmethod
    def of(cls, documents: Vectors) -> Int8:
        """Quantise some vectors, with their own least and greatest values for the range."""
        from sentence_transformers.util.quantization import quantize_embeddings

        ranges = np.stack([documents.min(axis=0), documents.max(axis=0)])
        codes = [
            np.asarray(quantize_embeddings(documents[rows], "int8", ranges=ranges), np.int8) for rows in _blocks(len(documents), DOCUMENTS)
        ]
        steps = (ranges[1] - ranges[0]) / 255
        # As the library has it: where all documents are equal, any step will do.
        return cls(np.concatenate(codes), ranges[0], np.where(steps == 0, np.float32(1), steps))

    def search(self, queries: Vectors, k: int) -> Ranked:
        """Return the k best documents of each query: the product of the query in fp32 and the dequantised document.

        The codes become fp32 a block at a time, as numpy multiplies integers many times slower: int8 saves memory here, not
        time. The starts add the same to all of a query's products and are left out.
        """
        scaled = queries * self.steps
        parts = [_moved(top_k(scaled, self.codes[rows].astype(np.float32), k), rows.start) for rows in _blocks(len(self.codes), DOCUMENTS)]
        return merged(parts, k)

    def lowest_cosine(self, documents: Vectors) -> float:
        """Return the lowest cosine of a dequantised vector, in the middle of its steps, with the vector it was made of."""
        return min(
            lowest_cosine(documents[rows], self.starts + (self.codes[rows] + np.float32(128.5)) * self.steps)
            for rows in _blocks(len(documents), DOCUMENTS)
        )


@dataclass(frozen=True)
class Binary:
    """Documents in one bit for each dimension: whether it is above zero, as sentence-transformers quantises them.

    Attributes:
        bits: Eight to a byte; shape (documents, bytes).
        dimensions: Of the vectors they were made of.
    """

    bits: npt.NDArray[np.uint8]
    dimensions: int

    @classmethod
    def of(cls, vectors: Vectors) -> Binary:
        """Quantise some vectors."""
        from sentence_transformers.util.quantization import quantize_embeddings

        return cls(np.asarray(quantize_embeddings(vectors, "ubinary"), np.uint8), vectors.shape[1])

    def search(self, queries: Vectors, k: int) -> Ranked:
        """Return the k best documents of each query: the fewest bits that differ (Hamming distance). Scores are its negative."""
        documents, asked = self._words(), Binary.of(queries)._words()
        found = []
        for some in _blocks(len(queries), QUERIES):
            parts = [_moved(_hamming_top_k(asked[some], documents[rows], k), rows.start) for rows in _blocks(len(documents), DOCUMENTS)]
            found.append(merged(parts, k))
        return _stacked(found)

    def search_and_rescore(self, queries: Vectors, k: int) -> Ranked:
        """Return the k best documents of each query among the 4k nearest by Hamming distance.

        These are ranked by the product of the query in fp32 and the document's signs, 1 and -1 (Yamada, Asai and Hajishirzi
        2021), so that nothing but the bits need be kept.
        """
        candidates = np.sort(self.search(queries, _CANDIDATES * k)[0], axis=1)
        found = []
        for some in _blocks(len(queries), max(1, QUERIES // k)):
            near = candidates[some]
            signs = np.unpackbits(self.bits[near], axis=-1, count=self.dimensions).astype(np.float32) * 2 - 1
            scores = np.einsum("qd,qcd->qc", queries[some], signs)
            found.append(best_pairs(near, scores, k))
        return _stacked(found)

    def _words(self) -> npt.NDArray[np.uint64]:
        padding = -self.bits.shape[1] % 8
        return np.pad(self.bits, ((0, 0), (0, padding))).view(np.uint64)


def _hamming_top_k(queries: npt.NDArray[np.uint64], documents: npt.NDArray[np.uint64], k: int) -> Ranked:
    distances = np.zeros((len(queries), len(documents)), np.uint16)
    for word in range(documents.shape[1]):
        distances += np.bitwise_count(queries[:, word, None] ^ documents[None, :, word])
    # Distance and position in one number, so that no two are equal and the earlier of two as near is the smaller. 32 bits
    # hold it: 16 for the distance, 14 for the position in a block.
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
"""Documents, and queries, that are looked at together, so that memory does not grow with their product."""


def lowest_cosine(left: Vectors, right: Vectors) -> float:
    """Return the lowest cosine between rows that belong together."""
    # In fp64: the tolerance is near the last digit of fp32.
    one, other = left.astype(np.float64), right.astype(np.float64)
    return float(((one * other).sum(axis=1) / (np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1))).min())
