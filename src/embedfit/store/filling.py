"""Writes the entries of a collection, and tells whether they are still what was written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from embedfit import progress
from embedfit.encode.encoder import Vectors
from embedfit.errors import DamagedError, StorageError
from embedfit.store.base import BATCH_BYTES, INDEX_AGAIN, Entry, Stamp, Store

_SAMPLE = 300
"""Number of entries of an existing collection that are compared with the data, spread evenly over all."""
_SAME = 0.99
"""Cosine from which two vectors are the same one, in whatever precision it was encoded."""


def fill(store: Store, collection: str, stamp: Stamp, entries: Sequence[Entry], vectors: Vectors) -> int:
    """Write the missing documents of a collection; return their number.

    A collection with anything else in it, or that is damaged (unreadable, unwritable, or with wrong vectors), is written anew.
    """

    def add(batch: list[int]) -> int:
        store.add(collection, [entries[row] for row in batch], vectors[batch])
        return len(batch)

    store.create(collection, stamp)
    batches: list[list[int]] | None = None
    begun = 0
    try:
        present = _present(store, collection, entries, vectors)
        if present is not None:
            batches = list(_batches(entries, [row for row, entry in enumerate(entries) if entry.id not in present], vectors.shape[1]))
            begun = add(batches[0]) if present and batches else 0
    except StorageError as error:
        # What is live is not dropped for a failure that may pass.
        if store.live().current == collection and not (isinstance(error, DamagedError) and error.again):
            raise
        batches = None
    if batches is None:
        store.drop(collection)
        store.create(collection, stamp)
        batches = list(_batches(entries, range(len(entries)), vectors.shape[1]))
    written = sum(map(len, batches))
    with progress.bar(f"writing to {store.where}", len(entries), len(entries) - written + begun) as done:
        for batch in batches[1 if begun else 0 :]:
            done(add(batch))
    store.finish(collection)
    return written


def is_whole(
    store: Store, collection: str, entries: Sequence[Entry], vectors_of: Callable[[list[int]], Vectors], min_recall: float
) -> bool:
    """Return whether a collection holds exactly these entries and finds them; content, vectors and graph are compared on a sample.

    Args:
        store: Store that holds the collection.
        collection: Name of the collection.
        entries: What it should hold.
        vectors_of: Function from row numbers to the vectors of these entries.
        min_recall: Share of the vectors that a search must find.
    """
    try:
        if store.ids(collection) != {entry.id for entry in entries} or not _is_unchanged(store, collection, entries):
            return False
        rows = list(range(0, len(entries), _step(len(entries))))
        if not rows:
            return True
        vectors = vectors_of(rows)
        wanted = {entries[row].id: vector for row, vector in zip(rows, vectors, strict=True)}
        return _has_vectors(store, collection, wanted) and _found(store, collection, vectors) >= min_recall
    except DamagedError as error:
        if not error.again:
            raise
        return False


def check_readable(store: Store, collection: str, ids: set[str]) -> None:
    """Check that a collection finds a sample of its own vectors.

    Raises:
        DamagedError: It does not.
    """
    sample = sorted(ids)[:: _step(len(ids))]
    if sample and (len(vectors := store.vectors(collection, sample)) < len(sample) or not _found(store, collection, [*vectors.values()])):
        raise DamagedError(f"{store.where}: {collection} is damaged: it does not find its own entries; fix: {INDEX_AGAIN}", again=True)


def _step(count: int) -> int:
    return max(1, -(-count // _SAMPLE))


def _found(store: Store, collection: str, vectors: Sequence[Vectors] | Vectors) -> float:
    """Return the share of stored vectors that a search finds."""
    asked = np.asarray([vector for vector in vectors if vector.any()], np.float32)
    if not len(asked):
        return 1.0
    return float(np.mean([bool(row) and row[0][1] >= _SAME for row in store.nearest(collection, asked, 1, {})]))


def _is_unchanged(store: Store, collection: str, entries: Sequence[Entry]) -> bool:
    sample = entries[:: _step(len(entries))]
    return not sample or store.entries(collection, [entry.id for entry in sample]) == {entry.id: entry for entry in sample}


def _present(store: Store, collection: str, entries: Sequence[Entry], vectors: Vectors) -> set[str] | None:
    """Return the ids in a collection; None if something else wrote to it, or if it is damaged."""
    ids = store.ids(collection)
    rows = [row for row, entry in enumerate(entries) if entry.id in ids]
    if len(rows) < len(ids) or not _is_unchanged(store, collection, [entries[row] for row in rows]):
        return None
    rows = sorted({*rows[:: _step(len(rows))], *rows[-_SAMPLE:]})  # a kill damages what was written last
    return ids if _has_vectors(store, collection, {entries[row].id: vectors[row] for row in rows}) else None


def _has_vectors(store: Store, collection: str, wanted: Mapping[str, Vectors]) -> bool:
    kept = store.vectors(collection, list(wanted))
    lengths = {id: _SAME * np.linalg.norm(vector) * np.linalg.norm(kept.get(id, vector)) for id, vector in wanted.items()}
    return all(id in kept and kept[id] @ vector >= lengths[id] for id, vector in wanted.items())


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
