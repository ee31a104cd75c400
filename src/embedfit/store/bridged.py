"""A new model over an old index: a bridge answers at once, while documents are embedded again, part by part.

A bridged version is an empty collection whose stamp names others: the old documents, which the bridge searches, and the parts that hold
documents embedded again. All of them are complete before the stamp names them, and are never written afterwards. So each step is one
switch of the live name, an answer comes from one state alone, and a killed call goes on where it stopped.

    go live   the bridge over the old documents; documents that are new or have changed are embedded first
    part      the documents that the queries find most often and the newest ones; each part is twice as large as the one before
    finish    an ordinary version of all documents, by `embedfit.store.versions.index_documents`
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.dataset import Dataset
from embedfit.encode.bridge import Bridge, load_bridge
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Vectors, complete
from embedfit.errors import ConfigError, ModelError, StorageError
from embedfit.files import digest
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import Retriever, Run
from embedfit.searcher.searcher import Query, SearchHit
from embedfit.store.base import Entry, Filters, Live, Neighbours, Stamp, Store, changed, check_entries, emptied
from embedfit.store.entries import documents_digest, entries_of
from embedfit.store.filling import fill
from embedfit.store.opening import opens_of
from embedfit.store.version import can_match, check_documents, check_width, hit_of, run_of_neighbours, text_of
from embedfit.store.versions import Indexed, clear, index_documents, stamp_of

PARTS = 4
"""Number of parts; the last is the finished version itself."""
_SMALLEST = 1000
"""Fewest documents that are worth a part of their own."""
_PAGE = 1000


@dataclass(frozen=True)
class Plan:
    """What a bridged version is made of, as its stamp says.

    Attributes:
        old: Collection of the old model's documents.
        parts: Collections of documents that were embedded again.
        gone: Ids of old documents that are not in the data any more.
        path: File of the bridge.
        bridge: Fingerprint of the bridge.
    """

    old: str
    parts: tuple[str, ...]
    gone: tuple[str, ...]
    path: str
    bridge: str

    @property
    def collections(self) -> set[str]:
        """Names of the collections."""
        return {self.old, *self.parts}

    def to_json(self) -> str:
        """Return the plan as JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def of(cls, stamp: Stamp) -> Plan:
        """Return the plan of a bridged version's stamp."""
        payload = json.loads(stamp.bridge)
        return cls(**{**payload, "parts": tuple(payload["parts"]), "gone": tuple(payload["gone"])})


class BridgedVersion:
    """Documents of an old model behind a bridge, and those that were embedded again, as a Retriever and for single searches.

    Args:
        store: Store that holds the version.
        collection: Name of the version.
        encoder: The new model.

    Raises:
        ModelError: The file of the bridge is gone, damaged or another one.
    """

    def __init__(self, store: Store, collection: str, encoder: Encoder) -> None:
        self.store, self.collection, self.encoder = store, collection, encoder
        self.stamp = store.stamp(collection)
        self.plan = Plan.of(self.stamp)
        self.name = f"{encoder.name}, bridge in {store.where}"
        self.bridge = load_bridge(self.plan.path)
        if self.bridge.fingerprint != self.plan.bridge:
            raise ModelError(f"{self.plan.path}: is another bridge than the live index has; fix: run 'embedfit index --bridge' again")
        self._hidden = set(self.plan.gone).union(*(store.ids(part) for part in self.plan.parts))
        self._total = store.stamp(self.plan.old).documents

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return up to k documents for each query of a data set.

        Raises:
            StorageError: The documents of the version differ from those of the data set.
        """
        check_documents(self.store, self.collection, self.stamp, dataset)
        vectors = self.encoder.encode(dataset.query_texts(), "query")

        def nearest(depth: int) -> list[Neighbours]:
            found = self._nearest(vectors, depth, {})
            for id, _, place in itertools.chain.from_iterable(found):
                if id not in dataset.corpus:
                    raise changed(self.store, place)
            return [[(id, score) for id, score, _ in row] for row in found]

        return run_of_neighbours(dataset, nearest, k)

    def exact(self, parts: Any = None) -> Retriever:
        """Return exact search with all documents embedded again; parts of a searcher are ignored."""
        return DenseRetriever(self.encoder, self.stamp.template)

    def find(self, query: Query, k: int = 10, filters: Filters | None = None) -> list[SearchHit]:
        """Return up to k documents for a query, best first; a score is the new model's cosine similarity, or the bridge's estimate of it.

        Args:
            query: Query text.
            k: Maximum number of documents.
            filters: Metadata that a document must have; see `embedfit.store.base.Filters`.

        Raises:
            DataError: The query is no text, or contains a lone surrogate.
            StorageError: The store cannot be reached, or something else changed a collection.
        """
        text, filters = text_of(query), filters or {}
        vectors = self.encoder.encode([text], "query")
        check_width(self.store, self.stamp, vectors, self.encoder)
        if not can_match(self.store, filters):
            return []
        [found] = self._nearest(vectors, min(k, self.stamp.documents), filters)
        hits = []
        entries = {
            name: self.store.entries(name, [id for id, _, place in found if place == name]) for name in {place for _, _, place in found}
        }
        for id, score, place in found:
            if id not in entries[place]:
                raise changed(self.store, place)
            hits.append(hit_of(entries[place][id], score))
        return hits

    def _nearest(self, vectors: Vectors, k: int, filters: Filters) -> list[list[tuple[str, float, str]]]:
        """Return (id, score, collection) of the best documents for each query, on the new model's scale."""
        found: list[list[tuple[str, float, str]]] = [[] for _ in vectors]
        for part in self.plan.parts:
            for row, neighbours in enumerate(self.store.nearest(part, vectors, k, filters)):
                found[row] += [(id, float(score), part) for id, score in neighbours]
        bridged = self.bridge.apply(vectors)
        for row, neighbours in enumerate(self._old(bridged.vectors, k, filters)):
            slope, offset = float(bridged.slopes[row]), float(bridged.offsets[row])
            found[row] += [(id, slope * score + offset, self.plan.old) for id, score in neighbours]
        return [sorted(row, key=lambda hit: (-hit[1], hit[0]))[:k] for row in found]

    def _old(self, vectors: Vectors, k: int, filters: Filters) -> list[Neighbours]:
        """Return the k nearest old documents that were not embedded again."""
        wanted = min(k, max(0, self._total - len(self._hidden)))
        depth, found = min(self._total, k + 16), list[Neighbours]()
        while wanted:
            rows = self.store.nearest(self.plan.old, vectors, depth, filters)
            if not filters and not all(rows):
                raise emptied(self.store, self.plan.old)
            found = [[hit for hit in row if hit[0] not in self._hidden][:k] for row in rows]
            # A filter may leave fewer documents than are wanted; then a deeper search finds no more.
            if depth >= self._total or all(len(row) >= wanted or len(all_) < depth for row, all_ in zip(found, rows, strict=True)):
                break
            depth = min(self._total, 2 * depth)
        return found or [[] for _ in vectors]


def bridge_documents(
    store: Store,
    dataset: Dataset,
    encoder: Encoder,
    template: str,
    bridge: Callable[[Stamp], Path | None],
    *,
    min_recall: float = 0.95,
    went_live: Callable[[], None] = lambda: None,
) -> Indexed | None:
    """Let a new model answer over the documents of the live version, embed them again part by part, and finish with an ordinary version.

    Args:
        store: Store to write to.
        dataset: Documents, and queries that tell which are searched most and that check the finished version.
        encoder: The new model.
        template: Document template.
        bridge: Function from the stamp of the live version to the file of a bridge that may go live, or None if none may.
        min_recall: Recall against exact search below which the finished version does not go live.
        went_live: Function that is called when the bridge answers searches.

    Returns:
        The finished version; None if the bridge may not go live. Then nothing has changed.

    Raises:
        ConfigError: There is no live version to bridge, or it was made of a searcher.
        DataError: The store cannot keep a document.
        StorageError: Another process is writing, the store cannot be reached, or recall is too low.
    """
    entries = entries_of(dataset, template)
    check_entries(entries, store)
    cached = encoder if isinstance(encoder, CachedEncoder) else CachedEncoder(encoder)
    identity = complete(encoder).identity
    while (current := _live_stamp(store)).bridge or current.fingerprint != identity:
        digest_now = documents_digest(entries)
        if not current.bridge or current.fingerprint != identity or current.digest != digest_now:
            path = bridge(_old_stamp(store, current))
            if path is None:
                return None
            _go_live(store, cached, template, entries, load_bridge(path), path)
            went_live()
            continue
        plan = Plan.of(current)
        part = _next_part(store, plan, entries, dataset, cached)
        if not part:
            break
        console.note(f"Embedding {len(part):,} documents again; {_left(store, plan, entries) - len(part):,} are left after them")
        _add_part(store, current, cached, template, part, entries)
    old = Plan.of(current).old if current.bridge else ""
    indexed = index_documents(store, dataset, cached, template, min_recall=min_recall)
    with store.writing():
        live = store.live()
        old = old or _bridged_over(store, live.previous)
        if old and live.current == indexed.collection:
            live = Live(live.current, old)
            store.switch(live)
            clear(store, live)
    return replace(indexed, previous=live.previous)


def _live_stamp(store: Store) -> Stamp:
    """Return the stamp of the live version, which must be one of documents alone."""
    current = store.live().current
    if not current:
        raise ConfigError(f"{store.where}: there is no index {store.index!r} to bridge; fix: run 'embedfit index' without --bridge")
    stamp = store.stamp(current)
    if stamp.searcher:
        raise ConfigError(f"{store.where}: the live index is a run's searcher, and a bridge needs documents alone; fix: leave out --bridge")
    return stamp


def _old_stamp(store: Store, stamp: Stamp) -> Stamp:
    """Return the stamp of the documents that a bridge searches: the live ones, or those of the bridge that is live."""
    return store.stamp(Plan.of(stamp).old) if stamp.bridge else stamp


def _bridged_over(store: Store, collection: str) -> str:
    """Return the old documents of a bridged version; empty if it is another one."""
    if collection not in store.collections():
        return ""
    stamp = store.stamp(collection)
    return Plan.of(stamp).old if stamp.bridge else ""


def _go_live(store: Store, encoder: CachedEncoder, template: str, entries: Sequence[Entry], bridge: Bridge, path: Path) -> None:
    """Make the bridge answer. Documents that are new or have changed are embedded first."""
    with store.writing():
        live = store.live()
        old = _bridged_over(store, live.current) or live.current
        stamp = store.stamp(old)
        gone, urgent = _changes(store, old, stamp, entries, template)
        parts = (_write_part(store, encoder, template, urgent),) if urgent else ()
        plan = Plan(old, parts, tuple(gone), str(path.resolve()), bridge.fingerprint)
        _switch(store, encoder, template, entries, plan)


def _changes(store: Store, old: str, stamp: Stamp, entries: Sequence[Entry], template: str) -> tuple[list[str], list[Entry]]:
    """Return the ids of documents that are gone, and the documents that are new or have changed since the old version."""
    if stamp.digest == documents_digest(entries):
        return [], []
    known, ids = store.ids(old), [entry.id for entry in entries]
    same: set[str] = set()
    for start in range(0, len(ids), _PAGE):
        page = {entry.id: entry for entry in entries[start : start + _PAGE] if entry.id in known}
        kept = store.entries(old, list(page))
        same |= {id for id, entry in page.items() if kept.get(id) == entry}
    return sorted(known - set(ids)), [entry for entry in entries if entry.id not in same]


def _next_part(store: Store, plan: Plan, entries: Sequence[Entry], dataset: Dataset, encoder: CachedEncoder) -> list[Entry]:
    """Return the documents to embed next; none if all that are left go into the finished version."""
    done = set[str]().union(*(store.ids(part) for part in plan.parts))
    left = [entry for entry in entries if entry.id not in done]
    size = max(_SMALLEST, -(-len(entries) // (2**PARTS - 1)))
    while size <= len(entries) - len(left):  # each part is as large as all before it, and a bit more
        size *= 2
    if len(left) <= size:
        return []
    counts = _searched(store, plan, dataset, encoder)
    left.reverse()  # the newest first; the sort keeps that order among documents that are found equally often
    return sorted(left, key=lambda entry: -counts.get(entry.id, 0))[:size]


def _searched(store: Store, plan: Plan, dataset: Dataset, encoder: CachedEncoder) -> Mapping[str, int]:
    """Return document id -> number of the data set's queries that find it."""
    counts: Counter[str] = Counter()
    if dataset.queries:
        vectors = load_bridge(plan.path).apply(encoder.encode(dataset.query_texts(), "query")).vectors
        for start in range(0, len(vectors), _PAGE):
            for neighbours in store.nearest(plan.old, vectors[start : start + _PAGE], 10, {}):
                counts.update(id for id, _ in neighbours)
    return counts


def _left(store: Store, plan: Plan, entries: Sequence[Entry]) -> int:
    return len(entries) - sum(store.stamp(part).documents for part in plan.parts)


def _add_part(store: Store, current: Stamp, encoder: CachedEncoder, template: str, part: Sequence[Entry], entries: Sequence[Entry]) -> None:
    """Embed documents again, and let the version that has them answer."""
    encoder.encode([entry.text for entry in part], "document")  # outside of the lock, since it takes long; kept in the cache
    with store.writing():
        stamp = _live_stamp(store)
        if stamp != current:  # another process was here
            return
        plan = Plan.of(stamp)
        plan = replace(plan, parts=(*plan.parts, _write_part(store, encoder, template, part)))
        _switch(store, encoder, template, entries, plan)


def _write_part(store: Store, encoder: CachedEncoder, template: str, part: Sequence[Entry]) -> str:
    name = f"{store.index}_{digest([complete(encoder).identity, template, documents_digest(part), 'part'])[:12]}"
    vectors = encoder.encode([entry.text for entry in part], "document")
    fill(store, name, stamp_of(encoder, vectors.shape[1], template, part, *opens_of(encoder)), part, vectors)
    return name


def _switch(store: Store, encoder: CachedEncoder, template: str, entries: Sequence[Entry], plan: Plan) -> None:
    """Make a bridged version live; the version to go back to is the old one."""
    width = store.stamp(plan.parts[0]).dimension if plan.parts else encoder.encode([entries[0].text], "document").shape[1]
    stamp = replace(stamp_of(encoder, width, template, entries, *opens_of(encoder)), bridge=plan.to_json())
    name = f"{store.index}_{digest([stamp.fingerprint, template, stamp.digest, plan.to_json()])[:12]}"
    store.create(name, stamp)
    if store.stamp(name) != stamp:
        raise StorageError(f"{store.where}: {name} holds something else; fix: run 'embedfit index' without --bridge")
    live = Live(name, plan.old)
    store.switch(live)
    clear(store, live)
