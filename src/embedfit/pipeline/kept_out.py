"""Queries that the searcher's weights are learnt on, because no model was trained on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from embedfit.data.dataset import Dataset
from embedfit.pipeline.job import Job
from embedfit.searcher.fusion import folds_of

FEWEST = 50
"""Dev queries that the weights can be learnt from; with fewer, one more model is trained without some of the training queries."""
_KEPT_OUT = 5
"""One in so many training queries is kept out of that model."""


@dataclass(frozen=True)
class Part:
    """Queries to learn from, and queries to learn the weights on.

    Attributes:
        known: Labelled queries whose answers the views may use.
        asked: Labelled queries that neither the views nor the encoder have seen.
        model: Whether a model must be trained on the known queries alone; else a model of the run was.
    """

    known: Dataset
    asked: Dataset
    model: bool = False


def parts_for_weights(job: Job) -> list[Part]:
    """Return the held-out queries of each fold; in a single split the dev part or, if that is small, some of the training queries."""
    if len(job.splits) > 1:
        return [Part(with_dev(job.dataset, train, dev), test) for train, dev, test in job.parts]
    [(train, dev, _)] = job.parts
    if (dev and len(dev.queries) >= FEWEST) or set(job.config.searcher.views) == {"documents"}:
        return [Part(train, dev or job.dataset.select([]))]
    train = with_dev(job.dataset, train, dev)
    ids = np.array(list(train.queries), dtype=object)
    kept_out = folds_of(np.array([job.groups[id] for id in ids]), job.config.split.seed, _KEPT_OUT) == 0
    return [Part(job.dataset.select(ids[~kept_out]), job.dataset.select(ids[kept_out]), model=True)]


def with_dev(dataset: Dataset, train: Dataset, dev: Dataset | None) -> Dataset:
    """Return the training queries and the dev queries."""
    return dataset.select([*train.queries, *dev.queries]) if dev else train
