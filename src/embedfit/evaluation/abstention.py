"""What abstaining gains: precision against coverage, and queries without an answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import expit, logit

from embedfit.evaluation.calibration import Bools, numbered
from embedfit.evaluation.reliability import checked_answers, effective_interval
from embedfit.evaluation.score import Groups
from embedfit.evaluation.statistics import Floats, group_sums
from embedfit.evaluation.threshold import Threshold, share_interval

_POINTS = 50


@dataclass(frozen=True)
class RiskPoint:
    """Precision of the most probable answers: a point of the risk-coverage curve.

    Attributes:
        coverage: Share of queries that are answered, above 0 and at most 1.
        threshold: Smallest probability of an answer, between 0 and 1.
        precision: Share of answers that are right, between 0 and 1; the risk is 1 - precision.
        low: Lower end of the 95% interval of the precision, for this point alone.
        high: Upper end of the 95% interval of the precision, for this point alone.
    """

    coverage: float
    threshold: float
    precision: float
    low: float
    high: float


def risk_curve(probability: npt.ArrayLike, correct: npt.ArrayLike, groups: Groups | None = None) -> tuple[RiskPoint, ...]:
    """Return up to 50 points of the risk-coverage curve, from few answers to all.

    Source: El-Yaniv and Wiener 2010, "On the foundations of noise-free selective classification". The curve is for reading. A
    threshold read off it is too optimistic; `choose_threshold` makes the promise.

    Args:
        probability: Probability of each query's best answer, out of fold, shape (queries,).
        correct: Whether it is right, shape (queries,); False for a query without an answer.
        groups: Group number of each query, shape (queries,); by default each query is a group of its own.

    Raises:
        DataError: The arrays do not fit together, there is no query, or a probability is not between 0 and 1.
    """
    values, right = checked_answers(probability, correct)
    number = numbered(groups, len(values))
    order = np.argsort(-values, kind="stable")
    values, right, number = values[order], right[order], number[order]
    n = len(values)
    depths = np.unique(np.linspace(1, n, min(n, _POINTS)).astype(np.int64))
    depths = np.unique(np.searchsorted(-values, -values[depths - 1], side="right"))  # equal probabilities are answered together
    points = []
    for depth in depths.tolist():
        low, high = effective_interval(right[:depth], None if groups is None else number[:depth])
        points.append(RiskPoint(depth / n, float(values[depth - 1]), float(right[:depth].mean()), low, high))
    return tuple(points)


@dataclass(frozen=True)
class Abstention:
    """How well probabilities tell queries with an answer from those without one.

    Attributes:
        auroc: Chance that a query with an answer has a larger probability than one without, between 0 and 1.
        low: Lower end of the 95% interval of `auroc`.
        high: Upper end of the 95% interval of `auroc`.
        answerable: Number of queries with an answer.
        unanswerable: Number of queries without one.
        false_answers: Share of queries without an answer that get a trusted one, between 0 and 1.
        false_answers_low: Lower end of the 95% interval of `false_answers`.
        false_answers_high: Upper end of the 95% interval of `false_answers`.
    """

    auroc: float
    low: float
    high: float
    answerable: int
    unanswerable: int
    false_answers: float
    false_answers_low: float
    false_answers_high: float

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return asdict(self)


def abstention(
    probability: npt.ArrayLike, answerable: npt.ArrayLike, threshold: Threshold, groups: Groups | None = None
) -> Abstention | None:
    """Return how well the searcher abstains, or None if all queries have an answer, or none has.

    The interval of the AUROC is that of DeLong et al. 1988 on the scale of log-odds, with groups of queries as the sampling unit
    (Obuchowski 1997, "Nonparametric analysis of clustered ROC curve data").

    Args:
        probability: Probability of each query's best answer, out of fold, shape (queries,).
        answerable: Whether a query has an answer, shape (queries,).
        threshold: Threshold of trusted answers.
        groups: Group number of each query, shape (queries,); by default each query is a group of its own.

    Raises:
        DataError: The arrays do not fit together, there is no query, or a probability is not between 0 and 1.
    """
    values, with_answer = checked_answers(probability, answerable)
    number = numbered(groups, len(values))
    some, none = values[with_answer], values[~with_answer]
    if not len(some) or not len(none):
        return None
    # A query's placement: the share of queries of the other kind that it is ranked rightly against; ties count half.
    placements = np.empty(len(values))
    placements[with_answer] = _share_below(some, none)
    placements[~with_answer] = 1 - _share_below(none, some)
    auroc = float(placements[with_answer].mean())
    low, high = _auroc_interval(placements, with_answer, number, auroc)
    trusted = threshold.trusted(none)
    false_low, false_high = share_interval(trusted, None if groups is None else numbered(number[~with_answer], len(none)))
    return Abstention(auroc, low, high, len(some), len(none), float(trusted.mean()), false_low, false_high)


def _share_below(values: Floats, others: Floats) -> Floats:
    ordered = np.sort(others)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return below / (2 * len(others))


def _auroc_interval(placements: Floats, with_answer: Bools, groups: Groups, auroc: float) -> tuple[float, float]:
    """Return the 95% interval of the AUROC.

    Args:
        placements: Placement of each query, shape (queries,).
        with_answer: Whether it has an answer, shape (queries,).
        groups: Group number of each query, shape (queries,).
        auroc: Mean placement of the queries with an answer.
    """
    counts = np.where(with_answer, with_answer.sum(), (~with_answer).sum())
    sums, _ = group_sums(((placements - auroc) / counts)[:, None], groups)
    error = float(np.sqrt((sums**2).sum() * len(sums) / max(1, len(sums) - 1)))
    smallest = min(with_answer.sum(), (~with_answer).sum())
    centre = float(np.clip(auroc, 0.5 / smallest / 2, 1 - 0.5 / smallest / 2))  # all ranked rightly: not certain yet
    error = max(error, 0.5 / smallest / 2)
    width = 1.959964 * error / (centre * (1 - centre))
    return float(min(auroc, expit(logit(centre) - width))), float(max(auroc, expit(logit(centre) + width)))
