"""Conformal sets: by hand, and by simulation."""

import json

import numpy as np
import pytest
from worlds import draw

from embedfit.errors import DataError
from embedfit.evaluation.conformal import ConformalSets, mass_before

RNG = np.random.default_rng


def test_the_limit_is_the_quantile_with_one_more_query():
    # The right candidate is second in 2 of 19 queries. 19 of 20 must be covered, so all 19: the limit is the larger mass before it.
    probabilities = np.tile([0.6, 0.3, 0.1], (19, 1))
    probabilities[0] = [0.5, 0.4, 0.1]
    relevant = np.zeros((19, 3), bool)
    relevant[2:, 0] = relevant[:2, 1] = True
    sets = ConformalSets.fit(probabilities, relevant, coverage=0.95)
    assert sets.limit == pytest.approx(0.6)
    assert sets.sizes([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.7, 0.2, 0.1], [0.2, 0.2, 0.2]]).tolist() == [2, 2, 1, 2]
    assert ConformalSets.fit(probabilities, relevant, coverage=0.85).limit == 0
    assert ConformalSets.fit(probabilities[1:], relevant[1:], coverage=0.95).limit is None  # 18 queries cannot promise 95%


def test_without_a_limit_all_candidates_are_shown():
    sets = ConformalSets.fit([[0.5, 0.5]], [[True, False]])
    assert sets.limit is None
    assert sets.sizes([[0.5, 0.2, 0.1], [0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]).tolist() == [3, 1, 1]


def test_queries_without_an_answer_are_left_out_and_counted():
    probabilities, relevant = np.tile([0.9, 0.1], (50, 1)), np.tile([True, False], (50, 1))
    relevant[:10] = False
    sets = ConformalSets.fit(probabilities, relevant, coverage=0.9)
    assert (sets.limit, sets.queries, sets.excluded) == (0.0, 40, 10)
    # These 10 have an answer that is no candidate: no set holds it, and 80% cannot become 90%.
    missed = ConformalSets.fit(probabilities, relevant, coverage=0.9, answerable=np.ones(50))
    assert (missed.limit, missed.queries, missed.excluded) == (None, 50, 0)


def test_a_group_weighs_as_much_as_any_other():
    probabilities, relevant = np.tile([0.6, 0.4], (60, 1)), np.tile([True, False], (60, 1))
    relevant[:31] = [False, True]  # one group of 31 and 29 of one query
    groups = np.concatenate([np.zeros(31, int), np.arange(1, 30)])
    assert ConformalSets.fit(probabilities, relevant, groups, coverage=0.9).limit == 0
    assert ConformalSets.fit(probabilities, relevant, coverage=0.9).limit == 0.6


def test_the_mass_before_a_candidate():
    assert mass_before(np.array([[0.2, 0.5, 0.1]]))[0] == pytest.approx([0.5 / 0.8, 0, 0.7 / 0.8])


@pytest.mark.parametrize(("sizes", "shared"), [(None, 0.0), ([1, 1, 2, 8], 0.8)])
def test_sets_hold_a_right_candidate_as_often_as_stated_and_are_no_larger_than_needed(sizes, shared):
    rng, held, shown = RNG(0), [], []
    for _ in range(200):
        scores, relevant, groups, _ = draw(rng, 150, sizes=sizes, shared=shared)
        sets = ConformalSets.fit(np.exp(scores), relevant, groups, coverage=0.9)
        scores, relevant, _, _ = draw(rng, 200)
        size = sets.sizes(np.exp(scores))
        ranks = (scores > scores[relevant][:, None]).sum(axis=1)
        held.append((ranks < size).mean())
        shown.append(size.mean())
    assert 0.895 < np.mean(held) < 0.93
    assert np.mean(shown) < 4


def test_sets_survive_json():
    sets = ConformalSets.fit([[0.5, 0.5]] * 40, [[True, False]] * 40)
    assert ConformalSets.from_dict(json.loads(json.dumps(sets.to_dict()))) == sets
    with pytest.raises(DataError, match=r"coverage: 1\.0"):
        ConformalSets.fit([[0.5]], [[True]], coverage=1.0)
