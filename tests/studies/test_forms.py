import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.local import LocalEncoder, load_model
from embedfit.encode.pooling import pooling_of
from embedfit.errors import ConfigError, ModelError
from embedfit.retrieve.exact import top_k
from embedfit.studies import forms as forms_module
from embedfit.studies import quantised
from embedfit.studies.forms import check_forms, first_dimensions, to_frame
from embedfit.studies.quantised import Binary, Int8

LOSSLESS = ["loaded by sentence-transformers alone", "in a fresh process"]


@pytest.fixture(scope="module")
def some(transactions):
    return transactions.select(transactions.judged[::5])


@pytest.fixture(scope="module")
def forms(tiny_model, some):
    found = check_forms(
        LocalEncoder(tiny_model, precision="fp32"),
        some,
        "{category}: {sample_transactions}",
        ks=(1, 10),
        matryoshka=(128, 2),
        fresh_process=True,
    )
    return {form.name: form for form in found}


# Every form, on a real model


def test_every_form_is_measured_and_an_untouched_model_passes(forms, some):
    assert list(forms) == ["as measured", *LOSSLESS, "first 128 dimensions", "first 2 dimensions", "int8", "binary", "binary, rescored"]
    for name in LOSSLESS:
        assert forms[name].passed
        assert forms[name].cosine >= 1 - 1e-6
        assert abs(forms[name].difference) <= 1 / 64
    assert forms["as measured"].difference == 0
    assert forms["as measured"].queries == len(some.queries)


def test_the_bytes_of_a_document_are_those_of_its_dimensions(forms):
    bytes = {name: form.bytes for name, form in forms.items()}
    assert bytes == {
        **dict.fromkeys(["as measured", *LOSSLESS], 384 * 4),
        "first 128 dimensions": 128 * 4,
        "first 2 dimensions": 2 * 4,
        "int8": 384,
        "binary": 48,
        "binary, rescored": 48,
    }
    assert all(form.queries_per_second > 0 for form in forms.values())


def test_int8_costs_little_and_a_cut_to_dimensions_that_were_not_trained_for_fails(forms):
    assert forms["int8"].passed
    assert forms["int8"].cosine > 0.999
    assert not forms["first 2 dimensions"].passed
    assert forms["first 2 dimensions"].difference < -0.02


def test_binary_is_reported_and_fails_nothing(forms):
    for name in ("binary", "binary, rescored"):
        assert forms[name].tolerance is None
        assert forms[name].cosine is None
        assert forms[name].passed


def test_the_table_has_a_row_for_each_form(forms):
    frame = to_frame(list(forms.values()))
    assert list(frame.name) == list(forms)
    assert list(frame.columns)[-4:] == ["queries", "bytes", "queries_per_second", "passed"]


def test_a_weight_changed_after_measuring_fails_with_one_line(tiny_model, some, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    encoder = LocalEncoder(folder)
    CachedEncoder(encoder).encode(some.query_texts(), "query")
    CachedEncoder(encoder).encode(some.document_texts("{category}"), "document")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("attention.output.LayerNorm.weight"))
    weights[name] = weights[name].copy()
    weights[name][0] += 5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="gives other vectors than were measured") as caught:
        check_forms(encoder, some, "{category}")
    assert "\n" not in str(caught.value)


def test_a_prompt_that_the_saved_model_does_not_have_fails(tiny_model, some):
    with pytest.raises(ModelError, match="gives other vectors than were measured"):
        check_forms(LocalEncoder(tiny_model, query_prompt="find the category of this: "), some, "{category}")


@pytest.mark.slow
def test_a_model_that_a_fresh_process_cannot_load_fails_with_one_line(tiny_model, some, tmp_path):
    (tmp_path / "model").mkdir()
    with (
        forms_module._fresh_process(tmp_path / "model", {"query": ["a"], "document": ["b"]}) as collect,
        pytest.raises(ModelError) as caught,
    ):
        collect()
    assert str(caught.value).startswith(f"{tmp_path / 'model'}: the saved model cannot be used in a fresh process: ")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_fresh_process_imports_no_file_of_the_working_directory(tiny_model, tmp_path, monkeypatch):
    (tmp_path / "sentence_transformers.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with forms_module._fresh_process(tiny_model, {"query": ["red 'fish'; $(ls)"], "document": ["blue fish", "no fish"]}) as collect:
        found = collect()
    assert found["query"].shape == (1, 384)
    expected = load_model(tiny_model).encode_document(["blue fish", "no fish"], normalize_embeddings=True)
    np.testing.assert_allclose(found["document"], expected, atol=1e-5)


def test_a_cut_to_more_dimensions_than_there_are_is_refused(tiny_model, some):
    with pytest.raises(ConfigError, match="has 384 dimensions, and cannot be cut to 512"):
        check_forms(LocalEncoder(tiny_model), some, "{category}", matryoshka=(512,))


def lora_on(tiny_model, folder, pooling=None):
    """Write a LoRA in peft's form to folder/lora, and base and LoRA merged to folder/model."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = load_model(tiny_model, pooling=pooling)
    torch.manual_seed(0)
    wrapped = get_peft_model(model.transformers_model, LoraConfig(r=4, target_modules=["query", "value"], init_lora_weights=False))
    wrapped.save_pretrained(str(folder / "lora"))
    path = folder / "lora" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": str(tiny_model)}))
    wrapped.merge_and_unload()
    model.save_pretrained(str(folder / "model"), create_model_card=False)


@pytest.mark.slow
def test_a_merged_lora_is_the_base_model_with_the_lora_and_another_one_fails(tiny_model, some, tmp_path):
    lora_on(tiny_model, tmp_path)
    encoder = LocalEncoder(tmp_path / "model", precision="fp32")
    assert (CachedEncoder(encoder).encode(["food"], "query") @ LocalEncoder(tiny_model).encode(["food"], "query").T).item() < 0.999
    [form] = [form for form in check_forms(encoder, some, "{category}", lora=tmp_path / "lora") if form.name == "base model and LoRA"]
    assert form.passed
    assert form.cosine > 1 - 1e-6
    path = tmp_path / "lora" / "adapter_model.safetensors"
    save_file({name: weights * 1.5 for name, weights in load_file(path).items()}, path)
    with pytest.raises(ModelError, match="base model and LoRA, gives other vectors"):
        check_forms(encoder, some, "{category}", lora=tmp_path / "lora")


def test_a_lora_on_a_plain_checkpoint_is_read_with_the_pooling_it_was_trained_with(tiny_model, tmp_path):
    plain = tmp_path / "plain"
    shutil.copytree(tiny_model, plain)
    (plain / "modules.json").unlink()
    shutil.rmtree(plain / "1_Pooling")
    lora_on(plain, tmp_path, pooling="cls")
    tuned = LocalEncoder(tmp_path / "model", precision="fp32")
    assert pooling_of(tuned.folder) == "cls"
    vectors = forms_module._with_lora(tmp_path / "lora", tuned).encode(["food", "a taxi"], normalize_embeddings=True)
    np.testing.assert_allclose(vectors, tuned.encode(["food", "a taxi"], "query"), atol=1e-5)


def test_a_lora_of_pickled_weights_is_refused(tiny_model, some, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_model)}))
    (tmp_path / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        forms_module._with_lora(tmp_path, LocalEncoder(tiny_model))


# Smaller vectors, worked out by hand


def test_int8_codes_are_the_steps_between_least_and_greatest():
    documents = np.array([[0.0, -510.0], [255.0, 0.0], [100.4, -255.0]], np.float32)
    int8 = Int8.of(documents)
    assert int8.codes.tolist() == [[-128, -128], [127, 127], [-28, -1]]  # -255 is step 127.5 of 255, cut to 127, less 128
    assert int8.starts.tolist() == [0, -510]
    assert int8.steps.tolist() == [1, 2]
    # Query (1, 0): products 0, 255, 100. Query (-1, 0): the other way round.
    positions, scores = int8.search(np.array([[1, 0], [-1, 0]], np.float32), 3)
    assert positions.tolist() == [[1, 2, 0], [0, 2, 1]]
    assert (scores[0, 0] - scores[0, 1], scores[0, 1] - scores[0, 2]) == pytest.approx((155, 100))


def test_the_cosine_of_int8_is_taken_with_the_middles_of_the_steps():
    documents = np.array([[0.0, 510.0], [255.0, 0.0], [3.0, 4.0]], np.float32)
    # Steps of 1 and 2: the middles are (0.5, 511), (255.5, 1) and (3.5, 5); the third is the farthest off.
    expected = (3 * 3.5 + 4 * 5) / (5 * np.hypot(3.5, 5))
    assert Int8.of(documents).lowest_cosine(documents) == pytest.approx(expected, abs=1e-9)


def test_int8_takes_a_corpus_of_one_document():
    int8 = Int8.of(np.array([[0.6, 0.8]], np.float32))
    assert int8.search(np.array([[1.0, 0.0]], np.float32), 3)[0].tolist() == [[0]]


def test_binary_counts_the_bits_that_differ():
    documents = np.array([[1, 1, -1], [1, -1, -1], [-1, -1, 1], [1, 1, -2]], np.float32)
    binary = Binary.of(documents)
    assert binary.bits.tolist() == [[0b11000000], [0b10000000], [0b00100000], [0b11000000]]
    positions, scores = binary.search(np.array([[3, 1, -0.1]], np.float32), 4)
    assert positions.tolist() == [[0, 3, 1, 2]]  # equal ones in order of position
    assert scores.tolist() == [[0, 0, -1, -3]]


def test_the_rescoring_ranks_the_nearest_by_the_floats_of_the_query():
    documents = np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]], np.float32)
    query = np.array([[3, 0.5, 0.1]], np.float32)
    # Bits of the query: 111, so that each document differs in one. Products: -3 + .5 + .1, 3 - .5 + .1, 3 + .5 - .1.
    binary = Binary.of(documents)
    assert binary.search(query, 2)[0].tolist() == [[0, 1]]
    positions, scores = binary.search_and_rescore(query, 2)
    assert positions.tolist() == [[2, 1]]
    assert scores[0] == pytest.approx([3.4, 2.6])
    assert binary.search_and_rescore(query, 1)[0].tolist() == [[2]]  # among the four nearest, not the one


def test_the_first_dimensions_are_brought_back_to_unit_length():
    documents = np.array([[0.1, 0.0, 0.99], [0.6, 0.8, 0.0]], np.float32)
    positions, scores = first_dimensions(documents, 2)(np.array([[0.1, 0.0, 0.9]], np.float32), 2)
    assert positions.tolist() == [[0, 1]]
    assert scores[0] == pytest.approx([1.0, 0.6])


@pytest.mark.parametrize("dimensions", [3, 64, 100])
def test_searching_block_by_block_is_searching_all_at_once(dimensions, monkeypatch):
    rng = np.random.default_rng(0)
    documents = rng.integers(-3, 4, size=(97, dimensions)).astype(np.float32)  # with many ties
    queries = rng.integers(-3, 4, size=(23, dimensions)).astype(np.float32)
    binary, int8 = Binary.of(documents), Int8.of(documents)
    searches = (binary.search, binary.search_and_rescore, int8.search)
    whole = [search(queries, 5) for search in searches]
    differ = (queries > 0)[:, None] != (documents > 0)[None]
    expected = np.argsort(differ.sum(axis=2), axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(whole[0][0], expected)
    monkeypatch.setattr(quantised, "DOCUMENTS", 10)
    monkeypatch.setattr(quantised, "QUERIES", 4)
    for search, (positions, scores) in zip(searches, whole, strict=True):
        again = search(queries, 5)
        np.testing.assert_array_equal(again[0], positions)
        np.testing.assert_allclose(again[1], scores, rtol=1e-5)


def test_a_large_corpus_is_searched_with_fewer_queries_and_the_form_says_so(some, tiny_model, monkeypatch):
    monkeypatch.setattr(forms_module, "_PAIRS", 27 * 10)
    monkeypatch.setattr(forms_module, "_TEXTS", 8)
    measured = forms_module._Measured(LocalEncoder(tiny_model), some, "{category}", "mrr@10", 10)
    assert measured.searched("as measured", measured.search, 4).queries == 10
    assert {kind: len(texts) for kind, texts in measured.sample().items()} == {"query": 8, "document": 8}


def test_documents_that_say_the_same_stay_tied():
    # Encoded again, one of two equal documents alone would differ in the last digit, and win or lose every tie.
    corpus = {id: Document(id, "food") for id in "abcdef"}
    data = Dataset({"q": Query("q", "food")}, corpus, {"q": {"a": 1}})

    class Stub:
        folder, name, fingerprint = "nowhere", "stub", "stub-ties"
        loaded, loading = type("Loaded", (), {"bf16": False}), {}

        def encode(self, texts, kind):
            return np.tile(np.array([[0.6, 0.8]], np.float32), (len(texts), 1))

    measured = forms_module._Measured(Stub(), data, "{text}", "recall@1", 1)
    near = np.array([[0.6, 0.7999999]], np.float32)
    form = measured.encoded_again("again", measured.sample(), {"query": near, "document": near}, 1.0)
    assert form.value == 1
    assert top_k(near, near, 1)[0].tolist() == [[0]]
