import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from embedfit.encode.local import LocalEncoder
from embedfit.encode.tokens import Tokens, length_batches, tokenizer_suffices
from embedfit.errors import ModelError

TEXTS = [
    "a word",
    "Some words, and a longer one: categorisation",
    "",
    "word " * 400,
    "ひらがな and 🙂 — dashes",
    "https://example.org/picture.png",
] * 3


def assert_as_the_library(model, tokens, texts, prompt, task=None):
    for some in ([0], [5, 1, 3], range(len(texts))):
        padded = tokens.padded(np.array(some))
        whole = model.preprocess([texts[position] for position in some], prompt=prompt or None, task=task)
        assert padded.keys() == whole.keys()
        for key, value in whole.items():
            assert torch.equal(padded[key], value) if torch.is_tensor(value) else padded[key] == value


@pytest.mark.parametrize("prompt", ["", "query: "])
@pytest.mark.parametrize("side", ["right", "left"])
def test_features_are_those_of_the_library(tiny_model, prompt, side):
    model = LocalEncoder(tiny_model).loaded.model
    model.tokenizer.padding_side = side
    tokens = Tokens(model, TEXTS, prompt, "document")
    assert tokens.lengths.tolist() == [min(256, len(model.tokenizer(prompt + text)["input_ids"])) for text in TEXTS]
    assert_as_the_library(model, tokens, TEXTS, prompt, "document")


def test_a_model_that_changes_the_tokens_is_left_to_the_library(tiny_model, monkeypatch):
    model = LocalEncoder(tiny_model).loaded.model
    preprocess = model.preprocess

    def shouting(texts, **settings):
        return preprocess([f"{text} aloud" for text in texts], **settings)

    monkeypatch.setattr(model, "preprocess", shouting)
    assert not tokenizer_suffices(model, TEXTS, "", None)
    tokens = Tokens(model, TEXTS, "")
    assert_as_the_library(model, tokens, TEXTS, "")
    assert tokens.lengths[0] == len(model.tokenizer("a word aloud")["input_ids"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("processing_kwargs", {"text": {"max_length": 8}}),
        ("document_length", 8),
        ("query_expansion", {"strategy": "min", "length": 8}),
    ],
)
def test_a_model_with_text_settings_is_left_to_the_library(tiny_model, name, value):
    # Its few long texts by characters may be short in tokens, so what a sample shows is not enough.
    encoder = LocalEncoder(tiny_model)
    model = encoder.loaded.model
    assert tokenizer_suffices(model, TEXTS, "", "document")
    setattr(model[0], name, value)
    assert not tokenizer_suffices(model, TEXTS, "", "document")
    if name != "query_expansion":  # of queries, not of documents
        texts = ["short"] * 20 + ["a long one of many words, indeed of more than eight"]
        alone = [encoder.encode([text], "document")[0] for text in texts]
        np.testing.assert_allclose(encoder.encode(texts, "document"), alone, atol=1e-6)


def test_each_text_is_tokenised_once(tiny_model, monkeypatch):
    monkeypatch.setattr("embedfit.encode.tokens._SLICE", 8)
    model = LocalEncoder(tiny_model).loaded.model
    asked = []
    tokenizer = type(model.tokenizer)
    call = tokenizer.__call__
    monkeypatch.setattr(tokenizer, "__call__", lambda self, texts, **settings: asked.extend(texts) or call(self, texts, **settings))
    texts = [f"text {number}" for number in range(100)]
    tokens = Tokens(model, texts, "")
    assert all(asked.count(text) == 1 for text in texts[8:-8])
    assert len(tokens) == 100


def test_no_texts_have_no_tokens(tiny_model):
    assert len(Tokens(LocalEncoder(tiny_model).loaded.model, [], "")) == 0


def test_a_model_without_rows_of_tokens_is_refused(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1, "word": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)]).save_pretrained(str(tmp_path / "static"))
    encoder = LocalEncoder(tmp_path / "static")
    assert not tokenizer_suffices(encoder.loaded.model, ["a word"], "", None)
    with pytest.raises(ModelError, match="a StaticEmbedding that does not read padded rows of tokens cannot be tuned"):
        Tokens(encoder.loaded.model, ["a word"], "")
    texts = ["a", "a word", "word"] * 20  # more than are left to the library anyway
    vectors = encoder.encode(texts, "query")
    np.testing.assert_array_equal(vectors[:3], vectors[-3:])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 50), max_size=40), st.integers(1, 200))
def test_batches_hold_each_text_once_longest_first_within_the_budget(lengths, budget):
    batches = list(length_batches(np.array(lengths, np.int64), budget))
    order = [position for batch in batches for position in batch.tolist()]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[position] for position in order] == sorted(lengths, reverse=True)
    assert all(len(batch) == 1 or len(batch) * max(lengths[position] for position in batch) <= budget for batch in batches)
