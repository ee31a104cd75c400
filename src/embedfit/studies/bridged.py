"""What a bridge costs: new queries over old vectors, beside the old model and beside documents that were embedded again."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import numpy as np

from embedfit.data.dataset import Dataset
from embedfit.data.split import group_numbers
from embedfit.encode.bridge import Bridge
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Kind, Vectors
from embedfit.errors import DataError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Difference
from embedfit.evaluation.score import Scores, score_run
from embedfit.metrics import metric_label
from embedfit.retrieve.exact import top_k
from embedfit.retrieve.run import run_of
from embedfit.tune.bridging import FittedBridge, fit_bridge

TOLERANCE = 0.01
"""Largest loss against the old model that passes by default; one query's worth, if that is more."""
Outcome: TypeAlias = Literal["no worse", "not shown", "too much lost"]
_FITTED, _MEASURED, _QUERIES = 5000, 5000, 1000
"""Largest numbers of documents to fit on, of other documents to measure on, and of queries."""


@dataclass(frozen=True)
class MeasuredBridge:
    """A bridge, measured on queries and documents that it was not fitted on.

    Attributes:
        fitted: The bridge, and how it was chosen.
        live: Metric of the old model and of the bridge, with the 95% interval of the difference. It decides.
        loss: Metric with all documents embedded again and of the bridge, with the 95% interval of the difference. It is stated.
        allowed: Largest loss against the old model that passes.
        documents: Number of documents that were searched.
        queries: Number of queries.
        seconds: Duration of encoding the sample, fitting and measuring, in seconds.
    """

    fitted: FittedBridge
    live: Difference
    loss: Difference
    allowed: float
    documents: int
    queries: int
    seconds: float

    @property
    def bridge(self) -> Bridge:
        """The bridge."""
        return self.fitted.bridge

    @property
    def passed(self) -> bool:
        """Whether the measured loss against the old model is within what is allowed, which need not be shown; see `outcome`."""
        return self.live.difference >= -self.allowed - 1e-12

    @property
    def outcome(self) -> Outcome:
        """What the queries show about the bridge and the old model, which answers until then.

        ``no worse``: the whole interval is above the allowed loss (non-inferiority). ``not shown``: the measured loss is allowed, and a
        larger one cannot be excluded. ``too much lost``: the measured loss is not allowed.
        """
        if not self.passed:
            return "too much lost"
        return "no worse" if self.live.low >= -self.allowed - 1e-12 else "not shown"

    @property
    def verdict(self) -> str:
        """What the queries show, as text."""
        live, allowed = self.live, f"the allowed loss of {self.allowed:.3f}"
        if not self.passed:
            chance = ", beyond chance" if live.high < -self.allowed else ", which may be chance"
            first = f"The bridge is worse than the old model by more than {allowed}{chance}."
        elif live.low > 0:
            first = "The bridge is better than the old model, beyond chance."
        elif self.outcome == "no worse":
            first = f"The bridge is no worse than the old model, within {allowed}, beyond chance."
        else:
            first = (
                f"Not shown: these queries cannot exclude that the bridge is worse than the old model by {-live.low:.3f}, beyond {allowed}."
            )
        again = "is better than the bridge, beyond chance" if self.loss.high < 0 else "is not shown to be better than the bridge"
        return f"{first} Embedding all documents again {again}."

    @property
    def kept(self) -> float:
        """Share of the metric with all documents embedded again that the bridge keeps; 1 if that metric is 0."""
        return self.loss.tuned / self.loss.base if self.loss.base else 1.0

    @property
    def sentence(self) -> str:
        """The measurement, as text."""
        label = metric_label(self.live.metric)
        return (
            f"Bridge ({self.bridge.kind}), {label} on {self.queries:,} queries over {self.documents:,} documents: {self.live.tuned:.3f}; "
            f"the old model has {self.live.base:.3f} ({_interval(self.live)}), and embedding all documents again would give "
            f"{self.loss.base:.3f} ({_interval(self.loss)}; {self.kept:.1%} are kept). {self.verdict}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the measurement as JSON has it."""
        numbers = {name: getattr(self, name) for name in ("allowed", "documents", "queries", "seconds", "kept", "passed", "outcome")}
        return {"fit": self.fitted.to_dict(), "live": vars(self.live), "loss": vars(self.loss), **numbers}


def _interval(row: Difference) -> str:
    return f"{row.difference:+.3f}, 95% interval {row.low:+.3f} to {row.high:+.3f}"


def measure_bridge(
    dataset: Dataset,
    old: Encoder,
    new: Encoder,
    template: str,
    metric: str,
    *,
    tolerance: float = TOLERANCE,
    group_by: str | None = None,
    seed: int = 0,
) -> MeasuredBridge:
    """Fit a bridge on a sample of the documents, and measure it on others.

    The documents are divided at random: half of them, and no more than 5,000, are for the fit. The queries search up to 5,000 of the
    others, among them all that are right for a query. Both models encode both samples; the vectors are cached.

    Args:
        dataset: All documents, and labelled queries, which the new model should not have been trained on.
        old: Model that encoded the documents.
        new: Model to take its place.
        template: Document template.
        metric: Name of the metric, such as ``mrr@10``.
        tolerance: Largest loss against the old model that passes; one query's worth is always allowed.
        group_by: Metadata field; queries with the same value count as dependent, as near duplicates always do.
        seed: Seed of the samples, the fit and the intervals.

    Raises:
        DataError: There are too few documents, or no query has a right document among those that were not fitted on.
    """
    started = time.monotonic()
    fit_ids, rest = _divided(dataset, seed)
    searched = _searched(dataset, rest, seed)
    old, new = CachedEncoder(old), CachedEncoder(new)
    texts = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True))

    def documents(encoder: Encoder, ids: Sequence[str]) -> Vectors:
        return encoder.encode([texts[id] for id in ids], "document")

    fitted = fit_bridge(documents(old, fit_ids), documents(new, fit_ids), old, new, seed=seed)
    ids, k = tuple(sorted(searched.corpus)), int(metric.partition("@")[2])
    groups = group_numbers(searched, group_by)
    queries: dict[str, Vectors] = {}
    kind: Kind = "query"
    for name, encoder in (("old", old), ("new", new)):
        queries[name] = encoder.encode(searched.query_texts(), kind)
    queries["bridge"] = fitted.bridge.apply(queries["new"]).vectors
    vectors = {"old": documents(old, ids), "new": documents(new, ids)}

    def scores(name: str, over: str) -> Scores:
        run = run_of(searched, ids, partial(top_k, queries[name], vectors[over]), k)
        return score_run(run, searched.qrels, ks=(k,), name=name, groups=groups)

    bridged = scores("bridge", "old")
    live, loss = (compare_scores(scores(name, name), bridged, metric=metric, seed=seed, held_out=True)[metric] for name in ("old", "new"))
    count = len(searched.queries)
    return MeasuredBridge(fitted, live, loss, max(tolerance, 1 / count), len(ids), count, round(time.monotonic() - started, 3))


def _divided(dataset: Dataset, seed: int) -> tuple[list[str], list[str]]:
    """Return the ids of the documents for the fit, and of the others."""
    ids = sorted(dataset.corpus)
    order = np.random.default_rng(seed).permutation(len(ids))
    count = min(_FITTED, len(ids) // 2)
    return [ids[place] for place in order[:count]], [ids[place] for place in order[count:]]


def _searched(dataset: Dataset, rest: Sequence[str], seed: int) -> Dataset:
    """Return up to 1,000 queries with a right document among these, and the documents that they search."""
    there = set(rest)
    judged = [id for id in dataset.judged if not there.isdisjoint(dataset.relevant(id))]
    if not judged:
        raise DataError("queries", "have no right document outside of the sample that the bridge is fitted on", expected="labelled queries")
    chosen = np.sort(np.random.default_rng(seed).permutation(len(judged))[:_QUERIES])
    queries = {id: dataset.queries[id] for id in (judged[place] for place in chosen)}
    right = {id for query in queries for id in dataset.relevant(query)} & there
    others = [id for id in rest if id not in right][: max(0, _MEASURED - len(right))]
    kept = right | set(others)
    qrels = {id: {document: grade for document, grade in dataset.qrels[id].items() if document in kept} for id in queries}
    return Dataset(queries, {id: dataset.corpus[id] for id in dataset.corpus if id in kept}, qrels)
