"""Feedback: what was asked, what was shown, and what people picked, in an SQLite file beside the searcher."""

from __future__ import annotations

import contextlib
import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

from embedfit.errors import DataError, EmbedfitError, StorageError

Agreement: TypeAlias = Literal["once", "twice", "second-person"]
"""When a pick becomes an example: at once, after two searches with the same pick, or after the same pick by two people."""
Kind: TypeAlias = Literal["pick", "click"]
"""A pick is an answer to the question which document is right, and so a label. A click is not: people click what stands first."""
NAME = "feedback.db"
_ROW = (
    *("search", "person", "choice", "place", "kind", "time", "model", "key", "query", "record", "asked", "source", "shown"),
    *("order_probability", "abstained"),
)
_VERSION = "1"
_TABLES = """
CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS searches (
    id TEXT PRIMARY KEY, time REAL NOT NULL, key TEXT NOT NULL, query TEXT NOT NULL, record TEXT, person TEXT NOT NULL,
    source TEXT NOT NULL, model TEXT NOT NULL, shown TEXT NOT NULL, order_probability REAL NOT NULL, abstained INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS searches_by_key ON searches (key);
CREATE INDEX IF NOT EXISTS searches_by_time ON searches (time);
CREATE TABLE IF NOT EXISTS picks (
    search TEXT NOT NULL REFERENCES searches (id), person TEXT NOT NULL, choice TEXT, place INTEGER, kind TEXT NOT NULL,
    time REAL NOT NULL, model TEXT NOT NULL, PRIMARY KEY (search, person));
CREATE TABLE IF NOT EXISTS examples (
    number INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, text TEXT NOT NULL, document TEXT);
"""
"""In ``examples``, a row without a document is one that was taken back. Its number is new, so that readers learn of it."""


@dataclass(frozen=True)
class Search:
    """A search, as it was answered.

    Attributes:
        id: Unguessable id.
        query: Text of the query.
        record: Fields of the query, if it was a record.
        person: Who searched; empty if unknown.
        source: Where the search came from: ``api``, ``page`` or ``label``.
        model: Fingerprint of the searcher.
        shown: {"id", "score", "probability", "because"} for each hit, in the order that was shown.
        order_probability: Probability with which this order was shown, over 0 and at most 1.
        abstained: Whether the searcher gave no answer.
    """

    id: str
    query: str
    record: Mapping[str, Any] | None
    person: str
    source: str
    model: str
    shown: Sequence[Mapping[str, Any]]
    order_probability: float = 1.0
    abstained: bool = False


@dataclass(frozen=True)
class Stored:
    """The outcome of a pick.

    Attributes:
        repeated: Whether the same pick was stored before.
        replaced: Whether it replaced another pick by the same person.
        learned: Whether it is an example now.
        conflict: Whether people picked different documents for this text. Then none of the picks is an example.
    """

    repeated: bool
    replaced: bool
    learned: bool
    conflict: bool


def new_id() -> str:
    """Return the id of a search, which nobody can guess."""
    return secrets.token_urlsafe(16)


def key_of(text: str) -> str:
    """Return the key of a query text. Texts that differ in white space alone have the same key."""
    return sha256(" ".join(text.split()).encode()).hexdigest()


class Feedback:
    """Searches and picks. Several processes may use the file at once, and each method may be called in any thread.

    Args:
        path: Path of the file.
        agreement: When a pick becomes an example.

    Raises:
        StorageError: The file cannot be opened, or is of another program or version.
    """

    def __init__(self, path: str | Path, agreement: Agreement = "once") -> None:
        self.path, self.agreement = Path(path), agreement
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []
        try:
            with self._connected() as database:
                self._set_up(database)
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"{self.path}: the feedback cannot be opened: {error}; fix: name another file") from None

    def _set_up(self, database: sqlite3.Connection) -> None:
        database.execute("BEGIN IMMEDIATE")
        tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if tables and not tables >= {"about", "searches", "picks", "examples"}:
            raise StorageError(f"{self.path}: is a database of another program; fix: name another file")
        for statement in _TABLES.split(";"):
            database.execute(statement)
        database.execute("INSERT OR IGNORE INTO about VALUES ('version', ?), ('secret', ?)", (_VERSION, secrets.token_hex(32)))
        version = database.execute("SELECT value FROM about WHERE name = 'version'").fetchone()[0]
        if version != _VERSION:
            raise StorageError(f"{self.path}: was written by another version of embedfit; fix: name another file")

    def close(self) -> None:
        """Close the file. No other method may be running, or be called again."""
        for database in self._open:
            database.close()

    @property
    def secret(self) -> str:
        """A secret that all processes share, for the tokens of forms."""
        with self._connected() as database:
            return str(database.execute("SELECT value FROM about WHERE name = 'secret'").fetchone()[0])

    def record(self, searches: Sequence[Search]) -> None:
        """Store searches. They survive the end of this process, however it ends.

        Raises:
            StorageError: The disk is full, or the file cannot be written.
        """
        now = time.time()
        rows = [
            (
                search.id,
                now,
                key_of(search.query),
                search.query,
                None if search.record is None else json.dumps(search.record),
                search.person,
                search.source,
                search.model,
                json.dumps(search.shown),
                search.order_probability,
                int(search.abstained),
            )
            for search in searches
        ]
        with self._writing() as database:
            database.executemany("INSERT INTO searches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)

    def pick(self, search: str, choice: str | None, *, person: str = "", kind: Kind = "pick", model: str = "") -> Stored:
        """Store what a person picked. The same pick again changes nothing; another one by the same person replaces it.

        Args:
            search: Id of the search.
            choice: Document id; None for "none of these".
            person: Who picked; empty if unknown.
            kind: Whether it is a label.
            model: Fingerprint of the searcher.

        Raises:
            DataError: There is no such search.
            StorageError: The file cannot be written.
        """
        with self._writing(durable=True) as database:
            row = database.execute("SELECT key, shown FROM searches WHERE id = ?", (search,)).fetchone()
            if row is None:
                raise DataError("search_id", "is unknown", expected="the search_id of an answer, not deleted since")
            key, shown = row
            before = database.execute("SELECT choice, kind FROM picks WHERE search = ? AND person = ?", (search, person)).fetchone()
            if before != (choice, kind):
                place = next((place for place, hit in enumerate(json.loads(shown), 1) if hit["id"] == choice), None)
                database.execute(
                    "INSERT OR REPLACE INTO picks VALUES (?, ?, ?, ?, ?, ?, ?)", (search, person, choice, place, kind, time.time(), model)
                )
            learned, conflict = self._learn(database, key)
        return Stored(before == (choice, kind), before is not None and before != (choice, kind), learned, conflict)

    def undo(self, search: str, person: str | None = None) -> bool:
        """Remove the pick of a search, of one person or of all; return whether there was one."""
        with self._writing(durable=True) as database:
            condition, values = ("search = ?", (search,)) if person is None else ("search = ? AND person = ?", (search, person))
            keys = database.execute(
                f"SELECT DISTINCT key FROM searches WHERE id IN (SELECT search FROM picks WHERE {condition})", values
            ).fetchall()
            database.execute(f"DELETE FROM picks WHERE {condition}", values)
            for (key,) in keys:
                self._learn(database, key)
        return bool(keys)

    def delete(self, *, search: str | None = None, person: str | None = None) -> int:
        """Delete a search with its picks, or everything of a person: their searches, with the picks on them, and their picks.

        Returns:
            Number of searches and picks deleted.
        """
        condition = "id = :search" if search is not None else "person = :person"
        picks = (
            "search = :search" if search is not None else "person = :person OR search IN (SELECT id FROM searches WHERE person = :person)"
        )
        values = {"search": search, "person": person}
        with self._writing(durable=True) as database:
            picked = f"id IN (SELECT search FROM picks WHERE {picks})"
            keys = database.execute(f"SELECT DISTINCT key FROM searches WHERE {condition} OR {picked}", values).fetchall()
            count = database.execute(f"DELETE FROM picks WHERE {picks}", values).rowcount
            count += database.execute(f"DELETE FROM searches WHERE {condition}", values).rowcount
            for (key,) in keys:
                self._learn(database, key)
        with self._connected() as database:  # the text must not linger in the journal
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return count

    def forget_unpicked(self, days: float) -> int:
        """Delete searches without a pick that are older than some days; return their number."""
        with self._writing() as database:
            return database.execute(
                "DELETE FROM searches WHERE time < ? AND id NOT IN (SELECT search FROM picks)", (time.time() - 86_400 * days,)
            ).rowcount

    def examples(self, after: int = 0) -> tuple[int, list[tuple[str, str, str | None]]]:
        """Return the examples that were added or taken back since a number.

        Args:
            after: The number that the last call returned; 0 for all.

        Returns:
            The latest number, and (key, text, document id or None) for each change, in order.
        """
        with self._connected() as database:
            rows = database.execute(
                "SELECT number, key, text, document FROM examples WHERE number > ? ORDER BY number", (after,)
            ).fetchall()
        return (rows[-1][0] if rows else after), [row[1:] for row in rows]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each pick with its search, oldest first."""
        names = {"person": "picks.person", "time": "picks.time", "model": "picks.model", "asked": "searches.time"}
        columns = ", ".join(names.get(name, name) for name in _ROW)
        with self._connected() as database:
            picks = database.execute(
                f"SELECT {columns} FROM picks JOIN searches ON id = search ORDER BY picks.time, picks.rowid"
            ).fetchall()
        for row in picks:
            yield dict(zip(_ROW, row, strict=True))

    def searches(self) -> list[tuple[float, bool, float | None]]:
        """Return (time, whether it abstained, probability of the best answer) for each search, oldest first."""
        with self._connected() as database:
            rows = database.execute(
                "SELECT time, abstained, (SELECT max(json_extract(value, '$.probability')) FROM json_each(shown)) "
                "FROM searches ORDER BY time"
            ).fetchall()
        return [(when, bool(abstained), probability) for when, abstained, probability in rows]

    def _learn(self, database: sqlite3.Connection, key: str) -> tuple[bool, bool]:
        """Bring the example of a text in line with its picks; return whether there is one, and whether picks conflict."""
        picks = database.execute(
            "SELECT choice, picks.person, search, query FROM picks JOIN searches ON id = search WHERE key = ? AND kind = 'pick' "
            "ORDER BY picks.time",
            (key,),
        ).fetchall()
        choices = {choice for choice, *_ in picks}
        conflict = len(choices) > 1
        seen = {
            "once": len(picks),
            "twice": len({search for _, _, search, _ in picks}),
            "second-person": len({person for _, person, *_ in picks}),
        }
        enough = seen[self.agreement] >= (1 if self.agreement == "once" else 2)
        document = picks[0][0] if len(choices) == 1 and enough else None
        before = database.execute("SELECT document FROM examples WHERE key = ?", (key,)).fetchone()
        if (before[0] if before else None) != document:
            # A deleted text must not be kept here.
            database.execute(
                "INSERT OR REPLACE INTO examples (key, text, document) VALUES (?, ?, ?)", (key, picks[0][3] if document else "", document)
            )
        return document is not None, conflict

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        database = getattr(self._local, "database", None)
        if database is None:
            database = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            self._open.append(database)
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA secure_delete = ON")
            self._local.database = database
        try:
            yield database
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise
        if database.in_transaction:
            database.execute("COMMIT")

    @contextlib.contextmanager
    def _writing(self, *, durable: bool = False) -> Iterator[sqlite3.Connection]:
        """Yield a connection inside a transaction; a durable one survives the loss of power too."""
        try:
            with self._connected() as database:
                database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                database.execute("BEGIN IMMEDIATE")
                yield database
        except EmbedfitError:
            raise
        except sqlite3.Error as error:
            raise StorageError(f"{self.path}: feedback cannot be written: {error}") from None


def one_line(text: str) -> str:
    """Return a name without controls, white space at its ends, or runs of white space; at most 100 characters."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())[:100]
