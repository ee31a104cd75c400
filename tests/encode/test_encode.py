import contextlib
import inspect
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from embedfit.encode.cache import CachedEncoder, cached_models, clear_cache
from embedfit.encode.encoder import Part
from embedfit.encode.local import LocalEncoder, Truncation
from embedfit.encode.pooling import pooling_of, pools_itself
from embedfit.encode.precision import use_bf16, without_cudnn_attention
from embedfit.encode.vector_file import VectorFile
from embedfit.errors import ConfigError, ModelError, OfflineError, StorageError
from embedfit.files import cache_limit, file_sha256
from embedfit.hub import MINILM_SHA256, model_folder, weights_of

TEXTS = ["a short one", "two", "the longest of these texts by a good deal, so that sorting by length moves it", "two"]


def test_vectors_are_those_of_the_library_in_the_order_given(tiny_model):
    from sentence_transformers import SentenceTransformer

    ours = LocalEncoder(tiny_model, precision="fp32").encode(TEXTS, "query")
    theirs = SentenceTransformer(str(tiny_model)).encode(TEXTS, normalize_embeddings=True)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1, atol=1e-5)


def test_bf16_vectors_are_close_to_fp32(tiny_model):
    exact = LocalEncoder(tiny_model, precision="fp32").encode(TEXTS, "query")
    rough = LocalEncoder(tiny_model, precision="bf16").encode(TEXTS, "query")
    similarity = (exact * rough).sum(axis=1)
    assert similarity.min() > 0.999
    assert similarity.min() < 1 - 1e-7  # it did compute in bf16


def test_no_texts_give_no_rows_of_the_right_width(tiny_model):
    assert LocalEncoder(tiny_model).encode([], "query").shape == (0, 384)


def test_prompts_are_put_before_queries_and_documents(tiny_model):
    encoder = LocalEncoder(tiny_model, query_prompt="query: ", document_prompt="passage: ", precision="fp32")
    plain = LocalEncoder(tiny_model, precision="fp32")
    np.testing.assert_allclose(encoder.encode(["tea"], "query"), plain.encode(["query: tea"], "query"), atol=1e-5)
    np.testing.assert_allclose(encoder.encode(["tea"], "document"), plain.encode(["passage: tea"], "document"), atol=1e-5)


def test_the_models_own_prompts_are_used_unless_others_are_given(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model))
    model.prompts = {"query": "find: ", "passage": "text: "}
    model.save_pretrained(str(tmp_path / "prompted"), create_model_card=False)
    assert LocalEncoder(tmp_path / "prompted").prompts == {"query": "find: ", "document": "text: "}
    assert LocalEncoder(tmp_path / "prompted", query_prompt="").prompts["query"] == ""


@pytest.fixture
def plain_model(tiny_model, tmp_path):
    """The folder of a transformer alone, as transformers saves it: nothing says how its tokens are pooled."""
    folder = tmp_path / "plain"
    shutil.copytree(tiny_model, folder)
    for name in ("modules.json", "config_sentence_transformers.json", "sentence_bert_config.json"):
        (folder / name).unlink(missing_ok=True)
    for name in ("1_Pooling", "2_Normalize"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return folder


def changed_settings(folder, copy, **changes):
    """Copy a model's folder with other settings in config_sentence_transformers.json."""
    shutil.copytree(folder, copy)
    path = copy / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return copy


def without_normalize(folder):
    path = folder / "modules.json"
    path.write_text(json.dumps([module for module in json.loads(path.read_text()) if "Normalize" not in module["type"]]))
    return folder


def pooled(folder, texts, mode, *, unit=True):
    """Return vectors by transformers alone: of the first token, of the last, or the mean of all."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(str(folder)), AutoModel.from_pretrained(str(folder), dtype=torch.float32)
    vectors = []
    with torch.inference_mode():
        for text in texts:
            tokens = model.eval()(**tokenizer([text], return_tensors="pt")).last_hidden_state[0]
            vector = {"cls": tokens[0], "lasttoken": tokens[-1], "mean": tokens.mean(dim=0), "max": tokens.max(dim=0).values}[mode]
            vectors.append((torch.nn.functional.normalize(vector, dim=0) if unit else vector).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("mode", ["cls", "lasttoken", "mean", "max"])
def test_a_folder_that_names_no_pooling_takes_the_configured_one(plain_model, mode, capsys):
    encoder = LocalEncoder(plain_model, precision="fp32", pooling=mode)
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), pooled(plain_model, TEXTS, mode), atol=1e-5)
    assert capsys.readouterr().err == ""


def test_a_folder_that_names_no_pooling_is_read_as_the_library_reads_it_with_one_note(plain_model, capsys):
    encoder = LocalEncoder(plain_model, precision="fp32")
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), pooled(plain_model, TEXTS, "mean"), atol=1e-5)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{plain_model}: the folder has no modules.json")
    assert "pooling 'mean' is used" in line
    assert 'pooling = "cls" in [model]' in line
    again = LocalEncoder(plain_model, precision="fp32", pooling="mean")
    assert (again.fingerprint, again.identity) == (encoder.fingerprint, encoder.identity)
    other = LocalEncoder(plain_model, precision="fp32", pooling="cls")
    assert other.fingerprint != encoder.fingerprint
    assert other.identity != encoder.identity
    assert capsys.readouterr().err == ""


TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
NORMALIZE = {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}


@pytest.mark.parametrize("modules", [[TRANSFORMER], [TRANSFORMER, NORMALIZE]])
def test_modules_with_a_transformer_alone_name_no_pooling(plain_model, modules, tmp_path, capsys):
    (plain_model / "modules.json").write_text(json.dumps(modules))
    assert not pools_itself(plain_model)
    encoder = LocalEncoder(plain_model, precision="fp32")
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), pooled(plain_model, TEXTS, "mean"), atol=1e-5)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{plain_model}: its modules.json does not name a pooling; pooling 'mean' is used")
    cls = LocalEncoder(plain_model, precision="fp32", pooling="cls")
    vectors = cls.encode(TEXTS, "query")
    np.testing.assert_allclose(vectors, pooled(plain_model, TEXTS, "cls"), atol=1e-5)
    cls.loaded.model.save(str(tmp_path / "saved"))
    assert pooling_of(tmp_path / "saved") == "cls"
    assert pools_itself(tmp_path / "saved")
    np.testing.assert_allclose(LocalEncoder(tmp_path / "saved", precision="fp32").encode(TEXTS, "query"), vectors, atol=1e-5)


def test_a_transformer_that_outputs_sentence_vectors_needs_no_pooling(plain_model, capsys):
    (plain_model / "modules.json").write_text(json.dumps([TRANSFORMER]))
    (plain_model / "sentence_bert_config.json").write_text(json.dumps({"module_output_name": "sentence_embedding"}))
    assert pools_itself(plain_model)
    assert LocalEncoder(plain_model).pooling is None
    with pytest.raises(ModelError, match=r"has no layer that pools tokens, and model\.pooling is 'cls'"):
        LocalEncoder(plain_model, pooling="cls")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("modules", [None, [TRANSFORMER]])
def test_a_pooling_is_read_even_if_the_other_modules_are_missing(plain_model, modules, capsys):
    if modules:
        (plain_model / "modules.json").write_text(json.dumps(modules))
    (plain_model / "1_Pooling").mkdir()
    path = plain_model / "1_Pooling" / "config.json"
    flags = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    path.write_text(json.dumps(flags))
    encoder = LocalEncoder(plain_model, precision="fp32")
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), pooled(plain_model, TEXTS, "cls"), atol=1e-5)
    assert LocalEncoder(plain_model, precision="fp32", pooling="cls").identity == encoder.identity
    with pytest.raises(ModelError, match=r"has pooling 'cls', and model\.pooling is 'mean'; fix: remove model\.pooling"):
        LocalEncoder(plain_model, pooling="mean")
    path.write_text(json.dumps({**flags, "pooling_mode_mean_tokens": True}))
    both = LocalEncoder(plain_model, precision="fp32")
    halves = np.hstack([pooled(plain_model, TEXTS, mode, unit=False) for mode in ("cls", "mean")])
    np.testing.assert_allclose(both.encode(TEXTS, "query"), halves / np.linalg.norm(halves, axis=1, keepdims=True), atol=1e-5)
    assert LocalEncoder(plain_model, pooling=both.pooling).pooling == "cls+mean"  # as a worker is told
    assert capsys.readouterr().err == ""


def test_a_pooling_without_the_prompt_leaves_it_out_also_without_modules(tiny_model, tmp_path):
    whole = tmp_path / "whole"
    shutil.copytree(tiny_model, whole)
    path = whole / "1_Pooling" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "include_prompt": False}))
    shutil.copytree(whole, tmp_path / "bare")
    (tmp_path / "bare" / "modules.json").unlink()
    expected = LocalEncoder(whole, precision="fp32", query_prompt="search: ").encode(TEXTS, "query")
    vectors = LocalEncoder(tmp_path / "bare", precision="fp32", query_prompt="search: ").encode(TEXTS, "query")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_a_model_with_further_layers_and_no_pooling_gives_a_one_line_error(plain_model):
    from sentence_transformers.sentence_transformer.modules import Dense

    (plain_model / "1_Dense").mkdir()
    Dense(json.loads((plain_model / "config.json").read_text())["hidden_size"], 8).save(str(plain_model / "1_Dense"))
    dense = {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"}
    (plain_model / "modules.json").write_text(json.dumps([TRANSFORMER, dense]))
    with pytest.raises(ModelError, match=r"its modules\.json names no layer that pools token vectors; fix: ") as caught:
        LocalEncoder(plain_model, precision="fp32").encode(TEXTS, "query")
    assert "\n" not in str(caught.value)


def test_a_causal_language_model_without_modules_is_pooled_by_its_last_token(tiny_model, tmp_path, capsys):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(str(tiny_model))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)).save_pretrained(
        tmp_path / "causal"
    )
    tokenizer.save_pretrained(tmp_path / "causal")
    encoder = LocalEncoder(tmp_path / "causal", precision="fp32")
    assert "pooling 'lasttoken' is used" in capsys.readouterr().err
    np.testing.assert_allclose(encoder.encode(TEXTS, "query"), pooled(tmp_path / "causal", TEXTS, "lasttoken"), atol=1e-5)


def test_a_pooling_other_than_the_folders_is_refused(tiny_model):
    assert LocalEncoder(tiny_model, pooling="mean").fingerprint == LocalEncoder(tiny_model).fingerprint
    with pytest.raises(ModelError, match=r"has pooling 'mean', and model\.pooling is 'cls'; fix: remove model\.pooling"):
        LocalEncoder(tiny_model, pooling="cls")
    with pytest.raises(ConfigError, match="pooling 'average' is unknown; expected one of auto, mean, cls"):
        LocalEncoder(tiny_model, pooling="average")


def test_the_pooling_flags_of_older_folders_are_read(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "old")
    path = tmp_path / "old" / "1_Pooling" / "config.json"
    flags = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    path.write_text(json.dumps(flags))
    assert pooling_of(tmp_path / "old") == "cls"
    LocalEncoder(tmp_path / "old", pooling="cls")
    path.write_text(json.dumps({**flags, "pooling_mode_mean_tokens": True}))
    with pytest.raises(ModelError, match=r"has pooling 'cls\+mean'"):
        LocalEncoder(tmp_path / "old", pooling="cls")


@pytest.mark.parametrize("similarity", ["dot", "euclidean", "manhattan"])
def test_a_model_made_for_another_similarity_is_saved_with_cosine_similarity(tiny_model, tmp_path, similarity, capsys):
    from sentence_transformers import SentenceTransformer

    folder = without_normalize(changed_settings(tiny_model, tmp_path / "other", similarity_fn_name=similarity))
    encoder = LocalEncoder(folder, precision="fp32")
    assert f"{folder}: made for {similarity} similarity, but measured with cosine similarity" in capsys.readouterr().err
    vectors = encoder.encode(TEXTS, "query")
    encoder.loaded.model.save_pretrained(str(tmp_path / "saved"), create_model_card=False)
    saved = SentenceTransformer(str(tmp_path / "saved"))
    assert saved.similarity_fn_name == "cosine"
    theirs = saved.encode(TEXTS)
    np.testing.assert_allclose(theirs @ theirs.T, vectors @ vectors.T, atol=1e-5)  # whoever takes the dot product ranks alike


def test_a_model_for_dot_products_of_unit_vectors_gives_no_note(tiny_model, tmp_path, capsys):
    folder = changed_settings(tiny_model, tmp_path / "dot", similarity_fn_name="dot")
    assert [type(module).__name__ for module in LocalEncoder(folder).loaded.model] == ["Transformer", "Pooling", "Normalize"]
    assert capsys.readouterr().err == ""


def test_a_model_that_truncates_its_vectors_is_measured_and_tuned_truncated(tiny_model, tmp_path):
    from sentence_transformers import SentenceTransformer

    from embedfit.encode.adapted import Adapter, save_adapted

    folder = changed_settings(tiny_model, tmp_path / "cut", truncate_dim=32)
    encoder = LocalEncoder(folder, precision="fp32")
    ours = encoder.encode(TEXTS, "query")
    assert ours.shape == (4, 32)
    assert encoder.encode([], "query").shape == (0, 32)
    np.testing.assert_allclose(ours, SentenceTransformer(str(folder)).encode(TEXTS, normalize_embeddings=True), atol=1e-5)
    weight = np.linalg.qr(np.random.default_rng(0).normal(size=(32, 32)))[0].astype(np.float32)
    adapter = Adapter(weight, np.full(32, 0.1, np.float32), encoder.fingerprint, encoder.name)
    saved = SentenceTransformer(str(save_adapted(encoder, adapter, tmp_path / "adapted" / "model")))
    np.testing.assert_allclose(saved.encode_query(TEXTS), adapter.apply(ours), atol=1e-5)
    np.testing.assert_allclose(saved.encode_document(TEXTS), ours, atol=1e-5)


def test_an_unused_default_prompt_is_noted_and_not_saved(tiny_model, tmp_path, capsys):
    prompts = {"retrieval": "Represent this: ", "query": "", "document": ""}
    folder = changed_settings(tiny_model, tmp_path / "prompted", prompts=prompts, default_prompt_name="retrieval")
    encoder = LocalEncoder(folder)
    assert "its default prompt 'retrieval' is put before neither queries nor documents" in capsys.readouterr().err
    assert encoder.loaded.model.default_prompt_name is None
    LocalEncoder(folder, query_prompt="Represent this: ", document_prompt="")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", ["CrossEncoder", "SparseEncoder", "MultiVectorEncoder"])
def test_a_model_of_another_type_is_refused(tiny_model, tmp_path, kind):
    folder = changed_settings(tiny_model, tmp_path / "other", model_type=kind)
    with pytest.raises(ModelError, match=f"is a {kind}; expected a model that gives one vector for each text"):
        LocalEncoder(folder)


def test_settings_that_are_not_json_give_a_one_line_error(tiny_model, tmp_path):
    folder = changed_settings(tiny_model, tmp_path / "broken")
    for content in ("{", "[]"):
        (folder / "config_sentence_transformers.json").write_text(content)
        with pytest.raises(ModelError, match=r"config_sentence_transformers\.json: is"):
            LocalEncoder(folder)


def test_long_texts_are_counted_over_the_whole_corpus_and_not_its_first_slice(tiny_model, tmp_path, capsys):
    long, short = [f"{'word ' * 9}{row}" for row in range(1030)], [f"word {row}" for row in range(70)]
    encoder = LocalEncoder(tiny_model, precision="fp32")
    encoder.loaded.model.max_seq_length = 8
    CachedEncoder(encoder, tmp_path).encode(long + short, "document")
    assert capsys.readouterr().err.startswith("Warning: 1,030 of 1,100 document texts are longer than the 8 tokens the model reads")


def test_truncation_is_counted_in_tokens(tiny_model):
    encoder = LocalEncoder(tiny_model).loaded
    found = encoder.truncation(["one two", "word " * 300], "document")
    assert found.counts.tolist() == [4, 302]  # and the tokens that begin and end a text
    assert found.cut.tolist() == [False, True]
    assert found.share_lost == pytest.approx((302 - 256) / 306)
    assert Truncation(np.zeros(0, np.int64), 5).share_lost == 0


def test_a_text_of_100_000_characters_is_encoded_with_one_warning(tiny_model, capsys):
    encoder = LocalEncoder(tiny_model)
    vectors = encoder.encode(["word " * 20_000, "word"], "query")
    assert np.isfinite(vectors).all()
    assert capsys.readouterr().err.startswith("Warning: 1 of 2 query texts are longer than the 256 tokens the model reads: 98.7% of")
    encoder.encode(["word " * 20_000], "query")
    assert capsys.readouterr().err == ""


def test_the_fingerprint_changes_with_weights_prompt_pooling_and_precision(tiny_model, tmp_path):
    first = LocalEncoder(tiny_model).fingerprint
    assert LocalEncoder(tiny_model).fingerprint == first
    assert LocalEncoder(tiny_model, query_prompt="q: ").fingerprint != first
    assert LocalEncoder(tiny_model, precision="bf16").fingerprint != first
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    assert LocalEncoder(copy).fingerprint == first
    pooling = copy / "1_Pooling" / "config.json"
    pooling.write_text(pooling.read_text().replace("mean", "cls").replace('_mean_tokens": true', '_mean_tokens": false'))
    assert LocalEncoder(copy).fingerprint != first
    shutil.copytree(tiny_model, copy, dirs_exist_ok=True)
    weights = weights_of(copy)[0]
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert LocalEncoder(copy).fingerprint != first


def test_cached_vectors_are_read_back_exactly(word_encoder, tmp_path):
    first = CachedEncoder(word_encoder, tmp_path)
    vectors = first.encode(["a", "b", "a"], "query")
    assert first.misses == 2
    again = CachedEncoder(word_encoder, tmp_path)
    np.testing.assert_array_equal(again.encode(["b", "a", "a"], "query"), vectors[[1, 0, 2]])
    assert again.misses == 0
    again.encode(["a"], "document")
    assert again.misses == 1  # the same text as a document may have another vector


def test_a_tuned_model_never_gets_the_base_models_vectors(tiny_model, tmp_path):
    base, prompted = LocalEncoder(tiny_model), LocalEncoder(tiny_model, query_prompt="other: ")
    CachedEncoder(base, tmp_path).encode(["a"], "query")
    cached = CachedEncoder(prompted, tmp_path)
    cached.encode(["a"], "query")
    assert cached.misses == 1


def test_several_processes_may_start_a_cache_at_the_same_moment(word_encoder, tmp_path):
    for number in range(20):
        together = threading.Barrier(8)

        def begin(folder, together=together):
            together.wait()
            return CachedEncoder(word_encoder, folder).encode(["a b"], "query")

        with ThreadPoolExecutor(8) as pool:
            vectors = list(pool.map(begin, [tmp_path / str(number)] * 8))
        assert np.array_equal(np.concatenate(vectors), word_encoder.encode(["a b"] * 8, "query"))


def test_the_error_for_an_unusable_cache_names_the_setting_that_moves_it(word_encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="EMBEDFIT_CACHE"):
        CachedEncoder(word_encoder, tmp_path / "file").encode(["a"], "query")


def test_the_bundled_weights_are_the_hubs_own():
    folder = model_folder("all-MiniLM-L6-v2")
    assert file_sha256(folder / "model.safetensors") == MINILM_SHA256
    assert model_folder("sentence-transformers/all-MiniLM-L6-v2") == folder


def test_changed_bundled_weights_are_refused(monkeypatch):
    monkeypatch.setattr("embedfit.hub.MINILM_SHA256", "0" * 64)
    with pytest.raises(ModelError, match="force-reinstall"):
        model_folder("all-MiniLM-L6-v2")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": "{}"}, "has no weights; expected a [*].safetensors"),
        ({"config.json": "{}", "pytorch_model.bin": "x"}, "only pytorch_model.bin, which can run code"),
        ({"model.safetensors": "x"}, "neither modules.json nor config.json"),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path, files, message):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ModelError, match=message):
        model_folder(str(tmp_path))


def test_broken_weights_give_a_one_line_error(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "broken")
    weights_of(tmp_path / "broken")[0].write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded") as caught:
        LocalEncoder(tmp_path / "broken").encode(["a"], "query")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "not a/model name!"])
def test_a_name_that_no_model_can_have_is_refused_at_once(name):
    with pytest.raises(ModelError):
        model_folder(name)


def test_a_hub_name_without_a_network_fails_at_once_with_a_one_line_error():
    # A name in a domain that is reserved for never existing, asked for in a fresh process as a user would.
    environment = {**os.environ, "HF_ENDPOINT": "https://hub.invalid", "HF_HUB_OFFLINE": "0", "HF_HOME": "/nonexistent"}
    code = (
        "from embedfit.hub import model_folder\n"
        "try: model_folder('BAAI/bge-base-en-v1.5')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60)
    seconds = time.monotonic() - start
    assert done.stdout.startswith("OfflineError model 'BAAI/bge-base-en-v1.5' is not on this machine and https://hub.invalid")
    assert len(done.stdout.splitlines()) == 1
    assert seconds < 30  # not the library's 70 s of retries; benchmarks/startup.py has the figure


def test_a_hub_name_with_the_hub_switched_off_says_so(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match="HF_HUB_OFFLINE is set"):
        model_folder("BAAI/bge-base-en-v1.5")


def test_the_precision_asked_for_is_used_and_auto_is_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDFIT_CACHE", str(tmp_path))
    assert use_bf16("bf16", "cpu")
    assert not use_bf16("fp32", "cpu")
    first = use_bf16("auto", "cpu")
    assert (tmp_path / "bf16.json").exists()
    monkeypatch.setattr("embedfit.encode.precision.matmul_seconds", lambda dtype, **more: pytest.fail("measured twice"))
    assert use_bf16("auto", "cpu") == first
    with pytest.raises(ConfigError, match="fp16"):
        use_bf16("fp16", "cpu")


def test_a_half_precision_checkpoint_runs_in_single_precision(tiny_model, tmp_path):
    import torch
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(tiny_model)).to(torch.bfloat16)
    model.save_pretrained(str(tmp_path / "half"), create_model_card=False)
    loaded = LocalEncoder(tmp_path / "half", precision="fp32").loaded.model
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}


def test_vectors_of_another_type_are_cached_as_float32(tmp_path):
    class Doubles:
        name = fingerprint = "doubles"

        def encode(self, texts, kind):
            return np.eye(4)[: len(texts)]

    found = CachedEncoder(Doubles(), tmp_path).encode(["a", "b"], "query")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, CachedEncoder(Doubles(), tmp_path).encode(["a", "b"], "query"))
    assert sorted(found.sum(axis=1)) == [1, 1]


KILLED_ENCODING = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/.."]
from embedfit.encode import encoder
from embedfit.encode.cache import CachedEncoder
from test_encode import Numbered

class Killing(Numbered):
    slices = 0

    def encode(self, texts, kind):
        self.slices += 1
        if self.slices == 4:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts, kind)

encoder.SLICE = 10
CachedEncoder(Killing(), Path(sys.argv[1])).encode([f"text {number}" for number in range(100)], "query")
"""


def test_a_process_killed_while_encoding_loses_one_slice(tmp_path):
    left = 100
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", KILLED_ENCODING, str(tmp_path), str(Path(__file__).parent)])
        assert done.returncode == -signal.SIGKILL
        left -= 30
    again = CachedEncoder(Numbered(), tmp_path)
    vectors = again.encode([f"text {number}" for number in range(100)], "query")
    assert again.misses == left == 10
    assert vectors[:, 0].tolist() == list(range(100))


class Numbered:
    """Gives a text the vector of the number that it ends with."""

    name = fingerprint = "numbered"

    def encode(self, texts, kind):
        return np.array([[int(text.split()[-1])] * 384 for text in texts], np.float32)


@pytest.mark.parametrize("known", [0, 0.5, 1])
def test_the_cache_needs_little_memory_beyond_the_vectors(known, tmp_path, monkeypatch):
    monkeypatch.setattr("embedfit.encode.encoder.SLICE", 256)

    def needed(n):
        texts = [f"text {number // 2}" for number in range(n)]  # each twice
        CachedEncoder(Numbered(), tmp_path / str(n)).encode(texts[: int(known * n)], "document")
        tracemalloc.start()
        vectors = CachedEncoder(Numbered(), tmp_path / str(n)).encode(texts, "document")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        np.testing.assert_array_equal(vectors[:, 0], np.arange(n) // 2)
        return peak - vectors.nbytes

    few, many = needed(2_000), needed(20_000)
    assert (many - few) / 18_000 < 120  # bytes for each text more; a vector has 1,536


def test_the_cache_file_is_hardly_larger_than_the_vectors(tmp_path):
    cached = CachedEncoder(Numbered(), tmp_path)
    vectors = cached.encode([f"text {number}" for number in range(20_000)], "document")
    assert cached.path.stat().st_size < 1.2 * vectors.nbytes


def test_a_cache_of_an_earlier_version_is_read(word_encoder, tmp_path):
    vectors = CachedEncoder(word_encoder, tmp_path).encode(["a", "b"], "query")
    cached = CachedEncoder(word_encoder, tmp_path)
    with contextlib.closing(sqlite3.connect(cached.path)) as database, database:
        rows = database.execute("SELECT key, vector FROM vectors").fetchall()
        database.execute("DROP TABLE vectors")
        database.execute("CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        database.executemany("INSERT INTO vectors VALUES (?, ?)", rows)
    np.testing.assert_array_equal(cached.encode(["b", "a"], "query"), vectors[::-1])
    assert cached.misses == 0


# The cache: what it trusts


class Letters:
    """Gives a text a vector of unit length that no other text has, and counts what it was asked."""

    def __init__(self, width=8, fingerprint="letters"):
        self.name, self.fingerprint, self.width, self.asked = "letters", fingerprint, width, []

    def encode(self, texts, kind):
        self.asked += texts
        vectors = np.array([np.random.default_rng(list(text.encode())).normal(size=self.width) for text in texts], np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


TEN = [f"text {number}" for number in range(10)]


def changed(cached, statement, *values):
    """Change the file of a cache as a stranger would."""
    with contextlib.closing(sqlite3.connect(cached.path)) as database, database:
        database.execute(statement, values)


def unit(width, seed=7):
    vector = np.random.default_rng(seed).normal(size=width)
    return (vector / np.linalg.norm(vector)).astype(np.float32).tobytes()


DAMAGES = {
    "noise of norm 20,000": np.full(8, 7071, np.float32).tobytes(),
    "noise of unit length": unit(8),
    "another width": unit(9),
    "half of a vector": unit(8)[:16],
    "a byte less": unit(8)[:-1],
    "nothing": b"",
    "null": None,
    "text": "text",
    "not finite": np.full(8, np.nan, np.float32).tobytes(),
    "signalling": np.full(8, 0x7F800001, np.uint32).tobytes(),
    "infinite": np.full(8, np.inf, np.float32).tobytes(),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_damaged_vector_is_encoded_again_and_replaced(damage, earlier, tmp_path, capsys):
    encoder = Letters()
    vectors = CachedEncoder(encoder, tmp_path).encode(TEN, "query")
    cached = CachedEncoder(encoder, tmp_path)
    if earlier:
        if damage == "noise of unit length":
            pytest.skip("an earlier version kept no checksums")
        changed(cached, "UPDATE vectors SET checksum = NULL")
        changed(cached, "DROP TABLE about")
    changed(cached, "UPDATE vectors SET vector = ? WHERE rowid = 3", DAMAGES[damage])
    np.testing.assert_array_equal(cached.encode(TEN, "query"), vectors)
    assert cached.misses == 1
    assert capsys.readouterr().err == f"Warning: 1 of 10 vectors in {cached.path} are damaged; they are encoded again\n"
    again = CachedEncoder(encoder, tmp_path)
    np.testing.assert_array_equal(again.encode(TEN, "query"), vectors)
    assert (again.misses, capsys.readouterr().err) == (0, "")


def test_every_flipped_bit_is_noticed_and_no_row_passes_for_another(tmp_path):
    encoder = Letters()
    vectors = CachedEncoder(encoder, tmp_path).encode(TEN, "query")
    for bit in range(0, 8 * 32, 5):
        cached = CachedEncoder(encoder, tmp_path)
        raw = bytearray(vectors[0].tobytes())
        raw[bit // 8] ^= 1 << bit % 8
        changed(cached, "UPDATE vectors SET vector = ? WHERE vector = ?", bytes(raw), vectors[0].tobytes())
        np.testing.assert_array_equal(cached.encode(TEN, "query"), vectors)
        assert cached.misses == 1
    cached = CachedEncoder(encoder, tmp_path)
    changed(cached, "UPDATE vectors SET (vector, checksum) = (SELECT vector, checksum FROM vectors WHERE rowid = 4) WHERE rowid = 5")
    np.testing.assert_array_equal(cached.encode(TEN, "query"), vectors)
    assert cached.misses == 1


def test_a_server_that_changes_its_width_gives_a_one_line_error_and_no_cached_vectors(tmp_path):
    vectors = CachedEncoder(Letters(8), tmp_path).encode(TEN[:6], "query")
    changed_server = CachedEncoder(Letters(12), tmp_path)
    for texts in (TEN, TEN[6:]):  # some of them known, and none
        with pytest.raises(
            ModelError, match=r"letters gave vectors of 12 dimensions, and earlier ones of 8: .*; fix: embedfit cache --clear letters"
        ) as caught:
            changed_server.encode(texts, "query")
        assert "\n" not in str(caught.value)
    with contextlib.closing(sqlite3.connect(changed_server.path)) as database:
        assert database.execute("SELECT DISTINCT length(vector), count(*) FROM vectors").fetchall() == [(32, 6)]
    same = CachedEncoder(Letters(8), tmp_path)
    np.testing.assert_array_equal(same.encode(TEN[:6], "query"), vectors)
    assert same.misses == 0


@pytest.mark.parametrize("width", ["4", "0", "-8", "eight", "\u0668", "", None, "9" * 5000, b"8", "12"])
@pytest.mark.parametrize("first", ["sound", "damaged", "gone"])
def test_a_damaged_width_is_restored_from_the_vectors(width, first, tmp_path, capsys):
    encoder = Letters()
    vectors = CachedEncoder(encoder, tmp_path).encode(TEN, "query")
    cached = CachedEncoder(encoder, tmp_path)
    changed(cached, "UPDATE about SET value = ? WHERE name = 'width'", width)
    if first == "damaged":
        changed(cached, "UPDATE vectors SET vector = ? WHERE rowid = 1", unit(4))
    elif first == "gone":
        changed(cached, "DELETE FROM vectors")
    np.testing.assert_array_equal(cached.encode([*TEN, "one more"], "query")[:10], vectors)
    assert cached.misses == {"sound": 1, "damaged": 2, "gone": 11}[first]
    assert ("damaged" in capsys.readouterr().err) == (first == "damaged")
    with contextlib.closing(sqlite3.connect(cached.path)) as database:
        assert database.execute("SELECT value FROM about WHERE name = 'width'").fetchall() == [("8",)]
    with pytest.raises(ModelError, match="12 dimensions, and earlier ones of 8"):
        CachedEncoder(Letters(12), tmp_path).encode(["yet one more"], "query")


@pytest.mark.parametrize("limit", ["", "0"])
def test_a_width_that_changes_between_two_parts_is_an_error_and_earlier_vectors_are_kept(limit, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDFIT_CACHE_LIMIT", limit)

    class Changing(Letters):
        def encode_parts(self, texts, kind):
            yield Part(np.arange(4), self.encode(texts[:4], kind))
            self.width = 12
            yield Part(np.arange(4, 10), self.encode(texts[4:], kind))

    with pytest.raises(ModelError, match="12 dimensions, and earlier ones of 8"):
        CachedEncoder(Changing(), tmp_path).encode(TEN, "query")
    again = CachedEncoder(Letters(), tmp_path)
    again.encode(TEN, "query")
    assert again.misses == (10 if limit else 6)


def test_the_second_of_two_processes_with_different_widths_gets_an_error(tmp_path):
    class Overtaken(Letters):
        def encode(self, texts, kind):
            CachedEncoder(Letters(12), tmp_path).encode(["first"], kind)
            return super().encode(texts, kind)

    with pytest.raises(ModelError, match="gave vectors of 8 dimensions, and earlier ones of 12"):
        CachedEncoder(Overtaken(8), tmp_path).encode(TEN, "query")
    with contextlib.closing(sqlite3.connect(tmp_path / "letters.sqlite")) as database:
        assert database.execute("SELECT DISTINCT length(vector) FROM vectors").fetchall() == [(48,)]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.ones((9, 4), np.float32), r"gave an array of shape \(9, 4\); expected one vector for each of 10 texts"),
        (np.ones(10, np.float32), r"gave an array of shape \(10,\)"),
        (np.full((10, 4), np.nan, np.float32), "gave a vector that is not finite"),
        (np.ones((10, 0), np.float32), "letters gave vectors of no dimensions"),
    ],
)
def test_anything_but_one_vector_per_text_is_refused_and_not_cached(answer, message, tmp_path):
    encoder = Letters()
    encoder.encode = lambda texts, kind: answer
    with pytest.raises(ModelError, match=message):
        CachedEncoder(encoder, tmp_path).encode(TEN, "query")
    assert cached_models(tmp_path)[0].vectors == 0


@pytest.mark.parametrize("form", ["", "WITHOUT ROWID"])
def test_vectors_without_checksums_are_trusted_if_they_have_the_usual_width_and_unit_length(form, tmp_path):
    encoder = Letters()
    vectors = CachedEncoder(encoder, tmp_path).encode(TEN, "query")
    cached = CachedEncoder(encoder, tmp_path)
    with contextlib.closing(sqlite3.connect(cached.path)) as database, database:
        rows = database.execute("SELECT key, vector FROM vectors").fetchall()
        database.execute("DROP TABLE vectors")
        database.execute("DROP TABLE about")
        database.execute(f"CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB) {form}")
        database.executemany("INSERT INTO vectors VALUES (?, ?)", rows)
        database.execute("UPDATE vectors SET vector = ? WHERE key IN (SELECT key FROM vectors ORDER BY key LIMIT 2)", [unit(12)])
        database.execute("UPDATE vectors SET vector = ? WHERE key IN (SELECT key FROM vectors ORDER BY key LIMIT 1 OFFSET 2)", [bytes(32)])
    np.testing.assert_array_equal(cached.encode(TEN, "query"), vectors)
    assert cached.misses == 3
    again = CachedEncoder(encoder, tmp_path)
    again.encode(TEN, "query")
    assert again.misses == 0


def test_models_whose_fingerprints_begin_alike_have_separate_files(tmp_path):
    beginning = "the model of our company, version "
    for fingerprint in (f"{beginning}1", f"{beginning}2", "../outside", "f" * 33, "f" * 31 + "/", "f" * 32):
        cached = CachedEncoder(Letters(fingerprint=fingerprint), tmp_path)
        cached.encode(["a"], "query")
        assert (cached.misses, cached.path.parent) == (1, tmp_path)
    assert len(cached_models(tmp_path)) == 6
    # A hash is cut: its first half is as good as the whole.
    assert CachedEncoder(Letters(fingerprint="0123456789abcdef" * 4)).path.stem == "0123456789abcdef" * 2


# The cache: files that cannot be read


_VECTORS = "CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB, checksum INTEGER)"
OTHERS = (
    "CREATE TABLE mine (value TEXT)",
    "CREATE TABLE vectors (mine TEXT)",
    "CREATE TABLE vectors (key BLOB, vector BLOB)",
    "CREATE TABLE vectors (key BLOB PRIMARY KEY, vector BLOB, mine TEXT NOT NULL)",
    f"{_VECTORS}; CREATE TABLE about (mine TEXT)",
    f"{_VECTORS}; CREATE TABLE about (name TEXT, value TEXT)",
    f"{_VECTORS}; CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT, mine TEXT NOT NULL)",
)


@pytest.mark.parametrize("what", ["noise", "a half", "a quarter is zero", "zero bytes", "text", *OTHERS])
def test_an_unreadable_file_is_moved_aside_whole_and_a_new_one_is_started(what, tmp_path, capsys):
    encoder = Letters(384)
    texts = [f"text {number}" for number in range(400)]
    vectors = CachedEncoder(encoder, tmp_path).encode(texts, "query")
    cached = CachedEncoder(encoder, tmp_path)
    whole = cached.path.read_bytes()
    if what in OTHERS:
        cached.path.unlink()
        for statement in what.split("; "):
            changed(cached, statement)
        content = cached.path.read_bytes()
    else:
        half = len(whole) // 2
        content = {
            "noise": np.random.default_rng(0).bytes(50_000),
            "a half": whole[:half],
            "a quarter is zero": whole[:half] + bytes(half // 2) + whole[half + half // 2 :],
            "zero bytes": b"",
            "text": b"notes of mine\n" * 1000,
        }[what]
        cached.path.write_bytes(content)
    for _ in range(2):
        np.testing.assert_array_equal(cached.encode(texts, "query"), vectors)
    warnings = capsys.readouterr().err.splitlines()
    asides = list(tmp_path.glob("*.damaged"))
    if what == "zero bytes":
        assert (asides, warnings) == ([], [])
    else:
        assert [path.read_bytes() for path in asides if what not in ("a half", "a quarter is zero")] in ([content], [])
        assert any("cannot be read" in line and "letters.sqlite.damaged" in line for line in warnings) == bool(asides)
        assert asides or what == "a quarter is zero"  # then some rows alone are damaged
    again = CachedEncoder(encoder, tmp_path)
    np.testing.assert_array_equal(again.encode(texts, "query"), vectors)
    assert (again.misses, capsys.readouterr().err) == (0, "")


def test_the_journal_of_a_damaged_file_is_moved_aside_with_it(tmp_path):
    encoder = Letters()
    cached = CachedEncoder(encoder, tmp_path / "first")
    cached.encode(TEN[:5], "query")
    with contextlib.closing(sqlite3.connect(cached.path)) as open_elsewhere:
        open_elsewhere.execute("SELECT count(*) FROM vectors").fetchone()
        cached.encode(TEN, "query")  # stays in the journal
        journal = Path(f"{cached.path}-wal").read_bytes()
    assert journal
    second = CachedEncoder(encoder, tmp_path / "second")
    second.path.parent.mkdir()
    second.path.write_text("notes of mine")
    Path(f"{second.path}-wal").write_bytes(journal)
    second.encode(TEN, "query")
    assert second.misses == 10
    assert Path(f"{second.path}.damaged").read_text() == "notes of mine"
    assert Path(f"{second.path}.damaged-wal").read_bytes() == journal


def test_a_second_damaged_file_does_not_overwrite_the_first(tmp_path):
    encoder = Letters()
    for number in (1, 2):
        cached = CachedEncoder(encoder, tmp_path)
        cached.path.write_text(f"notes {number} of mine")
        cached.encode(TEN, "query")
    assert {path.name: path.read_text() for path in tmp_path.glob("*.damaged*")} == {
        "letters.sqlite.damaged": "notes 1 of mine",
        "letters.sqlite.damaged-2": "notes 2 of mine",
    }


def test_a_file_damaged_while_open_is_moved_aside_once_and_encoding_goes_on(tmp_path, capsys):
    texts = [f"text {number}" for number in range(400)]

    class Overwriting(Letters):
        def encode(self, asked, kind):
            path = CachedEncoder(self, tmp_path).path
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{path}-wal")
            path.write_bytes(path.read_bytes()[:16384] + bytes(200_000))
            return super().encode(asked, kind)

    CachedEncoder(Letters(384), tmp_path).encode(texts, "query")
    vectors = CachedEncoder(Overwriting(384), tmp_path).encode([*texts, "one more"], "query")
    np.testing.assert_array_equal(vectors, Letters(384).encode([*texts, "one more"], "query"))
    capsys.readouterr()
    np.testing.assert_array_equal(CachedEncoder(Letters(384), tmp_path).encode(texts, "query"), vectors[:-1])
    again = CachedEncoder(Letters(384), tmp_path)
    again.encode([*texts, "one more"], "query")
    assert again.misses <= 1


def test_a_new_file_of_another_process_is_not_moved_aside(tmp_path):
    CachedEncoder(Letters(), tmp_path).encode(TEN, "query")
    path = tmp_path / "letters.sqlite"
    noticing = VectorFile(path, "letters")
    os.replace(path, tmp_path / "letters.sqlite.damaged")  # by a process that noticed first
    CachedEncoder(Letters(), tmp_path).encode(TEN, "query")
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    noticing._after(error)
    noticing.close()
    again = CachedEncoder(Letters(), tmp_path)
    again.encode(TEN, "query")
    assert again.misses == 0
    assert [path.name for path in tmp_path.glob("*.damaged*")] == ["letters.sqlite.damaged"]


FULL = f"""
import resource, signal, sys
from pathlib import Path
import numpy as np
from embedfit.encode.cache import CachedEncoder
{inspect.getsource(Letters)}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
for part in range(3):
    texts = [f"text {{part}} {{number}}" for number in range(1000)]
    vectors = CachedEncoder(Letters(384), Path(sys.argv[1])).encode(texts, "query")
    assert (vectors == Letters(384).encode(texts, "query")).all()
"""


@pytest.mark.parametrize("room", [0, 100_000, 2_500_000])
def test_encoding_goes_on_with_one_warning_when_the_disk_is_full(room, tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path), str(room)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith(f"Warning: {tmp_path}: vectors cannot be kept (")
    again = CachedEncoder(Letters(384), tmp_path)
    again.encode([f"text {part} {number}" for part in range(3) for number in range(1000)], "query")
    assert again.misses == (3000 if room < 2_500_000 else 1000)  # what was kept before is good


# The cache: its size


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("", 20 * 2**30),
        ("5 GiB", 5 * 2**30),
        ("5gb", 5 * 10**9),
        ("1.5M", 1_500_000),
        ("0", 0),
        ("4096", 4096),
        ("2TiB", 2 * 2**40),
        ("9 b", 9),
    ],
)
def test_the_limit_is_read_with_its_unit(given, size, monkeypatch):
    monkeypatch.setenv("EMBEDFIT_CACHE_LIMIT", given)
    assert cache_limit() == size


@pytest.mark.parametrize("given", ["much", "-1", "5 XiB", "1e3", "inf"])
def test_a_limit_that_is_not_a_size_is_refused(given, monkeypatch):
    monkeypatch.setenv("EMBEDFIT_CACHE_LIMIT", given)
    with pytest.raises(ConfigError, match=f"EMBEDFIT_CACHE_LIMIT is '{given}'; expected a size such as 5 GiB"):
        cache_limit()


def used(folder):
    return sum(path.stat().st_size for path in folder.glob("*.sqlite"))


def test_the_least_recently_used_models_are_removed_first(tmp_path, monkeypatch):
    texts = [f"text {number}" for number in range(200)]
    for number in range(3):
        cached = CachedEncoder(Letters(384, f"model-{number}"), tmp_path)
        cached.encode(texts, "query")
        os.utime(cached.path, (number, number))
    CachedEncoder(Letters(384, "model-0"), tmp_path).encode(texts, "query")  # used again
    one = cached.path.stat().st_size
    monkeypatch.setenv("EMBEDFIT_CACHE_LIMIT", str(int(3.5 * one)))
    CachedEncoder(Letters(384, "model-3"), tmp_path).encode(texts, "query")
    assert {model.path.stem for model in cached_models(tmp_path)} == {"model-0", "model-2", "model-3"}
    assert not (tmp_path / "model-1.lock").exists()
    assert used(tmp_path) <= 3.5 * one


def test_models_in_use_by_another_process_and_files_of_other_programs_are_kept(tmp_path, monkeypatch):
    texts = [f"text {number}" for number in range(200)]
    busy = CachedEncoder(Letters(384, "busy"), tmp_path)
    busy.encode(texts, "query")
    with contextlib.closing(sqlite3.connect(tmp_path / "others.sqlite")) as database, database:
        database.execute("CREATE TABLE mine (value TEXT)")
    monkeypatch.setenv("EMBEDFIT_CACHE_LIMIT", "500 KB")
    with contextlib.closing(sqlite3.connect(busy.path)) as database:
        database.execute("SELECT * FROM vectors").fetchone()
        CachedEncoder(Letters(384, "new"), tmp_path).encode(texts, "query")
        assert clear_cache([model for model in cached_models(tmp_path) if model.path == busy.path]) != []
    assert {path.name for path in tmp_path.glob("*.sqlite")} == {"busy.sqlite", "others.sqlite", "new.sqlite"}
    again = CachedEncoder(Letters(384, "busy"), tmp_path)
    again.encode(texts, "query")
    assert again.misses == 0


def test_a_single_model_loses_its_oldest_vectors_to_stay_within_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDFIT_CACHE_LIMIT", "1 MB")
    encoder = Letters(384)
    for start in range(0, 3000, 100):
        CachedEncoder(encoder, tmp_path).encode([f"text {number}" for number in range(start, start + 100)], "query")
        assert used(tmp_path) <= 1_000_000
    last = CachedEncoder(encoder, tmp_path)
    last.encode([f"text {number}" for number in range(2600, 3000)], "query")
    assert last.misses == 0
    assert cached_models(tmp_path)[0].vectors > 400


@pytest.mark.parametrize(("limit", "warns"), [("10 kB", True), ("0", False)])
def test_vectors_larger_than_the_limit_are_not_cached(limit, warns, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("EMBEDFIT_CACHE_LIMIT", limit)
    for _ in range(2):
        cached = CachedEncoder(Letters(384), tmp_path)
        np.testing.assert_array_equal(cached.encode(TEN, "query"), Letters(384).encode(TEN, "query"))
        assert cached.misses == 10
    assert capsys.readouterr().err.count("vectors cannot be kept (the limit of 9.77 KiB (EMBEDFIT_CACHE_LIMIT))") == warns


def test_the_command_shows_the_cache_and_clears_it(tmp_path, monkeypatch, capsys):
    from embedfit.cli.app import main

    monkeypatch.setenv("EMBEDFIT_CACHE", str(tmp_path))

    def said(*arguments):
        with pytest.raises(SystemExit) as caught:
            main(["cache", *arguments])
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    assert said()[1] == f"0 bytes of at most 20 GiB (EMBEDFIT_CACHE_LIMIT) in {tmp_path} (EMBEDFIT_CACHE)\n"
    for name in ("first", "second"):
        encoder = Letters(384, name)
        encoder.name = f"{name} model"
        CachedEncoder(encoder, tmp_path).encode(TEN, "query")
    (tmp_path / "bf16.json").write_text("{}")
    (tmp_path / "others.sqlite").write_text("notes of mine")
    (tmp_path / "old.sqlite.damaged").write_text("notes of mine")
    code, out, _ = said()
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[1:3]] == [["second", "model", "10"], ["first", "model", "10"]]
    assert out.splitlines()[-1] == f"Could not be read, and was moved aside: {tmp_path / 'old.sqlite.damaged'}"
    assert said("third model")[::2] == (2, f"embedfit: {tmp_path}: nothing is kept of a model 'third model'; did you mean 'first model'?\n")
    assert said("--clear", "first model")[1].startswith("Removed: 10 vectors of 1 models, ")
    assert [row["model"] for row in json.loads(said("--json")[1])["models"]] == ["second model"]
    assert said("--clear")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"bf16.json", "others.sqlite", "old.sqlite.damaged"}


def test_a_folder_named_checkpoint_is_a_model_too(tiny_model, tmp_path):
    shutil.copytree(tiny_model, tmp_path / "checkpoint-500")
    assert model_folder(str(tmp_path / "checkpoint-500")) == tmp_path / "checkpoint-500"


@pytest.mark.parametrize("count", [3, 40])
def test_a_model_whose_tokenizer_has_no_limit_reads_whole_texts(tiny_model, count):
    encoder = LocalEncoder(tiny_model)
    before = encoder.encode(["some words"], "query")
    encoder.loaded.model.max_seq_length = int(1e30)  # what transformers has where no limit is known
    np.testing.assert_allclose(encoder.encode(["some words"] * count, "query")[:1], before, atol=1e-6)
    assert encoder.loaded.truncation(["some words"] * count, "query").share_lost == 0


def test_cudnn_attention_is_switched_off_and_then_restored():
    for before in (False, True):
        torch.backends.cuda.enable_cudnn_sdp(before)
        with without_cudnn_attention("cuda"):
            assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
