"""How far probabilities are from the shares of right answers, and how far they would be by chance."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import betaincinv

from embedfit.errors import DataError
from embedfit.evaluation.calibration import Bools, effective_size, numbered
from embedfit.evaluation.score import Groups
from embedfit.evaluation.statistics import Floats

_BINS = 15
_SMALLEST_BIN = 20
"""Number of queries that a bin has at least, if there are as many."""
_DRAWS = 2_000


@dataclass(frozen=True)
class ReliabilityBin:
    """Queries with similar probabilities: a point of the reliability diagram.

    Attributes:
        probability: Mean probability of the best answers, between 0 and 1.
        right: Share of best answers that are right, between 0 and 1.
        low: Lower end of the 95% interval of this share.
        high: Upper end of the 95% interval of this share.
        queries: Number of queries.
    """

    probability: float
    right: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True)
class Reliability:
    """Expected calibration error, beside what chance alone would give.

    Attributes:
        error: Mean distance between probability and share of right answers over bins with equal numbers of queries, between 0 and 1.
        chance: Mean error of a perfectly calibrated model on as many queries with the same probabilities.
        chance_high: Error that a perfectly calibrated model exceeds in 5% of samples.
        bins: Bins, from the smallest probabilities to the largest.
    """

    error: float
    chance: float
    chance_high: float
    bins: tuple[ReliabilityBin, ...]

    @property
    def excess(self) -> float:
        """Error beyond that of chance: ``error - chance``, and 0 if it is negative."""
        return max(0.0, self.error - self.chance)

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {**asdict(self), "excess": self.excess}


def reliability(probability: npt.ArrayLike, correct: npt.ArrayLike, groups: Groups | None = None, *, seed: int = 0) -> Reliability:
    """Return the expected calibration error of the best answers, and its level by chance.

    The error is that of Naeini, Cooper and Hauskrecht 2015 ("Obtaining well calibrated probabilities using Bayesian binning")
    over bins with equal numbers of queries, 15 or as many as have 20 queries each. Even a perfect model has an error above zero,
    because a bin's share of right answers varies. Its level is found by drawing right and wrong answers with the stated
    probabilities (Bröcker and Smith 2007, "Increasing the reliability of reliability diagrams"; Vaicenavicius et al. 2019,
    "Evaluating model calibration in classification"). In the draws, queries of one group share their random number.

    Args:
        probability: Probability of each query's best answer, out of fold, shape (queries,).
        correct: Whether it is right, shape (queries,); False for a query without an answer.
        groups: Group number of each query, shape (queries,); by default each query is a group of its own.
        seed: Seed of the random draws.

    Raises:
        DataError: The arrays do not fit together, there is no query, or a probability is not between 0 and 1.
    """
    values, right = checked_answers(probability, correct)
    number = numbered(groups, len(values))
    order = np.argsort(values, kind="stable")
    values, right, number = values[order], right[order], number[order]
    n = len(values)
    edges = np.linspace(0, n, max(1, min(_BINS, n // _SMALLEST_BIN)) + 1).astype(int)
    starts, sizes = edges[:-1], np.diff(edges)
    rng = np.random.default_rng([seed, 8])
    drawn = np.concatenate([_error(values, rng.random((size, n))[:, number] < values, starts) for size in _draws(n)])
    bins = []
    for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
        rows = slice(start, start + size)
        low, high = effective_interval(right[rows], None if groups is None else number[rows])
        bins.append(ReliabilityBin(float(values[rows].mean()), float(right[rows].mean()), low, high, size))
    error = float(_error(values, right[None], starts)[0])
    return Reliability(error, float(drawn.mean()), float(np.quantile(drawn, 0.95)), tuple(bins))


def effective_interval(right: Bools, groups: Groups | None = None) -> tuple[float, float]:
    """Return the 95% interval of a share: Clopper and Pearson's on the number of independent queries.

    With groups it is approximate (Korn and Graubard 1998, "Confidence intervals for proportions with small expected number of
    positive counts estimated from survey data"); each group counts as if its queries agreed. Use it for charts.

    Args:
        right: Whether each query counts, shape (queries,), at least one.
        groups: Group number of each query, shape (queries,); None if each query is a group of its own.
    """
    n = effective_size(groups, len(right))
    k = n * float(right.mean())
    return (float(betaincinv(k, n - k + 1, 0.025)) if k > 0 else 0.0, float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0)


def checked_answers(probability: npt.ArrayLike, correct: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Return the probabilities of best answers, and whether they are right, as arrays.

    Raises:
        DataError: The arrays do not fit together, there is no query, or a probability is not between 0 and 1.
    """
    values, right = np.asarray(probability, np.float64), np.asarray(correct, bool)
    if values.ndim != 1 or values.shape != right.shape or not len(values):
        raise DataError("probabilities", f"shapes {values.shape} and {right.shape}", expected="one for each query, at least one")
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError("probabilities", "a value is not between 0 and 1", expected="the probability of each query's best answer")
    return values, right


def _error(values: Floats, right: Bools, starts: npt.NDArray[np.int64]) -> Floats:
    """Return the expected calibration error of each row of answers; shape (rows,)."""
    error: Floats = np.abs(np.add.reduceat(right - values, starts, axis=1)).sum(axis=1) / len(values)
    return error


def _draws(n: int) -> list[int]:
    """Return numbers of draws that together are all, small enough to take bounded memory."""
    size = max(1, min(_DRAWS, 4_000_000 // n))
    return [min(size, _DRAWS - start) for start in range(0, _DRAWS, size)]
