"""Fitting a few tensors on frozen vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.tune.candidates import AllDocuments, BatchAndOthers, CandidateSource
from embedfit.tune.loss import multi_positive_softmax

STRENGTHS = (100.0, 30.0, 10.0, 3.0, 1.0)
"""Strengths of the pull towards the identity that a dev part chooses from, strongest first."""
_ALL_DOCUMENTS = 2048
"""Largest corpus, in documents, that is scored whole in every step; from a larger one, candidates are drawn."""


@dataclass(frozen=True)
class AdapterConfig:
    """Settings of a fit on frozen vectors. The defaults are the same for every data set (docs/decisions.md).

    Attributes:
        strength: Strength of the pull towards the start. The training queries share it, so more queries move further. A query
            adapter divides it by the share of documents with a training query, since the map also moves the queries of the
            other documents; with a dev part, the dev part chooses the strength instead.
        scale: Factor of the cosine similarities in the loss (1 / temperature).
        steps: Steps of Adam; 0 changes nothing.
        batch_size: Queries per step.
        learning_rate: Initial learning rate; it decays to 0 along a half cosine.
        negatives: Random documents per step in a large corpus.
        seed: Seed of the query order and of the random documents.
    """

    strength: float = 5.0
    scale: float = 14.0
    steps: int = 200
    batch_size: int = 256
    learning_rate: float = 3e-3
    negatives: int = 512
    seed: int = 0


def minimise(
    cosines: Callable[[Tensor, Tensor], Tensor], shifts: Sequence[Tensor], train: Dataset, strength: float, config: AdapterConfig
) -> None:
    """Change tensors in place so that training queries find their documents.

    The objective is the mean of `multi_positive_softmax` over the n queries, plus strength / n times the sum of squares of
    the tensors: a normal prior around the start, which more data outweigh.

    Args:
        cosines: Function from positions of queries and of documents to similarities, shape (queries, documents).
        shifts: Tensors to change, zero at the start.
        train: Training queries, all judged.
        strength: Strength of the pull back to zero.
        config: Other settings; its strength is ignored.
    """
    small = len(train.corpus) <= _ALL_DOCUMENTS
    source: CandidateSource = AllDocuments(train) if small else BatchAndOthers(train, random=config.negatives, seed=config.seed)
    count = len(train.queries)
    generator = torch.Generator().manual_seed(config.seed)
    for shift in shifts:
        shift.requires_grad_(True)
    optimiser = torch.optim.Adam(shifts, lr=config.learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(1, config.steps))
    left = torch.empty(0, dtype=torch.int64)
    for _ in range(config.steps):
        if len(left) < min(config.batch_size, count):
            left = torch.randperm(count, generator=generator)
        rows, left = left[: config.batch_size], left[config.batch_size :]
        candidates = source.candidates(rows.tolist())
        logits = config.scale * cosines(rows, torch.from_numpy(candidates.documents))
        prior = strength / count * torch.stack([shift.square().sum() for shift in shifts]).sum()
        optimiser.zero_grad()
        (multi_positive_softmax(logits, torch.from_numpy(candidates.grades)) + prior).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    for shift in shifts:
        shift.requires_grad_(False)


def vectors_of(encoder: Encoder, dataset: Dataset, template: str) -> tuple[Vectors, Vectors]:
    """Return the vectors of the queries and of the documents, each in the order of the data set."""
    texts = dataset.document_texts(template)
    return np.array(encoder.encode(dataset.query_texts(), "query"), np.float32), np.array(encoder.encode(texts, "document"), np.float32)
