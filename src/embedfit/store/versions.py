"""Fills a new version of an index, checks it against exact search, makes it live, and rolls back.

    fill       writes a collection named after its content; documents that are already there are not written again
    check      measures recall at k against exact search, on the user's own queries
    switch     points the live name to the new version at once; the previous version is kept
    roll back  points the live name to the previous version

A killed `index_documents` leaves the live version unchanged. The next call finds the partly filled collection by its name and
the vectors in the cache, and continues.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from embedfit import console
from embedfit.data.dataset import Dataset
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Vectors, complete
from embedfit.errors import DataError, ModelError, StorageError
from embedfit.files import digest
from embedfit.retrieve.finder import Hit
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import DEPTH, NOTHING, Ranked, Run, run_of, sorted_corpus
from embedfit.store.base import BATCH_BYTES, Entry, Filters, Live, Stamp, Store, check_entries, is_encodable, is_url
from embedfit.template import DOCUMENT_TEMPLATE

_QUERIES = 1000
"""Maximum number of queries that check a version, spread evenly over all; recall is then known to about 0.01."""
_SAMPLE = 300
"""Number of documents of an existing collection that are compared with the data, spread evenly over all."""
_ROUNDING = 1e-6
"""Cosines that differ by less are ties."""


@dataclass(frozen=True)
class Indexed:
    """The result of indexing.

    Attributes:
        collection: Name of the collection that is live now.
        previous: Name of the collection that `roll_back` makes live; empty if there is none.
        documents: Number of documents in the live collection.
        written: Number of documents that this call wrote.
        recall: Mean recall at k against exact search, between 0 and 1; None if nothing had to be done.
        k: Number of documents per query in the recall measurement.
        queries: Number of queries that recall was measured on.
        of_queries: Number of labelled queries in the data set.
    """

    collection: str
    previous: str
    documents: int
    written: int
    recall: float | None
    k: int
    queries: int
    of_queries: int

    @property
    def sentence(self) -> str:
        """The result in one line."""
        if self.recall is None:
            return f"Live: {self.collection}, {self.documents:,} documents; nothing had changed, so nothing was done."
        sample = f"{self.queries:,}" if self.queries == self.of_queries else f"{self.queries:,} of {self.of_queries:,}"
        return (
            f"Live: {self.collection}, {self.documents:,} documents ({self.written:,} written now); recall@{self.k} against exact search "
            f"{self.recall:.4f} on {sample} queries."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the result as a JSON object."""
        return asdict(self)


def index_documents(
    store: Store, dataset: Dataset, encoder: Encoder, template: str = DOCUMENT_TEMPLATE, *, k: int = 10, min_recall: float = 0.95
) -> Indexed:
    """Index the documents of a data set and make them live.

    Args:
        store: Store to write to.
        dataset: Corpus to index, and queries to check the index with.
        encoder: Encoder of documents and queries; its vectors are cached on disk.
        template: Template of the document text.
        k: Number of documents per query in the recall check, at least 1.
        min_recall: Recall against exact search, between 0 and 1, below which the new version does not go live.

    Raises:
        DataError: The store cannot keep a document.
        StorageError: Another process is writing, the store cannot be reached, or recall is too low.
    """
    entries = entries_of(dataset, template)
    check_entries(entries, store)
    documents = _documents_digest(entries)
    collection = f"{store.index}_{digest([identity(encoder), template, documents])[:12]}"
    with store.writing():
        live = store.live()
        judged = dataset.judged
        if live.current == collection:
            if _is_complete(store, collection, entries):
                _clear(store, live)
                return Indexed(collection, live.previous, len(entries), 0, None, k, 0, len(judged))
            console.note(f"Warning: {store.where}: the live collection {collection} has lost or changed documents; they are written again")
        cached = encoder if isinstance(encoder, CachedEncoder) else CachedEncoder(encoder)
        vectors = cached.encode([entry.text for entry in entries], "document")
        prompts = complete(encoder).prompts
        stamp = Stamp(
            encoder.name, identity(encoder), vectors.shape[1], prompts["query"], prompts["document"], template, len(entries), documents
        )
        written = _fill(store, collection, stamp, entries, vectors)
        queries = dataset.select(judged[:: -(-len(judged) // _QUERIES)])
        run = Version(store, collection, cached).search(queries, k)
        recall = overlap(run, DenseRetriever(cached, template).search(queries, k + DEPTH), k)
        if recall < min_recall:
            raise StorageError(
                f"{store.where}: recall@{k} of {collection} against exact search is {recall:.4f} on {len(queries.queries):,} queries, "
                f"under {min_recall:g}; it did not go live; fix: use another store, or lower store.min_recall"
            )
        previous = live.previous if live.current == collection else live.current
        live = Live(collection, previous)
        store.switch(live)
        _clear(store, live)
    return Indexed(collection, previous, len(entries), written, recall, k, len(queries.queries), len(judged))


def _is_complete(store: Store, collection: str, entries: Sequence[Entry]) -> bool:
    """Return whether a collection exists and holds exactly these documents; their content is compared on a sample."""
    if collection not in store.collections() or store.ids(collection) != {entry.id for entry in entries}:
        return False
    return _is_unchanged(store, collection, entries)


def _is_unchanged(store: Store, collection: str, entries: Sequence[Entry]) -> bool:
    sample = entries[:: max(1, -(-len(entries) // _SAMPLE))]
    return not sample or store.entries(collection, [entry.id for entry in sample]) == {entry.id: entry for entry in sample}


def _clear(store: Store, live: Live) -> None:
    """Delete all collections except the live and the previous one: older versions, and what a killed process left behind."""
    for collection in store.collections():
        if collection not in (live.current, live.previous):
            store.drop(collection)


def _fill(store: Store, collection: str, stamp: Stamp, entries: Sequence[Entry], vectors: Vectors) -> int:
    """Write the missing documents of a collection; return their number."""
    store.create(collection, stamp)
    present = store.ids(collection)
    written = [entry for entry in entries if entry.id in present]
    if len(written) < len(present) or not _is_unchanged(store, collection, written):  # something else wrote to it
        store.drop(collection)
        store.create(collection, stamp)
        present = set()
    missing = [row for row, entry in enumerate(entries) if entry.id not in present]
    with console.progress(f"writing to {store.where}", len(entries), len(present)) as done:
        for batch in _batches(entries, missing, vectors.shape[1]):
            store.add(collection, [entries[row] for row in batch], vectors[batch])
            done(len(batch))
    store.finish(collection)
    return len(missing)


def _batches(entries: Sequence[Entry], rows: Sequence[int], dimension: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of about `BATCH_BYTES` as JSON."""
    batch: list[int] = []
    size = 0
    for row in rows:
        # A float takes about 20 characters; metadata often repeats the text field by field.
        batch.append(row)
        size += 20 * dimension + 2 * len(entries[row].text) + len(json.dumps(entries[row].metadata))
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def roll_back(store: Store) -> Stamp:
    """Make the previous version live again and return its stamp. A second call undoes the first.

    Raises:
        StorageError: There is no complete previous version, or another process is writing.
    """
    missing = StorageError(f"{store.where}: the index {store.index!r} has no version to go back to")
    # Locking for writing would create the folder of a store that does not exist.
    if not is_url(store.location) and not os.path.exists(store.location) and not store.live().previous:
        raise missing
    with store.writing():
        live = store.live()
        if not live.previous:
            raise missing
        if live.previous not in store.collections():
            raise StorageError(f"{store.where}: the version to go back to, {live.previous}, is gone; fix: run 'embedfit index'")
        stamp = store.stamp(live.previous)
        count = len(store.ids(live.previous))
        if count != stamp.documents:
            raise StorageError(
                f"{store.where}: the version to go back to, {live.previous}, has {count:,} of its {stamp.documents:,} documents; "
                "fix: run 'embedfit index' with the data and model that it was made from"
            )
        store.switch(Live(live.previous, live.current))
    return stamp


class Version:
    """One collection of a store, as a Retriever and for single searches.

    Args:
        store: Store that holds the collection.
        collection: Name of the collection.
        encoder: Encoder of queries, the same that encoded the documents.
    """

    def __init__(self, store: Store, collection: str, encoder: Encoder) -> None:
        self.store, self.collection, self.encoder = store, collection, encoder
        self.stamp = store.stamp(collection)
        self.name = f"{encoder.name} in {store.where}"

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return up to k documents for each query of a data set.

        Raises:
            StorageError: The documents of the collection differ from those of the data set.
        """
        if _documents_digest(entries_of(dataset, self.stamp.template)) != self.stamp.digest:
            raise StorageError(f"{self.store.where}: {self.collection} holds other documents than the data set; fix: run 'embedfit index'")
        _, ids = sorted_corpus(dataset)
        position = {id: place for place, id in enumerate(ids)}
        vectors = self.encoder.encode(dataset.query_texts(), "query")

        def nearest(depth: int) -> Ranked:
            # Approximate search may return fewer documents than requested.
            ranked = np.full((len(dataset.queries), min(depth, len(ids))), len(ids), np.int64)
            scores = np.full(ranked.shape, NOTHING, np.float32)
            for row, neighbours in enumerate(self.store.nearest(self.collection, vectors, ranked.shape[1], {})):
                if any(id not in position for id, _ in neighbours):
                    raise self._changed()
                ranked[row, : len(neighbours)] = [position[id] for id, _ in neighbours]
                scores[row, : len(neighbours)] = [score for _, score in neighbours]
            return ranked, scores

        return run_of(dataset, ids, nearest, k)

    def find(self, text: str, k: int = 10, filters: Filters | None = None) -> list[Hit]:
        """Return up to k documents for a query, best first.

        Args:
            text: Query text.
            k: Maximum number of documents.
            filters: Metadata that a document must have; see `embedfit.store.base.Filters`.

        Raises:
            DataError: The query contains a lone surrogate.
            StorageError: The store cannot be reached, or something else changed the collection.
        """
        if not is_encodable(text):
            raise DataError("the query", "contains half of a character (a lone surrogate)", fix="correct the text")
        vectors = self.encoder.encode([text], "query")
        filters = filters or {}
        if not all(is_encodable(text) and (self.store.takes_nul or "\0" not in text) for pair in filters.items() for text in pair):
            return []  # the store cannot hold a document with such a text
        [neighbours] = self.store.nearest(self.collection, vectors, min(k, self.stamp.documents), filters)
        entries = self.store.entries(self.collection, [id for id, _ in neighbours])
        if any(id not in entries for id, _ in neighbours):
            raise self._changed()
        return [Hit(id, float(score), entries[id].text, entries[id].metadata) for id, score in neighbours]

    def _changed(self) -> StorageError:
        return StorageError(f"{self.store.where}: {self.collection} holds documents that embedfit did not write; fix: run 'embedfit index'")


class LiveIndex:
    """The live version of an index, as a Retriever and for single searches.

    Each search looks up the live version once and takes everything from it. Given the encoders of both versions, searches
    continue through a switch and a rollback.

    Args:
        store: Store that holds the index.
        encoders: Encoders of queries, among them the one that encoded the live version.
    """

    def __init__(self, store: Store, *encoders: Encoder) -> None:
        self.store, self.encoders = store, {identity(encoder): encoder for encoder in encoders}
        self.name = f"{encoders[0].name} in {store.where}"

    def version(self) -> Version:
        """Return the version that is live now.

        Raises:
            ModelError: The live version was made with another encoder.
            StorageError: There is no live version.
        """
        store = self.store
        collection = store.live().current
        if not collection:
            raise StorageError(f"{store.where}: there is no index {store.index!r}; fix: run 'embedfit index'")
        try:
            stamp = store.stamp(collection)
        except StorageError:
            if collection in store.collections():
                raise
            raise StorageError(f"{store.where}: the live collection {collection} is gone; fix: run 'embedfit index'") from None
        if stamp.fingerprint not in self.encoders:
            given = ", ".join(f"{encoder.name!r} ({fingerprint[:12]})" for fingerprint, encoder in self.encoders.items())
            raise ModelError(
                f"{store.where}: the index {store.index!r} was made with {stamp.encoder!r} ({stamp.fingerprint[:12]}), not with {given}; "
                f"fix: --model {stamp.encoder}, or run 'embedfit index' again"
            )
        return Version(store, collection, self.encoders[stamp.fingerprint])

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return up to k documents of the live version for each query of a data set; see `Version.search`."""
        return self.version().search(dataset, k)

    def find(self, text: str, k: int = 10, filters: Filters | None = None) -> list[Hit]:
        """Return up to k documents of the live version for a query; see `Version.find`."""
        return self.version().find(text, k, filters)


def overlap(run: Run, exact: Run, k: int) -> float:
    """Return the recall at k of a Run against exact search: the fraction of the k best documents that it has, averaged over queries.

    Documents that tie with the k-th count as equally good.

    Args:
        run: Run to measure.
        exact: Run of exact search on the same queries and corpus, deeper than k so that it includes ties.
        k: Rank at which both are cut.
    """
    shares = []
    for retrieved, best, scores, empty in zip(run.ranked[:, :k], exact.ranked, exact.scores, exact.empty, strict=True):
        last = min(k, int((~empty).sum()))
        if not last:  # the query is the only document
            continue
        good = best[(scores >= scores[last - 1] - _ROUNDING) & ~empty]
        shares.append(min(last, len(np.intersect1d(retrieved, good))) / last)
    return float(np.mean(shares)) if shares else 1.0


def entries_of(dataset: Dataset, template: str) -> list[Entry]:
    """Return the documents of a data set as entries of a store."""
    texts = dataset.document_texts(template)
    return [
        Entry(document.id, text, _plain({**({"title": document.title} if document.title else {}), **document.metadata}))
        for document, text in zip(dataset.corpus.values(), texts, strict=True)
    ]


def identity(encoder: Encoder) -> str:
    """Return the text by which a store knows an encoder; see `BaseEncoder.identity`."""
    return complete(encoder).identity


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata as JSON values: dates become text, NaN becomes null."""
    plain: dict[str, Any] = json.loads(json.dumps(metadata, default=_as_json), parse_constant=lambda _: None)
    return plain


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


def _documents_digest(entries: Sequence[Entry]) -> str:
    return digest([vars(entry) for entry in sorted(entries, key=lambda entry: entry.id)])
