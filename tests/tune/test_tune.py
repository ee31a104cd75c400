import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import safetensors.torch
import torch
from chunks import chunks_of, on_device
from forks import Forks

from embedfit.config import TuneConfig, make_config
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.split import split_dataset
from embedfit.encode.local import LocalEncoder, load_model
from embedfit.encode.precision import train_by_plain_attention
from embedfit.encode.tokens import Tokens
from embedfit.errors import ConfigError, DataError, EmbedfitError, ModelError, StorageError
from embedfit.files import file_sha256
from embedfit.hub import weights_of
from embedfit.tune import dev, prepared, trainer
from embedfit.tune.average import EpochMean, trained_weights
from embedfit.tune.batches import Collator
from embedfit.tune.candidates import AllDocuments, BatchAndOthers
from embedfit.tune.dev import clearly_worse
from embedfit.tune.full import tune_model
from embedfit.tune.loss import CandidateLoss, multi_positive_softmax
from embedfit.tune.trainer import last_checkpoint
from embedfit.tune.training import Training


def small(qrels=None, documents="abcd"):
    qrels = qrels or {"q0": {"a": 1}, "q1": {"b": 1}, "q2": {"a": 1, "c": 2}}
    queries = {id: Query(id, f"query number {id}") for id in qrels}
    return Dataset(queries, {id: Document(id, f"document {id}") for id in documents}, qrels)


# The loss


def test_with_one_positive_each_the_loss_is_cross_entropy_in_both_directions():
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    right = torch.tensor([0, 3, 6, 2])
    grades = torch.nn.functional.one_hot(right, 7).float()
    forth = torch.nn.functional.cross_entropy(logits, right)
    back = torch.nn.functional.cross_entropy(logits[:, right].T, torch.arange(4))
    torch.testing.assert_close(multi_positive_softmax(logits, grades), forth + 0.5 * back)


def test_two_positives_by_hand():
    # Logits 2, 1, 0, the first two right with grades 1 and 3: 1/4 log(1 + e^(0-2)) + 3/4 log(1 + e^(0-1));
    # backwards there is no other query, so nothing to confuse it with.
    loss = multi_positive_softmax(torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([[1.0, 3.0, 0.0]]))
    assert loss.item() == pytest.approx(0.25 * np.log1p(np.exp(-2)) + 0.75 * np.log1p(np.exp(-1)), abs=1e-6)


def test_two_queries_of_one_label_are_no_negatives_of_each_other():
    # Both queries are right for the first document, so backwards neither stands against it; the second document is a
    # negative of both: log(1 + e^(0-1)) each.
    loss = multi_positive_softmax(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert loss.item() == pytest.approx(np.log1p(np.exp(-1)), abs=1e-6)


def test_a_known_positive_is_never_pushed_away():
    logits = torch.tensor([[3.0, -1.0, 0.5]], requires_grad=True)
    multi_positive_softmax(logits, torch.tensor([[1.0, 1.0, 0.0]])).backward()
    assert logits.grad is not None
    assert (logits.grad[0, :2] < 0).all()  # both right ones are pulled
    assert logits.grad[0, 2] > 0


def test_a_query_for_which_every_candidate_is_right_has_no_loss_and_no_nan():
    logits = torch.zeros(1, 3, requires_grad=True)
    loss = multi_positive_softmax(logits, torch.ones(1, 3))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(logits.grad).all()


def test_the_loss_is_the_mean_over_the_whole_and_the_shortened_vectors():
    # One query (3, 0, 4), right (0, 2, 0), wrong (1, 0, 0). Whole: cosines 0 and 3/5; the first dimension alone: the right
    # one has nothing there, so 0, and the wrong one 1. Backwards there is no other query.
    def model(features):
        return {"sentence_embedding": features["vectors"]}

    features = [{"vectors": torch.tensor([[3.0, 0.0, 4.0]])}, {"vectors": torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])}]
    grades = torch.tensor([[1.0, 0.0]])
    whole, first = np.log1p(np.exp(2 * 0.6)), np.log1p(np.exp(2 * 1.0))
    assert CandidateLoss(model, 2.0)(features, grades).item() == pytest.approx(whole, abs=1e-6)
    assert CandidateLoss(model, 2.0, [1])(features, grades).item() == pytest.approx((whole + first) / 2, abs=1e-6)


def test_the_loss_is_of_the_dimensions_that_the_model_gives():
    class Cutting:
        truncate_dim = 1

        def __call__(self, features):
            return {"sentence_embedding": features["vectors"]}

    features = [{"vectors": torch.tensor([[3.0, 0.0, 4.0]])}, {"vectors": torch.tensor([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])}]
    loss = CandidateLoss(Cutting(), 2.0)(features, torch.tensor([[1.0, 0.0]]))
    assert loss.item() == pytest.approx(np.log1p(np.exp(2 * 1.0)), abs=1e-6)


# Candidates


def test_all_documents_are_candidates_with_every_known_positive():
    found = AllDocuments(small()).candidates([2, 0])
    assert found.documents.tolist() == [0, 1, 2, 3]
    assert found.grades.tolist() == [[1, 0, 2, 0], [1, 0, 0, 0]]


def test_a_positive_drawn_for_one_query_is_a_positive_of_another():
    source = BatchAndOthers(small(), random=0, seed=0)
    found = source.candidates([0, 1, 2])
    assert set(found.documents.tolist()) >= {0, 1}
    column = found.documents.tolist().index(0)
    assert found.grades[:, column].tolist() == [1, 0, 1]  # right for q0 and for q2, whoever drew it


def test_random_negatives_depend_on_the_batch_and_the_seed_alone():
    train = small(documents=[f"d{i}" for i in range(500)], qrels={f"q{i}": {f"d{i}": 1} for i in range(8)})
    one, other = BatchAndOthers(train, random=20, seed=1), BatchAndOthers(train, random=20, seed=2)
    first = one.candidates([3, 1, 2])
    one.candidates([5])
    assert one.candidates([3, 1, 2]).documents.tolist() == first.documents.tolist()
    assert other.candidates([3, 1, 2]).documents.tolist() != first.documents.tolist()
    assert len(set(first.documents.tolist())) == len(first.documents)
    assert set(first.documents.tolist()) >= {1, 2, 3}


# Batches


def test_a_batch_cut_in_chunks_has_the_gradient_of_the_whole(tiny_model):
    encoder = LocalEncoder(tiny_model, precision="fp32")
    model = encoder.loaded.model.eval()  # without dropout
    train = Dataset(
        {f"q{i}": Query(f"q{i}", "word " * (i + 1)) for i in range(9)},
        {id: Document(id, f"document {id} " * (i + 1)) for i, id in enumerate("abc")},
        {f"q{i}": {"abc"[i % 3]: 1} for i in range(9)},
    )
    queries, documents = Tokens(model, train.query_texts(), ""), Tokens(model, train.document_texts(), "")
    gradients = []
    for tokens in (8, 10_000):
        collator = Collator(queries, documents, AllDocuments(train), chunk_tokens=tokens)
        inputs = collator([{"row": row} for row in range(9)])
        features = chunks_of(inputs, model)
        model.zero_grad()
        CandidateLoss(model, 20.0)(features, inputs["label"].to(model.device)).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
        assert list(collator.tokens) == [queries.lengths.sum() + documents.lengths.sum()]
        assert (len(features) > 4) == (tokens == 8)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_activations_computed_again_give_the_gradient_of_those_kept(tiny_model, dropout):
    model = LocalEncoder(tiny_model, precision="fp32").loaded.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    train = small()
    queries, documents = Tokens(model, train.query_texts(), ""), Tokens(model, train.document_texts(), "")
    chunks = [tokens.padded(np.array([row])) for tokens in (queries, documents) for row in range(len(tokens))]
    chunks = on_device(chunks, model)
    grades = torch.from_numpy(AllDocuments(train).candidates([0, 1, 2]).grades).to(model.device)
    gradients = []
    for memory in (10_000, 4):
        model.zero_grad()
        torch.manual_seed(0)  # of dropout
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda value, kept=kept: kept.append(value.numel()) or value, lambda value: value):
            loss = CandidateLoss(model, 20.0, [64], memory_tokens=memory)(chunks, grades)
        loss.backward()
        gradients.append((sum(kept), torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])))
    torch.testing.assert_close(gradients[0][1], gradients[1][1], atol=1e-5, rtol=0)
    assert gradients[1][0] < gradients[0][0] / 10


# Choosing an epoch


def test_copies_of_one_query_do_not_make_an_epoch_clearly_worse():
    before, now = np.full(20, 0.5), np.array([0.4] * 10 + [0.56] * 10)
    assert clearly_worse(now, before)
    assert not clearly_worse(now, before, np.arange(20) // 10)
    assert clearly_worse(now, before, np.arange(20)) == clearly_worse(now, before)


def test_a_fall_within_the_noise_is_not_clearly_worse():
    before = np.array([1, 0.5, 1, 0.25, 1, 1, 0.5, 1])
    assert not clearly_worse(before, before)
    assert not clearly_worse(np.array([1, 1, 1, 0.25, 0.5, 1, 0.5, 0.5]), before)
    assert clearly_worse(before * 0.5, before)


# Tuning


@pytest.fixture(scope="module")
def parts(transactions):
    """48 training and 10 dev queries over 27 labels."""
    split = split_dataset(transactions, dev=0.1, seed=0)
    return transactions.select(split.train[::5]), transactions.select(split.dev[:10])


SETTINGS = TuneConfig(epochs=3, batch_size=16)


@pytest.fixture(scope="module")
def unbroken(tiny_model, parts, tmp_path_factory):
    return tune_model(LocalEncoder(tiny_model), *parts, tmp_path_factory.mktemp("unbroken"), SETTINGS)


def weights(tuned):
    return file_sha256(weights_of(tuned.model)[0])


def test_training_lowers_the_loss_and_leaves_a_model_that_loads_anywhere(unbroken, tiny_model):
    from sentence_transformers import SentenceTransformer

    assert unbroken.history[-1]["loss"] < unbroken.history[0]["loss"]
    assert unbroken.candidates == "all"
    assert weights(unbroken) != file_sha256(weights_of(tiny_model)[0])
    plain = SentenceTransformer(str(unbroken.model)).encode(["a taxi"], normalize_embeddings=True)
    ours = LocalEncoder(unbroken.model, precision="fp32").encode(["a taxi"], "query")
    np.testing.assert_allclose(plain, ours, atol=1e-5)
    assert not (unbroken.folder / "checkpoints").exists()


def test_no_training_text_is_in_the_models_folder(unbroken, parts):
    words = next(iter(parts[0].queries.values())).metadata["merchant_name"]
    for path in unbroken.model.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors" and path.name != "tokenizer.json":
            assert words not in path.read_text(errors="replace"), path


def test_one_seed_gives_one_model_and_another_seed_another(unbroken, tiny_model, parts, tmp_path):
    again = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "again", SETTINGS)
    other = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "other", SETTINGS.model_copy(update={"seed": 1}))
    assert weights(again) == weights(unbroken)
    assert again.history == unbroken.history
    assert weights(other) != weights(unbroken)


PREPARED = """
import json, os, signal, sys
from embedfit.encode.local import LocalEncoder
from embedfit.data.load import load
from embedfit.data.split import split_dataset
from embedfit.tune.full import tune_model
from embedfit.config import TuneConfig
from embedfit.samples import TRANSACTIONS
from embedfit.tune import trainer
data = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
split = split_dataset(data, dev=0.1, seed=0)
trainer._SAVE_SECONDS, trainer._SAVE_SHARE = 0, float("inf")  # a checkpoint after every step
"""
"""What a process of its own begins with: the data, and a checkpoint after every step."""

TOGETHER = f"""{PREPARED}
from embedfit import processes
step = trainer.RecordingTrainer.training_step
def until(trainer, *inputs, **named):
    if processes.number() == 1 and str(trainer.state.global_step) == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(trainer, *inputs, **named)
trainer.RecordingTrainer.training_step = until
tune_model(LocalEncoder(sys.argv[1], precision="fp32"), data.select(split.train[::5]), data.select(split.dev[:10]), sys.argv[2],
           TuneConfig(epochs=2, batch_size=16, **json.loads(sys.argv[4])))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        # The documents' hidden states after the frozen layer fit in memory, and the queries' do not.
        {"candidates": "mined", "negatives": 4, "freeze": 1, "memory_gb": 0.001, "schedule": "averaged"},
        {"candidates": "all", "min_gradient": 0.5},
    ],
)
def test_two_processes_train_as_one_does_and_go_on_when_one_of_them_was_killed(two_layers, parts, tmp_path, given):
    def train(folder, *launcher, kill=""):
        command = [sys.executable, *launcher, str(tmp_path / "script.py"), str(two_layers), str(tmp_path / folder), kill, json.dumps(given)]
        return subprocess.run(command, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)

    (tmp_path / "script.py").write_text(TOGETHER)
    together = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    tune_model(LocalEncoder(two_layers, precision="fp32"), *parts, tmp_path / "one", TuneConfig(epochs=2, batch_size=16, **given))
    assert train("two", *together).returncode == 0
    assert train("killed", *together, kill="4").returncode != 0
    assert not (tmp_path / "killed" / "tuned.json").exists()
    again = train("killed", *together)
    assert again.returncode == 0, again.stderr.decode()
    one, two, killed = (json.loads((tmp_path / folder / "tuned.json").read_text()) for folder in ("one", "two", "killed"))
    assert two["tokens"] == one["tokens"]
    assert killed["epoch"] == two["epoch"] == one["epoch"]
    for ours, theirs in zip(two["history"], one["history"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert {found.get("frozen", 0) for found in (one, two, killed)} == {given.get("freeze", 0)}
    assert killed["history"] == two["history"]
    # Sums over processes are not the same to the last bit.
    ours, theirs = (safetensors.torch.load_file(weights_of(tmp_path / folder / "model")[0]) for folder in ("killed", "two"))
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert not (tmp_path / "two" / "mined").exists()


def test_the_same_call_again_trains_nothing(unbroken, tiny_model, parts):
    start = (unbroken.model / "modules.json").stat().st_mtime_ns
    again = tune_model(LocalEncoder(tiny_model), *parts, unbroken.folder, SETTINGS)
    assert again == unbroken
    assert again.encoder.precision == unbroken.encoder.precision
    assert (unbroken.model / "modules.json").stat().st_mtime_ns == start


SCRIPT = """
tune_model(LocalEncoder(sys.argv[1]), data.select(split.train[::5]), data.select(split.dev[:10]), sys.argv[2],
           TuneConfig(epochs=3, batch_size=16, method=sys.argv[3]))
"""


@pytest.fixture(scope="module")
def started(tiny_model):
    """Start a training of the two parts in a process of its own: a folder and a method."""
    with Forks(f"{PREPARED}\nimport peft, sentence_transformers", SCRIPT, HF_HUB_OFFLINE="1") as forks:
        yield lambda folder, method: forks.start(str(tiny_model), str(folder), method)


@pytest.fixture(scope="module")
def unbroken_lora(tiny_model, parts, tmp_path_factory):
    settings = TuneConfig(epochs=3, batch_size=16, method="lora")
    return tune_model(LocalEncoder(tiny_model), *parts, tmp_path_factory.mktemp("lora"), settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "moment"),
    [
        ("full", "checkpoint-*/trainer_state.json"),
        ("full", "checkpoint-*/trained.safetensors"),
        ("full", "checkpoint-7/trainer_state.json"),
        ("lora", "checkpoint-4/trainer_state.json"),
    ],
)
def test_killed_and_started_again_it_ends_with_the_same_model(request, started, tmp_path, method, moment):
    unbroken = request.getfixturevalue("unbroken" if method == "full" else "unbroken_lora")
    process = started(tmp_path, method)
    deadline = time.monotonic() + 300
    # While training goes on after a whole checkpoint, in the middle of writing one, and in the middle of a later epoch.
    while not list(tmp_path.glob(f"checkpoints/{moment}")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert process.kill() == -signal.SIGKILL
    assert not (tmp_path / "tuned.json").exists()
    assert started(tmp_path, method).wait() == 0
    resumed = json.loads((tmp_path / "tuned.json").read_text())
    assert file_sha256(weights_of(tmp_path / "model")[0]) == weights(unbroken)
    assert resumed["history"] == list(unbroken.history)
    assert resumed["tokens"] == unbroken.tokens


MINING = f"""{PREPARED}
from embedfit.tune import mine
nearest, minings = mine._nearest, []
def until(*given):
    minings.append(1)
    found = nearest(*given)
    if len(minings) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
    return found
mine._nearest = until
tune_model(LocalEncoder(sys.argv[1], precision="fp32"), data.select(split.train[::5]), None, sys.argv[2],
           TuneConfig(epochs=2, batch_size=16, candidates="mined", mine_every=2))
"""


@pytest.mark.slow
def test_killed_while_it_mines_it_ends_with_the_same_model(tiny_model, parts, tmp_path):
    def killed(mining):
        command = [sys.executable, "-c", MINING, str(tiny_model), str(tmp_path / "killed"), str(mining)]
        return subprocess.run(command, stderr=subprocess.DEVNULL, timeout=300).returncode == -signal.SIGKILL

    def mined():
        return {path.name for path in (tmp_path / "killed" / "mined").glob("*")}

    encoder = LocalEncoder(tiny_model, precision="fp32")
    settings = TuneConfig(epochs=2, batch_size=16, candidates="mined", mine_every=2)
    whole = tune_model(encoder, parts[0], None, tmp_path / "whole", settings)
    assert killed(1)
    assert mined() == set()
    assert killed(2)
    assert mined() == {"0.npy"}
    again = tune_model(encoder, parts[0], None, tmp_path / "killed", settings)
    assert weights(again) == weights(whole)
    assert (again.history, again.tokens) == (whole.history, whole.tokens)


class Killed(BaseException):
    """No part of the program may catch it."""


@pytest.mark.parametrize(
    ("settings", "precision"),
    [
        ({"method": "full"}, "bf16"),
        ({"method": "lora", "dropout": 0.1}, "fp32"),
        ({"method": "full", "candidates": "batch", "negatives": 8, "matryoshka": (64,)}, "fp32"),
        ({"method": "full", "candidates": "mined", "negatives": 4, "mine_every": 2, "dropout": 0.1, "memory_gb": 0.001}, "fp32"),
    ],
)
def test_stopped_within_an_epoch_and_started_again_it_ends_with_the_same_model(tiny_model, parts, tmp_path, killed, settings, precision):
    encoder, settings = LocalEncoder(tiny_model, precision=precision), TuneConfig(epochs=2, batch_size=16, **settings)
    whole = tune_model(encoder, parts[0], None, tmp_path / "whole", settings)
    assert killed(4, encoder, parts[0], None, tmp_path / "killed", settings) == [3, 4]  # of 3 in an epoch
    again = tune_model(encoder, parts[0], None, tmp_path / "killed", settings)
    assert weights(again) == weights(whole)
    assert (again.history, again.epoch, again.tokens) == (whole.history, whole.epoch, whole.tokens)


def test_the_best_epoch_outlives_checkpoints_within_later_ones(tiny_model, parts, tmp_path, monkeypatch, killed):
    monkeypatch.setattr(dev, "clearly_worse", lambda now, before, groups: True)  # the first epoch stays the best
    whole = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "whole", SETTINGS)
    assert whole.epoch == 1
    assert killed(8, LocalEncoder(tiny_model), *parts, tmp_path / "killed", SETTINGS) == [3, 8]
    again = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "killed", SETTINGS)
    assert weights(again) == weights(whole)
    assert (again.history, again.epoch) == (whole.history, 1)


def test_killed_while_an_epoch_is_scored_it_scores_that_epoch_again(unbroken, tiny_model, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer, "_SAVE_SECONDS", 0)
    monkeypatch.setattr(trainer, "_SAVE_SHARE", float("inf"))
    score = dev.DevScores.__call__

    def until(judge, *inputs, **named):
        if judge.kept:
            raise Killed
        return score(judge, *inputs, **named)

    with monkeypatch.context() as patch:
        patch.setattr(dev.DevScores, "__call__", until)
        with pytest.raises(Killed):
            tune_model(LocalEncoder(tiny_model), *parts, tmp_path, SETTINGS)
    again = tune_model(LocalEncoder(tiny_model), *parts, tmp_path, SETTINGS)
    assert weights(again) == weights(unbroken)
    assert again.history == unbroken.history


def test_a_short_training_without_dev_writes_no_checkpoint(tiny_model, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer.RecordingTrainer, "_save", None)
    tune_model(LocalEncoder(tiny_model), parts[0], None, tmp_path, TuneConfig(epochs=2, batch_size=16))


def test_a_checkpoint_is_due_after_a_while_that_grows_with_what_it_costs(monkeypatch):
    record = trainer.TrainingRecord(None, None, None, lambda steps: None, 10)
    now = 100.0
    monkeypatch.setattr(trainer.time, "monotonic", lambda: now)
    for cost, soon, later in ((0.5, 119, 121), (2.0, 139, 141)):  # 20 seconds, or 20 times what the last one took
        now = 100.0
        record._saving = now - cost
        record.on_save(None, None, None)
        now = soon
        assert not record._due()
        now = later
        assert record._due()


def test_a_checkpoint_that_was_not_finished_is_cleared_away(tmp_path):
    for step, state in ((5, '{"global_step": 5}'), (10, '{"global_st'), (15, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state:
            (folder / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-5"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-5"]
    assert last_checkpoint(tmp_path / "nothing") is None


def test_without_dev_it_trains_all_epochs_and_keeps_the_last(tiny_model, parts, tmp_path):
    tuned = tune_model(LocalEncoder(tiny_model), parts[0], None, tmp_path, TuneConfig(epochs=2, batch_size=32))
    assert tuned.epoch == 2
    assert len(tuned.history) == 2
    assert "mrr@10" not in tuned.history[0]


def test_batch_candidates_train_too(tiny_model, parts, tmp_path):
    settings = TuneConfig(epochs=2, batch_size=16, candidates="batch", negatives=8)
    tuned = tune_model(LocalEncoder(tiny_model), *parts, tmp_path, settings)
    assert tuned.candidates == "batch"
    assert tuned.history[-1]["loss"] < tuned.history[0]["loss"]


def test_prompts_are_trained_with_and_saved(tiny_model, parts, tmp_path):
    tuned = tune_model(LocalEncoder(tiny_model, query_prompt="spend: "), *parts, tmp_path, TuneConfig(epochs=1, batch_size=16))
    assert LocalEncoder(tuned.model).prompts == {"query": "spend: ", "document": ""}
    back = tune_model(LocalEncoder(tuned.model, query_prompt=""), *parts, tmp_path / "back", TuneConfig(epochs=1, batch_size=16))
    assert back.encoder.prompts["query"] == ""
    plain = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "plain", TuneConfig(epochs=1, batch_size=16))
    assert weights(plain) != weights(tuned)


def test_data_of_one_label_is_refused(tiny_model, parts, tmp_path):
    only = next(iter(parts[0].queries))
    with pytest.raises(DataError, match="have the one answer"):
        tune_model(LocalEncoder(tiny_model), parts[0].select([only]), None, tmp_path, SETTINGS)


def test_unjudged_queries_take_no_part(unbroken, tiny_model, parts, tmp_path):
    train, dev = parts
    more = Dataset({**train.queries, "odd": Query("odd", "judged by nobody")}, train.corpus, train.qrels)
    again = tune_model(LocalEncoder(tiny_model), more, dev, tmp_path / "more", SETTINGS)
    assert weights(again) == weights(unbroken)
    settings = TuneConfig(epochs=1, batch_size=16)
    assert "mrr@10" not in tune_model(LocalEncoder(tiny_model), train, dev.select([]), tmp_path / "none", settings).history[0]


def test_killed_after_it_had_stopped_early_it_does_not_train_on(tiny_model, parts, tmp_path, monkeypatch):
    # Every epoch but the first is called clearly worse, so patience ends the training after two of four.
    monkeypatch.setattr("embedfit.tune.dev.clearly_worse", lambda now, before, groups: True)
    settings = TuneConfig(epochs=4, batch_size=16, patience=1)
    whole = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "whole", settings)
    assert (len(whole.history), whole.epoch) == (2, 1)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("embedfit.tune.full.save_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "killed", settings)
    again = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "killed", settings)
    assert weights(again) == weights(whole)
    assert (again.history, again.epoch, again.tokens) == (whole.history, whole.epoch, whole.tokens)


def test_a_folder_with_another_tuning_is_not_taken_for_this_one(unbroken, tiny_model, parts):
    with pytest.raises(StorageError, match="holds a tuning of another model, data or settings"):
        tune_model(LocalEncoder(tiny_model), *parts, unbroken.folder, SETTINGS.model_copy(update={"epochs": 9}))


def test_a_folder_that_cannot_be_written_is_named(tiny_model, parts, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "file" / "out", SETTINGS)


def test_a_model_without_a_transformer_is_refused(transactions, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    tokenizer = LocalEncoder("all-MiniLM-L6-v2").loaded.model.tokenizer.backend_tokenizer
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=8)]).save_pretrained(str(tmp_path / "static"))
    train = transactions.select(transactions.judged[:20])
    encoder = LocalEncoder(tmp_path / "static")
    assert encoder.encode(["a"], "query").shape == (1, 8)  # it can be measured all the same
    with pytest.raises(ModelError, match="a StaticEmbedding cannot be tuned"):
        tune_model(encoder, train, None, tmp_path / "out")


# LoRA, Matryoshka


def vectors(model, texts):
    return model.encode(texts, normalize_embeddings=True)


def test_merged_lora_is_a_plain_model_with_the_vectors_of_the_base_and_the_adapter(unbroken_lora, tiny_model, transactions):
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer

    texts = transactions.query_texts()[:20]
    base = SentenceTransformer(str(tiny_model))
    before = vectors(base, texts)
    base.load_adapter(str(unbroken_lora.folder / "lora"))
    unmerged = vectors(base, texts)
    merged = vectors(SentenceTransformer(str(unbroken_lora.model)), texts)
    np.testing.assert_allclose(merged, unmerged, atol=1e-5)
    assert np.abs(merged - before).max() > 0.01
    plain, tuned = (load_file(weights_of(folder)[0]) for folder in (tiny_model, unbroken_lora.model))
    assert plain.keys() == tuned.keys()
    changed = {name for name in plain if not torch.equal(plain[name], tuned[name])}
    assert len(changed) == 6  # query, key, value and three dense layers; no embeddings, norms, biases or pooler
    assert not list(unbroken_lora.model.glob("adapter*"))
    assert unbroken_lora.history[-1]["loss"] < unbroken_lora.history[0]["loss"]


@pytest.mark.parametrize("documents", ["trained", "frozen"])
def test_beside_weights_in_half_precision_lora_learns_and_is_merged_with_the_whole_weights(tiny_model, parts, tmp_path, documents):
    base = LocalEncoder(tiny_model, precision="fp32", model_kwargs={"dtype": "bfloat16"})
    config = TuneConfig(epochs=1, method="lora", documents=documents)
    tuned = tune_model(base, parts[0], None, tmp_path, config)
    load_file = safetensors.torch.load_file
    before, after = load_file(weights_of(tiny_model)[0]), {}
    for path in weights_of(tuned.model):
        if documents == "trained" or "query_" in str(path):
            after |= {name.removeprefix("model."): value for name, value in load_file(path).items()}
    assert {name for name in before if not torch.equal(before[name], after[name])} == {name for name in before if _has_lora(name)}
    matrices = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    name = "encoder.layer.0.output.dense"
    learnt = 2 * matrices[f"base_model.model.{name}.lora_B.weight"] @ matrices[f"base_model.model.{name}.lora_A.weight"]
    torch.testing.assert_close(after[f"{name}.weight"], before[f"{name}.weight"] + learnt, atol=1e-7, rtol=1e-6)
    assert tuned.encoder.loading == {"dtype": "bfloat16"}
    assert tune_model(base, parts[0], None, tmp_path, config).encoder.fingerprint == tuned.encoder.fingerprint


def _has_lora(name):
    return name.endswith("weight") and ("attention" in name or "dense" in name) and "LayerNorm" not in name and "pooler" not in name


def test_the_adapter_is_small_and_says_what_it_belongs_to_and_nothing_of_the_data(unbroken_lora, tiny_model):
    folder = unbroken_lora.folder / "lora"
    assert sorted(path.name for path in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    # Rank 16 on a layer of 384 x 384 four times, and of 384 x 1536 twice, four bytes each.
    numbers = 16 * (4 * (384 + 384) + 2 * (384 + 1536))
    assert numbers * 4 < (folder / "adapter_model.safetensors").stat().st_size < numbers * 4 + 4096
    said = json.loads((folder / "adapter_config.json").read_text())
    assert (said["base_model_name_or_path"], said["r"], said["lora_alpha"]) == (str(tiny_model), 16, 32)


def test_checkpoints_hold_what_is_trained_alone(tiny_model, parts, tmp_path, killed):
    from safetensors import safe_open

    for method in ("full", "lora"):
        settings = TuneConfig(epochs=1, batch_size=16, method=method)
        killed(1, LocalEncoder(tiny_model), parts[0], None, tmp_path / method, settings)
        with safe_open(tmp_path / method / "checkpoints" / "checkpoint-1" / "trained.safetensors", "pt") as file:
            names = list(file.keys())
        assert names
        assert not [name for name in names if "word_embeddings" in name or (method == "lora") != ("lora_" in name)]


def test_with_lora_nothing_else_is_trained_whatever_follows_the_transformer(tiny_model):
    from sentence_transformers.sentence_transformer.modules import Dense

    encoder = LocalEncoder(tiny_model).loaded
    model = encoder.model
    model.append(Dense(384, 32))
    prepared.set_trainable(encoder, TuneConfig(method="lora"), "all", 10)
    assert all("lora_" in name for name, value in model.named_parameters() if value.requires_grad)


def test_lora_without_peft_names_the_command_that_installs_it(tiny_model, parts, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EmbedfitError, match=r"^peft is not installed; fix: pip install 'embedfit\[lora\]'$"):
        tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "lora", TuneConfig(method="lora"))
    assert not (tmp_path / "lora").exists()


def test_learning_rate_and_epochs_fit_the_method_and_the_candidates_unless_they_are_given():
    assert (TuneConfig().learning_rate_with("all"), TuneConfig().epochs_with("all")) == (2e-4, 4)
    assert (TuneConfig().learning_rate_with("mined"), TuneConfig().epochs_with("mined")) == (1e-4, 2)
    assert TuneConfig(method="lora").learning_rate_with("all") == 2e-3
    given = TuneConfig(method="lora", learning_rate=3e-4, epochs=7)
    assert (given.learning_rate_with("mined"), given.epochs_with("mined")) == (3e-4, 7)


def test_lora_cannot_train_embeddings():
    with pytest.raises(ConfigError, match=r"key 'tune.train_embeddings': needs method = 'full', seen True"):
        make_config({"data": {"queries": "x"}, "tune": {"method": "lora", "train_embeddings": True}})


def test_shortened_vectors_retrieve_better_after_training_for_them(unbroken, tiny_model, transactions, parts, tmp_path):
    held_out = transactions.select(split_dataset(transactions, dev=0.1, seed=0).test)
    settings = SETTINGS.model_copy(update={"matryoshka": (64,)})
    trained = tune_model(LocalEncoder(tiny_model), parts[0], None, tmp_path, settings)
    assert (unbroken.matryoshka, trained.matryoshka) == ((), (64,))
    assert tune_model(LocalEncoder(tiny_model), parts[0], None, tmp_path, settings) == trained  # read from the folder
    found = []
    for tuned in (unbroken, trained):
        queries = tuned.encoder.encode(held_out.query_texts(), "query")
        assert queries.shape[1] == 384  # whole by default
        documents = tuned.encoder.encode(held_out.document_texts("{title} {text}"), "document")[:, :64]
        similarities = queries[:, :64] @ (documents / np.linalg.norm(documents, axis=1, keepdims=True)).T
        right = np.array([list(held_out.corpus).index(next(iter(held_out.relevant(id)))) for id in held_out.queries])
        ranks = (similarities >= similarities[np.arange(len(right)), right][:, None]).sum(axis=1)
        found.append((1 / ranks).mean())
    assert found[1] > found[0] + 0.05


def test_a_matryoshka_dimension_that_the_model_does_not_have_is_refused(tiny_model, parts, tmp_path):
    with pytest.raises(ConfigError, match=r"tune.matryoshka: 384 is not below the 384 dimensions of .*tiny"):
        tune_model(LocalEncoder(tiny_model), *parts, tmp_path, TuneConfig(matryoshka=(64, 384)))


# The mean over an epoch


def test_the_model_of_an_epoch_is_the_mean_of_its_weights_after_each_step(tiny_model, parts, tmp_path, monkeypatch):
    seen, add = [], EpochMean.add

    def watched(mean, step):
        add(mean, step)
        seen.append({name: weight.clone() for name, weight in trained_weights(mean._model).items()})

    monkeypatch.setattr(EpochMean, "add", watched)
    tuned = tune_model(LocalEncoder(tiny_model), parts[0], None, tmp_path, TuneConfig(epochs=2, batch_size=16, schedule="averaged"))
    last = seen[len(seen) // 2 :]
    assert len(last) > 1
    saved = dict(load_model(tuned.model).named_parameters())
    for name in last[0]:
        expected = torch.stack([weights[name] for weights in last]).mean(dim=0)
        torch.testing.assert_close(saved[name.removeprefix("encoder.")].detach(), expected, atol=1e-6, rtol=1e-5)


def test_dev_scores_are_those_of_the_mean_and_training_goes_on_from_the_weights_themselves():
    model = torch.nn.Linear(1, 1, bias=False)
    mean, values = EpochMean(model), (1.0, 3.0, 8.0)
    for step, value in enumerate(values, start=1):
        model.weight.data.fill_(value)
        mean.add(step)
    with mean.in_place():
        assert model.weight.item() == 4
    assert model.weight.item() == 8
    mean.add(1)  # the next epoch begins
    assert mean.values["weight"].item() == 8
    mean.restore({"weight": torch.tensor([[2.0]])})
    mean.put()
    assert model.weight.item() == 2


def test_the_mean_of_the_kept_epoch_is_what_was_scored_and_is_saved(tiny_model, parts, tmp_path, monkeypatch):
    scored, score = [], dev.DevScores.__call__

    def watched(judge, model, *inputs, **named):
        scored.append({name: weight.detach().clone() for name, weight in model.named_parameters()})
        return score(judge, model, *inputs, **named)

    monkeypatch.setattr(dev.DevScores, "__call__", watched)
    monkeypatch.setattr(dev, "clearly_worse", lambda now, before, groups: True)  # the first epoch stays the best
    tuned = tune_model(LocalEncoder(tiny_model), *parts, tmp_path, TuneConfig(epochs=3, batch_size=16, schedule="averaged"))
    assert tuned.epoch == 1
    for name, value in load_model(tuned.model).named_parameters():
        assert torch.equal(value, scored[0][name])
    assert any(not torch.equal(value, scored[1][name]) for name, value in scored[0].items())


# What can go wrong


def test_bf16_trains_on_a_processor_and_saves_finite_fp32(tiny_model, parts, tmp_path):
    from safetensors.torch import load_file

    tuned = tune_model(LocalEncoder(tiny_model, precision="bf16"), parts[0], None, tmp_path, TuneConfig(epochs=2, batch_size=16))
    assert tuned.history[1]["loss"] < tuned.history[0]["loss"]
    for value in load_file(weights_of(tuned.model)[0]).values():
        assert value.dtype in (torch.float32, torch.int64)
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    ("precision", "named", "used"), [("bf16", None, "eager"), ("bf16", "sdpa", "sdpa"), ("fp32", None, "sdpa"), ("fp32", "eager", "eager")]
)
def test_in_bf16_on_a_cpu_attention_is_trained_by_plain_products_unless_one_is_named(tiny_model, parts, tmp_path, precision, named, used):
    encoder = LocalEncoder(tiny_model, precision=precision, attn_implementation=named)
    begun = prepared.prepare(encoder, Training(parts[0], None, tmp_path))
    assert begun.model.transformers_model.config._attn_implementation == used


def test_long_texts_are_trained_by_the_fused_kernel_which_needs_less_memory(tiny_model, tmp_path):
    words = " ".join(["word"] * 200)
    long = Dataset({id: Query(id, id) for id in "ab"}, {id: Document(id, f"{id} {words}") for id in "ab"}, {"a": {"a": 1}, "b": {"b": 1}})
    begun = prepared.prepare(LocalEncoder(tiny_model, precision="bf16"), Training(long, None, tmp_path))
    assert begun.longest > 200
    assert begun.model.transformers_model.config._attn_implementation == "sdpa"


def test_the_attention_of_the_training_is_not_saved_with_the_model(tiny_model, tmp_path):
    model = load_model(tiny_model)
    train_by_plain_attention(model.transformers_model, bf16=True)
    assert model.transformers_model.config._attn_implementation == "eager"
    model.save_pretrained(str(tmp_path), create_model_card=False)
    assert load_model(tmp_path).transformers_model.config._attn_implementation == "sdpa"


def test_squares_of_plain_attention_count_as_memory(tiny_model):
    model = load_model(tiny_model)
    config = TuneConfig(memory_gb=1)
    fused = [prepared.memory_tokens(model, None, config, longest) for longest in (64, 256)]
    train_by_plain_attention(model.transformers_model, bf16=True)
    plain = [prepared.memory_tokens(model, None, config, longest) for longest in (64, 256)]
    assert fused[0] == fused[1] > plain[0] > plain[1] > fused[0] / 2


def test_want_of_memory_is_one_line_that_names_the_batch_size(tiny_model, parts, tmp_path, monkeypatch):
    def full_device(*inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity of")

    monkeypatch.setattr(CandidateLoss, "forward", full_device)
    with pytest.raises(ModelError, match=r"^training: memory ran out; fix: a smaller tune.batch_size than 16$"):
        tune_model(LocalEncoder(tiny_model), *parts, tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("fault", "batch_size", "step"),
    [(lambda loss: loss * float("nan"), 16, "step 1 of 3"), (lambda loss: (loss * 0).sqrt(), 48, "step 1 of 1")],
    ids=["loss", "gradient of the last step"],
)
def test_training_that_diverges_stops_and_leaves_no_model(tiny_model, parts, tmp_path, monkeypatch, fault, batch_size, step):
    right = CandidateLoss.forward
    monkeypatch.setattr(CandidateLoss, "forward", lambda *inputs: fault(right(*inputs)))
    with pytest.raises(ModelError, match=rf"^training diverged: .* at {step}; fix: a lower tune.learning_rate"):
        tune_model(LocalEncoder(tiny_model), parts[0], None, tmp_path, TuneConfig(epochs=1, batch_size=batch_size))
    assert not (tmp_path / "model").exists()
