import numpy as np
import pytest

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.split import split_dataset
from embedfit.errors import DataError
from embedfit.evaluation.score import score_run
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.tune.frozen import AdapterConfig
from embedfit.tune.index import class_centroids, tuned_documents

METHODS = [tuned_documents, class_centroids]


class Table:
    """An encoder that looks its vectors up."""

    name = fingerprint = "table"

    def __init__(self, queries, documents):
        self.known = {"query": queries, "document": documents}

    def encode(self, texts, kind):
        return np.array([self.known[kind][text] for text in texts], np.float32)


def flat():
    """Two documents on the axes of a plane and one between; two training queries near the first, one for the second."""
    documents = {"a": (1, 0), "b": (0, 1), "c": (0.6, 0.8)}
    queries = {"q1": (0.8, 0.6), "q2": (0.6, 0.8), "q3": (0, 1), "new": (0.96, 0.28)}
    data = Dataset(
        {id: Query(id, id) for id in ("q1", "q2", "q3")},
        {id: Document(id, id) for id in ("c", "b", "a")},  # not in order of id
        {"q1": {"a": 1}, "q2": {"a": 3, "b": 1}, "q3": {"b": 2}},
    )
    return data, Table(queries, documents), Dataset({"new": Query("new", "new")}, data.corpus, {"new": {"a": 1}})


def test_centroids_by_hand():
    data, encoder, _ = flat()
    found = class_centroids(encoder, data, prior=2).retriever
    # a: 2 (1, 0) + (0.8, 0.6) + (0.6, 0.8); b: 2 (0, 1) + (0.6, 0.8) + (0, 1); c has no query and stays.
    expected = np.array([(3.4, 1.4), (0.6, 3.8), (0.6, 0.8)])
    assert found.document_ids == ("a", "b", "c")
    np.testing.assert_allclose(found.vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)


def test_the_larger_the_prior_the_nearer_a_centroid_is_to_its_document():
    data, encoder, _ = flat()
    found = class_centroids(encoder, data, prior=1e6).retriever
    np.testing.assert_allclose(found.vectors, [(1, 0), (0, 1), (0.6, 0.8)], atol=1e-5)


def test_tuned_documents_move_towards_their_queries_and_stay_of_unit_length():
    data, encoder, _ = flat()
    found = tuned_documents(encoder, data).retriever
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-6)
    towards = np.array([0.8, 0.6])
    assert found.vectors[0] @ towards > np.array([1, 0]) @ towards


def test_without_steps_all_documents_stay():
    data, encoder, new = flat()
    found = tuned_documents(encoder, data, config=AdapterConfig(steps=0)).retriever
    np.testing.assert_allclose(found.vectors, [(1, 0), (0, 1), (0.6, 0.8)], atol=1e-6)
    np.testing.assert_array_equal(found.search(new, 3).ranked, DenseRetriever(encoder).search(new, 3).ranked)


@pytest.mark.parametrize("method", METHODS)
def test_held_out_queries_find_more_on_the_bundled_transactions(method, transactions, word_encoder):
    split = split_dataset(transactions, seed=0)
    train, test = transactions.select(split.train), transactions.select(split.test)

    def mrr(retriever):
        return score_run(retriever.search(test, 10), test.qrels).mean("mrr@10")

    assert mrr(method(word_encoder, train).retriever) > mrr(DenseRetriever(word_encoder)) + 0.1


@pytest.mark.parametrize("method", METHODS)
def test_the_same_call_gives_the_same_ranking_and_a_name_of_its_own(method, transactions, word_encoder):
    runs = [method(word_encoder, transactions).retriever.search(transactions, 5) for _ in range(2)]
    np.testing.assert_array_equal(runs[0].ranked, runs[1].ranked)
    np.testing.assert_array_equal(runs[0].scores, runs[1].scores)
    assert method(word_encoder, transactions).retriever.name not in {word_encoder.name} | {
        other(word_encoder, transactions).retriever.name for other in METHODS if other is not method
    }


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_corpus_does_not_matter(method):
    data, encoder, new = flat()
    turned = Dataset(data.queries, dict(reversed(data.corpus.items())), data.qrels)
    first, second = (method(encoder, one).retriever.search(new, 3) for one in (data, turned))
    assert first.document_ids == second.document_ids
    np.testing.assert_array_equal(first.ranked, second.ranked)
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_another_corpus_is_refused(method):
    data, encoder, new = flat()
    fewer = Dataset(new.queries, {"a": new.corpus["a"]}, new.qrels)
    with pytest.raises(DataError, match="has another corpus"):
        method(encoder, data).retriever.search(fewer, 1)


@pytest.mark.parametrize("method", METHODS)
def test_the_seconds_are_counted(method):
    data, encoder, _ = flat()
    assert 0 <= method(encoder, data).seconds < 60
