"""Lengths in a model's own tokens are those that the loaded model counts."""

import json

import numpy as np
import pytest

from embedfit.encode.lengths import Lengths
from embedfit.encode.local import LocalEncoder, load_model

TEXTS = [
    "",
    "one",
    "Überraschung, naïve café",
    "日本語の文章です。",
    "🧑‍🚒 x" * 30,
    "a b " * 400,
    "x" * 300,
    "tab\tand\nline",
    "İstanbul ﬁne",
]


@pytest.fixture(scope="module")
def short_model(tiny_model, tmp_path_factory):
    """The one-layer model, saved with a maximum length of 20 tokens."""
    model = load_model(tiny_model)
    model.max_seq_length = 20
    folder = tmp_path_factory.mktemp("lengths") / "short"
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2", "tiny", "short"])
def test_lengths_and_limit_are_those_of_the_loaded_model(name, tiny_model, short_model):
    folder = {"tiny": tiny_model, "short": short_model}.get(name, name)
    encoder = LocalEncoder(folder, query_prompt="query: ", document_prompt="")
    lengths = Lengths(encoder)
    assert lengths._tokenizer is not None
    for kind in ("query", "document"):
        ours, theirs = lengths.truncation(TEXTS, kind), encoder.loaded.truncation(TEXTS, kind)
        assert np.array_equal(ours.counts, theirs.counts)
        assert ours.limit == theirs.limit
    assert Lengths(encoder).truncation([], "query").counts.shape == (0,)


def test_a_model_that_does_more_than_to_tokenise_is_loaded(short_model, tmp_path):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(short_model, folder)
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps({**settings, "do_lower_case": True}))
    encoder = LocalEncoder(folder)
    lengths = Lengths(encoder)
    assert lengths._tokenizer is None
    assert lengths.limit == 20
    assert np.array_equal(lengths.count(TEXTS), encoder.loaded.truncation(TEXTS, "document").counts)
