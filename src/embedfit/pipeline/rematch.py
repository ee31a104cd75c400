"""A new run against the one that is live: both on the same held-out queries, and on today's traffic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedfit import console
from embedfit.data.dataset import Dataset, text_key, unchecked
from embedfit.data.split import group_numbers
from embedfit.data.texts import Contents
from embedfit.errors import DataError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison
from embedfit.evaluation.score import Scores, score_run
from embedfit.pipeline.job import Job
from embedfit.pipeline.learned import scores_with
from embedfit.pipeline.result import Result
from embedfit.searcher.searcher import Searcher
from embedfit.tune.result import seen_by

_FEWEST = 10
"""Number of today's queries from which they are also judged apart."""


@dataclass(frozen=True)
class Rematch:
    """A comparison of the live version and a new one.

    Attributes:
        comparison: The live version and the new one, on the held-out queries and today's.
        today: The same on today's queries alone; None if there are few.
    """

    comparison: Comparison
    today: Comparison | None

    @property
    def won(self) -> bool:
        """Whether the new version is better beyond chance, and not worse on today's queries."""
        return self.comparison.verdict == "better" and (self.today is None or self.today.verdict != "worse")

    @property
    def sentence(self) -> str:
        """The result, as text."""
        if self.today is None:
            return self.comparison.sentence
        return f"{self.comparison.sentence} Today's queries alone: {self.today.sentence}"


def rematch(job: Job, live: Result, searcher: Searcher, new: Result) -> Rematch:
    """Compare a new run with the live one, query by query.

    Args:
        job: Data and settings of the new run.
        live: Run that is live.
        searcher: Its searcher, with the picks that it has learned, but none of those held out as today's traffic.
        new: New run.

    Raises:
        DataError: The runs have no held-out query in common.
    """
    everything = job.picked.everything if job.picked else job.dataset
    held_out = _in_common(live, new)
    seen = set(seen_by(live.model))
    today = () if new.today is None else new.today.base.query_ids
    today = tuple(id for id in today if text_key(everything.queries[id].text) not in seen)
    if not held_out and not today:
        raise DataError(
            str(new.folder), f"has no held-out query in common with {live.folder}, which is live", fix="refresh to a new --live"
        )
    groups = group_numbers(everything, job.config.split.group_by)
    if len(live.manifest["split"]) == 1:
        old = _scored(searcher, everything.select([*held_out, *today]), new)
    else:  # its own model was trained on them, and the models of its folds were not
        old = _joined(_by_folds(job, live).select(held_out), _scored(searcher, everything.select(today), new) if today else None)
    own = _joined(new.comparison.tuned.select(held_out), new.today.tuned.select(today) if new.today and today else None)
    metrics = [name for name in own.values if name in old.values]
    if job.metric not in metrics:
        raise DataError(str(live.folder), f"was not measured by {job.metric}", fix="refresh with its metric, or to a new --live")
    old, own = (_with(scores, metrics, groups, job.base.name) for scores in (old, own))

    def compared(ids: Sequence[str]) -> Comparison:
        return compare_scores(old.select(ids), own.select(ids), metric=job.metric, seed=job.config.split.seed, held_out=True)

    return Rematch(compared(own.query_ids), compared(today) if len(today) >= _FEWEST else None)


def _by_folds(job: Job, live: Result) -> Scores:
    """Return the scores of the live version on its held-out queries with the picks; as its run measured them if its data is gone."""
    picked = job.picked
    picks = {id: (picked.dataset.queries[id].text, next(iter(picked.dataset.relevant(id)))) for id in picked.ids} if picked else {}
    try:
        return scores_with(live, picks, picked)
    except DataError as error:
        console.note(f"{live.folder} is compared as it was measured, without the picks that it has learned since: {error}")
        return live.comparison.tuned


def _in_common(live: Result, new: Result) -> tuple[str, ...]:
    """Return the ids of the queries that both runs held out, with the same text."""
    import pandas as pd

    texts = [pd.read_parquet(result.folder / "queries.parquet").set_index("query_id")["query"].to_dict() for result in (live, new)]
    return tuple(id for id in new.comparison.tuned.query_ids if texts[0].get(id) == texts[1][id])


def _scored(searcher: Searcher, queries: Dataset, new: Result) -> Scores:
    """Return the scores of a searcher over its own documents."""
    over = unchecked(Contents(queries.queries, dict(searcher.parts.documents), queries.qrels))
    ks = sorted({int(metric.partition("@")[2]) for metric in new.comparison.tuned.values})
    return score_run(searcher.rank(over, max(100, *ks)), queries.qrels, ks=ks, name="live")


def _joined(first: Scores, second: Scores | None) -> Scores:
    if second is None:
        return first
    metrics = [name for name in first.values if name in second.values]
    values = {name: np.concatenate([first.values[name], second.values[name]]) for name in metrics}
    return Scores(first.name, (*first.query_ids, *second.query_ids), values, np.concatenate([first.ranks, second.ranks]))


def _with(scores: Scores, metrics: Sequence[str], groups: Mapping[str, int], name: str) -> Scores:
    numbers = np.array([groups[id] for id in scores.query_ids])
    return Scores(name, scores.query_ids, {metric: scores.values[metric] for metric in metrics}, scores.ranks, numbers)
