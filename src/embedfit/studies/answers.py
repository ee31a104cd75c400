"""How far a searcher's answers change with another form of its model: the best answer, and the probability that it states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Difference
from embedfit.evaluation.score import Scores
from embedfit.searcher.parts import without_example
from embedfit.searcher.searcher import Searcher, SearchHit
from embedfit.studies.forms import spread

_QUERIES = 300
"""Largest number of queries that are asked."""


@dataclass(frozen=True)
class Answers:
    """The best answers of a searcher with its model and with another form, on the same queries.

    Attributes:
        difference: Share of the queries whose best answer is right, with the model and with the form.
        same: Share of the queries whose best answer is the same document.
        change: Mean absolute change of the best answer's probability; None without a calibration.
        overstated: Rise of the best answers' mean probability beyond the rise of the share of right ones; None without a calibration.
    """

    difference: Difference
    same: float
    change: float | None
    overstated: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON has it."""
        return {**vars(self), "difference": vars(self.difference)}

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any]) -> Answers:
        """Return what `to_dict` described."""
        return cls(Difference(**payload["difference"]), payload["same"], payload["change"], payload["overstated"])


def compare_answers(searcher: Searcher, forms: Mapping[str, Encoder], dataset: Dataset, *, seed: int = 0) -> Answers:
    """Ask a searcher with its model and with a form. A query that is one of the searcher's examples is left out of them.

    Args:
        searcher: Searcher with its own model.
        forms: The form of each of its models: ``model``, and ``base`` where a view reads the vectors before tuning.
        dataset: Labelled queries; up to 300 are asked, evenly spread.
        seed: Seed of the interval.
    """
    ids = [list(dataset.judged)[row] for row in spread(len(dataset.judged), _QUERIES)]
    asked = dataset.select(ids)
    other = Searcher(replace(searcher.parts, encoder=forms["model"], base=forms.get("base", searcher.parts.base)))
    hits = [_answers(one, asked) for one in (searcher, other)]
    scores = []
    for name, rows in zip(("model", "form"), hits, strict=True):
        right = np.array([bool(row) and row[0].id in asked.relevant(id) for id, row in zip(ids, rows, strict=True)], np.float64)
        scores.append(Scores(name, tuple(ids), {"precision@1": right}, right.astype(np.int64)))
    difference = compare_scores(scores[0], scores[1], metric="precision@1", seed=seed, held_out=True)["precision@1"]
    same = float(np.mean([_ids(left)[:1] == _ids(right)[:1] for left, right in zip(*hits, strict=True)]))
    if searcher.parts.calibrator is None:
        return Answers(difference, same, None, None)
    before, after = (np.array([float(row[0].probability or 0) if row else 0.0 for row in rows]) for rows in hits)
    change, rise = float(np.abs(after - before).mean()), float(after.mean() - before.mean())
    return Answers(difference, same, change, rise - difference.difference)


def _answers(searcher: Searcher, asked: Dataset) -> list[list[SearchHit]]:
    """Return the best answer to each query; its own example, if there is one, does not speak."""
    encoded = searcher.encode(asked.query_texts())
    known = set(searcher.parts.examples.query_ids)
    rows = []
    for place, id in enumerate(asked.queries):
        parts = searcher.parts
        if id in known:
            parts = parts.with_examples(without_example(parts.examples, id))
        rows += Searcher(parts).search_encoded(encoded[place : place + 1], 1)
    return rows


def _ids(hits: list[SearchHit]) -> list[str]:
    return [hit.id for hit in hits]
