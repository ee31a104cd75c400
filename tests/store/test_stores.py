"""One contract for all stores."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from store_data import METADATA, STAMP, TEMPLATE, A, B, Numbers, named, numbered

from embedfit.errors import DamagedError, StorageError
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.store.base import Entry, Live
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import index_documents


def test_a_collection_gives_back_what_was_put_in(store):
    a = named(store, A)
    store.create(a, STAMP)
    entries = [Entry("id 1/\u00fc'\"", "first \u2028 text", METADATA), Entry("2", "second", {}), Entry("3", "third", {"year": 1999})]
    store.add(a, entries, np.eye(4, dtype=np.float32)[:3])
    store.finish(a)
    assert store.stamp(a) == STAMP
    assert store.ids(a) == {entry.id for entry in entries}
    back = store.entries(a, [entry.id for entry in entries])
    assert back == {entry.id: entry for entry in entries}
    assert store.collections() == [a]


def test_creating_a_collection_again_keeps_it(store):
    a = named(store, A)
    store.create(a, STAMP)
    store.add(a, [Entry("1", "one", {})], np.eye(4, dtype=np.float32)[:1])
    store.create(a, STAMP)
    assert store.ids(a) == {"1"}


def test_scores_are_cosine_similarities_best_first(store):
    a = named(store, A)
    store.create(a, STAMP)
    vectors = np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [-1, 0, 0, 0]], np.float32)
    store.add(a, [Entry(str(i), "x", {}) for i in range(3)], vectors)
    store.finish(a)
    found, second = store.nearest(a, np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32), 3, {})
    assert [id for id, _ in found] == ["0", "1", "2"]
    np.testing.assert_allclose([score for _, score in found], [1, 0.6, -1], atol=1e-6)
    assert second[0][0] == "1"
    assert second[0][1] == pytest.approx(0.8, abs=1e-6)


def test_the_live_name_goes_to_one_collection_and_back(store):
    a, b = named(store, A), named(store, B)
    assert store.live() == Live()
    for name in (a, b):
        store.create(name, STAMP)
    for live in (Live(a, ""), Live(b, a), Live(a, b), Live(b, "")):
        store.switch(live)
        assert store.live() == live


def test_all_of_it_is_there_when_the_store_is_opened_again(config):
    with open_store(config) as store:
        a = named(store, A)
        store.create(a, STAMP)
        store.add(a, [Entry("1", "one", {"k": "v"})], np.eye(4, dtype=np.float32)[:1])
        store.finish(a)
        store.switch(Live(a, ""))
    with open_store(config) as store:
        assert store.live() == Live(a, "")
        assert store.stamp(a) == STAMP
        assert store.entries(a, ["1"]) == {"1": Entry("1", "one", {"k": "v"})}


def test_a_dropped_collection_is_gone_and_only_collections_of_the_index_are_listed(store):
    a, b = named(store, A), named(store, B)
    for name in (a, b, f"{store.index}_notes", f"{store.index}_face", f"another_{a}"):
        store.create(name, STAMP)
    store.drop(a)
    assert store.collections() == [b]
    store.create(a, STAMP)
    assert store.ids(a) == set()


def test_vectors_of_another_dimension_are_refused_with_one_line(store):
    a = named(store, A)
    store.create(a, STAMP)
    store.add(a, [Entry("1", "one", {})], np.eye(4, dtype=np.float32)[:1])
    with pytest.raises(StorageError) as caught:
        store.add(a, [Entry("2", "two", {})], np.eye(5, dtype=np.float32)[:1])
    assert "\n" not in str(caught.value)
    assert store.ids(a) == {"1"}


@pytest.mark.parametrize("kind", ["chroma", "pgvector"])
def test_a_graph_gives_as_many_as_were_asked_for_and_all_that_a_filter_lets_through(config_of, kind):
    data, encoder = numbered(3000), Numbers(size=3000)
    odd = dataclasses.replace(data, qrels={}, corpus={id: one for id, one in data.corpus.items() if one.metadata["parity"] == "odd"})
    exact = DenseRetriever(encoder, TEMPLATE).search(odd.select(["q1"]), 60)
    with open_store(config_of(kind)) as store:
        index_documents(store, data, encoder, TEMPLATE)
        collection = store.live().current
        query = encoder.encode(["query 1"], "query")
        assert {len(found) for found in store.nearest(collection, np.repeat(query, 12, axis=0), 100, {})} == {100}
        assert len(store.nearest(collection, query, 1500, {})[0]) == 1500
        found = [id for id, _ in store.nearest(collection, query, 60, {"parity": "odd"})[0]]
        assert len(found) == 60
        assert len(set(found) & set(exact.documents("q1"))) >= 57
        assert [id for id, _ in store.nearest(collection, query, 10, {"number": "2999"})[0]] == ["d2999"]
        if kind == "pgvector":
            plan = store._query("EXPLAIN SELECT id FROM {table} ORDER BY embedding <=> %s LIMIT 10", [query[0]], table=collection)
            assert "hnsw" in str(plan)


@pytest.mark.parametrize("name", ["meta.json", "collection/{}/storage.sqlite"])
def test_a_damaged_folder_of_qdrant_is_named_with_the_fix(config_of, name):
    config = config_of("qdrant")
    with open_store(config) as store:
        path = Path(config.location) / name.format(index_documents(store, numbered(), Numbers(), TEMPLATE).collection)
    path.write_bytes(b"\xff" * 9000)
    with (
        open_store(config) as store,
        pytest.raises(DamagedError, match=r"is damaged \(.*fix: restore its folder from a backup"),
    ):
        LiveIndex(store, Numbers()).find("query 7")
