"""The version that answers searches: as a Retriever, for single searches, and for what it is taught."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TypeAlias, TypeVar

from embedfit.data.dataset import Dataset, Document
from embedfit.encode.encoder import Encoder, complete
from embedfit.errors import ConfigError, DataError, StorageError, shown
from embedfit.retrieve.run import Run
from embedfit.searcher.searcher import Query, SearchHit
from embedfit.store.base import Filters, Stamp, Store
from embedfit.store.bridged import BridgedVersion
from embedfit.store.changes import Change, Changes
from embedfit.store.opening import check_encoder, open_encoder, open_searcher
from embedfit.store.stored import NEIGHBOURS
from embedfit.store.version import SearcherVersion, Version

_PATIENCE = 10.0
"""Seconds that a change waits for another writer."""
Opened: TypeAlias = Version | SearcherVersion | BridgedVersion
_Answer = TypeVar("_Answer")


class LiveIndex:
    """The live version of an index, as a Retriever, for single searches, and for what it is taught.

    Each search looks up the live version once and takes everything from it. The index knows the model or searcher that made it, and
    opens it at the first search. Encoders that are given are used in its place: given those of both versions, searches continue through a
    switch and a rollback without reading a model.

    Args:
        store: Store that holds the index.
        encoders: Encoders of queries, among them the one that encoded the live version.
        model: Name or path of the model, or of the run or searcher, if it is no longer where the index was made.
        neighbours: Number of examples that a search fetches.
    """

    def __init__(self, store: Store, *encoders: Encoder, model: str = "", neighbours: int = NEIGHBOURS) -> None:
        self.store, self.encoders, self.model, self.neighbours = store, encoders, model, neighbours
        self._opened: dict[str, Opened] = {}

    @cached_property
    def name(self) -> str:
        """Name for tables."""
        return f"{self.encoders[0].name} in {self.store.where}" if self.encoders else self.version().name

    @property
    def where(self) -> str:
        """Description of the index for messages."""
        return f"{self.store.where}: the index {self.store.index!r}"

    def version(self) -> Opened:
        """Return the version that is live now.

        Raises:
            ModelError: The live version was made with another model, or its model is gone.
            StorageError: There is no live version.
        """
        return self._followed(self._version)

    def _version(self) -> Opened:
        collection = self._live()
        if collection not in self._opened:
            opened = self._open(collection, self._stamp(collection))
            self._opened = {**dict(list(self._opened.items())[-1:]), collection: opened}  # the last one too, for a rollback
        return self._opened[collection]

    def stamp(self) -> Stamp:
        """Return what the live version was made from. No model is opened.

        Raises:
            StorageError: There is no live version.
        """
        return self._followed(lambda: self._stamp(self._live()))

    def _live(self) -> str:
        store = self.store
        if collection := store.live().current:
            return collection
        raise StorageError(f"{store.where}: there is no index {store.index!r}; fix: run 'embedfit index'")

    def _stamp(self, collection: str) -> Stamp:
        store = self.store
        try:
            return store.stamp(collection)
        except StorageError:
            if collection in store.collections():
                raise
            raise StorageError(f"{store.where}: the live collection {collection} is gone; fix: run 'embedfit index'") from None

    def _open(self, collection: str, stamp: Stamp) -> Opened:
        given = self._given(stamp)
        if stamp.searcher:
            parts = open_searcher(stamp, self.where, self.model)
            return SearcherVersion(self.store, collection, replace(parts, encoder=given or parts.encoder), self.neighbours)
        of = BridgedVersion if stamp.bridge else Version
        return of(self.store, collection, given or open_encoder(stamp, self.where, self.model))

    def _given(self, stamp: Stamp) -> Encoder | None:
        """Return the encoder that made a version, of those that were given; None if none was given."""
        if not self.encoders:
            return None
        encoder = next((encoder for encoder in self.encoders if complete(encoder).identity == stamp.fingerprint), self.encoders[0])
        check_encoder(stamp, encoder, self.where)
        return encoder

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return up to k documents of the live version for each query of a data set."""
        return self._followed(lambda: self.version().search(dataset, k))

    def find(self, query: Query, k: int = 10, filters: Filters | None = None) -> list[SearchHit]:
        """Return up to k documents of the live version for a query; see `SearcherVersion.find`."""
        return self._followed(lambda: self.version().find(query, k, filters))

    def _followed(self, ask: Callable[[], _Answer]) -> _Answer:
        """Ask the live version; again if it was replaced and removed meanwhile."""
        while True:
            collection = self.store.live().current
            try:
                return ask()
            except StorageError:
                if self.store.live().current == collection:
                    raise

    def add(self, query: Query, document_id: str, *, key: str = "", source: str = "person") -> str:
        """Add a labelled example. It counts from the next search on, in every process.

        Args:
            query: A text, or the fields of a record.
            document_id: Id of the document that answers it.
            key: Id of the example, by which it can be taken back; by default a new one. An example with this key is replaced.
            source: Where it came from.

        Returns:
            The key.

        Raises:
            ConfigError: The index was made of a model alone, or its searcher does not search by examples.
            DataError: The query or the document is unknown or wrong.
            StorageError: The store cannot be written, or another process writes for too long.
        """
        key = key or f"added-{secrets.token_hex(8)}"
        self._write(lambda version: version.example(query, document_id, key, source))
        return key

    def remove(self, key: str) -> None:
        """Take an example back, whether it was added or came with the version. Its text is removed, except from a version.

        Raises:
            DataError: There is no such example.
            StorageError: The store cannot be written, or another process writes for too long.
        """

        def removal(version: SearcherVersion) -> Change:
            version.changes.refresh()
            if not version.has_example(key):
                raise DataError("example", f"{shown(key)} is unknown", expected="the key of an example")
            return Change("example", key, gone=True)

        self._write(removal)

    def add_document(self, document: Document) -> None:
        """Add a document, or replace the one with the same id. It can be found from the next search on.

        Raises:
            ConfigError: The index was made of a model alone.
            DataError: The document has no text under the template, or the store cannot keep it.
            StorageError: The store cannot be written, or another process writes for too long.
        """
        self._write(lambda version: version.document(document))

    def remove_document(self, document_id: str) -> None:
        """Take a document back that was added. One that it replaced is there again.

        Raises:
            DataError: No such document was added.
            StorageError: The store cannot be written, or another process writes for too long.
        """

        def removal(version: SearcherVersion) -> Change:
            version.changes.refresh()
            if not any(change.key == document_id and not change.gone for change in version.changes if change.what == "document"):
                raise DataError("document", f"{shown(document_id)} was not added", expected="the id of a document that was added")
            return Change("document", document_id, gone=True)

        self._write(removal)

    def taught(self) -> list[Change]:
        """Return the latest change of each key since the version went live, oldest first, without opening its model."""
        return self._followed(self._taught)

    def _taught(self) -> list[Change]:
        collection = self._live()
        if not self._stamp(collection).searcher:
            return []
        changes = Changes(self.store, collection)
        changes.refresh()
        return list(changes)

    def _write(self, change_of: Callable[[SearcherVersion], Change]) -> None:
        """Write a change to the version that is live when it is written."""
        while True:
            version = self.version()
            if not isinstance(version, SearcherVersion):
                raise ConfigError(f"{self.where} was made of a model alone, which learns nothing; fix: index the searcher of a run")
            change = change_of(version)  # encodes, and so is outside of the lock
            with self.store.writing(_PATIENCE):
                if self.store.live().current == version.collection:
                    version.changes.append(change)
                    return
