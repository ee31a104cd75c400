"""Fill a new version of an index, check it against exact search, switch to it, and go back.

    fill      a collection named after what it is made from; what is in it already is not written again
    check     its recall at k against exact search, on the user's own queries
    switch    the live name, at once; the version before is kept
    roll back the live name goes back to it

A killed `index_documents` leaves the live version as it was. The next one finds the half-filled collection by its name, and
the vectors in the cache, and goes on.
"""

from __future__ import annotations

import hashlib
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
from embedfit.retrieve.finder import Hit
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import DEPTH, NOTHING, Ranked, Run, run_of, sorted_corpus
from embedfit.store.base import BATCH_BYTES, Entry, Filters, Live, Stamp, Store, check_entries, is_encodable, is_url
from embedfit.template import DOCUMENT_TEMPLATE

_QUERIES = 1000
"""A version is checked with so many queries at the most, spread evenly over them all; this tells recall to about 0.01."""
_SAMPLE = 300
"""Of a collection that is there already, so many documents are compared with the data, spread evenly over them all."""
_ROUNDING = 1e-6
"""Cosines nearer to each other than this are ties."""


@dataclass(frozen=True)
class Indexed:
    """What indexing came to.

    Attributes:
        collection: The version that is live now.
        previous: The one before, to which `roll_back` goes; empty if there is none.
        documents: In it.
        written: Of them, how many were written by this call.
        recall: Share of the k documents of exact search that the store finds too; None if nothing had to be done.
        k: As above.
        queries: That it was measured on.
        of_queries: That there are.
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
        """One line on it."""
        if self.recall is None:
            return f"Live: {self.collection}, {self.documents:,} documents; nothing had changed, so nothing was done."
        sample = f"{self.queries:,}" if self.queries == self.of_queries else f"{self.queries:,} of {self.of_queries:,}"
        return (
            f"Live: {self.collection}, {self.documents:,} documents ({self.written:,} written now); recall@{self.k} against exact search "
            f"{self.recall:.4f} on {sample} queries."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return asdict(self)


def index_documents(
    store: Store, dataset: Dataset, encoder: Encoder, template: str = DOCUMENT_TEMPLATE, *, k: int = 10, min_recall: float = 0.95
) -> Indexed:
    """Make a data set's documents searchable under the live name of a store.

    Args:
        store: Where to.
        dataset: Its corpus goes in, its queries check it.
        encoder: Of documents and queries; its vectors are cached on disk.
        template: What a document says.
        k: How far down a ranking the check looks.
        min_recall: Under this, the new version does not go live.

    Raises:
        DataError: The store cannot keep a document.
        StorageError: Another process is writing, the store cannot be reached, or it finds too little of what exact search finds.
    """
    entries = entries_of(dataset, template)
    check_entries(entries, store)
    digest = _documents_digest(entries)
    collection = f"{store.index}_{_digest([identity(encoder), template, digest])[:12]}"
    with store.writing():
        live = store.live()
        judged = dataset.judged
        if live.current == collection:
            if _is_whole(store, collection, entries):
                _clear(store, live)
                return Indexed(collection, live.previous, len(entries), 0, None, k, 0, len(judged))
            console.note(f"Warning: {store.where}: {collection}, which is live, has lost or changed documents; they are written again")
        cached = encoder if isinstance(encoder, CachedEncoder) else CachedEncoder(encoder)
        vectors = cached.encode([entry.text for entry in entries], "document")
        prompts = complete(encoder).prompts
        stamp = Stamp(
            encoder.name, identity(encoder), vectors.shape[1], prompts["query"], prompts["document"], template, len(entries), digest
        )
        written = _fill(store, collection, stamp, entries, vectors)
        queries = dataset.select(judged[:: -(-len(judged) // _QUERIES)])
        found = Version(store, collection, cached).search(queries, k)
        recall = overlap(found, DenseRetriever(cached, template).search(queries, k + DEPTH), k)
        if recall < min_recall:
            raise StorageError(
                f"{store.where}: recall@{k} of {collection} against exact search is {recall:.4f} on {len(queries.queries):,} queries, "
                f"under {min_recall:g}; it did not go live; fix: another store, or a lower store.min_recall"
            )
        previous = live.previous if live.current == collection else live.current
        live = Live(collection, previous)
        store.switch(live)
        _clear(store, live)
    return Indexed(collection, previous, len(entries), written, recall, k, len(queries.queries), len(judged))


def _is_whole(store: Store, collection: str, entries: Sequence[Entry]) -> bool:
    """Return whether a collection is there and holds these documents and no others; what they say is compared in a sample."""
    if collection not in store.collections() or store.ids(collection) != {entry.id for entry in entries}:
        return False
    return _is_unchanged(store, collection, entries)


def _is_unchanged(store: Store, collection: str, entries: Sequence[Entry]) -> bool:
    sample = entries[:: max(1, -(-len(entries) // _SAMPLE))]
    return not sample or store.entries(collection, [entry.id for entry in sample]) == {entry.id: entry for entry in sample}


def _clear(store: Store, live: Live) -> None:
    """Remove the collections that neither answer nor could: older versions, and what a killed process had begun."""
    for collection in store.collections():
        if collection not in (live.current, live.previous):
            store.drop(collection)


def _fill(store: Store, collection: str, stamp: Stamp, entries: Sequence[Entry], vectors: Vectors) -> int:
    """Write what is missing of a collection; returns how many documents that was."""
    store.create(collection, stamp)
    there = store.ids(collection)
    written = [entry for entry in entries if entry.id in there]
    if len(written) < len(there) or not _is_unchanged(store, collection, written):  # somebody else wrote here
        store.drop(collection)
        store.create(collection, stamp)
        there = set()
    missing = [row for row, entry in enumerate(entries) if entry.id not in there]
    with console.progress(f"writing to {store.where}", len(missing)) as done:
        for batch in _batches(entries, missing, vectors.shape[1]):
            store.add(collection, [entries[row] for row in batch], vectors[batch])
            done(len(batch))
    store.finish(collection)
    return len(missing)


def _batches(entries: Sequence[Entry], rows: Sequence[int], dimension: int) -> Iterator[list[int]]:
    """Yield rows in batches of about `BATCH_BYTES` as JSON."""
    batch: list[int] = []
    size = 0
    for row in rows:
        # A float takes some 20 signs; metadata is often the text again, field by field.
        batch.append(row)
        size += 20 * dimension + 2 * len(entries[row].text) + len(json.dumps(entries[row].metadata))
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def roll_back(store: Store) -> Stamp:
    """Let the version before answer again; once more, and the newer one does. Returns what the version was made from.

    Raises:
        StorageError: There is none, or another process is writing.
    """
    none = StorageError(f"{store.where}: the index {store.index!r} has no version to go back to")
    # Writing would make the folder of a store that is not there.
    if not is_url(store.location) and not os.path.exists(store.location) and not store.live().previous:
        raise none
    with store.writing():
        live = store.live()
        if not live.previous:
            raise none
        if live.previous not in store.collections():
            raise StorageError(f"{store.where}: the version to go back to, {live.previous}, is gone; fix: run 'embedfit index'")
        stamp = store.stamp(live.previous)
        count = len(store.ids(live.previous))
        if count != stamp.documents:
            raise StorageError(
                f"{store.where}: the version to go back to, {live.previous}, has {count:,} of its {stamp.documents:,} documents; "
                "fix: run 'embedfit index' with what it was made from"
            )
        store.switch(Live(live.previous, live.current))
    return stamp


class Version:
    """One collection of a store, as a Retriever and for single searches.

    Args:
        store: That it is in.
        collection: Its name.
        encoder: Of queries: the one that it was filled by.
    """

    def __init__(self, store: Store, collection: str, encoder: Encoder) -> None:
        self.store, self.collection, self.encoder = store, collection, encoder
        self.stamp = store.stamp(collection)
        self.name = f"{encoder.name} in {store.where}"

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set, as far as the store finds them.

        Raises:
            StorageError: The collection holds other documents than the data set.
        """
        if _documents_digest(entries_of(dataset, self.stamp.template)) != self.stamp.digest:
            raise StorageError(
                f"{self.store.where}: {self.collection} holds other documents than the data has now; fix: run 'embedfit index'"
            )
        _, ids = sorted_corpus(dataset)
        position = {id: place for place, id in enumerate(ids)}
        vectors = self.encoder.encode(dataset.query_texts(), "query")

        def nearest(depth: int) -> Ranked:
            # Approximate search may find fewer than were asked for.
            ranked = np.full((len(dataset.queries), min(depth, len(ids))), len(ids), np.int64)
            scores = np.full(ranked.shape, NOTHING, np.float32)
            for row, found in enumerate(self.store.nearest(self.collection, vectors, ranked.shape[1], {})):
                if any(id not in position for id, _ in found):
                    raise self._changed()
                ranked[row, : len(found)] = [position[id] for id, _ in found]
                scores[row, : len(found)] = [score for _, score in found]
            return ranked, scores

        return run_of(dataset, ids, nearest, k)

    def find(self, text: str, k: int = 10, filters: Filters | None = None) -> list[Hit]:
        """Return up to k documents for a query, best first.

        Args:
            text: The query.
            k: How many.
            filters: Metadata that a document must have.

        Raises:
            DataError: The query is not a text that could be encoded.
            StorageError: The store cannot be reached, or what it holds was changed by something else.
        """
        if not is_encodable(text):
            raise DataError("the query", "holds half of a character (a lone surrogate)", fix="correct the text")
        vectors = self.encoder.encode([text], "query")
        filters = filters or {}
        if not all(is_encodable(text) and (self.store.takes_nul or "\0" not in text) for pair in filters.items() for text in pair):
            return []  # no document that the store keeps has such a text
        [found] = self.store.nearest(self.collection, vectors, min(k, self.stamp.documents), filters)
        entries = self.store.entries(self.collection, [id for id, _ in found])
        if any(id not in entries for id, _ in found):
            raise self._changed()
        return [Hit(id, float(score), entries[id].text, entries[id].metadata) for id, score in found]

    def _changed(self) -> StorageError:
        return StorageError(f"{self.store.where}: {self.collection} holds documents that embedfit did not write; fix: run 'embedfit index'")


class LiveIndex:
    """What is live in a store, as a Retriever and for single searches.

    Every search asks once which version is live and takes everything from that one. With the encoders of the old and the new
    version at hand, it goes on answering through a switch and back.

    Args:
        store: Where the index is.
        encoders: Of queries: the one that the live version was made with must be among them.
    """

    def __init__(self, store: Store, *encoders: Encoder) -> None:
        self.store, self.encoders = store, {identity(encoder): encoder for encoder in encoders}
        self.name = f"{encoders[0].name} in {store.where}"

    def version(self) -> Version:
        """Return the version that is live now.

        Raises:
            ModelError: It was made with another encoder.
            StorageError: There is none.
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
            raise StorageError(f"{store.where}: {collection}, which is live, is gone; fix: run 'embedfit index'") from None
        if stamp.fingerprint not in self.encoders:
            given = ", ".join(f"{encoder.name!r} ({fingerprint[:12]})" for fingerprint, encoder in self.encoders.items())
            raise ModelError(
                f"{store.where}: the index {store.index!r} was made with {stamp.encoder!r} ({stamp.fingerprint[:12]}), not with {given}; "
                f"fix: --model {stamp.encoder}, or run 'embedfit index' again"
            )
        return Version(store, collection, self.encoders[stamp.fingerprint])

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents of the live version for each query of a data set; see `Version.search`."""
        return self.version().search(dataset, k)

    def find(self, text: str, k: int = 10, filters: Filters | None = None) -> list[Hit]:
        """Return up to k documents of the live version for a query; see `Version.find`."""
        return self.version().find(text, k, filters)


def overlap(found: Run, exact: Run, k: int) -> float:
    """Return the recall at k of a Run against exact search: the share of the k best that it has too, as a mean over queries.

    A document that ties with the k-th is as good as that one.

    Args:
        found: On the same queries and corpus.
        exact: Deeper than k, so that it holds the ties.
        k: Where both are cut.
    """
    shares = []
    for mine, best, scores, empty in zip(found.ranked[:, :k], exact.ranked, exact.scores, exact.empty, strict=True):
        last = min(k, int((~empty).sum()))
        if not last:  # the query is the only document
            continue
        good = best[(scores >= scores[last - 1] - _ROUNDING) & ~empty]
        shares.append(min(last, len(np.intersect1d(mine, good))) / last)
    return float(np.mean(shares)) if shares else 1.0


def entries_of(dataset: Dataset, template: str) -> list[Entry]:
    """Return the documents of a data set as a store keeps them."""
    texts = dataset.document_texts(template)
    return [
        Entry(document.id, text, _plain({**({"title": document.title} if document.title else {}), **document.metadata}))
        for document, text in zip(dataset.corpus.values(), texts, strict=True)
    ]


def identity(encoder: Encoder) -> str:
    """Return the text by which a store knows an encoder; see `BaseEncoder.identity`."""
    return complete(encoder).identity


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata as JSON has it: dates as text, no NaN."""
    plain: dict[str, Any] = json.loads(json.dumps(metadata, default=_as_json), parse_constant=lambda _: None)
    return plain


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)


def _documents_digest(entries: Sequence[Entry]) -> str:
    return _digest([asdict(entry) for entry in sorted(entries, key=lambda entry: entry.id)])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
