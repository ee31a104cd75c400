"""A searcher in each store: answers as in memory, and what it is taught."""

import dataclasses
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from store_data import STAMP, A, named

from embedfit.data.dataset import Document
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ConfigError, DataError, ModelError, StorageError
from embedfit.searcher.fusion import Fusion
from embedfit.searcher.searcher import Searcher
from embedfit.store.base import CHANGES, EXAMPLES
from embedfit.store.entries import entry_of, examples_of
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.stored import Held, Scorer
from embedfit.store.version import SearcherVersion
from embedfit.store.versions import index_documents, index_searcher, roll_back


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
    held_out = transactions.select(transactions.judged[226::5])
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
    expected = other.version().exact(in_memory.parts).searcher
    assert len(expected.parts.examples.query_ids) == 226 - 1 + 2
    for text in [*asked, "penguins", transactions.queries[came].text]:
        same_hits(other.find(text, 4), expected.search(text, 4))
    assert other.find("fish for penguins", 1)[0].id == "Zoo"
    assert other.find("fish for penguins", 1)[0].metadata == {"category": "Zoo animals and their food", "kind": "new"}
    np.testing.assert_allclose(
        index.search(held_out, 5).scores, other.version().exact(in_memory.parts).search(held_out, 5).scores, atol=2e-4
    )
    assert [hit.id for hit in other.find("fish", 5, {"kind": "new"})] == ["Zoo"]


def other_searcher(in_memory, folder, **changes):
    """Save a searcher that differs in its weights, and in parts that are given."""
    weights = {"warm": {"documents": 1.0, "examples": 2.0}, "new": {"documents": 1.0, "examples": 2.0}, "cold": {"documents": 9.0}}
    return Searcher(replace(in_memory.parts, fusion=Fusion(weights), base=None, **changes)).save(folder)


def test_a_new_version_takes_over_what_was_taught_and_nothing_twice(config_of, searcher_folder, in_memory, tmp_path):
    with open_store(config_of("chroma")) as store:
        index_searcher(store, searcher_folder, {})
        index = LiveIndex(store)
        index.add_document(Document("Zoo", "Zoo", "", {"category": "Zoo animals", "at": ["a", 1]}))
        index.add("hay for elephants", "Zoo", key="hay", source="feedback")
        known = in_memory.parts.examples
        owner = in_memory.parts.corpus.ids[known.owners[known.members == 3][0]]
        index.add(known.texts[3], owner, key="known")  # the next version has it too
        index.remove(known.query_ids[5])
        first = store.live().current
        again = index_searcher(store, searcher_folder, {})
        assert (again.recall, again.collection) == (None, first)

        seen = []
        found = index_searcher(store, other_searcher(in_memory, tmp_path / "second"), {}, check=seen.append)
        assert (found.previous, found.carried) == (first, 2)
        assert [version.collection for version in seen] == [found.collection]
        assert [(change.key, change.gone, change.source) for change in index.taught()] == [
            ("Zoo", False, ""),
            ("hay", False, "feedback"),
            (known.query_ids[5], True, ""),
        ]
        assert index.find("hay for elephants", 1)[0].id == "Zoo"
        assert index.find("hay for elephants", 1)[0].metadata["at"] == ["a", 1]
        index.remove("hay")
        assert roll_back(store).examples == 226
        assert [change.key for change in index.taught()][1:] == ["hay", "known", known.query_ids[5]]
        third = index_searcher(store, other_searcher(in_memory, tmp_path / "third", template="{category} "), {})
        assert third.carried == 1  # the document; the example was taken back later
        assert "hay" in {change.key for change in index.taught() if change.gone}
        assert {name[:22] for name in store.collections()} == {third.collection, first}
        assert len(store.collections()) == 6


def test_a_version_that_its_check_refuses_does_not_go_live(config_of, searcher_folder, in_memory, tmp_path):
    def refuse(version):
        assert version.find("taxi", 1)
        raise StorageError("worse")

    with open_store(config_of("chroma")) as store:
        live = index_searcher(store, searcher_folder, {}).collection
        with pytest.raises(StorageError, match="worse"):
            index_searcher(store, other_searcher(in_memory, tmp_path / "second"), {}, check=refuse)
        assert store.live().current == live


def test_what_does_not_fit_is_refused_in_one_line(config_of, searcher_folder, in_memory, tmp_path, tiny_model, word_encoder):
    copy = tmp_path / "copy"
    shutil.copytree(searcher_folder, copy)
    with open_store(config_of("chroma")) as store:
        index_searcher(store, copy, {})
        index = LiveIndex(store)
        for call, message in [
            (lambda: index.add("hay", "Zoo"), "example: names the document 'Zoo'; expected a known id"),
            (lambda: index.add("  ", in_memory.parts.corpus.ids[0]), "query: is ' +'; expected a text that is not empty"),
            (lambda: index.remove("hay"), "example: 'hay' is unknown"),
            (lambda: index.remove_document("Zoo"), "document: 'Zoo' was not added"),
            (lambda: index.add_document(Document("Zoo", "")), "document 'Zoo': is ''"),
            (lambda: index.add("\ud800", in_memory.parts.corpus.ids[0]), "its text contains half of a character"),
            (lambda: index.find({"colour": "red"}), "query: has none of the fields merchant_name, memo"),
        ]:
            with pytest.raises(DataError, match=message) as caught:
                call()
            assert "\n" not in str(caught.value)
        assert index.taught() == []
        prompted = LocalEncoder(tiny_model, precision="fp32", query_prompt="ask: ")
        with pytest.raises(ModelError, match=r"not with .*: query prompt 'ask: ' in place of ''; fix: --model"):
            LiveIndex(store, prompted).find("taxi")
        with pytest.raises(ModelError, match=r"not with 'words' \(words\).*; fix: --model"):
            LiveIndex(store, word_encoder).find("taxi")
        shutil.move(copy, tmp_path / "moved")
        with pytest.raises(ModelError, match=r"its searcher is not in .*copy; fix: --model with its run directory, or run"):
            LiveIndex(store).find("taxi")
        assert LiveIndex(store, model=str(tmp_path / "moved")).find("taxi", 1)
        other_searcher(in_memory, tmp_path / "other")
        with pytest.raises(ModelError, match="other is another searcher than it was made from"):
            LiveIndex(store, model=str(tmp_path / "other")).find("taxi", 1)
        store.drop(store.live().current + EXAMPLES)
        with pytest.raises(StorageError) as caught:
            LiveIndex(store, model=str(tmp_path / "moved")).find("taxi", 1)
        assert "\n" not in str(caught.value)


def test_an_index_of_documents_alone_knows_its_model_and_learns_nothing(config_of, tiny_model, transactions):
    encoder = LocalEncoder(tiny_model, precision="fp32", query_prompt="find: ")
    with open_store(config_of("chroma")) as store:
        index_documents(store, transactions, encoder, "{category}")
        live = store.live().current
        index = LiveIndex(store)
        expected = LiveIndex(store, encoder).find("taxi", 3)
        assert [(hit.id, hit.score) for hit in index.find("taxi", 3)] == [(hit.id, pytest.approx(hit.score, abs=1e-2)) for hit in expected]
        assert index.version().encoder.prompts["query"] == "find: "
        assert index.taught() == []
        with pytest.raises(ConfigError, match="was made of a model alone, which learns nothing; fix: index the searcher of a run"):
            index.add("taxi", "Travel")
        stamp = dataclasses.asdict(store.stamp(live))
        for name in ("opens", "pooling", "searcher", "examples"):  # an index of before it knew its model
            del stamp[name]
        store._collection(live).modify(metadata={"stamp": json.dumps(stamp)})
        assert [hit.id for hit in LiveIndex(store, encoder).find("taxi", 3)] == [hit.id for hit in expected]
        with pytest.raises(ModelError, match=r"nothing tells where its model .* is; fix: --model PATH"):
            LiveIndex(store).find("taxi")


def test_of_many_documents_the_stores_candidates_are_scored_as_in_memory(config, in_memory, monkeypatch):
    # All that is different with many documents, on few: candidates from the store, and what they lack looked up.
    for module in ("embedfit.store.stored", "embedfit.searcher.gather"):
        monkeypatch.setattr(f"{module}.FEW_DOCUMENTS", 20)
        monkeypatch.setattr(f"{module}.DEPTH", 3)
    with open_store(config) as store:
        corpus = in_memory.parts.corpus
        entries = [entry_of(in_memory.parts.documents[id], text) for id, text in zip(corpus.ids, corpus.texts, strict=True)]
        stamp = replace(STAMP, dimension=384, searcher="x", template="{category}", documents=27)
        name = named(store, A)
        store.create(name + CHANGES, replace(stamp, dimension=1))
        for suffix, rows, vectors in (
            ("", entries, in_memory.parts.corpus.vectors),
            (EXAMPLES, examples_of(in_memory.parts), in_memory.parts.examples.vectors),
        ):
            store.create(name + suffix, stamp)
            store.add(name + suffix, rows, vectors)
            store.finish(name + suffix)
        version = SearcherVersion(store, name, in_memory.parts, 226)
        for text in ("taxi to the airport", "laptop", "printer paper and toner", "dinner with a client"):
            hits, expected = version.find(text, 5), in_memory.search(text, 5)
            assert [(hit.id, round(hit.score, 3)) for hit in hits] == [(hit.id, round(hit.score, 3)) for hit in expected]
            np.testing.assert_allclose([hit.probability for hit in hits], [hit.probability for hit in expected], atol=2e-4)
            assert [hit.id for hit in version.find(text, 5, {"category": in_memory.parts.corpus.ids[7]})] == [in_memory.parts.corpus.ids[7]]


def test_the_part_of_examples_that_were_not_fetched_is_estimated(in_memory):
    # A store that knows the nearest three only.
    class Three:
        where = "three"

        def __init__(self, examples):
            self.examples = examples

        def nearest(self, collection, vectors, k, filters):
            cosines = vectors @ self.examples.vectors.T
            best = np.argsort(-cosines, axis=1)[:, : min(k, 3)]
            ids = self.examples.query_ids
            return [[(ids[place], float(row[place])) for place in places] for row, places in zip(cosines, best, strict=True)]

    parts = in_memory.parts
    asked = in_memory.encode(["taxi to the airport", "printer paper and toner"])
    exact = parts.views.views["examples"].scores(asked)
    scorer = Scorer(Three(parts.examples), "x", Held.of(parts), [], 3)
    scored = scorer.scored(asked, np.array([-1, -1]))
    estimated = np.stack([scorer._soft_maxima(vector, row, None) for vector, row in zip(asked.vectors, scored.fetched, strict=True)])
    assert (np.isnan(estimated) == np.isnan(exact)).all()
    known = ~np.isnan(exact)
    assert (estimated[known] <= exact[known] + 1e-5).all()  # a lower bound
    assert np.abs(estimated[known] - exact[known]).max() < 0.1
    single = known & (np.bincount(parts.examples.owners, minlength=27) == 1)
    np.testing.assert_allclose(estimated[single], exact[single], atol=1e-5)
