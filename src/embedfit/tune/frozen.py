"""Fitting a small map on vectors that stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.errors import DataError
from embedfit.tune.candidates import AllDocuments, BatchAndOthers, CandidateSource
from embedfit.tune.loss import multi_positive_softmax

STRENGTHS = (100.0, 30.0, 10.0, 3.0, 1.0)
"""Pulls towards the identity that a dev part chooses among, the strongest first."""
_ALL_DOCUMENTS = 2048
"""A corpus of up to this many documents is scored whole in every step; of a larger one, the batch's and random ones."""


@dataclass(frozen=True)
class AdapterConfig:
    """How something is fitted to frozen vectors. The defaults are the same for every data set (docs/decisions.md).

    Attributes:
        strength: Pull towards the start, shared by the training queries: the more of them, the less each is held back.
            A query adapter divides it by the share of the documents that have a training query, as what it learns from
            them it does to the queries of the others too; or lets a dev part choose instead.
        scale: What cosine similarities are multiplied by in the loss (1 / temperature).
        steps: Of Adam; 0 leaves everything as it was.
        batch_size: Queries per step.
        learning_rate: At the start; it falls to 0 along a half cosine.
        negatives: Random documents per step, where the corpus is large.
        seed: Of the order of the queries and of the random documents.
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
    """Change some tensors, zero at the start, in place so that training queries find their documents.

    What is minimised is the mean over the n queries of `multi_positive_softmax`, and strength / n times the sum of
    squares of the tensors: a normal prior around the start that the data outgrow.

    Args:
        cosines: From positions of queries and of documents to similarities, shape (queries, documents).
        shifts: What changes.
        train: Each of its queries must be judged.
        strength: Of the pull back to zero.
        config: The other settings.
    """
    few = len(train.corpus) <= _ALL_DOCUMENTS
    source: CandidateSource = AllDocuments(train) if few else BatchAndOthers(train, random=config.negatives, seed=config.seed)
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
        found = source.candidates(rows.tolist())
        logits = config.scale * cosines(rows, torch.from_numpy(found.documents))
        prior = strength / count * torch.stack([shift.square().sum() for shift in shifts]).sum()
        optimiser.zero_grad()
        (multi_positive_softmax(logits, torch.from_numpy(found.grades)) + prior).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    for shift in shifts:
        shift.requires_grad_(False)


def judged(train: Dataset) -> Dataset:
    """Return the judged queries to learn from.

    Raises:
        DataError: There are none, or all have the same answer.
    """
    train = train.select(train.judged)
    answers = {tuple(sorted(train.relevant(id))) for id in train.queries}
    if not answers:
        raise DataError("data", "has no judged query to learn from", fix="add labelled queries")
    if len(answers) == 1:
        raise DataError(
            "data", f"all {len(train.queries):,} training queries have the one answer {min(answers)}", fix="add queries with other labels"
        )
    return train


def vectors_of(encoder: Encoder, dataset: Dataset, template: str) -> tuple[Vectors, Vectors]:
    """Return the vectors of a data set's queries and of its documents, each in order."""
    texts = dataset.document_texts(template)
    return np.array(encoder.encode(dataset.query_texts(), "query"), np.float32), np.array(encoder.encode(texts, "document"), np.float32)
