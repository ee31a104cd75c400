"""What the tests of comparisons share: scores made by hand, and scipy's answers."""

from dataclasses import replace

import numpy as np
import scipy.stats

from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.score import Scores
from embedfit.evaluation.statistics import DRAWS


def scores_of(values, name="model", metric="mrr@10", ids=None):
    ids = ids or tuple(f"q{number}" for number in range(len(values)))
    return Scores(name, tuple(ids), {metric: np.array(values, np.float64)}, np.ones(len(values), np.int64))


def compared(base, tuned, **kwargs):
    return compare_scores(scores_of(base, "base"), scores_of(tuned, "tuned"), **kwargs)["mrr@10"]


def random_pair(seed, n=80, shift=0.1):
    """Return reciprocal ranks of two models that agree on most queries."""
    rng = np.random.default_rng(seed)
    base = 1 / rng.integers(1, 11, n)
    tuned = np.where(rng.random(n) < 0.4, np.clip(base + rng.normal(shift, 0.3, n), 0, 1), base)
    return base, tuned


def scipys_interval(base, tuned):
    """Return the ends of scipy's paired percentile bootstrap."""
    return tuple(
        scipy.stats.bootstrap(
            (tuned, base),
            lambda x, y, axis: (x - y).mean(axis=axis),
            paired=True,
            n_resamples=DRAWS,
            method="percentile",
            vectorized=True,
            batch=500,
            rng=np.random.default_rng(0),
        ).confidence_interval
    )


def scipys_p(base, tuned):
    """Return the p-value of scipy's paired permutation test."""
    return scipy.stats.permutation_test(
        (tuned, base),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=DRAWS,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).pvalue


def trained(values, ranks=None):
    """Return the Scores of one seed with two metrics."""
    values = np.array(values, np.float64)
    ids = tuple(f"q{number}" for number in range(len(values)))
    ranks = np.ones(len(values), np.int64) if ranks is None else np.array(ranks)
    return Scores("tuned", ids, {"recall@1": values, "mrr@10": values}, ranks)


def three_seeds(spread, n=200, gain=0.1):
    """Return (base, three trainings of it), the second worse and the third better than the first by ``spread``."""
    base = np.tile([0.2, 0.3, 0.4, 0.5], n // 4)
    tuned = base + np.random.default_rng(0).normal(gain, 0.05, n)
    return trained(base), [trained(tuned + shift) for shift in (0, -spread, spread)]


def grouped(values, groups, name="model"):
    return replace(scores_of(values, name), groups=np.array(groups))
