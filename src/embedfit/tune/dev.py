"""Scores on the dev part after each epoch, and the choice of the epoch to keep."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from sentence_transformers.sentence_transformer.evaluation import SentenceEvaluator

from embedfit.data.dataset import Dataset
from embedfit.data.split import group_numbers
from embedfit.encode.encoder import BaseEncoder, Encoder, Kind, Vectors
from embedfit.encode.local import ModelEncoder
from embedfit.evaluation.score import score_run
from embedfit.retrieve.run import Run

_DEV_DOCUMENTS = 2000
"""Most documents that are scored besides the dev queries' own."""


class DevScores(SentenceEvaluator):
    """Scores the dev queries after each epoch, and decides whether to keep that epoch.

    A dev part of a few dozen queries cannot tell neighbouring epochs apart, and its maximum is mostly noise. So an epoch
    replaces the kept one unless it is worse by more than one standard error of the paired difference (the one-standard-error
    rule: Hastie, Tibshirani and Friedman 2009, section 7.10). Among equals the later epoch is kept, which has seen more.

    Args:
        dev: Dev queries, with the documents that are searched.
        search: Function that returns the rankings of the dev queries by the model in its present state.

    Attributes:
        kept: MRR@10 of each dev query at the kept epoch; empty before the first.
        choice: Number of epochs kept so far. The trainer keeps the checkpoint where it is largest.
    """

    def __init__(self, dev: Dataset, search: Callable[[], Run]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._dev, self._search = dev, search
        numbers = group_numbers(self._dev)
        self._groups = np.array([numbers[id] for id in self._dev.queries])
        self.kept: list[float] = []
        self.choice = 0

    def __call__(self, model: Any, output_path: str | None = None, epoch: int = -1, steps: int = -1) -> dict[str, float]:
        scores = score_run(self._search(), self._dev.qrels, ks=(1, 10))
        now = scores.values["mrr@10"]
        keep = not self.kept or not clearly_worse(now, np.array(self.kept), self._groups)
        if keep:
            self.kept, self.choice = now.tolist(), self.choice + 1
        return {"mrr@10": scores.mean("mrr@10"), "recall@1": scores.mean("recall@1"), "choice": self.choice if keep else self.choice - 1}


def with_fewer_documents(dev: Dataset, seed: int) -> Dataset:
    """Return the dev part with its own documents and a random share of the others.

    The choice of an epoch needs no exact figure, and encoding a large corpus would cost more than the training.
    """
    relevant = {id for query in dev.queries for id in dev.relevant(query)}
    irrelevant = [id for id in dev.corpus if id not in relevant]
    chosen = relevant | set(random.Random(seed).sample(irrelevant, min(len(irrelevant), _DEV_DOCUMENTS)))
    corpus = {id: document for id, document in dev.corpus.items() if id in chosen}
    qrels = {id: {document: grade for document, grade in grades.items() if document in chosen} for id, grades in dev.qrels.items()}
    return Dataset(dev.queries, corpus, qrels)


def clearly_worse(now: npt.NDArray[np.float64], before: npt.NDArray[np.float64], groups: npt.NDArray[np.int64] | None = None) -> bool:
    """Return whether the mean fell by more than one standard error of the paired differences.

    Args:
        now: Metric of each query at this epoch, shape (n,).
        before: Metric of each query at the kept epoch, shape (n,).
        groups: Group number of each query, shape (n,); near duplicates share a group, as they are no independent evidence. By
            default each query is a group.
    """
    difference = now - before
    off = difference - difference.mean()
    sums = off if groups is None else np.bincount(groups, off)[np.unique(groups)]
    if len(sums) < 2:
        return False
    error = np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()) / len(difference)
    return bool(difference.mean() < -error)


class InTraining(BaseEncoder):
    """A model in training as an Encoder. Its weights change at every step, so its vectors must not be cached."""

    name = fingerprint = "in training"

    def __init__(self, encoder: Encoder | ModelEncoder) -> None:
        self.encoder = encoder

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, by the weights as they are now."""
        return self.encoder.encode(texts, kind)
