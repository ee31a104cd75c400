"""False verdicts by simulation; benchmarks/verdict.py has more shapes and more queries."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from comparisons import scores_of

from embedfit.evaluation.families import may_be_best, not_worse
from embedfit.evaluation.statistics import evidence

SIMULATION = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "verdict.py"))


def test_of_thirteen_equal_models_the_first_is_rarely_called_worse_than_the_best():
    alone = together = 0
    for values in SIMULATION["equal_rungs"](np.random.default_rng(0), 65, 13, 150):
        scores = [scores_of(column) for column in values.T]
        best = max(scores, key=lambda one: one.mean("mrr@10"))
        alone += not not_worse(best, scores[0])
        together += not may_be_best(scores)[0]
    assert scipy.stats.binomtest(together, 150, 0.025, alternative="greater").pvalue > 0.01
    assert alone > 4 > together  # as it was: compared with whichever model happens to lead


@pytest.mark.parametrize("n", [20, 65])
@pytest.mark.parametrize("name", SIMULATION["SHAPES"])
def test_without_a_true_difference_better_and_worse_are_said_in_at_most_one_case_of_forty(name, n):
    gaps = SIMULATION["SHAPES"][name].draw(np.random.default_rng(0), n, 500)
    for wrong in SIMULATION["ours"](gaps, 0):
        assert scipy.stats.binomtest(int(wrong), 500, 0.025, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("correlation", [0, 0.3, 1])
@pytest.mark.parametrize("sizes", SIMULATION["SIZES"])
def test_groups_of_queries_do_not_make_the_verdict_false(sizes, correlation):
    gaps_shape = SIMULATION["SHAPES"]["MRR, gains and losses of many sizes, skewed"]
    gaps, groups = SIMULATION["in_groups"](gaps_shape, np.random.default_rng(0), SIMULATION["SIZES"][sizes], correlation, 400)
    found = evidence(gaps[None], groups=groups)
    for wrong in (found.low > 0, found.high < 0):
        assert scipy.stats.binomtest(int(wrong.sum()), 400, 0.025, alternative="greater").pvalue > 0.01


def test_queries_of_a_group_taken_for_independent_make_the_verdict_false():
    gaps_shape = SIMULATION["SHAPES"]["MRR, half of them change"]
    gaps, groups = SIMULATION["in_groups"](gaps_shape, np.random.default_rng(0), np.full(20, 15), 1, 400)
    assert SIMULATION["ours"](gaps, 0).sum() > 100
    assert SIMULATION["ours"](gaps, 0, groups).sum() <= 20


def test_what_is_detectable_is_detected_in_about_four_cases_of_five():
    shape = SIMULATION["SHAPES"]["recall@1, half of them change"].better_by(0.2)
    found = evidence(shape.draw(np.random.default_rng(0), 128, 1000)[None])
    assert found.detectable.mean() == pytest.approx(0.2, abs=0.015)
    assert ((found.low > 0) & (found.p < 0.05)).mean() == pytest.approx(0.8, abs=0.06)


def test_seeds_that_differ_more_than_queries_do_not_make_the_verdict_false():
    gaps = SIMULATION["of_seeds"](np.random.default_rng(0), 65, 500, 3, 0.1)
    assert SIMULATION["ours"](gaps, 0).max() <= 13
    assert SIMULATION["ours"](gaps.mean(axis=0), 0).max() > 30  # as it would be if seeds were ignored
