"""What a store keeps, what it must do, and how values come back as what they were."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar
from urllib.parse import quote, quote_plus

from embedfit.encode.encoder import Vectors
from embedfit.errors import ConfigError, DataError, EmbedfitError, StorageError, shown
from embedfit.files import cache_folder, locked
from embedfit.secrets import is_server

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
        try:
            said = json.loads(text)
        except (TypeError, ValueError):
            said = None
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
        location: A folder, a server's URL or a connection string; may hold a secret.
        takes_nul: Whether a text may hold the character of code 0.
        longest_id: Bytes of a document's id in UTF-8, at most; None for any number.
    """

    index: str
    where: str
    location: str
    takes_nul: bool
    longest_id: int | None

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
        """Return documents by their ids; without those that embedfit did not write."""
        ...

    def drop(self, collection: str) -> None:
        """Remove a collection."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


def is_url(location: str) -> bool:
    """Return whether a location is a server's rather than a folder."""
    return "://" in location


def check_url(location: str) -> None:
    """Refuse a URL that says more than the server, without showing it: it may hold a password.

    Raises:
        ConfigError: It has a user, a path, a query, a fragment or no right port.
    """
    if is_url(location) and not is_server(location):
        raise ConfigError("store.location is not a plain URL; expected one like https://host:port, and the server's key in store.api_key")


def belongs(collection: str, index: str) -> bool:
    """Return whether a name is one of an index's collections."""
    start, _, version = collection.rpartition("_")
    return start == index and len(version) == 12 and set(version) <= set("0123456789abcdef")


_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_LONGEST_NUMBER = 1000
"""Characters; what is longer is a text."""
_EXACT = 2**53
"""From here on a float confuses whole numbers that are neighbours."""
_DIGITS = 17
"""Characters of a float that any reader of JSON reads exactly: of longer ones, some servers take the next float."""


def readings(value: str) -> list[str | int | float | bool]:
    """Return what a value given as text may be in metadata, each once: as a text, and as a number or truth value if it reads as one.

    A store compares each with values of its own type alone, so ``1e5`` finds the text "1e5" and the number 100000. A text in
    double quotes is a text also without them.
    """
    if value in ("true", "True", "false", "False"):
        return [value, value in ("true", "True")]
    if len(value) > 1 and value[0] == value[-1] == '"':
        with contextlib.suppress(ValueError):
            return [value, json.loads(value)]
    number = _number(value)
    return [value] if number is None else [value, number]


def _number(text: str) -> int | float | None:
    """Return the number that a text stands for, whole ones exactly; None if it stands for none that metadata could hold."""
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    exact = Decimal(text)
    if exact == int(exact):
        return int(exact)
    nearest = float(text)
    return nearest if 0 < abs(nearest) < math.inf else None  # one that is too small for a float is not 0


def token(key: str, value: str | int | float | bool) -> str:
    """Return a text that a key has in common with nothing but an equal value of the same type."""
    return json.dumps([key, _number(repr(value)) if isinstance(value, float) else value])


def tokens(metadata: Mapping[str, Any], holds: Callable[[str, Any], bool]) -> list[str]:
    """Return a token for each value, also of lists, that a store cannot filter by as it is.

    Args:
        metadata: As JSON has it.
        holds: Whether the store can filter by a key and a value; numbers that are not plain are tokens in any store.
    """
    odd = []
    for key, value in metadata.items():
        values = [one for one in (value if isinstance(value, list) else [value]) if isinstance(one, (str, int, float))]
        if not holds(key, value) or not all(map(is_plain, values)):
            odd += [token(key, one) for one in values]
    return odd


def is_exact(value: Any) -> bool:
    """Return whether a JSON value comes back as it was from a store that keeps numbers as it likes."""
    if isinstance(value, dict):
        return all(map(is_exact, value.values()))
    return all(map(is_exact, value)) if isinstance(value, list) else is_plain(value)


def is_plain(value: Any) -> bool:
    """Return whether a scalar is anything but a number that some store confuses with another."""
    if not isinstance(value, (int, float)):
        return True
    return abs(value) < _EXACT and (isinstance(value, int) or ("e" not in repr(value) and len(repr(value)) <= _DIGITS))


def check_entries(entries: Sequence[Entry], store: Store) -> None:
    """Refuse documents that a store cannot keep, before anything is encoded or written.

    Raises:
        DataError: It names the document, what of it, and the fix.
    """
    for entry in entries:
        where = f"document {shown(entry.id)}"
        if not entry.id:
            raise DataError(where, "its id is empty", fix="give it one")
        for name, text in (("id", entry.id), ("text", entry.text), *_texts("metadata", entry.metadata)):
            if not is_encodable(text):
                raise DataError(where, f"its {name} holds half of a character (a lone surrogate)", fix="correct the text, or leave it out")
            if "\0" in text and not store.takes_nul:
                raise DataError(where, f"its {name} holds a NUL character, which {store.where} cannot keep", fix="take it out")
        if store.longest_id and (size := len(entry.id.encode())) > store.longest_id:
            raise DataError(where, f"its id has {size:,} bytes, and {store.where} takes {store.longest_id:,}", fix="give it a shorter one")


def is_encodable(text: str) -> bool:
    """Return whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _texts(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yield each text of a JSON value, keys too, with the name of the field that it stands in."""
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
            said = str(error)
            for form in _forms(self.secrets):
                said = said.replace(form, "***")
            raise StorageError(f"{self.where}: {' '.join(said.split()) or type(error).__name__}") from None

    return call


def _forms(secrets: Sequence[str]) -> list[str]:
    """Return how libraries and servers write secrets: as they are, on one line, in Python, in JSON and in a URL; the longest first."""
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
