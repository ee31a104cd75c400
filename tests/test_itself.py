"""A query that is itself a document, as where similar tickets are looked for with a ticket: it does not find itself."""

import numpy as np
import pytest
import torch
from bm25s.stopwords import STOPWORDS_EN

from embedfit.config import StoreConfig
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.duplicates import queries_that_are_documents
from embedfit.encode.adapted import Adapter
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.score import score_run
from embedfit.report.tables import per_query
from embedfit.retrieve.exact import top_k
from embedfit.retrieve.rerank import RerankedRetriever, rerank
from embedfit.retrieve.retrievers import BM25Retriever, DenseRetriever, FusedRetriever
from embedfit.retrieve.run import without_own
from embedfit.searcher.fit import SearcherRetriever, fit_searcher
from embedfit.studies.forms import _Measured
from embedfit.studies.suspects import find_suspects
from embedfit.track.tracker import Tracker
from embedfit.tune.adapter import _dev_scores
from embedfit.tune.candidates import AllDocuments, BatchAndOthers
from embedfit.tune.index import class_centroids
from embedfit.tune.loss import multi_positive_softmax
from embedfit.tune.mine import Guards, mine

TICKETS = {
    "t1": "printer on floor two prints blank pages",
    "t2": "printer on floor three prints blank sheets",
    "t3": "cannot log in to the payroll portal",
    "t4": "payroll portal rejects my log in",
    "t5": "order new toner for the printer",
}
SIMILAR = {"t1": {"t2": 1}, "t2": {"t1": 1}, "t3": {"t4": 1}, "t4": {"t3": 1}}


def tickets(extra=()):
    """Each judged ticket as a query, on a corpus of all tickets; and queries that are no ticket."""
    queries = {id: Query(id, TICKETS[id].upper()) for id in SIMILAR} | {id: Query(id, text) for id, text, _ in extra}
    corpus = {id: Document(id, text) for id, text in reversed(TICKETS.items())}
    return Dataset(queries, corpus, SIMILAR | {id: {answer: 1} for id, _, answer in extra})


class Alike:
    """A reranker that likes best what says the same."""

    name = "alike"

    def score(self, pairs):
        return np.array([len(set(query.lower().split()) & set(text.split())) for query, text in pairs], np.float32)


def words(text):
    return set(text.split()) - set(STOPWORDS_EN)


def retrievers(encoder, data):
    return {
        "dense": DenseRetriever(encoder),
        "BM25": BM25Retriever(),
        "hybrid": FusedRetriever(DenseRetriever(encoder), BM25Retriever()),
        "reranked": RerankedRetriever(BM25Retriever(), Alike()),
        "engine": DenseRetriever(encoder, search=lambda *vectors: top_k(*vectors)),
        "centroids": class_centroids(encoder, data).retriever,
        **{name: SearcherRetriever(fit_searcher(data, encoder, views=views), name) for name, views in SEARCHERS.items()},
    }


SEARCHERS = {"examples": ("documents", "examples"), "words": ("words",), "searcher": ("documents", "examples", "words")}
NAMES = ["dense", "BM25", "hybrid", "reranked", "engine", "centroids", *SEARCHERS]


@pytest.mark.parametrize("k", [1, 3, 4, 5, 100])
@pytest.mark.parametrize("name", NAMES)
def test_no_retriever_finds_the_query_itself_and_each_finds_as_much_as_it_should(name, k, word_encoder):
    data = tickets()
    run = retrievers(word_encoder, data)[name].search(data, k)
    assert run.ranked.shape == run.scores.shape == (4, min(k, 4))
    for id in data.queries:
        assert id not in run.documents(id)
        # A search for words finds what has one of the query's words, and that alone.
        sharing = sum(bool(words(TICKETS[id]) & words(text)) for other, text in TICKETS.items() if other != id)
        assert len(set(run.documents(id))) == min(k, sharing if name in ("BM25", "reranked") else 4)
    assert (np.diff(run.scores, axis=1) <= 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_similar_ticket_is_first(name, word_encoder):
    data = tickets()
    assert score_run(retrievers(word_encoder, data)[name].search(data, 3), data.qrels, ks=(1,)).mean("recall@1") == 1


@pytest.mark.parametrize("name", ["dense", "BM25", "hybrid", "reranked"])
def test_a_query_that_is_no_document_finds_what_it_would_without_the_others(name, word_encoder):
    extra = [("t5", "who can reset my password", "t3"), ("new", "printer prints nothing", "t1")]  # t5 by its id alone
    data = tickets(extra)
    alone = data.select(["t5", "new"])
    run, expected = (retrievers(word_encoder, data)[name].search(some, 3) for some in (data, alone))
    assert [run.documents(id) for id in ("t5", "new")] == [expected.documents(id) for id in ("t5", "new")]
    np.testing.assert_array_equal(run.scores[4:], expected.scores)


def is_document(query, text, title="", answer="other"):
    corpus = {"1": Document("1", text, title), "other": Document("other", "else")}
    return queries_that_are_documents(Dataset({"1": Query("1", query)}, corpus, {"1": {answer: 1}})) == {"1"}


@pytest.mark.parametrize(
    ("query", "text", "title"),
    [
        ("Reset it!", "reset it", ""),
        ("Reset my password", "Since Monday I cannot log in.", "Reset my password"),  # its title
        ("Reset: since Monday I cannot log in", "Since Monday I cannot log in.", "Reset"),  # title and text
        ("Since Monday I cannot log in", "Since Monday I cannot log in. Please reset my password.", ""),  # its beginning
        ("From: me. Since Monday I cannot log in.", "Since Monday I cannot log in.", ""),  # and more than it
        (
            "one two three four five six seven eight nine ten eleven twelve",
            "one two 3 four five six seven eight nine ten eleven twelve",
            "",
        ),
    ],
)
def test_a_query_with_the_id_and_the_words_of_a_document_is_that_document(query, text, title):
    assert is_document(query, text, title)
    assert not is_document(query, text, title, answer="1")  # where it is right for itself, it is to be found


@pytest.mark.parametrize(
    ("query", "text", "title"),
    [
        ("how do I get a new card", "activate my card", ""),
        ("where is my card", "my card", ""),  # a short label within
        ("my card", "where is my card", ""),
        ("my card", "where is it", ""),
        ("?", "!", ""),
    ],
)
def test_an_id_in_common_by_chance_makes_a_query_no_document(query, text, title):
    assert not is_document(query, text, title)


@pytest.mark.parametrize("k", [2, 3, 10])
def test_where_one_query_is_a_document_the_others_lose_nothing(k, word_encoder, tmp_path):
    corpus = {id: Document(id, TICKETS[id]) for id in ("t1", "t2", "t3")}
    queries = {"t1": Query("t1", TICKETS["t1"]), "new": Query("new", "printer on floor three")}
    data = Dataset(queries, corpus, {"t1": {"t2": 1}, "new": {"t3": 1}})
    run = DenseRetriever(word_encoder).search(data, k)
    assert sorted(run.documents("t1")) == ["t2", "t3"]
    assert len(run.documents("new")) == min(k, 3)
    assert score_run(run, data.qrels, ks=(3,)).mean("recall@3") == (1 if k > 2 else 0.5)
    assert "" not in run.to_frame().document_id.tolist()
    pytest.importorskip("chromadb")
    from embedfit.store.live import LiveIndex
    from embedfit.store.open import open_store
    from embedfit.store.versions import index_documents

    with open_store(StoreConfig(kind="chroma", location=str(tmp_path / "index"))) as store:
        assert index_documents(store, data, word_encoder, k=k).recall == 1
        stored = LiveIndex(store, word_encoder).search(data, k)
    assert [stored.documents(id) for id in queries] == [run.documents(id) for id in queries]


def test_empty_places_are_read_by_nobody_and_shown_nowhere(word_encoder, tmp_path):
    data = tickets([("new", "zzz", "t3")])
    run = BM25Retriever().search(data, 5)
    again = rerank(run, data, Alike(), top=3)
    assert again.documents("new") == []
    assert {id: set(again.documents(id)) for id in SIMILAR} == {id: set(run.documents(id)) for id in SIMILAR}
    assert (np.diff(again.scores, axis=1) <= 0).all()
    only = data.select(["new"])
    assert rerank(BM25Retriever().search(only, 5), only, Alike()).documents("new") == []
    scores = score_run(run, data.qrels, ks=(1,))
    frame = per_query(data, compare_scores(scores, scores, metric="mrr@1"), run, run).set_index("query_id")
    assert (frame.base_found["new"], frame.base_found["t1"]) == ([], run.documents("t1")[:3])
    assert "new" not in find_suspects(data, run, run).query_id.tolist()
    tracker = Tracker("name", "run", tmp_path)
    tracker.add("BM25", data, run, scores, template="{text}")
    assert {row["query"]: len(row["retrieved"]) for row in tracker._rows}["zzz"] == 0


def test_numbered_queries_and_documents_lose_nothing(word_encoder):
    texts = ["tea", "coffee", "bus", "train"]
    corpus = {str(number): Document(str(number), text) for number, text in enumerate(texts)}
    data = Dataset({str(number): Query(str(number), f"a {texts[-number]}") for number in range(4)}, corpus, {})
    assert DenseRetriever(word_encoder).search(data, 10).ranked.shape == (4, 4)


def test_the_own_document_is_taken_out_of_each_row_and_the_last_where_there_is_none():
    positions, scores = np.array([[3, 1, 2], [1, 0, 2], [0, 2, 1]]), np.array([[3.0, 2, 1]] * 3, np.float32)
    ranked, left = without_own((positions, scores), np.array([3, -1, 1]), 2, 4)
    assert ranked.tolist() == [[1, 2], [1, 0], [0, 2]]
    assert left.tolist() == [[2, 1], [3, 2], [3, 2]]
    deep = np.random.default_rng(0).permutation(500)[None]
    left, _ = without_own((deep, -np.arange(500, dtype=np.float32)[None]), deep[:, 250], 499, 500)
    np.testing.assert_array_equal(left[0], np.delete(deep[0], 250))
    assert without_own((positions, scores), np.array([-1, -1, -1]), 2, 4)[0].tolist() == [[3, 1], [1, 0], [0, 2]]


@pytest.mark.parametrize("source", [AllDocuments, lambda data: BatchAndOthers(data, random=5, seed=0)])
def test_in_training_a_query_is_no_negative_of_itself(source):
    data = tickets()
    found = source(data).candidates([0, 2])
    ids = [list(data.corpus)[position] for position in found.documents]
    for row, id in zip(found.grades, ["t1", "t3"], strict=True):
        grades = dict(zip(ids, row.tolist(), strict=True))
        assert grades.pop(id) == -1
        assert {document for document, grade in grades.items() if grade} == set(SIMILAR[id])


def test_the_loss_does_not_see_what_is_not_compared():
    grades = torch.tensor([[1.0, -1.0, 0.0], [0.0, 1.0, 0.0]])
    logits = torch.tensor([[0.5, 9.0, 0.2], [0.1, 0.7, 0.3]], requires_grad=True)
    loss = multi_positive_softmax(logits, grades)
    loss.backward()
    assert logits.grad[0, 1] == 0
    there = [np.log1p(np.exp(0.2 - 0.5)), np.log(np.exp(0.1) + np.exp(0.7) + np.exp(0.3)) - 0.7]
    back = [np.log1p(np.exp(0.1 - 0.5)), 0]  # of the second document, the first query is no rival
    assert loss.item() == pytest.approx((sum(there) + 0.5 * sum(back)) / 2, abs=1e-6)


def test_a_query_is_not_mined_as_its_own_negative(word_encoder):
    data = tickets()
    # A margin that lets everything through: the query itself is the nearest of all.
    mined = mine(word_encoder, data, "{text}", count=4, guards=Guards(margin=5.0))
    for id, row in zip(data.queries, mined, strict=True):
        found = {list(data.corpus)[position] for position in row if position >= 0}
        assert found == set(TICKETS) - {id} - set(SIMILAR[id])


def test_an_adapter_is_scored_without_the_query_itself(word_encoder):
    scores = _dev_scores(word_encoder, tickets(), "{text}")(
        Adapter(np.eye(64, dtype=np.float32), np.zeros(64, np.float32), "words", "words")
    )
    assert scores.mean("recall@1") == 1


def test_forms_are_measured_without_the_query_itself(word_encoder):
    class Model:
        name = fingerprint = "words, as a model"
        folder, loading, loaded = "words", {}, type("Loaded", (), {"bf16": False})
        encode = word_encoder.encode

    measured = _Measured(Model(), tickets(), "{text}", "recall@1", 1)
    form = measured.searched("as measured", measured.search, 256)
    assert (form.value, form.difference) == (1.0, 0.0)


def test_a_store_does_not_find_the_query_itself(word_encoder, tmp_path):
    pytest.importorskip("chromadb")
    from embedfit.store.live import LiveIndex
    from embedfit.store.open import open_store
    from embedfit.store.versions import index_documents

    data = tickets()
    with open_store(StoreConfig(kind="chroma", location=str(tmp_path / "index"))) as store:
        index_documents(store, data, word_encoder, "{text}")
        run = LiveIndex(store, word_encoder).search(data, 3)
    exact = DenseRetriever(word_encoder, "{text}").search(data, 3)
    assert run.document_ids == exact.document_ids
    np.testing.assert_array_equal(run.ranked, exact.ranked)
