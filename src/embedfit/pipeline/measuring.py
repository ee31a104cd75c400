"""Measurement without tuning: one encoder, a grid of encoders, a vector store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from embedfit import console
from embedfit.data.dataset import Dataset, text_key
from embedfit.data.split import group_numbers
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.local import seconds_alone
from embedfit.errors import DataError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.score import Scores, score_run
from embedfit.hub import public_name
from embedfit.metrics import KS
from embedfit.retrieve.engine import Engine, LocalEngine
from embedfit.retrieve.rerank import TOP, Reranker, rerank
from embedfit.retrieve.retrievers import BM25Retriever, DenseRetriever, FusedRetriever
from embedfit.retrieve.run import DEPTH, Retriever, Run
from embedfit.store.base import Store
from embedfit.store.live import LiveIndex, Opened
from embedfit.store.versions import overlap
from embedfit.template import DOCUMENT_TEMPLATE
from embedfit.track.tracker import Tracker

if TYPE_CHECKING:
    import pandas as pd


def measure(
    encoder: Encoder,
    dataset: Dataset,
    *,
    template: str = DOCUMENT_TEMPLATE,
    ks: Sequence[int] = KS,
    group_by: str | None = None,
    engine: Engine | None = None,
    tracker: Tracker | None = None,
) -> Scores:
    """Return how well an encoder retrieves, for each query of a data set; its vectors are cached on disk.

    Args:
        encoder: Encoder to measure.
        dataset: Data set; each of its queries must be judged.
        template: Document template.
        ks: Ranks at which the rankings are cut.
        group_by: Metadata field; queries with the same value count as dependent in the intervals, as near duplicates always do.
        engine: Engine that encodes and searches; by default this process.
        tracker: Receiver of every query's result, from `tracking`; None for none.
    """
    started = time.monotonic()
    engine = engine or LocalEngine()
    run = DenseRetriever(CachedEncoder(engine.encoder(encoder)), template, engine.top_k).search(dataset, max(ks))
    seconds = time.monotonic() - started
    scores = score_run(run, dataset.qrels, ks=ks, name=encoder.name, groups=group_numbers(dataset, group_by))
    if tracker:
        metadata = {"fingerprint": encoder.fingerprint[:12], "document": template}
        tracker.add(public_name(encoder.name), dataset, run, scores, template=template, metadata=metadata, seconds=seconds)
    return scores


def measure_run(path: str, dataset: Dataset, *, ks: Sequence[int] = KS, group_by: str | None = None) -> Scores:
    """Return how well the rankings in a TREC run file are, for each query of a data set.

    A query that the file leaves out counts as one for which nothing was found. A note says how many there are.

    Args:
        path: TREC run file; see `Run.from_trec`.
        dataset: Data set; each of its queries must be judged.
        ks: Ranks at which the rankings are cut.
        group_by: Metadata field; queries with the same value count as dependent in the intervals, as near duplicates always do.

    Raises:
        DataError: The file is no run, or ranks documents for none of the queries.
    """
    rankings = Run.from_trec(path).to_dict()
    missing = sum(id not in rankings for id in dataset.queries)
    if missing == len(dataset.queries):
        known, other = next(iter(dataset.queries)), next(iter(rankings))
        raise DataError(path, f"ranks documents for none of the {missing:,} queries", expected=f"ids such as {known!r}, not {other!r}")
    documents = {document for id in dataset.queries for document in rankings.get(id, ())}
    unknown = documents - dataset.corpus.keys()
    notes = [f"queries without a ranking, for which nothing counts as found: {missing:,}"] * bool(missing)
    notes += [f"ranked documents that are not in the data, and count as wrong: {len(unknown):,}"] * bool(unknown)
    for note in notes:
        console.note(f"{path}: {note}")
    run = Run.from_dict({id: rankings.get(id, {}) for id in dataset.queries})
    return score_run(run, dataset.qrels, ks=ks, name=Path(path).name, groups=group_numbers(dataset, group_by))


def evaluate(
    dataset: Dataset,
    encoders: Sequence[Encoder],
    *,
    templates: Sequence[str] = (DOCUMENT_TEMPLATE,),
    ks: Sequence[int] = KS,
    retrieval: Sequence[str] = ("dense",),
    rerankers: Sequence[Reranker] = (),
    rerank_top: int = TOP,
    engine: Engine | None = None,
    store: Store | None = None,
    group_by: str | None = None,
    seed: int = 0,
    tracker: Tracker | None = None,
) -> pd.DataFrame:
    """Measure every encoder with every document template, retrieval method and reranker: quality and time side by side.

    Args:
        dataset: Data set whose judged queries are scored.
        encoders: Encoders to measure; their vectors are cached on disk.
        templates: Document templates.
        ks: Ranks at which the rankings are cut.
        retrieval: Retrieval methods: ``dense``, ``bm25`` (once for all encoders), ``hybrid`` (both, fused by rank).
        rerankers: Cross-encoders, each measured on top of every ranking; the ranking alone is measured too.
        rerank_top: Number of documents per query that a cross-encoder reads.
        engine: Engine that encodes, searches and reranks; by default this process.
        store: Vector store whose live index is measured too, beside exact search in the same documents; None for none.
        group_by: Metadata field; queries with the same value count as dependent in the intervals, as near duplicates always do.
        seed: Seed of the intervals.
        tracker: Receiver of every query's result; None for none.

    Returns:
        A tidy frame with the columns model, document, retrieval, reranker ("" for none), metric, k and value (mean over queries);
        difference, low and high (change from the first row with its 95% interval, see `compare_scores`; NaN in the first row); and
        seconds (time per query on this machine: encoding in a batch of 1, searching and reranking in one batch). A store has one more
        metric, ``recall_of_exact``: the share of the documents of exact search that the store returns.
    """
    import pandas as pd

    engine = engine or LocalEngine()
    judged = dataset.select(dataset.judged)
    depth = max(*ks, rerank_top) if rerankers else max(ks)
    grid = _Grid(judged, tuple(ks), group_numbers(judged, group_by), seed, tracker)
    for template in templates:
        for name, way, retriever, encoder in _retrievers(encoders, template, retrieval, engine):
            encoding = seconds_alone(encoder, judged.query_texts()) if encoder else 0.0
            run, seconds = _timed(retriever, judged, depth)
            grid.add(run, encoding + seconds, name=name, document=template, retrieval=way)
            for reranker in map(engine.reranker, rerankers):
                reranker.score([("load", "the model before it is timed")])
                start = time.perf_counter()
                reranked = rerank(run, judged, reranker, template, top=rerank_top)
                more = (time.perf_counter() - start) / len(judged.queries)
                grid.add(reranked, encoding + seconds + more, name=name, document=template, retrieval=way, reranker=reranker.name)
    if store:
        version = live_version(store, encoders)
        encoding = seconds_alone(version.encoder, judged.query_texts())
        name, template = version.encoder.name, version.stamp.template
        [(_, _, dense, _)] = _retrievers([version.encoder], template, ["dense"], engine)
        reference: Retriever = version.exact() if version.stamp.searcher else dense
        way = "searcher" if version.stamp.searcher else "dense"
        if way not in retrieval or template not in templates or version.encoder not in encoders:  # otherwise the table already has it
            run, seconds = _timed(reference, judged, depth)
            grid.add(run, encoding + seconds, name=name, document=template, retrieval=way)
        exact = reference.search(judged, max(ks) + DEPTH)
        run, seconds = _timed(version, judged, depth)
        grid.add(run, encoding + seconds, name=version.name, document=template, retrieval="store")
        shares = [(version.name, template, "store", "", "recall_of_exact", k, overlap(run, exact, k)) for k in ks]
        grid.frames.append(pd.DataFrame(shares, columns=["model", "document", "retrieval", "reranker", "metric", "k", "value"]))
    return pd.concat(grid.frames, ignore_index=True)


def live_version(store: Store, encoders: Sequence[Encoder]) -> Opened:
    """Return the live version of an index, by one of some encoders if that made it, else by the model that the index names.

    Raises:
        ModelError: The index does not name its model, and none of the encoders made it; or its model is gone or has changed.
        StorageError: There is no live version.
    """
    stamp = LiveIndex(store).stamp()
    matching = [encoder for encoder in encoders if complete(encoder).identity == stamp.fingerprint]
    return LiveIndex(store, *(matching or ([] if stamp.opens else encoders))).version()


@dataclass
class _Grid:
    """The table of `evaluate` under construction.

    Attributes:
        judged: Data set of the judged queries and all documents.
        ks: Ranks at which the rankings are cut.
        groups: Query id -> number of its group.
        seed: Seed of the intervals.
        tracker: Receiver of every query's result; None for none.
        frames: Finished tables, one per combination.
        first: Scores of the first combination, the baseline of every difference.
    """

    judged: Dataset
    ks: tuple[int, ...]
    groups: dict[str, int]
    seed: int
    tracker: Tracker | None
    frames: list[pd.DataFrame] = field(default_factory=list)
    first: Scores | None = None

    def add(self, run: Run, seconds: float, *, name: str, document: str, retrieval: str, reranker: str = "") -> None:
        """Score a Run and add its table, one row per metric and k.

        Args:
            run: Rankings of the judged queries.
            seconds: Time per query, in seconds.
            name: Name of the model.
            document: Document template.
            retrieval: Retrieval method.
            reranker: Name of the cross-encoder; empty for none.
        """
        scores = score_run(run, self.judged.qrels, ks=self.ks, name=name, groups=self.groups)
        keys = {"document": document, "retrieval": retrieval, "reranker": reranker}
        if self.tracker:
            total = seconds * len(self.judged.queries)
            self.tracker.add(public_name(name), self.judged, run, scores, template=document, metadata=keys, seconds=total)
        frame = scores.to_frame()
        for place, (column, value) in enumerate(keys.items()):
            frame.insert(1 + place, column, value)
        ends = [(np.nan, np.nan, np.nan)] * len(frame)
        if self.first is not None:
            changes = compare_scores(self.first, scores, metric=next(iter(scores.values)), seed=self.seed).differences
            ends = [(change.difference, change.low, change.high) for change in changes]
        self.first = self.first or scores
        frame[["difference", "low", "high"]] = ends
        self.frames.append(frame.assign(seconds=seconds))


def _retrievers(
    encoders: Sequence[Encoder], template: str, ways: Sequence[str], engine: Engine
) -> Iterator[tuple[str, str, Retriever, Encoder | None]]:
    """Yield (model name, retrieval method, retriever, its encoder or None) for each combination."""
    words = BM25Retriever(template)
    if "bm25" in ways:
        yield words.name, "bm25", words, None
    for encoder in encoders:
        dense = DenseRetriever(CachedEncoder(engine.encoder(encoder)), template, engine.top_k)
        if "dense" in ways:
            yield encoder.name, "dense", dense, encoder
        if "hybrid" in ways:
            yield encoder.name, "hybrid", FusedRetriever(dense, words), encoder


def _timed(retriever: Retriever, dataset: Dataset, k: int) -> tuple[Run, float]:
    """Return a Run and the seconds per additional query, without the fixed time to read vectors and index words."""
    single = dataset.select(list(dataset.queries)[:1])
    run = retriever.search(dataset, k)  # every vector is cached from here on
    seconds = []
    for queries in (single, dataset):
        start = time.perf_counter()
        retriever.search(queries, k)
        seconds.append(time.perf_counter() - start)
    return run, max(0.0, seconds[1] - seconds[0]) / max(1, len(dataset.queries) - 1)


def seen_in_training(model: Encoder, dataset: Dataset) -> int:
    """Return the number of queries in a data set that a model was tuned on or chosen by, according to its folder."""
    seen = _seen_by(model, "seen")
    return sum(text_key(query.text) in seen for query in dataset.queries.values())


def answers_seen_in_training(models: Sequence[Encoder], dataset: Dataset, template: str) -> tuple[bool, ...] | None:
    """Return, for each query, whether a model was trained on one of its right answers; None if no folder records it.

    Args:
        models: Encoders, whose folders may record what they were trained on.
        dataset: Data set whose queries are all judged.
        template: Document template. A document counts as seen if its text under this template is a text of the training.
    """
    seen = set().union(*(_seen_by(model, "answers") for model in models))
    if not seen:
        return None
    documents = {id for id, text in zip(dataset.corpus, dataset.document_texts(template), strict=True) if text_key(text) in seen}
    return tuple(not documents.isdisjoint(dataset.relevant(id)) for id in dataset.queries)


def _seen_by(model: Encoder, what: Literal["seen", "answers"]) -> set[str]:
    from embedfit.tune.result import seen_by

    path = complete(model).saved_at
    return set(seen_by(path, what)) if path else set()
