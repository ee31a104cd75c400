import numpy as np
import pytest

from embedfit.encode.adapted import AdaptedEncoder, Adapter
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import BaseEncoder, Part, WrappingEncoder, complete
from embedfit.encode.local import LocalEncoder, local_of, seconds_alone
from embedfit.encode.remote import RemoteEncoder
from embedfit.retrieve.engine import LocalEngine, RayEncoder
from embedfit.tune.dev import InTraining
from embedfit.tune.merge import Merges


class Own:
    """An encoder with the three members that are required, which counts what it is asked."""

    name, fingerprint = "own", "own 1"

    def __init__(self):
        self.asked = []

    def encode(self, texts, kind):
        self.asked.append(len(texts))
        return np.array([[len(text), 1] for text in texts], np.float64)


class Rich(Own):
    """An encoder with the optional members too."""

    prompts, identity, dimension, remote = {"query": "query: "}, "the same everywhere", 2, True

    def encode_parts(self, texts, kind):
        for row, text in enumerate(texts):
            yield Part(np.array([row]), self.encode([text], kind))


def adapted(encoder):
    return AdaptedEncoder(encoder, Adapter(np.eye(2, dtype=np.float32), np.zeros(2, np.float32), encoder.fingerprint, encoder.name))


def test_an_encoder_of_three_members_has_the_documented_defaults():
    whole = complete(Own())
    assert (whole.name, whole.fingerprint, whole.identity) == ("own", "own 1", "own 1")
    assert whole.prompts == {"query": "", "document": ""}
    assert (whole.dimension, local_of(whole), whole.saved_at, whole.remote) == (None, None, None, False)
    np.testing.assert_array_equal(whole.encode(["abc"], "query"), [[3, 1]])


def test_parts_are_slices_by_default_the_longest_texts_first(monkeypatch):
    monkeypatch.setattr("embedfit.encode.encoder.SLICE", 2)
    parts = list(complete(Own()).encode_parts(["a", "ccc", "bb"], "document"))
    assert [part.rows.tolist() for part in parts] == [[1, 2], [0]]
    assert [part.vectors.tolist() for part in parts] == [[[3, 1], [2, 1]], [[1, 1]]]
    assert parts[0].vectors.dtype == np.float32


def test_a_users_own_encoder_may_have_the_optional_members():
    whole = complete(Rich())
    assert whole.prompts == {"query": "query: ", "document": ""}
    assert (whole.identity, whole.dimension, whole.remote) == ("the same everywhere", 2, True)
    assert [part.rows.tolist() for part in whole.encode_parts(["a", "bb"], "query")] == [[0], [1]]


def test_a_complete_encoder_is_itself(tiny_model, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    local = LocalEncoder(tiny_model)
    merged = Merges(local, local).at(0.5)
    encoders = [local, RemoteEncoder("openai:ada"), CachedEncoder(local), adapted(Own()), RayEncoder(local), merged, InTraining(local)]
    for encoder in encoders:
        assert isinstance(encoder, BaseEncoder)
        assert complete(encoder) is encoder


def test_a_cache_passes_on_the_members_of_the_encoder_inside(tmp_path):
    cached = CachedEncoder(Rich(), tmp_path)
    assert (cached.name, cached.fingerprint, cached.identity) == ("own", "own 1", "the same everywhere")
    assert (cached.prompts, cached.dimension, cached.remote) == ({"query": "query: ", "document": ""}, 2, True)


def test_a_query_adapter_changes_the_fingerprint_and_keeps_the_identity(tiny_model, tmp_path):
    local = LocalEncoder(tiny_model, query_prompt="query: ")
    map = Adapter(np.eye(384, dtype=np.float32), np.zeros(384, np.float32), local.fingerprint, local.name, tmp_path / "adapter.safetensors")
    over = AdaptedEncoder(CachedEncoder(local, tmp_path), map)
    assert over.fingerprint == map.fingerprint != local.fingerprint
    assert over.identity == local.identity
    assert over.prompts == {"query": "query: ", "document": ""}
    assert (over.dimension, local_of(over), over.saved_at) == (384, None, tmp_path / "adapter.safetensors")


def test_a_local_model_is_found_under_a_cache_and_an_engine(tiny_model, tmp_path):
    local = LocalEncoder(tiny_model)
    assert local_of(local) is local
    assert (local.saved_at, local.dimension) == (tiny_model, 384)
    for around in (CachedEncoder(local, tmp_path), RayEncoder(local), LocalEngine().encoder(local)):
        assert local_of(around) is local
        assert (around.saved_at, around.identity) == (tiny_model, local.identity)


def test_a_merge_and_a_model_in_training_have_no_folder(tiny_model):
    local = LocalEncoder(tiny_model, query_prompt="query: ")
    merged = Merges(local, local).at(0.5)
    assert (local_of(merged), merged.saved_at, merged.identity) == (None, None, merged.fingerprint)
    assert merged.prompts == local.prompts
    training = InTraining(local)
    assert (local_of(training), training.identity) == (None, "in training")


@pytest.mark.parametrize(("model", "dimension"), [("openai:ada", None), ("openai:ada?dimensions=64", 64)])
def test_an_encoder_behind_an_api_is_remote_and_has_the_dimension_asked_for(model, dimension, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    encoder = RemoteEncoder(model, query_prompt="query: ")
    assert (encoder.remote, encoder.dimension, local_of(encoder), encoder.identity) == (True, dimension, None, encoder.fingerprint)
    assert encoder.prompts == {"query": "query: ", "document": ""}


def test_a_users_own_wrapper_is_a_few_lines(tmp_path):
    class Halved(WrappingEncoder):
        @property
        def fingerprint(self):
            return f"half of {self.encoder.fingerprint}"

        def encode(self, texts, kind):
            return super().encode(texts, kind)[:, :1]

    halved = Halved(Rich())
    assert (halved.name, halved.remote, halved.dimension) == ("own", True, None)
    assert halved.identity == "half of own 1"  # its documents have other vectors
    np.testing.assert_array_equal(CachedEncoder(halved, tmp_path).encode(["abc", "a"], "query"), [[3], [1]])


def test_fewer_queries_are_timed_where_each_is_sent_to_another_machine():
    for encoder, timed in ((Own(), 64), (Rich(), 5)):
        seconds_alone(encoder, ["text"] * 100)
        assert encoder.asked == [1] * (timed + 1)  # the first one is not timed
