"""Chroma, embedded in a folder or as a server.

Each collection holds its stamp in its metadata. Chroma has no aliases, so the live name is an empty collection whose metadata
names the live version; changing it is one transaction.

Readers of an embedded folder in other processes are safe as long as nobody writes the graph that they read: documents and examples
are never read before they are complete, nor written afterwards. Changes are, but their graph is never used, nor saved: see `create`. Two
writers corrupt the folder permanently, so one lock guards all of it.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import sqlite3
import uuid
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from embedfit.encode.encoder import Vectors
from embedfit.errors import DamagedError, StorageError, require
from embedfit.store.base import (
    CHANGES,
    INDEX_AGAIN,
    MOVE_AWAY,
    ClientStore,
    Entry,
    Filters,
    Live,
    Neighbours,
    Stamp,
    belongs,
    is_url,
    message_of,
    one_line,
    writable_folder,
)
from embedfit.store.values import is_plain, readings, token, tokens

if TYPE_CHECKING:
    from chromadb.api import ClientAPI
    from chromadb.api.collection_configuration import CreateHNSWConfiguration

_WHOLE = "embedfit"
"""Key of the metadata as JSON; the flat keys beside it exist for filters."""
_ODD = "embedfit:odd"
"""Key of the tokens of values that Chroma cannot hold flat, or would not match exactly."""
_RESERVED = ("#", "$", "chroma:", _WHOLE)
"""Prefixes that a key cannot have: Chroma refuses the first three, embedfit uses the last."""
_PAGE = 1000
_NEVER = 2**31 - 1
"""Number of writes after which Chroma saves the graph of a collection, for one whose graph is not to be saved."""
_GRAPH = re.compile(r"hnsw segment reader|pickle|Error (finding id|getting embedding)")
"""Messages about the files of a collection's graph that cannot be read."""
_DATABASE = re.compile(
    r"code: (11|26)\)|no such (table|column)|already exists|Failed to (get segments|pull logs)|Missing field|Inconsistent hash"
)
"""Messages about the database of all collections that cannot be read."""
_DROPPED = ".embedfit.dropped"
"""File beside the database that lists the folders of dropped collections, one per line, until they are deleted."""


class ChromaStore(ClientStore):
    """Collections in Chroma, with its default settings except for cosine distance.

    Args:
        location: Folder, or URL of a server.
        index: Live name of the index.
        api_key: API key, sent as a bearer token and in the header that Chroma Cloud reads.

    Raises:
        ConfigError: The URL has more than a host and port.
    """

    product = "Chroma"

    def __init__(self, location: str, index: str, api_key: str | None = None) -> None:
        require("chromadb", extra="chroma")
        super().__init__(location, index, api_key)

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """Exceptions that chromadb and its database raise."""
        import httpx
        from chromadb.errors import ChromaError

        return (ChromaError, httpx.HTTPError, ValueError, OSError, sqlite3.Error)

    def fix_of(self, error: BaseException) -> str:
        """Return how to repair the damage that an error shows; empty if it shows none."""
        message = str(error)
        if _GRAPH.search(message):
            return INDEX_AGAIN
        return MOVE_AWAY if _DATABASE.search(message) or not isinstance(error, self.errors) else ""

    @cached_property
    def _client(self) -> ClientAPI:
        import chromadb
        from chromadb.config import Settings

        settings = Settings(anonymized_telemetry=False)
        if not is_url(self.location):
            folder = writable_folder(self.location)
            try:
                return chromadb.PersistentClient(folder, settings)
            except (AttributeError, ValueError) as error:  # Chroma cannot use or clean up what it could not open
                raise DamagedError(f"{self.where}: is damaged ({message_of(error.__context__ or error, ())}); fix: {MOVE_AWAY}") from None
        url = urlsplit(self.location)
        headers = {"Authorization": f"Bearer {self.api_key}", "X-Chroma-Token": self.api_key} if self.api_key else {}
        ssl = url.scheme == "https"
        return chromadb.HttpClient(url.hostname or "", url.port or (443 if ssl else 8000), ssl, headers, settings)

    def _collection(self, name: str) -> Any:
        # With its default embedding function, Chroma would download a model.
        return self._client.get_collection(name, embedding_function=None)

    @contextlib.contextmanager
    def writing(self, wait: float = 0) -> Iterator[None]:
        """Lock the folder, or the server's index for the processes of this machine."""
        with super().writing(wait):
            self._remove_dropped()
            yield

    @one_line
    def live(self) -> Live:
        """Return the collections behind the live name."""
        from chromadb.errors import NotFoundError

        if not is_url(self.location) and not (Path(self.location) / "chroma.sqlite3").exists():
            return Live()
        try:
            metadata = self._collection(self.index).metadata or {}
        except NotFoundError:
            return Live()
        if "live" not in metadata:
            raise StorageError(f"{self.where}: the collection {self.index!r} is not embedfit's; fix: choose another store.index")
        return Live(metadata["live"], metadata.get("previous", ""))

    @one_line
    def switch(self, live: Live) -> None:
        """Point the live name to other collections, atomically for all readers."""
        metadata = {"live": live.current, "previous": live.previous}
        self._client.get_or_create_collection(self.index, metadata=metadata, embedding_function=None).modify(metadata=metadata)

    @one_line
    def collections(self) -> list[str]:
        """Return the names of all collections of this index."""
        return [item.name for item in self._client.list_collections() if belongs(item.name, self.index)]

    @one_line
    def create(self, collection: str, stamp: Stamp) -> None:
        """Create an empty collection."""
        hnsw: CreateHNSWConfiguration = {"space": "cosine"}
        if collection.endswith(CHANGES):  # readers and the writer would save its graph over each other
            hnsw["sync_threshold"] = _NEVER
        self._client.get_or_create_collection(
            collection, metadata={"stamp": stamp.to_json()}, configuration={"hnsw": hnsw}, embedding_function=None
        )

    @one_line
    def stamp(self, collection: str) -> Stamp:
        """Return the stamp of a collection."""
        return Stamp.from_json((self._collection(collection).metadata or {}).get("stamp", "null"), self.where)

    @one_line
    def ids(self, collection: str) -> set[str]:
        """Return the ids of all documents in a collection."""
        documents = self._collection(collection)
        ids: set[str] = set()
        while page := documents.get(include=[], limit=_PAGE * 10, offset=len(ids))["ids"]:
            ids.update(page)
        return ids

    @one_line
    def add(self, collection: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        """Add new documents."""
        documents, size = self._collection(collection), self._client.get_max_batch_size()
        for start in range(0, len(entries), size):
            batch = entries[start : start + size]
            documents.upsert(
                ids=[entry.id for entry in batch],
                embeddings=np.asarray(vectors[start : start + size], np.float32),
                documents=[entry.text for entry in batch],
                metadatas=[_stored(entry.metadata) for entry in batch],
            )

    def finish(self, collection: str) -> None:
        """Do nothing: Chroma builds its graph as documents are added."""

    @one_line
    def nearest(self, collection: str, vectors: Vectors, k: int, filters: Filters) -> list[Neighbours]:
        """Return up to k documents for each query vector."""
        hits = self._collection(collection).query(query_embeddings=vectors, n_results=k, where=_condition(filters), include=["distances"])
        return [[(id, 1 - distance) for id, distance in zip(*row, strict=True)] for row in zip(hits["ids"], hits["distances"], strict=True)]

    @one_line
    def entries(self, collection: str, ids: Sequence[str]) -> dict[str, Entry]:
        """Return documents by id."""
        if not ids:  # Chroma refuses an empty list
            return {}
        page = self._collection(collection).get(ids=list(ids), include=["documents", "metadatas"])
        rows = zip(page["ids"], page["documents"], page["metadatas"], strict=True)
        return {id: Entry(id, text, json.loads(metadata[_WHOLE])) for id, text, metadata in rows if metadata and _WHOLE in metadata}

    @one_line
    def vectors(self, collection: str, ids: Sequence[str]) -> dict[str, Vectors]:
        """Return vectors by id."""
        if not ids:
            return {}
        page = self._collection(collection).get(ids=list(ids), include=["embeddings"])
        return dict(zip(page["ids"], np.asarray(page["embeddings"], np.float32), strict=True))

    @one_line
    def delete(self, collection: str, ids: Sequence[str]) -> None:
        """Delete entries by id."""
        if ids:
            self._collection(collection).delete(ids=list(ids))

    @one_line
    def drop(self, collection: str) -> None:
        """Delete a collection and the folder of its graph, which Chroma itself leaves behind."""
        dropped = [] if is_url(self.location) else self._folders(self._collection(collection).id)
        if dropped:
            with open(Path(self.location) / _DROPPED, "a", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in dropped)
        self._client.delete_collection(collection)
        self._remove_dropped()

    def _folders(self, collection_id: Any = None) -> list[str]:
        """Return the graph folders in Chroma's database: those of one collection, or all."""
        with contextlib.closing(sqlite3.connect(Path(self.location) / "chroma.sqlite3", timeout=60)) as database:
            rows = database.execute("SELECT id, collection FROM segments WHERE scope = 'VECTOR'").fetchall()
        return [name for name, collection in rows if collection_id is None or collection == str(collection_id)]

    @one_line
    def _remove_dropped(self) -> None:
        """Delete the folders of collections that this or an earlier process dropped, and no other folders."""
        path = Path(self.location) / _DROPPED
        if is_url(self.location) or not path.exists():
            return
        known = set(self._folders())
        for name in path.read_text(encoding="utf-8").split():
            with contextlib.suppress(ValueError):
                if str(uuid.UUID(name)) == name and name not in known:
                    shutil.rmtree(path.with_name(name), ignore_errors=True)
        path.unlink()


def _stored(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as Chroma stores it: flat for filters, and whole as JSON."""
    flat = {key: value for key, value in metadata.items() if _holds(key, value)}
    odd = tokens(metadata, _holds)
    return {**flat, **({_ODD: odd} if odd else {}), _WHOLE: json.dumps(metadata)}


def _holds(key: str, value: Any) -> bool:
    """Return whether Chroma can filter by a key and a value: scalars, and lists of scalars of one type."""

    def plain(value: Any) -> bool:
        if isinstance(value, float):
            return is_plain(value)
        return isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**63)

    one_kind = isinstance(value, list) and all(map(plain, value)) and len(set(map(type, value))) == 1
    return bool(key) and not key.startswith(_RESERVED) and (plain(value) or one_kind)


def _equals(key: str, reading: Any) -> dict[str, Any]:
    """Return the condition that a field equals a value. Chroma alone would truncate a fraction where the field is a whole number."""
    equal = {key: {"$eq": reading}}
    return {"$and": [equal, {key: {"$ne": int(reading)}}]} if isinstance(reading, float) else equal


def _condition(filters: Filters) -> dict[str, Any] | None:
    conditions: list[dict[str, Any]] = []
    for key, value in filters.items():
        any_of: list[dict[str, Any]] = [{_ODD: {"$contains": token(key, reading)}} for reading in readings(value)]
        for reading in readings(value):
            if _holds(key, reading):
                any_of += [_equals(key, reading), {key: {"$contains": reading}}]
                if type(reading) is int and _holds(key, float(reading)):  # Chroma finds no integer in a list of floats
                    any_of.append({key: {"$contains": float(reading)}})
        conditions.append({"$or": any_of} if len(any_of) > 1 else any_of[0])
    return {"$and": conditions} if len(conditions) > 1 else conditions[0] if conditions else None
