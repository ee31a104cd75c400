import json

import numpy as np
import pytest
from test_adapter import parts, rotated, some_adapter

from embedfit.encode.adapted import AdaptedEncoder, save_adapted
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ModelError
from embedfit.tune.adapter import query_adapter, tune_adapter
from embedfit.tune.index import class_centroids
from embedfit.tune.result import Tuned, read_tuned, write_fitted, write_tuned

EPOCHS = [{"epoch": 1, "loss": 4.5, "mrr@10": 0.25, "recall@1": 0.125}, {"epoch": 2, "loss": 4.0, "mrr@10": 0.5, "recall@1": 0.25}]
WEIGHTS = {
    "folder": "model",
    "history": EPOCHS,
    "epoch": 2,
    "tokens": 8391,
    "seconds": 3.381,
    "candidates": "all",
    "precision": "bf16",
    "matryoshka": [64],
    "over": None,
}
STRENGTHS = [{"strength": None, "mrr@10": 0.25, "recall@1": 0.125}, {"strength": 100.0, "mrr@10": 0.5, "recall@1": 0.25}]
MAP = {"strength": 100.0, "history": STRENGTHS, "seconds": 0.499}
"""tuned.json as every version so far has written it."""


def written(folder, record):
    (folder / "tuned.json").write_text(json.dumps(record, indent=1))
    return folder


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_folder_of_weights_that_an_earlier_version_wrote_is_read(tiny_model, tmp_path, method):
    (tmp_path / "model").symlink_to(tiny_model)
    if method == "lora":
        (tmp_path / "lora").mkdir()
    tuned = read_tuned(written(tmp_path, WEIGHTS), template="{title}")
    assert (tuned.folder, tuned.model) == (tmp_path, tmp_path / "model")
    assert tuned.history == tuple(EPOCHS)
    assert (tuned.epoch, tuned.tokens, tuned.seconds, tuned.candidates, tuned.matryoshka) == (2, 8391, 3.381, "all", (64,))
    assert tuned.strength is None
    assert isinstance(tuned.encoder, LocalEncoder)
    assert (tuned.encoder.folder, tuned.encoder.precision) == (tmp_path / "model", "bf16")
    assert tuned.retriever.template == "{title}"


def test_a_folder_of_an_adapted_model_that_an_earlier_version_wrote_is_read(tiny_model, tmp_path):
    base = LocalEncoder(tiny_model, precision="fp32")
    some_adapter(base, 384).save(tmp_path / "adapter.safetensors")
    save_adapted(base, some_adapter(base, 384), tmp_path / "model")
    tuned = read_tuned(written(tmp_path, MAP), base)
    assert (tuned.folder, tuned.model) == (tmp_path, tmp_path / "model")
    assert (tuned.strength, tuned.seconds, tuned.history) == (100.0, 0.499, tuple(STRENGTHS))
    assert (tuned.epoch, tuned.tokens, tuned.candidates) == (None, None, None)
    assert (tuned.encoder.folder, tuned.encoder.precision) == (tmp_path / "model", "fp32")


def test_a_folder_of_an_adapter_over_an_api_that_an_earlier_version_wrote_is_read_with_its_encoder(tmp_path):
    _, encoder, _ = rotated()
    adapter = some_adapter(encoder, 16)
    adapter.save(tmp_path / "adapter.safetensors")
    tuned = read_tuned(written(tmp_path, MAP), encoder)
    assert (tuned.folder, tuned.model) == (tmp_path, tmp_path / "adapter.safetensors")
    assert isinstance(tuned.encoder, AdaptedEncoder)
    assert tuned.encoder.fingerprint == adapter.fingerprint
    with pytest.raises(ModelError, match="fix: give the encoder that it was fitted on"):
        read_tuned(tmp_path)


def test_tuned_json_is_written_as_it_always_was(tiny_model, tmp_path):
    for name, record, write in (("weights", WEIGHTS, write_tuned), ("map", MAP, write_fitted)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model").symlink_to(tiny_model)
        before = written(tmp_path / name, record) / "tuned.json"
        text = before.read_text()
        write(read_tuned(tmp_path / name), tmp_path / name)
        assert before.read_text() == text


def test_nothing_is_invented_of_what_a_method_does_not_have(tmp_path):
    data, encoder, _ = rotated()
    train, dev = parts(data, 200)
    for tuned in (query_adapter(encoder, train, dev), tune_adapter(encoder, train, dev, tmp_path), class_centroids(encoder, train)):
        assert isinstance(tuned, Tuned)
        assert (tuned.epoch, tuned.tokens, tuned.candidates) == (None, None, None)
        assert tuned.seconds >= 0
        assert len(tuned.retriever.search(dev, 3).query_ids) == 40
    assert tune_adapter(encoder, train, dev, tmp_path).to_dict()["over"] == "table"


def test_what_is_in_memory_alone_has_no_path():
    data, encoder, _ = rotated()
    tuned = class_centroids(encoder, data)
    np.testing.assert_array_equal(tuned.encoder.encode(["query 3"], "query"), encoder.encode(["query 3"], "query"))
    with pytest.raises(ModelError, match="fix: give a folder to tune into"):
        tuned.model  # noqa: B018
