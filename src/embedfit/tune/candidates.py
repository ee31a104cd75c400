"""Candidates: the documents that each training query is scored against.

In a small corpus every document is a candidate in every step, so every wrong document is a negative and nothing is sampled.
In a large corpus the candidates are the batch's positives, hard negatives of its queries (judged ones first, then mined ones), and
random documents; the whole batch shares them. A known positive of a query is never its negative, whichever query it was drawn for.
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
        documents: Positions in the corpus, shape (c,).
        grades: Grade of each document for each query, shape (b, c): above 0 for a positive, 0 for a negative, -1 for neither,
            because a query that is itself a document is not pushed away from itself.
    """

    documents: npt.NDArray[np.int64]
    grades: npt.NDArray[np.float32]


class CandidateSource(Protocol):
    """Source of each batch's candidates. The same batch must always get the same candidates, or a resumed training would differ."""

    def candidates(self, batch: Sequence[int]) -> Candidates:
        """Return the candidates for a batch of training queries, given by their positions."""
        ...


class AllDocuments:
    """Every document of the corpus is a candidate in every batch."""

    def __init__(self, train: Dataset) -> None:
        self._relevant, self._own = relevant_positions(train), own_positions(train, list(train.corpus))
        self._documents = np.arange(len(train.corpus))

    def candidates(self, batch: Sequence[int]) -> Candidates:
        """Return the whole corpus."""
        return Candidates(self._documents, _grades([self._relevant[row] for row in batch], self._own[list(batch)], self._documents))


class BatchAndOthers:
    """One positive of each query in the batch, hard negatives if there are any, and random documents.

    Documents judged irrelevant for a query (grade 0 or below) are its first hard negatives. Mined ones follow.

    Args:
        train: Training queries, corpus and judgements.
        random: Random documents per batch.
        hard: Hard negatives per query, drawn again for each batch.
        seed: Seed of the draws.

    Attributes:
        mined: Positions of each query's hard negatives, padded with -1; shape (queries, any).
    """

    def __init__(self, train: Dataset, *, random: int, hard: int = 0, seed: int) -> None:
        self._relevant, self._own = relevant_positions(train), own_positions(train, list(train.corpus))
        self._judged = judged_negatives(train)
        self._size, self._random, self._hard, self._seed = len(train.corpus), random, hard, seed
        self.mined = np.empty((len(self._relevant), 0), np.int64)

    def candidates(self, batch: Sequence[int]) -> Candidates:
        """Return the batch's positives, hard negatives and random documents, without repeats."""
        # The batch itself is the seed, so a resumed training draws the same.
        rng = np.random.default_rng([self._seed, *batch])
        relevant = [self._relevant[row] for row in batch]
        chosen = [rng.choice(list(grades)) for grades in relevant]
        random = rng.choice(self._size, size=min(self._random, self._size), replace=False)
        hard = [self._negatives(row, rng) for row in batch]
        documents = np.unique(np.concatenate([chosen, random, *hard]).astype(np.int64))
        return Candidates(documents, _grades(relevant, self._own[list(batch)], documents))

    def _negatives(self, row: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        mined, judged = self.mined[row], self._judged[row]
        drawn = rng.permutation(mined[mined >= 0])
        if len(judged):
            drawn = np.concatenate([rng.permutation(judged), drawn[~np.isin(drawn, judged)]])
        return drawn[: self._hard]


def has_judged_negatives(dataset: Dataset) -> bool:
    """Return whether a document is judged irrelevant for a query that has a relevant one."""
    return any(grade <= 0 for id in dataset.judged for grade in dataset.qrels[id].values())


def judged_negatives(train: Dataset) -> list[npt.NDArray[np.int64]]:
    """Return the positions of the documents judged irrelevant for each query, in order."""
    position = {id: index for index, id in enumerate(train.corpus)}
    grades = [train.qrels.get(query, {}).items() for query in train.queries]
    return [np.array([position[id] for id, grade in each if grade <= 0], np.int64) for each in grades]


def relevant_positions(train: Dataset) -> list[dict[int, int]]:
    """Return {position of a relevant document: grade} for each query, in order."""
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
