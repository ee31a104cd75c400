"""Qdrant: a server, or the local mode of its client in a folder.

Each collection holds its stamp in its metadata. The live name is an alias, so any client can search it; a second alias names
the previous version. Both change in one request.

Local mode scans all vectors, writes slowly and admits one process at a time. It is meant for trials.
"""

from __future__ import annotations

import json
import time
import uuid
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embedfit.encode.encoder import Vectors
from embedfit.errors import DamagedError, StorageError, require
from embedfit.store.base import (
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
from embedfit.store.values import is_exact, is_plain, readings, token, tokens

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

_PAGE = 10_000
_IDS = uuid.UUID("6f1e7c58-63a4-4b0e-9d53-2b1f5e0c9a77")
"""Namespace in which a document id is hashed to a UUID: Qdrant's own ids are numbers or UUIDs."""


class QdrantStore(ClientStore):
    """Collections in Qdrant, with its default settings and cosine distance.

    Args:
        location: Folder for local mode, or URL of a server.
        index: Live name of the index.
        api_key: API key of the server.

    Raises:
        ConfigError: The URL has more than a host and port.
    """

    product = "Qdrant"

    def __init__(self, location: str, index: str, api_key: str | None = None) -> None:
        require("qdrant_client", extra="qdrant")
        super().__init__(location, index, api_key)

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """Exceptions that qdrant-client raises; local mode raises plain ValueError and RuntimeError."""
        from qdrant_client.http.exceptions import ApiException

        return (ApiException, ValueError, RuntimeError, OSError)

    @cached_property
    def _client(self) -> QdrantClient:
        from qdrant_client import QdrantClient

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about keys over http, and about the size of local folders
            if is_url(self.location):
                return QdrantClient(url=self.location, api_key=self.api_key, timeout=60, check_compatibility=False)
            folder = str(writable_folder(self.location))
            try:
                return QdrantClient(path=folder, force_disable_check_same_thread=True)
            except (RuntimeError, OSError):  # another process has it, or it cannot be written
                raise
            except Exception as error:  # it reads JSON, SQLite and pickles, which fail in many ways
                raise DamagedError(f"{self.where}: is damaged ({message_of(error, ())}); fix: {MOVE_AWAY}") from None

    @property
    def _previous(self) -> str:
        return f"{self.index}_previous"

    @one_line
    def live(self) -> Live:
        """Return the collections behind the live name."""
        if not is_url(self.location) and not (Path(self.location) / "meta.json").exists():
            return Live()
        aliases = {alias.alias_name: alias.collection_name for alias in self._client.get_aliases().aliases}
        return Live(aliases.get(self.index, ""), aliases.get(self._previous, ""))

    @one_line
    def switch(self, live: Live) -> None:
        """Point the live name to other collections, atomically for all readers."""
        from qdrant_client import models

        changes: list[Any] = []
        for alias, collection in ((self.index, live.current), (self._previous, live.previous)):
            changes.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
            if collection:
                create = models.CreateAlias(collection_name=collection, alias_name=alias)
                changes.append(models.CreateAliasOperation(create_alias=create))
        self._client.update_collection_aliases(changes)

    @one_line
    def collections(self) -> list[str]:
        """Return the names of all collections of this index."""
        return [item.name for item in self._client.get_collections().collections if belongs(item.name, self.index)]

    @one_line
    def create(self, collection: str, stamp: Stamp) -> None:
        """Create an empty collection."""
        from qdrant_client import models

        if not self._client.collection_exists(collection):
            vectors = models.VectorParams(size=stamp.dimension, distance=models.Distance.COSINE)
            self._client.create_collection(collection, vectors_config=vectors, metadata={"stamp": stamp.to_json()})

    @one_line
    def stamp(self, collection: str) -> Stamp:
        """Return the stamp of a collection."""
        return Stamp.from_json((self._client.get_collection(collection).config.metadata or {}).get("stamp", "null"), self.where)

    @one_line
    def ids(self, collection: str) -> set[str]:
        """Return the ids of all documents in a collection."""
        ids: set[str] = set()
        offset = None
        while True:
            page, offset = self._client.scroll(collection, limit=_PAGE, offset=offset, with_payload=["id"], with_vectors=False)
            ids.update(map(_id, page))
            if offset is None:
                return ids

    @one_line
    def add(self, collection: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        """Add new documents."""
        from qdrant_client import models

        self._client.upsert(
            collection,
            models.Batch(
                ids=[_point(entry.id) for entry in entries],
                vectors=vectors.tolist(),
                payloads=[_payload(entry) for entry in entries],
            ),
        )

    @one_line
    def finish(self, collection: str) -> None:
        """Wait until the server has built its graph.

        Raises:
            StorageError: The server cannot index the collection.
        """
        while (info := self._client.get_collection(collection)).status == "yellow":
            time.sleep(0.5)
        if info.status == "red":
            raise StorageError(f"{self.where}: the collection {collection} cannot be indexed: {info.optimizer_status}")

    @one_line
    def nearest(self, collection: str, vectors: Vectors, k: int, filters: Filters) -> list[Neighbours]:
        """Return up to k documents for each query vector."""
        from qdrant_client import models

        conditions = _filter(filters)
        requests = [models.QueryRequest(query=vector.tolist(), limit=k, filter=conditions, with_payload=["id"]) for vector in vectors]
        neighbours: list[Neighbours] = []
        for start in range(0, len(requests), 100):
            responses = self._client.query_batch_points(collection, requests[start : start + 100])
            neighbours += [[(_id(point), point.score) for point in response.points] for response in responses]
        return neighbours

    @one_line
    def entries(self, collection: str, ids: Sequence[str]) -> dict[str, Entry]:
        """Return documents by id."""
        points = self._client.retrieve(collection, [_point(id) for id in ids], with_payload=True)
        return {entry.id: entry for point in points if (entry := _entry(point.payload or {}))}

    @one_line
    def vectors(self, collection: str, ids: Sequence[str]) -> dict[str, Vectors]:
        """Return vectors by id."""
        points = self._client.retrieve(collection, [_point(id) for id in ids], with_payload=["id"], with_vectors=True)
        return {_id(point): np.asarray(point.vector, np.float32) for point in points}

    @one_line
    def delete(self, collection: str, ids: Sequence[str]) -> None:
        """Delete entries by id."""
        from qdrant_client import models

        if ids:
            self._client.delete(collection, models.PointIdsList(points=[_point(id) for id in ids]))

    @one_line
    def drop(self, collection: str) -> None:
        """Delete a collection."""
        self._client.delete_collection(collection)


def _point(id: str) -> str:
    return str(uuid.uuid5(_IDS, id))


def _id(point: Any) -> str:
    """Return the document id of a point, or the point's own id if embedfit did not write it."""
    return str((point.payload or {}).get("id", point.id))


def _payload(entry: Entry) -> dict[str, Any]:
    """Return an entry as Qdrant stores it, with tokens and JSON for values that it cannot match or keep exactly."""
    odd = tokens(entry.metadata, _holds)
    whole = {} if is_exact(entry.metadata) else {"whole": json.dumps(entry.metadata)}
    return {**vars(entry), **({"odd": odd} if odd else {}), **whole}


def _entry(payload: Mapping[str, Any]) -> Entry | None:
    if not {"id", "text", "metadata"} <= payload.keys():
        return None
    metadata = json.loads(payload["whole"]) if "whole" in payload else payload["metadata"]
    return Entry(payload["id"], payload["text"], metadata)


def _holds(key: str, value: Any) -> bool:
    """Return whether Qdrant can filter by a key: a quoted path cannot contain a quote. Lists need nothing special."""
    return bool(key) and not set(key) & {'"', "\\"}


def _filter(filters: Filters) -> Any:
    from qdrant_client import models

    def native(key: str, reading: Any) -> list[Any]:
        number = isinstance(reading, (int, float)) and not isinstance(reading, bool)
        if not _holds(key, reading) or (isinstance(reading, float) and not is_plain(reading)) or (number and abs(reading) >= 2**63):
            return []
        # A range matches any plain number. A match is for integers only, but also for those that floats cannot tell apart.
        ranged = number and is_plain(reading)
        exact: dict[str, Any] = {"range": models.Range(gte=reading, lte=reading)} if ranged else {"match": models.MatchValue(value=reading)}
        return [models.FieldCondition(key=f'metadata."{key}"', **exact)]

    def odd(key: str, reading: Any) -> Any:
        return models.FieldCondition(key="odd", match=models.MatchValue(value=token(key, reading)))

    must = [
        models.Filter(should=[condition for reading in readings(value) for condition in (*native(key, reading), odd(key, reading))])
        for key, value in filters.items()
    ]
    return models.Filter(must=must) if must else None
