"""What changed in a live version: examples and documents that were added, and those that were taken back.

A version is never written to, so its changes stand in a collection of their own, one row for each. A row has a new id, which begins with
its time, and is never rewritten: the latest row of a key counts. So a change is one write, and a reader that lists the ids knows
which rows it has not read yet.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Document
from embedfit.store.base import CHANGES, Entry, Store, check_entries

What: TypeAlias = Literal["example", "document"]
_DUMMY = np.ones((1, 1), np.float32)
"""Vector of each row: stores want one. The vector of the example or document is text in the row, since no graph reads it."""


@dataclass(frozen=True)
class Change:
    """An example or a document that was added, or taken back.

    Attributes:
        what: Whether it is an example or a document.
        key: Key of the example, or document id.
        vector: Vector of the example or document, shape (dimensions,); empty if it was taken back.
        text: Text of the example, or of the document under the template.
        document: Id of the document that the example is answered by; empty for a document.
        source: Where an example came from, such as ``person`` or ``feedback``.
        fields: Title, text and metadata of a document; empty for an example.
        gone: Whether it was taken back.
        row: Id of the row; empty before it is written.
    """

    what: What
    key: str
    vector: npt.NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    text: str = ""
    document: str = ""
    source: str = ""
    fields: dict[str, Any] | None = None
    gone: bool = False
    row: str = ""

    @property
    def added(self) -> Document:
        """The document that was added."""
        fields = self.fields or {}
        return Document(self.key, fields.get("text", ""), fields.get("title", ""), fields.get("metadata", {}))

    @property
    def shown(self) -> dict[str, Any]:
        """The metadata of the document that was added, with its title, as hits and filters see it."""
        fields = self.fields or {}
        return {**({"title": fields["title"]} if fields.get("title") else {}), **fields.get("metadata", {})}

    def to_entry(self) -> Entry:
        """Return the change as a row of a store."""
        vector = base64.b64encode(np.asarray(self.vector, "<f4").tobytes()).decode()
        metadata = {"what": self.what, "key": self.key, "document": self.document, "source": self.source, "gone": self.gone}
        return Entry(self.row, self.text, {**metadata, "vector": vector, "fields": self.fields or {}})

    @classmethod
    def from_entry(cls, entry: Entry) -> Change:
        """Return the change that a row holds."""
        row = entry.metadata
        vector = np.frombuffer(base64.b64decode(row["vector"]), "<f4").astype(np.float32)
        return cls(row["what"], row["key"], vector, entry.text, row["document"], row["source"], row["fields"], row["gone"], entry.id)


class Changes:
    """The changes of one version, as they were last read.

    Args:
        store: Store that holds the version.
        version: Name of the version.

    Attributes:
        rows: Ids of the rows.
    """

    def __init__(self, store: Store, version: str) -> None:
        self.store, self.collection = store, version + CHANGES
        self._rows: dict[str, Change] = {}
        self.rows: frozenset[str] = frozenset()

    def __iter__(self) -> Any:
        """Yield the latest change of each key, in order of time."""
        return iter(latest(self._rows.values()))

    def refresh(self) -> None:
        """Read what is new."""
        ids = self.store.ids(self.collection)
        if ids == self.rows:
            return
        new = sorted(ids - self.rows)
        entries = self.store.entries(self.collection, new)
        # A row that is gone since it was listed was replaced by a later one, which the next search will see.
        rows = {**self._rows, **{id: Change.from_entry(entries[id]) for id in new if id in entries}}
        self._rows = {id: row for id, row in rows.items() if id in ids}
        self.rows = frozenset(self._rows)

    def append(self, change: Change) -> None:
        """Write a change; the caller holds the lock. Earlier rows of its key are removed, so that no text stays that was taken back.

        Raises:
            DataError: The store cannot keep the key or the text.
            StorageError: The store cannot be written.
        """
        self.refresh()
        time_ns = max(time.time_ns(), max((int(row.partition("-")[0]) for row in self._rows), default=0) + 1)
        self.copy([replace(change, row=f"{time_ns:020d}-{secrets.token_hex(4)}")])
        stale = [id for id, row in self._rows.items() if (row.what, row.key) == (change.what, change.key)]
        self.store.delete(self.collection, stale)
        self.refresh()

    def copy(self, changes: Sequence[Change]) -> None:
        """Write changes under the ids that their rows have; those that are there already are left alone.

        Raises:
            DataError: The store cannot keep a key or a text.
            StorageError: The store cannot be written.
        """
        ids = self.store.ids(self.collection)
        entries = [change.to_entry() for change in changes if change.row not in ids]
        check_entries(entries, self.store)
        if entries:
            self.store.add(self.collection, entries, np.repeat(_DUMMY, len(entries), axis=0))


def latest(changes: Iterable[Change]) -> list[Change]:
    """Return the latest change of each key, in order of time."""
    last = {(change.what, change.key): change for change in sorted(changes, key=lambda change: change.row)}
    return sorted(last.values(), key=lambda change: change.row)
