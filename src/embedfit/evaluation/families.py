"""Families of comparisons: several models at once, and the set that may contain the best."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from embedfit.evaluation.compare import compare_scores, differences_of
from embedfit.evaluation.comparison import Difference
from embedfit.evaluation.score import Scores
from embedfit.evaluation.statistics import (
    ROUNDING,
    Floats,
    check_scores,
    evidence,
    extended_means,
    half_means,
    holm,
    only,
    randomised_means,
    unequal,
)

_LEVEL = 0.025
"""One-sided level at which a model is rejected as worse than another."""


def compare_many(scores: Sequence[Scores], *, base: Scores | None = None, metric: str = "mrr@10", seed: int = 0) -> list[Difference]:
    """Compare several models on one metric: each with its predecessor, or all with ``base``.

    The p-values, and so the verdicts, are adjusted for the number of comparisons by Holm's method. The chance of any false
    "better" or "worse" is then at most 5%. The intervals are not adjusted: each is a 95% interval by itself.

    Args:
        scores: Scores of the models, on the same queries.
        base: Scores that every model is compared with. By default each model is compared with the one before it.
        metric: Name of the metric to compare.
        seed: Seed of the random draws.

    Returns:
        One Difference per model; without ``base``, none for the first model.

    Raises:
        EmbedfitError: The scores cannot be compared; see `compare_scores`.
    """
    pairs = [(base, model) for model in scores] if base else list(pairwise(scores))
    differences = [compare_scores(only(first, metric), only(second, metric), metric=metric, seed=seed)[metric] for first, second in pairs]
    adjusted = holm([difference.p for difference in differences])
    return [replace(difference, p=p) for difference, p in zip(differences, adjusted, strict=True)]


def compare_all(
    base: Sequence[Scores],
    others: Sequence[Scores],
    *,
    metric: str,
    family: int,
    folds: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
) -> list[Difference]:
    """Compare several models with one base, by intervals that hold for all of them at once (Bonferroni).

    Where the models were trained, the base is trained several times, and the spread of these trainings is counted in each
    interval: a Student's t variate with a degree of freedom for each fold of each repeat after the first. It assumes that
    the other trainings vary as much.

    Args:
        base: Scores of the base; several if it was trained several times on the same folds with different seeds.
        others: Scores of the models, on the same queries.
        metric: Name of the metric to compare.
        family: Number of comparisons that the intervals must hold for, at least the number of models.
        folds: Number of the fold of each query, which one training of each repeat was scored on; shape (queries,). By default
            one fold.
        seed: Seed of the random draws.

    Raises:
        EmbedfitError: The scores cannot be compared; see `compare_scores`.
    """
    if not others:
        return []
    groups = check_scores([only(scores, metric) for scores in (*base, *others)], metric)
    repeats = np.stack([scores.values[metric] for scores in base])
    before = repeats.mean(axis=0)
    gaps = np.stack([scores.values[metric] - before for scores in others], axis=1)
    statistics = evidence(gaps[None], groups=groups, seed=seed, level=0.05 / family, training=_training_error(repeats, folds))
    rows = differences_of([before] * len(others), [scores.values[metric] for scores in others], gaps, statistics, [metric] * len(others))
    return [replace(row, p=min(1.0, family * row.p)) for row in rows]


def _training_error(repeats: Floats, folds: npt.NDArray[np.int64] | None) -> tuple[float, int] | None:
    """Return the standard error, due to training, of a training's mean minus that of all repeats, and its degrees of freedom.

    Args:
        repeats: Metric of each query in each repeat; shape (repeats, queries).
        folds: Number of the fold of each query.
    """
    count = len(repeats)
    if count < 2:
        return None
    folds = np.zeros(repeats.shape[1], np.int64) if folds is None else folds
    sums = [repeats[:, folds == fold].sum(axis=1) for fold in np.unique(folds)]
    variance = sum(float(np.var(values, ddof=1)) for values in sums) / repeats.shape[1] ** 2
    return math.sqrt(variance * (1 + 1 / count)), len(sums) * (count - 1)


def not_worse(best: Scores, other: Scores, *, metric: str = "mrr@10", seed: int = 0) -> bool:
    """Return whether ``other`` is not shown to be worse: the interval of ``best - other`` is not entirely above zero.

    Choose both models before measuring. If these scores were used to pick the best of several models, use `may_be_best`. With
    few queries a model is easily not worse; the width of the interval, or `Difference.detectable`, says how much that means.

    Raises:
        EmbedfitError: The scores cannot be compared; see `compare_scores`.
    """
    return compare_scores(only(other, metric), only(best, metric), metric=metric, seed=seed)[metric].low <= 0


def may_be_best(scores: Sequence[Scores], *, metric: str = "mrr@10", seed: int = 0) -> list[bool]:
    """Return, for each of several models, whether it is not shown to be worse than any other.

    A model that is truly as good as all others is rejected in at most 2.5% of cases, for any number of models and whichever
    leads the sample. All comparisons with one model share their draws and hold simultaneously (multiple comparisons with the
    best: Hsu 1981, "Simultaneous confidence intervals for all distances from the best"). So a rule that takes the first model
    that may be best, in an order fixed beforehand, skips an equally good earlier model in at most 2.5% of cases.

    Args:
        scores: Scores of at least one model, on the same queries.
        metric: Name of the metric to compare.
        seed: Seed of the random draws.

    Returns:
        One boolean per model.

    Raises:
        EmbedfitError: The scores cannot be compared; see `compare_scores`.
    """
    if len(scores) < 2:
        return [True] * len(scores)
    models = [only(model, metric) for model in scores]
    groups = check_scores(models, metric)
    values = np.stack([model.values[metric] for model in models], axis=1)
    means = values.mean(axis=0)
    flipped = randomised_means(values, np.random.default_rng([seed, 2]), groups)
    bounds = [extended_means(values, np.random.default_rng([seed, 1]), groups)]
    if unequal(groups):
        bounds.append(half_means(values, np.random.default_rng([seed, 4]), groups))

    def tests(place: int) -> Iterator[float]:
        rivals = np.delete(np.arange(len(models)), place)
        yield _smallest_p(flipped[:, [place]] - flipped[:, rivals], means[place] - means[rivals])
        for lows, highs in bounds:
            # Means are linear in the values, so differences of the models' draws are draws of their gaps; the added group is apart.
            middles, added = (lows + highs) / 2, (highs - lows)[:, :1] / 2
            yield _smallest_p(middles[:, rivals] - middles[:, [place]] - added, np.zeros(len(rivals)))

    return [any(p >= _LEVEL for p in tests(place)) for place in range(len(models))]


def _smallest_p(draws: Floats, limits: Floats) -> float:
    """Return the family-wise p-value: how often the smallest of the columns' p-values is as small as the one observed.

    Sources: Westfall and Young 1993, "Resampling-based multiple testing", section 2.3; for intervals, Beran 1988, "Balanced
    simultaneous confidence sets".

    Args:
        draws: Draws of the statistics, shape (draws, columns). A column's p-value is the share of draws at or below its limit.
        limits: Observed statistics, shape (columns,).
    """
    count = len(draws)
    smallest = int((draws <= limits + ROUNDING).sum(axis=0).min())  # the observed smallest p-value, as a number of draws
    if smallest == count:
        return 1.0
    # A draw's own p-value in a column is its rank there: at most `smallest` if it lies below the value of the next rank.
    next_values = np.partition(draws, smallest, axis=0)[smallest]
    return (1 + int((draws + ROUNDING < next_values).any(axis=1).sum())) / (1 + count)
