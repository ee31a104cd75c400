"""Three ways to learn from labelled queries that change the index and not the encoder.

Each takes an encoder, training queries and a template, encodes every text once, and returns a `Tuned` with a retriever:

- `tuned_documents` trains the document vectors;
- `class_centroids` mixes each document's vector with the mean vector of its training queries (Rocchio 1971);
- `nearest_examples` lets the training queries near a query vote for their documents.

None of them learns anything about a document without a training query.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.retrieve.exact import best_of
from embedfit.retrieve.finder import BaseRetriever
from embedfit.retrieve.retrievers import VectorIndex, check_corpus
from embedfit.retrieve.run import Ranked, Run, run_of, sorted_corpus
from embedfit.template import DOCUMENT_TEMPLATE
from embedfit.tune.candidates import relevant_positions
from embedfit.tune.frozen import AdapterConfig, minimise, vectors_of
from embedfit.tune.result import Tuned
from embedfit.tune.training import judged

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_STRENGTH = 10.0
"""Strength of the pull of each document vector towards the encoder's."""
_PRIOR = 2.0
"""Weight of a document's own vector in its centroid, in training queries."""
_SCALE = 14.0
"""Factor of the cosine similarities before they become shares (1 / temperature)."""
_VOTES = 0.5
"""Weight of the training queries' votes in a score if every document has a training query."""
_BLOCK_BYTES = 64 * 2**20
"""Memory for the similarities of one block of queries."""


class MovedIndex(VectorIndex):
    """Cosine similarity to changed document vectors.

    Args:
        encoder: Encoder of the queries.
        vectors: Unit vector of each document, in the order of the corpus; shape (documents, dimensions).
        corpus: Data set with the corpus.
        name: Name for tables.
    """

    def __init__(self, encoder: Encoder, vectors: Vectors, corpus: Dataset, name: str) -> None:
        order, document_ids = sorted_corpus(corpus)
        super().__init__(encoder, vectors[order], document_ids, name)


class NearestExamples(BaseRetriever):
    """Scores documents by their own vectors, and by the votes of the training queries near the query.

    With e the training queries, P(d | e) their judgements as shares, and s a scale, a document's score is

        (1 - m) softmax_d(s q.d) + m sum_e softmax_e(s q.e) P(d | e)

    which is the interpolation of kNN-LM (Khandelwal et al. 2020, eq. 2 and 3). Both terms are shares, because queries are
    much nearer to each other than to documents. Only documents with a training query get votes, so the weight m is half the
    share of such documents.

    Args:
        encoder: Encoder of the queries.
        examples: Vectors of the training queries, shape (training queries, dimensions).
        judgements: P, shape (training queries, documents in the order of the corpus); each row sums to 1.
        vectors: Unit vector of each document, in the order of the corpus; shape (documents, dimensions).
        corpus: Data set with the corpus.
        name: Name for tables.
    """

    def __init__(self, encoder: Encoder, examples: Vectors, judgements: csr_array, vectors: Vectors, corpus: Dataset, name: str) -> None:
        self.encoder, self.examples, self.name = encoder, examples, name
        order, self.document_ids = sorted_corpus(corpus)
        self.judgements, self.vectors = judgements[:, order], vectors[order]
        self.votes = _VOTES * len(np.unique(judgements.indices)) / len(vectors)

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query.

        Raises:
            DataError: The data set has another corpus than the index.
        """
        check_corpus(self.document_ids, dataset)
        queries = self.encoder.encode(dataset.query_texts(), "query")
        height = max(1, _BLOCK_BYTES // (4 * (len(self.vectors) + len(self.examples))))

        def best(depth: int) -> Ranked:
            ranked = np.empty((len(queries), min(depth, len(self.vectors))), np.int64)
            scores = np.empty(ranked.shape, np.float32)
            for top in range(0, len(queries), height):
                rows = slice(top, top + height)
                ranked[rows], scores[rows] = best_of(self._scores(queries[rows]), depth)
            return ranked, scores

        return run_of(dataset, self.document_ids, best, k)

    def _scores(self, queries: Vectors) -> npt.NDArray[np.float32]:
        own, votes = _shares(queries @ self.vectors.T), _shares(queries @ self.examples.T) @ self.judgements
        scores: npt.NDArray[np.float32] = ((1 - self.votes) * own + self.votes * votes).astype(np.float32)
        return scores


def tuned_documents(
    encoder: Encoder, train: Dataset, dev: Dataset | None = None, template: str = DOCUMENT_TEMPLATE, config: AdapterConfig | None = None
) -> Tuned:
    """Train the document vectors, starting from the encoder's.

    Args:
        encoder: Encoder of queries and documents; it is not changed.
        train: Training queries.
        dev: Ignored.
        template: Document template.
        config: Settings.

    Raises:
        DataError: No training query is judged, or all have the same answer.
    """
    config = config or AdapterConfig(strength=_STRENGTH)
    train = judged(train)
    queries, documents = map(torch.from_numpy, vectors_of(encoder, train, template))
    started = time.monotonic()
    shift = torch.zeros_like(documents)

    def cosines(rows: Tensor, positions: Tensor) -> Tensor:
        return queries[rows] @ torch.nn.functional.normalize(documents[positions] + shift[positions], dim=1).T

    minimise(cosines, [shift], train, config.strength, config)
    moved = _unit((documents + shift).numpy())
    return Tuned(MovedIndex(encoder, moved, train, f"{encoder.name}, tuned documents"), round(time.monotonic() - started, 3))


def class_centroids(
    encoder: Encoder, train: Dataset, dev: Dataset | None = None, template: str = DOCUMENT_TEMPLATE, *, prior: float = _PRIOR
) -> Tuned:
    """Mix each document's vector with the mean vector of its training queries.

    A document d with n training queries moves to the direction of ``prior * d + sum of the query vectors``. The queries have a
    weight of n / (n + prior), so a document without queries keeps its vector.

    Args:
        encoder: Encoder of queries and documents; it is not changed.
        train: Training queries.
        dev: Ignored.
        template: Document template.
        prior: Weight of a document's own vector, in queries.

    Raises:
        DataError: No training query is judged, or all have the same answer.
    """
    train = judged(train)
    queries, documents = vectors_of(encoder, train, template)
    started = time.monotonic()
    answers = _judgements(train)
    answers.data[:] = 1
    moved = _unit(prior * documents + answers.T @ queries)
    return Tuned(MovedIndex(encoder, moved, train, f"{encoder.name}, centroids"), round(time.monotonic() - started, 3))


def nearest_examples(encoder: Encoder, train: Dataset, dev: Dataset | None = None, template: str = DOCUMENT_TEMPLATE) -> Tuned:
    """Put the training queries into the index, where those near a query vote for their documents.

    Args:
        encoder: Encoder of queries and documents; it is not changed.
        train: Training queries.
        dev: Ignored.
        template: Document template.

    Raises:
        DataError: No training query is judged, or all have the same answer.
    """
    train = judged(train)
    queries, documents = vectors_of(encoder, train, template)
    started = time.monotonic()
    retriever = NearestExamples(encoder, queries, _judgements(train), documents, train, f"{encoder.name}, nearest examples")
    return Tuned(retriever, round(time.monotonic() - started, 3))


def _judgements(train: Dataset) -> csr_array:
    """Return each query's grades as shares that sum to 1; shape (queries, documents)."""
    from scipy.sparse import csr_array

    cells = [
        (grade / sum(grades.values()), row, position)
        for row, grades in enumerate(relevant_positions(train))
        for position, grade in grades.items()
    ]
    shares, rows, positions = zip(*cells, strict=True)
    return csr_array((np.array(shares, np.float32), (rows, positions)), shape=(len(train.queries), len(train.corpus)))


def _shares(similarities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the softmax of each row."""
    powers = np.exp(_SCALE * (similarities - similarities.max(axis=1, keepdims=True)))
    shares: npt.NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return shares


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
