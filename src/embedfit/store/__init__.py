"""Vector stores: where documents, their metadata and their vectors live when the best model is found.

    chroma.py    a folder (the default), or a server
    pgvector.py  PostgreSQL
    qdrant.py    a server; a folder for trying out
    versions.py  fill a new version, check it, switch to it, roll back; the live one as a Retriever

A store keeps *collections* that are written once and then only read, and for each index one *live name* that says which of
them answers. So a reader never sees a half-written collection, and going live or back is one small write.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar
from urllib.parse import urlsplit

from embedfit.config import StoreConfig, from_environment
from embedfit.encode import Vectors, cache_folder
from embedfit.errors import ConfigError, EmbedfitError, StorageError
from embedfit.locks import locked

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Filters: TypeAlias = Mapping[str, str]
"""Metadata key -> value as text; a document is found if it has all of them, or has them in a list."""
Found: TypeAlias = list[tuple[str, float]]
"""Ids of documents and their cosine similarities, best first."""

BATCH_BYTES = 8 * 2**20
"""About how much is sent to a store at once: servers take no more than 32 MiB in one request."""


@dataclass(frozen=True)
class Entry:
    """A document as a store keeps it.

    Attributes:
        id: The document's.
        text: What it says under the template: what was encoded.
        metadata: Its other fields, the title included, as JSON has them.
    """

    id: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        id: The document's.
        score: Cosine similarity to the query.
        text: What the document says.
        metadata: Its other fields.
    """

    id: str
    score: float
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Stamp:
    """What a collection was made from.

    Attributes:
        encoder: Its name, for messages.
        fingerprint: Its hash; a query by another one is refused.
        dimension: Of the vectors.
        query_prompt: Put before each query.
        document_prompt: Put before each document.
        template: What a document says.
        documents: How many.
        digest: A hash of all that they say and all their metadata.
    """

    encoder: str
    fingerprint: str
    dimension: int
    query_prompt: str
    document_prompt: str
    template: str
    documents: int
    digest: str

    def to_json(self) -> str:
        """Return it as a store keeps it."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> Stamp:
        """Read it back.

        Raises:
            StorageError: It was not written by this version of embedfit.
        """
        said = json.loads(text)
        if not isinstance(said, dict) or set(said) != {field.name for field in fields(cls)}:
            raise StorageError(f"{where}: the collection has the stamp of another version of embedfit; fix: run 'embedfit index' again")
        return cls(**said)


@dataclass(frozen=True)
class Live:
    """Which collection answers, and which did before; empty where there is none."""

    current: str = ""
    previous: str = ""


class Store(Protocol):
    """Collections of one index, and the live name.

    Attributes:
        index: The live name; collections are called ``<index>_<version>``.
        where: For messages; holds no secret.
    """

    index: str
    where: str

    def writing(self) -> AbstractContextManager[None]:
        """Keep a second writer out. Raises StorageError if there is one."""
        ...

    def live(self) -> Live:
        """Return which collection answers."""
        ...

    def switch(self, live: Live) -> None:
        """Let another collection answer, for every reader from one moment on."""
        ...

    def collections(self) -> list[str]:
        """Return the names of the collections of this index, whole or not."""
        ...

    def create(self, collection: str, stamp: Stamp) -> None:
        """Make an empty collection for vectors by cosine similarity; one that is there stays as it is."""
        ...

    def stamp(self, collection: str) -> Stamp:
        """Return what a collection was made from."""
        ...

    def ids(self, collection: str) -> set[str]:
        """Return the ids of the documents that are in a collection."""
        ...

    def add(self, collection: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        """Put documents in that are not there yet; safe once it returns."""
        ...

    def finish(self, collection: str) -> None:
        """Make what was put in quick to search."""
        ...

    def nearest(self, collection: str, vectors: Vectors, k: int, filters: Filters) -> list[Found]:
        """Return up to k documents for each vector."""
        ...

    def entries(self, collection: str, ids: Sequence[str]) -> dict[str, Entry]:
        """Return documents by their ids."""
        ...

    def drop(self, collection: str) -> None:
        """Remove a collection."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


@contextlib.contextmanager
def open_store(config: StoreConfig) -> Iterator[Store]:
    """Open the store that a configuration names; nothing is made or connected to before it is needed.

    Raises:
        ConfigError: An environment variable that it names is not set, or the location is not of the store's kind.
        EmbedfitError: The store's package is not installed.
    """
    location = from_environment(config.location, "store.location")
    key = from_environment(config.api_key, "store.api_key") if config.api_key else None
    if key and (config.kind == "pgvector" or not is_url(location)):
        fix = "the connection string holds the password" if config.kind == "pgvector" else "leave it out, or give a server's URL"
        raise ConfigError(f"store.api_key is for a server of Chroma or Qdrant, and store.location is none; fix: {fix}")
    store: Store
    if config.kind == "chroma":
        from embedfit.store.chroma import ChromaStore

        store = ChromaStore(location, config.index, key)
    elif config.kind == "pgvector":
        from embedfit.store.pgvector import PgvectorStore

        store = PgvectorStore(location, config.index)
    else:
        from embedfit.store.qdrant import QdrantStore

        store = QdrantStore(location, config.index, key)
    with contextlib.closing(store):
        yield store


def is_url(location: str) -> bool:
    """Return whether a location is a server's rather than a folder."""
    return "://" in location


def check_url(location: str) -> None:
    """Refuse a URL that says more than the server, without showing it: it may hold a password.

    Raises:
        ConfigError: It has a user, or a path.
    """
    url = urlsplit(location)
    if is_url(location) and (url.username is not None or url.path.strip("/") or url.query or url.scheme not in ("http", "https")):
        raise ConfigError("store.location is not a plain URL; expected one like https://host:port, and the server's key in store.api_key")


def belongs(collection: str, index: str) -> bool:
    """Return whether a name is one of an index's collections."""
    start, _, version = collection.rpartition("_")
    return start == index and len(version) == 12 and set(version) <= set("0123456789abcdef")


def readings(value: str) -> list[str | int | float | bool]:
    """Return what a value given as text may be in metadata: ``2020`` is a text in CSV and a number in JSON."""
    try:
        said = json.loads(value)
    except ValueError:
        said = None
    if isinstance(said, bool):
        return [value, said]
    if isinstance(said, (int, float)):
        whole = [int(said)] if said == said and abs(said) < 2**53 and said == int(said) else []
        return [value, *whole, float(said)]
    return [value, said] if isinstance(said, str) else [value]


@contextlib.contextmanager
def one_writer(where: str, index: str, folder: Path | None = None) -> Iterator[None]:
    """Hold a lock on an index by a file: in the store's own folder, else for the processes of this machine.

    Raises:
        StorageError: Another process holds it, or the file cannot be written.
    """
    # An embedded store is damaged by two writers even if they write two indexes.
    key = hashlib.sha256(f"{where} {index}".encode()).hexdigest()[:16]
    path = folder / ".embedfit.lock" if folder else cache_folder() / "locks" / f"{key}.lock"
    with locked(path, f"{where}: another process is writing to it; fix: wait for it"):
        yield


class HasErrors(Protocol):
    """A store that names what its library raises, and what must not be shown of it."""

    where: str
    secrets: tuple[str, ...]

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What the library raises."""
        ...


_Arguments = ParamSpec("_Arguments")
_Self = TypeVar("_Self", bound=HasErrors)
_Returned = TypeVar("_Returned")


def one_line(method: Callable[Concatenate[_Self, _Arguments], _Returned]) -> Callable[Concatenate[_Self, _Arguments], _Returned]:
    """Turn what a store's library raises into a StorageError of one line, without secrets."""

    @functools.wraps(method)
    def call(self: _Self, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Returned:
        try:
            return method(self, *args, **kwargs)
        except EmbedfitError:
            raise
        except self.errors as error:
            said = " ".join(str(error).split()) or type(error).__name__
            for secret in self.secrets:
                said = said.replace(secret, "***")
            raise StorageError(f"{self.where}: {said}") from None

    return call


def writable_folder(location: str) -> Path:
    """Return the folder of an embedded store, made if it was not there.

    Raises:
        StorageError: It cannot be made or written.
    """
    folder = Path(location)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{folder}: cannot be written")
    return folder
