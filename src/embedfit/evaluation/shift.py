"""Whether two samples differ in their mean by more than chance: queries of the past and of today."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from embedfit.errors import EmbedfitError
from embedfit.evaluation.statistics import Floats, holm

_DRAWS, _BLOCK = 2000, 2_000_000


@dataclass(frozen=True)
class Shift:
    """The difference between the means of two independent samples.

    Attributes:
        name: What is measured.
        before: Mean of the first sample.
        after: Mean of the second sample.
        low: Lower end of the 95% interval of ``after - before`` (Welch 1947).
        high: Upper end of this interval.
        p: Two-sided p-value of a permutation test, adjusted by `shifts` for the number of shifts.
        counts: Sizes of the samples.
    """

    name: str
    before: float
    after: float
    low: float
    high: float
    p: float
    counts: tuple[int, int]

    @property
    def shown(self) -> bool:
        """Whether chance does not explain the difference: p is under 0.05, and the interval excludes zero."""
        return self.p < 0.05 and (self.low > 0 or self.high < 0)


def shift(name: str, before: Sequence[float], after: Sequence[float], *, seed: int = 0) -> Shift:
    """Compare two samples.

    The permutation test assigns the values to the samples at random (Fisher 1935); its level is exact for any distribution if the
    values are independent.

    Args:
        name: What is measured.
        before: First sample, of at least two values.
        after: Second sample, of at least two values.
        seed: Seed of the permutations.

    Raises:
        EmbedfitError: A sample is too small.
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    if min(len(first), len(second)) < 2:
        raise EmbedfitError(f"{name}: samples of {len(first)} and {len(second)} values; expected at least two each")
    difference = float(second.mean() - first.mean())
    together = np.concatenate([first, second])
    differences = _permuted(together, len(first), np.random.default_rng(seed))
    p = (1 + int((np.abs(differences) >= abs(difference) - 1e-12).sum())) / (1 + _DRAWS)
    half = _half_width(first, second)
    counts = (len(first), len(second))
    return Shift(name, float(first.mean()), float(second.mean()), difference - half, difference + half, p, counts)


def shifts(several: Sequence[Shift]) -> tuple[Shift, ...]:
    """Return shifts whose p-values are adjusted by Holm's method, so that one of them is shown by chance in at most 5% of cases."""
    return tuple(replace(one, p=p) for one, p in zip(several, holm([one.p for one in several]), strict=True))


def _permuted(values: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Return the difference of the means after random assignments of the values to the samples; shape (`_DRAWS`,)."""
    total, n = values.sum(), len(values)
    sums = np.empty(_DRAWS)
    height = max(1, _BLOCK // n)
    for top in range(0, _DRAWS, height):
        rows = min(height, _DRAWS - top)
        places = rng.random((rows, n)).argpartition(count - 1, axis=1)[:, :count]
        sums[top : top + rows] = values[places].sum(axis=1)
    differences: Floats = (total - sums) / (n - count) - sums / count
    return differences


def _half_width(first: Floats, second: Floats) -> float:
    """Return half the width of Welch's interval."""
    from scipy.special import stdtrit

    parts = [sample.var(ddof=1) / len(sample) for sample in (first, second)]
    if not sum(parts):
        return 0.0
    freedom = sum(parts) ** 2 / sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (first, second), strict=True))
    return float(stdtrit(freedom, 0.975) * np.sqrt(sum(parts)))
