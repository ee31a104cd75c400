"""A comparison, its verdict and its sentence."""

import json

import numpy as np
import pytest
from comparisons import compared, random_pair, scores_of

from embedfit.errors import EmbedfitError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison, Difference
from embedfit.evaluation.score import Scores
from embedfit.metrics import metric_label


def test_wins_ties_losses_and_means_of_four_queries():
    found = compared([0, 0.5, 1, 1], [1, 0.5, 0.5, 1])
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)
    assert (found.base, found.tuned, found.difference) == (0.625, 0.75, 0.125)


def test_a_difference_of_rounding_alone_is_a_tie():
    for found in (compared([0.3, 0.5], [0.1 + 0.2, 0.5]), compared([0.1 + 0.2, 0.5], [0.3, 0.5])):
        assert (found.wins, found.ties, found.losses) == (0, 2, 0)


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
