"""The interface of a vector store, the records it keeps, and what all stores share."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar
from urllib.parse import quote, quote_plus

from embedfit.encode.encoder import Vectors
from embedfit.errors import ConfigError, DamagedError, DataError, EmbedfitError, StorageError, shown
from embedfit.files import cache_folder, locked
from embedfit.secrets import is_server

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

Filters: TypeAlias = Mapping[str, str]
"""Metadata key -> value as text. A document matches if each field equals its value, or is a list that contains it."""
Neighbours: TypeAlias = list[tuple[str, float]]
"""Document ids with their cosine similarities, best first."""
EXAMPLES, CHANGES = "_ex", "_ch"
"""Suffixes of the collections beside a version's documents: its labelled examples, and what changed since it went live."""
INDEX_AGAIN = "run 'embedfit index' again with the same model, which writes it anew"
"""Repair of a version that cannot be read."""
MOVE_AWAY = "restore its folder from a backup, or move it away and run 'embedfit index' (what 'embedfit live' added is lost then)"
"""Repair of an embedded store that cannot be read."""
BATCH_BYTES = 8 * 2**20
"""Approximate size of a write request; servers accept at most 32 MiB."""


@dataclass(frozen=True)
class Entry:
    """A document as a store keeps it; or an example, or a change, which are stored alike.

    Attributes:
        id: Document id, or the key of an example.
        text: Document text under the template, as it was encoded; or the text of the example.
        metadata: All other fields as JSON values, including the title; for an example, its document ids and its source.
    """

    id: str
    text: str
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Stamp:
    """A record of what a collection was built from.

    Attributes:
        encoder: Name of the encoder, for messages.
        fingerprint: Identity hash of the encoder; queries encoded by any other encoder are refused.
        dimension: Number of dimensions of the vectors.
        query_prompt: Text put before each query.
        document_prompt: Text put before each document.
        template: Template of the document text.
        documents: Number of documents.
        digest: SHA-256 of all document ids, texts and metadata, in hexadecimal.
        opens: Name or path that opens the model, or the folder of the searcher; empty if unknown.
        pooling: Pooling that was set for the model.
        searcher: Digest of the searcher that the collection was made from; empty for documents alone.
        examples: Number of labelled examples.
        bridge: What a bridged version is made of, as JSON; empty for any other version.
    """

    encoder: str
    fingerprint: str
    dimension: int
    query_prompt: str
    document_prompt: str
    template: str
    documents: int
    digest: str
    opens: str = ""
    pooling: str = "auto"
    searcher: str = ""
    examples: int = 0
    bridge: str = ""

    def to_json(self) -> str:
        """Return the stamp as JSON text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str, where: str) -> Stamp:
        """Read a stamp from JSON text.

        Args:
            text: Result of `to_json`.
            where: Name of the store, for the error message.

        Raises:
            StorageError: The text is not a stamp of this version of embedfit.
        """
        try:
            payload = json.loads(text)
        except (TypeError, ValueError):
            payload = None
        known = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(payload, dict) or not needed <= set(payload) <= known:
            raise StorageError(f"{where}: the collection has the stamp of another version of embedfit; fix: run 'embedfit index' again")
        return cls(**payload)


@dataclass(frozen=True)
class Live:
    """The collections behind the live name.

    Attributes:
        current: Name of the collection that answers searches; empty if there is none.
        previous: Name of the collection that answered before; empty if there is none.
    """

    current: str = ""
    previous: str = ""


class Store(Protocol):
    """The collections of one index, and the live name that points to one of them.

    Attributes:
        index: Live name of the index; its collections are named ``<index>_<version>``, with `EXAMPLES` or `CHANGES` at the end.
        where: Description of the store for messages, without secrets.
        location: Folder, server URL or connection string; may contain a secret.
        takes_nul: Whether a text may contain the NUL character.
        longest_id: Maximum length of a document id in bytes of UTF-8; None for no limit.
    """

    index: str
    where: str
    location: str
    takes_nul: bool
    longest_id: int | None

    def writing(self, wait: float = 0) -> AbstractContextManager[None]:
        """Lock the index for writing. Raises StorageError if another process still holds the lock after some seconds."""
        ...

    def live(self) -> Live:
        """Return the collections behind the live name."""
        ...

    def switch(self, live: Live) -> None:
        """Point the live name to other collections, atomically for all readers."""
        ...

    def collections(self) -> list[str]:
        """Return the names of all collections of this index, complete or not."""
        ...

    def create(self, collection: str, stamp: Stamp) -> None:
        """Create an empty collection for cosine similarity; an existing collection is left unchanged."""
        ...

    def stamp(self, collection: str) -> Stamp:
        """Return the stamp of a collection."""
        ...

    def ids(self, collection: str) -> set[str]:
        """Return the ids of all documents in a collection."""
        ...

    def add(self, collection: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        """Add new documents; they are durable when the call returns."""
        ...

    def finish(self, collection: str) -> None:
        """Build the search index of a collection that is complete."""
        ...

    def nearest(self, collection: str, vectors: Vectors, k: int, filters: Filters) -> list[Neighbours]:
        """Return up to k documents for each query vector."""
        ...

    def entries(self, collection: str, ids: Sequence[str]) -> dict[str, Entry]:
        """Return documents by id, without those that embedfit did not write."""
        ...

    def vectors(self, collection: str, ids: Sequence[str]) -> dict[str, Vectors]:
        """Return vectors by id."""
        ...

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        """Delete entries by id, all or none; ids that are not there are ignored."""
        ...

    def drop(self, collection: str) -> None:
        """Delete a collection."""
        ...

    def close(self) -> None:
        """Release files and connections."""
        ...


def is_url(location: str) -> bool:
    """Return whether a location is a URL rather than a folder."""
    return "://" in location


def check_url(location: str) -> None:
    """Check that a URL has a host and port only. The message does not show it, because it may contain a password.

    Raises:
        ConfigError: The URL has a user, a path, a query, a fragment or an invalid port.
    """
    if is_url(location) and not is_server(location):
        raise ConfigError("store.location is not a plain URL; expected one like https://host:port, and the server's key in store.api_key")


def belongs(collection: str, index: str) -> bool:
    """Return whether a collection belongs to an index, by its name."""
    prefix, _, version = version_of(collection).rpartition("_")
    return prefix == index and len(version) == 12 and set(version) <= set("0123456789abcdef")


def version_of(collection: str) -> str:
    """Return the name of a version from the name of one of its collections."""
    return collection.removesuffix(EXAMPLES).removesuffix(CHANGES)


def check_entries(entries: Sequence[Entry], store: Store, what: str = "document") -> None:
    """Check that a store can keep entries, before anything is encoded or written.

    Args:
        entries: Documents or examples.
        store: Store to write to.
        what: What they are, for messages.

    Raises:
        DataError: An entry has an empty id, an id that is too long, or text that the store cannot hold.
    """
    for entry in entries:
        where = f"{what} {shown(entry.id)}"
        if not entry.id:
            raise DataError(where, "its id is empty", fix="give it an id")
        for name, text in (("id", entry.id), ("text", entry.text), *_texts("metadata", entry.metadata)):
            if not is_encodable(text):
                raise DataError(where, f"its {name} contains half of a character (a lone surrogate)", fix="correct or remove the text")
            if "\0" in text and not store.takes_nul:
                raise DataError(where, f"its {name} contains a NUL character, which {store.where} cannot keep", fix="remove it")
        if store.longest_id and (size := len(entry.id.encode())) > store.longest_id:
            raise DataError(where, f"its id has {size:,} bytes, and {store.where} takes {store.longest_id:,}", fix="shorten it")


def is_encodable(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield (field name, text) for each string in a JSON value, keys included."""
    if isinstance(value, str):
        yield name, value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(name, item)
    elif isinstance(value, dict):
        for key, item in value.items():
            field = f"field {shown(key)}" if name == "metadata" else name
            yield field, key
            yield from _texts(field, item)


def changed(store: Store, collection: str) -> StorageError:
    """Return the error for a collection that something else wrote to."""
    return StorageError(f"{store.where}: {collection} holds documents that embedfit did not write; fix: run 'embedfit index'")


def emptied(store: Store, collection: str) -> StorageError:
    """Return the error for a collection in which nothing is found."""
    return DamagedError(f"{store.where}: {collection} has lost its entries; fix: {INDEX_AGAIN}", again=True)


@contextlib.contextmanager
def one_writer(where: str, index: str, folder: Path | None = None, wait: float = 0) -> Iterator[None]:
    """Hold a lock file on an index: in the folder of an embedded store, otherwise in the cache of this machine.

    Args:
        where: Description of the store.
        index: Live name of the index.
        folder: Folder of an embedded store.
        wait: Seconds to wait for another process.

    Raises:
        StorageError: Another process holds the lock, or the file cannot be written.
    """
    # Two writers damage an embedded store even if they write to different indexes, so the folder has one lock.
    key = hashlib.sha256(f"{where} {index}".encode()).hexdigest()[:16]
    path = folder / ".embedfit.lock" if folder else cache_folder() / "locks" / f"{key}.lock"
    with locked(path, f"{where}: another process is writing to it; fix: wait for it", wait):
        yield


class HasErrors(Protocol):
    """A store whose library's errors are turned into one line.

    Attributes:
        where: Description of the store for messages.
        secrets: Texts that must not appear in a message.
    """

    where: str
    secrets: tuple[str, ...]

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """Exceptions that the store's library raises."""
        ...

    def fix_of(self, error: BaseException) -> str:
        """Return how to repair the damage that an error shows; empty if it shows none."""
        ...


_PANIC = "PanicException"
"""What a library in Rust raises when it fails in a way that it did not foresee. Its class cannot be imported."""
_Arguments = ParamSpec("_Arguments")
_Self = TypeVar("_Self", bound=HasErrors)
_Returned = TypeVar("_Returned")


def one_line(method: Callable[Concatenate[_Self, _Arguments], _Returned]) -> Callable[Concatenate[_Self, _Arguments], _Returned]:
    """Turn the errors of a store's library into a StorageError of one line, without secrets."""

    @functools.wraps(method)
    def call(self: _Self, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Returned:
        try:
            return method(self, *args, **kwargs)
        except EmbedfitError:
            raise
        except BaseException as error:
            if not isinstance(error, self.errors) and type(error).__name__ != _PANIC:
                raise
            message = message_of(error, self.secrets)
            if fix := self.fix_of(error):
                reason = _reason(message)
                raise DamagedError(f"{self.where}: is damaged ({reason}); fix: {fix}", again=fix == INDEX_AGAIN) from None
            raise StorageError(f"{self.where}: {message}") from None

    return call


def _reason(message: str) -> str:
    """Return the last reason of a chain of errors, cut to a readable length."""
    return re.sub(r"^.*(?=Error |error returned)", "", message)[:120]


def message_of(error: BaseException, secrets: Sequence[str]) -> str:
    """Return the message of a library's error on one line, without secrets."""
    message = str(error)
    for form in _written_forms(secrets):
        message = message.replace(form, "***")
    return " ".join(message.split()) or type(error).__name__


def _written_forms(secrets: Sequence[str]) -> list[str]:
    """Return the forms in which a message may quote secrets: plain, on one line, and escaped as Python, JSON or URL; longest first."""
    writings: tuple[Callable[[str], str], ...] = (
        str,
        lambda secret: " ".join(secret.split()),
        lambda secret: repr(secret)[1:-1],
        lambda secret: repr(secret.encode())[2:-1],
        lambda secret: json.dumps(secret)[1:-1],
        lambda secret: json.dumps(secret, ensure_ascii=False)[1:-1],
        quote,
        lambda secret: quote(secret, safe=""),
        quote_plus,
    )
    return sorted({form for secret in secrets for form in (write(secret) for write in writings) if form}, key=len, reverse=True)


def writable_folder(location: str) -> Path:
    """Return the folder of an embedded store, created if necessary.

    Raises:
        StorageError: The folder cannot be created or written.
    """
    folder = Path(location)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise StorageError(f"{folder}: cannot be written")
    return folder


class ClientStore:
    """Base of the stores that a client reaches in a folder or on a server.

    Args:
        location: Folder, or URL of a server.
        index: Live name of the index.
        api_key: API key of the server.

    Raises:
        ConfigError: The URL has more than a host and port.
    """

    product = ""
    takes_nul = True
    longest_id: int | None = None

    def __init__(self, location: str, index: str, api_key: str | None = None) -> None:
        check_url(location)
        self.location, self.index, self.api_key = location, index, api_key
        self.where = f"{self.product}, {location}"
        self.secrets: tuple[str, ...] = (api_key,) if api_key else ()

    def writing(self, wait: float = 0) -> AbstractContextManager[None]:
        """Lock the folder, or the server's index for the processes of this machine."""
        return one_writer(self.where, self.index, None if is_url(self.location) else writable_folder(self.location), wait)

    def fix_of(self, error: BaseException) -> str:
        """Return how to repair the damage that an error shows; empty if it shows none."""
        return ""

    def close(self) -> None:
        """Release files and connections."""
        if client := self.__dict__.pop("_client", None):  # a cached property, absent until its first use
            client.close()
