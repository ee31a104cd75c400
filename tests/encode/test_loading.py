import datetime
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import embedfit
from embedfit.config import TuneConfig, make_config
from embedfit.encode.local import LocalEncoder, load_model, local_of
from embedfit.encode.named import encoder_of
from embedfit.encode.tokens import Tokens, tokenizer_suffices
from embedfit.errors import ConfigError, EmbedfitError, ModelError
from embedfit.loading import loading_options, usable
from embedfit.pipeline.needs import check_method
from embedfit.pipeline.publishing import prepare_publications, publish_run
from embedfit.tune.prepared import prepare
from embedfit.tune.training import Training

TEXTS = [f"the {word} fish" for word in ("red", "blue", "one and only")] * 7
QUANTIZED = {"quantization_config": {"load_in_4bit": True}}


@pytest.fixture
def flash(monkeypatch):
    """Pretend that flash-attn is installed; no GPU is there."""
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *more: object() if name == "flash_attn" else found(name, *more))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


def test_attention_changes_the_last_digits_and_the_number_format_more(tiny_model):
    plain = LocalEncoder(tiny_model, precision="fp32")
    eager = LocalEncoder(tiny_model, precision="fp32", attn_implementation="eager")
    half = LocalEncoder(tiny_model, precision="fp32", model_kwargs={"dtype": torch.bfloat16})
    vectors = plain.encode(TEXTS, "query")
    np.testing.assert_allclose(eager.encode(TEXTS, "query"), vectors, atol=1e-6)
    assert eager.loaded.model.transformers_model.config._attn_implementation == "eager"
    assert eager.fingerprint == plain.fingerprint
    assert half.loaded.model.dtype == torch.bfloat16
    assert 1e-4 < np.abs(half.encode(TEXTS, "query") - vectors).max() < 0.02
    assert half.fingerprint != plain.fingerprint
    for precision in ("fp32", "bf16"):  # the weights' format says how to compute
        float16 = LocalEncoder(tiny_model, precision=precision, model_kwargs={"dtype": "float16"})
        np.testing.assert_allclose(float16.encode(TEXTS, "query"), vectors, atol=2e-3)
    # An index knows its model by the files, in any number format; quantized weights are another model.
    assert half.identity == eager.identity == plain.identity
    assert LocalEncoder(tiny_model, model_kwargs=QUANTIZED).identity != plain.identity
    assert LocalEncoder(tiny_model, precision="fp32", model_kwargs={"dtype": "float32"}).fingerprint == plain.fingerprint


@pytest.mark.parametrize(
    ("model_kwargs", "attention", "message"),
    [
        ({"trust_remote_code": True}, None, "may not hold 'trust_remote_code': code that comes with a model is never run"),
        ({"token": "hf_x"}, None, "may not hold 'token': a token comes from the environment: HF_TOKEN"),
        ({"use_safetensors": False}, None, "may not hold 'use_safetensors'"),
        ({"dtype": "int8"}, None, "dtype is 'int8'; expected float32, bfloat16, float16"),
        ({"dtype": ["float32"]}, None, r"dtype is \['float32'\]"),
        ({"when": datetime.date(2026, 1, 1)}, None, "model_kwargs has datetime.date.* at 'when'; expected text"),
        ({"x": {"y": float("nan")}}, None, "model_kwargs has nan at 'x.y'"),
        ({1: 2}, None, "expected a table"),
        ("dtype", None, "expected a table"),
        ({}, "flash_attention2", "'flash_attention2' is unknown; did you mean 'flash_attention_2'"),
        ({"attn_implementation": "kernels-community/flash-attn2"}, None, "is unknown; expected eager, sdpa"),
        ({"attn_implementation": "eager"}, "sdpa", "is 'sdpa', and in model_kwargs 'eager'; fix: leave one out"),
        ({}, 7, "attn_implementation 7 is unknown"),
    ],
)
def test_options_that_cannot_be_are_one_line(tiny_model, model_kwargs, attention, message):
    with pytest.raises(ConfigError, match=message) as caught:
        LocalEncoder(tiny_model, model_kwargs=model_kwargs, attn_implementation=attention)
    assert "\n" not in str(caught.value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
)
KEYS = st.sampled_from(["dtype", "torch_dtype", "attn_implementation", "quantization_config", "device_map", "x"]) | st.text(max_size=5)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_any_table_gives_options_that_give_themselves_or_one_line(table):
    message = ""
    try:
        options = loading_options(table)
    except ConfigError as error:
        message = str(error)
    else:
        assert loading_options(options) == options
    assert len(message.splitlines()) < 2


def test_an_option_that_the_model_does_not_know_is_one_line(tiny_model):
    with pytest.raises(ModelError, match=r"cannot be loaded: .*'nonsense'"):
        LocalEncoder(tiny_model, model_kwargs={"nonsense": 1}).encode(["a"], "query")


def test_the_settings_reach_the_model_and_are_checked(tiny_model, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")

    def config(**model):
        return make_config({"data": {"queries": "x"}, "model": {"name": str(tiny_model), **model}})

    encoder = encoder_of(config(attn_implementation="eager", model_kwargs={"dtype": "bfloat16"}).model)
    assert encoder.loading == {"attn_implementation": "eager", "dtype": "bfloat16"}
    for wrong, message in (
        ({"attn_implementation": "fast"}, r"key 'model\.attn_implementation': .*'sdpa'.*, seen 'fast'"),
        ({"model_kwargs": {"token": "hf_secret"}}, r"key 'model\.model_kwargs': model_kwargs may not hold 'token'"),
        ({"model_kwargs": 3}, r"key 'model\.model_kwargs': "),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            config(**wrong)
        assert "hf_secret" not in str(caught.value)
    encoder_of(config(name="openai:small", attn_implementation="sdpa").model)
    assert "model.attn_implementation and model.model_kwargs are not used: openai:small runs behind an API" in capsys.readouterr().err


def test_flash_attention_that_cannot_run_here_is_noticed_before_anything_is_loaded(tiny_model, request, capsys):
    with pytest.raises(ModelError, match="needs a GPU and the package flash-attn-3, which is not installed"):
        LocalEncoder(tiny_model, attn_implementation="flash_attention_3")
    request.getfixturevalue("flash")
    with pytest.raises(ModelError, match="'flash_attention_2' needs a GPU, and there is none; fix: 'sdpa'"):
        LocalEncoder(tiny_model, attn_implementation="flash_attention_2")
    # A saved model is opened on other machines too.
    assert usable({"attn_implementation": "flash_attention_2", "dtype": "bfloat16"}, "saved") == {"dtype": "bfloat16"}
    assert "saved: attn_implementation 'flash_attention_2' needs a GPU, and there is none; the model's own" in capsys.readouterr().err


def test_texts_that_flash_attention_would_put_end_to_end_are_padded_for_training(tiny_model):
    from transformers import DataCollatorWithFlattening

    model = load_model(tiny_model)
    expected = Tokens(model, TEXTS, "").padded(np.arange(5))
    # As sentence-transformers sets it where flash attention is used.
    model[0].data_collator = DataCollatorWithFlattening(return_seq_idx=True, return_flash_attn_kwargs=True, return_position_ids=True)
    model[0].can_flatten_inputs = True
    model[0]._flatten_position_offset = 0
    assert model.preprocess(TEXTS[:2])["input_ids"].shape[0] == 1
    assert tokenizer_suffices(model, TEXTS, "", None)
    features = Tokens(model, TEXTS, "").padded(np.arange(5))
    assert features.keys() == expected.keys()
    assert all(torch.equal(features[key], expected[key]) for key in ("input_ids", "attention_mask"))
    assert model[0].can_flatten_inputs


def test_quantized_weights_are_for_lora(tiny_model, transactions, monkeypatch):
    encoder = LocalEncoder(tiny_model, model_kwargs=QUANTIZED)
    with pytest.raises(ConfigError, match=r"quantized weights cannot be trained; fix: tune\.method = 'lora'"):
        prepare(encoder, Training(transactions, None, Path("unused")))
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name, *_: None)
        with pytest.raises(EmbedfitError, match=r"bitsandbytes.*embedfit\[quantized\]"):  # before anything is read
            check_method(encoder, TuneConfig(method="lora"))
    with pytest.raises(EmbedfitError, match="bitsandbytes"):  # transformers was asked, and the package is not here
        encoder.encode(["a"], "query")


def test_a_run_in_memory_takes_the_options(transactions, tiny_model, tmp_path):
    some = transactions.select(transactions.judged[:60])
    apart = {"general": {"measure": "off"}, "searcher": {"views": ["documents"]}}
    sections = {"output": str(tmp_path), "split": {"test": 0.5}, "tune": {"epochs": 1, "batch_size": 8}, **apart}
    half = {"dtype": "bfloat16"}
    result = embedfit.run(some, model=tiny_model, attn_implementation="eager", model_kwargs=half, **sections)
    expected = {**half, "attn_implementation": "eager"}
    assert result.encoder.loading == local_of(result.searcher.parts.encoder).loading == expected
    assert result.encoder.fingerprint == result.manifest["fingerprint"]
    weight = load_model(result.model).transformers_model.encoder.layer[0].output.dense.weight
    assert not torch.equal(weight, weight.bfloat16().float())  # trained and saved in fp32
    [publication] = prepare_publications(result.folder, str(tmp_path / "published"))
    assert publish_run(result.folder, publication).cosine > 0.9999
    card = (tmp_path / "published" / "README.md").read_text()
    assert card.count('SentenceTransformer("') == card.count(", model_kwargs={'dtype': 'bfloat16'})") == 2
    encoder = LocalEncoder(tiny_model, attn_implementation="eager", model_kwargs=half)
    assert embedfit.run(some, model=encoder, **sections).reused
    with pytest.raises(ConfigError, match="model_kwargs is for a model that is loaded here, and model is an encoder; fix: set it there"):
        embedfit.run(some, model=encoder, model_kwargs=half, **sections)
