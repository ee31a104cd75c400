"""Queries that depend on each other."""

import json
from dataclasses import replace

import numpy as np
import pytest
from comparisons import compared, grouped, random_pair, scores_of, three_seeds

from embedfit.errors import EmbedfitError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison
from embedfit.evaluation.statistics import bootstrap_means, evidence, extended_means, half_means


@pytest.mark.parametrize("copies", [2, 5])
def test_copies_of_a_query_in_one_group_are_one_query(copies):
    base, tuned = random_pair(0, n=40)
    groups = np.arange(40).repeat(copies)
    one = compared(base, tuned)
    many = compare_scores(grouped(base.repeat(copies), groups), grouped(tuned.repeat(copies), groups))["mrr@10"]
    assert (many.difference, many.low, many.high, many.p, many.detectable) == pytest.approx(
        (one.difference, one.low, one.high, one.p, one.detectable)
    )
    assert many.wins == copies * one.wins


def test_a_group_for_each_query_changes_nothing():
    base, tuned = random_pair(1)
    assert compare_scores(grouped(base, range(80)), grouped(tuned, range(80)))["mrr@10"] == compared(base, tuned)


def test_the_mean_is_over_queries_and_not_over_groups():
    found = compare_scores(grouped([0, 0, 0, 0], [7, 7, 7, 2]), grouped([1, 1, 1, 0], [7, 7, 7, 2]))["mrr@10"]
    assert found.difference == 0.75


def test_means_of_random_halves_are_worked_out_by_hand():
    # Groups of one query (gap 1) and of three (gap 0): both give 1/4, the small one 1, the large one 0, and none of them either end.
    lows, highs = half_means(np.array([[1.0], [0], [0], [0]]), np.random.default_rng(0), np.array([0, 1, 1, 1]))
    assert sorted(set(lows[:, 0])) == [-1, 0, 0.25, 1]
    assert sorted(set(highs[:, 0])) == [0, 0.25, 1]
    for value in (-1, 0, 0.25, 1):
        assert (lows == value).mean() == pytest.approx(0.25, abs=0.02)


def test_the_group_that_was_not_seen_is_as_large_as_the_one_a_query_stands_in():
    # Groups of one query and of three with a gap of 1; a query's group has (1 + 9) / 4 = 2.5 queries. With exponential weights a, b, c
    # the mean is (a + 3 b - 2.5 c) / (a + 3 b + 2.5 c), drawn here anew.
    lows, _ = extended_means(np.ones((4, 1)), np.random.default_rng(0), np.array([0, 1, 1, 1]))
    a, b, c = np.random.default_rng(1).standard_exponential((3, 200_000))
    drawn = (a + 3 * b - 2.5 * c) / (a + 3 * b + 2.5 * c)
    assert np.quantile(lows, [0.025, 0.25, 0.5, 0.75]) == pytest.approx(np.quantile(drawn, [0.025, 0.25, 0.5, 0.75]), abs=0.03)


def test_the_bootstrap_draws_groups_with_replacement():
    means = bootstrap_means(np.array([[1.0], [0], [0], [0]]), np.random.default_rng(0), np.array([0, 1, 1, 1]))
    assert set(means[:, 0]) == {0, 0.25, 1}


def test_the_signs_of_a_group_change_together():
    # Ten equal gaps in two groups of five: all four sums are as far from zero as the one seen, or zero.
    groups = [0] * 5 + [1] * 5
    assert compare_scores(grouped([0] * 10, groups), grouped([1] * 10, groups))["mrr@10"].p == pytest.approx(0.5, abs=0.03)
    assert compared([0] * 10, [1] * 10).p < 0.01


def test_the_error_of_grouped_queries_is_the_linearised_one_of_a_ratio():
    gaps, groups = np.array([0.5, 0.5, 0, 1, -0.5]), np.array([0, 0, 1, 1, 2])
    residuals = np.array([1.0, 1.0, -0.5]) - np.array([2, 2, 1]) * 0.3
    found = evidence(gaps[None, :, None], groups=groups)
    assert found.query_error[0] == pytest.approx(np.sqrt(3 / 2 * (residuals**2).sum()) / 5)


def test_the_sentence_and_json_say_in_how_many_groups_the_queries_stand():
    base, tuned = grouped([0.5] * 6, [0, 0, 1, 1, 2, 2]), grouped([0.5] * 6, [0, 0, 1, 1, 2, 2])
    found = compare_scores(base, tuned, held_out=True)
    assert "on 6 held-out queries in 3 groups: 0 better" in found.sentence
    assert found.sentence.endswith("could not have been detected reliably on 6 queries in 3 groups.")
    said = json.loads(json.dumps(found.to_dict()))
    assert said["groups"] == 3
    assert "draws of groups of queries" in said["interval"]
    assert list(found.per_query()["group"]) == [0, 0, 1, 1, 2, 2]
    assert Comparison.from_dict(said, found.base, found.tuned).sentence == found.sentence


def test_one_query_and_one_group_are_singular():
    assert "on 1 query: 1 better" in compare_scores(scores_of([0.1]), scores_of([1.0])).sentence
    assert "on 3 queries in 1 group: " in compare_scores(grouped([0.1] * 3, [5, 5, 5]), grouped([1.0] * 3, [5, 5, 5])).sentence


def test_each_stratum_says_in_how_many_groups_its_queries_stand():
    groups = [0, 0, 1, 1, 2, 3]
    found = compare_scores(grouped([0.5] * 6, groups), grouped([0.5] * 6, groups), seen=[True] * 4 + [False] * 2)
    assert [stratum.groups for stratum in found.strata] == [2, 2]
    assert [stratum.label for stratum in found.strata] == ["answers seen in training (4 queries in 2 groups)", "new answers (2 queries)"]
    read = Comparison.from_dict(json.loads(json.dumps(found.to_dict())), found.base, found.tuned, found.seen)
    assert read.strata == found.strata
    with pytest.raises(EmbedfitError, match="seen has 0 values, one per query; expected 6"):
        compare_scores(found.base, found.tuned, seen=[])


def test_groups_known_to_one_model_hold_for_both_and_other_groups_are_refused():
    base, tuned = [0.5] * 6, [1.0] * 5 + [0.0]
    known = compare_scores(scores_of(base), grouped(tuned, [4, 4, 2, 2, 9, 9]))
    assert known.groups == 3
    assert known.differences == compare_scores(grouped(base, [0, 0, 1, 1, 2, 2]), grouped(tuned, [1, 1, 2, 2, 0, 0])).differences
    with pytest.raises(EmbedfitError, match="put the same queries into different groups"):
        compare_scores(grouped(base, [0, 0, 1, 1, 2, 2]), grouped(tuned, [0, 1, 1, 2, 2, 0]))
    with pytest.raises(EmbedfitError, match="put the same queries into different groups"):
        compare_scores(grouped(base, [0, 1]), grouped(tuned, [0, 1]))


def test_several_seeds_of_grouped_queries_keep_their_groups():
    base, runs = three_seeds(0.02)
    groups = np.arange(200) // 4
    alone = compare_scores(base, runs)["mrr@10"]
    found = compare_scores(replace(base, groups=groups), runs)
    assert found.groups == 50
    assert np.array_equal(found.tuned.groups, groups)
    assert found["mrr@10"].high - found["mrr@10"].low > alone.high - alone.low
