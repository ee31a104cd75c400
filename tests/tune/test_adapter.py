import json

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from embedfit.data.dataset import Dataset, Document, Query, text_key
from embedfit.data.split import split_dataset
from embedfit.encode.adapted import AdaptedEncoder, Adapter, load_adapter, save_adapted
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder
from embedfit.errors import DataError, ModelError, StorageError
from embedfit.evaluation.score import score_run
from embedfit.hub import weights_of
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.tune.adapter import query_adapter, tune_adapter
from embedfit.tune.frozen import STRENGTHS, AdapterConfig

TEXTS = ["Uber trip downtown", "a stapler and three boxes of paper for the office", "lunch", "Delta 1423 JFK to LAX"]


class Table:
    """An encoder that looks its vectors up: what a closed API looks like from here."""

    def __init__(self, queries, documents, name="table"):
        self.name = self.fingerprint = name
        self.known = {"query": queries, "document": documents}
        self.asked = 0

    def encode(self, texts, kind):
        self.asked += len(texts)
        return np.stack([self.known[kind][text] for text in texts])


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def rotated(n=240, documents=30, size=16, noise=0.3, seed=0):
    """Queries that are noisy copies of their document, turned by one planted rotation."""
    rng = np.random.default_rng(seed)
    vectors = unit(rng.normal(size=(documents, size)))
    turn = np.linalg.qr(rng.normal(size=(size, size)))[0]
    answers = [number % documents for number in range(n)]
    queries = unit((vectors[answers] + noise * unit(rng.normal(size=(n, size)))) @ turn.T)
    corpus = {f"d{number:02}": Document(f"d{number:02}", f"document {number}") for number in range(documents)}
    data = Dataset(
        {f"q{number}": Query(f"q{number}", f"query {number}") for number in range(n)},
        corpus,
        {f"q{number}": {f"d{answer:02}": 1} for number, answer in enumerate(answers)},
    )
    known = {query.text: vector for query, vector in zip(data.queries.values(), queries, strict=True)}
    return data, Table(known, {document.text: vector for document, vector in zip(corpus.values(), vectors, strict=True)}), turn


def parts(data, at):
    ids = list(data.queries)
    return data.select(ids[:at]), data.select(ids[at:])


def recall(retriever, data):
    return score_run(retriever.search(data, 10), data.qrels).mean("recall@1")


def some_adapter(encoder, size, seed=0):
    rng = np.random.default_rng(seed)
    weight = np.eye(size) + 0.05 * rng.normal(size=(size, size))
    return Adapter(weight.astype(np.float32), (0.02 * rng.normal(size=size)).astype(np.float32), encoder.fingerprint, encoder.name)


# Fitting


def test_a_planted_rotation_is_learned_and_carries_over_to_other_queries():
    data, encoder, _ = rotated()
    train, test = parts(data, 200)
    assert recall(DenseRetriever(encoder), test) < 0.2
    assert recall(query_adapter(encoder, train).retriever, test) > 0.8


def test_by_hand_the_map_is_a_product_a_sum_and_a_length():
    adapter = Adapter(np.array([[0, 1], [1, 0]], np.float32), np.array([0, 2], np.float32), "f", "n")
    # (3/5, 4/5) W + b = (4/5, 3/5 + 2), of length sqrt(0.64 + 6.76)
    np.testing.assert_allclose(adapter.apply(np.array([[0.6, 0.8]], np.float32)), [[0.8 / 7.4**0.5, 2.6 / 7.4**0.5]], rtol=1e-6)


def test_no_steps_leave_the_base_as_it_is():
    data, encoder, _ = rotated()
    base = DenseRetriever(encoder).search(data, 10)
    same = query_adapter(encoder, data, config=AdapterConfig(steps=0)).retriever.search(data, 10)
    np.testing.assert_array_equal(same.ranked, base.ranked)
    np.testing.assert_allclose(same.scores, base.scores, atol=1e-6)


def test_the_stronger_the_pull_the_nearer_to_the_identity_and_the_more_data_the_weaker_it_is():
    data, encoder, _ = rotated()

    def moved(train, strength):
        adapter = query_adapter(encoder, train, config=AdapterConfig(strength=strength)).encoder.adapter
        return np.linalg.norm(adapter.weight - np.eye(16))

    few, _ = parts(data, 30)
    assert moved(data, 1e5) < 0.05
    assert moved(data, 30) < moved(data, 3)
    # An eighth of the queries, on all of the documents, is held back more.
    assert moved(few, 3) < moved(data, 3)


def test_the_fewer_documents_the_training_queries_ask_for_the_stronger_the_pull():
    data, encoder, _ = rotated()
    half = data.select([id for id, grades in data.qrels.items() if min(grades) < "d15"])
    assert query_adapter(encoder, data, config=AdapterConfig(strength=4, steps=1)).strength == 4
    assert query_adapter(encoder, half, config=AdapterConfig(strength=4, steps=1)).strength == 8


def test_the_same_call_gives_the_same_map_and_another_seed_another():
    data, encoder, _ = rotated()
    first, again, other = (
        query_adapter(encoder, data, config=AdapterConfig(seed=seed, batch_size=32)).encoder.adapter for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.weight, again.weight)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_documents_are_left_where_they_are_and_nothing_is_asked_for_twice(tmp_path):
    data, encoder, _ = rotated()
    train, test = parts(data, 200)
    cached = CachedEncoder(encoder, tmp_path)
    retriever = query_adapter(cached, train, test).retriever
    retriever.search(test, 10)
    assert encoder.asked == 200 + 40 + 30
    texts = [document.text for document in data.corpus.values()]
    np.testing.assert_array_equal(retriever.encoder.encode(texts, "document"), encoder.encode(texts, "document"))


def test_a_known_positive_is_never_pushed_away():
    # Both a and b are right for the first query, and it is much nearer to b. Were either a negative of the other, the
    # query would leave b for a; as it is, it leaves c alone.
    documents = np.eye(3, dtype=np.float32)
    data = Dataset(
        {"q": Query("q", "q"), "r": Query("r", "r")},
        {id: Document(id, id) for id in "abc"},
        {"q": {"a": 1, "b": 1}, "r": {"c": 1}},
    )
    encoder = Table({"q": unit(np.array([[0.1, 0.7, 0.6]]))[0], "r": documents[2]}, dict(zip("abc", documents, strict=True)))
    before = encoder.encode(["q"], "query")
    after = query_adapter(encoder, data, config=AdapterConfig(strength=0.1)).encoder.adapter.apply(before)
    assert (after[0, :2] > before[0, :2]).all()
    assert after[0, 2] < before[0, 2]


def test_a_large_corpus_is_sampled_and_the_rotation_is_still_learned(monkeypatch):
    monkeypatch.setattr("embedfit.tune.frozen._ALL_DOCUMENTS", 10)
    data, encoder, _ = rotated()
    train, test = parts(data, 200)
    assert recall(query_adapter(encoder, train, config=AdapterConfig(negatives=8, strength=1)).retriever, test) > 0.8


def test_a_dev_part_chooses_the_strength():
    data, encoder, _ = rotated(noise=0.1)
    train, dev = parts(data, 200)
    found = query_adapter(encoder, train, dev)
    assert [row["strength"] for row in found.history] == [None, *STRENGTHS]
    best = max(row["mrr@10"] for row in found.history)
    assert found.strength == next(row["strength"] for row in found.history if row["mrr@10"] == best)
    assert (
        found.encoder.adapter.fingerprint
        == query_adapter(encoder, train, config=AdapterConfig(strength=found.strength)).encoder.adapter.fingerprint
    )


def test_where_nothing_helps_the_dev_part_keeps_the_identity():
    data, encoder, _ = rotated()
    train, _ = parts(data, 60)
    # The dev queries are the documents themselves: the base finds all of them.
    dev = Dataset({id: Query(id, f"as {id}") for id in data.corpus}, data.corpus, {id: {id: 1} for id in data.corpus})
    encoder.known["query"] |= {f"as {id}": encoder.known["document"][document.text] for id, document in data.corpus.items()}
    found = query_adapter(encoder, train, dev)
    assert found.strength is None
    np.testing.assert_array_equal(found.encoder.adapter.weight, np.eye(16))


def test_what_cannot_be_learned_from_is_refused_in_one_line():
    data, encoder, _ = rotated()
    with pytest.raises(DataError, match="no judged query"):
        query_adapter(encoder, Dataset(data.queries, data.corpus, {}))
    with pytest.raises(DataError, match="have the one answer"):
        query_adapter(encoder, data.select(["q0", "q30"]))


def test_queries_that_are_not_judged_are_left_out():
    data, encoder, _ = rotated()
    more = Dataset({**data.queries, "odd": Query("odd", "query 0")}, data.corpus, data.qrels)
    np.testing.assert_array_equal(query_adapter(encoder, more).encoder.adapter.weight, query_adapter(encoder, data).encoder.adapter.weight)


def test_the_bundled_transactions_get_better_on_held_out_queries(transactions, word_encoder):
    split = split_dataset(transactions, seed=0)
    train, test = transactions.select(split.train), transactions.select(split.test)
    template = "{category}: {sample_transactions}"
    adapted = query_adapter(word_encoder, train, template=template).retriever
    assert recall(adapted, test) > recall(DenseRetriever(word_encoder, template), test) + 0.05


# Keeping it


def test_a_file_holds_all_of_it(tmp_path):
    data, encoder, _ = rotated()
    adapter = query_adapter(encoder, data).encoder.adapter
    found = load_adapter(adapter.save(tmp_path / "sub" / "adapter.safetensors"))
    assert (found.base, found.base_name, found.fingerprint) == ("table", "table", adapter.fingerprint)
    np.testing.assert_array_equal(
        AdaptedEncoder(encoder, found).encode(["query 3"], "query"), adapter.apply(encoder.encode(["query 3"], "query"))
    )


def test_over_another_encoder_it_is_refused_in_one_line():
    encoder = Table({}, {}, "one")
    with pytest.raises(ModelError, match=r"fitted on 'one' .*, not on 'other' .*; fix: ") as caught:
        AdaptedEncoder(Table({}, {}, "other"), some_adapter(encoder, 4))
    assert "\n" not in str(caught.value)


def test_files_that_are_none_are_refused_in_one_line(tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "text").write_text("hello")
    save_file({"weight": np.eye(2)}, tmp_path / "other")
    for name, said in (("text", "cannot be read"), ("other", "is not a query adapter"), ("missing", "cannot be read")):
        with pytest.raises(ModelError, match=said) as caught:
            load_adapter(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_saved_model_gives_the_same_vectors_in_the_library_alone(tiny_model, tmp_path):
    base = LocalEncoder(tiny_model, query_prompt="search: ", precision="fp32")
    adapter = some_adapter(base, 384)
    folder = save_adapted(base, adapter, tmp_path / "adapted")
    plain = SentenceTransformer(str(folder), trust_remote_code=False, local_files_only=True)
    ours = LocalEncoder(folder, precision="fp32")
    for kind, encode in (("query", plain.encode_query), ("document", plain.encode_document)):
        expected = base.encode(TEXTS, kind)
        if kind == "query":
            expected = adapter.apply(expected)
        np.testing.assert_allclose(ours.encode(TEXTS, kind), expected, atol=1e-5)
        np.testing.assert_allclose(encode(TEXTS), expected, atol=1e-5)
        np.testing.assert_allclose(AdaptedEncoder(base, adapter).encode(TEXTS, kind), expected, atol=1e-5)
    assert np.abs(ours.encode(TEXTS, "query") - base.encode(TEXTS, "query")).max() > 0.01
    # Without a task the library takes the document's way.
    np.testing.assert_allclose(plain.encode(TEXTS), base.encode(TEXTS, "document"), atol=1e-5)
    assert ours.fingerprint != base.fingerprint
    # An index that was made with the base model stays valid.
    prompts = {"query_prompt": "search: ", "document_prompt": ""}
    assert ours.identity == LocalEncoder(tiny_model, **prompts, precision="fp32").identity == base.identity
    assert (ours.document_fingerprint, ours.whole_identity == base.whole_identity) == (base.fingerprint, False)


def test_the_transformer_is_stored_once_and_as_safetensors(tiny_model, tmp_path):
    base = LocalEncoder(tiny_model)
    folder = save_adapted(base, some_adapter(base, 384), tmp_path / "adapted")
    sizes = [path.stat().st_size for path in weights_of(folder)]
    assert sorted(sizes)[-1] == (tiny_model / "model.safetensors").stat().st_size
    assert sum(sizes) - sorted(sizes)[-1] < 4 * 384 * 385 + 1000
    assert not list(folder.rglob("*.bin"))


def test_a_model_that_does_not_end_in_unit_vectors_is_adapted_as_it_was_fitted(tiny_model, tmp_path):
    model = SentenceTransformer(str(tiny_model))
    bare = SentenceTransformer(modules=[model[0], model[1]])
    bare.save_pretrained(str(tmp_path / "bare"), create_model_card=False)
    base = LocalEncoder(tmp_path / "bare", precision="fp32")
    assert np.abs(np.linalg.norm(bare.encode(TEXTS), axis=1) - 1).min() > 0.01
    adapter = some_adapter(base, 384)
    plain = SentenceTransformer(str(save_adapted(base, adapter, tmp_path / "adapted")))
    np.testing.assert_allclose(plain.encode_query(TEXTS), adapter.apply(base.encode(TEXTS, "query")), atol=1e-5)


def test_an_adapted_model_can_be_adapted_again(tiny_model, tmp_path):
    base = LocalEncoder(tiny_model, precision="fp32")
    once = LocalEncoder(save_adapted(base, some_adapter(base, 384), tmp_path / "once"), precision="fp32")
    second = some_adapter(once, 384, seed=1)
    twice = LocalEncoder(save_adapted(once, second, tmp_path / "twice"), precision="fp32")
    np.testing.assert_allclose(twice.encode(TEXTS, "query"), second.apply(once.encode(TEXTS, "query")), atol=1e-5)


# The whole of it


def test_tuning_a_local_model_leaves_a_folder_that_finds_more(transactions, tiny_model, tmp_path):
    split = split_dataset(transactions, seed=0)
    train, test = transactions.select(split.train), transactions.select(split.test)
    base = CachedEncoder(LocalEncoder(tiny_model, precision="fp32"))
    tuned = tune_adapter(base, train, None, tmp_path / "out")
    assert isinstance(tuned.encoder, LocalEncoder)
    assert tuned.encoder.folder == tmp_path / "out" / "model"
    assert recall(DenseRetriever(tuned.encoder), test) > recall(DenseRetriever(base), test) + 0.1
    texts = test.query_texts()
    adapter = load_adapter(tuned.folder / "adapter.safetensors")
    np.testing.assert_allclose(tuned.encoder.encode(texts, "query"), adapter.apply(base.encode(texts, "query")), atol=1e-5)
    seen = set(json.loads((tmp_path / "out" / "tuning.json").read_text())["seen"])
    assert seen == {text_key(text) for text in train.query_texts()}


def test_over_any_other_encoder_the_result_is_one_small_file(tmp_path):
    data, encoder, _ = rotated()
    train, test = parts(data, 200)
    tuned = tune_adapter(encoder, train, None, tmp_path)
    assert recall(DenseRetriever(tuned.encoder), test) > 0.8
    assert not (tmp_path / "model").exists()
    assert load_adapter(tmp_path / "adapter.safetensors").fingerprint == tuned.encoder.adapter.fingerprint


def test_the_second_call_reads_what_the_first_wrote(tmp_path, monkeypatch):
    data, encoder, _ = rotated()
    train, dev = parts(data, 200)
    first = tune_adapter(encoder, train, dev, tmp_path)
    monkeypatch.setattr("embedfit.tune.adapter.query_adapter", lambda *said: pytest.fail("fitted twice"))
    again = tune_adapter(encoder, train, dev, tmp_path)
    assert (again.strength, again.history, again.seconds) == (first.strength, first.history, first.seconds)
    assert again.encoder.adapter.fingerprint == first.encoder.adapter.fingerprint


def test_killed_before_the_end_it_begins_anew_and_ends_the_same(tmp_path, monkeypatch):
    data, encoder, _ = rotated()
    first = tune_adapter(encoder, data, None, tmp_path / "whole")

    def killed(*said):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("embedfit.encode.adapted.Adapter.save", killed)
        with pytest.raises(KeyboardInterrupt):
            tune_adapter(encoder, data, None, tmp_path / "cut")
    assert not (tmp_path / "cut" / "tuned.json").exists()
    assert tune_adapter(encoder, data, None, tmp_path / "cut").encoder.adapter.fingerprint == first.encoder.adapter.fingerprint


def test_a_folder_with_another_tuning_is_refused(tmp_path):
    data, encoder, _ = rotated()
    tune_adapter(encoder, data, None, tmp_path)
    with pytest.raises(StorageError, match="holds a tuning of another"):
        tune_adapter(encoder, data, None, tmp_path, AdapterConfig(strength=1))


def test_fitting_leaves_no_gradients_behind():
    data, encoder, _ = rotated()
    adapter = query_adapter(encoder, data).encoder.adapter
    assert isinstance(adapter.weight, np.ndarray)
    assert torch.is_grad_enabled()
