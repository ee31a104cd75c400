"""Fills a new version of an index, checks it against exact search, makes it live, and rolls back.

    fill       writes collections named after their content; entries that are already there are not written again
    check      measures recall at k against exact search, on the user's own queries
    carry      copies what the live version was taught into the new version
    switch     points the live name to the new version at once; the previous version is kept
    roll back  points the live name to the previous version

A version of a searcher has three collections: documents, examples, and changes. They are filled before the switch and dropped together. A
killed call leaves the live version unchanged. The next call finds the partly filled collections by their names and the vectors in the
cache, and continues.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from embedfit import console
from embedfit.data.dataset import Dataset, Query
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Vectors, complete
from embedfit.errors import DataError, StorageError
from embedfit.files import digest
from embedfit.retrieve.run import DEPTH, Run
from embedfit.searcher.parts import Parts
from embedfit.searcher.saving import read_parts, searcher_digest
from embedfit.store.base import CHANGES, EXAMPLES, Entry, Live, Stamp, Store, check_entries, is_url, version_of
from embedfit.store.changes import Change, Changes, latest
from embedfit.store.entries import documents_digest, entries_of, entry_of, examples_of
from embedfit.store.filling import check_readable, fill, is_whole
from embedfit.store.opening import opens_of, searcher_folder
from embedfit.store.version import SearcherVersion, Version
from embedfit.template import DOCUMENT_TEMPLATE

_QUERIES = 1000
"""Maximum number of queries that check a version, spread evenly over all; recall is then known to about 0.01."""
_OWN_RECALL = 0.9
"""Share of the least recall with which a live version must find its own vectors."""
_ROUNDING = 1e-6
"""Scores that differ by less are ties."""


@dataclass(frozen=True)
class Indexed:
    """The result of indexing.

    Attributes:
        collection: Name of the collection that is live now.
        previous: Name of the collection that `roll_back` makes live; empty if there is none.
        documents: Number of documents in the live collection.
        written: Number of documents and examples that this call wrote.
        recall: Mean recall at k against exact search, between 0 and 1; None if nothing had to be done.
        k: Number of documents per query in the recall measurement.
        queries: Number of queries that recall was measured on.
        of_queries: Number of labelled queries in the data set.
        examples: Number of labelled examples; 0 for documents alone.
        carried: Number of changes to the version before that were taken over.
    """

    collection: str
    previous: str
    documents: int
    written: int
    recall: float | None
    k: int
    queries: int
    of_queries: int
    examples: int = 0
    carried: int = 0

    @property
    def sentence(self) -> str:
        """The result in one line."""
        contents = f"{self.documents:,} documents" + (f" and {self.examples:,} examples" if self.examples else "")
        if self.recall is None:
            return f"Live: {self.collection}, {contents}; nothing had changed, so nothing was done."
        sample = f"{self.queries:,}" if self.queries == self.of_queries else f"{self.queries:,} of {self.of_queries:,}"
        carried = f" Taken over: {self.carried:,} changes to the version before." if self.carried else ""
        return (
            f"Live: {self.collection}, {contents} ({self.written:,} written now); recall@{self.k} against exact search "
            f"{self.recall:.4f} on {sample} queries.{carried}"
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
    documents = documents_digest(entries)
    collection = f"{store.index}_{digest([identity(encoder), template, documents])[:12]}"
    cached = encoder if isinstance(encoder, CachedEncoder) else CachedEncoder(encoder)

    def write() -> int:
        vectors = cached.encode([entry.text for entry in entries], "document")
        stamp = stamp_of(encoder, vectors.shape[1], template, entries, *opens_of(encoder))
        return fill(store, collection, stamp, entries, vectors)

    def vectors_of(suffix: str, rows: list[int]) -> Vectors:
        return cached.encode([entries[row].text for row in rows], "document")

    new = _New(collection, {"": entries}, vectors_of, write, lambda: Version(store, collection, cached), dataset)
    return _deploy(store, new, k, min_recall)


def index_searcher(
    store: Store,
    folder: str | Path,
    queries: Mapping[str, str] | None = None,
    *,
    k: int = 10,
    min_recall: float = 0.95,
    check: Callable[[SearcherVersion], None] | None = None,
) -> Indexed:
    """Index the documents and labelled examples of a searcher and make them live. What the live version was taught is taken over.

    Nothing is encoded, except what was taught, if the model is another one. The folder has to stay: searches read the model, the weights
    and the linear models from it.

    Args:
        store: Store to write to.
        folder: Folder of the searcher, or its run directory.
        queries: Query id -> text, to check the index with; by default the examples.
        k: Number of documents per query in the recall check, at least 1.
        min_recall: Recall against exact search, between 0 and 1, below which the new version does not go live.
        check: Function that is given the new version before it goes live, and raises an EmbedfitError if it must not.

    Raises:
        DataError: The folder is no searcher, or the store cannot keep an entry.
        StorageError: Another process is writing, the store cannot be reached, or recall is too low.
    """
    place = searcher_folder(folder)
    if place is None:
        raise DataError(str(folder), "has no searcher", expected="a finished run, or the folder of a searcher")
    place, parts = place.resolve(), read_parts(place)
    base = CachedEncoder(parts.base) if parts.base else None
    parts = replace(parts, encoder=CachedEncoder(parts.encoder), base=base)
    documents = [entry_of(parts.documents[id], text) for id, text in zip(parts.corpus.ids, parts.corpus.texts, strict=True)]
    examples = examples_of(parts)
    check_entries(documents, store)
    check_entries(examples, store, "example")
    known = searcher_digest(place)
    collection = f"{store.index}_{digest([known, str(place), documents_digest(documents)])[:12]}"
    stamp = stamp_of(parts.encoder, parts.corpus.vectors.shape[1], parts.template, documents, str(place))
    stamp = replace(stamp, searcher=known, examples=len(examples))

    def write() -> int:
        store.create(collection + CHANGES, replace(stamp, dimension=1))
        written = fill(store, collection + EXAMPLES, stamp, examples, parts.examples.vectors)
        return written + fill(store, collection, stamp, documents, parts.corpus.vectors)

    new = _New(
        collection,
        {"": documents, EXAMPLES: examples},
        lambda suffix, rows: (parts.examples if suffix else parts.corpus).vectors[rows],
        write,
        lambda: SearcherVersion(store, collection, parts),
        _asking(parts, queries),
        parts,
        check,
    )
    return _deploy(store, new, k, min_recall)


@dataclass(frozen=True)
class _New:
    """A version to be made.

    Attributes:
        collection: Its name.
        contents: Suffix of each collection -> its entries.
        vectors_of: Function from the suffix of a collection and row numbers to the vectors of these entries.
        write: Function that writes what is missing and returns the number of entries written.
        opened: Function that returns the version.
        dataset: Queries to check it with.
        parts: Searcher that it is made from; None for documents alone.
        check: Function that is given the version before it goes live.
    """

    collection: str
    contents: Mapping[str, Sequence[Entry]]
    vectors_of: Callable[[str, list[int]], Vectors]
    write: Callable[[], int]
    opened: Callable[[], Version | SearcherVersion]
    dataset: Dataset
    parts: Parts | None = None
    check: Callable[[SearcherVersion], None] | None = None


def _deploy(store: Store, new: _New, k: int, min_recall: float) -> Indexed:
    """Fill a version, check it, and make it live."""
    collection, judged = new.collection, new.dataset.judged or list(new.dataset.queries)
    documents, examples = len(new.contents[""]), len(new.contents.get(EXAMPLES, ()))
    with store.writing():
        live = store.live()
        if live.current == collection:
            if _is_complete(store, new, min_recall):
                clear(store, live)
                return Indexed(collection, live.previous, documents, 0, None, k, 0, len(judged), examples)
            console.note(f"Warning: {store.where}: the live collection {collection} has lost or changed documents; it is written again")
        queries = new.dataset.select(judged[:: max(1, -(-len(judged) // _QUERIES))])
        version, written, recall = _written(new, queries, k)
        if recall < min_recall and written < documents + examples:
            # A kill may have left a damaged graph, which finds too little.
            for suffix in new.contents:
                store.drop(collection + suffix)
            version, written, recall = _written(new, queries, k)
        if recall < min_recall:
            raise StorageError(
                f"{store.where}: recall@{k} of {collection} against exact search is {recall:.4f} on {len(queries.queries):,} queries, "
                f"under {min_recall:g}; it did not go live; fix: use another store, or lower store.min_recall"
            )
        carried = 0
        if isinstance(version, SearcherVersion):
            carried = _carry(
                store, live, version, {(entry.text, id) for entry in new.contents[EXAMPLES] for id in entry.metadata["documents"]}
            )
            if new.check:
                new.check(version)
        previous = live.previous if live.current == collection else live.current
        live = Live(collection, previous)
        store.switch(live)
        clear(store, live)
    return Indexed(collection, previous, documents, written, recall, k, len(queries.queries), len(judged), examples, carried)


def _written(new: _New, queries: Dataset, k: int) -> tuple[Version | SearcherVersion, int, float]:
    written, version = new.write(), new.opened()
    return version, written, overlap(version.search(queries, k), version.exact(new.parts).search(queries, k + DEPTH), k)


def stamp_of(encoder: Encoder, dimension: int, template: str, entries: Sequence[Entry], opens: str, pooling: str = "auto") -> Stamp:
    """Return the stamp of documents that an encoder has encoded."""
    whole, documents = complete(encoder), documents_digest(entries)
    prompts = whole.prompts
    return Stamp(
        encoder.name, whole.identity, dimension, prompts["query"], prompts["document"], template, len(entries), documents, opens, pooling
    )


def _asking(parts: Parts, queries: Mapping[str, str] | None) -> Dataset:
    """Return queries over the documents of a searcher: those that are given, or else its examples, if it keeps their texts."""
    texts = dict(zip(parts.examples.query_ids, parts.examples.texts, strict=True)) if queries is None else queries
    return Dataset({id: Query(id, text) for id, text in texts.items() if text}, dict(parts.documents), {})


def _carry(store: Store, live: Live, version: SearcherVersion, known: set[tuple[str, str]]) -> int:
    """Take over what the live and the previous version were taught; return the number of changes.

    Args:
        store: Store that holds the versions.
        live: Versions so far.
        version: New version.
        known: (text, document id) of each example that the new version has.
    """
    taught: list[Change] = []
    names = set(store.collections())
    for name in {live.previous, live.current, version.collection} - {""}:
        if name + CHANGES in names:
            changes = Changes(store, name)
            changes.refresh()
            taught += changes
    version.changes.refresh()
    present = {change.row for change in version.changes}
    documents = set(version.ids)
    kept: list[Change] = []
    for change in sorted(latest(taught), key=lambda change: change.what):  # documents first
        if change.row in present:
            documents |= {change.key} if change.what == "document" and not change.gone else set()
        elif change.gone:
            kept.append(change)
        elif change.what == "document" and change.key not in documents:
            kept.append(replace(version.document(change.added), row=change.row))
            documents.add(change.key)
        elif change.what == "example" and change.document in documents and (change.text, change.document) not in known:
            kept.append(replace(change, vector=version.encoder.encode([change.text], "query")[0]))
    version.changes.copy(kept)
    return sum(not change.gone for change in kept)


def _is_complete(store: Store, new: _New, min_recall: float) -> bool:
    """Return whether the collections exist, hold exactly these entries, and find them."""
    names = store.collections()
    if EXAMPLES in new.contents and new.collection + CHANGES not in names:
        return False
    return all(
        (collection := new.collection + suffix) in names
        and is_whole(store, collection, entries, partial(new.vectors_of, suffix), _OWN_RECALL * min_recall)
        for suffix, entries in new.contents.items()
    )


def clear(store: Store, live: Live) -> None:
    """Delete all versions except the live and the previous one: older ones, and what a killed process left behind.

    The collections that a bridged version is made of stay with it.
    """
    names = store.collections()
    kept = {name for name in (live.current, live.previous) if name in names}
    for name in tuple(kept):
        with contextlib.suppress(StorageError):  # the stamp of an earlier version of embedfit
            if made_of := store.stamp(name).bridge:
                plan = json.loads(made_of)
                kept |= {plan["old"], *plan["parts"]}
    for collection in names:
        if version_of(collection) not in kept:
            store.drop(collection)


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
        parts = {suffix: store.ids(live.previous + suffix) for suffix in ("", *((EXAMPLES,) if stamp.searcher else ()))}
        count, examples = len(parts[""]), len(parts.get(EXAMPLES, ()))
        if not stamp.bridge and (count, examples) != (stamp.documents, stamp.examples):
            what, count, expected = (
                ("documents", count, stamp.documents) if count != stamp.documents else ("examples", examples, stamp.examples)
            )
            raise StorageError(
                f"{store.where}: the version to go back to, {live.previous}, has {count:,} of its {expected:,} {what}; "
                "fix: run 'embedfit index' with the data and model that it was made from"
            )
        for suffix, ids in parts.items():
            check_readable(store, live.previous + suffix, ids)
        store.switch(Live(live.previous, live.current))
    return stamp


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


def identity(encoder: Encoder) -> str:
    """Return the text by which a store knows an encoder; see `BaseEncoder.identity`."""
    return complete(encoder).identity
