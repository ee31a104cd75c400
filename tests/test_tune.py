import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from embedfit.config import TuneConfig
from embedfit.data import Dataset, Document, Query
from embedfit.encode import LocalEncoder
from embedfit.errors import DataError, ModelError, StorageError
from embedfit.hub import file_sha256, weights_of
from embedfit.split import split_dataset
from embedfit.tune.candidates import AllDocuments, BatchAndRandom
from embedfit.tune.full import Collator, _tokenised, clearly_worse, last_checkpoint, tune_model
from embedfit.tune.loss import CandidateLoss, multi_positive_softmax


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


# Candidates


def test_all_documents_are_candidates_with_every_known_positive():
    found = AllDocuments(small()).candidates([2, 0])
    assert found.documents.tolist() == [0, 1, 2, 3]
    assert found.grades.tolist() == [[1, 0, 2, 0], [1, 0, 0, 0]]


def test_a_positive_drawn_for_one_query_is_a_positive_of_another():
    source = BatchAndRandom(small(), negatives=0, seed=0)
    found = source.candidates([0, 1, 2])
    assert set(found.documents.tolist()) >= {0, 1}
    column = found.documents.tolist().index(0)
    assert found.grades[:, column].tolist() == [1, 0, 1]  # right for q0 and for q2, whoever drew it


def test_random_negatives_depend_on_the_batch_and_the_seed_alone():
    train = small(documents=[f"d{i}" for i in range(500)], qrels={f"q{i}": {f"d{i}": 1} for i in range(8)})
    one, other = BatchAndRandom(train, negatives=20, seed=1), BatchAndRandom(train, negatives=20, seed=2)
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
    queries, documents = _tokenised(model, train.query_texts(), ""), _tokenised(model, train.document_texts(), "")
    gradients = []
    for tokens in (8, 10_000):
        collator = Collator(model, queries, documents, AllDocuments(train), chunk_tokens=tokens)
        inputs = collator([{"row": row} for row in range(9)])
        prefixes = [key.removesuffix("input_ids") for key in inputs if key.endswith("input_ids")]
        features = [{key.removeprefix(prefix): value for key, value in inputs.items() if key.startswith(prefix)} for prefix in prefixes]
        model.zero_grad()
        CandidateLoss(model, 20.0)(features, inputs["label"]).backward()
        gradients.append(torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None]))
        assert collator.tokens == sum(len(text["input_ids"]) for text in [*queries, *documents])
        assert (len(prefixes) > 4) == (tokens == 8)
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_tokens_are_those_of_the_library(tiny_model):
    model = LocalEncoder(tiny_model).loaded.model
    text = "Some words, and a longer one: categorisation"
    [ours] = _tokenised(model, [text], "")
    assert ours["input_ids"].tolist() == model.tokenizer(text)["input_ids"]


# Choosing an epoch


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
    return file_sha256(weights_of(tuned.folder)[0])


def test_training_lowers_the_loss_and_leaves_a_model_that_loads_anywhere(unbroken, tiny_model):
    from sentence_transformers import SentenceTransformer

    assert unbroken.history[-1]["loss"] < unbroken.history[0]["loss"]
    assert unbroken.candidates == "all"
    assert weights(unbroken) != file_sha256(weights_of(tiny_model)[0])
    plain = SentenceTransformer(str(unbroken.folder)).encode(["a taxi"], normalize_embeddings=True)
    ours = LocalEncoder(unbroken.folder, precision="fp32").encode(["a taxi"], "query")
    np.testing.assert_allclose(plain, ours, atol=1e-5)
    assert not (unbroken.folder.parent / "checkpoints").exists()


def test_no_training_text_is_in_the_models_folder(unbroken, parts):
    words = next(iter(parts[0].queries.values())).metadata["merchant_name"]
    for path in unbroken.folder.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors" and path.name != "tokenizer.json":
            assert words not in path.read_text(errors="replace"), path


def test_one_seed_gives_one_model_and_another_seed_another(unbroken, tiny_model, parts, tmp_path):
    again = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "again", SETTINGS)
    other = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "other", SETTINGS.model_copy(update={"seed": 1}))
    assert weights(again) == weights(unbroken)
    assert again.history == unbroken.history
    assert weights(other) != weights(unbroken)


def test_the_same_call_again_trains_nothing(unbroken, tiny_model, parts):
    start = (unbroken.folder / "modules.json").stat().st_mtime_ns
    again = tune_model(LocalEncoder(tiny_model), *parts, unbroken.folder.parent, SETTINGS)
    assert again == unbroken
    assert (unbroken.folder / "modules.json").stat().st_mtime_ns == start


SCRIPT = """
import sys
from embedfit import LocalEncoder, load, split_dataset, tune_model
from embedfit.config import TuneConfig
from embedfit.samples import TRANSACTIONS
data = load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
split = split_dataset(data, dev=0.1, seed=0)
tune_model(LocalEncoder(sys.argv[1]), data.select(split.train[::5]), data.select(split.dev[:10]), sys.argv[2],
           TuneConfig(epochs=3, batch_size=16))
"""


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["trainer_state.json", "model.safetensors"])
def test_killed_and_started_again_it_ends_with_the_same_model(unbroken, tiny_model, tmp_path, moment):
    command = [sys.executable, "-c", SCRIPT, str(tiny_model), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    deadline = time.monotonic() + 300
    # Once while training goes on after a whole checkpoint, once in the middle of writing one.
    while not list(tmp_path.glob(f"checkpoints/checkpoint-*/{moment}")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "tuned.json").exists()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"}, timeout=300)
    resumed = json.loads((tmp_path / "tuned.json").read_text())
    assert file_sha256(weights_of(tmp_path / "model")[0]) == weights(unbroken)
    assert resumed["history"] == list(unbroken.history)
    assert resumed["tokens"] == unbroken.tokens


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
    assert LocalEncoder(tuned.folder).prompts == {"query": "spend: ", "document": ""}
    back = tune_model(LocalEncoder(tuned.folder, query_prompt=""), *parts, tmp_path / "back", TuneConfig(epochs=1, batch_size=16))
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
    monkeypatch.setattr("embedfit.tune.full.clearly_worse", lambda now, before: True)
    settings = TuneConfig(epochs=4, batch_size=16, patience=1)
    whole = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "whole", settings)
    assert (len(whole.history), whole.epoch) == (2, 1)

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("embedfit.tune.full._save", killed)
        with pytest.raises(KeyboardInterrupt):
            tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "killed", settings)
    again = tune_model(LocalEncoder(tiny_model), *parts, tmp_path / "killed", settings)
    assert weights(again) == weights(whole)
    assert (again.history, again.epoch, again.tokens) == (whole.history, whole.epoch, whole.tokens)


def test_a_folder_with_another_tuning_is_not_taken_for_this_one(unbroken, tiny_model, parts):
    with pytest.raises(StorageError, match="holds a tuning of another model, data or settings"):
        tune_model(LocalEncoder(tiny_model), *parts, unbroken.folder.parent, SETTINGS.model_copy(update={"epochs": 9}))


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
