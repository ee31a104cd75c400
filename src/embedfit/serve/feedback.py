"""Feedback: what was asked, what was shown, and what people picked, in an SQLite file beside the searcher or in PostgreSQL."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

from embedfit.errors import DataError, StorageError
from embedfit.serve.databases import Statements, open_database

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
    id TEXT PRIMARY KEY, time DOUBLE PRECISION NOT NULL, key TEXT NOT NULL, query TEXT NOT NULL, record TEXT, person TEXT NOT NULL,
    source TEXT NOT NULL, model TEXT NOT NULL, shown TEXT NOT NULL, order_probability DOUBLE PRECISION NOT NULL,
    abstained INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS searches_by_key ON searches (key);
CREATE INDEX IF NOT EXISTS searches_by_time ON searches (time);
CREATE TABLE IF NOT EXISTS picks (
    search TEXT NOT NULL REFERENCES searches (id), person TEXT NOT NULL, choice TEXT, place INTEGER, kind TEXT NOT NULL,
    time DOUBLE PRECISION NOT NULL, model TEXT NOT NULL, PRIMARY KEY (search, person));
CREATE TABLE IF NOT EXISTS examples (number {numbered}, key TEXT NOT NULL UNIQUE, text TEXT NOT NULL, document TEXT);
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
class Asked:
    """A search, as its statistics need it.

    Attributes:
        time: Time of the search, in seconds since 1970.
        key: Key of the text.
        query: Text.
        model: Fingerprint of the searcher.
        abstained: Whether the searcher gave no answer.
        probability: Probability of its best answer; None without a calibration.
    """

    time: float
    key: str
    query: str
    model: str
    abstained: bool
    probability: float | None


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
    """Searches and picks. Several processes may use a database at once, and each method may be called in any thread.

    Args:
        location: Path of an SQLite file; or ``postgresql://...``, or ``env:NAME``, the variable that holds such an address.
        agreement: When a pick becomes an example.

    Raises:
        ConfigError: The address cannot be used.
        StorageError: The database cannot be opened, or is of another program or version.
    """

    def __init__(self, location: str | Path, agreement: Agreement = "once") -> None:
        self.database, self.agreement = open_database(location), agreement
        self.name = self.database.name
        try:
            self._set_up()
        except StorageError as error:
            self.close()
            raise StorageError(f"{error}; fix: name another file, or a database that answers") from None

    def _set_up(self) -> None:
        tables = self.database.tables()
        if tables and not tables >= {"about", "searches", "picks", "examples"}:
            raise StorageError(f"{self.name}: is a database of another program")
        with self.database.transaction("open") as database:
            for statement in filter(str.strip, _TABLES.format(numbered=self.database.numbered).split(";")):
                database.execute(statement)
            values = ("version", _VERSION, "secret", secrets.token_hex(32))
            database.execute("INSERT INTO about VALUES (?, ?), (?, ?) ON CONFLICT DO NOTHING", values)
            known = dict(database.execute("SELECT name, value FROM about").fetchall())
        if known["version"] != _VERSION:
            raise StorageError(f"{self.name}: was written by another version of embedfit")
        self.secret = str(known["secret"])
        """A secret that all processes share, for the tokens of forms."""

    def close(self) -> None:
        """Close the database. No other method may be running, or be called again."""
        self.database.close()

    def record(self, searches: Sequence[Search]) -> None:
        """Store searches, once each. They survive the end of this process, however it ends.

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
        with self.database.transaction("record") as database:
            for row in rows:
                database.execute("INSERT INTO searches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row)

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
        with self.database.transaction("pick") as database:
            row = database.execute("SELECT key, shown FROM searches WHERE id = ?", (search,)).fetchone()
            if row is None:
                raise DataError("search_id", "is unknown", expected="the search_id of an answer, not deleted since")
            key, shown = row
            before = database.execute("SELECT choice, kind FROM picks WHERE search = ? AND person = ?", (search, person)).fetchone()
            if before != (choice, kind):
                place = next((place for place, hit in enumerate(json.loads(shown), 1) if hit["id"] == choice), None)
                database.execute("DELETE FROM picks WHERE search = ? AND person = ?", (search, person))
                values = (search, person, choice, place, kind, time.time(), model)
                database.execute("INSERT INTO picks VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            learned, conflict = self._learn(database, key)
        return Stored(before == (choice, kind), before is not None and before != (choice, kind), learned, conflict)

    def undo(self, search: str, person: str | None = None) -> bool:
        """Remove the pick of a search, of one person or of all; return whether there was one."""
        with self.database.transaction("pick") as database:
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
        value = search if search is not None else person
        condition, picks = "id = ?", "search = ?"
        if search is None:
            condition, picks = "person = ?", "person = ? OR search IN (SELECT id FROM searches WHERE person = ?)"
        values = (value,) * picks.count("?")
        with self.database.transaction("pick") as database:
            picked = f"id IN (SELECT search FROM picks WHERE {picks})"
            keys = database.execute(f"SELECT DISTINCT key FROM searches WHERE {condition} OR {picked}", (value, *values)).fetchall()
            count = int(database.execute(f"DELETE FROM picks WHERE {picks}", values).rowcount)
            count += int(database.execute(f"DELETE FROM searches WHERE {condition}", (value,)).rowcount)
            for (key,) in keys:
                self._learn(database, key)
        self.database.erase()
        return count

    def forget_unpicked(self, days: float) -> int:
        """Delete searches without a pick that are older than some days; return their number."""
        with self.database.transaction("pick") as database:
            old = time.time() - 86_400 * days
            return int(database.execute("DELETE FROM searches WHERE time < ? AND id NOT IN (SELECT search FROM picks)", (old,)).rowcount)

    def examples(self, after: int = 0) -> tuple[int, list[tuple[str, str, str | None]]]:
        """Return the examples that were added or taken back since a number.

        Args:
            after: The number that the last call returned; 0 for all.

        Returns:
            The latest number, and (key, text, document id or None) for each change, in order.
        """
        with self.database.transaction() as database:
            rows = database.execute(
                "SELECT number, key, text, document FROM examples WHERE number > ? ORDER BY number", (after,)
            ).fetchall()
        return (rows[-1][0] if rows else after), [row[1:] for row in rows]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield each pick with its search, oldest first."""
        names = {"person": "picks.person", "time": "picks.time", "model": "picks.model", "asked": "searches.time"}
        columns = ", ".join(names.get(name, name) for name in _ROW)
        with self.database.transaction() as database:
            picks = database.execute(
                f"SELECT {columns} FROM picks JOIN searches ON id = search ORDER BY picks.time, search, picks.person"
            ).fetchall()
        for row in picks:
            yield dict(zip(_ROW, row, strict=True))

    def asked(self) -> list[Asked]:
        """Return each search, oldest first."""
        columns = f"time, key, query, model, abstained, {self.database.best}"
        with self.database.transaction() as database:
            rows = database.execute(f"SELECT {columns} FROM searches ORDER BY time, id").fetchall()
        return [Asked(time, key, query, model, bool(abstained), best) for time, key, query, model, abstained, best in rows]

    def _learn(self, database: Statements, key: str) -> tuple[bool, bool]:
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
            values = (key, picks[0][3] if document else "", document)
            database.execute("DELETE FROM examples WHERE key = ?", (key,))
            database.execute("INSERT INTO examples (key, text, document) VALUES (?, ?, ?)", values)
        return document is not None, conflict


def one_line(text: str) -> str:
    """Return a name without controls, white space at its ends, or runs of white space; at most 100 characters."""
    return " ".join(re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text).split())[:100]
