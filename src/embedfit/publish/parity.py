"""Checks that a published model or data set, fetched again, is the one that was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Kind, Vectors
from embedfit.encode.local import LocalEncoder
from embedfit.encode.precision import use_bf16
from embedfit.errors import ModelError, StorageError
from embedfit.evaluation.score import PerQuery, score_run
from embedfit.retrieve.exact import top_k
from embedfit.retrieve.rerank import LocalReranker
from embedfit.retrieve.run import run_of
from embedfit.studies.forms import COSINE_TOLERANCE, QUERIES_TOLERANCE

_QUERIES, _DOCUMENTS = 64, 2000
"""Maximum number of queries and documents that the fetched model encodes again."""
_LARGEST_TOLERANCE = 0.25
"""Upper limit of the tolerated difference in the metric, for data sets with so few queries that `QUERIES_TOLERANCE` allows more."""


@dataclass(frozen=True)
class Parity:
    """The agreement of a fetched model with the measured one.

    Attributes:
        texts: Number of texts that both models encoded.
        cosine: Lowest cosine between a text's two vectors.
        metric: Name of the metric, such as ``mrr@10``.
        measured: Mean metric over the queries as the run recorded it, between 0 and 1; None without labelled data.
        fetched: Mean metric over the queries with the fetched model, between 0 and 1; None without labelled data.
    """

    texts: int
    cosine: float
    metric: str
    measured: float | None
    fetched: float | None

    @property
    def sentence(self) -> str:
        """The agreement as text."""
        vectors = f"Fetched again: the vectors of {self.texts:,} texts are the same (lowest cosine {self.cosine:.6f})"
        if self.fetched is None:
            return f"{vectors}; the labelled data of the run was not available for scoring."
        return f"{vectors}, and so is {self.metric} ({self.fetched:.3f})."


def check_parity(
    measured: LocalEncoder,
    fetched: LocalEncoder,
    dataset: Dataset,
    template: str,
    metric: str,
    scores: Mapping[str, float] | None = None,
) -> Parity:
    """Compare a fetched model with the measured one, on up to 64 queries and 2,000 documents.

    Scores come from a search in all documents; documents beyond the 2,000 keep their measured vectors.

    Args:
        measured: Model of the run; its vectors are read from the cache where possible.
        fetched: Model as it was published.
        dataset: Texts to encode; without documents, only the vectors of queries are compared.
        template: Template of the document text.
        metric: Name of the metric to score by, such as ``mrr@10``.
        scores: Query id -> metric as the run recorded it; empty to compare vectors only. By default the measured model is scored.

    Raises:
        ModelError: Vectors or scores differ by more than rounding explains.
    """
    dataset = dataset.select((list(dataset.judged) or list(dataset.queries))[:_QUERIES])
    relevant = dict.fromkeys(id for query in dataset.queries for id in dataset.relevant(query))
    chosen = set([*relevant, *(id for id in dataset.corpus if id not in relevant)][: max(_DOCUMENTS, len(relevant))])
    document_texts = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True)) if dataset.corpus else {}
    ids = sorted(document_texts)
    rows = [row for row, id in enumerate(ids) if id in chosen]
    texts: dict[Kind, list[str]] = {"query": dataset.query_texts(), "document": [document_texts[ids[row]] for row in rows]}
    before = {kind: CachedEncoder(measured).encode(texts[kind], kind) for kind in texts if texts[kind]}
    after = {kind: fetched.encode(texts[kind], kind) for kind in before}
    if any(before[kind].shape != after[kind].shape for kind in before):
        raise ModelError(f"the fetched model has {after['query'].shape[1]} dimensions, the measured one {before['query'].shape[1]}")
    cosine = float(min((before[kind] * after[kind]).sum(axis=1).min() for kind in before))
    means: list[float | None] = [None, None]
    difference = 0.0
    if dataset.judged and ids and scores != {}:
        documents = CachedEncoder(measured).encode([document_texts[id] for id in ids], "document")
        mixed = documents.copy()
        mixed[rows] = after["document"]
        recorded = (
            _values(dataset, ids, before["query"], documents, metric)
            if scores is None
            else np.array([scores[id] for id in dataset.queries])
        )
        again = _values(dataset, ids, after["query"], mixed, metric)
        means = [float(recorded.mean()), float(again.mean())]
        difference = float(np.abs(again - recorded).mean())
    _check_tolerance(cosine, difference, metric, len(dataset.queries), bf16=fetched.loaded.bf16)
    return Parity(sum(map(len, texts.values())), cosine, metric, *means)


def _values(dataset: Dataset, ids: list[str], queries: Vectors, documents: Vectors, metric: str) -> PerQuery:
    """Return the metric of each query in an exact search."""
    k = int(metric.partition("@")[2])
    run = run_of(dataset, tuple(ids), partial(top_k, queries, documents), k)
    return score_run(run, dataset.qrels, ks=(k,)).values[metric]


def _check_tolerance(cosine: float, difference: float, metric: str, queries: int, *, bf16: bool) -> None:
    """Raise ModelError if the lowest cosine, or the mean difference in the metric, is outside the tolerance."""
    precision = "bf16" if bf16 else "fp32"
    near = np.isfinite(cosine) and cosine >= 1 - COSINE_TOLERANCE[precision]
    if not near or not difference <= min(QUERIES_TOLERANCE[precision] / queries, _LARGEST_TOLERANCE):
        raise ModelError(
            f"the fetched model is not the one that was measured: lowest cosine {cosine:.6f}, {metric} differs by {difference:.4f}; "
            "fix: publish again, and do not use the published model"
        )


@dataclass(frozen=True)
class PairParity:
    """The agreement of a fetched cross-encoder with the measured one.

    Attributes:
        pairs: Number of pairs that both models scored.
        difference: Largest difference of a pair's two scores.
    """

    pairs: int
    difference: float

    @property
    def sentence(self) -> str:
        """The agreement as text."""
        return f"Fetched again: the scores of {self.pairs:,} pairs are the same (largest difference {self.difference:.6f})."


def check_pair_parity(measured: LocalReranker, fetched: LocalReranker, pairs: Sequence[tuple[str, str]]) -> PairParity:
    """Compare the scores of a fetched cross-encoder with those of the measured one.

    Raises:
        ModelError: Scores differ by more than rounding explains.
    """
    before, after = measured.score(pairs), fetched.score(pairs)
    difference = float(np.abs(before - after).max(initial=0))
    bf16 = use_bf16(fetched.precision, fetched.loaded.device.type)
    if not difference <= COSINE_TOLERANCE["bf16" if bf16 else "fp32"] * max(1, float(np.abs(before).max(initial=0))) * 10:
        raise ModelError(
            f"the fetched model is not the one that was measured: scores differ by {difference:.4f}; "
            "fix: publish again, and do not use the published model"
        )
    return PairParity(len(pairs), difference)


def check_dataset_parity(folder: Path, digest: str) -> None:
    """Check that a fetched data set is the one that was published.

    Args:
        folder: Folder with the fetched files.
        digest: Result of `Dataset.digest` for the published data set.

    Raises:
        StorageError: The data sets differ.
    """
    if load(folder / "queries.jsonl", folder / "documents.jsonl").digest() != digest:
        raise StorageError("the fetched data set is not the one that was published; fix: publish again")
