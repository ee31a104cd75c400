"""Every method on the same held-out queries, cheapest first: is fine-tuning needed at all?

A rung is fitted on the train part and searched on the test part, fold by fold. Its rankings are kept in the ladder's folder,
so an interrupted ladder resumes at the rung where it stopped.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedfit import console, progress
from embedfit.data.dataset import Dataset
from embedfit.data.split import Split, group_numbers
from embedfit.encode.local import seconds_alone
from embedfit.errors import ConfigError, did_you_mean
from embedfit.evaluation.charts import new_chart
from embedfit.evaluation.comparison import Difference
from embedfit.evaluation.families import compare_many, may_be_best
from embedfit.evaluation.score import Scores, score_run
from embedfit.files import writing
from embedfit.metrics import metric_label
from embedfit.retrieve.run import DEPTH, Run, joined
from embedfit.studies.methods import METHODS, Setting

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Rung:
    """The measurement of one method.

    Attributes:
        key: Key of the method, as ``--rung`` takes it.
        name: Name of the method.
        deploys: Components that the method puts into production, in words.
        scores: Scores on the held-out queries.
        seconds: Mean training time of one model.
        query_milliseconds: Time of a single query on this machine: encoding, if the method needs it, and search.
        below: Difference to the rung below on the ladder's metric, with a p-value adjusted for the number of rungs (Holm);
            None for the first rung.
    """

    key: str
    name: str
    deploys: str
    scores: Scores
    seconds: float
    query_milliseconds: float
    below: Difference | None = None


@dataclass(frozen=True)
class Ladder:
    """All rungs, cheapest first.

    Attributes:
        rungs: Rungs, cheapest first.
        metric: Metric of the intervals and of the recommendation.
        recommended: Key of the simplest rung that is not shown to be worse than the best.
        skipped: Reason for each method that was left out, by its name.
        folds: Number of folds; 1 without folds.
        folder: Run directory; None before it is written.
    """

    rungs: tuple[Rung, ...]
    metric: str
    recommended: str
    skipped: dict[str, str]
    folds: int
    folder: Path | None = field(default=None, compare=False)

    def __getitem__(self, key: str) -> Rung:
        return next(rung for rung in self.rungs if rung.key == key)

    @property
    def shown(self) -> tuple[str, ...]:
        """Metrics for tables: recall at each k, and the ladder's metric."""
        recalls = [metric for metric in self.rungs[0].scores.values if metric.startswith("recall@")]
        return tuple(dict.fromkeys([*recalls, self.metric]))

    @property
    def best(self) -> Rung:
        """The rung with the highest mean."""
        return max(self.rungs, key=lambda rung: rung.scores.mean(self.metric))

    @property
    def sentence(self) -> str:
        """The recommendation in one sentence, with its evidence."""
        chosen, best = self[self.recommended], self.best
        label = metric_label(self.metric)
        start = f"Recommended: {chosen.name} ({label} {chosen.scores.mean(self.metric):.3f}"
        if chosen is best:
            return f"{start}), the best; every simpler one is worse by more than chance on these {len(best.scores.query_ids):,} queries."
        return (
            f"{start}): the simplest that is not shown to be worse than the best, {best.name} "
            f"({best.scores.mean(self.metric):.3f}), on these {len(best.scores.query_ids):,} queries."
        )

    @property
    def report(self) -> Path | None:
        """The HTML report in the run directory."""
        return self.folder and self.folder / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the per-query values, in the form of ladder.json."""
        return {
            "sentence": self.sentence,
            "metric": self.metric,
            "recommended": self.recommended,
            "queries": len(self.rungs[0].scores.query_ids),
            "folds": self.folds,
            "skipped": self.skipped,
            "rungs": [
                {
                    "key": rung.key,
                    "name": rung.name,
                    **{metric: rung.scores.mean(metric) for metric in rung.scores.values},
                    "below": {**vars(rung.below), "verdict": rung.below.verdict} if rung.below else None,
                    "seconds": rung.seconds,
                    "query_milliseconds": rung.query_milliseconds,
                    "deploys": rung.deploys,
                }
                for rung in self.rungs
            ],
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per rung: name, metrics, difference to the rung below, seconds, deployment."""
        import pandas as pd

        rows = []
        for rung in self.to_dict()["rungs"]:
            below = rung.pop("below") or {}
            rows.append({**rung, **{key: below.get(key) for key in ("difference", "low", "high", "p", "verdict")}})
        return pd.DataFrame(rows)

    def plot(self) -> Figure:
        """Return a dot chart of recall at each k by rung."""
        names = [name for name in self.rungs[0].scores.values if name.startswith("recall@")]
        figure = new_chart(7.5, 0.4 * len(self.rungs) + 1.2)
        axes = figure.subplots()
        places = np.arange(len(self.rungs))[::-1]
        for name, colour in zip(names, ("#0f766e", "#64748b", "#94a3b8", "#cbd5e1"), strict=False):
            axes.plot([rung.scores.mean(name) for rung in self.rungs], places, "o", color=colour, label=name, markersize=6)
        axes.set_yticks(places, [rung.name + (" *" if rung.key == self.recommended else "") for rung in self.rungs])
        axes.set_xlim(0, 1)
        axes.grid(axis="x", color="#e5e7eb")
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.set_title(f"{len(self.rungs[0].scores.query_ids):,} held-out queries; * is recommended", fontsize=10)
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, -0.06), ncols=len(names), frameon=False)
        return figure

    def _repr_html_(self) -> str:
        columns = ["name", *self.shown, "difference", "low", "high", "seconds", "deploys"]
        return f"<p>{self.sentence}</p>{self.to_frame()[columns].to_html(index=False, float_format='{:.3f}'.format)}"


def climb(setting: Setting, dataset: Dataset, splits: Sequence[Split], folder: str | Path, rungs: Sequence[str] = ()) -> Ladder:
    """Measure every method on the same splits.

    Args:
        setting: Model, settings and document templates.
        dataset: Data set with the queries of every split.
        splits: One split, or one per fold.
        folder: Folder for trained models and rankings.
        rungs: Keys of the methods to measure; all if empty.

    Raises:
        ConfigError: A key is unknown, or fewer than two methods suit the data.
    """
    chosen = check_rungs(rungs)
    metric, ks = setting.config.evaluate.metric, setting.config.evaluate.k
    parts = [split.datasets(dataset) for split in splits]
    measured: list[Rung] = []
    groups = group_numbers(dataset, setting.config.split.group_by)
    encoding = functools.cache(lambda: seconds_alone(setting.base, parts[0][2].query_texts()) * 1000)
    reasons = {key: METHODS[key].missing(setting, parts[0][0]) for key in chosen}
    skipped = {METHODS[key].name: reason for key, reason in reasons.items() if reason}
    methods = {key: METHODS[key] for key, reason in reasons.items() if not reason}
    with progress.plan("ladder", [method.name for method in methods.values()]) as plan:
        for key, method in methods.items():
            with plan.step(method.name):
                run, seconds, milliseconds = _climbed(key, setting, parts, Path(folder), max(DEPTH, *ks), encoding)
            scores = score_run(run, dataset.qrels, ks=ks, name=method.name, groups=groups)
            console.note(f"{method.name}: {metric_label(metric)} {scores.mean(metric):.3f}")
            measured.append(Rung(key, method.name, method.deploys, scores, seconds / len(parts), milliseconds))
    if len(measured) < 2:
        raise ConfigError(f"a ladder needs two rungs or more, there are {len(measured)}")
    differences = compare_many([rung.scores for rung in measured], metric=metric, seed=setting.config.split.seed)
    rungs_above = (replace(rung, below=difference) for rung, difference in zip(measured[1:], differences, strict=True))
    measured = [measured[0], *rungs_above]
    equal = may_be_best([rung.scores for rung in measured], metric=metric, seed=setting.config.split.seed)
    best = max(measured, key=lambda rung: rung.scores.mean(metric))
    recommended = next(rung for rung, as_good in zip(measured, equal, strict=True) if as_good or rung is best)
    return Ladder(tuple(measured), metric, recommended.key, skipped, len(parts))


def check_rungs(rungs: Sequence[str]) -> list[str]:
    """Return the keys of the methods to measure, in the ladder's order: the given ones, or all if none are given.

    Raises:
        ConfigError: A key is unknown, or there is only one.
    """
    for key in rungs:
        if key not in METHODS:
            hint = did_you_mean(key, METHODS) or f"; known: {', '.join(METHODS)}"
            raise ConfigError(f"rung {key!r} is unknown{hint}")
    chosen = [key for key in METHODS if key in (rungs or METHODS)]
    if len(chosen) < 2:
        raise ConfigError(f"a ladder needs two rungs or more, there are {len(chosen)}")
    return chosen


def _climbed(
    key: str, setting: Setting, parts: Sequence[Any], folder: Path, depth: int, encoding: Callable[[], float]
) -> tuple[Run, float, float]:
    """Return the Run on all test queries, the training seconds and the milliseconds per query: read from disk, or measured."""
    path = folder / f"{key}.npz"
    if path.exists():
        return kept_run(path)
    runs, seconds, search = [], 0.0, 0.0
    for number, (train, dev, test) in enumerate(parts):
        fitted = METHODS[key].fit(setting, train, dev, folder / key / str(number))
        seconds += fitted.seconds
        runs.append(fitted.retriever.search(test, depth))
        start = time.perf_counter()  # again with all vectors cached, so that only the search is timed
        fitted.retriever.search(test, depth)
        search += time.perf_counter() - start
    run = joined(runs)
    milliseconds = search * 1000 / len(run.query_ids) + (encoding() if METHODS[key].encodes else 0.0)
    payload = {"query_ids": run.query_ids, "document_ids": run.document_ids, "seconds": seconds, "milliseconds": milliseconds}
    with writing(path) as file:
        np.savez(file, ranked=run.ranked, scores=run.scores, said=np.array(json.dumps(payload)))
    return run, seconds, milliseconds


def kept_run(path: Path) -> tuple[Run, float, float]:
    """Return a rung's Run on the held-out queries, its training seconds and its milliseconds per query, as `climb` wrote them."""
    with np.load(path, allow_pickle=False) as kept:
        payload = json.loads(str(kept["said"]))
        run = Run(tuple(payload["query_ids"]), tuple(payload["document_ids"]), kept["ranked"], kept["scores"])
    return run, payload["seconds"], payload["milliseconds"]
