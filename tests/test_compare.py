import json

import numpy as np
import pytest
import scipy.stats

from embedfit.compare import DRAWS, Comparison, Difference, bootstrap_means, compare_scores, metric_label
from embedfit.errors import EmbedfitError
from embedfit.score import Scores


def scores_of(values, name="model", metric="mrr@10", ids=None):
    ids = ids or tuple(f"q{number}" for number in range(len(values)))
    return Scores(name, tuple(ids), {metric: np.array(values, np.float64)}, np.ones(len(values), np.int64))


def compared(base, tuned, **kwargs):
    return compare_scores(scores_of(base, "base"), scores_of(tuned, "tuned"), **kwargs)["mrr@10"]


def random_pair(seed, n=80, shift=0.1):
    """Return reciprocal ranks of two models that agree on most queries."""
    rng = np.random.default_rng(seed)
    base = 1 / rng.integers(1, 11, n)
    tuned = np.where(rng.random(n) < 0.4, np.clip(base + rng.normal(shift, 0.3, n), 0, 1), base)
    return base, tuned


def test_wins_ties_losses_and_means_of_four_queries():
    found = compared([0, 0.5, 1, 1], [1, 0.5, 0.5, 1])
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)
    assert (found.base, found.tuned, found.difference) == (0.625, 0.75, 0.125)


def test_a_difference_of_rounding_alone_is_a_tie():
    for found in (compared([0.3, 0.5], [0.1 + 0.2, 0.5]), compared([0.1 + 0.2, 0.5], [0.3, 0.5])):
        assert (found.wins, found.ties, found.losses) == (0, 2, 0)


def test_the_interval_of_two_queries_is_the_range_of_their_gaps():
    # Drawn with replacement, the mean of the gaps 0 and 1 is 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4.
    found = compared([0, 0], [0, 1])
    assert (found.low, found.high) == (0, 1)
    means = bootstrap_means(np.array([[0.0], [1.0]]), np.random.default_rng(0))[:, 0]
    assert set(means) == {0, 0.5, 1}
    assert (means == 0.5).mean() == pytest.approx(0.5, abs=0.02)


def test_the_p_value_of_four_equal_gaps_is_an_eighth():
    # Of the 16 choices of signs, all plus and all minus are as extreme as what was seen.
    assert compared([0] * 4, [1] * 4).p == pytest.approx(2 / 16, abs=0.015)


def test_the_p_value_is_never_zero():
    assert compared([0] * 60, [1] * 60).p == 1 / (1 + DRAWS)


@pytest.mark.parametrize("seed", range(3))
def test_the_interval_is_close_to_scipys_bootstrap(seed):
    base, tuned = random_pair(seed)
    found = compared(base, tuned)
    theirs = scipy.stats.bootstrap(
        (tuned, base),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        n_resamples=DRAWS,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.004)
    assert found.high - found.low > 0.05


@pytest.mark.parametrize("seed", range(3))
def test_the_p_value_is_close_to_scipys_paired_permutation_test(seed):
    base, tuned = random_pair(seed, shift=0.05)
    theirs = scipy.stats.permutation_test(
        (tuned, base),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=DRAWS,
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).pvalue
    assert compared(base, tuned).p == pytest.approx(theirs, abs=0.02)


def test_more_queries_than_one_block_of_draws_holds_are_compared_alike():
    base, tuned = random_pair(1, n=3_000)
    found = compared(base, tuned)
    error = (tuned - base).std() / np.sqrt(3_000)
    assert (found.low, found.high) == pytest.approx((found.difference - 1.96 * error, found.difference + 1.96 * error), abs=0.1 * error)


def test_the_same_seed_gives_the_same_figures_and_another_seed_others():
    base, tuned = random_pair(0, shift=0.05)
    assert compared(base, tuned, seed=1) == compared(base, tuned, seed=1)
    one, other = compared(base, tuned, seed=1), compared(base, tuned, seed=2)
    assert one.low != other.low
    assert one.p != other.p


def test_identical_scores_show_no_difference():
    found = compared([0.2, 0.5, 1], [0.2, 0.5, 1])
    assert found.verdict == "no difference shown"
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert (found.wins, found.ties, found.losses) == (0, 3, 0)


def test_the_verdict_follows_the_interval():
    low, high = [0.1] * 20, [0.2, 0.3] * 10
    assert compared(low, high).verdict == "better"
    assert compared(high, low).verdict == "worse"
    assert compared([0, 1] * 10, [1, 0] * 10).verdict == "no difference shown"


def test_swapping_the_models_turns_the_verdict_round():
    base, tuned = random_pair(0)
    there, back = compared(base, tuned), compared(tuned, base)
    assert (back.low, back.high) == pytest.approx((-there.high, -there.low))
    assert (back.wins, back.losses) == (there.losses, there.wins)
    assert back.p == there.p


def test_the_verdict_is_about_the_metric_asked_for():
    ids, half = tuple("abcdefgh"), np.full(8, 0.5)
    base = Scores("base", ids, {"recall@1": np.zeros(8), "mrr@10": half}, np.full(8, 2))
    tuned = Scores("tuned", ids, {"recall@1": np.ones(8), "mrr@10": half}, np.full(8, 1))
    assert compare_scores(base, tuned, metric="recall@1").verdict == "better"
    assert compare_scores(base, tuned, metric="mrr@10").verdict == "no difference shown"
    with pytest.raises(EmbedfitError, match="metric 'ndcg@10' was not measured; expected one of recall@1, mrr@10"):
        compare_scores(base, tuned, metric="ndcg@10")


@pytest.mark.parametrize(
    "other",
    [scores_of([1, 1], ids=("q1", "q0")), scores_of([1, 1, 1]), scores_of([1, 1], metric="mrr@5")],
    ids=["order", "number", "metric"],
)
def test_scores_of_other_queries_or_metrics_are_refused(other):
    with pytest.raises(EmbedfitError, match="only scores of the same queries with the same metrics can be compared"):
        compare_scores(scores_of([1, 1]), other)


@pytest.mark.parametrize(
    ("base", "tuned", "sentence"),
    [
        (
            [0.25] * 9,
            [0.5] * 9,
            "Better: MRR@10 rose from 0.250 to 0.500 (+0.250, 95% interval +0.250 to +0.250) on 9 queries: 9 better, 0 the same, 0 worse.",
        ),
        (
            [0.5] * 9,
            [0.25] * 9,
            "Worse: MRR@10 fell from 0.500 to 0.250 (-0.250, 95% interval -0.250 to -0.250) on 9 queries: 0 better, 0 the same, 9 worse.",
        ),
        (
            [0.5] * 1_000,
            [0.5] * 1_000,
            "No difference shown: MRR@10 is 0.500 before and 0.500 after (+0.000, 95% interval +0.000 to +0.000) on 1,000 "
            "queries: 0 better, 1,000 the same, 0 worse.",
        ),
    ],
)
def test_the_sentence_says_verdict_and_evidence(base, tuned, sentence):
    assert compare_scores(scores_of(base), scores_of(tuned)).sentence == sentence


def test_a_comparison_is_json_and_frames():
    found = compare_scores(scores_of([0, 0.5], "base"), scores_of([1, 0.5], "tuned"))
    said = json.loads(json.dumps(found.to_dict()))
    assert (said["base"], said["tuned"], said["metric"], said["queries"]) == ("base", "tuned", "mrr@10", 2)
    assert said["differences"][0]["wins"] == 1
    assert found.to_frame().loc[0, "difference"] == 0.5
    assert found.per_query().to_dict("records")[0] == {
        "query_id": "q0",
        "base_rank": 1,
        "tuned_rank": 1,
        "base_mrr@10": 0,
        "tuned_mrr@10": 1,
    }
    assert found.sentence in found._repr_html_()


def test_a_gap_that_is_the_same_for_every_query_can_be_plotted():
    # The ends of the interval then equal the difference but for rounding, and may lie on the other side of it.
    found = Difference(
        "recall@1", base=0.25, tuned=0.5, difference=0.25, low=0.25 + 1e-16, high=0.25 - 1e-16, p=1, wins=2, ties=0, losses=0
    )
    comparison = Comparison(scores_of([0.25] * 2), scores_of([0.5] * 2), (found,), "recall@1")
    assert [bar.get_height() for bar in comparison.plot().axes[0].patches] == [0.25, 0.5]


@pytest.mark.parametrize(
    ("name", "label"), [("mrr@10", "MRR@10"), ("ndcg@5", "nDCG@5"), ("map@3", "MAP@3"), ("recall@1", "recall@1"), ("hit@1", "hit@1")]
)
def test_metrics_are_written_as_people_write_them(name, label):
    assert metric_label(name) == label


def test_a_single_query_shows_nothing_however_large_its_gap():
    def scores(value):
        return Scores("m", ("q",), {"mrr@10": np.array([value])}, np.array([1]))

    found = compare_scores(scores(0.1), scores(1.0))
    assert found["mrr@10"].low > 0  # a bootstrap of one has no width
    assert found.verdict == "no difference shown"
