import numpy as np
import pytest
import pytrec_eval

from embedfit.errors import ConfigError
from embedfit.evaluation.score import Scores, score_run
from embedfit.metrics import METRICS, check_metric
from embedfit.retrieve.run import Run

LOG3, LOG5 = np.log2(3), np.log2(5)


def run_of(rankings):
    """Return the Run of {query id: document ids, best first}, all of one length."""
    documents = sorted({id for ranking in rankings.values() for id in ranking} | {"unseen"})
    ranked = np.array([[documents.index(id) for id in ranking] for ranking in rankings.values()])
    return Run(tuple(rankings), tuple(documents), ranked, np.zeros(ranked.shape, np.float32))


def values_at(scores, k):
    """Return {metric: value of the only query} at k."""
    return {metric: scores.values[f"{metric}@{k}"].item() for metric in METRICS}


def test_one_relevant_document_at_rank_two():
    scores = score_run(run_of({"q": ["x", "a", "y"]}), {"q": {"a": 1}}, ks=(1, 2, 3))
    assert values_at(scores, 1) == dict.fromkeys(METRICS, 0)
    assert values_at(scores, 2) == pytest.approx({"recall": 1, "mrr": 1 / 2, "ndcg": 1 / LOG3, "hit": 1, "precision": 1 / 2, "map": 1 / 2})
    assert values_at(scores, 3) == pytest.approx({"recall": 1, "mrr": 1 / 2, "ndcg": 1 / LOG3, "hit": 1, "precision": 1 / 3, "map": 1 / 2})
    assert scores.ranks.tolist() == [2]


def test_several_graded_documents_of_which_one_is_not_found():
    # Ranking: nothing, grade 3, nothing, grade 1; grade 2 is not found; y is judged and not relevant.
    scores = score_run(run_of({"q": ["x", "a", "y", "c"]}), {"q": {"a": 3, "unseen": 2, "c": 1, "y": 0}}, ks=(1, 2, 4, 10))
    ideal = 3 + 2 / LOG3 + 1 / 2
    assert values_at(scores, 1) == dict.fromkeys(METRICS, 0)
    assert values_at(scores, 2) == pytest.approx(
        {"recall": 1 / 3, "mrr": 1 / 2, "ndcg": (3 / LOG3) / (3 + 2 / LOG3), "hit": 1, "precision": 1 / 2, "map": (1 / 2) / 3}
    )
    at_4 = {"recall": 2 / 3, "mrr": 1 / 2, "ndcg": (3 / LOG3 + 1 / LOG5) / ideal, "hit": 1, "precision": 2 / 4, "map": (1 / 2 + 2 / 4) / 3}
    assert values_at(scores, 4) == pytest.approx(at_4)
    # A k below the end of the ranking finds no more, and precision still divides by k.
    assert values_at(scores, 10) == pytest.approx({**at_4, "precision": 2 / 10})


def test_the_best_ranking_has_ones_everywhere():
    scores = score_run(run_of({"q": ["a", "b", "x"]}), {"q": {"a": 2, "b": 1}}, ks=(2,))
    assert values_at(scores, 2) == dict.fromkeys(METRICS, 1)


def test_a_query_for_which_nothing_is_found_has_zeros_and_no_rank():
    scores = score_run(run_of({"q": ["x", "y"]}), {"q": {"unseen": 1}}, ks=(1, 10))
    assert values_at(scores, 1) == values_at(scores, 10) == dict.fromkeys(METRICS, 0)
    assert scores.ranks.tolist() == [0]


def test_scores_are_kept_per_query_and_averaged_last():
    run = run_of({"q1": ["a", "x"], "q2": ["x", "a"], "q3": ["x", "y"]})
    scores = score_run(run, {id: {"a": 1} for id in ("q1", "q2", "q3")}, ks=(1, 2), name="mine")
    assert scores.values["recall@1"].tolist() == [1, 0, 0]
    assert scores.values["mrr@2"].tolist() == [1, 0.5, 0]
    assert scores.mean("mrr@2") == 0.5
    assert scores.ranks.tolist() == [1, 2, 0]
    frame = scores.to_frame()
    assert len(frame) == 12
    row = frame[(frame.metric == "mrr") & (frame.k == 2)].iloc[0]
    assert (row.model, row.value) == ("mine", 0.5)
    assert "0.500" in scores._repr_html_()


KS = (1, 2, 3, 5, 10, 30)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("highest", [1, 3])
def test_every_metric_is_trec_evals(seed, highest):
    rng = np.random.default_rng([seed, highest])
    documents = [f"d{number:02}" for number in range(40)]
    rankings = {f"q{number}": rng.permutation(documents)[:20].tolist() for number in range(50)}
    qrels = {}
    for id in rankings:
        judged = rng.permutation(documents)[: rng.integers(1, 15)]
        qrels[id] = {str(document): int(rng.integers(0, highest + 1)) for document in judged}
        qrels[id][str(judged[0])] = int(rng.integers(1, highest + 1))
    ranked = np.array([[documents.index(id) for id in ranking] for ranking in rankings.values()])
    scores = score_run(Run(tuple(rankings), tuple(documents), ranked, np.zeros(ranked.shape, np.float32)), qrels, ks=KS)

    def by_trec_eval(measures, depth):
        run = {id: {document: float(-rank) for rank, document in enumerate(ranking[:depth])} for id, ranking in rankings.items()}
        found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
        return [found[id] for id in rankings]

    cuts = ",".join(map(str, KS))
    names = {"recall": "recall", "ndcg": "ndcg_cut", "precision": "P", "map": "map_cut", "hit": "success"}
    whole = by_trec_eval({f"{name}.{cuts}" for name in names.values()}, 20)
    for k in KS:
        for ours, theirs in names.items():
            np.testing.assert_allclose(scores.values[f"{ours}@{k}"], [row[f"{theirs}_{k}"] for row in whole], atol=1e-9, rtol=0)
        cut = by_trec_eval({"recip_rank"}, k)
        np.testing.assert_allclose(scores.values[f"mrr@{k}"], [row["recip_rank"] for row in cut], atol=1e-9, rtol=0)


@pytest.mark.parametrize("ks", [(), (0,), (5, -1)])
def test_a_k_that_cuts_nothing_is_refused(ks):
    with pytest.raises(ConfigError, match="expected whole numbers of at least 1"):
        score_run(run_of({"q": ["a"]}), {"q": {"a": 1}}, ks=ks)


def test_a_run_without_queries_is_refused():
    empty = np.zeros((0, 1), np.int64)
    with pytest.raises(ConfigError, match="there are no queries to score"):
        score_run(Run((), ("a",), empty, empty.astype(np.float32)), {})


@pytest.mark.parametrize("qrels", [{"q": {"a": 0}}, {"q": {}}, {}])
def test_a_query_without_a_relevant_document_is_refused_instead_of_scored_as_nan(qrels):
    with pytest.raises(ConfigError, match="query 'q' has no relevant document"):
        score_run(run_of({"q": ["a"]}), qrels)


def test_only_metrics_that_are_computed_are_accepted():
    check_metric("mrr@10", (1, 10))
    for name in ("mrr@5", "mrr", "MRR@10", "mrr@", "@10", "mrr@x", "mrr@10@10"):
        with pytest.raises(ConfigError, match=r"expected one of recall, mrr, ndcg, hit, precision, map at one of \[1, 10\]"):
            check_metric(name, (1, 10))


def test_the_scores_of_some_queries_are_theirs_in_every_figure_and_in_the_order_asked_for():
    scores = Scores("m", ("a", "b", "c"), {"mrr@10": np.array([1.0, 0.5, 0.0])}, np.array([1, 2, 0]))
    some = scores.select(["c", "a"])
    assert (some.name, some.query_ids, some.ranks.tolist()) == ("m", ("c", "a"), [0, 1])
    assert some.values["mrr@10"].tolist() == [0.0, 1.0]
