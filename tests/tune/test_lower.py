import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from embedfit.config import TuneConfig, make_config
from embedfit.data.dataset import Dataset
from embedfit.encode.local import LocalEncoder, ModelEncoder, load_model
from embedfit.encode.tokens import Tokens
from embedfit.errors import ConfigError
from embedfit.hub import model_folder, weights_of
from embedfit.pipeline.needs import check_method
from embedfit.tune import prepared
from embedfit.tune.full import tune_model
from embedfit.tune.lower import KeptStates, LowerLayers, layers_of
from embedfit.tune.reranker import cross_encoder_from

TEXTS = ["a text", "a longer text about the price of cheese in Paris and elsewhere", "x", "two words"]


@pytest.fixture(scope="module")
def few(transactions):
    """24 training queries over 27 labels."""
    return transactions.select(transactions.judged[::12][:24])


SETTINGS = {"epochs": 2, "batch_size": 12, "freeze": 1}


@pytest.fixture(scope="module")
def frozen(two_layers, few, tmp_path_factory):
    encoder = LocalEncoder(two_layers, precision="fp32")
    return tune_model(encoder, few, None, tmp_path_factory.mktemp("frozen"), TuneConfig(**SETTINGS))


def tensors(folder):
    return load_file(weights_of(folder)[0])


def in_training(folder):
    encoder = LocalEncoder(folder, precision="fp32")
    return ModelEncoder(load_model(encoder.folder, encoder.prompts), encoder.prompts, bf16=False)


# Training


def test_half_of_the_layers_and_the_embeddings_keep_their_weights_for_a_list_of_labels(frozen, two_layers):
    assert frozen.frozen == 1
    before, after = tensors(two_layers), tensors(frozen.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(".layer.1." in name for name in moved)
    assert {name for name in before if ".layer.1." in name and not name.endswith("key.bias")} <= moved  # a softmax is blind to it
    assert frozen.history[1]["loss"] < frozen.history[0]["loss"]


def test_kept_states_change_nothing_but_the_order_of_sums(frozen, two_layers, few, tmp_path, monkeypatch):
    monkeypatch.setattr(LowerLayers, "keep", lambda *_, **__: pytest.fail("kept"))
    scarce = TuneConfig(**SETTINGS, memory_gb=1e-4)  # not enough for the states; the activations are computed again too
    again = tune_model(LocalEncoder(two_layers, precision="fp32"), few, None, tmp_path, scarce)
    assert (again.frozen, again.tokens) == (1, frozen.tokens)
    ours, theirs = tensors(again.model), tensors(frozen.model)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_the_frozen_layers_run_once_for_each_text(two_layers, few, tmp_path, monkeypatch):
    runs = []
    run = LowerLayers._run
    monkeypatch.setattr(LowerLayers, "_run", lambda self, features: runs.append(len(features["attention_mask"])) or run(self, features))
    layer_runs = []
    from transformers.models.bert.modeling_bert import BertLayer

    forward = BertLayer.forward
    monkeypatch.setattr(BertLayer, "forward", lambda self, *given, **named: layer_runs.append(self) or forward(self, *given, **named))
    tune_model(LocalEncoder(two_layers, precision="fp32"), few, None, tmp_path, TuneConfig(**SETTINGS))
    lower_runs = [layer for layer in layer_runs if layer is layer_runs[0]]
    # Once for the states, and a few texts to find what they depend on and whether the layers can be left out.
    assert len(lower_runs) == len(runs) + 2
    assert sum(runs) <= len(few.queries) + len(few.corpus) + 5


@pytest.mark.parametrize(
    "settings",
    [
        {"dropout": 0.1},
        {"method": "lora"},
        {"candidates": "mined", "mine_every": 1, "matryoshka": (64,)},
        {"candidates": "mined", "mine_every": 2, "judge": "cross-encoder", "teacher": "cross-encoder", "batch_size": 3},
    ],
    ids=["dropout", "lora", "mined", "judge and teacher"],
)
def test_stopped_and_started_again_it_ends_with_the_same_model(two_layers, tiny_model, few, tmp_path, killed, settings):
    if "judge" in settings:
        cross_encoder_from(tiny_model).save_pretrained(str(tmp_path / "cross"), create_model_card=False)
        settings = settings | dict.fromkeys(("judge", "teacher"), str(tmp_path / "cross"))
        few = few.select(few.judged[:6])
        few = Dataset(few.queries, {id: few.corpus[id] for query in few.queries for id in few.relevant(query)}, few.qrels)
    encoder, settings = LocalEncoder(two_layers, precision="fp32"), TuneConfig(**{**SETTINGS, **settings})
    whole = tune_model(encoder, few, None, tmp_path / "whole", settings)
    assert killed(3, encoder, few, None, tmp_path / "killed", settings) == [2, 3]  # of 2 in an epoch
    again = tune_model(encoder, few, None, tmp_path / "killed", settings)
    ours, theirs = tensors(again.model), tensors(whole.model)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert (again.history, again.tokens, again.frozen) == (whole.history, whole.tokens, 1)
    before = tensors(two_layers)
    assert all(torch.equal(before[name], ours[name]) for name in before if ".layer.0." in name)


# Settings


@pytest.mark.parametrize(
    ("settings", "candidates", "queries", "expected"),
    [
        ({}, "all", 500, 1),
        ({}, "all", 499, 0),  # may need all layers
        ({}, "all", 2000, 1),
        ({}, "all", 2001, 0),  # large sets and passages: not shown to be as good
        ({}, "mined", 500, 0),
        ({}, "batch", 500, 0),
        ({"method": "lora"}, "all", 500, 0),
        ({"train_embeddings": True}, "all", 500, 0),
        ({"freeze": 0}, "all", 500, 0),
        ({"freeze": 1}, "mined", 2001, 1),
    ],
)
def test_auto_freezes_half_of_the_layers_for_some_hundreds_of_labelled_queries_alone(two_layers, settings, candidates, queries, expected):
    transformer = in_training(two_layers).model.transformers_model
    assert prepared.layers_to_freeze(transformer, TuneConfig(**settings), candidates, queries) == expected


def test_no_more_layers_than_there_are_can_be_frozen(two_layers, few, tmp_path):
    with pytest.raises(ConfigError, match=r"tune\.freeze is 2, and the model has 2 layers; fix: a smaller number"):
        tune_model(LocalEncoder(two_layers), few, None, tmp_path, TuneConfig(freeze=2))
    with pytest.raises(ConfigError, match=r"tune\.freeze is 2, and .* has 2 layers; fix: a smaller number"):
        check_method(LocalEncoder(two_layers), TuneConfig(freeze=2))  # before anything else
    check_method(LocalEncoder(two_layers), TuneConfig(freeze=1))


@pytest.mark.parametrize("value", [-1, True, 1.5, "half"])
def test_freeze_is_auto_or_a_number_of_layers(value):
    with pytest.raises(ConfigError, match=r"key 'tune\.freeze': expected 'auto' or a number of layers"):
        make_config({"data": {"queries": "x"}, "tune": {"freeze": value}})


def test_embeddings_below_frozen_layers_cannot_be_trained():
    with pytest.raises(ConfigError, match=r"key 'tune\.freeze': .*needs train_embeddings = false, seen 2"):
        make_config({"data": {"queries": "x"}, "tune": {"train_embeddings": True, "freeze": 2}})


def test_a_training_is_named_as_before_the_settings_that_do_nothing_in_it():
    whole = TuneConfig(freeze=0).model_dump()
    later = ("freeze", "documents", "schedule", "min_gradient", "merge", "reranker", "query_model", "teacher", "teacher_weight")
    before = {name: value for name, value in whole.items() if name not in later}
    assert TuneConfig(freeze=0, min_gradient=0).identity() == before
    assert TuneConfig().identity() == {**before, "freeze": "auto", "min_gradient": 0.1}
    every = TuneConfig(documents="frozen", schedule="averaged", merge=0.5, reranker="a", query_model="b", teacher="data")
    assert every.identity() == every.model_dump(exclude={"min_gradient"})  # which is for trained documents


# Architectures


def built(config, folder, kind="AutoModel"):
    """Return a random model of small layers, with mean pooling and the tokenizer of all-MiniLM-L6-v2."""
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    kind = getattr(transformers, kind)
    model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(model_folder("all-MiniLM-L6-v2")).save_pretrained(folder)
    return SentenceTransformer(modules=[Transformer(str(folder)), Pooling(config.hidden_size)], device="cpu")


def config_of(name, **settings):
    import transformers

    sizes = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 30_522}
    return getattr(transformers, f"{name}Config")(**{**sizes, **settings})


ARCHITECTURES = {
    "BERT-base": config_of("Bert", num_hidden_layers=12, num_attention_heads=12, hidden_size=96),
    "RoBERTa": config_of("Roberta", max_position_embeddings=514, pad_token_id=0),
    "MPNet": config_of("MPNet", pad_token_id=0),
    "DistilBERT": config_of("DistilBert", dim=32, n_layers=3, n_heads=4, hidden_dim=64),
    "ModernBERT": config_of("ModernBert", pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    "Qwen3": config_of("Qwen3", num_key_value_heads=2, head_dim=8),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_upper_layers_alone_give_the_vectors_of_the_whole_model(name, tmp_path):
    model = built(ARCHITECTURES[name], tmp_path)
    layers = layers_of(model.transformers_model)
    frozen = LowerLayers(ModelEncoder(model, {"query": "", "document": ""}, bf16=False), len(layers) // 2)
    tokens = Tokens(model, TEXTS, "")
    assert frozen.can_be_left_out(tokens)
    kept = frozen.keep(tokens, batch_tokens=16)
    some = np.array([2, 1, 3])
    with frozen.replaced_by(kept.padded(some)):
        vectors = model(tokens.padded(some))["sentence_embedding"]
    torch.testing.assert_close(vectors, model(tokens.padded(some))["sentence_embedding"], atol=1e-5, rtol=1e-4)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert any(f".{len(layers) - 1}." in name for name in trained)
    assert not [name for name in trained if "embeddings" in name or "embed_tokens" in name or "relative" in name or ".0." in name[2:]]


def test_half_of_twelve_layers_are_frozen_in_training(few, tmp_path):
    model = built(ARCHITECTURES["BERT-base"], tmp_path / "plain")
    assert prepared.layers_to_freeze(model.transformers_model, TuneConfig(), "all", 500) == 6
    model.save_pretrained(str(tmp_path / "base"), create_model_card=False)
    base = LocalEncoder(tmp_path / "base", precision="fp32")
    tuned = tune_model(base, few, None, tmp_path / "tuned", TuneConfig(freeze=6, epochs=1, batch_size=12))
    before, after = tensors(base.folder), tensors(tuned.model)
    moved = {name.partition(".layer.")[2].partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"6", "7", "8", "9", "10", "11"}
    assert tuned.frozen == 6


def test_layers_that_others_need_run_again_in_each_step(tmp_path):
    # T5's first layer makes the position bias of all layers.
    model = built(config_of("T5", d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4), tmp_path, "T5EncoderModel")
    frozen = LowerLayers(ModelEncoder(model, {"query": "", "document": ""}, bf16=False), 1)
    assert not frozen.can_be_left_out(Tokens(model, TEXTS, ""))
    assert not [name for name, weight in model.named_parameters() if weight.requires_grad and ".block.0." in name]


def test_an_architecture_whose_layers_are_not_known_is_trained_whole_or_refused(two_layers, capsys):
    encoder = in_training(two_layers)
    transformer = encoder.model.transformers_model
    transformer.config.num_hidden_layers = 5  # its list of layers has two
    assert prepared.layers_to_freeze(transformer, TuneConfig(), "all", 500) == 0
    assert "all layers are trained: those of a BertModel are not known" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"tune\.freeze: the layers of a BertModel are not known; fix: tune\.freeze = 0"):
        LowerLayers(encoder, 1)


def test_states_are_padded_where_the_tokenizer_pads():
    model = load_model(model_folder("all-MiniLM-L6-v2"))
    for side in ("right", "left"):
        model.tokenizer.padding_side = side
        kept = KeptStates(Tokens(model, ["a b c", "a"], ""))
        kept.put(np.array([0, 1]), torch.arange(10.0).reshape(2, 5, 1) + 1)  # five tokens and three
        padded = kept.padded(np.array([1, 0]))[:, :, 0]
        assert padded[1].tolist() == [1, 2, 3, 4, 5]
        assert padded[0].tolist() == ([6, 7, 8, 0, 0] if side == "right" else [0, 0, 8, 9, 10])
