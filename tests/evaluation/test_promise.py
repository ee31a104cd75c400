"""The promise of precision, by simulation: broken in at most 5% of draws. Longer: benchmarks/precision.py."""

import numpy as np
import pytest
import scipy.stats
from worlds import draw

from embedfit.evaluation import threshold
from embedfit.evaluation.calibration import Calibrator, best_answers, out_of_fold
from embedfit.evaluation.threshold import choose_threshold, share_interval

RNG = np.random.default_rng
WORLDS = {
    "just too imprecise everywhere": lambda p: np.full(p.shape, 0.949),
    "as imprecise as stated": lambda p: 0.8 + p / 5,
    "the most probable are the worst": lambda p: 1 - 0.2 * p**20,
    "up and down": lambda p: 0.95 + 0.05 * np.sin(25 * p),
}


def most_broken(draws):
    """Return how often a promise that is broken in 5% of cases may seem broken."""
    return scipy.stats.binom.ppf(0.995, draws, 0.05)


@pytest.mark.parametrize("n", [30, 60, 100, 400])
@pytest.mark.parametrize("world", WORLDS)
def test_single_queries(world, n):
    rng, broken = RNG(n), 0
    grid = np.linspace(0, 1, 20_001)
    precision = WORLDS[world](grid)[::-1].cumsum()[::-1] / np.arange(len(grid), 0, -1)  # of uniform probabilities over each of the grid
    for _ in range(400):
        probability = rng.random(n)
        chosen = choose_threshold(probability, rng.random(n) < WORLDS[world](probability))
        broken += chosen.value is not None and precision[int(chosen.value * 20_000)] < 0.95
    assert broken <= most_broken(400)


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sizes", [(1, 2, 3), (4,), (1,) * 19 + (20,)])
def test_groups(sizes, shared, monkeypatch):
    monkeypatch.setattr(threshold, "DRAWS", 1000)
    rng, broken, naive = RNG(5), 0, 0
    for _ in range(60):
        groups = np.repeat(np.arange(400), rng.choice(sizes, 400))[:400]
        same = rng.random(400) < shared
        right = np.where(same, rng.random(400)[groups], rng.random(400)) < 0.9499
        probability = np.where(same, rng.random(400)[groups], rng.random(400))
        broken += choose_threshold(probability, right, groups).value is not None
        naive += choose_threshold(probability, right).value is not None
    assert broken <= most_broken(60)
    assert shared < 1 or sizes != (4,) or naive > most_broken(60)  # what it guards against


def test_a_true_precision_is_found_and_its_coverage_stated():
    rng, answered, held = RNG(6), [], 0
    for _ in range(200):
        probability = rng.beta(8, 0.4, 500)
        chosen = choose_threshold(probability, rng.random(500) < probability)
        answered.append(chosen.coverage)
        if chosen.value is not None:
            held += chosen.coverage_low <= scipy.stats.beta.sf(chosen.value, 8, 0.4) <= chosen.coverage_high
        else:
            held += 1
    assert np.mean(answered) > 0.75
    assert held / 200 > 0.9


@pytest.mark.parametrize("n", [100, 250])
def test_the_calibrator_and_the_threshold_from_the_same_queries(n):
    world = {"sharpness": 4.0, "heat": 0.5, "without_answer": 0.05}
    scores, _, _, truth = draw(RNG(7), 2000, **world)
    true = truth[np.arange(2000), scores.argmax(axis=1)]
    rng, broken, answered = RNG(n), 0, []
    for _ in range(60):
        drawn, relevant, _, _ = draw(rng, n, **world)
        chosen = choose_threshold(*best_answers(out_of_fold(drawn, relevant), relevant), precision=0.8)
        trusted = chosen.trusted(Calibrator.fit(drawn, relevant).probabilities(scores).max(axis=1))
        broken += trusted.any() and true[trusted].mean() < 0.8
        answered.append(trusted.mean())
    assert broken <= most_broken(60)
    assert np.mean(answered) > 0.05


def test_calibration_error_is_under_three_hundredths_from_500_queries():
    errors = []
    for seed in range(20):
        drawn, relevant, _, _ = draw(RNG(seed), 500, sharpness=4.0, heat=0.5, without_answer=0.05)
        calibrator = Calibrator.fit(drawn, relevant)
        scores, _, _, truth = draw(RNG(1000 + seed), 8000, sharpness=4.0, heat=0.5, without_answer=0.05)
        best = calibrator.probabilities(scores).max(axis=1)
        true = truth[np.arange(8000), scores.argmax(axis=1)]
        errors.append(sum(abs((best[part] - true[part]).sum()) for part in np.array_split(np.argsort(best), 15)) / 8000)
    assert np.mean(errors) < 0.03


def test_the_interval_of_a_share_of_grouped_queries_holds_the_true_share(monkeypatch):
    rng, held = RNG(8), 0
    for seed in range(40):
        groups = np.repeat(np.arange(150), rng.choice([1, 1, 4], 150))[:150]
        low, high = share_interval((rng.random(150) < 0.7)[groups], groups, seed)
        held += low <= 0.7 <= high
    assert held >= 35
