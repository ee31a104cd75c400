"""Reliability, the risk-coverage curve and queries without an answer."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from worlds import draw

from embedfit.evaluation.abstention import abstention, risk_curve
from embedfit.evaluation.calibrate import Trust, calibrate
from embedfit.evaluation.reliability import effective_interval, reliability
from embedfit.evaluation.threshold import choose_threshold, share_interval

RNG = np.random.default_rng


def test_the_error_is_the_mean_distance_over_bins():
    probability = np.repeat([0.2, 0.8], 20)
    correct = np.concatenate([np.arange(20) < 6, np.arange(20) < 18])  # 0.3 and 0.9
    found = reliability(probability, correct)
    assert found.error == pytest.approx(0.1)
    assert [(bin.probability, bin.right, bin.queries) for bin in found.bins] == [
        (pytest.approx(0.2), 0.3, 20),
        (pytest.approx(0.8), 0.9, 20),
    ]


def test_the_error_by_chance_is_the_error_of_perfect_probabilities():
    rng, probability = RNG(0), RNG(1).beta(4, 1, 500)
    errors = [reliability(probability, rng.random(500) < probability, seed=seed).error for seed in range(60)]
    found = reliability(probability, rng.random(500) < probability)
    assert found.chance == pytest.approx(np.mean(errors), abs=0.004)
    assert np.mean(np.array(errors) > found.chance_high) < 0.15
    assert reliability(probability, rng.random(500) < probability**3).error > found.chance_high


def test_groups_that_agree_raise_the_level_of_chance():
    probability, groups = np.full(400, 0.8), np.arange(400) // 4
    assert reliability(probability, np.ones(400), groups).chance > 1.5 * reliability(probability, np.ones(400)).chance


def test_the_effective_interval_counts_agreeing_groups_once():
    right = np.arange(50) < 40
    assert effective_interval(np.repeat(right, 3), np.repeat(np.arange(50), 3)) == pytest.approx(effective_interval(right))
    assert effective_interval(right) == pytest.approx(share_interval(right))
    assert effective_interval(np.ones(5, bool))[1] == 1


def test_the_curve_is_the_precision_of_the_most_probable_answers():
    points = risk_curve([0.9, 0.7, 0.7, 0.4], [True, True, False, False])
    assert [(point.coverage, point.threshold, point.precision) for point in points] == [(0.25, 0.9, 1), (0.75, 0.7, 2 / 3), (1, 0.4, 0.5)]


def test_the_auroc_is_scikit_learns():
    rng = RNG(2)
    answerable = rng.random(300) < 0.8
    probability = np.round(np.clip(rng.normal(0.5 + 0.2 * answerable, 0.2), 0, 1), 2)  # with ties
    found = abstention(probability, answerable, choose_threshold(probability, answerable))
    assert found.auroc == pytest.approx(roc_auc_score(answerable, probability))
    assert (found.answerable, found.unanswerable) == (answerable.sum(), (~answerable).sum())


def test_the_interval_of_the_auroc_holds_the_true_one():
    rng, hits, grouped = RNG(3), 0, 0
    groups = np.arange(200) // 2
    for _ in range(300):
        answerable = np.repeat(rng.random(100) < 0.7, 2)
        probability = np.repeat(1 / (1 + np.exp(-rng.normal(answerable[::2] * 1.0, 1))), 2)
        threshold = choose_threshold([0.5], [True])
        found, naive = (abstention(probability, answerable, threshold, given) for given in (groups, None))
        hits += found.low < 0.7602 < found.high  # the normal distribution function at 1 / sqrt(2)
        grouped += found.high - found.low > 1.3 * (naive.high - naive.low)
    assert hits / 300 > 0.91
    assert grouped == 300


def test_false_answers_are_counted_at_the_threshold():
    probability = np.concatenate([np.full(100, 0.9), np.full(10, 0.95), np.full(30, 0.2)])
    answerable = np.arange(140) < 100
    threshold = choose_threshold(probability[:100], np.ones(100))
    found = abstention(probability, answerable, threshold)
    assert found.false_answers == 10 / 40
    assert found.false_answers_low < 0.25 < found.false_answers_high
    assert abstention(probability[:100], answerable[:100], threshold) is None


def test_all_of_it_at_once():
    scores, relevant, groups, _ = draw(RNG(4), 400, sharpness=4, heat=0.5, without_answer=0.1, sizes=[1, 1, 2])
    assessed = calibrate(scores, relevant, groups, precision=0.8)
    trust, evidence = assessed.trust, assessed.evidence
    again = Trust.from_dict(json.loads(json.dumps(trust.to_dict())))
    assert again == trust
    assert trust.threshold.value is not None
    assert evidence.reliability.error < evidence.reliability.chance_high + 0.02
    assert evidence.abstention.low > 0.5
    assert sum(evidence.set_sizes) == 400
    json.dumps(evidence.to_dict())
