"""Which documents answer which query best: exact, in bounded memory, the same on every run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from embedfit.data import DOCUMENT_TEMPLATE, Dataset, normalised
from embedfit.encode import Encoder, Vectors

if TYPE_CHECKING:
    import pandas as pd

DEPTH = 100
"""How far down a ranking the right answer is looked for."""
_BLOCK_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Run:
    """For each query, the best documents in order.

    Attributes:
        query_ids: n of them.
        document_ids: The whole corpus, sorted.
        ranked: Positions in `document_ids`, best first; shape (n, k). Equal scores stand in order of document id.
        scores: The similarities; shape (n, k).
    """

    query_ids: tuple[str, ...]
    document_ids: tuple[str, ...]
    ranked: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]

    def documents(self, query_id: str) -> list[str]:
        """Return the ids of the documents found for a query, best first."""
        return [self.document_ids[position] for position in self.ranked[self.query_ids.index(query_id)]]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per query and rank: query id, rank (from 1), document id, score."""
        import pandas as pd

        n, k = self.ranked.shape
        return pd.DataFrame(
            {
                "query_id": np.repeat(np.array(self.query_ids, dtype=object), k),
                "rank": np.tile(np.arange(1, k + 1), n),
                "document_id": np.array(self.document_ids, dtype=object)[self.ranked.ravel()],
                "score": self.scores.ravel(),
            }
        )


def joined(runs: Sequence[Run]) -> Run:
    """Return the Runs of different queries on one corpus as one, for example out of fold."""
    return Run(
        tuple(id for run in runs for id in run.query_ids),
        runs[0].document_ids,
        np.concatenate([run.ranked for run in runs]),
        np.concatenate([run.scores for run in runs]),
    )


class Retriever(Protocol):
    """Anything that ranks the corpus of a data set for its queries."""

    name: str

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        ...


class DenseRetriever:
    """Cosine similarity of vectors, against every document.

    Args:
        encoder: Turns both queries and documents into vectors.
        template: What a document says.
    """

    def __init__(self, encoder: Encoder, template: str = DOCUMENT_TEMPLATE) -> None:
        self.encoder, self.template, self.name = encoder, template, encoder.name

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        # One call for the corpus as it stands in the file, so that its cache does not depend on the sorting here.
        texts = dataset.document_texts(self.template)
        order, document_ids = sorted_corpus(dataset)
        documents = self.encoder.encode(texts, "document")[order]
        queries = self.encoder.encode(dataset.query_texts(), "query")
        ranked, scores = top_k(queries, documents, k)
        return Run(tuple(dataset.queries), document_ids, ranked, scores)


class BM25Retriever:
    """Words in common, weighted by rarity (Robertson and Zaragoza 2009), by the library bm25s.

    Args:
        template: What a document says.
    """

    name = "BM25"

    def __init__(self, template: str = DOCUMENT_TEMPLATE) -> None:
        self.template = template

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        import bm25s

        order, document_ids = sorted_corpus(dataset)
        texts = dataset.document_texts(self.template)
        index = bm25s.BM25()
        words_of_documents = _words([texts[position] for position in order])
        vocabulary: set[str] = set()
        if any(words_of_documents):  # labels like A, B, C have none that count, which the library does not take
            index.index(words_of_documents, show_progress=False)
            vocabulary = set(index.vocab_dict)
        depth = min(k, len(texts))
        ranked, found = np.empty((len(dataset.queries), depth), np.int64), np.empty((len(dataset.queries), depth), np.float32)
        for row, words in enumerate(_words(dataset.query_texts())):
            known = [word for word in words if word in vocabulary]
            scores = index.get_scores(known) if known else np.zeros(len(texts), np.float32)
            ranked[row], found[row] = (best[0] for best in best_of(scores[None].astype(np.float32), k))
        return Run(tuple(dataset.queries), document_ids, ranked, found)


class FusedRetriever:
    """Several retrievers as one, by reciprocal rank fusion (Cormack, Clarke and Büttcher 2009).

    A document's score is the sum, over the retrievers that found it, of 1 / (60 + its rank).

    Args:
        retrievers: At least two.
        depth: How far down each one's ranking counts.
    """

    def __init__(self, *retrievers: Retriever, depth: int = DEPTH) -> None:
        self.retrievers, self.depth = retrievers, depth
        self.name = " + ".join(retriever.name for retriever in retrievers)

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        runs = [retriever.search(dataset, max(k, self.depth)) for retriever in self.retrievers]
        ranked, scores = [], []
        for rows in zip(*(run.ranked for run in runs), strict=True):
            # Only what was found by one of them can be among the best; the corpus may be large.
            found = np.unique(np.concatenate(rows))
            sums = np.zeros(len(found), np.float64)
            for row in rows:
                sums[np.searchsorted(found, row)] += 1 / (60 + np.arange(1, len(row) + 1))
            best, best_scores = best_of(sums.astype(np.float32)[None], k)
            ranked.append(found[best[0]])
            scores.append(best_scores[0])
        depth = min(map(len, ranked))
        return Run(
            runs[0].query_ids,
            runs[0].document_ids,
            np.array([row[:depth] for row in ranked]),
            np.array([row[:depth] for row in scores]),
        )


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    tokens: list[list[str]] = bm25s.tokenize([normalised(text) for text in texts], stopwords="en", return_ids=False, show_progress=False)
    return tokens


def top_k(queries: Vectors, documents: Vectors, k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the k nearest documents of each query by inner product, exactly.

    Works through blocks of queries and documents, so that memory does not grow with their product.

    Args:
        queries: Shape (n, dimensions).
        documents: Shape (m, dimensions).
        k: At most m are returned.

    Returns:
        Positions and scores, each of shape (n, min(k, m)), best first; equal scores in order of position.
    """
    k = min(k, len(documents))
    keys = np.empty((len(queries), k), np.int64)
    width = max(k, min(len(documents), 16_384))
    height = max(1, _BLOCK_BYTES // (8 * max(1, width)))
    for top in range(0, len(queries), height):
        best = np.empty((len(queries[top : top + height]), 0), np.int64)
        for left in range(0, len(documents), width):
            block = _keys(queries[top : top + height] @ documents[left : left + width].T, left)
            best = _best(np.concatenate([best, _best(block, k)], axis=1), k)
        keys[top : top + height] = best
    return _unpacked(keys)


def best_of(scores: npt.NDArray[np.float32], k: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Return the positions and scores of the k best of each row, best first; equal scores in order of position.

    Args:
        scores: Shape (n, m).
        k: At most m are returned.
    """
    return _unpacked(_best(_keys(scores, 0), k))


def _keys(scores: npt.NDArray[np.float32], first: int) -> npt.NDArray[np.int64]:
    """Pack (score, position) into whole numbers that sort as the pair does, so that no two are equal.

    A float's bits sort as the float does once those of negative numbers are turned round; the position, counted
    down, goes below them, and the earlier of two equal scores is the larger number.
    """
    bits = scores.view(np.int32).astype(np.int64)
    ordered = np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    positions = np.arange(first, first + scores.shape[1], dtype=np.int64)
    keys: npt.NDArray[np.int64] = (ordered << 32) | (0xFFFFFFFF - positions)
    return keys


def _unpacked(keys: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    ordered = keys >> 32
    bits = np.where(ordered >= 0, ordered, -ordered | -0x80000000)
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF), bits.astype(np.int32).view(np.float32)


def _best(keys: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """Return the k largest of each row, largest first."""
    if keys.shape[1] > k:
        keys = np.partition(keys, -k, axis=1)[:, -k:]
    best: npt.NDArray[np.int64] = np.sort(keys, axis=1)[:, ::-1]
    return best


def sorted_corpus(dataset: Dataset) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return the corpus' positions in order of document id, and the ids: ties must not depend on a file's order."""
    ids = list(dataset.corpus)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return np.array(order, np.int64), tuple(ids[position] for position in order)
