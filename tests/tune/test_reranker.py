import json
from pathlib import Path

import numpy as np
import pytest
import torch

from embedfit.cli.printing import print_result
from embedfit.config import TuneConfig, make_config
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.split import split_dataset
from embedfit.encode.local import LocalEncoder
from embedfit.errors import ConfigError, ModelError, StorageError
from embedfit.evaluation.score import score_run
from embedfit.files import file_sha256
from embedfit.pipeline.experiment import run
from embedfit.pipeline.job import Job
from embedfit.pipeline.needs import check_method
from embedfit.pipeline.reranking import check_reranker_run
from embedfit.pipeline.result import config_of
from embedfit.publish.parity import check_pair_parity
from embedfit.retrieve.rerank import LocalReranker, RerankedRetriever
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.studies.ladder import climb
from embedfit.studies.methods import METHODS, Setting
from embedfit.tune import trainer
from embedfit.tune.reranker import PairCollator, PairLoss, cross_encoder_from, is_cross_encoder, tune_reranker
from embedfit.tune.training import Training

SETTINGS = TuneConfig(method="reranker", epochs=2, batch_size=6, learning_rate=1e-3, hard_negatives=2)
TOP = 4


def colours(numbers):
    """Queries that name a number, over documents in which its word stands; the word encoder finds others that have more words in common."""
    words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
    documents = {word: Document(word, f"which is {word}") for word in words}
    queries = {f"q{number}": Query(f"q{number}", f"{number} which is") for number in numbers}
    return Dataset(queries, documents, {f"q{number}": {words[number]: 1} for number in numbers})


@pytest.fixture(scope="module")
def parts():
    return colours(range(12)), colours([3, 5, 7])


def training(parts, folder, settings=SETTINGS, dev=False):
    return Training(parts[0], parts[1] if dev else None, folder, settings, "{text}")


@pytest.fixture(scope="module")
def tuned(parts, words, tiny_model, tmp_path_factory):
    return tune_reranker(words, training(parts, tmp_path_factory.mktemp("reranker"), dev=True), start=tiny_model, top=TOP, precision="fp32")


def weights(tuned):
    return file_sha256(tuned.folder / "model" / "model.safetensors")


# Batches


@pytest.fixture(scope="module")
def start(tiny_model):
    return cross_encoder_from(tiny_model)


def test_a_right_document_competes_with_judged_wrong_ones_and_then_with_mined_ones(start):
    queries = {id: Query(id, f"query {id}") for id in "abc"}
    documents = {f"d{i}": Document(f"d{i}", f"document {i} " * (i + 1)) for i in range(6)}
    data = Dataset(queries, documents, {"a": {"d0": 1, "d5": 2, "d1": 0}, "b": {"d1": 1}, "c": {"d2": 1}})
    mined = np.array([[2, 1, 3], [-1, -1, -1], [4, -1, -1]])
    collator = PairCollator(start, data, "{text}", mined, count=2, seed=0)
    inputs = collator([{"row": 2}, {"row": 0}, {"row": 1}])
    tokens = inputs["pairs0_input_ids"]
    assert tokens.shape[0] == 3 + 1 + 2
    assert list(collator.tokens) == [int(inputs["pairs0_attention_mask"].sum())]
    texts = start.tokenizer.batch_decode(tokens, skip_special_tokens=True)
    groups = [[texts[place].split()[1:4] for place in row if place >= 0] for row in inputs["label"].tolist()]
    assert groups[0][0] in (["a", "document", "0"], ["a", "document", "5"])
    assert ["a", "document", "1"] in groups[0][1:]  # judged: always drawn
    assert groups[0][2][2] in "23"
    assert groups[1] == [["b", "document", "1"]]
    assert groups[2] == [["c", "document", "2"], ["c", "document", "4"]]
    assert inputs["label"][1].tolist()[1:] == [-1, -1]
    again = PairCollator(start, data, "{text}", mined, count=2, seed=0)([{"row": 1}, {"row": 2}, {"row": 0}])
    assert torch.equal(inputs["label"], again["label"])
    assert torch.equal(tokens, again["pairs0_input_ids"])


def test_the_loss_is_the_cross_entropy_of_the_right_document_whatever_the_chunks():
    # Scores 2, 1, 0 with the first right, and 3 against 1: log(1 + e^-1 + e^-2) and log(1 + e^-2).
    class Given:
        def __call__(self, features):
            return {"scores": features["input_ids"].float()}

    chunks = [{"input_ids": torch.tensor([[1.0], [2.0], [3.0]])}, {"input_ids": torch.tensor([[0.0], [1.0]])}]
    labels = torch.tensor([[1, 0, 3], [2, 4, -1]])
    loss = PairLoss(Given())(chunks, labels)
    assert loss.item() == pytest.approx((np.log(1 + np.exp(-1) + np.exp(-2)) + np.log(1 + np.exp(-2))) / 2, abs=1e-6)


def test_activations_computed_again_give_the_gradient_of_those_kept(start, parts):
    collator = PairCollator(start, parts[0], "{text}", np.arange(24).reshape(12, 2) % 12, count=2, seed=0)
    inputs = collator([{"row": row} for row in range(12)])
    chunks = [{name: inputs[f"pairs{number}_{name}"] for name in ("input_ids", "attention_mask", "token_type_ids")} for number in range(2)]
    gradients = []
    for memory in (float("inf"), 1):
        start.zero_grad()
        features = [{key: value.to(start.device) for key, value in chunk.items()} for chunk in chunks]
        PairLoss(start, memory_tokens=memory)(features, inputs["label"]).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in start.parameters() if value.grad is not None]))
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)


# Training


def test_a_tuned_reranker_puts_right_documents_first_and_loads_anywhere(tuned, parts, words):
    from sentence_transformers import CrossEncoder

    assert tuned.history[-1]["loss"] < tuned.history[0]["loss"]
    assert {"mrr@10", "recall@1"} <= tuned.history[0].keys()
    retrievers = (DenseRetriever(words, "{text}"), tuned.retriever)
    before, after = (score_run(retriever.search(parts[0], TOP), parts[0].qrels).mean("mrr@10") for retriever in retrievers)
    assert after > before
    assert tuned.encoder is words
    pairs = [("3 which is", "which is three"), ("a", "b")]
    plain = CrossEncoder(str(tuned.model), local_files_only=True, device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(LocalReranker(tuned.model, precision="fp32").score(pairs), plain, atol=1e-5)
    assert is_cross_encoder(tuned.model)
    assert not (tuned.folder / "checkpoints").exists()
    assert not (tuned.folder / "mined").exists()


def test_the_same_call_reads_the_result_and_another_is_refused(tuned, parts, words, tiny_model, monkeypatch):
    with pytest.raises(StorageError, match="holds a tuning of another model, data or settings"):
        tune_reranker(words, training(parts, tuned.folder), start=tiny_model, top=TOP, precision="fp32")
    monkeypatch.setattr("embedfit.tune.reranker._train", lambda *_: pytest.fail("trained"))
    again = tune_reranker(words, training(parts, tuned.folder, dev=True), start=tiny_model, top=TOP, precision="fp32")
    assert again == tuned


def test_stopped_and_started_again_it_ends_with_the_same_model(tuned, parts, words, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "_SAVE_SECONDS", 0)
    monkeypatch.setattr(trainer, "_SAVE_SHARE", float("inf"))
    step = trainer.RecordingTrainer.training_step

    class Killed(BaseException):
        pass

    def until(self, *inputs, **named):
        if self.state.global_step == 3:
            raise Killed
        return step(self, *inputs, **named)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.RecordingTrainer, "training_step", until)
        with pytest.raises(Killed):
            tune_reranker(words, training(parts, tmp_path, dev=True), start=tiny_model, top=TOP, precision="fp32")
    assert (tmp_path / "checkpoints" / "checkpoint-3").exists()
    again = tune_reranker(words, training(parts, tmp_path, dev=True), start=tiny_model, top=TOP, precision="fp32")
    assert weights(again) == weights(tuned)
    assert (again.history, again.epoch, again.tokens) == (tuned.history, tuned.epoch, tuned.tokens)


def test_a_cross_encoder_is_tuned_further_and_a_model_of_vectors_gets_a_head(tuned, tiny_model, tmp_path):
    head = "0.model.classifier.weight"
    before, now = (model.state_dict()[head] for model in (LocalReranker(tuned.model).loaded, cross_encoder_from(tuned.model)))
    assert torch.equal(before, now)
    assert cross_encoder_from(tiny_model).max_seq_length == LocalEncoder(tiny_model).loaded.model.max_seq_length
    with pytest.raises(ModelError, match="nowhere"):
        cross_encoder_from("./nowhere")


# Commands


def test_the_ladder_has_a_rung_over_the_tuned_model_with_the_price_of_a_query(tiny_model, tmp_path):
    data = colours(range(12))
    config = make_config(
        {"data": {"queries": "-"}, "evaluate": {"rerank_top": 3}, "tune": {"epochs": 1, "reranker": str(tiny_model), "hard_negatives": 1}}
    )
    setting = Setting(LocalEncoder(tiny_model, precision="fp32"), config, "{text}", None)
    ladder = climb(setting, data, [split_dataset(data, dev=0)], tmp_path, ("full", "reranked"))
    assert [rung.key for rung in ladder.rungs] == ["full", "reranked"]
    assert ladder["reranked"].query_milliseconds > ladder["full"].query_milliseconds
    assert ladder["reranked"].below is not None
    assert (tmp_path / "full" / "0" / "tuned.json").exists()
    assert is_cross_encoder(tmp_path / "reranked" / "0" / "model")
    unset = Setting(setting.base, make_config({"data": {"queries": "-"}}), "{text}", None)
    assert METHODS["reranked"].missing(unset, data) == "tune.reranker names no model to start from"


@pytest.fixture
def project(tiny_model, tmp_path):
    """Write settings and data; returns the path of the settings."""
    words = ["zero", "one", "two"] * 3
    rows = [{"id": str(row), "query": f"{row % 3} which is", "expected": f"which is {word}"} for row, word in enumerate(words)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "embedfit.toml").write_text(
        f'[data]\nqueries = "pairs.jsonl"\n[model]\nname = "{tiny_model}"\n[split]\nleaks = "allow"\n'
        '[tune]\nmethod = "reranker"\nepochs = 1\nmatryoshka = [8]\n[evaluate]\nk = [1]\nmetric = "mrr@1"\nrerank_top = 2\n'
    )
    return tmp_path / "embedfit.toml"


def test_the_command_tunes_a_reranker_that_evaluate_measures(project, tmp_path, said):
    code, out, err = said("tune", project, "--output", tmp_path / "reranker")
    assert code == 0, err
    assert "a reranker is tuned without tune.matryoshka" in err
    assert str(tmp_path / "reranker" / "model") in out
    code, out, err = said("evaluate", project, "--rerank", tmp_path / "reranker" / "model")
    assert code == 0, err
    assert "ms a query" in out
    code, _, err = said("curve", project)
    assert (code, err) == (2, "embedfit: 'embedfit curve' measures models that encode; fix: 'embedfit run' measures a reranker\n")


def test_a_run_measures_a_reranker_on_held_out_queries_and_publishes_it(tiny_model, tmp_path, said, monkeypatch, capsys):
    from sentence_transformers import CrossEncoder

    monkeypatch.chdir(tmp_path)
    data, tune = colours(range(12)), SETTINGS.model_copy(update={"epochs": 1})
    evaluate = {"k": [1], "metric": "mrr@1", "rerank_top": 2}
    sections = {"tune": tune, "split": {"folds": 2, "leaks": "allow"}, "evaluate": evaluate}
    model = {"name": str(tiny_model), "precision": "fp32"}
    result = run(data, model=model, **sections)
    folder = result.folder
    print_result(result, as_json=False)
    out = capsys.readouterr().out
    assert "to rerank 2 documents." in out
    assert "Searcher:" not in out
    assert (result.deployed, result.comparison.tuned.name.partition(", ")[2]) == ("reranked", "reranked by a tuned cross-encoder")
    assert len(result.manifest["tuning"]) == 3  # two folds, and the one to use
    assert result.manifest["reranker"]["milliseconds"]["reranking"] > 0
    # Each query by the reranker that did not learn from it.
    job = Job.of(config_of(result), data)
    for number, (_, _, test) in enumerate(job.parts):
        reranker = LocalReranker(folder / "folds" / str(number) / "model", precision="fp32")
        found = RerankedRetriever(DenseRetriever(job.base), reranker, top=2).search(test, 1)
        scores = score_run(found, test.qrels, ks=(1,)).values["mrr@1"]
        measured = dict(zip(result.comparison.tuned.query_ids, result.comparison.tuned.values["mrr@1"], strict=True))
        assert [measured[id] for id in test.queries] == scores.tolist()
    assert "reranked" in result.report.read_text()
    assert run(data, model=model, **sections).reused
    with pytest.raises(ConfigError, match="tuned a reranker, and has no searcher"):
        result.searcher  # noqa: B018
    code, out, err = said("publish", folder, "./published", "--yes")
    assert code == 0, err
    assert "the scores of 24 pairs are the same" in out
    card = Path("published/README.md").read_text()
    assert 'CrossEncoder("./published")' in card
    assert "pipeline_tag: text-ranking" in card
    assert "SentenceTransformer(" not in card
    assert result.comparison.sentence in card
    pairs = [("3 which is", "which is three")]
    plain = CrossEncoder("published", local_files_only=True, device="cpu").predict(pairs, activation_fn=torch.nn.Identity())
    np.testing.assert_allclose(result.reranker.score(pairs), plain, atol=1e-5)
    with pytest.raises(ModelError, match="the fetched model is not the one that was measured: scores differ by"):
        check_pair_parity(result.reranker, LocalReranker(folder / "folds" / "0" / "model", precision="fp32"), pairs)
    (folder / "model" / "config.json").write_text((folder / "model" / "config.json").read_text() + " ")
    assert "a file in it has changed" in said("publish", folder, "./again", "--yes")[2]


def test_what_a_run_of_a_reranker_cannot_do_is_refused_or_noted_first(capsys):
    def config(**sections):
        return make_config({"data": {"queries": "-"}, "tune": {"method": "reranker"}, **sections})

    with pytest.raises(ConfigError, match=r"general\.keep merges weights"):
        check_reranker_run(config(general={"keep": 0.9}), picks=False)
    with pytest.raises(ConfigError, match="picks are measured by a searcher"):
        check_reranker_run(config(), picks=True)
    check_reranker_run(config(), picks=False)
    assert capsys.readouterr().err == ""
    check_reranker_run(config(deploy={"forms": ["onnx"]}, searcher={"views": ["documents"]}), picks=False)
    assert capsys.readouterr().err == "a run that tunes a reranker does not use searcher.views, deploy.forms\n"


def test_what_a_reranker_cannot_start_from_is_noticed_first(word_encoder, tiny_model):
    with pytest.raises(ConfigError, match=r"needs a model to start from; fix: tune\.reranker"):
        check_method(word_encoder, TuneConfig(method="reranker"))
    with pytest.raises(ModelError, match="nowhere"):
        check_method(word_encoder, TuneConfig(method="reranker", reranker="./nowhere"))
    check_method(word_encoder, TuneConfig(method="reranker", reranker=str(tiny_model)))
