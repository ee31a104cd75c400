"""Versions: filled, checked, live, rolled back, and repaired."""

import dataclasses

import numpy as np
import pytest
from store_data import STAMP, TEMPLATE, B, Numbers, named, numbered

from embedfit.data.dataset import Dataset, Document
from embedfit.encode.adapted import AdaptedEncoder, Adapter
from embedfit.encode.cache import CachedEncoder
from embedfit.errors import DamagedError, DataError, ModelError, StorageError
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import Run
from embedfit.store.base import Entry, Live, Stamp
from embedfit.store.entries import entries_of
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import identity, index_documents, overlap, roll_back


def test_indexing_makes_documents_searchable_with_scores_and_metadata(store):
    data, encoder = numbered(), Numbers()
    found = index_documents(store, data, encoder, TEMPLATE)
    assert (found.documents, found.written, found.previous) == (60, 60, "")
    assert found.recall == pytest.approx(1, abs=0.05)
    hits = LiveIndex(store, encoder).find("query 7", 3)
    exact = DenseRetriever(encoder, TEMPLATE).search(data.select(["q7"]), 3)
    assert [hit.id for hit in hits] == exact.documents("q7")
    np.testing.assert_allclose([hit.score for hit in hits], exact.scores[0], atol=1e-5)
    assert hits[0].text == "doc 7"
    assert hits[0].metadata == {"title": "doc", "parity": "odd", "number": 7}
    assert {hit.metadata["parity"] for hit in LiveIndex(store, encoder).find("query 7", 10, {"parity": "even"})} == {"even"}


def test_a_stamp_says_encoder_dimension_prompts_and_template(store, word_encoder):
    word_encoder.prompts = {"query": "query: ", "document": "passage: "}
    index_documents(store, numbered(10, 3), CachedEncoder(word_encoder), "{text} of {title}")
    stamp = store.stamp(store.live().current)
    assert dataclasses.replace(stamp, digest="") == Stamp("words", "words", 64, "query: ", "passage: ", "{text} of {title}", 10, "")


def test_a_query_by_another_encoder_is_refused_with_one_line(store):
    index_documents(store, numbered(), Numbers(), TEMPLATE)
    for search in (lambda index: index.find("query 1"), lambda index: index.search(numbered(), 3)):
        with pytest.raises(ModelError, match=r"made with 'numbers-0-400-16' .*, not with 'numbers-1-400-16' .*; fix: --model") as caught:
            search(LiveIndex(store, Numbers(1)))
        assert "\n" not in str(caught.value)


def test_indexing_again_does_nothing_and_other_documents_make_another_version_without_encoding_twice(store):
    data, encoder = numbered(), Numbers(size=500)
    first = index_documents(store, data, encoder, TEMPLATE)
    encoder.asked.clear()
    again = index_documents(store, data, encoder, TEMPLATE)
    assert (again.collection, again.written, again.recall) == (first.collection, 0, None)
    assert encoder.asked == []
    assert "nothing had changed" in again.sentence
    more = index_documents(store, numbered(61), encoder, TEMPLATE)
    assert [text for text in encoder.asked if text.startswith("doc")] == ["doc 60"]
    assert more.collection != first.collection
    assert (more.previous, more.written) == (first.collection, 61)


def test_changed_metadata_makes_another_version(store):
    encoder = Numbers()
    index_documents(store, numbered(), encoder, TEMPLATE)
    found = index_documents(store, numbered(colour="red"), encoder, TEMPLATE)
    assert found.written == 60
    assert LiveIndex(store, encoder).find("query 3", 1)[0].metadata["colour"] == "red"


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
def test_roll_back_of_a_store_that_is_not_there_makes_no_folder(config_of, tmp_path, kind):
    with open_store(config_of(kind)) as store, pytest.raises(StorageError, match="no version to go back to"):
        roll_back(store)
    assert list(tmp_path.iterdir()) == []


def test_roll_back_goes_to_the_version_before_and_forward_again(store):
    old, new = Numbers(0), Numbers(1)
    with pytest.raises(StorageError, match="no version to go back to"):
        roll_back(store)
    index_documents(store, numbered(), old, TEMPLATE)
    index_documents(store, numbered(), new, TEMPLATE)
    assert roll_back(store).fingerprint == old.fingerprint
    assert LiveIndex(store, old).find("query 5", 1)[0].id == "d5"
    assert roll_back(store).fingerprint == new.fingerprint
    with pytest.raises(ModelError):
        LiveIndex(store, old).find("query 5", 1)


def lose(store, collection, ids):
    """Remove documents as a stranger would, by the store's own means."""
    if hasattr(store, "_collection"):
        store._collection(collection).delete(ids=list(ids))
    elif hasattr(store, "_query"):
        store._query("DELETE FROM {table} WHERE id = ANY (%s)", [list(ids)], table=collection)
    else:
        from embedfit.store.qdrant import _point

        store._client.delete(collection, [_point(id) for id in ids])


def remove(store, collection):
    """Remove a collection as a stranger would."""
    if hasattr(store, "_query"):
        store._query("DROP TABLE {table}", table=collection)
    else:
        store._client.delete_collection(collection)


def test_a_live_collection_that_lost_documents_is_made_whole_again(store, capsys):
    encoder = Numbers()
    index_documents(store, numbered(), Numbers(1), TEMPLATE)
    first = index_documents(store, numbered(), encoder, TEMPLATE)
    lose(store, first.collection, ["d3", "d7"])
    assert store.ids(first.collection) == {f"d{i}" for i in range(60)} - {"d3", "d7"}
    again = index_documents(store, numbered(), encoder, TEMPLATE)
    assert (again.collection, again.previous, again.written) == (first.collection, first.previous, 2)
    assert again.recall == pytest.approx(1, abs=0.05)
    assert "has lost or changed documents; it is written again" in capsys.readouterr().err
    assert LiveIndex(store, encoder).find("query 7", 1)[0].id == "d7"
    assert index_documents(store, numbered(), encoder, TEMPLATE).recall is None
    assert store.live() == Live(first.collection, first.previous)


def test_an_index_that_finds_nothing_any_more_says_so_and_is_made_whole(store):
    encoder, data = Numbers(), numbered()
    first = index_documents(store, data, encoder, TEMPLATE)
    lose(store, first.collection, data.corpus)
    with pytest.raises(DamagedError, match="has lost its entries; fix: run 'embedfit index' again with the same model"):
        LiveIndex(store, encoder).find("query 7")
    assert LiveIndex(store, encoder).find("query 7", 5, {"parity": "neither"}) == []
    assert index_documents(store, data, encoder, TEMPLATE).written == 60
    assert LiveIndex(store, encoder).find("query 7", 1)[0].id == "d7"


def overwrite(store, collection, entry, vector):
    """Put a document in the place of the one of its id, as a stranger would."""
    if hasattr(store, "_query"):
        store._query("DELETE FROM {table} WHERE id = %s", [entry.id], table=collection)
    store.add(collection, [entry], vector)


@pytest.mark.parametrize("changes", [{"text": "another"}, {"metadata": {"parity": "none"}}])
def test_a_live_collection_whose_documents_something_else_changed_is_written_again(store, changes, capsys):
    encoder, data = Numbers(), numbered()
    first = index_documents(store, data, encoder, TEMPLATE)
    entry = next(entry for entry in entries_of(data, TEMPLATE) if entry.id == "d7")
    overwrite(store, first.collection, dataclasses.replace(entry, **changes), encoder.encode([entry.text], "document"))
    again = index_documents(store, data, encoder, TEMPLATE)
    assert (again.collection, again.written) == (first.collection, 60)
    assert "has lost or changed documents; it is written again" in capsys.readouterr().err
    assert store.entries(first.collection, ["d7"]) == {"d7": entry}
    assert index_documents(store, data, encoder, TEMPLATE).recall is None


def test_of_many_documents_a_sample_over_all_of_them_is_compared(config_of):
    encoder, data = Numbers(size=700), numbered(700)
    with open_store(config_of("chroma")) as store:
        first = index_documents(store, data, encoder, TEMPLATE)
        store.add(first.collection, [Entry(f"d{i}", "another", {}) for i in range(600, 700)], encoder.table[600:])
        assert index_documents(store, data, encoder, TEMPLATE).written == 700
        assert index_documents(store, data, encoder, TEMPLATE).recall is None


def test_a_live_collection_that_is_gone_is_said_to_be_and_made_again(store):
    encoder = Numbers()
    first = index_documents(store, numbered(), encoder, TEMPLATE)
    remove(store, first.collection)
    with pytest.raises(StorageError, match="fix: run 'embedfit index'") as caught:
        LiveIndex(store, encoder).find("query 7", 1)
    assert "\n" not in str(caught.value)
    again = index_documents(store, numbered(), encoder, TEMPLATE)
    assert (again.collection, again.written) == (first.collection, 60)
    assert LiveIndex(store, encoder).find("query 7", 1)[0].id == "d7"


def test_documents_of_somebody_else_in_a_live_collection_are_told_and_taken_out(store):
    encoder = Numbers()
    first = index_documents(store, numbered(), encoder, TEMPLATE)
    if hasattr(store, "_collection"):
        store._collection(first.collection).add(ids=["new"], embeddings=encoder.encode(["doc 7"], "document"), documents=["x"])
    elif hasattr(store, "_query"):
        store._query("INSERT INTO {table} SELECT 'new', 'x', '{{}}', embedding FROM {table} WHERE id = 'd7'", table=first.collection)
    else:
        from qdrant_client import models

        [vector] = encoder.encode(["doc 7"], "document").tolist()
        store._client.upsert(first.collection, [models.PointStruct(id=1, vector=vector, payload={"mine": 1})])
    with pytest.raises(StorageError, match="holds documents that embedfit did not write; fix: run 'embedfit index'"):
        LiveIndex(store, encoder).search(numbered(), 10)
    if not hasattr(store, "_query"):  # in a table, a row is a row
        with pytest.raises(StorageError, match="holds documents that embedfit did not write; fix: run 'embedfit index'"):
            LiveIndex(store, encoder).find("query 7", 10)
    assert index_documents(store, numbered(), encoder, TEMPLATE).written == 60
    assert store.ids(first.collection) == {f"d{i}" for i in range(60)}


@pytest.mark.parametrize("how", ["gone", "lost"])
def test_rolling_back_to_a_version_that_is_not_whole_is_refused(store, how):
    old, new = Numbers(0), Numbers(1)
    before = index_documents(store, numbered(), old, TEMPLATE)
    index_documents(store, numbered(), new, TEMPLATE)
    live = store.live()
    if how == "gone":
        remove(store, before.collection)
        message = "is gone|no version to go back to"  # an alias of Qdrant goes with its collection
    else:
        lose(store, before.collection, ["d5"])
        message = "has 59 of its 60 documents"
    with pytest.raises(StorageError, match=message):
        roll_back(store)
    assert store.live().current == live.current
    assert LiveIndex(store, new).find("query 5", 1)[0].id == "d5"


def test_what_a_killed_process_had_begun_is_removed_by_the_next_start_even_if_nothing_changed(store):
    encoder = Numbers()
    first = index_documents(store, numbered(), encoder, TEMPLATE)
    begun = named(store, B)
    store.create(begun, STAMP)
    store.add(begun, [Entry("1", "one", {})], np.eye(4, dtype=np.float32)[:1])
    assert "nothing had changed" in index_documents(store, numbered(), encoder, TEMPLATE).sentence
    assert store.collections() == [first.collection]


def document(id="d1", text="text", **metadata):
    return Document(id, text, "", metadata)


def test_a_document_that_no_store_can_keep_is_named_before_anything_is_encoded(store):
    half = "half \ud800"
    for bad, message in [
        (document(half), r"document 'half \\ud800': its id contains half of a character"),
        (document(text=half), r"document 'd1': its text contains half of a character .*; fix:"),
        (document(colour=half), r"document 'd1': its field 'colour' contains half of a character"),
        (document(colours=["red", {"more": half}]), r"document 'd1': its field 'colours' contains half of a character"),
        (document(**{half: "red"}), r"document 'd1': its field 'half \\ud800' contains half of a character"),
        (document(""), r"document '': its id is empty"),
    ]:
        data, encoder = numbered(), Numbers()
        data.corpus[bad.id] = bad
        with pytest.raises(DataError, match=message) as caught:
            index_documents(store, data, encoder, TEMPLATE)
        assert "\n" not in str(caught.value)
        assert encoder.asked == []
    assert store.collections() == []


def test_what_postgresql_cannot_keep_is_named_and_other_stores_keep_it(store):
    odd = {
        r"document 'nul \\x00': its id contains a NUL character, which PostgreSQL, .* cannot keep; fix: remove it": document("nul \0"),
        "document 'd1': its text contains a NUL character": document(text="nul \0"),
        "document 'd2': its field 'colour' contains a NUL character": document("d2", colour=["nul \0"]),
        "document '0123456789.*: its id has 6,890 bytes, and PostgreSQL, .* takes 2,500; fix: ": document("".join(map(str, range(2000)))),
    }
    if store.takes_nul:
        data, encoder = numbered(), Numbers()
        data.corpus.update({document.id: document for document in odd.values()})
        entries = {entry.id: entry for entry in entries_of(data, TEMPLATE)}
        encoder.encode = lambda texts, kind: np.eye(16, dtype=np.float32)[[len(text) % 16 for text in texts]]
        collection = index_documents(store, data, encoder, TEMPLATE, min_recall=0).collection
        assert store.entries(collection, list(entries)) == entries
        return
    for message, bad in odd.items():
        data, encoder = numbered(), Numbers()
        data.corpus[bad.id] = bad
        with pytest.raises(DataError, match=message):
            index_documents(store, data, encoder, TEMPLATE)
        assert encoder.asked == []
    assert store.collections() == []


def test_a_query_that_is_no_text_is_refused_in_one_line(store):
    encoder = Numbers()
    index_documents(store, numbered(), encoder, TEMPLATE)
    with pytest.raises(DataError, match="the query: contains half of a character"):
        LiveIndex(store, encoder).find("query \udcff 7")


def test_dates_numbers_of_numpy_and_what_is_no_number_are_kept_as_json_has_them():
    import datetime

    metadata = {"day": datetime.date(2020, 1, 2), "count": np.int64(3), "share": np.float32(0.5), "none": float("nan"), "far": float("inf")}
    [entry] = entries_of(Dataset({}, {"d": document("d", **metadata, all=np.arange(2))}, {}), "{text}")
    assert entry.metadata == {"day": "2020-01-02", "count": 3, "share": 0.5, "none": None, "far": None, "all": [0, 1]}


def test_what_is_in_neither_the_live_nor_the_previous_version_is_removed(store):
    for seed in range(3):
        index_documents(store, numbered(30, 5), Numbers(seed), TEMPLATE)
    assert sorted(store.collections()) == sorted({store.live().current, store.live().previous})
    assert len(store.collections()) == 2


def test_a_version_that_finds_too_little_does_not_go_live(store, monkeypatch):
    index_documents(store, numbered(), Numbers(), TEMPLATE)
    live = store.live()
    nearest = type(store).nearest
    # A store that loses one of three documents: what it finds in the first ten is then less than 0.95 of exact search.
    monkeypatch.setattr(type(store), "nearest", lambda *args: [row[::3] for row in nearest(*args)])
    with pytest.raises(
        StorageError, match=r"recall@10 of .* against exact search is 0\.[34]\d* on 20 queries, under 0.95; it did not go live"
    ):
        index_documents(store, numbered(), Numbers(1), TEMPLATE)
    assert store.live() == live
    monkeypatch.undo()
    assert index_documents(store, numbered(), Numbers(1), TEMPLATE).written == 0


def test_wrong_vectors_in_a_store_are_seen_by_the_check(store, monkeypatch):
    add = type(store).add
    monkeypatch.setattr(type(store), "add", lambda self, name, entries, vectors: add(self, name, entries, vectors[::-1].copy()))
    with pytest.raises(StorageError, match="it did not go live"):
        index_documents(store, numbered(), Numbers(), TEMPLATE)


def test_a_store_is_a_retriever_that_ranks_as_exact_search_does(store):
    data, encoder = numbered(), Numbers()
    index_documents(store, data, encoder, TEMPLATE)
    run = LiveIndex(store, encoder).search(data, 10)
    exact = DenseRetriever(encoder, TEMPLATE).search(data, 10)
    assert run.query_ids == exact.query_ids
    assert run.document_ids == exact.document_ids
    assert (run.ranked == exact.ranked).mean() > 0.95
    assert overlap(run, DenseRetriever(encoder, TEMPLATE).search(data, 100), 10) > 0.95
    assert LiveIndex(store, encoder).search(data, 60).ranked.shape == (20, 60)
    with pytest.raises(StorageError, match="holds other documents than the data set"):
        LiveIndex(store, encoder).search(numbered(59), 10)


def test_evaluate_measures_the_live_index_beside_exact_search(store, word_encoder, transactions):
    from embedfit.pipeline import measuring

    template = "{category}: {sample_transactions}"
    index_documents(store, transactions, word_encoder, template)
    frame = measuring.evaluate(transactions, [word_encoder], templates=["{category}"], ks=[1, 10], store=store)
    rows = {(row.model, row.document, row.metric, row.k): row.value for row in frame.itertuples()}
    name = f"words in {store.where}"
    assert rows[name, template, "recall_of_exact", 10] == pytest.approx(1, abs=0.01)
    assert rows[name, template, "mrr", 10] == pytest.approx(rows["words", template, "mrr", 10], abs=0.01)
    assert ("words", "{category}", "mrr", 10) in rows


def test_there_is_no_index_before_indexing_and_asking_for_it_makes_nothing(store, tmp_path):
    with pytest.raises(StorageError, match=f"there is no index '{store.index}'; fix: run 'embedfit index'"):
        LiveIndex(store, Numbers()).find("query 1")
    assert not any(tmp_path.iterdir())


def test_overlap_is_the_share_of_the_exact_best_with_ties_worth_the_same():
    def run(rows, scores):
        return Run(("q",) * len(rows), tuple("abcdef"), np.array(rows), np.array(scores, np.float32))

    exact = run([[0, 1, 2, 3], [0, 1, 2, 3]], [[0.9, 0.8, 0.8, 0.1], [0.9, 0.8, 0.7, 0.1]])
    assert overlap(run([[0, 2], [0, 2]], np.zeros((2, 2))), exact, 2) == pytest.approx((1 + 0.5) / 2)
    assert overlap(run([[4, 5], [1, 0]], np.zeros((2, 2))), exact, 2) == pytest.approx((0 + 1) / 2)


def test_places_that_a_store_leaves_empty_count_as_not_found(config_of, monkeypatch):
    from embedfit.evaluation.score import score_run

    data, encoder = numbered(), Numbers()
    with open_store(config_of("pgvector")) as store:
        index_documents(store, data, encoder, TEMPLATE)
        nearest = type(store).nearest
        monkeypatch.setattr(type(store), "nearest", lambda *args: [row[:2] for row in nearest(*args)])
        run = LiveIndex(store, encoder).search(data, 10)
    assert run.ranked.shape == (20, 10)
    assert len(run.documents("q1")) == 2
    scores = score_run(run, data.qrels, ks=[1, 10])
    assert scores.mean("recall@1") == scores.mean("recall@10") == 1


def test_an_encoder_has_the_same_identity_in_a_cache_and_with_a_query_adapter(word_encoder):
    adapter = Adapter(np.eye(64, dtype=np.float32), np.zeros(64, np.float32), "words", "words")
    adapted = AdaptedEncoder(CachedEncoder(word_encoder), adapter)
    assert adapted.fingerprint != "words"
    assert identity(CachedEncoder(word_encoder)) == identity(adapted) == identity(word_encoder) == "words"


def test_a_models_identity_changes_with_weights_and_prompts_but_not_with_precision(tiny_model, tmp_path):
    import shutil

    from embedfit.encode.local import LocalEncoder

    shutil.copytree(tiny_model, tmp_path / "copy")
    first = identity(LocalEncoder(tiny_model))
    assert identity(LocalEncoder(tmp_path / "copy", precision="fp32")) == first
    assert identity(LocalEncoder(tiny_model, query_prompt="query: ")) != first
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert identity(LocalEncoder(tmp_path / "copy")) != first
