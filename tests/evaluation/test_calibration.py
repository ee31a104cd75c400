"""Probabilities of candidates, against true ones and by hand."""

import json

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import expit
from worlds import draw

from embedfit.errors import DataError
from embedfit.evaluation import calibration
from embedfit.evaluation.calibration import Calibrator, best_answers, effective_size, out_of_fold

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def overconfident():
    scores, relevant, groups, _ = draw(RNG(0), 1000, heat=0.4, without_answer=0.2)
    return scores, relevant, groups, Calibrator.fit(scores, relevant)


def test_probabilities_meet_the_true_ones_though_scores_are_overconfident_and_some_queries_have_no_answer(overconfident):
    *_, calibrator = overconfident
    scores, _, _, truth = draw(RNG(1), 4000, heat=0.4, without_answer=0.2)
    probabilities = calibrator.probabilities(scores)
    best, raw = probabilities.max(axis=1), np.exp(scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)).max(axis=1)
    true = truth[np.arange(4000), scores.argmax(axis=1)]
    assert np.abs(best - true).mean() < 0.09
    assert np.abs(raw - true).mean() > 0.25
    assert abs(best.mean() - true.mean()) < 0.03
    others, true_others = probabilities.sum(axis=1) - best, truth.sum(axis=1) - true
    assert abs(others.mean() - true_others.mean()) < 0.03


def test_candidates_keep_the_order_of_their_scores(overconfident):
    scores, _, _, calibrator = overconfident
    order = np.argsort(-scores, axis=1)
    assert (np.diff(np.take_along_axis(calibrator.probabilities(scores), order, axis=1), axis=1) <= 0).all()


def test_calibrated_scores_are_left_almost_as_they_are():
    scores, relevant, _, _ = draw(RNG(2), 800)
    calibrator = Calibrator.fit(scores, relevant)
    assert calibrator.temperature == pytest.approx(1, abs=0.15)
    assert np.abs(calibrator.probabilities(scores) - np.exp(scores)).max(axis=1).mean() < 0.03


@pytest.mark.parametrize("right", [True, False])
def test_a_few_queries_hardly_move_the_softmax(right):
    scores = np.log([[0.7, 0.2, 0.1]] * 4)
    relevant = np.array([[right, False, False]] * 4)
    probabilities = Calibrator.fit(scores, relevant).probabilities(scores)
    assert 0.2 < probabilities[0, 0] < 0.95


def test_queries_of_one_group_move_it_no_more_than_one_query():
    scores, relevant, _, _ = draw(RNG(3), 40, heat=0.5)
    once = Calibrator.fit(scores, relevant)
    thrice = Calibrator.fit(np.repeat(scores, 3, axis=0), np.repeat(relevant, 3, axis=0), np.repeat(np.arange(40), 3))
    assert thrice.temperature == once.temperature
    assert thrice.best == pytest.approx(once.best, abs=1e-6)


def test_several_right_candidates_may_each_be_nearly_certain():
    rng = RNG(4)
    scores = rng.normal(0, 0.1, (400, 6))
    scores[:, :2] += 4
    relevant = np.zeros(scores.shape, bool)
    relevant[:, :2] = True
    probabilities = Calibrator.fit(scores, relevant).probabilities(scores)
    assert probabilities[:, :2].min() > 0.9
    assert probabilities[:, 2:].max() < 0.05


def test_the_temperature_is_the_one_that_scipy_finds():
    scores, relevant, _, _ = draw(RNG(5), 300, heat=0.5)

    def loss(log):
        scaled = scores * np.exp(-log[0])
        return -(np.log((np.exp(scaled) * relevant).sum(axis=1)) - np.log(np.exp(scaled).sum(axis=1))).sum() + (log[0] / 0.5) ** 2 / 2

    assert np.log(Calibrator.fit(scores, relevant).temperature) == pytest.approx(minimize(loss, [0.0]).x[0], abs=1e-3)


def test_the_correction_is_the_one_that_scipy_finds():
    rng = RNG(6)
    design = np.concatenate([np.ones((200, 1)), rng.normal(size=(200, 4))], axis=1)
    odds, right = rng.normal(size=200), rng.random(200) < 0.7

    def loss(weights):
        logits = odds + design @ weights
        return -np.log(np.where(right, expit(logits), expit(-logits))).sum() + (weights**2 / calibration._SPREADS**2).sum() / 2

    assert calibration._correction(design, odds, right, 1.0) == pytest.approx(minimize(loss, np.zeros(5)).x, abs=1e-4)


def test_probabilities_survive_json(overconfident):
    scores, _, _, calibrator = overconfident
    again = Calibrator.from_dict(json.loads(json.dumps(calibrator.to_dict())))
    assert again == calibrator
    assert (again.probabilities(scores) == calibrator.probabilities(scores)).all()
    with pytest.raises(DataError, match="version 99"):
        Calibrator.from_dict(calibrator.to_dict() | {"version": 99})


def test_empty_places_have_no_probability_and_queries_may_lack_candidates():
    scores = np.array([[0.0, -1.0, -np.inf], [-np.inf] * 3, [2.0, -np.inf, -np.inf]])
    calibrator = Calibrator.fit(scores, np.array([[True, False, True], [True] * 3, [False] * 3]))
    probabilities = calibrator.probabilities(scores)
    assert (probabilities[~np.isfinite(scores)] == 0).all()
    assert np.isfinite(probabilities).all()
    assert best_answers(probabilities, np.ones((3, 3)))[1].tolist() == [True, False, True]
    assert calibrator.probabilities(np.empty((0, 3))).shape == (0, 3)


def test_extreme_scores_give_finite_probabilities():
    scores = np.array([[1e6, -1e6], [700.0, 699.0], [-1e6, -1e6], [0.0, -1e-300]])
    probabilities = Calibrator.fit(scores, scores == scores.max(axis=1, keepdims=True)).probabilities(scores)
    assert ((probabilities >= 0) & (probabilities <= 1)).all()


def test_no_query_is_judged_by_a_calibrator_that_saw_it_or_its_group():
    scores, relevant, groups, _ = draw(RNG(7), 60, heat=0.5, sizes=[1, 3])
    before = out_of_fold(scores, relevant, groups)
    changed = relevant.copy()
    changed[groups == 5] = ~relevant[groups == 5]
    assert (out_of_fold(scores, changed, groups)[groups == 5] == before[groups == 5]).all()
    assert (out_of_fold(scores, changed, groups) != before).any()


def test_the_effective_number_of_queries():
    assert effective_size(None, 7) == 7
    assert effective_size(np.array([4, 4, 9, 9]), 4) == 2
    assert effective_size(np.array([1, 1, 1, 5]), 4) == pytest.approx(16 / 10)


@pytest.mark.parametrize(
    ("scores", "relevant", "groups", "message"),
    [
        ([[0.0, np.nan]], [[True, False]], None, "1 of 2 are NaN"),
        ([0.0, 1.0], [True, False], None, "expected a matrix"),
        ([[0.0, 1.0]], [[True]], None, "expected one shape"),
        (np.empty((0, 2)), np.empty((0, 2)), None, "at least one query"),
        ([[-np.inf, -np.inf]], [[True, False]], None, "no query has a candidate"),
        ([[0.0, 1.0]], [[True, False]], np.array([1, 2]), "one group number for each query"),
    ],
)
def test_bad_arrays_get_one_line(scores, relevant, groups, message):
    with pytest.raises(DataError, match=message):
        Calibrator.fit(scores, relevant, groups)


def test_folds_need_two_groups():
    with pytest.raises(DataError, match="at least two groups"):
        out_of_fold(np.zeros((3, 2)), np.ones((3, 2)), np.zeros(3, int))
