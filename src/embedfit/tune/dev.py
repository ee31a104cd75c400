"""Which epoch is kept: the dev part's scores after each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from embedfit.data.dataset import Dataset
from embedfit.data.split import group_numbers
from embedfit.encode.encoder import BaseEncoder, Encoder, Kind, Vectors
from embedfit.encode.local import ModelEncoder
from embedfit.evaluation.score import score_run
from embedfit.retrieve.retrievers import DenseRetriever

_DEV_DOCUMENTS = 2000
"""How many documents, at most, are added to the dev queries' own when choosing a checkpoint."""


class DevScores(SentenceEvaluator):
    """Scores the dev queries after each epoch, and says whether this epoch should be kept.

    A dev part of a few dozen queries cannot tell neighbouring epochs apart, and picking its maximum picks noise. So
    an epoch replaces the one kept so far unless it is worse by more than one standard error of the paired
    difference (the one-standard-error rule: Hastie, Tibshirani and Friedman 2009, section 7.10); among equals the
    later epoch, which the learning rate's decay has settled, is kept.
    """

    def __init__(self, encoder: ModelEncoder, dev: Dataset, template: str, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        relevant = {id for query in dev.queries for id in dev.relevant(query)}
        others = [id for id in dev.corpus if id not in relevant]
        # Choosing an epoch needs no exact figure, and a large corpus would cost more than the training.
        chosen = relevant | set(random.Random(seed).sample(others, min(len(others), _DEV_DOCUMENTS)))
        corpus = {id: document for id, document in dev.corpus.items() if id in chosen}
        qrels = {id: {document: grade for document, grade in grades.items() if document in chosen} for id, grades in dev.qrels.items()}
        self._dev = Dataset(dev.queries, corpus, qrels)
        self._retriever = DenseRetriever(InTraining(encoder), template)
        numbers = group_numbers(self._dev)
        self._groups = np.array([numbers[id] for id in self._dev.queries])
        self.kept: list[float] = []
        self.choice = 0

    def __call__(self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1) -> dict[str, float]:
        found = score_run(self._retriever.search(self._dev, 10), self._dev.qrels, ks=(1, 10))
        now = found.values["mrr@10"]
        keep = not self.kept or not clearly_worse(now, np.array(self.kept), self._groups)
        if keep:
            self.kept, self.choice = now.tolist(), self.choice + 1
        return {"mrr@10": found.mean("mrr@10"), "recall@1": found.mean("recall@1"), "choice": self.choice if keep else self.choice - 1}


def clearly_worse(now: npt.NDArray[np.float64], before: npt.NDArray[np.float64], groups: npt.NDArray[np.int64] | None = None) -> bool:
    """Return whether the mean fell by more than one standard error of the paired differences.

    Args:
        now: A metric for each query, shape (n,).
        before: The same of an earlier epoch.
        groups: Number of each query's group, shape (n,): near duplicates are no independent evidence. By default each stands alone.
    """
    difference = now - before
    off = difference - difference.mean()
    sums = off if groups is None else np.bincount(groups, off)[np.unique(groups)]
    if len(sums) < 2:
        return False
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(difference)
    return bool(difference.mean() < -error)


class InTraining(BaseEncoder):
    """A model in training as an Encoder: its weights change at every step, so its vectors must not be kept."""

    name = fingerprint = "in training"

    def __init__(self, encoder: Encoder | ModelEncoder) -> None:
        self._encoder = encoder

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, by the weights as they are now."""
        return self._encoder.encode(texts, kind)
