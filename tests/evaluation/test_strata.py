"""Answers seen in training, and new ones."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from comparisons import compared, random_pair, scores_of, three_seeds

from embedfit.errors import EmbedfitError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison
from embedfit.evaluation.statistics import holm

SEEN = [True, False, True, False, True, True]


def in_strata(**kwargs):
    """Return a comparison whose two new queries (q1, q3) lose a half each, and whose four others gain 0.5, 0, 1 and 0.5."""
    base, tuned = scores_of([0, 1, 0.5, 0.5, 0, 0], "base"), scores_of([0.5, 0.5, 0.5, 0, 1, 0.5], "tuned")
    return compare_scores(base, tuned, seen=SEEN, **kwargs)


def test_queries_with_seen_answers_and_those_with_new_ones_are_compared_apart():
    found = in_strata()
    seen, new = found.strata
    assert [(stratum.seen, stratum.queries) for stratum in found.strata] == [(True, 4), (False, 2)]
    assert (seen["mrr@10"].base, seen["mrr@10"].tuned, seen["mrr@10"].difference) == (0.125, 0.625, 0.5)
    assert (new["mrr@10"].base, new["mrr@10"].tuned, new["mrr@10"].difference) == (0.75, 0.25, -0.5)
    assert (seen["mrr@10"].wins, seen["mrr@10"].ties, seen["mrr@10"].losses) == (3, 1, 0)
    assert (new["mrr@10"].wins, new["mrr@10"].ties, new["mrr@10"].losses) == (0, 0, 2)
    assert found["mrr@10"].difference == pytest.approx((4 * 0.5 - 2 * 0.5) / 6)
    assert found.query_ids(seen=False) == ("q1", "q3")


def test_a_stratums_interval_is_that_of_its_queries_alone_and_its_p_adjusted_for_two():
    base, tuned = random_pair(1, n=300, shift=0.3)
    seen = np.arange(300) % 3 > 0
    found = compare_scores(scores_of(base), scores_of(tuned), seen=list(seen))
    alone = [compared(base[rows], tuned[rows]) for rows in (seen, ~seen)]
    for stratum, other, p in zip(found.strata, alone, holm([one.p for one in alone]), strict=True):
        assert replace(stratum["mrr@10"], p=other.p) == other
        assert stratum["mrr@10"].p == p >= other.p
    assert found["mrr@10"] == compared(base, tuned)  # the whole is judged as before


def test_a_gain_on_seen_answers_alone_is_not_called_a_gain_on_new_ones():
    base = scores_of([0.2] * 100)
    tuned = scores_of([0.9] * 70 + [0.2 + 0.2 * (-1) ** number for number in range(30)])
    found = compare_scores(base, tuned, seen=[True] * 70 + [False] * 30)
    assert found.verdict == "better"
    assert [stratum["mrr@10"].verdict for stratum in found.strata] == ["better", "no difference shown"]
    assert "Answers seen in training (70 queries): better, 0.200 before and 0.900 after (+0.700, 95% interval +" in found.sentence
    assert "New answers (30 queries): no difference shown, 0.200 before and 0.200 after (+0.000, 95% interval -" in found.sentence
    assert re.search(r"; a difference under about 0\.\d+ could not have been detected reliably\)\.$", found.sentence)


@pytest.mark.parametrize("seen", [None, [True] * 3, [False] * 3])
def test_where_all_answers_are_of_one_kind_nothing_is_added(seen):
    plain = compare_scores(scores_of([0, 0.5, 1]), scores_of([1, 0.5, 1]))
    found = compare_scores(scores_of([0, 0.5, 1]), scores_of([1, 0.5, 1]), seen=seen)
    assert found.strata == ()
    assert found.sentence == plain.sentence
    assert found.to_dict()["strata"] == []


def test_the_strata_of_several_seeds_are_means_over_seeds():
    base, runs = three_seeds(0.02)
    seen = [number % 2 == 0 for number in range(200)]
    found = compare_scores(base, runs, seen=seen)
    expected = np.mean([run.values["mrr@10"][::2].mean() for run in runs])
    assert found.strata[0]["mrr@10"].tuned == pytest.approx(expected)
    assert "mean of 3 seeds" in found.sentence


def test_strata_are_read_back_from_json_with_the_column_that_each_query_has():
    found = in_strata(held_out=True)
    frame = found.per_query()
    assert frame.seen.tolist() == SEEN
    said = json.loads(json.dumps(found.to_dict()))
    assert [(row["answers"], row["queries"], row["verdict"]) for row in said["strata"]] == [
        ("seen", 4, "no difference shown"),
        ("new", 2, "no difference shown"),
    ]
    assert said["strata"][1]["differences"][0]["difference"] == -0.5
    read = Comparison.from_dict(said, found.base, found.tuned, frame.seen.tolist())
    assert (read.strata, read.seen, read.sentence) == (found.strata, found.seen, found.sentence)


def test_what_a_version_without_strata_wrote_is_read():
    found = in_strata()
    said = {key: value for key, value in found.to_dict().items() if key != "strata"}
    assert Comparison.from_dict(said, found.base, found.tuned).strata == ()
    assert "seen" not in Comparison.from_dict(said, found.base, found.tuned).per_query()


def test_seen_must_be_said_of_every_query():
    with pytest.raises(EmbedfitError, match="seen has 2 values, one per query; expected 3"):
        compare_scores(scores_of([0, 0.5, 1]), scores_of([1, 0.5, 1]), seen=[True, False])
