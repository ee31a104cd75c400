"""Today's traffic: the newest picks, which a run does not train on, as a test of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from embedfit.data.split import group_numbers
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison
from embedfit.evaluation.score import score_run
from embedfit.files import writing
from embedfit.pipeline.job import Job
from embedfit.report.tables import per_query

if TYPE_CHECKING:
    import pandas as pd

    from embedfit.searcher.searcher import Searcher

NAME = "today"
"""Name of the files in a run directory, without their endings."""


@dataclass(frozen=True)
class Today:
    """The result on the newest picks.

    Attributes:
        comparison: Base model and searcher on these queries.
        queries: Frame with one row per query, from `per_query`.
    """

    comparison: Comparison
    queries: pd.DataFrame

    @property
    def sentence(self) -> str:
        """The result, as text."""
        return f"Today's traffic, the newest picks: {self.comparison.sentence}"

    def write(self, folder: Path) -> None:
        """Write today.json and today.parquet into a run directory."""
        with writing(folder / f"{NAME}.parquet") as file:
            self.queries.to_parquet(file, index=False)
        with writing(folder / f"{NAME}.json") as file:
            file.write(json.dumps(self.comparison.to_dict(), indent=1).encode())


def measure_today(job: Job, searcher: Searcher) -> Today | None:
    """Return how the base model and the searcher do on the newest picks; None if none are held out."""
    if not job.picked or not job.picked.today.queries:
        return None
    today, ks = job.picked.today, job.config.evaluate.k
    groups = group_numbers(job.picked.everything, job.config.split.group_by)
    base_run, run = job.dense(job.base).search(today, job.depth), searcher.rank(today, job.depth)
    base, deployed = [
        score_run(ranking, today.qrels, ks=ks, name=name, groups=groups)
        for ranking, name in ((base_run, job.base.name), (run, f"{job.base.name}, searcher"))
    ]
    comparison = compare_scores(base, deployed, metric=job.metric, seed=job.config.split.seed, held_out=True)
    return Today(comparison, per_query(today, comparison, base_run, run))
