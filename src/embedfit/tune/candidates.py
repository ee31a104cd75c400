"""Which documents each training query is scored against.

With a small corpus: all of them, so that every wrong document is a negative in every step, and nothing is sampled.
With a large one: the batch's own positives, hard negatives mined for its queries, and random others, all shared by the
batch. Either way the judgements decide: a known positive is never a negative, whoever's positive it was drawn for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Dataset
from embedfit.retrieve.run import own_positions


@dataclass(frozen=True)
class Candidates:
    """The documents that a batch of b queries is scored against.

    Attributes:
        documents: Positions in the corpus; c of them.
        grades: Shape (b, c): the query's grade for the document, 0 for a negative, -1 for neither: a query that is itself
            a document is not pushed away from itself.
    """

    documents: npt.NDArray[np.int64]
    grades: npt.NDArray[np.float32]


class CandidateSource(Protocol):
    """Chooses the candidates of a batch. The same batch must always get the same, or resuming would differ."""

    def candidates(self, batch: Sequence[int]) -> Candidates:
        """Return the candidates of the training queries at these positions."""
        ...


class AllDocuments:
    """Every document of the corpus."""

    def __init__(self, train: Dataset) -> None:
        self._relevant, self._own = relevant_positions(train), own_positions(train, list(train.corpus))
        self._documents = np.arange(len(train.corpus))

    def candidates(self, batch: Sequence[int]) -> Candidates:
        """Return the whole corpus."""
        return Candidates(self._documents, _grades([self._relevant[row] for row in batch], self._own[list(batch)], self._documents))


class BatchAndOthers:
    """One relevant document of each query of the batch, hard negatives of each if there are, and random others.

    Args:
        train: Queries, corpus and judgements.
        random: How many random documents the batch shares.
        hard: How many of its mined negatives each query brings, drawn anew every time.
        seed: Of the draws.

    Attributes:
        mined: The hard negatives of each query, -1 where there are no more; shape (queries, any).
    """

    def __init__(self, train: Dataset, *, random: int, hard: int = 0, seed: int) -> None:
        self._relevant, self._own = relevant_positions(train), own_positions(train, list(train.corpus))
        self._size, self._random, self._hard, self._seed = len(train.corpus), random, hard, seed
        self.mined = np.empty((len(self._relevant), 0), np.int64)

    def candidates(self, batch: Sequence[int]) -> Candidates:
        """Return the batch's positives, its hard negatives and random documents, each once."""
        # Seeded by the batch itself and by nothing that a restart would lose.
        rng = np.random.default_rng([self._seed, *batch])
        relevant = [self._relevant[row] for row in batch]
        chosen = [rng.choice(list(grades)) for grades in relevant]
        others = rng.choice(self._size, size=min(self._random, self._size), replace=False)
        hard = [rng.permutation(mined[mined >= 0])[: self._hard] for mined in self.mined[list(batch)]]
        documents = np.unique(np.concatenate([chosen, others, *hard]).astype(np.int64))
        return Candidates(documents, _grades(relevant, self._own[list(batch)], documents))


def relevant_positions(train: Dataset) -> list[dict[int, int]]:
    """Return, for each query in order, {position of a relevant document: grade}."""
    position = {id: index for index, id in enumerate(train.corpus)}
    return [{position[id]: grade for id, grade in train.relevant(query).items()} for query in train.queries]


def _grades(relevant: Sequence[dict[int, int]], own: npt.NDArray[np.int64], documents: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
    column = {int(position): index for index, position in enumerate(documents)}
    grades = np.where(own[:, None] == documents, np.float32(-1), np.float32(0))
    for row, known in enumerate(relevant):
        for position, grade in known.items():
            if position in column:
                grades[row, column[position]] = grade
    return grades
