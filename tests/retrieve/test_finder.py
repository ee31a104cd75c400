import numpy as np
import pytest

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.errors import ConfigError, DataError
from embedfit.retrieve.finder import Finder, Hit
from embedfit.retrieve.rerank import RerankedRetriever
from embedfit.retrieve.retrievers import BM25Retriever, DenseRetriever, FusedRetriever, VectorIndex
from embedfit.retrieve.run import Run
from embedfit.searcher.fit import SearcherRetriever, fit_searcher
from embedfit.tune.index import class_centroids

COLOURS = {"car": (1, 0), "bike": (0.6, 0.8), "boat": (0, 1), "ship": (0, 1)}


class Plane:
    """Places words on the unit circle, and counts the texts of either kind."""

    name = fingerprint = "plane"

    def __init__(self):
        self.encoded = {"query": 0, "document": 0}

    def encode(self, texts, kind):
        self.encoded[kind] += len(texts)
        return np.array([COLOURS[text.split()[-1]] for text in texts], np.float32)


def garage():
    corpus = {
        "d1": Document("d1", "boat", "Afloat", {"wheels": 0}),
        "d2": Document("d2", "car", metadata={"wheels": 4}),
        "d0": Document("d0", "ship"),
        "d3": Document("d3", "bike", metadata={"wheels": 2}),
    }
    queries = {f"q{n}": Query(f"q{n}", f"a {word}") for n, word in enumerate(["car", "car", "bike", "bike"])}
    return Dataset(queries, corpus, {"q0": {"d2": 1}, "q1": {"d2": 1}, "q2": {"d3": 1}, "q3": {"d3": 1}})


def test_a_text_finds_documents_with_their_scores_texts_and_fields():
    hits = DenseRetriever(Plane(), "a {text}").over(garage()).find("red car", k=2)
    assert hits == [
        Hit("d2", 1.0, "a car", {"wheels": 4}),
        Hit("d3", pytest.approx(0.6), "a bike", {"wheels": 2}),
    ]


def test_ties_are_in_order_of_id_and_a_title_is_one_of_the_fields():
    hits = DenseRetriever(Plane(), "{text}").over(garage()).find("boat", k=10)
    assert [(hit.id, hit.metadata) for hit in hits[:2]] == [("d0", {}), ("d1", {"title": "Afloat", "wheels": 0})]
    assert [hit.score for hit in hits] == pytest.approx([1, 1, 0.8, 0])


def test_many_texts_have_the_hits_of_each_alone():
    finder = DenseRetriever(Plane()).over(garage())
    car, boat = finder.find_many(("car", "boat"), k=3)
    assert (car, boat) == (finder.find("car", 3), finder.find("boat", 3))
    assert [hit.id for hit in boat] == ["d0", "d1", "d3"]
    assert finder.find_many([]) == []


def test_documents_are_encoded_once_however_many_texts_are_looked_for():
    encoder = Plane()
    finder = FusedRetriever(DenseRetriever(encoder), BM25Retriever()).over(garage())
    for text in ("car", "bike", "boat"):
        finder.find(text)
    assert encoder.encoded == {"query": 3, "document": 4}


def test_bm25_finds_nothing_for_unknown_words():
    finder = BM25Retriever().over(garage())
    assert [hit.id for hit in finder.find("ship or car")] == ["d0", "d2"]
    assert finder.find("train") == []


class Backwards:
    """Gives documents that come late in the alphabet the higher score."""

    name = "backwards"

    def score(self, pairs):
        return np.array([ord(document[0]) for _, document in pairs], np.float32)


def test_every_retriever_finds(tmp_path):
    data, encoder = garage(), Plane()
    dense, words = DenseRetriever(encoder), BM25Retriever()
    first = {
        dense: "d2",
        words: "d2",
        FusedRetriever(dense, words): "d2",
        RerankedRetriever(dense, Backwards()): "d0",  # "ship" comes last in the alphabet
        class_centroids(encoder, data).retriever: "d2",
        SearcherRetriever(fit_searcher(data, encoder), "searcher"): "d2",
    }
    for retriever, id in first.items():
        finder = retriever.over(data)
        assert (finder.name, finder.find("a car", 1)[0].id) == (retriever.name, id)


def test_a_prepared_retriever_ranks_alike(word_encoder):
    data = garage()
    dense, words = DenseRetriever(word_encoder), BM25Retriever()
    for retriever in (dense, words, FusedRetriever(dense, words), RerankedRetriever(words, Backwards())):
        whole, prepared = retriever.search(data, 3), retriever.prepared(data).search(data, 3)
        assert prepared.to_dict() == whole.to_dict()


def test_an_index_refuses_other_documents():
    index = VectorIndex(Plane(), np.eye(2, dtype=np.float32), ("a", "b"), "index")
    with pytest.raises(DataError, match="another corpus"):
        index.search(garage(), 1)
    fewer = Dataset({}, {"d1": garage().corpus["d1"]}, {})
    with pytest.raises(DataError, match="another corpus"):
        BM25Retriever().prepared(garage()).search(fewer, 1)


def test_a_users_own_retriever_finds_too():
    class Alphabet:
        name = "alphabet"

        def search(self, dataset, k):
            return Run.from_dict({query: {id: -place for place, id in enumerate(sorted(dataset.corpus)[:k])} for query in dataset.queries})

    hits = Finder(Alphabet(), garage(), "{text}!").find("any", 2)
    assert [(hit.id, hit.score, hit.text) for hit in hits] == [("d0", 0, "ship!"), ("d1", -1, "boat!")]
    both = FusedRetriever(Alphabet(), DenseRetriever(Plane(), "the {text}")).over(garage())
    assert both.find("car", 1)[0].text == "the ship"  # 1/61 + 1/63, before 1/63 + 1/61: a tie, in order of id


def test_a_query_is_never_taken_for_a_document_with_its_number():
    text = "a long text that a query and a document have in common"
    corpus = {"1": Document("1", text), "_1": Document("_1", text), "2": Document("2", "something else")}
    assert [hit.id for hit in BM25Retriever().over(Dataset({}, corpus, {})).find(text)] == ["1", "_1"]


def test_a_query_that_is_not_a_text_and_a_k_of_zero_are_refused():
    finder = BM25Retriever().over(garage())
    with pytest.raises(ConfigError, match="k is 0; expected the number of documents to find"):
        finder.find("car", 0)
    with pytest.raises(DataError, match="query 2: is of type int"):
        finder.find_many(["car", 5])
    with pytest.raises(DataError, match="query 1: is of type list"):
        finder.find(["car"])
    with pytest.raises(DataError, match=r"are one text.*find\(\) takes one"):
        finder.find_many("car")
