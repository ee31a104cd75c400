"""The threshold of trusted answers: by hand, against scipy, and by simulation."""

import json

import numpy as np
import pytest
import scipy.stats

from embedfit.errors import DataError
from embedfit.evaluation.threshold import Threshold, choose_threshold, fewest_answers, group_p_values, share_interval

RNG = np.random.default_rng


def test_59_right_answers_are_needed_for_95_percent_twice():
    # 0.95^58 = 0.051 and 0.95^59 = 0.048
    assert fewest_answers(0.95, 0.95) == 59
    assert choose_threshold(np.full(59, 0.9), np.ones(59)).value == 0.9
    assert choose_threshold(np.full(58, 0.9), np.ones(58)).reason == (
        "95% precision cannot be promised with 95% confidence: at least 59 answers are needed, all of them right, and there are 58 queries"
    )


def test_the_threshold_stops_where_the_binomial_test_fails():
    # The first 100 are right, and the next 100 wrong: 3 errors in 103 are too many (p = 0.23), 1 in 101 are not (p = 0.036).
    probability = np.linspace(0.999, 0.5, 200)
    threshold = choose_threshold(probability, np.arange(200) < 100)
    errors = np.arange(60)
    last = errors[scipy.stats.binom.cdf(errors, 100 + errors, 0.05) <= 0.05].max()
    assert threshold.answers <= 100 + last < threshold.answers + 4  # every fourth depth is tested
    assert threshold.value == probability[threshold.answers - 1]
    assert threshold.errors == max(0, threshold.answers - 100)
    assert threshold.coverage == threshold.answers / 200
    assert threshold.trusted(probability).sum() == threshold.answers
    assert "at least 95% are right, with 95% confidence" in threshold.guarantee


def test_only_the_order_of_probabilities_matters_where_their_start_is_the_same():
    rng = RNG(0)
    probability = rng.beta(8, 0.5, 400)
    correct = rng.random(400) < probability
    assert choose_threshold(probability, correct).answers == choose_threshold(probability[::-1], correct[::-1]).answers


def test_equal_probabilities_are_trusted_together():
    probability = np.repeat([0.99, 0.9], [90, 60])
    threshold = choose_threshold(probability, np.arange(150) != 149)
    assert threshold.answers in (90, 150)
    assert threshold.trusted(probability).sum() == threshold.answers


def test_no_threshold_says_why_and_trusts_nothing():
    threshold = choose_threshold(np.linspace(1, 0.5, 100), np.arange(100) % 2 == 0)
    assert threshold.value is None
    assert threshold.coverage == 0
    assert not threshold.trusted([1.0, 0.5]).any()
    assert "most probable answers" in threshold.guarantee


def test_the_group_p_value_of_single_answers_is_the_binomial_one():
    wrong = np.zeros(200, bool)
    wrong[[30, 90, 150, 180]] = True
    depths = np.array([60, 120, 200])
    p_values = group_p_values(wrong, RNG(0).permutation(200), depths, 0.05)
    assert p_values == pytest.approx(scipy.stats.binom.cdf(wrong.cumsum()[depths - 1], depths, 0.05), abs=0.012)


def test_answers_repeated_in_groups_count_once():
    wrong = np.zeros(120, bool)
    wrong[50] = True
    repeated = group_p_values(np.repeat(wrong, 4), np.repeat(np.arange(120), 4), np.array([480]), 0.05)
    assert repeated[0] == pytest.approx(scipy.stats.binom.cdf(1, 120, 0.05), abs=0.012)
    few = choose_threshold(np.full(200, 0.99), np.ones(200), np.arange(200) // 4)
    assert few.value is None
    assert "at least 59 answers of separate groups are needed" in few.reason


@pytest.mark.parametrize(("share", "n"), [(0.0, 30), (0.4, 50), (1.0, 30)])
def test_the_interval_of_a_share_is_clopper_and_pearsons(share, n):
    chosen = np.arange(n) < share * n
    exact = scipy.stats.binomtest(int(chosen.sum()), n).proportion_ci(method="exact")
    assert share_interval(chosen) == pytest.approx((exact.low, exact.high))
    grouped = share_interval(np.repeat(chosen, 3), np.repeat(np.arange(n), 3))
    assert grouped == pytest.approx((exact.low, exact.high), abs=0.012)


def test_a_threshold_survives_json():
    threshold = choose_threshold(np.linspace(1, 0.9, 100), np.ones(100))
    assert Threshold.from_dict(json.loads(json.dumps(threshold.to_dict()))) == threshold
    with pytest.raises(DataError, match="no value"):
        Threshold.from_dict({name: value for name, value in threshold.to_dict().items() if name != "value"})


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([0.5, 0.5], [True]), {}, "one for each query"),
        (([], []), {}, "at least one"),
        (([1.5], [True]), {}, "not between 0 and 1"),
        (([np.nan], [True]), {}, "not between 0 and 1"),
        (([0.5], [True]), {"precision": 1.0}, "precision: 1.0"),
        (([0.5], [True]), {"confidence": 0.0}, "confidence: 0.0"),
    ],
)
def test_bad_arguments_get_one_line(arguments, options, message):
    with pytest.raises(DataError, match=message):
        choose_threshold(*arguments, **options)
