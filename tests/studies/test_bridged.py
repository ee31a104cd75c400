"""What a bridge costs, measured on documents and queries that it was not fitted on."""

import hashlib
import json

import numpy as np
import pytest

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.errors import DataError
from embedfit.studies import bridged
from embedfit.studies.bridged import measure_bridge

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
    assert measured.passed
    assert measured.bridge.kind == "orthogonal"
    assert measured.fitted.documents == measured.documents == 150
    assert 30 < measured.queries < 70  # those whose document the bridge was not fitted on
    assert measured.live.difference == measured.loss.difference == 0
    assert measured.live.base > 0.8
    assert measured.kept == 1
    assert measured.allowed == pytest.approx(1 / measured.queries)
    assert json.loads(json.dumps(measured.to_dict()))["fit"]["kind"] == "orthogonal"
    lost = measure_bridge(library, words, Unrelated(), "{text}", "mrr@10")
    assert not lost.passed
    assert lost.live.high < 0
    assert f"the old model has {measured.live.base:.3f} ({lost.live.difference:+.3f}, 95% interval" in lost.sentence


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
