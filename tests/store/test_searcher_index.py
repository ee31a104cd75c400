"""A searcher in each store: answers as in memory, and what it is taught."""

import numpy as np
import pytest

from embedfit.data.dataset import Document
from embedfit.searcher.searcher import Searcher
from embedfit.store.live import LiveIndex
from embedfit.store.versions import index_searcher


@pytest.fixture(scope="session")
def in_memory(searcher_folder):
    return Searcher.load(searcher_folder)


@pytest.fixture
def asked(transactions):
    """Texts of queries that are no examples."""
    return [transactions.queries[id].text for id in transactions.judged[226::20]]


def same_hits(hits, expected):
    assert [hit.id for hit in hits] == [hit.id for hit in expected]
    for name in ("score", "probability"):
        np.testing.assert_allclose([getattr(hit, name) for hit in hits], [getattr(hit, name) for hit in expected], atol=2e-4)
    for hit, other in zip(hits, expected, strict=True):
        assert (hit.text, hit.metadata) == (other.text, other.metadata)
        assert [(reason.kind, reason.text) for reason in hit.because] == [(reason.kind, reason.text) for reason in other.because]
        scores = [[reason.score or 0 for reason in hits.because] for hits in (hit, other)]
        np.testing.assert_allclose(*scores, atol=1e-5)


def test_a_store_answers_as_the_searcher_in_memory_also_after_it_was_taught(store, searcher_folder, in_memory, asked, transactions):
    held_out = transactions.select(transactions.judged[226:])
    found = index_searcher(store, searcher_folder, {query.id: query.text for query in held_out.queries.values()})
    assert (found.documents, found.examples, found.written) == (27, 226, 253)
    assert found.recall == pytest.approx(1, abs=0.005)
    index = LiveIndex(store)
    for text in asked:
        same_hits(index.find(text, 4), in_memory.search(text, 4))
    record = {"merchant_name": "Uber", "memo": "to the airport"}
    same_hits(index.find(record, 3), in_memory.search(record, 3))
    exact = in_memory.rank(held_out, 10)
    run = index.search(held_out, 10)
    assert run.query_ids == exact.query_ids
    np.testing.assert_allclose(run.scores, exact.scores, atol=2e-4)

    other = LiveIndex(store)
    other.version()
    index.add_document(Document("Zoo", "Zoo", "", {"category": "Zoo animals and their food", "kind": "new"}))
    [_] = other.find("hay for the elephants of the zoo", 1)
    keys = [index.add(text, "Zoo") for text in ("hay for elephants", "fish for the penguins", "zoo keeper")]
    came = transactions.judged[0]
    index.remove(came)  # an example that came with the version
    index.add("lunch with the zoo keeper", "Zoo", key=transactions.judged[1])  # in place of one that came with it
    index.remove(keys[2])
    expected = other.version().exact().searcher
    assert len(expected.parts.examples.query_ids) == 226 - 1 + 2
    for text in [*asked, "penguins", transactions.queries[came].text]:
        same_hits(other.find(text, 4), expected.search(text, 4))
    assert other.find("fish for penguins", 1)[0].id == "Zoo"
    assert other.find("fish for penguins", 1)[0].metadata == {"category": "Zoo animals and their food", "kind": "new"}
    np.testing.assert_allclose(index.search(held_out, 5).scores, other.version().exact().search(held_out, 5).scores, atol=2e-4)
    assert [hit.id for hit in other.find("fish", 5, {"kind": "new"})] == ["Zoo"]
