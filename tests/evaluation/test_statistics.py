"""Intervals and p-values, by hand and against scipy."""

import numpy as np
import pytest
import scipy.stats
from comparisons import compared, random_pair, scipys_interval, scipys_p

from embedfit.evaluation.statistics import DRAWS, bootstrap_means, randomised_means


def test_the_bootstrap_of_two_rows_is_their_three_means():
    # Drawn with replacement, the mean of 0 and 1 is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    means = bootstrap_means(np.array([[0.0], [1.0]]), np.random.default_rng(0))[:, 0]
    assert set(means) == {0, 0.5, 1}
    assert (means == 0.5).mean() == pytest.approx(0.5, abs=0.02)


def test_the_interval_of_one_query_is_worked_out_by_hand():
    # A weight w is uniform between 0 and 1: the mean of a gap of 1 and the worst, -1, is 2w - 1, whose 2.5% quantile is -0.95.
    found = compared([0], [1])
    assert (found.low, found.high) == (pytest.approx(-0.95, abs=0.01), 1)


@pytest.mark.parametrize(("wins", "n"), [(7, 10), (10, 10), (40, 60), (150, 400)])
def test_the_interval_of_gaps_won_or_lost_outright_is_clopper_and_pearsons(wins, n):
    found = compared([0] * wins + [1] * (n - wins), [1] * wins + [0] * (n - wins))
    exact = scipy.stats.binomtest(wins, n).proportion_ci(method="exact")
    assert (found.low, found.high) == pytest.approx((2 * exact.low - 1, 2 * exact.high - 1), abs=0.012)


@pytest.mark.parametrize(("wins", "losses"), [(6, 0), (12, 3), (20, 11)])
def test_the_p_value_of_queries_won_or_lost_outright_is_that_of_the_exact_sign_test(wins, losses):
    base = [0] * wins + [1] * losses + [1] * 30
    tuned = [1] * wins + [0] * losses + [1] * 30
    assert compared(base, tuned).p == pytest.approx(scipy.stats.binomtest(wins, wins + losses).pvalue, rel=0.15, abs=0.003)


def test_the_p_value_of_four_equal_gaps_is_an_eighth():
    # Of the 16 choices of signs, all plus and all minus are as extreme as what was seen.
    assert compared([0] * 4, [1] * 4).p == pytest.approx(2 / 16, abs=0.015)


def test_the_p_value_is_never_zero():
    assert compared([0] * 60, [1] * 60).p == 2 / (1 + DRAWS)


@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_is_close_to_scipys(seed):
    base, tuned = random_pair(seed)
    means = bootstrap_means((tuned - base)[:, None], np.random.default_rng(seed))
    low, high = scipys_interval(base, tuned)
    assert tuple(np.quantile(means, [0.025, 0.975])) == pytest.approx((low, high), abs=0.004)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [80, 2_000])
def test_the_interval_is_scipys_bootstrap_and_a_little_wider_for_the_query_not_seen(seed, n):
    base, tuned = random_pair(seed, n=n)
    found = compared(base, tuned)
    low, high = scipys_interval(base, tuned)
    # A query of gap -1 (or 1) among n moves the mean by 1/n, on average, and by 3.7/n or less in 97.5% of the draws.
    assert low - 3.7 / n < found.low < low
    assert high < found.high < high + 3.7 / n


@pytest.mark.parametrize("seed", range(3))
def test_the_randomisation_test_is_close_to_scipys(seed):
    base, tuned = random_pair(seed, shift=0.05)
    gaps = (tuned - base)[:, None]
    p = (np.abs(randomised_means(gaps, np.random.default_rng(seed))) >= abs(gaps.mean()) - 1e-12).mean()
    assert p == pytest.approx(scipys_p(base, tuned), abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_of_recall_is_that_of_scipys_paired_permutation_test(seed):
    base, tuned = (values > 0.4 for values in random_pair(seed, shift=0.05))
    assert compared(base, tuned).p == pytest.approx(scipys_p(base.astype(float), tuned.astype(float)), abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_is_never_under_that_of_the_randomisation_test_and_goes_with_the_interval(seed):
    for shift in (0.05, 0.2, 0.3):
        base, tuned = random_pair(seed, shift=shift)
        found = compared(base, tuned)
        assert found.p > scipys_p(base, tuned) - 0.02
        assert (found.p < 0.05) == (found.low > 0)


def test_more_queries_than_one_block_of_draws_holds_are_compared_alike():
    base, tuned = random_pair(1, n=3_000)
    found = compared(base, tuned)
    error = (tuned - base).std() / np.sqrt(3_000)
    assert (found.low, found.high) == pytest.approx((found.difference - 1.96 * error, found.difference + 1.96 * error), abs=0.15 * error)


def test_the_same_seed_gives_the_same_figures_and_another_seed_others():
    base, tuned = random_pair(0, shift=0.05)
    assert compared(base, tuned, seed=1) == compared(base, tuned, seed=1)
    one, other = compared(base, tuned, seed=1), compared(base, tuned, seed=2)
    assert one.low != other.low
    assert one.p != other.p


def test_identical_scores_show_no_difference():
    found = compared([0.2, 0.5, 1], [0.2, 0.5, 1])
    assert found.verdict == "no difference shown"
    assert (found.difference, found.p) == (0, 1)
    assert found.low == pytest.approx(-found.high)
    assert (found.wins, found.ties, found.losses) == (0, 3, 0)


@pytest.mark.parametrize("n", [1, 20, 300])
def test_what_equal_gaps_leave_open_is_worked_out_by_hand(n):
    # The one query not seen weighs over w with a chance of (1 - w)^n, so that 2.5% is at w = 1 - 0.025^(1/n).
    found = compared([0.5] * n, [0.5] * n)
    assert (found.high, found.detectable) == pytest.approx((1 - 0.025 ** (1 / n),) * 2, rel=0.05)


def test_what_many_queries_can_show_is_280_standard_errors():
    base, tuned = random_pair(3, n=4_000)
    normal = (scipy.stats.norm.ppf(0.975) + scipy.stats.norm.ppf(0.8)) * (tuned - base).std(ddof=1) / np.sqrt(4_000)
    assert compared(base, tuned).detectable == pytest.approx(normal, rel=0.05)


def test_no_difference_over_one_is_said_to_be_detectable():
    assert compared([1, 0], [0, 1]).detectable == 1


def test_rare_large_losses_that_were_not_seen_are_not_ruled_out():
    # 20 queries gain 0.1 each; one of twenty may still lose all, and then there is no gain on average to speak of.
    found = compared([0.5] * 20, [0.6] * 20)
    assert scipys_p(np.full(20, 0.5), np.full(20, 0.6)) < 0.001
    assert found.verdict == "no difference shown"
    assert found.p > 0.05
