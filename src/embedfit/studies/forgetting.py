"""Forgetting: the loss on general retrieval through tuning, and the merge of base and tuned weights that keeps enough.

A model tuned to one task may do worse on others. Base model, tuned model and the merges between them (`embedfit.tune.merge`)
are scored on a general set that is unlike the task, and on the task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.data.split import group_numbers
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ConfigError
from embedfit.evaluation.charts import new_chart
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison, Difference
from embedfit.evaluation.score import Scores, score_run
from embedfit.metrics import KS, check_metric, metric_label
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import Run, joined
from embedfit.samples import GENERAL
from embedfit.template import DOCUMENT_TEMPLATE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from embedfit.tune.merge import MergedEncoder

WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Weights of the tuned model in a sweep."""
_STEP = 0.05
"""Step of the search for a weight between two of the given ones."""


def general_set() -> Dataset:
    """Return the general set that ships with embedfit: 278 questions over 272 short passages of 77 fields."""
    return load(GENERAL)


@dataclass(frozen=True)
class Point:
    """One merge of base and tuned weights.

    Attributes:
        weight: Weight of the tuned model, from 0 (the base model) to 1 (the tuned model).
        general: Score on the general set.
        task: Score on the task's held-out queries; None if none were given.
    """

    weight: float
    general: float
    task: float | None = None


@dataclass(frozen=True)
class Forgetting:
    """Scores of base model, tuned model and their merges on a general set and on the task.

    Attributes:
        points: Merges in order of weight; the first is at 0 and the last at 1.
        comparison: Comparison of base and tuned model on the general set.
        keep: Requested share of the base model's general score; None if no share was requested.
        weight: Largest measured weight that keeps this share; 1 if no share was requested.
    """

    points: tuple[Point, ...]
    comparison: Comparison
    keep: float | None = None
    weight: float = 1.0

    @property
    def metric(self) -> str:
        """Metric of both axes, such as ``mrr@10``."""
        return self.comparison.metric

    @property
    def base(self) -> Point:
        """The base model."""
        return self.points[0]

    @property
    def tuned(self) -> Point:
        """The tuned model."""
        return self.points[-1]

    @property
    def chosen(self) -> Point:
        """The merge of the chosen weight."""
        return next(point for point in self.points if point.weight == self.weight)

    def kept(self, point: Point) -> float:
        """Return a point's general score as a share of the base model's."""
        return point.general / self.base.general if self.base.general else 1.0

    @property
    def sentence(self) -> str:
        """The change of general retrieval and the chosen weight, with the figures."""
        text = _change(self.comparison[self.metric], self.kept(self.tuned), self.comparison.queries)
        if self.keep is None:
            return text
        text += f" The largest weight of the tuned model that keeps {self.keep:.1%} is {self.weight:g} ({self.kept(self.chosen):.1%} kept)"
        if self.chosen.task is not None:
            text += f"; on the task's held-out queries its {metric_label(self.metric)} is {self.chosen.task:.3f}"
            text += f" ({self.base.task:.3f} base, {self.tuned.task:.3f} tuned)"
        return f"{text}."

    @property
    def warning(self) -> str | None:
        """One line if general retrieval fell and no share was requested, or if keeping the share undoes the tuning; else None."""
        if self.keep is None:
            difference = self.comparison[self.metric]
            if difference.high >= 0:  # weaker than the verdict "worse": a false alarm costs less here than a silent loss
                return None
            advice = "--keep 0.98 chooses a merge with the base model that keeps 98% of it"
            return f"{_change(difference, self.kept(self.tuned), self.comparison.queries)} {advice}"
        if self.weight == 0:
            return f"Only the base model keeps {self.keep:.1%} of its general score: nothing of the tuning is left at weight 0"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the per-query values, in the form of JSON."""
        return {
            "sentence": self.sentence,
            "metric": self.metric,
            "keep": self.keep,
            "weight": self.weight,
            "points": [{**vars(point), "kept": self.kept(point)} for point in self.points],
            "general": self.comparison.to_dict(),
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per weight: weight, general, kept (share of the base model's general score), task, chosen."""
        import pandas as pd

        rows = [(point.weight, point.general, self.kept(point), point.task, point.weight == self.weight) for point in self.points]
        return pd.DataFrame(rows, columns=["weight", "general", "kept", "task", "chosen"])

    def plot(self) -> Figure:
        """Return a chart of the merges: general score against task score, or weight against general score without a task.

        Each dot is one merge, labelled with its weight; the chosen one has a ring. Right and up is better.
        """
        figure = new_chart(7, 4.5)
        axes = figure.subplots()
        label = metric_label(self.metric)
        task = [point.task for point in self.points if point.task is not None]
        general_scores, weights = [point.general for point in self.points], [point.weight for point in self.points]
        on_task = len(task) == len(self.points)
        across, up = (general_scores, task) if on_task else (weights, general_scores)
        axes.plot(across, up, color="#9aa5b1", linewidth=1.5, zorder=1)
        axes.scatter(across, up, s=42, color="#0f766e", zorder=3)
        for point, x, y in zip(self.points, across, up, strict=True):
            name = {0.0: "base", 1.0: "tuned"}.get(point.weight, f"{point.weight:g}")
            axes.annotate(name, (x, y), xytext=(8, 4), textcoords="offset points", fontsize=9)
            if self.keep is not None and point.weight == self.weight:
                axes.scatter([x], [y], s=190, facecolors="none", edgecolors="#b45309", linewidths=1.8, zorder=4)
        if self.keep is not None:
            floor = self.keep * self.base.general
            line = axes.axvline if on_task else axes.axhline
            line(floor, color="#b45309", linestyle="--", linewidth=1, zorder=0, label=f"{self.keep:.1%} of base")
            axes.legend(frameon=False, loc="best")
        general = f"general set, {label} ({len(self.comparison.base.query_ids):,} queries)"
        axes.set_xlabel(general if on_task else "weight of the tuned model")
        axes.set_ylabel(f"task, held-out queries, {label}" if on_task else general)
        axes.margins(0.12)
        axes.grid(color="#e4e7eb", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        return figure

    def _repr_html_(self) -> str:
        return f"<p>{self.sentence}</p>{self.to_frame().to_html(index=False, float_format='{:.3f}'.format)}"


def measure_forgetting(
    base: LocalEncoder,
    tuned: LocalEncoder,
    general: Dataset,
    *,
    held_out: Sequence[tuple[LocalEncoder, Dataset]] = (),
    template: str = DOCUMENT_TEMPLATE,
    weights: Sequence[float] = (),
    keep: float | None = None,
    metric: str = "mrr@10",
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> Forgetting:
    """Score base and tuned model on a general set and on the task, and with ``keep`` choose a merge that keeps enough.

    The choice uses the general set alone, before any query of the task is scored. Each weight costs one encoding of the
    general set, and of the task's corpus and held-out queries. With ``keep``, at most four weights are tried beside those
    given. Vectors are cached on disk, so the base model encodes the general set once for all runs.

    Args:
        base: Model before tuning.
        tuned: Model after tuning, the one to use.
        general: General set, unlike the task: `general_set`, or your own. Every judged query counts.
        held_out: Pairs of a tuned model and held-out queries of the task that it has not seen: ``[(tuned, test)]``, or one
            pair per fold, all on the same corpus. Their rankings are joined and scored together.
        template: Document template of the task. A document of the general set is its title and text.
        weights: Weights of merges to score, such as `WEIGHTS`; 0 and 1 are always added, and `WEIGHTS` with ``keep``.
        keep: Share of the base model's general score to keep, over 0 and at most 1; None to choose the tuned model.
        metric: Metric of both axes and of ``keep``.
        ks: Ranks at which the metrics are cut.
        seed: Seed of the comparison's bootstrap.

    Raises:
        ConfigError: ``keep`` or a weight is out of range, or the metric is unknown.
        ModelError: Base and tuned model differ in architecture.
    """
    from embedfit.tune.merge import Merges

    check_metric(metric, ks)
    if keep is not None and not 0 < keep <= 1:
        raise ConfigError(f"keep is {keep:g}; expected a share over 0 and at most 1, such as 0.98")
    merges, judged, groups = Merges(base, tuned), general.select(general.judged), group_numbers(general)
    scores: dict[float, Scores] = {}
    names = {0.0: base.name, 1.0: f"{base.name}, tuned"}

    def score(weight: float) -> float:
        weight = float(weight)
        if weight not in scores:
            run = _run(merges.at(weight), judged, DOCUMENT_TEMPLATE, max(ks))
            scores[weight] = score_run(run, judged.qrels, ks=ks, name=names.get(weight, f"weight {weight:g}"), groups=groups)
        return scores[weight].mean(metric)

    for weight in sorted({0.0, 1.0, *weights, *(() if keep is None else WEIGHTS)}):
        score(weight)
    chosen = 1.0 if keep is None else choose_weight(score, list(scores), keep)
    measured = sorted(scores)
    on_task: dict[float, float] = {}
    if held_out:
        qrels = {id: grades for _, part in held_out for id, grades in part.qrels.items()}
        for weight, run in merged_runs(base, held_out, measured, template, max(ks)).items():
            on_task[weight] = score_run(run, qrels, ks=ks).mean(metric)
    points = tuple(Point(weight, scores[weight].mean(metric), on_task.get(weight)) for weight in measured)
    return Forgetting(points, compare_scores(scores[0.0], scores[1.0], metric=metric, seed=seed), keep, chosen)


def choose_weight(score: Callable[[float], float], weights: Sequence[float], keep: float) -> float:
    """Return the largest tried weight whose score is at least a share of the score at 0.

    It lies between the largest given weight that keeps the share and the next one, which does not. That interval is searched
    from above in steps of 0.05. Each step costs a scoring, and few queries cannot tell finer steps apart.

    Args:
        score: Function from the weight of the tuned model to the score on the general set.
        weights: Weights to try first; 0 must be one of them.
        keep: Share to keep, over 0 and at most 1.
    """
    floor = keep * score(0.0) - 1e-12  # rounding must not rule out a merge that scores the same
    grid = sorted(weights)
    largest = max(weight for weight in grid if score(weight) >= floor)
    if largest == grid[-1]:
        return largest
    above = grid[grid.index(largest) + 1]
    steps = [number * _STEP for number in range(round(1 / _STEP) + 1)]
    between = [round(step, 2) for step in reversed(steps) if largest < round(step, 2) < above]
    return next((weight for weight in between if score(weight) >= floor), largest)


def merged_runs(
    base: LocalEncoder, held_out: Sequence[tuple[LocalEncoder, Dataset]], weights: Sequence[float], template: str, depth: int
) -> dict[float, Run]:
    """Return the Run on all held-out queries for each weight; each part is searched by its own tuned model merged with base.

    Args:
        base: Model before tuning.
        held_out: Pairs of a tuned model and queries that it has not seen, all on the same corpus.
        weights: Weights of the tuned models.
        template: Document template.
        depth: Documents to rank per query.
    """
    from embedfit.tune.merge import Merges

    runs: dict[float, list[Run]] = {weight: [] for weight in weights}
    for tuned, part in held_out:
        merges = Merges(base, tuned)
        for weight in weights:
            runs[weight].append(_run(merges.at(weight), part, template, depth))
    return {weight: joined(parts) for weight, parts in runs.items()}


def _run(encoder: MergedEncoder, dataset: Dataset, template: str, depth: int) -> Run:
    return DenseRetriever(CachedEncoder(encoder), template).search(dataset, depth)


def _change(general: Difference, kept: float, queries: str) -> str:
    """Return the change of the general score in one sentence."""
    label, before, after = metric_label(general.metric), f"{general.base:.3f}", f"{general.tuned:.3f}"
    if general.high < 0:
        change = f"General retrieval fell: {label} from {before} to {after}"
    elif general.low > 0:
        change = f"General retrieval rose: {label} from {before} to {after}"
    else:
        change = f"No change of general retrieval shown: {label} is {before} before and {after} after"
    return (
        f"{change} ({kept:.1%} kept; difference {general.difference:+.3f}, 95% interval {general.low:+.3f} to {general.high:+.3f}, "
        f"p = {general.p:.2g}) on {queries} that are unlike the task."
    )
