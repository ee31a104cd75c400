"""Two ways to learn from labelled queries that change the index and not the encoder.

Each takes an encoder, training queries and a template, encodes every text once, and returns a `Tuned` with a retriever:

- `tuned_documents` trains the document vectors;
- `class_centroids` mixes each document's vector with the mean vector of its training queries (Rocchio 1971).

Neither learns anything about a document without a training query.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.retrieve.retrievers import VectorIndex
from embedfit.retrieve.run import sorted_corpus
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


def _unit(vectors: Vectors) -> Vectors:
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
