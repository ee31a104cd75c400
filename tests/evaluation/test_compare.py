import itertools
import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from matplotlib.container import ErrorbarContainer

from embedfit.errors import EmbedfitError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison, Difference
from embedfit.evaluation.families import compare_many, may_be_best, not_worse
from embedfit.evaluation.score import Scores
from embedfit.evaluation.statistics import DRAWS, bootstrap_means, evidence, extended_means, half_means, holm, randomised_means
from embedfit.metrics import metric_label

SIMULATION = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "verdict.py"))


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


def scipys_interval(base, tuned):
    """Return the ends of scipy's paired percentile bootstrap."""
    return tuple(
        scipy.stats.bootstrap(
            (tuned, base),
            lambda x, y, axis: (x - y).mean(axis=axis),
            paired=True,
            n_resamples=DRAWS,
            method="percentile",
            vectorized=True,
            batch=500,
            rng=np.random.default_rng(0),
        ).confidence_interval
    )


def scipys_p(base, tuned):
    """Return the p-value of scipy's paired permutation test."""
    return scipy.stats.permutation_test(
        (tuned, base),
        lambda x, y, axis: (x - y).mean(axis=axis),
        permutation_type="samples",
        n_resamples=DRAWS,
        vectorized=True,
        rng=np.random.default_rng(0),
    ).pvalue


def test_wins_ties_losses_and_means_of_four_queries():
    found = compared([0, 0.5, 1, 1], [1, 0.5, 0.5, 1])
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)
    assert (found.base, found.tuned, found.difference) == (0.625, 0.75, 0.125)


def test_a_difference_of_rounding_alone_is_a_tie():
    for found in (compared([0.3, 0.5], [0.1 + 0.2, 0.5]), compared([0.1 + 0.2, 0.5], [0.3, 0.5])):
        assert (found.wins, found.ties, found.losses) == (0, 2, 0)


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


def test_the_verdict_follows_the_interval():
    low, high = [0.1] * 20, [0.5, 0.6] * 10
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
            [1] * 9,
            "Better: MRR@10 rose from 0.250 to 1.000 (+0.750, 95% interval +0.159 to +0.834) on 9 queries: 9 better, 0 the same, 0 worse.",
        ),
        (
            [1] * 9,
            [0.25] * 9,
            "Worse: MRR@10 fell from 1.000 to 0.250 (-0.750, 95% interval -0.834 to -0.159) on 9 queries: 0 better, 0 the same, 9 worse.",
        ),
        (
            [0.5] * 1_000,
            [0.5] * 1_000,
            "No difference shown: MRR@10 is 0.500 before and 0.500 after (+0.000, 95% interval -0.004 to +0.004) on 1,000 queries: "
            "0 better, 1,000 the same, 0 worse. A difference under about 0.0037 could not have been detected reliably on 1,000 queries.",
        ),
    ],
)
def test_the_sentence_says_verdict_and_evidence(base, tuned, sentence):
    assert compare_scores(scores_of(base), scores_of(tuned)).sentence == sentence


@pytest.mark.parametrize("value", [1.5, -0.1, float("nan")])
def test_values_that_no_metric_has_are_refused(value):
    with pytest.raises(EmbedfitError, match=r"mrr@10 of tuned has a value that is not between 0 and 1"):
        compared([0.5, 0.5], [0.5, value])


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
        "recall@1",
        base=0.25,
        tuned=0.5,
        difference=0.25,
        low=0.25 + 1e-16,
        high=0.25 - 1e-16,
        p=1,
        wins=2,
        ties=0,
        losses=0,
        detectable=0.1,
    )
    comparison = Comparison(scores_of([0.25] * 2), scores_of([0.5] * 2), (found,), "recall@1")
    assert [bar.get_height() for bar in comparison.plot().axes[0].patches] == [0.25, 0.5]


def test_a_notebook_shows_a_chart_as_a_picture_and_a_comparison_as_one_line():
    scores = [
        Scores(name, ("a", "b"), {"recall@1": np.array(values)}, np.array([1, 2]))
        for name, values in {"base": [0.0, 1.0], "tuned": [1.0, 1.0]}.items()
    ]
    comparison = compare_scores(*scores, metric="recall@1")
    assert comparison.plot()._repr_png_().startswith(b"\x89PNG")
    assert repr(comparison) == f"Comparison({comparison.sentence!r})"


@pytest.mark.parametrize(
    ("name", "label"), [("mrr@10", "MRR@10"), ("ndcg@5", "nDCG@5"), ("map@3", "MAP@3"), ("recall@1", "recall@1"), ("hit@1", "hit@1")]
)
def test_metrics_are_written_as_people_write_them(name, label):
    assert metric_label(name) == label


def test_a_single_query_shows_nothing_however_large_its_gap():
    def scores(value):
        return Scores("m", ("q",), {"mrr@10": np.array([value])}, np.array([1]))

    found = compare_scores(scores(0.1), scores(1.0))
    assert found.verdict == "no difference shown"
    assert found.sentence.endswith("A difference under about 0.98 could not have been detected reliably on 1 query.")


# Several seeds


def trained(values, ranks=None):
    """Return the Scores of one seed with two metrics."""
    values = np.array(values, np.float64)
    ids = tuple(f"q{number}" for number in range(len(values)))
    ranks = np.ones(len(values), np.int64) if ranks is None else np.array(ranks)
    return Scores("tuned", ids, {"recall@1": values, "mrr@10": values}, ranks)


def three_seeds(spread, n=200, gain=0.1):
    """Return (base, three trainings of it), the second worse and the third better than the first by ``spread``."""
    base = np.tile([0.2, 0.3, 0.4, 0.5], n // 4)
    tuned = base + np.random.default_rng(0).normal(gain, 0.05, n)
    return trained(base), [trained(tuned + shift) for shift in (0, -spread, spread)]


def test_one_seed_in_a_list_is_that_seed_alone():
    base, [tuned, *_] = three_seeds(0.1)
    alone, listed = compare_scores(base, tuned), compare_scores(base, [tuned])
    assert listed.differences == alone.differences
    assert listed.tuned is tuned
    assert listed.seeds is None


def test_seeds_are_averaged_for_each_query_before_anything_is_counted():
    # The first query is won by one seed and lost by the other, the second won by one alone, the third lost by both.
    found = compare_scores(trained([0.5, 0.5, 0.5]), [trained([1, 1, 0]), trained([0, 0.5, 0])])
    assert (found["mrr@10"].wins, found["mrr@10"].ties, found["mrr@10"].losses) == (1, 1, 1)
    assert found.tuned.values["mrr@10"] == pytest.approx([0.5, 0.75, 0])
    assert found.seeds.count == 2
    assert found.seeds.means["mrr@10"] == (2 / 3, 0.5 / 3)
    assert found.seeds.spread["mrr@10"] == pytest.approx(0.5 / np.sqrt(2))
    # The gaps of the mean are 0, 1/4 and -1/2.
    assert found.seeds.query_error["mrr@10"] == pytest.approx(np.std([0, 0.25, -0.5], ddof=1) / np.sqrt(3))


def test_a_querys_rank_is_the_median_of_the_seeds_and_of_two_middle_ones_the_worse():
    ranks = [[1, 1, 0, 2], [1, 3, 0, 0], [5, 2, 1, 1]]
    runs = [trained([0.5] * 4, row) for row in ranks]
    assert compare_scores(runs[0], runs).tuned.ranks.tolist() == [1, 2, 0, 2]
    assert compare_scores(runs[0], runs[:2]).tuned.ranks.tolist() == [1, 3, 0, 0]


def test_the_interval_covers_the_choice_of_seeds():
    widths, ps = [], []
    for spread in (0, 0.02, 0.1):
        found = compare_scores(*three_seeds(spread))["mrr@10"]
        assert found.difference == pytest.approx(0.1, abs=0.01)
        widths.append(found.high - found.low)
        ps.append(found.p)
    assert widths[0] < widths[1] < widths[2]
    assert ps[0] < 0.001
    assert ps[2] > 0.05
    # Seeds of 0, -0.1 and 0.1 alone, with two degrees of freedom: the error of the queries is under a tenth of theirs.
    assert widths[2] / 2 == pytest.approx(scipy.stats.t.ppf(0.975, 2) * 0.1 / np.sqrt(3), rel=0.06)


def test_seeds_that_agree_change_nothing():
    base, runs = three_seeds(0)
    alone, found = compare_scores(base, runs[0])["mrr@10"], compare_scores(base, runs)["mrr@10"]
    assert (found.low, found.high, found.detectable) == pytest.approx((alone.low, alone.high, alone.detectable))


def test_the_sentence_says_what_seeds_and_queries_come_to():
    base, runs = three_seeds(0.02)
    sentence = compare_scores(base, runs, held_out=True).sentence
    assert "on 200 held-out queries, mean of 3 seeds: " in sentence
    assert sentence.endswith(" worse. Standard deviation over seeds 0.020, standard error over queries 0.003.")


def test_a_comparison_of_seeds_is_read_back_from_json():
    base, runs = three_seeds(0.02)
    for found in (compare_scores(base, runs, metric="recall@1", held_out=True), compare_scores(base, runs[0])):
        read = Comparison.from_dict(json.loads(json.dumps(found.to_dict())), found.base, found.tuned)
        assert replace(read, base=found.base, tuned=found.tuned) == found
        assert read.sentence == found.sentence


def test_a_comparison_of_another_version_is_refused_in_one_line():
    found = compare_scores(scores_of([0, 0.5]), scores_of([1, 0.5]))
    said = found.to_dict()
    del said["differences"][0]["detectable"]
    with pytest.raises(
        EmbedfitError, match="the comparison has no key 'detectable': another version of embedfit wrote it; fix: run the comparison again"
    ):
        Comparison.from_dict(said, found.base, found.tuned)


def test_seeds_of_other_queries_and_no_seed_at_all_are_refused():
    with pytest.raises(EmbedfitError, match="only scores of the same queries"):
        compare_scores(trained([1, 1]), [trained([1, 1]), trained([1, 1, 1])])
    with pytest.raises(EmbedfitError, match="there are no scores to compare with"):
        compare_scores(trained([1, 1]), [])


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_whisker_spans_the_interval_over_the_bases_level(seeds):
    base, runs = three_seeds(0.02)
    found = compare_scores(base, runs[:seeds])
    axes = found.plot().axes[0]
    [bars] = [container for container in axes.containers if isinstance(container, ErrorbarContainer)]
    [whisker] = bars.lines[2][0].get_segments()
    recall = found["recall@1"]
    assert whisker[:, 1] == pytest.approx([recall.base + recall.low, recall.base + recall.high])
    dots = [line for line in axes.lines if line.get_label() == "one seed"]
    assert [sorted(line.get_ydata()) for line in dots] == ([sorted(found.seeds.means["recall@1"])] if seeds > 1 else [])


# Several comparisons


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


# Queries that belong together


def grouped(values, groups, name="model"):
    return replace(scores_of(values, name), groups=np.array(groups))


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


# The best of several


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


def test_of_thirteen_equal_models_the_first_is_rarely_called_worse_than_the_best():
    alone = together = 0
    for values in SIMULATION["equal_rungs"](np.random.default_rng(0), 65, 13, 150):
        scores = [scores_of(column) for column in values.T]
        best = max(scores, key=lambda one: one.mean("mrr@10"))
        alone += not not_worse(best, scores[0])
        together += not may_be_best(scores)[0]
    assert scipy.stats.binomtest(together, 150, 0.025, alternative="greater").pvalue > 0.01
    assert alone > 4 > together  # as it was: compared with whichever model happens to lead


# By simulation; benchmarks/verdict.py does the same for more shapes and more queries


@pytest.mark.parametrize("n", [20, 65])
@pytest.mark.parametrize("name", SIMULATION["SHAPES"])
def test_without_a_true_difference_better_and_worse_are_said_in_at_most_one_case_of_forty(name, n):
    gaps = SIMULATION["SHAPES"][name].draw(np.random.default_rng(0), n, 500)
    for wrong in SIMULATION["ours"](gaps, 0):
        assert scipy.stats.binomtest(int(wrong), 500, 0.025, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("correlation", [0, 0.3, 1])
@pytest.mark.parametrize("sizes", SIMULATION["SIZES"])
def test_groups_of_queries_do_not_make_the_verdict_false(sizes, correlation):
    gaps_shape = SIMULATION["SHAPES"]["MRR, gains and losses of many sizes, skewed"]
    gaps, groups = SIMULATION["in_groups"](gaps_shape, np.random.default_rng(0), SIMULATION["SIZES"][sizes], correlation, 400)
    found = evidence(gaps[None], groups=groups)
    for wrong in (found.low > 0, found.high < 0):
        assert scipy.stats.binomtest(int(wrong.sum()), 400, 0.025, alternative="greater").pvalue > 0.01


def test_queries_of_a_group_taken_for_independent_make_the_verdict_false():
    gaps_shape = SIMULATION["SHAPES"]["MRR, half of them change"]
    gaps, groups = SIMULATION["in_groups"](gaps_shape, np.random.default_rng(0), np.full(20, 15), 1, 400)
    assert SIMULATION["ours"](gaps, 0).sum() > 100
    assert SIMULATION["ours"](gaps, 0, groups).sum() <= 20


def test_what_is_detectable_is_detected_in_about_four_cases_of_five():
    shape = SIMULATION["SHAPES"]["recall@1, half of them change"].better_by(0.2)
    found = evidence(shape.draw(np.random.default_rng(0), 128, 1000)[None])
    assert found.detectable.mean() == pytest.approx(0.2, abs=0.015)
    assert ((found.low > 0) & (found.p < 0.05)).mean() == pytest.approx(0.8, abs=0.06)


def test_seeds_that_differ_more_than_queries_do_not_make_the_verdict_false():
    gaps = SIMULATION["of_seeds"](np.random.default_rng(0), 65, 500, 3, 0.1)
    assert SIMULATION["ours"](gaps, 0).max() <= 13
    assert SIMULATION["ours"](gaps.mean(axis=0), 0).max() > 30  # as it would be if seeds were ignored


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
