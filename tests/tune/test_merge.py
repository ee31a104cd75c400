import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from embedfit.encode.local import LocalEncoder, load_model
from embedfit.errors import ConfigError, ModelError, StorageError
from embedfit.files import file_sha256
from embedfit.hub import weights_of
from embedfit.tune.merge import Merges, merge_models

TEXTS = ["the quick brown fox", "a tax on imported cheese", "why is the sky blue?"]


def tensors(folder):
    [path] = weights_of(folder)
    return load_file(path)


@pytest.fixture(scope="module")
def tuned_model(tiny_model, tmp_path_factory):
    """The tiny model with all but its token embeddings moved a little, as tuning would; a file beside it says what it saw."""
    folder = tmp_path_factory.mktemp("merge") / "tuned" / "model"
    shutil.copytree(tiny_model, folder)
    generator = torch.Generator().manual_seed(0)
    moved = {
        name: value + 0.05 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and "embeddings" not in name
        else value
        for name, value in tensors(folder).items()
    }
    save_file(moved, weights_of(folder)[0], metadata={"format": "pt"})
    (folder.parent / "tuning.json").write_text(json.dumps({"identity": "x", "seen": ["abc", "def"], "answers": ["123"]}))
    return folder


def fp32(folder):
    return LocalEncoder(folder, precision="fp32")


def test_every_tensor_lies_on_the_line_between_base_and_tuned(tiny_model, tuned_model, tmp_path):
    merged = merge_models(tiny_model, tuned_model, 0.3, tmp_path / "merged")
    before, after, between = tensors(tiny_model), tensors(tuned_model), tensors(merged.folder)
    assert between.keys() == after.keys()
    changed = [name for name in after if not torch.equal(before[name], after[name])]
    assert len(changed) > 10
    for name in after:
        expected = 0.7 * before[name].double() + 0.3 * after[name].double()
        torch.testing.assert_close(between[name].double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("weight", [0, 1])
def test_at_the_ends_the_weights_are_exactly_those_of_base_and_of_tuned(tiny_model, tuned_model, tmp_path, weight):
    merged = merge_models(tiny_model, tuned_model, weight, tmp_path / "merged")
    expected = tensors(tuned_model if weight else tiny_model)
    assert all(torch.equal(expected[name], value) for name, value in tensors(merged.folder).items())


def test_the_written_model_gives_the_vectors_that_were_measured_in_memory(tiny_model, tuned_model, tmp_path):
    merges = Merges(fp32(tiny_model), fp32(tuned_model))
    vectors = {weight: merges.at(weight).encode(TEXTS, "query") for weight in (0, 0.5, 1)}
    written = merge_models(fp32(tiny_model), fp32(tuned_model), 0.5, tmp_path / "merged")
    np.testing.assert_array_equal(vectors[0], fp32(tiny_model).encode(TEXTS, "query"))
    np.testing.assert_array_equal(vectors[0.5], written.encode(TEXTS, "query"))
    np.testing.assert_array_equal(vectors[1], fp32(tuned_model).encode(TEXTS, "query"))


def test_encoders_of_several_weights_do_not_disturb_one_another(tiny_model, tuned_model):
    merges = Merges(fp32(tiny_model), fp32(tuned_model))
    half, whole = merges.at(0.5), merges.at(1)
    first = half.encode(TEXTS, "query")
    assert np.abs(first - whole.encode(TEXTS, "query")).max() > 0.01
    np.testing.assert_array_equal(first, half.encode(TEXTS, "query"))


def test_a_fingerprint_is_of_both_models_and_the_weight_and_the_models_own_at_the_ends(tiny_model, tuned_model):
    base, tuned = fp32(tiny_model), fp32(tuned_model)
    merges = Merges(base, tuned)
    assert merges.at(0).fingerprint == base.fingerprint
    assert merges.at(1).fingerprint == tuned.fingerprint
    assert merges.at(0.5).fingerprint == Merges(fp32(tiny_model), fp32(tuned_model)).at(0.5).fingerprint
    assert len({merges.at(weight).fingerprint for weight in (0, 0.25, 0.5, 1)} | {Merges(tuned, base).at(0.25).fingerprint}) == 5


def test_a_merge_knows_which_queries_and_answers_the_tuned_model_has_seen(tiny_model, tuned_model, tmp_path):
    merge_models(tiny_model, tuned_model, 0.5, tmp_path / "merged")
    said = json.loads((tmp_path / "merged" / "tuning.json").read_text())
    assert (said["seen"], said["answers"]) == (["abc", "def"], ["123"])


def test_the_same_call_again_does_nothing_and_another_one_is_refused(tiny_model, tuned_model, tmp_path):
    folder = tmp_path / "merged"
    first = merge_models(tiny_model, tuned_model, 0.5, folder)
    [weights] = weights_of(first.folder)
    before = (file_sha256(weights), weights.stat().st_mtime_ns)
    merge_models(tiny_model, tuned_model, 0.5, folder)
    assert (file_sha256(weights), weights.stat().st_mtime_ns) == before
    with pytest.raises(StorageError, match="holds a tuning of another model"):
        merge_models(tiny_model, tuned_model, 0.6, folder)
    with pytest.raises(StorageError, match="holds a tuning of another model"):  # never over the tuned model itself
        merge_models(tiny_model, tuned_model, 0.5, tuned_model.parent)


def test_a_process_killed_while_writing_leaves_no_model(tiny_model, tuned_model, tmp_path, monkeypatch):
    from sentence_transformers import SentenceTransformer

    save = SentenceTransformer.save_pretrained

    def half(self, path, **said):
        save(self, path, **said)
        raise KeyboardInterrupt

    monkeypatch.setattr(SentenceTransformer, "save_pretrained", half)
    with pytest.raises(KeyboardInterrupt):
        merge_models(tiny_model, tuned_model, 0.5, tmp_path / "merged")
    assert not (tmp_path / "merged" / "model").exists()
    monkeypatch.undo()
    merged = merge_models(tiny_model, tuned_model, 0.5, tmp_path / "merged")
    assert merged.encode(TEXTS, "query").shape == (3, 384)


def test_a_folder_that_cannot_be_written_is_one_line(tiny_model, tuned_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written: File exists"):
        merge_models(tiny_model, tuned_model, 0.5, tmp_path / "file")


@pytest.mark.parametrize("weight", [-0.1, 1.01, float("nan")])
def test_a_weight_outside_0_and_1_is_refused(tiny_model, tuned_model, tmp_path, weight):
    with pytest.raises(ConfigError, match="expected a number from 0"):
        merge_models(tiny_model, tuned_model, weight, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_models_with_other_prompts_or_precision_are_refused(tiny_model):
    with pytest.raises(ModelError, match="its prompts are"):
        Merges(LocalEncoder(tiny_model), LocalEncoder(tiny_model, query_prompt="query: "))
    with pytest.raises(ModelError, match="its precision is 'fp32', not 'auto'"):
        Merges(LocalEncoder(tiny_model), fp32(tiny_model))


def changed(tiny_model, folder, change):
    model = load_model(tiny_model)
    change(model)
    model.save_pretrained(str(folder), create_model_card=False)
    return folder


def fewer_words(model):
    model.transformers_model.resize_token_embeddings(30_000)


def no_layer(model):
    model.transformers_model.encoder.layer = model.transformers_model.encoder.layer[:0]
    model.transformers_model.config.num_hidden_layers = 0


def one_module_less(model):
    del model[len(model) - 1]


def first_token(model):
    from sentence_transformers.sentence_transformer.modules import Pooling

    model[1] = Pooling(model.get_embedding_dimension(), pooling_mode="cls")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (fewer_words, r"has the shape 30000 x 384, not 30522 x 384"),
        (no_layer, r"tensors are in one of them only, such as 0\."),
        (one_module_less, "its modules are Transformer, Pooling, not Transformer, Pooling, Normalize"),
        (first_token, "pools the token vectors differently"),
    ],
)
def test_models_that_are_not_built_alike_are_refused_in_one_line(tiny_model, tmp_path, change, said):
    other = changed(tiny_model, tmp_path / "other", change)
    with pytest.raises(ModelError, match=said) as caught:
        merge_models(tiny_model, other, 0.5, tmp_path / "merged")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "merged").exists()
