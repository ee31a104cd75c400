"""Whether an endpoint gives the vectors that were measured, what a difference costs, and which mistake explains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Dataset
from embedfit.data.split import group_numbers
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Kind, Vectors
from embedfit.encode.local import LocalEncoder, local_of
from embedfit.errors import ModelError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison, Difference
from embedfit.evaluation.score import Scores, score_run
from embedfit.retrieve.exact import top_k
from embedfit.retrieve.run import run_of
from embedfit.studies.causes import HALF_PRECISION, Distances, Search, are_of_others, distance, telling_rows
from embedfit.studies.deployable import TOLERANCE
from embedfit.studies.forms import COSINE_TOLERANCE, spread
from embedfit.studies.mistakes import Imitator, unit

_PER_QUERY = 20
"""Highest ranked documents of each query that are sent before any other document."""
_UNIT = 1e-2
"""Largest distance of a vector's length from 1 that rounding explains."""


@dataclass(frozen=True)
class Cause:
    """The cause of different vectors.

    Attributes:
        kind: Kind of the texts that it is about; None for both.
        text: The cause, with the fix.
    """

    kind: Kind | None
    text: str

    def __str__(self) -> str:
        return f"{'queries' if self.kind == 'query' else 'documents'}: {self.text}" if self.kind else self.text


@dataclass(frozen=True)
class Served:
    """The agreement of an endpoint with a measured model.

    Attributes:
        endpoint: Name of the endpoint.
        texts: Kind of text -> number of texts sent.
        differing: Kind of text -> number of texts whose vectors differ by more than rounding.
        cosine: Lowest cosine between a text's two vectors, from -1 to 1; None if the endpoint has more dimensions.
        causes: Causes of the differences; empty if there are none.
        explained: Whether every difference has a cause.
        comparison: Measured and served vectors, paired by query, by cosine similarity; None without labelled data.
        by_dot: Difference of the main metric in a search by dot product; None if the vectors have unit length, or the model's have not.
        allowed: Largest loss of the main metric that passes.
    """

    endpoint: str
    texts: dict[Kind, int]
    differing: dict[Kind, int]
    cosine: float | None
    causes: tuple[Cause, ...]
    explained: bool
    comparison: Comparison | None
    by_dot: Difference | None
    allowed: float

    @property
    def same(self) -> bool:
        """Whether the vectors are those that were measured."""
        return not any(self.differing.values()) and not self.causes

    @property
    def lost(self) -> bool:
        """Whether quality is lost: more than is allowed, in a search by cosine similarity or by dot product."""
        if not self.comparison:
            return not self.same
        rows = (self.comparison[self.comparison.metric], self.by_dot)
        return any(row.difference < -self.allowed - 1e-12 for row in rows if row)

    @property
    def sentence(self) -> str:
        """The conclusion, as text."""
        if self.same:
            return f"{self.endpoint} serves what was measured."
        if not self.comparison:
            return f"{self.endpoint} serves other vectors than were measured; the labelled data of the run was not available for scoring."
        if self.lost:
            return f"{self.endpoint} loses quality."
        return f"{self.endpoint} serves other vectors than were measured, and loses no more than {self.allowed:.3f} of the metric."

    @property
    def lines(self) -> list[str]:
        """The evidence, a sentence a line."""
        names = {"query": "queries", "document": "documents"}
        counts = " and ".join(f"{count:,} {names[kind]}" for kind, count in self.texts.items())
        differing = " and ".join(f"{count:,} of the {names[kind]}" for kind, count in self.differing.items() if count)
        lowest = f"; lowest cosine {self.cosine:.6f}" if self.cosine is not None else ""
        lines = [f"Sent {counts}. " + (f"Other vectors: {differing}{lowest}." if differing else "The same vectors.")]
        lines += [f"Cause: {cause}." for cause in self.causes]
        rows = [("cosine similarity", self.comparison[self.comparison.metric])] if self.comparison else []
        rows += [("dot product", self.by_dot)] if self.by_dot else []
        for search, row in rows:
            interval = f"{row.difference:+.3f}, 95% interval {row.low:+.3f} to {row.high:+.3f}"
            lines.append(
                f"{row.metric} by {search}: {row.base:.3f} measured, {row.tuned:.3f} served ({interval}; allowed -{self.allowed:.3f})."
            )
        return lines

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON has it."""
        row = self.comparison[self.comparison.metric] if self.comparison else None
        return {
            "endpoint": self.endpoint,
            "same": self.same,
            "lost": self.lost,
            "texts": self.texts,
            "differing": self.differing,
            "cosine": self.cosine,
            "causes": [{"kind": cause.kind, "text": cause.text} for cause in self.causes],
            "explained": self.explained,
            "metric": vars(row) if row else None,
            "metric_by_dot": vars(self.by_dot) if self.by_dot else None,
            "allowed": self.allowed,
        }


def compare_served(
    measured: Encoder,
    served: Encoder,
    dataset: Dataset,
    template: str,
    metric: str,
    *,
    others: Mapping[str, LocalEncoder] | None = None,
    queries: int = 200,
    documents: int = 2000,
    tolerance: float = TOLERANCE,
    group_by: str | None = None,
    seed: int = 0,
) -> Served:
    """Compare the vectors of an endpoint with those of a measured model, and name the cause where they differ.

    A cause is found by making each mistake on this side, alone and in pairs, and looking which one reproduces the vectors. Both sides
    rank the documents that were sent: the relevant ones, and those that the measured model ranks highest.

    Args:
        measured: Model as measured.
        served: Endpoint, whose vectors may have any length; see ``unit`` of `RemoteEncoder`.
        dataset: Held-out queries and all documents; without documents, only the vectors of queries are compared.
        template: Document template.
        metric: Name of the main metric, such as ``mrr@10``.
        others: Name -> another model that may be served in its place, such as the base model.
        queries: Largest number of queries to send; they are spread evenly over the data.
        documents: Largest number of documents to send, beyond those relevant to the queries.
        tolerance: Largest loss of the metric that passes; one query's worth is always allowed.
        group_by: Metadata field; queries with the same value count as dependent, as near duplicates always do.
        seed: Seed of the interval.

    Raises:
        EmbedfitError: The endpoint cannot be reached, or does not return a vector for each text.
    """
    ids = list(dataset.judged) or list(dataset.queries)
    dataset = dataset.select([ids[row] for row in spread(len(ids), queries)])
    sides = _Sides(measured, served, dataset, template, metric, documents)
    differing = {kind: int(sides.differs(kind).sum()) for kind in sides.texts}
    causes, explained = _causes(sides, dict(others or {}))
    comparison, by_dot = None, None
    if sides.document_ids and dataset.judged:
        groups = group_numbers(dataset, group_by)
        before = sides.scores(sides.full, "measured", groups)
        after = sides.scores({kind: unit(vectors) for kind, vectors in sides.sent.items()}, "served", groups)
        comparison = compare_scores(before, after, metric=metric, seed=seed, held_out=True)
        if sides.lengths:
            by_dot = compare_scores(before, sides.scores(sides.sent, "served", groups), metric=metric, seed=seed)[metric]
    counts = {kind: len(texts) for kind, texts in sides.texts.items()}
    allowed = max(tolerance, 1 / max(1, len(dataset.queries)))
    return Served(served.name, counts, differing, sides.lowest_cosine, causes, explained, comparison, by_dot, allowed)


class _Sides:
    """Texts with the vectors of both sides.

    Args:
        measured: Model as measured.
        served: Endpoint.
        dataset: Queries to send, and all documents.
        template: Document template.
        metric: Name of the main metric.
        most: Largest number of documents to send, beyond those relevant.

    Attributes:
        texts: Kind of text -> texts that were sent.
        full: Kind of text -> measured vectors, of unit length.
        own: Kind of text -> measured vectors, of unit length, with the endpoint's dimensions where it gives fewer.
        sent: Kind of text -> vectors of the endpoint, of any length.
        document_ids: Ids of the documents that were sent, sorted.
        lengths: Shortest and longest length of a served vector, if they differ from 1 and those of the model do not; else None.
        whole: Number of dimensions of the measured vectors.
    """

    def __init__(self, measured: Encoder, served: Encoder, dataset: Dataset, template: str, metric: str, most: int) -> None:
        self.measured, self.served, self.dataset, self.metric = measured, served, dataset, metric
        texts = dict(zip(dataset.corpus, dataset.document_texts(template), strict=True)) if dataset.corpus else {}
        ids, cached = sorted(texts), CachedEncoder(measured)
        queries = cached.encode(dataset.query_texts(), "query")
        self.texts: dict[Kind, list[str]] = {"query": dataset.query_texts()}
        self.own: dict[Kind, Vectors] = {"query": queries}
        self.document_ids: tuple[str, ...] = ()
        if ids:
            vectors = cached.encode([texts[id] for id in ids], "document")
            rows = self._chosen(ids, queries, vectors, most)
            self.document_ids = tuple(ids[row] for row in rows)
            self.texts["document"], self.own["document"] = [texts[id] for id in self.document_ids], vectors[rows]
        self.sent = {kind: _sent(served, texts, kind) for kind, texts in self.texts.items()}
        widths = {vectors.shape[1] for vectors in self.sent.values()}
        self.whole, self.width = queries.shape[1], widths.pop()
        if widths:
            raise ModelError(f"{served.name} returned vectors of different dimensions for queries and for documents")
        self.full = dict(self.own)
        if self.width < self.whole:
            self.own = {kind: unit(vectors[:, : self.width]) for kind, vectors in self.own.items()}
        model = local_of(measured)
        self.lengths = _lengths(self.sent.values())
        if self.lengths and model:
            self.lengths = None if _lengths([Imitator(model, {}).raw(self.texts["query"][:1], "query")]) else self.lengths

    def _chosen(self, ids: Sequence[str], queries: Vectors, vectors: Vectors, most: int) -> list[int]:
        """Return the rows of the documents to send: the relevant ones, those ranked highest, and others spread evenly."""
        if len(ids) <= most:
            return list(range(len(ids)))
        place = {id: row for row, id in enumerate(ids)}
        relevant = {place[id] for query in self.dataset.queries for id in self.dataset.relevant(query) if id in place}
        ranked, _ = top_k(queries, vectors, _PER_QUERY)
        order = dict.fromkeys([*relevant, *ranked.T.ravel().tolist(), *spread(len(ids), most).tolist()])
        return sorted(list(order)[: max(most, len(relevant))])

    def distances(self, kind: Kind) -> Distances:
        """Return 1 - cosine between the measured and the served vector of each text; NaN if the numbers of dimensions differ."""
        if self.width > self.whole:
            return np.full(len(self.texts[kind]), np.nan)
        return distance(self.own[kind], unit(self.sent[kind]))

    @property
    def lowest_cosine(self) -> float | None:
        """Lowest cosine between a text's two vectors; None if the endpoint has more dimensions."""
        return None if self.width > self.whole else min(float(1 - self.distances(kind).max()) for kind in self.texts)

    def differs(self, kind: Kind) -> npt.NDArray[np.bool_]:
        """Return whether each text has another vector than was measured."""
        model = local_of(self.measured)
        tolerance = COSINE_TOLERANCE["bf16" if model and model.loaded.bf16 else "fp32"]
        return np.asarray(~(self.distances(kind) <= tolerance) | (self.width != self.whole))

    def scores(self, vectors: Mapping[Kind, Vectors], name: str, groups: dict[str, int]) -> Scores:
        """Return the scores of a search by dot product in the documents that were sent."""
        k = int(self.metric.partition("@")[2])
        run = run_of(self.dataset, self.document_ids, partial(top_k, vectors["query"], vectors["document"]), k)
        return score_run(run, self.dataset.qrels, ks=(k,), name=name, groups=groups)


def _sent(served: Encoder, texts: Sequence[str], kind: Kind) -> Vectors:
    """Return the vectors of an endpoint. Each text is sent once."""
    different = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(different)}
    vectors = np.asarray(served.encode(different, kind), np.float32)
    return vectors[[place[text] for text in texts]]


def _lengths(parts: Any) -> tuple[float, float] | None:
    """Return the shortest and longest length of vectors; None if all have unit length."""
    lengths = np.concatenate([np.linalg.norm(vectors, axis=1) for vectors in parts])
    low, high = float(lengths.min()), float(lengths.max())
    return (low, high) if max(1 - low, high - 1) > _UNIT else None


def _causes(sides: _Sides, others: dict[str, LocalEncoder]) -> tuple[tuple[Cause, ...], bool]:
    """Return the causes of the differences, and whether each difference has one."""
    causes: list[Cause] = []
    if sides.lengths:
        low, high = sides.lengths
        text = f"normalisation: the vectors have lengths from {low:.3g} to {high:.3g}, not 1; fix: scale them to unit length"
        causes.append(Cause(None, text))
    model = local_of(sides.measured)
    if sides.width != sides.whole:
        cut = sides.width < sides.whole and all((sides.distances(kind) <= HALF_PRECISION).all() for kind in sides.texts)
        seen = f"the endpoint gives {sides.width:,} dimensions, the measured model {sides.whole:,}"
        what = f"dimensions: {seen}: its first ones; fix: ask for all" if cut else f"another model: {seen}; fix: serve the run's model"
        return (*causes, Cause(None, what)), True
    explained = True
    by_kind: dict[Kind, str] = {}
    imitator = Imitator(model, others) if model else None
    for kind in sides.texts:
        if sides.differs(kind).any():
            text, found = _cause(sides, kind, imitator)
            by_kind[kind], explained = text, explained and found
    if len(by_kind) == 2 and len(set(by_kind.values())) == 1:
        causes.append(Cause(None, by_kind["query"]))
    else:
        causes += [Cause(kind, text) for kind, text in by_kind.items()]
    return tuple(causes), explained


def _cause(sides: _Sides, kind: Kind, imitator: Imitator | None) -> tuple[str, bool]:
    """Return the cause of different vectors of one kind of text, and whether one was found."""
    served, texts = unit(sides.sent[kind]), sides.texts[kind]
    differing = np.flatnonzero(sides.differs(kind))
    if are_of_others(served[differing], sides.own[kind], differing):
        return "order: the vectors are those of other texts; fix: return them in the order of the texts", True
    worst = int(differing[np.argmax(sides.distances(kind)[differing])])
    alone = unit(np.asarray(sides.served.encode([texts[worst]], kind), np.float32))
    if len(texts) > 1 and distance(alone, sides.own[kind][[worst]])[0] <= 0.1 * sides.distances(kind)[worst]:
        return "batching: a text alone has another vector than in a batch, as if padding were read; fix: pass the attention mask", True
    if imitator is None:
        return "not explained: the run's model is not on this machine, so no mistake can be tried", False
    rows = telling_rows(texts, sides.distances(kind), sides.differs(kind))
    return Search(imitator, kind, [texts[row] for row in rows], served[rows]).cause()
