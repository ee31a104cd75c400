"""Many comparisons at once: all pairs, and which of several may be the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from embedfit.evaluation.compare import Difference, compare_scores
from embedfit.evaluation.score import Scores
from embedfit.evaluation.statistics import ROUNDING, Floats, check_scores, extended_means, half_means, holm, only, randomised_means, unequal


def compare_many(scores: Sequence[Scores], *, base: Scores | None = None, metric: str = "mrr@10", seed: int = 0) -> list[Difference]:
    """Compare several models on one metric, each with the one before it, or all with ``base``.

    The p-values, and with them the verdicts, are adjusted for the number of comparisons by Holm's method, so that the
    chance of any false "better" or "worse" among them is at most 5%. The intervals are not: each is a 95% interval of its own.

    Args:
        scores: On the same queries.
        base: What all are compared with; None compares each with the one before.
        metric: The one to compare.
        seed: Of the draws.

    Returns:
        One Difference for each of ``scores``, but for the first where there is no ``base``.

    Raises:
        EmbedfitError: As `compare_scores`.
    """
    pairs = [(base, one) for one in scores] if base else list(pairwise(scores))
    found = [compare_scores(only(first, metric), only(second, metric), metric=metric, seed=seed)[metric] for first, second in pairs]
    adjusted = holm([difference.p for difference in found])
    return [replace(difference, p=p) for difference, p in zip(found, adjusted, strict=True)]


def not_worse(best: Scores, other: Scores, *, metric: str = "mrr@10", seed: int = 0) -> bool:
    """Return whether another model is not shown to be worse: the interval of ``best - other`` is not all above zero.

    Both models must be named before anything is measured. Where the best of several is picked by these very scores, ask
    `may_be_best`. With few queries a model is easily not worse; the interval's width, or `Difference.detectable`, says how
    much it means.

    Raises:
        EmbedfitError: As `compare_scores`.
    """
    return compare_scores(only(other, metric), only(best, metric), metric=metric, seed=seed)[metric].low <= 0


def may_be_best(scores: Sequence[Scores], *, metric: str = "mrr@10", seed: int = 0) -> list[bool]:
    """Return, for each of several models, whether it is not shown to be worse than any of the others.

    A model that is truly as good as every other is called worse in at most 2.5% of cases, however many there are and
    whichever happens to lead: all comparisons with one model share their draws, and hold at once (multiple comparisons with
    the best, Hsu 1981, "Simultaneous confidence intervals for all distances from the best"). Whoever takes the first that
    may be best, in an order given beforehand, therefore passes over a simpler one that is truly as good in at most 2.5% of cases.

    Args:
        scores: Of at least one model, on the same queries.
        metric: The one to compare.
        seed: Of the draws.

    Raises:
        EmbedfitError: As `compare_scores`.
    """
    if len(scores) < 2:
        return [True] * len(scores)
    chosen = [only(one, metric) for one in scores]
    groups = check_scores(chosen, metric)
    values = np.stack([one.values[metric] for one in chosen], axis=1)
    means = values.mean(axis=0)
    drawn = [extended_means(values, np.random.default_rng([seed, 1]), groups)]
    if unequal(groups):
        drawn.append(half_means(values, np.random.default_rng([seed, 4]), groups))
    flipped = randomised_means(values, np.random.default_rng([seed, 2]), groups)
    as_good = []
    for place in range(len(chosen)):
        others = np.delete(np.arange(len(chosen)), place)
        p_values = [_smallest_p(flipped[:, [place]] - flipped[:, others], means[place] - means[others])]
        for lows, highs in drawn:
            # Means are linear in the values, so what was drawn for the models is drawn for their gaps, but for the group that is added.
            middles, added = (lows + highs) / 2, (highs - lows)[:, :1] / 2
            p_values.append(_smallest_p(middles[:, others] - middles[:, [place]] - added, np.zeros(len(others))))
        as_good.append(max(p_values) >= 0.025)
    return as_good


def _smallest_p(draws: Floats, limits: Floats) -> float:
    """Return how often the smallest of the columns' p-values is as small as the one seen.

    This is the p-value of all columns at once, by what they share (Westfall and Young 1993, "Resampling-based multiple
    testing", section 2.3; for intervals: Beran 1988, "Balanced simultaneous confidence sets").

    Args:
        draws: Shape (draws, columns); a column's p-value is the share of its draws that are at most its limit.
        limits: Shape (columns,).
    """
    ordered = np.sort(draws, axis=0)
    count = len(draws)
    smallest = np.full(count, count)
    seen = count
    for column, limit in enumerate(limits + ROUNDING):
        smallest = np.minimum(smallest, np.searchsorted(ordered[:, column], draws[:, column] + ROUNDING, side="right"))
        seen = min(seen, int(np.searchsorted(ordered[:, column], limit, side="right")))
    return (1 + int((smallest <= seen).sum())) / (1 + count)
