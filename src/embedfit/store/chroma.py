"""Chroma, embedded in a folder or as a server.

A collection of a version holds its stamp in its metadata. Chroma has no aliases, so the live name is an empty collection whose
metadata says which version answers; changing that is one transaction.

Embedded, readers in other processes are safe as long as they read what nobody writes: a collection is never read before it is
whole, nor written after. Two writers damage the folder for good, so one lock guards all of it.
"""

from __future__ import annotations

import contextlib
import json
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
from embedfit.errors import StorageError, require
from embedfit.store.base import (
    Entry,
    Filters,
    Found,
    Live,
    Stamp,
    belongs,
    check_url,
    is_plain,
    is_url,
    one_line,
    one_writer,
    readings,
    token,
    tokens,
    writable_folder,
)

if TYPE_CHECKING:
    from chromadb.api import ClientAPI

_WHOLE = "embedfit"
"""Key of the metadata as JSON; the flat ones beside it are there to be filtered by."""
_ODD = "embedfit:odd"
"""Key of the tokens of what Chroma cannot hold flat, or would not find exactly."""
_RESERVED = ("#", "$", "chroma:", _WHOLE)
"""What a key may not begin with: Chroma refuses the first three, the last is ours."""
_PAGE = 1000
_DROPPED = ".embedfit.dropped"
"""File beside the database: folders of collections that were dropped, one a line, until they are removed."""


class ChromaStore:
    """Collections in Chroma, with its default settings but for cosine distance.

    Args:
        location: A folder, or the URL of a server.
        index: The live name.
        api_key: Sent to the server as a bearer token, and as Chroma Cloud wants it.

    Raises:
        ConfigError: The location is a URL that says more than the server.
    """

    takes_nul = True
    longest_id: int | None = None

    def __init__(self, location: str, index: str, api_key: str | None = None) -> None:
        require("chromadb", extra="chroma")
        check_url(location)
        self.location, self.index, self.api_key = location, index, api_key
        self.where = f"Chroma, {location}"
        self.secrets: tuple[str, ...] = (api_key,) if api_key else ()

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What chromadb raises."""
        import httpx
        from chromadb.errors import ChromaError

        return (ChromaError, httpx.HTTPError, ValueError, OSError, sqlite3.Error)

    @cached_property
    def _client(self) -> ClientAPI:
        import chromadb
        from chromadb.config import Settings

        settings = Settings(anonymized_telemetry=False)
        if not is_url(self.location):
            return chromadb.PersistentClient(writable_folder(self.location), settings)
        url = urlsplit(self.location)
        headers = {"Authorization": f"Bearer {self.api_key}", "X-Chroma-Token": self.api_key} if self.api_key else {}
        ssl = url.scheme == "https"
        return chromadb.HttpClient(url.hostname or "", url.port or (443 if ssl else 8000), ssl, headers, settings)

    def _collection(self, name: str) -> Any:
        # Without an embedding function, or Chroma would want to download a model.
        return self._client.get_collection(name, embedding_function=None)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Keep other writers out: of the folder, or on this machine."""
        with one_writer(self.where, self.index, None if is_url(self.location) else writable_folder(self.location)):
            self._remove_dropped()
            yield

    @one_line
    def live(self) -> Live:
        """Return which collection answers."""
        from chromadb.errors import NotFoundError

        if not is_url(self.location) and not (Path(self.location) / "chroma.sqlite3").exists():
            return Live()
        try:
            said = self._collection(self.index).metadata or {}
        except NotFoundError:
            return Live()
        if "live" not in said:
            raise StorageError(f"{self.where}: the collection {self.index!r} is not embedfit's; fix: another store.index")
        return Live(said["live"], said.get("previous", ""))

    @one_line
    def switch(self, live: Live) -> None:
        """Let another collection answer, for every reader from one moment on."""
        said = {"live": live.current, "previous": live.previous}
        self._client.get_or_create_collection(self.index, metadata=said, embedding_function=None).modify(metadata=said)

    @one_line
    def collections(self) -> list[str]:
        """Return the names of the collections of this index."""
        return [one.name for one in self._client.list_collections() if belongs(one.name, self.index)]

    @one_line
    def create(self, collection: str, stamp: Stamp) -> None:
        """Make an empty collection."""
        self._client.get_or_create_collection(
            collection, metadata={"stamp": stamp.to_json()}, configuration={"hnsw": {"space": "cosine"}}, embedding_function=None
        )

    @one_line
    def stamp(self, collection: str) -> Stamp:
        """Return what a collection was made from."""
        return Stamp.from_json((self._collection(collection).metadata or {}).get("stamp", "null"), self.where)

    @one_line
    def ids(self, collection: str) -> set[str]:
        """Return the ids of the documents that are in a collection."""
        found = self._collection(collection)
        ids: set[str] = set()
        while page := found.get(include=[], limit=_PAGE * 10, offset=len(ids))["ids"]:
            ids.update(page)
        return ids

    @one_line
    def add(self, collection: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        """Put documents in that are not there yet."""
        found, most = self._collection(collection), self._client.get_max_batch_size()
        for start in range(0, len(entries), most):
            some = entries[start : start + most]
            found.upsert(
                ids=[entry.id for entry in some],
                embeddings=np.asarray(vectors[start : start + most], np.float32),
                documents=[entry.text for entry in some],
                metadatas=[_kept(entry.metadata) for entry in some],
            )

    def finish(self, collection: str) -> None:
        """Do nothing: Chroma builds its graph as documents come."""

    @one_line
    def nearest(self, collection: str, vectors: Vectors, k: int, filters: Filters) -> list[Found]:
        """Return up to k documents for each vector."""
        found = self._collection(collection).query(query_embeddings=vectors, n_results=k, where=_where(filters), include=["distances"])
        return [
            [(id, 1 - distance) for id, distance in zip(*row, strict=True)] for row in zip(found["ids"], found["distances"], strict=True)
        ]

    @one_line
    def entries(self, collection: str, ids: Sequence[str]) -> dict[str, Entry]:
        """Return documents by their ids."""
        if not ids:  # Chroma takes no empty list
            return {}
        found = self._collection(collection).get(ids=list(ids), include=["documents", "metadatas"])
        rows = zip(found["ids"], found["documents"], found["metadatas"], strict=True)
        return {id: Entry(id, text, json.loads(metadata[_WHOLE])) for id, text, metadata in rows if metadata and _WHOLE in metadata}

    @one_line
    def drop(self, collection: str) -> None:
        """Remove a collection, and the folder of its graph, which Chroma itself leaves behind."""
        dropped = [] if is_url(self.location) else self._folders(self._collection(collection).id)
        if dropped:
            with open(Path(self.location) / _DROPPED, "a", encoding="utf-8") as file:
                file.writelines(f"{name}\n" for name in dropped)
        self._client.delete_collection(collection)
        self._remove_dropped()

    def _folders(self, collection_id: Any = None) -> list[str]:
        """Return the names of the folders that Chroma's database knows, of one collection or of all."""
        with contextlib.closing(sqlite3.connect(Path(self.location) / "chroma.sqlite3", timeout=60)) as database:
            rows = database.execute("SELECT id, collection FROM segments WHERE scope = 'VECTOR'").fetchall()
        return [name for name, collection in rows if collection_id is None or collection == str(collection_id)]

    @one_line
    def _remove_dropped(self) -> None:
        """Remove the folders of collections that this or an earlier process has dropped, and no others."""
        path = Path(self.location) / _DROPPED
        if is_url(self.location) or not path.exists():
            return
        known = set(self._folders())
        for name in path.read_text(encoding="utf-8").split():
            with contextlib.suppress(ValueError):
                if str(uuid.UUID(name)) == name and name not in known:
                    shutil.rmtree(path.with_name(name), ignore_errors=True)
        path.unlink()

    def close(self) -> None:
        """Let go of files and connections."""
        if "_client" in self.__dict__:
            self.__dict__.pop("_client").close()


def _kept(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return metadata as Chroma keeps it: flat to be filtered by, and whole."""
    flat = {key: value for key, value in metadata.items() if _holds(key, value)}
    odd = tokens(metadata, _holds)
    return {**flat, **({_ODD: odd} if odd else {}), _WHOLE: json.dumps(metadata)}


def _holds(key: str, value: Any) -> bool:
    """Return whether Chroma can filter by a key and a value: plain values, and lists of one kind of them."""

    def plain(value: Any) -> bool:
        if isinstance(value, float):
            return is_plain(value)
        return isinstance(value, str) or (isinstance(value, int) and abs(value) < 2**63)

    one_kind = isinstance(value, list) and all(map(plain, value)) and len(set(map(type, value))) == 1
    return bool(key) and not key.startswith(_RESERVED) and (plain(value) or one_kind)


def _equals(key: str, reading: Any) -> dict[str, Any]:
    """Return the condition that a field is a value: Chroma alone would cut a fraction where the field is a whole number."""
    equal = {key: {"$eq": reading}}
    return {"$and": [equal, {key: {"$ne": int(reading)}}]} if isinstance(reading, float) else equal


def _where(filters: Filters) -> dict[str, Any] | None:
    conditions: list[dict[str, Any]] = []
    for key, value in filters.items():
        any_of: list[dict[str, Any]] = [{_ODD: {"$contains": token(key, reading)}} for reading in readings(value)]
        for reading in readings(value):
            if _holds(key, reading):
                any_of += [_equals(key, reading), {key: {"$contains": reading}}]
                if type(reading) is int and _holds(key, float(reading)):  # a list of floats holds no whole number of itself
                    any_of.append({key: {"$contains": float(reading)}})
        conditions.append({"$or": any_of} if len(any_of) > 1 else any_of[0])
    return {"$and": conditions} if len(conditions) > 1 else conditions[0] if conditions else None
