"""Several models at once, and which may be the best."""

import itertools

import pytest
from comparisons import grouped, random_pair, scores_of, three_seeds

from embedfit.errors import EmbedfitError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.families import compare_many, may_be_best, not_worse
from embedfit.evaluation.statistics import holm


def test_holms_adjustment_of_four_p_values_by_hand():
    # In order: 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not be under the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_the_order_of_p_values_does_not_matter_to_holm():
    ps = [0.001, 0.02, 0.02, 0.3]
    for order in itertools.permutations(range(4)):
        adjusted = holm([ps[index] for index in order])
        assert [adjusted[order.index(index)] for index in range(4)] == holm(ps)


def test_each_of_many_is_compared_with_the_one_before_or_with_the_base():
    one, two, three = scores_of([0.2] * 40), scores_of([0.5] * 40), scores_of([0.9] * 40)
    assert [found.difference for found in compare_many([one, two, three])] == pytest.approx([0.3, 0.4])
    assert [found.difference for found in compare_many([two, three], base=one)] == pytest.approx([0.3, 0.7])
    assert compare_many([one]) == []


def test_one_of_many_needs_more_than_it_would_alone():
    base, tuned = [0.0] * 40, [1.0] * 7 + [0.0] * 33  # seven wins and no loss: p = 2/128
    same = scores_of(base)
    assert compare_scores(same, scores_of(tuned)).verdict == "better"
    [first, *others] = compare_many([scores_of(tuned), same, same, same], base=same)
    assert first.p == pytest.approx(4 * 2 / 128, rel=0.2)
    assert first.verdict == "no difference shown"
    assert [other.p for other in others] == [1, 1, 1]


def test_many_are_compared_on_one_metric_alone():
    base, [tuned, *_] = three_seeds(0.1)
    [found] = compare_many([base, tuned], metric="recall@1")
    assert found.metric == "recall@1"
    with pytest.raises(EmbedfitError, match="metric 'ndcg@10' was not measured"):
        compare_many([base, tuned], metric="ndcg@10")


def test_a_model_is_not_worse_while_the_interval_includes_zero():
    best, near, far = scores_of([1.0] * 40), scores_of([1.0] * 38 + [0.0] * 2), scores_of([1.0] * 20 + [0.0] * 20)
    assert not_worse(best, near)
    assert not not_worse(best, far)
    assert not_worse(far, best)
    assert not_worse(best, best)


def test_only_what_is_clearly_worse_than_another_cannot_be_the_best():
    best, near, far = scores_of([1.0] * 40), scores_of([1.0] * 38 + [0.0] * 2), scores_of([1.0] * 20 + [0.0] * 20)
    assert may_be_best([far, near, best]) == [False, True, True]
    assert may_be_best([far]) == [True]
    assert may_be_best([near, near, near]) == [True] * 3


def test_of_two_models_one_may_be_the_best_where_it_is_not_worse():
    for seed in range(20):
        base, tuned = map(scores_of, random_pair(seed, n=40, shift=0.15))
        pair = compare_scores(base, tuned)["mrr@10"]
        assert may_be_best([base, tuned])[0] == (pair.verdict != "better")


def test_near_duplicates_of_one_query_do_not_make_a_model_worse():
    better, worse = [1.0] * 30, [0.0] * 30
    assert may_be_best([scores_of(worse), scores_of(better)]) == [False, True]
    groups = [0] * 28 + [1, 2]
    assert may_be_best([grouped(worse, groups), grouped(better, groups)]) == [True, True]
