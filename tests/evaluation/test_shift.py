"""Differences between two samples: no alarm by chance, and none missed that is large."""

import numpy as np
import pytest
from scipy import stats

from embedfit.errors import EmbedfitError
from embedfit.evaluation.shift import Shift, shift, shifts


def draw(rng, kind, count, moved=0.0):
    if kind == "likeness":
        return np.clip(rng.beta(8, 4, count) - moved, 0, 1)
    return (rng.random(count) < 0.15 + moved).astype(float)


@pytest.mark.parametrize("kind", ["likeness", "no answer"])
def test_alarms_by_chance_are_rare_and_large_shifts_are_seen(kind):
    rng = np.random.default_rng(0)
    tried = 200
    alarms = sum(shift("x", draw(rng, kind, 40), draw(rng, kind, 60), seed=seed).shown for seed in range(tried))
    assert alarms <= stats.binom.ppf(0.999, tried, 0.05)
    seen = sum(shift("x", draw(rng, kind, 60), draw(rng, kind, 60, 0.35), seed=seed).shown for seed in range(20))
    assert seen >= 18


def test_the_interval_is_welchs_and_the_p_value_is_near_the_exact_one():
    first, second = [0.1, 0.4, 0.35, 0.2, 0.15, 0.3], [0.5, 0.45, 0.6, 0.3, 0.55]
    one = shift("x", first, second)
    welch = stats.ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    assert (one.low, one.high) == pytest.approx((welch.low, welch.high))
    exact = stats.permutation_test((first, second), lambda a, b: np.mean(b) - np.mean(a), n_resamples=np.inf).pvalue
    assert one.p == pytest.approx(exact, abs=0.01)
    assert (one.before, one.after, one.counts) == (pytest.approx(0.25), pytest.approx(0.48), (6, 5))
    constant = shift("x", [0.0] * 5, [0.0] * 5)
    assert (constant.p, constant.low, constant.shown) == (1.0, 0.0, False)


def test_several_shifts_share_one_level():
    three = [Shift(str(p), 0, 1, 0.5, 1.5, p, (9, 9)) for p in (0.02, 0.04, 0.01)]
    assert [one.p for one in shifts(three)] == pytest.approx([0.04, 0.04, 0.03])
    with pytest.raises(EmbedfitError, match="samples of 1 and 2 values; expected at least two each"):
        shift("x", [1.0], [1.0, 2.0])
