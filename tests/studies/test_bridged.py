"""What a bridge costs, measured on documents and queries that it was not fitted on."""

import hashlib
import json

import numpy as np
import pytest

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.encode.bridge import Bridge
from embedfit.errors import DataError
from embedfit.evaluation.comparison import Difference
from embedfit.studies import bridged
from embedfit.studies.bridged import MeasuredBridge, measure_bridge
from embedfit.tune.bridging import FittedBridge

WORDS = [f"word{number}" for number in range(400)]


@pytest.fixture(scope="module")
def library():
    """300 documents of eight words; 100 queries, each five words of one document."""
    rng = np.random.default_rng(0)
    documents = {f"d{number:03}": list(rng.choice(WORDS, 8, replace=False)) for number in range(300)}
    queries = {f"q{id}": " ".join(words[:5]) for id, words in list(documents.items())[:100]}
    return Dataset(
        {id: Query(id, text) for id, text in queries.items()},
        {id: Document(id, " ".join(words)) for id, words in documents.items()},
        {id: {id[1:]: 1} for id in queries},
    )


class Turned:
    """The encoder of words in another space of 96 dimensions: nothing is lost."""

    name = fingerprint = "turned"

    def __init__(self, words):
        self.words = words
        self.turn = np.linalg.qr(np.random.default_rng(1).normal(size=(96, 96)))[0][:64].astype(np.float32)

    def encode(self, texts, kind):
        return self.words.encode(texts, kind) @ self.turn


class Unrelated:
    """An encoder whose queries have nothing to do with its documents."""

    name = fingerprint = "unrelated"

    def encode(self, texts, kind):
        seeds = [int(hashlib.sha256((kind + text).encode()).hexdigest()[:8], 16) for text in texts]
        vectors = np.stack([np.random.default_rng(seed).normal(size=64) for seed in seeds]).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_turned_model_loses_nothing_and_an_unrelated_one_does_not_pass(library, words):
    measured = measure_bridge(library, words, Turned(words), "{text}", "mrr@10")
    assert measured.outcome == "not shown"  # equal on all, but these are few
    assert measured.bridge.kind == "orthogonal"
    assert measured.fitted.documents == measured.documents == 150
    assert 30 < measured.queries < 70  # those whose document the bridge was not fitted on
    assert measured.live.difference == measured.loss.difference == 0
    assert measured.live.base > 0.8
    assert measured.kept == 1
    assert measured.allowed == pytest.approx(1 / measured.queries)
    assert json.loads(json.dumps(measured.to_dict()))["fit"]["kind"] == "orthogonal"
    lost = measure_bridge(library, words, Unrelated(), "{text}", "mrr@10")
    assert lost.outcome == "too much lost"
    assert lost.live.high < 0
    assert f"the old model has {measured.live.base:.3f} ({lost.live.difference:+.3f}, 95% interval" in lost.sentence


@pytest.mark.parametrize(
    ("live", "loss", "outcome", "sentence"),
    [
        ((0.004, -0.009, 0.02), (-0.02, -0.05, 0.01), "no worse", "is no worse than the old model, within ALLOWED, beyond chance. "),
        ((0.03, 0.01, 0.05), (-0.02, -0.05, 0.01), "no worse", "The bridge is better than the old model, beyond chance. "),
        ((0.011, -0.026, 0.048), (-0.041, -0.078, -0.003), "not shown", "Not shown: these queries cannot exclude that "),
        ((-0.02, -0.06, 0.02), (-0.02, -0.05, 0.01), "too much lost", "by more than ALLOWED, which may be chance. "),
        ((-0.05, -0.08, -0.02), (-0.09, -0.1, -0.08), "too much lost", "by more than ALLOWED, beyond chance. "),
    ],
)
def test_the_old_model_decides_and_the_words_say_what_is_shown(live, loss, outcome, sentence):
    bridge = Bridge("orthogonal", {}, 1, 0, "old", "new", "old", "new")
    rows = [Difference("mrr@10", 0.5, 0.5 + change, change, low, high, 0.5, 1, 1, 1, 0.02) for change, low, high in (live, loss)]
    measured = MeasuredBridge(FittedBridge(bridge, {}, 100, 1.0), *rows, 0.01, 100, 100, 1.0)
    assert measured.outcome == measured.to_dict()["outcome"] == outcome
    assert measured.passed == (outcome != "too much lost")
    assert sentence.replace("ALLOWED", "the allowed loss of 0.010") in measured.sentence
    better = "is better than the bridge, beyond chance" if loss[2] < 0 else "is not shown to be better than the bridge"
    assert measured.sentence.endswith(f"Embedding all documents again {better}.")


def test_large_samples_are_bounded_and_every_right_document_is_among_those_searched(library, words, monkeypatch):
    for name, value in (("_FITTED", 120), ("_MEASURED", 100), ("_QUERIES", 20)):
        monkeypatch.setattr(bridged, name, value)
    measured = measure_bridge(library, words, Turned(words), "{text}", "recall@1")
    assert (measured.fitted.documents, measured.documents, measured.queries) == (120, 100, 20)
    assert measured.live.base > 0.8


def test_a_library_without_labels_cannot_measure_a_bridge(library, words):
    unlabelled = Dataset(library.queries, library.corpus, {})
    with pytest.raises(DataError, match="no right document outside of the sample"):
        measure_bridge(unlabelled, words, Turned(words), "{text}", "mrr@10")
