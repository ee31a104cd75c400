"""What tuning forgot, and which merge of base and tuned weights keeps enough of it.

A model tuned to one task may do worse on all others. Both are scored on a general set that has nothing to do with the
task, and so is what lies between them (`embedfit.tune.merge`): one axis for what was there before, one for the task.
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
_STEP = 0.05
"""Between two of the weights, the one to keep is looked for in steps of this."""


def general_set() -> Dataset:
    """Return the general set that ships with embedfit: 278 questions over 272 short passages of 77 fields."""
    return load(GENERAL)


@dataclass(frozen=True)
class Point:
    """One merge of base and tuned weights.

    Attributes:
        weight: Of the tuned model: 0 is the base model, 1 the tuned one.
        general: Its score on the general set.
        task: Its score on the task's held-out queries; None where none were given.
    """

    weight: float
    general: float
    task: float | None = None


@dataclass(frozen=True)
class Forgetting:
    """What tuning cost on a general set, and what each merge keeps of it.

    Attributes:
        points: In order of weight, the first at 0 and the last at 1.
        comparison: Base and tuned model on the general set.
        keep: The share of the base model's general score that was asked for; None if none was.
        weight: The largest weight measured that keeps it; 1 if nothing was asked for.
    """

    points: tuple[Point, ...]
    comparison: Comparison
    keep: float | None = None
    weight: float = 1.0

    @property
    def metric(self) -> str:
        """What both axes are measured in, like ``mrr@10``."""
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
        """What tuning did to general retrieval, and what was chosen, with the figures."""
        said = _change(self.comparison[self.metric], self.kept(self.tuned), self.comparison.queries)
        if self.keep is None:
            return said
        said += f" The largest weight of the tuned model that keeps {self.keep:.1%} is {self.weight:g} ({self.kept(self.chosen):.1%} kept)"
        if self.chosen.task is not None:
            said += f"; on the task's held-out queries its {metric_label(self.metric)} is {self.chosen.task:.3f}"
            said += f" ({self.base.task:.3f} base, {self.tuned.task:.3f} tuned)"
        return f"{said}."

    @property
    def warning(self) -> str | None:
        """One line if tuning cost general retrieval and no share was to be kept, or if keeping it undoes the tuning; else None."""
        if self.keep is None:
            found = self.comparison[self.metric]
            if found.high >= 0:  # less than the verdict "worse" asks for: a false alarm costs less here than a silent loss
                return None
            advice = "--keep 0.98 chooses a merge with the base model that keeps 98% of it"
            return f"{_change(found, self.kept(self.tuned), self.comparison.queries)} {advice}"
        if self.weight == 0:
            return f"Only the base model keeps {self.keep:.1%} of its general score: nothing of the tuning is left at weight 0"
        return None

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the per-query values, as JSON holds it."""
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
        """Return the way from base to tuned: general score against task score, or against the weight where no task was scored.

        Each dot is one merge, with its weight beside it; the chosen one is ringed. Right and up is better.
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
    weights: Sequence[float] = WEIGHTS,
    keep: float | None = None,
    metric: str = "mrr@10",
    ks: Sequence[int] = KS,
    seed: int = 0,
) -> Forgetting:
    """Score the merges of two models on a general set, choose one that keeps enough, and score them on the task.

    The choice is made on the general set alone, before any of the task's queries is looked at. Each weight costs one
    encoding of the general set and of the task's corpus and held-out queries; with ``keep``, at most four weights more
    are tried on the general set. Vectors are cached on disk.

    Args:
        base: The model before tuning.
        tuned: The model after it, the one that will be used.
        general: Queries and documents that are unlike the task: `general_set`, or your own. Every judged query counts.
        held_out: The task's queries, each part beside a tuned model that has not seen it: ``[(tuned, test)]``, or one
            pair for each fold. The parts' corpus is the same. Their rankings are joined, and scored as one.
        template: What a document of the task says; one of the general set says its title and text.
        weights: Of the tuned model; 0 and 1 are always added.
        keep: The share of the base model's general score to keep, over 0 and at most 1.
        metric: Of both axes, and what ``keep`` is about.
        ks: Where to cut the rankings.
        seed: Of the comparison's bootstrap.

    Raises:
        ConfigError: ``keep``, a weight or the metric is not one.
        ModelError: Base and tuned are not built alike.
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

    for weight in {0.0, 1.0, *weights}:
        score(weight)
    chosen = 1.0 if keep is None else choose_weight(score, list(scores), keep)
    found = sorted(scores)
    on_task: dict[float, float] = {}
    if held_out:
        qrels = {id: grades for _, part in held_out for id, grades in part.qrels.items()}
        for weight, run in merged_runs(base, held_out, found, template, max(ks)).items():
            on_task[weight] = score_run(run, qrels, ks=ks).mean(metric)
    points = tuple(Point(weight, scores[weight].mean(metric), on_task.get(weight)) for weight in found)
    return Forgetting(points, compare_scores(scores[0.0], scores[1.0], metric=metric, seed=seed), keep, chosen)


def choose_weight(score: Callable[[float], float], weights: Sequence[float], keep: float) -> float:
    """Return the largest weight found whose score is at least a share of the score at 0.

    It lies between the largest of the weights that keeps the share and the next one, which does not; there it is looked
    for in steps of 0.05, from above. Each step costs a scoring, and few queries cannot tell finer ones apart.

    Args:
        score: Weight of the tuned model -> score on the general set.
        weights: To begin with; 0 is among them.
        keep: The share, over 0 and at most 1.
    """
    floor = keep * score(0.0) - 1e-12  # the rounding of a sum must not undo a merge that scores the same
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
    """Return for each weight the rankings of all held-out queries, each part by its own tuned model merged with base.

    Args:
        base: The model before tuning.
        held_out: Parts of queries on one corpus, each beside a tuned model that has not seen it.
        weights: Of the tuned models.
        template: What a document says.
        depth: How many documents to rank for each query.
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


def _change(found: Difference, kept: float, queries: str) -> str:
    """Return what became of the general score, in one sentence."""
    if found.high < 0:
        said = f"General retrieval fell: {metric_label(found.metric)} from {found.base:.3f} to {found.tuned:.3f}"
    elif found.low > 0:
        said = f"General retrieval rose: {metric_label(found.metric)} from {found.base:.3f} to {found.tuned:.3f}"
    else:
        said = f"No change of general retrieval shown: {metric_label(found.metric)} is {found.base:.3f} before and {found.tuned:.3f} after"
    return (
        f"{said} ({kept:.1%} kept; difference {found.difference:+.3f}, 95% interval {found.low:+.3f} to {found.high:+.3f}, "
        f"p = {found.p:.2g}) on {queries} that are unlike the task."
    )
