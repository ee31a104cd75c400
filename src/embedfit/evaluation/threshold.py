"""The probability over which answers can be trusted, with a promise of their precision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import bdtr, bdtrik, betaincinv

from embedfit.errors import DataError
from embedfit.evaluation.calibration import VERSION, Bools, effective_size, numbered, saved
from embedfit.evaluation.reliability import checked_answers
from embedfit.evaluation.score import Groups
from embedfit.evaluation.statistics import DRAWS, Floats, extended_means, half_means, unequal

_STEPS = 50
"""Number of steps from the first answer to the last one that are tested."""


@dataclass(frozen=True)
class Threshold:
    """Probability over which answers can be trusted without a person.

    Attributes:
        value: Smallest probability of a trusted answer, between 0 and 1; None if no threshold keeps the promise.
        precision: Promised share of right answers among the trusted ones, between 0 and 1.
        confidence: Confidence of the promise, between 0 and 1.
        coverage: Share of all queries whose answer is trusted, between 0 and 1; 0 without a threshold.
        coverage_low: Lower end of the 95% interval of the coverage.
        coverage_high: Upper end of the 95% interval of the coverage.
        answers: Number of trusted answers in the calibration queries.
        errors: Number of wrong ones among these.
        queries: Number of calibration queries.
        groups: Number of groups of near-duplicate queries; the number of queries if each stands alone.
        reason: Reason why there is no threshold; empty if there is one.
    """

    value: float | None
    precision: float
    confidence: float
    coverage: float
    coverage_low: float
    coverage_high: float
    answers: int
    errors: int
    queries: int
    groups: int
    reason: str = ""

    def trusted(self, probability: npt.ArrayLike) -> Bools:
        """Return whether each probability of a best answer is at or above the threshold."""
        probability = np.asarray(probability, np.float64)
        return np.zeros(probability.shape, bool) if self.value is None else probability >= self.value

    @property
    def guarantee(self) -> str:
        """The promise and its conditions, or the reason why there is none, as text."""
        if self.value is None:
            return self.reason
        return (
            f"Of the answers with a probability of {self.value:.3f} or more, at least {self.precision:.0%} are right, with "
            f"{self.confidence:.0%} confidence. This holds for queries like those that the threshold was chosen on. It does not hold "
            "if other answers become more frequent, or if the queries change."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, with a version."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any]) -> Threshold:
        """Return the threshold that `to_dict` wrote.

        Raises:
            DataError: Another version wrote the dict, or a value is missing.
        """
        return cls(**saved(payload, cls))


def choose_threshold(
    probability: npt.ArrayLike,
    correct: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    precision: float = 0.95,
    confidence: float = 0.95,
    seed: int = 0,
) -> Threshold:
    """Return the lowest threshold over which the promised precision holds.

    Thresholds are tested one after the other, from a strict one downwards, and the last one before the first failure is chosen:
    fixed-sequence testing in the Learn-then-Test framework (Angelopoulos et al. 2021, "Learn then Test: calibrating predictive
    algorithms to achieve risk control", section 3). Over many calibrations the precision is too low in at most ``1 - confidence``
    of them. The first threshold is the one that the probabilities themselves, without their correctness, expect to pass most
    easily. Thresholds are ranks among the answers, so that any strictly increasing change of the probabilities gives the same
    answers.

    Without groups, the p-value of "the precision is lower than promised" is the exact binomial one. With groups, whole groups are
    the sampling unit, and precision stays a share of queries; see `group_p_values`.

    Args:
        probability: Probability of each query's best answer, out of fold, shape (queries,).
        correct: Whether it is right, shape (queries,); False for a query without an answer.
        groups: Group number of each query, shape (queries,); by default each query is a group of its own.
        precision: Promised share of right answers, between 0 and 1, both excluded.
        confidence: Confidence of the promise, between 0 and 1, both excluded.
        seed: Seed of the random draws for groups.

    Raises:
        DataError: The arrays do not fit together, there is no query, or a share is not between 0 and 1.
    """
    values, right = checked_answers(probability, correct)
    for name, share in (("precision", precision), ("confidence", confidence)):
        if not 0 < share < 1:
            raise DataError(name, f"{share}", expected="a number between 0 and 1, both excluded, such as 0.95")
    number = numbered(groups, len(values))
    single = int(number.max()) + 1 == len(number)
    order = np.argsort(-values, kind="stable")
    depths = _depths(values[order], effective_size(groups, len(values)) / len(values), precision, confidence)
    wrong = ~right[order]
    errors = wrong.cumsum()[depths - 1]
    limit, level = 1 - precision, 1 - confidence
    p_values = bdtr(errors, depths, limit) if single else group_p_values(wrong, number[order], depths, limit, seed)
    passed = int(np.append(p_values > level, True).argmax())
    count = int(number.max()) + 1
    if not passed:
        reason = _reason(precision, confidence, int(depths[0]), int(errors[0]), count, single)
        return Threshold(None, precision, confidence, 0.0, 0.0, 0.0, 0, 0, len(values), count, reason)
    depth = int(depths[passed - 1])
    value = float(values[order[depth - 1]])
    low, high = share_interval(values >= value, None if single else number, seed)
    return Threshold(value, precision, confidence, depth / len(values), low, high, depth, int(errors[passed - 1]), len(values), count)


def fewest_answers(precision: float, confidence: float) -> int:
    """Return the number of answers, all of them right, that the promise needs at least."""
    return int(np.ceil(np.log(1 - confidence) / np.log(precision) - 1e-9))


def group_p_values(wrong: Bools, groups: Groups, depths: npt.NDArray[np.int64], limit: float, seed: int = 0) -> Floats:
    """Return the p-value of "the share of wrong answers is at least ``limit``" for the first answers, with groups as units.

    Groups get random weights (a flat Dirichlet distribution), together with one more group whose answers are all wrong, as large
    as the group of the average answer. The p-value is the share of draws in which the weighted share of wrong answers reaches the limit:
    Gaffke's bound (Gaffke 2005; Learned-Miller and Thomas 2020) for a ratio of sums. If each group has one answer, it
    is the exact binomial p-value. If groups differ in size, it is at least the share of random halves of the groups that reach
    the limit (Hartigan 1969). The verdict's intervals are made in the same way; see `extended_means` and `half_means`.

    Args:
        wrong: Whether an answer is wrong, most probable first, shape (answers,).
        groups: Group number of each answer from 0, shape (answers,).
        depths: Numbers of first answers to test, shape (tests,).
        limit: Share of wrong answers, between 0 and 1.
        seed: Seed of the random draws.
    """
    count = int(groups.max()) + 1
    answers, errors = np.zeros((count, len(depths))), np.zeros((count, len(depths)))
    for column, depth in enumerate(depths):
        answers[:, column] = np.bincount(groups[:depth], minlength=count)
        errors[:, column] = np.bincount(groups[:depth], wrong[:depth], minlength=count)
    added = (answers**2).sum(axis=0) / answers.sum(axis=0)
    halves, reached, reached_halves = unequal(groups), np.zeros(len(depths)), np.zeros(len(depths))
    rng = np.random.default_rng([seed, 5])
    for size in _blocks(count):
        weights = rng.standard_exponential((size, count))
        unseen = rng.standard_exponential((size, 1)) * added
        reached += (weights @ (errors - limit * answers) + (1 - limit) * unseen >= 0).sum(axis=0)
        if halves:
            chosen = rng.integers(2, size=(size, count)).astype(np.float64)
            reached_halves += (chosen @ (errors - limit * answers) >= -1e-12).sum(axis=0)
    p_values: Floats = (1 + np.maximum(reached, reached_halves)) / (1 + DRAWS)
    return p_values


def share_interval(chosen: Bools, groups: Groups | None = None, seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval of a share of queries: Clopper and Pearson's, or with groups its counterpart for groups.

    Args:
        chosen: Whether each query counts, shape (queries,).
        groups: Group number of each query, shape (queries,); None if each query is a group of its own.
        seed: Seed of the random draws for groups.
    """
    n, k = len(chosen), int(chosen.sum())
    if not n:
        return 0.0, 1.0
    if groups is None:
        return (float(betaincinv(k, n - k + 1, 0.025)) if k else 0.0, float(betaincinv(k + 1, n - k, 0.975)) if k < n else 1.0)
    values = np.where(chosen, 1.0, -1.0)[:, None]
    lows, highs = extended_means(values, np.random.default_rng([seed, 6]), groups)
    low, high = float(np.quantile(lows, 0.025)), float(np.quantile(highs, 0.975))
    if unequal(groups):
        lows, highs = half_means(values, np.random.default_rng([seed, 7]), groups)
        low, high = min(low, float(np.quantile(lows, 0.025))), max(high, float(np.quantile(highs, 0.975)))
    return max(0.0, low / 2 + 0.5), min(1.0, high / 2 + 0.5)


def _blocks(count: int) -> Iterator[int]:
    """Yield numbers of draws, small enough that the weights of ``count`` groups take bounded memory."""
    size = max(1, 4_000_000 // count)
    for start in range(0, DRAWS, size):
        yield min(size, DRAWS - start)


def _depths(values: Floats, independent: float, precision: float, confidence: float) -> npt.NDArray[np.int64]:
    """Return the numbers of most probable answers to test, in the order of testing.

    The first is the one whose test the probabilities expect to pass most easily. Nothing here depends on which answers are right.

    Args:
        values: Probabilities, largest first, shape (queries,).
        independent: Number of independent queries per query, above 0 and at most 1.
        precision: Promised share of right answers.
        confidence: Confidence of the promise.
    """
    n = len(values)
    step = max(1, n // _STEPS)
    depths = np.unique(np.append(np.arange(min(fewest_answers(precision, confidence), n), n + 1, step), n))
    # Answers with equal probabilities are trusted together.
    depths = np.unique(n - np.searchsorted(values[::-1], values[depths - 1], side="left"))
    expected = 1 - values.cumsum()[depths - 1] / depths
    counts = np.maximum(1, (depths * independent).astype(np.int64))
    allowed = np.floor(np.nan_to_num(bdtrik(1 - confidence, counts, 1 - precision)))
    passes = bdtr(allowed, counts, 1 - precision) <= 1 - confidence
    power = np.where(passes, bdtr(allowed, counts, expected), 0.0)
    start = int(power.argmax()) if power.max() > 0 else len(depths) - 1
    return depths[start:]


def _reason(precision: float, confidence: float, answers: int, errors: int, groups: int, single: bool) -> str:
    """Return why there is no threshold."""
    needed = fewest_answers(precision, confidence)
    start = f"{precision:.0%} precision cannot be promised with {confidence:.0%} confidence: "
    if groups >= needed:
        return start + f"of the {answers} most probable answers, {errors} {'is' if errors == 1 else 'are'} wrong"
    of_groups, queries = ("", "queries") if single else (" of separate groups", "groups of queries")
    return start + f"at least {needed} answers{of_groups} are needed, all of them right, and there are {groups} {queries}"
