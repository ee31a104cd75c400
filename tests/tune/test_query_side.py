import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from servers import Embeddings, running

from embedfit.config import ModelConfig, TuneConfig, make_config
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder, ModelEncoder
from embedfit.encode.named import encoder_of
from embedfit.encode.remote import RemoteEncoder
from embedfit.encode.sides import RECORD, TwoEncoders
from embedfit.errors import ConfigError, ModelError
from embedfit.pipeline import experiment, publishing
from embedfit.pipeline.needs import check_method
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import index_documents
from embedfit.studies.forgetting import measure_forgetting
from embedfit.tune.candidates import AllDocuments
from embedfit.tune.full import tune_model, tune_weights
from embedfit.tune.loss import multi_positive_softmax
from embedfit.tune.merge import merge_models
from embedfit.tune.query_side import CorpusLoss, FrozenDocuments, map_between
from embedfit.tune.training import Training

QUERY, DOCUMENT = "query_0_Transformer/model.safetensors", "document_0_Transformer/model.safetensors"
SETTINGS = {"documents": "frozen", "epochs": 2, "batch_size": 12}


@pytest.fixture(scope="module")
def few(transactions):
    """24 training queries over 27 labels."""
    return transactions.select(transactions.judged[::12][:24])


@pytest.fixture(scope="module")
def base(two_layers):
    return LocalEncoder(two_layers, precision="fp32")


@pytest.fixture(scope="module")
def tuned(base, few, tmp_path_factory):
    return tune_model(base, few, None, tmp_path_factory.mktemp("query-side"), TuneConfig(**SETTINGS, freeze=1, merge=1.0))


def opened(tuned):
    return LocalEncoder(tuned.model, precision="fp32")


# The loss


def drawn(seed, queries=5, documents=9):
    """Random vectors, and judgements with several answers, a copy of an answer, and a query that is a document."""
    rng = np.random.default_rng(seed)
    texts = {f"d{i}": f"document {i}" for i in range(documents)}
    texts["d8"] = texts["d1"]
    asked = {f"q{i}": f"query {i}" for i in range(queries - 1)} | {"d7": "document 7"}
    qrels = {id: {f"d{j}": int(rng.integers(1, 4)) for j in rng.choice(7, rng.integers(1, 3), replace=False)} for id in asked}
    qrels["q0"] = {"d1": 2, "d3": 0}
    return Dataset(
        {id: Query(id, text) for id, text in asked.items()}, {id: Document(id, text) for id, text in texts.items()}, qrels
    ), torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(queries + documents, 4)).astype(np.float32)), dim=1)


class Given:
    """An encoder of documents whose vectors are given."""

    name = fingerprint = "given"

    def __init__(self, vectors):
        self.vectors, self.texts = vectors, []

    def encode(self, texts, kind):
        self.texts += texts
        return self.vectors[[int(text.split()[1]) for text in texts]]


@pytest.mark.parametrize("block", [64 * 2**20, 4 * 5 * 2])  # all documents at once, and two at a time
@pytest.mark.parametrize("seed", range(4))
def test_the_loss_is_that_of_all_documents_as_candidates_in_blocks_of_any_size(seed, block):
    data, vectors = drawn(seed)
    documents = vectors[5:].numpy()
    documents[8] = documents[1]
    rows = torch.tensor([3, 0, 4, 1])
    grades = torch.from_numpy(AllDocuments(data).candidates(rows.tolist()).grades)
    answers = grades.clone()
    for row in range(4):  # a copy of an answer is no negative
        answers[row, 8] = -1 if answers[row, 1] > 0 else answers[row, 8]
        answers[row, 1] = -1 if answers[row, 8] > 0 else answers[row, 1]
    frozen = FrozenDocuments.of(Given(documents), data, "{text}", 0)
    loss = CorpusLoss(frozen, lambda features: {"sentence_embedding": features["vectors"]}, 3.0, [2], block_bytes=block)
    results = []
    for whole in (True, False):
        queries = vectors[:5][rows].clone().requires_grad_(True)
        if whole:
            parts = [(queries[:, :size], torch.from_numpy(documents[:, :size])) for size in (2, 4)]
            cosines = [torch.nn.functional.normalize(a, dim=1) @ torch.nn.functional.normalize(b, dim=1).T for a, b in parts]
            value = torch.stack([multi_positive_softmax(cosine * 3.0, answers) for cosine in cosines]).mean()
        else:
            value = loss([{"vectors": queries}], rows)
        value.backward()
        results.append((value.detach(), queries.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-5, rtol=1e-4)


def test_beyond_a_number_of_documents_a_share_with_every_answer_is_encoded():
    data, vectors = drawn(0)
    encoder = Given(vectors[5:].numpy())
    relevant = {id for query in data.queries for id in data.relevant(query)}
    frozen = FrozenDocuments.of(encoder, data, "{text}", 0, most=len(relevant) + 1)
    assert len(frozen.vectors) == len(encoder.texts) == len(relevant) + 1
    texts = dict(zip(data.corpus, data.document_texts("{text}"), strict=True))
    for query, grades in zip(data.queries, frozen.grades, strict=True):
        assert {encoder.texts[place]: grade for place, grade in grades.items()} == {
            texts[id]: grade for id, grade in data.relevant(query).items()
        }
    again = Given(vectors[5:].numpy())
    FrozenDocuments.of(again, data, "{text}", 0, most=len(relevant) + 1)
    assert again.texts == encoder.texts


# Training


def test_the_query_encoder_alone_is_trained_above_its_frozen_layers(tuned, two_layers):
    assert (tuned.candidates, tuned.frozen) == ("corpus", 1)
    assert tuned.history[1]["loss"] < tuned.history[0]["loss"]
    before, documents, queries = (
        load_file(two_layers / "model.safetensors"),
        load_file(tuned.model / DOCUMENT),
        load_file(tuned.model / QUERY),
    )
    assert all(torch.equal(before[name], documents[name]) for name in before)
    moved = {name for name in before if not torch.equal(before[name], queries[name])}
    assert moved
    assert all(".layer.1." in name for name in moved)


def test_no_document_is_encoded_that_the_base_model_has_encoded(base, few, tmp_path, monkeypatch):
    CachedEncoder(base).encode(few.document_texts(), "document")
    encode, kinds = ModelEncoder.encode, []
    monkeypatch.setattr(ModelEncoder, "encode", lambda self, texts, kind: kinds.append(kind) or encode(self, texts, kind))
    tuned = tune_model(base, few, few.select(few.judged[:6]), tmp_path, TuneConfig(**SETTINGS))
    assert {"mrr@10", "recall@1"} <= tuned.history[0].keys()
    cached = CachedEncoder(opened(tuned))
    np.testing.assert_array_equal(
        cached.encode(few.document_texts(), "document"), CachedEncoder(base).encode(few.document_texts(), "document")
    )
    assert set(kinds) == {"query"}  # those of the dev part


@pytest.mark.parametrize(
    "settings", [{"freeze": 1}, {"method": "lora", "matryoshka": (64,)}, {"dropout": 0.1, "merge": 1.0}], ids=["freeze", "lora", "dropout"]
)
def test_stopped_and_started_again_it_ends_with_the_same_model(two_layers, few, tmp_path, killed, settings):
    base, settings = LocalEncoder(two_layers, precision="fp32"), TuneConfig(**SETTINGS, **settings)
    whole = tune_model(base, few, None, tmp_path / "whole", settings)
    assert killed(3, base, few, None, tmp_path / "killed", settings) == [2, 3]
    again = tune_model(base, few, None, tmp_path / "killed", settings)
    assert (again.history, again.tokens) == (whole.history, whole.tokens)
    ours, theirs = (load_file(path.model / QUERY) for path in (again, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize(
    ("settings", "file"),
    [
        ({"documents": "frozen"}, QUERY),
        ({"documents": "frozen", "method": "lora", "lora_rank": 2}, QUERY),
        ({"merge": 0.25}, "model.safetensors"),
    ],
    ids=["frozen", "lora", "trained"],
)
def test_trained_weights_are_merged_with_the_base_models(tiny_model, few, tmp_path, settings, file):
    base, merged = LocalEncoder(tiny_model, precision="fp32"), TuneConfig(epochs=1, batch_size=12, **settings)
    whole = merged.model_copy(update={"merge": 1.0})
    paths = [tune_model(base, few, None, tmp_path / name, config).model / file for name, config in (("whole", whole), ("merged", merged))]
    before, after, between = (load_file(path) for path in (base.folder / "model.safetensors", *paths))
    assert not all(torch.equal(before[name], after[name]) for name in before)
    assert merged.merge_weight < 1
    for name in before:
        torch.testing.assert_close(between[name], torch.lerp(before[name], after[name], merged.merge_weight), atol=1e-6, rtol=1e-5)


# The model


def test_sentence_transformers_and_embedfit_load_the_model_alike(tuned, base, few):
    from sentence_transformers import SentenceTransformer

    texts, encoder = [*few.query_texts(), "a longer text " * 200], opened(tuned)
    plain = SentenceTransformer(str(tuned.model), device="cpu")
    np.testing.assert_allclose(plain.encode_query(texts), encoder.encode(texts, "query"), atol=1e-5)
    for encode in (plain.encode_document, plain.encode):  # without a task, a text is a document
        np.testing.assert_allclose(encode(texts), base.encode(texts, "document"), atol=1e-5)
    np.testing.assert_array_equal(encoder.encode(texts, "document"), base.encode(texts, "document"))
    assert np.abs(encoder.encode(texts, "query") - base.encode(texts, "query")).max() > 0.01


def test_the_documents_are_known_to_be_the_base_models(tuned, base, tmp_path):
    encoder = opened(tuned)
    assert encoder.identity == base.identity
    assert encoder.document_fingerprint == base.document_fingerprint == base.fingerprint
    assert encoder.fingerprint != base.fingerprint
    assert encoder.whole_identity not in (base.whole_identity, encoder.identity)
    assert LocalEncoder(tuned.model, precision="fp32", document_prompt="passage: ").identity != base.identity
    two = TwoEncoders(base, encoder)
    assert (two.identity, two.document_fingerprint) == (base.identity, base.fingerprint)
    assert two.fingerprint not in (base.fingerprint, encoder.fingerprint)
    # A record that does not match the files is worth nothing, nor is a broken one.
    shutil.copytree(tuned.model, tmp_path / "other")
    (tmp_path / "other" / DOCUMENT).write_bytes((tuned.model / QUERY).read_bytes())
    assert LocalEncoder(tmp_path / "other", precision="fp32").identity != base.identity
    (tmp_path / "other" / DOCUMENT).write_bytes((tuned.model / DOCUMENT).read_bytes())
    assert LocalEncoder(tmp_path / "other", precision="fp32").identity == base.identity
    for record in ("{", "[]", '{"documents": 1}', json.dumps({"documents": ["x"], "files": [["../model", "x"]]})):
        (tmp_path / "other" / RECORD).write_text(record)
        assert LocalEncoder(tmp_path / "other", precision="fp32").identity != base.identity


def test_an_index_made_with_the_base_model_serves_the_tuned_one(tuned, base, few, tmp_path):
    config = make_config({"data": {"queries": "-"}, "store": {"location": str(tmp_path / "chroma")}})
    with open_store(config.store) as store:
        first = index_documents(store, few, base)
        again = index_documents(store, few, opened(tuned))
        assert (again.collection, again.written, again.recall) == (first.collection, 0, None)
        hits = LiveIndex(store, opened(tuned)).find(few.query_texts()[0], 3)
    query, documents = opened(tuned).encode(few.query_texts()[:1], "query"), base.encode(few.document_texts(), "document")
    assert [hit.score for hit in hits] == pytest.approx(np.sort((query @ documents.T)[0])[::-1][:3], abs=1e-5)


def test_a_tuned_model_can_be_merged_and_tuned_again(tuned, base, few, tmp_path):
    merged = merge_models(base, opened(tuned), 0.5, tmp_path / "merged")
    assert (merged.identity, merged.document_fingerprint) == (base.identity, base.fingerprint)
    before, after, half = (load_file(path) for path in (base.folder / "model.safetensors", tuned.model / QUERY, merged.folder / QUERY))
    for name in before:
        torch.testing.assert_close(half[name], torch.lerp(before[name], after[name], 0.5), atol=1e-6, rtol=1e-5)
    forgetting = measure_forgetting(base, opened(tuned), few, weights=(0.5,), held_out=[(opened(tuned), few)])
    assert [point.weight for point in forgetting.points] == [0, 0.5, 1]
    again = opened(tune_model(merged, few, None, tmp_path / "again", TuneConfig(**SETTINGS)))
    assert again.identity == base.identity
    assert again.whole_identity != merged.whole_identity
    with pytest.raises(ModelError, match=r"with two models; fix: tune\.documents = 'frozen'"):
        tune_model(merged, few, None, tmp_path / "full", TuneConfig())


# Another model for the queries


@pytest.mark.parametrize("name", ["local", "remote"])
def test_a_model_learns_to_find_the_documents_of_another_one(tiny_model, two_layers, few, tmp_path, name):
    with running(Embeddings()) as server:
        documents = LocalEncoder(two_layers, precision="fp32") if name == "local" else RemoteEncoder(f"openai:words@{server.address}/v1")
        queries, settings = LocalEncoder(tiny_model, precision="fp32"), TuneConfig(**SETTINGS)
        tuned = tune_weights(queries, Training(few, None, tmp_path / name, settings), documents)
        assert tuned.history[1]["loss"] < tuned.history[0]["loss"]
        texts = few.document_texts()
        opened = encoder_of(ModelConfig(name=str(tuned.model), precision="fp32" if name == "local" else "auto"))
        for encoder in (tuned.encoder, opened):
            assert encoder.identity == documents.identity
            np.testing.assert_allclose(encoder.encode(texts, "document"), documents.encode(texts, "document"), atol=1e-6)
        width = documents.encode(texts[:1], "document").shape[1]
        assert opened.encode(few.query_texts(), "query").shape == (len(few.queries), width)
        with pytest.raises(ModelError, match="encodes queries alone, for documents of"):
            LocalEncoder(tuned.model).encode(texts, "document")
        again = tune_weights(queries, Training(few, None, tmp_path / name, settings), documents)
        assert again == tuned
        # The map alone, before any training, already brings a text near to itself.
        dense, norm = map_between(queries, documents, Training(few, None, tmp_path, settings))
        with torch.no_grad():
            mapped = norm(dense({"sentence_embedding": torch.from_numpy(queries.encode(texts, "query"))}))["sentence_embedding"].numpy()
        nearest = (mapped @ documents.encode(texts, "document").T).argmax(axis=1)
        assert (nearest == np.arange(len(texts))).mean() > 0.9


def test_settings_of_a_model_for_queries_are_checked(tiny_model, word_encoder):
    check_method(word_encoder, TuneConfig(documents="frozen", query_model=str(tiny_model)))
    with pytest.raises(ConfigError, match=r"tune\.query_model is trained for frozen documents; fix: tune\.documents = 'frozen'"):
        check_method(word_encoder, TuneConfig(query_model=str(tiny_model)))
    with pytest.raises(ConfigError, match="has 1 layers"):
        check_method(word_encoder, TuneConfig(documents="frozen", query_model=str(tiny_model), freeze=1))
    config = make_config({"data": {"queries": "x"}, "tune": {"documents": "frozen", "query_model": str(tiny_model)}})
    with pytest.raises(ConfigError, match="'embedfit run' measures models that encode documents too; fix: 'embedfit tune'"):
        experiment.run(config)


# A run


def test_a_run_is_measured_published_and_read_again(few, base, tmp_path, transactions):
    data = transactions.select(transactions.judged[:60])
    settings = {"split": {"folds": 0}, "tune": {"documents": "frozen", "epochs": 1}, "general": {"measure": "off"}, "output": str(tmp_path)}
    result = experiment.run(data, model=base, searcher={"views": ["documents"]}, **settings)
    assert "encoder of queries alone" in result.report.read_text()
    model = LocalEncoder(result.model, precision="fp32")
    assert model.identity == base.identity
    [publication] = publishing.prepare_publications(result.folder, str(tmp_path / "published"))
    parity = publishing.publish_run(result.folder, publication)
    assert parity is not None
    published = LocalEncoder(tmp_path / "published", precision="fp32")
    assert (published.identity, published.whole_identity) == (base.identity, model.whole_identity)
    card = (tmp_path / "published" / "README.md").read_text()
    assert "vectors of 384 dimensions" in card
    assert "documents are encoded by the base model" in card
    assert "weight of the trained weights" in card
    (result.model / QUERY).write_bytes((result.model / DOCUMENT).read_bytes())
    with pytest.raises(Exception, match="is not the model that was measured"):
        publishing.prepare_publications(result.folder, str(tmp_path / "other"))
