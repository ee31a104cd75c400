"""A teacher's scores of queries and documents, which training learns beside the labels: from the data, or from a cross-encoder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedfit import processes
from embedfit.data.dataset import Dataset
from embedfit.data.texts import TEACHER_SCORES
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import BaseEncoder, Encoder, Kind, Vectors
from embedfit.errors import DataError, shown
from embedfit.retrieve.rerank import LocalReranker, Reranker
from embedfit.tune.candidates import relevant_positions
from embedfit.tune.mine import Guards, mine
from embedfit.tune.training import Training

IN_DATA = "data"
"""The setting of the teacher if the scores are in the data."""
_READ = 16
"""Wrong documents of each query that a cross-encoder reads: the nearest ones by the base model."""
_CERTAIN = 1e-4
"""Least distance of a probability from 0 and 1."""


@dataclass(frozen=True)
class Teacher:
    """A teacher's scores of some documents of each training query.

    Attributes:
        scores: Scores of each query: position of a document in the corpus -> logit.
    """

    scores: list[dict[int, float]]

    def of(self, rows: Sequence[int], documents: Sequence[int] | npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return the scores of some queries and documents, by position; NaN where there is none. Shape (queries, documents)."""
        column = {int(position): index for index, position in enumerate(documents)}
        matrix = np.full((len(rows), len(column)), np.nan, np.float32)
        for index, row in enumerate(rows):
            for position, score in self.scores[row].items():
                if position in column:
                    matrix[index, column[position]] = score
        return matrix


def teacher_of(base: Encoder, training: Training) -> Teacher | None:
    """Return the teacher's scores that the settings ask for; None without a teacher.

    A cross-encoder reads the relevant documents of each training query and the nearest others. Its scores are cached as vectors are, so
    that no pair is read twice, in other folds neither, and a process that was killed goes on where it stopped.

    Args:
        base: Encoder by which the nearest documents are found.
        training: Data and settings.

    Raises:
        DataError: The scores are to be in the data, and are not, or one is not a number.
        ModelError: The cross-encoder cannot be loaded, or gives scores that are not finite.
    """
    name, train = training.config.teacher, training.train
    if name is None:
        return None
    if name == IN_DATA:
        return Teacher(given_scores(train))
    model = LocalReranker(name)
    wrong = mine(base, train, training.template, count=_READ, guards=Guards(np.inf), seen=1, engine=training.engine)
    read = [[*relevant, *row[row >= 0].tolist()] for relevant, row in zip(relevant_positions(train), wrong, strict=True)]
    queries, documents = train.query_texts(), train.document_texts(training.template)
    own = range(processes.number(), len(read), processes.count())  # processes that train together divide the queries among them
    pairs = [(queries[row], documents[position]) for row in own for position in read[row]]
    values = iter(cached_scores(training.engine.reranker(model), model.fingerprint, pairs).tolist())
    scores = {row: {position: next(values) for position in read[row]} for row in own}
    merged = {row: found for part in processes.gathered(scores) for row, found in part.items()}
    return Teacher([merged[row] for row in range(len(read))])


def has_teacher_scores(dataset: Dataset) -> bool:
    """Return whether a judged query comes with a teacher's scores."""
    return any(dataset.queries[id].metadata.get(TEACHER_SCORES) for id in dataset.judged)


def given_scores(train: Dataset) -> list[dict[int, float]]:
    """Return the teacher's scores in the data: for each query, in order, position of a document -> logit.

    If all scores are from 0 to 1, they are read as probabilities. Documents that are not in the corpus are left out.

    Raises:
        DataError: No query has scores, or a score is not a number.
    """
    position = {id: index for index, id in enumerate(train.corpus)}
    scores: list[dict[int, float]] = []
    for id, query in train.queries.items():
        given = query.metadata.get(TEACHER_SCORES) or {}
        if not isinstance(given, Mapping) or not all(map(_is_number, given.values())):
            raise DataError(f"query {id!r}", f"has the {TEACHER_SCORES} {shown(given)}", expected="{document id: number}")
        scores.append({position[document]: float(score) for document, score in given.items() if document in position})
    known = np.array([score for row in scores for score in row.values()])
    if not len(known):
        fix = f"give pos_scores and neg_scores, or {TEACHER_SCORES} = {{document id: number}} for each query; or name a cross-encoder"
        raise DataError("data", "has no teacher scores, and tune.teacher is 'data'", fix=fix)
    if known.min() < 0 or known.max() > 1:
        return scores
    return [{place: _logit(score) for place, score in row.items()} for row in scores]


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def _logit(probability: float) -> float:
    certain = min(max(probability, _CERTAIN), 1 - _CERTAIN)
    return float(np.log(certain / (1 - certain)))


def teacher_identity(name: str) -> str:
    """Return a text that changes with the teacher that a setting names."""
    return name if name == IN_DATA else LocalReranker(name).fingerprint


class _Pairs(BaseEncoder):
    """A cross-encoder as an encoder of pairs, each a JSON text. The vector of a pair is its score alone.

    Args:
        model: Cross-encoder.
        fingerprint: Fingerprint of the cross-encoder.
    """

    def __init__(self, model: Reranker, fingerprint: str) -> None:
        self._model, self.name, self._fingerprint = model, f"{model.name} (teacher)", fingerprint

    @property
    def fingerprint(self) -> str:
        return self._fingerprint

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        pairs = [(query, document) for query, document in map(json.loads, texts)]
        return self._model.score(pairs)[:, None]


def cached_scores(model: Reranker, fingerprint: str, pairs: Sequence[tuple[str, str]]) -> npt.NDArray[np.float32]:
    """Return a cross-encoder's score of each pair (query text, document text). Only pairs that are not in the cache are read.

    Args:
        model: Cross-encoder.
        fingerprint: Fingerprint of the cross-encoder.
        pairs: Texts.
    """
    if not pairs:
        return np.zeros(0, np.float32)
    return CachedEncoder(_Pairs(model, fingerprint)).encode([json.dumps(pair) for pair in pairs], "document")[:, 0]
