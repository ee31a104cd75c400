import contextlib
import json
import sqlite3

import numpy as np
import pytest
import torch

from embedfit.config import TuneConfig
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.load import load
from embedfit.data.mix import mixed
from embedfit.data.write import write_jsonl
from embedfit.encode.local import LocalEncoder
from embedfit.errors import DataError
from embedfit.files import cache_folder
from embedfit.retrieve.rerank import LocalReranker
from embedfit.tune import teacher
from embedfit.tune.full import tune_model
from embedfit.tune.loss import distillation
from embedfit.tune.reranker import cross_encoder_from
from embedfit.tune.teacher import cached_scores, given_scores, teacher_of
from embedfit.tune.training import Training

NONE = float("nan")


# The loss


def test_the_loss_is_the_divergence_of_each_right_document_among_the_wrong_ones():
    logits = torch.tensor([[1.0, 2.0, -1.0, 0.5], [0.3, 0.1, 0.2, 0.0]])
    grades = torch.tensor([[2.0, 1.0, 0.0, 0.0], [0.0, 1.0, -1.0, 0.0]])
    scores = torch.tensor([[3.0, 1.0, 0.0, -2.0], [NONE, 4.0, 9.0, 1.0]])

    def divergence(row, chosen):
        taught, learnt = (values[row, chosen].log_softmax(0) for values in (scores, logits))
        return torch.nn.functional.kl_div(learnt, taught, log_target=True, reduction="sum")

    # Document 2 of the second query is compared with nothing, and document 0 has no score.
    expected = (2 / 3 * divergence(0, [0, 2, 3]) + 1 / 3 * divergence(0, [1, 2, 3]) + divergence(1, [1, 3])) / 2
    torch.testing.assert_close(distillation(logits, grades, scores), expected)


def test_labels_overrule_a_teacher_that_prefers_a_wrong_document():
    grades, scores = torch.tensor([[1.0, 0.0]]), torch.tensor([[-5.0, 5.0]])
    logits = torch.zeros(1, 2, requires_grad=True)
    loss = distillation(logits, grades, scores)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6)  # as if both were alike, never the right one below
    assert logits.grad.abs().max() < 1e-6


def test_where_the_teacher_says_nothing_there_is_no_loss_and_no_gradient():
    grades = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    scores = torch.tensor([[NONE, 1.0], [1.0, NONE], [NONE, NONE]])
    logits = torch.randn(3, 2, requires_grad=True)
    loss = distillation(logits, grades, scores)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


# Scores in the data


def rows_with_scores(tmp_path, *rows):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_scores_beside_the_lists_are_kept_and_rows_of_one_query_join_theirs(tmp_path):
    path = rows_with_scores(
        tmp_path,
        {"query": "red", "pos": ["rose"], "neg": ["grass", "sky"], "pos_scores": [3.5], "neg_scores": [-1, 0.25]},
        {"query": "red", "pos": ["blood"], "neg": ["sea"], "pos_scores": [2], "neg_scores": None},
        {"query": "blue", "pos": ["sky"], "neg": []},
    )
    data = load(path)
    assert [query.metadata for query in data.queries.values()] == [
        {"teacher_scores": {"rose": 3.5, "grass": -1.0, "sky": 0.25, "blood": 2.0}},
        {},
    ]
    position = {id: place for place, id in enumerate(data.corpus)}
    expected = [{position["rose"]: 3.5, position["grass"]: -1, position["sky"]: 0.25, position["blood"]: 2}, {}]
    assert given_scores(data) == expected
    folder = write_jsonl(data, tmp_path / "written")
    again = load(folder / "queries.jsonl", folder / "documents.jsonl")
    assert given_scores(again) == expected
    both = mixed([(data, "{text}"), (data, "{text}")])
    texts = [document.text for document in both.corpus.values()]
    assert {texts[place]: score for place, score in given_scores(both)[2].items()} == {"rose": 3.5, "grass": -1, "sky": 0.25, "blood": 2}


@pytest.mark.parametrize("scores", [[1], [1, "high"], 0.5, [1, None], [1, float("inf")]])
def test_scores_that_do_not_fit_their_texts_are_an_error_of_their_row(tmp_path, scores):
    path = rows_with_scores(
        tmp_path, {"query": "a", "pos": ["b"]}, {"query": "red", "pos": ["rose"], "neg": ["x", "y"], "neg_scores": scores}
    )
    with pytest.raises(DataError, match=r"train\.jsonl:2: has 2 texts under 'neg' and the scores .*; expected a number for each text"):
        load(path)


def scored(scores):
    queries = {id: Query(id, id, {"teacher_scores": given} if given else {}) for id, given in scores.items()}
    return Dataset(queries, {"a": "a", "b": "b"}, {id: {"a": 1} for id in queries})


def test_scores_from_0_to_1_are_probabilities():
    [row] = given_scores(scored({"q": {"a": 0.5, "b": 0.0, "gone": 1.0}}))
    assert row == pytest.approx({0: 0.0, 1: np.log(1e-4 / (1 - 1e-4))})
    assert given_scores(scored({"q": {"a": 0.5}, "r": {"b": 1.5}})) == [{0: 0.5}, {1: 1.5}]


def test_what_cannot_be_a_score_and_data_without_scores_are_errors():
    with pytest.raises(DataError, match=r"query 'q': has the teacher_scores .*expected \{document id: number\}"):
        given_scores(scored({"q": {"a": "high"}}))
    with pytest.raises(DataError, match=r"has no teacher scores, and tune\.teacher is 'data'"):
        given_scores(scored({"q": {}}))


# Training


WORDS = ["apple", "bread", "chair", "dance", "earth", "flute", "grape", "house", "inkpot", "jungle"]


def taught():
    """Queries that name a word. The teacher orders the other words by an order of its own, the same for all queries."""
    order = np.random.default_rng(3).permutation(len(WORDS)).tolist()
    documents = {word: Document(word, word) for word in WORDS}
    queries = {}
    for number, word in enumerate(WORDS * 2):
        scores = {other: 10.0 if other == word else 0.5 * rank for other, rank in zip(WORDS, order, strict=True)}
        queries[f"q{number}"] = Query(f"q{number}", f"{'look for' if number < 10 else 'find'} {word}", {"teacher_scores": scores})
    return Dataset(queries, documents, {id: {query.text.split()[-1]: 1} for id, query in queries.items()}), np.array(order)


def agreement(encoder, data, order, documents=None):
    """Mean rank correlation of wrong documents' similarities with the teacher's order, and the share of right documents that are first."""
    vectors = encoder.encode(WORDS, "document") if documents is None else documents
    similarities = encoder.encode(data.query_texts(), "query") @ vectors.T
    right = np.array([WORDS.index(next(iter(data.relevant(id)))) for id in data.queries])
    found = []
    for row, answer in zip(similarities, right, strict=True):
        wrong = np.arange(len(WORDS)) != answer
        ranks = [values[wrong].argsort().argsort() for values in (row, order)]
        found.append(np.corrcoef(*ranks)[0, 1])
    return np.mean(found), np.mean(similarities.argmax(axis=1) == right)


@pytest.mark.parametrize(("documents", "epochs", "least"), [("trained", 12, 0.75), ("frozen", 25, 0.6)])
def test_a_tuned_model_has_the_teachers_order_and_keeps_the_labels(tiny_model, tmp_path, documents, epochs, least):
    data, order = taught()
    base = LocalEncoder(tiny_model, precision="fp32")
    settings = {"epochs": epochs, "batch_size": 20, "learning_rate": 1e-3, "documents": documents, "merge": 1.0}
    without, tuned = (
        tune_model(base, data, None, tmp_path / str(name), TuneConfig(**settings, teacher=name), template="{text}").encoder
        for name in (None, "data")
    )
    before, after = (agreement(encoder, data, order) for encoder in (without, tuned))
    print(before, after)
    assert after[0] > least > 0.4 > before[0]
    assert after[1] >= before[1] == 1


@pytest.fixture(scope="module")
def cross_encoder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher") / "cross"
    cross_encoder_from(tiny_model).save_pretrained(str(folder), create_model_card=False)
    return folder


def test_a_cross_encoder_reads_right_documents_and_the_nearest_wrong_ones_once(tiny_model, cross_encoder, tmp_path, monkeypatch):
    data, _ = taught()
    base = LocalEncoder(tiny_model, precision="fp32")
    monkeypatch.setattr(teacher, "_READ", 3)
    monkeypatch.setattr("embedfit.encode.encoder.SLICE", 16)
    read = []
    score = LocalReranker.score

    def counted(self, pairs):
        if len(read) == 32:
            raise KeyboardInterrupt
        read.extend(pairs)
        return score(self, pairs)

    monkeypatch.setattr(LocalReranker, "score", counted)
    training = Training(data, None, tmp_path, TuneConfig(teacher=str(cross_encoder)), "{text}")
    with pytest.raises(KeyboardInterrupt):
        teacher_of(base, training)
    monkeypatch.setattr(LocalReranker, "score", lambda self, pairs: (read.extend(pairs), score(self, pairs))[1])
    taught_scores = teacher_of(base, training).scores
    assert len(read) == len(set(read)) == 4 * len(data.queries)
    for id, row in zip(data.queries, taught_scores, strict=True):
        assert len(row) == 4
        assert WORDS.index(next(iter(data.relevant(id)))) in row
    pair = (data.query_texts()[0], WORDS[min(taught_scores[0])])
    assert taught_scores[0][min(taught_scores[0])] == pytest.approx(float(score(LocalReranker(cross_encoder), [pair])[0]), abs=1e-5)
    half = data.select(list(data.queries)[:7])  # another fold
    teacher_of(base, Training(half, None, tmp_path, TuneConfig(teacher=str(cross_encoder)), "{text}"))
    assert len(read) == 4 * len(data.queries)


def test_equal_pairs_are_read_once_and_other_weights_have_a_cache_of_their_own(capsys):
    class Counted:
        name = "counted"
        read = 0

        def score(self, pairs):
            self.read += len(pairs)
            return np.array([len(query) - len(document) for query, document in pairs], np.float32)

    model = Counted()
    pairs = [("a", "bc"), ("a b", "c"), ("a", "bc")]
    assert cached_scores(model, "f" * 64, pairs).tolist() == [-1, 2, -1]
    assert cached_scores(model, "e" * 64, pairs).tolist() == [-1, 2, -1]
    assert cached_scores(model, "f" * 64, [("a", "b c"), *pairs]).tolist() == [-2, -1, 2, -1]
    assert model.read == 5
    assert cached_scores(model, "f" * 64, []).tolist() == []
    # As in every cache, a damaged row is noticed and read again.
    with contextlib.closing(sqlite3.connect(cache_folder() / f"{'f' * 32}.sqlite")) as database, database:
        database.execute("UPDATE vectors SET vector = ?", [np.float32(7).tobytes()])
    assert cached_scores(model, "f" * 64, pairs).tolist() == [-1, 2, -1]
    assert model.read == 7
    assert "2 of 2 vectors in" in capsys.readouterr().err


def test_a_training_with_a_cross_encoder_as_teacher_runs_and_is_known_by_it(tiny_model, cross_encoder, tmp_path, capsys):
    data, _ = taught()
    base = LocalEncoder(tiny_model, precision="fp32")
    for number, settings in enumerate(({"candidates": "mined"}, {"documents": "frozen"})):
        config = TuneConfig(epochs=1, teacher=str(cross_encoder), **settings)
        tuned = tune_model(base, data, None, tmp_path / str(number), config, template="{text}")
        assert np.isfinite(tuned.history[0]["loss"])
    capsys.readouterr()
    tune_model(base, data, None, tmp_path / "without", TuneConfig(epochs=1), template="{text}")
    assert "the data has teacher scores, which are not used; tune.teacher = 'data' learns from them" in capsys.readouterr().err
