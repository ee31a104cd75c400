"""The databases that feedback is kept in: an SQLite file, or PostgreSQL. Both run the same statements."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

from embedfit.errors import ConfigError, EmbedfitError, StorageError, require
from embedfit.secrets import FROM_ENVIRONMENT, from_environment
from embedfit.store.base import message_of
from embedfit.store.connection import check_address, secrets_of

if TYPE_CHECKING:
    from psycopg import Connection

SCHEMA = "embedfit_feedback"
"""Schema of the tables in PostgreSQL."""
_LOCK = 0x656D6265
"""Number of the advisory lock that writers of picks hold in PostgreSQL."""
_CONNECT_SECONDS, _DOWN_SECONDS = 3, 1.0
"""Time to wait for PostgreSQL to accept a connection, and time for which it is not asked again after it did not."""

Purpose: TypeAlias = Literal["read", "record", "pick", "open"]
"""What a transaction does: read, store searches, change picks, or make the tables."""
_WORDS = {"read": "read", "record": "written", "pick": "written", "open": "opened"}


class Statements(Protocol):
    """A transaction: statements with ``?`` for each value."""

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement; return its cursor."""
        ...


class Database(Protocol):
    """What feedback needs of a database.

    Attributes:
        name: Name for messages, without secrets.
        numbered: Type of a column that numbers the rows in the order of their transactions.
        best: Expression for the highest probability in the column ``shown``.
    """

    name: str
    numbered: str
    best: str

    def transaction(self, purpose: Purpose = "read") -> contextlib.AbstractContextManager[Statements]:
        """Yield a transaction, which is committed at the end.

        Args:
            purpose: What it does. Transactions that pick or open come one after another, and survive the loss of power. One that reads
                is for a single statement.

        Raises:
            StorageError: The database cannot be reached, read or written.
        """
        ...

    def tables(self) -> set[str]:
        """Return the names of the tables that exist."""
        ...

    def erase(self) -> None:
        """Overwrite what was deleted, as far as the database can."""
        ...

    def close(self) -> None:
        """Close all connections. No other method may be running, or be called again."""
        ...


def is_address(location: str) -> bool:
    """Return whether a location is PostgreSQL's, and no file's."""
    return location.startswith(("postgresql://", "postgres://", FROM_ENVIRONMENT))


def open_database(location: str | Path) -> Database:
    """Return the database of a file's path, of ``postgresql://...``, or of ``env:NAME``, the variable that holds such an address."""
    return PostgreSQL(str(location)) if is_address(str(location)) else SQLiteFile(Path(location))


class SQLiteFile:
    """An SQLite file in WAL mode. Several processes may use it at once, and each method may be called in any thread.

    Args:
        path: Path of the file.
    """

    numbered = "INTEGER PRIMARY KEY AUTOINCREMENT"
    best = "(SELECT max(json_extract(value, '$.probability')) FROM json_each(shown))"

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []

    @contextlib.contextmanager
    def transaction(self, purpose: Purpose = "read") -> Iterator[Statements]:
        """Yield a transaction; see `Database`."""
        try:
            connection = self._connection()
            if purpose == "read":
                yield connection  # a statement alone sees one state; each search reads the examples, so time counts
                return
            connection.execute(f"PRAGMA synchronous = {'NORMAL' if purpose == 'record' else 'FULL'}")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:  # a full disk may have ended it, or left it open
                    connection.execute("ROLLBACK")
        except EmbedfitError:
            raise
        except (sqlite3.Error, OSError) as error:
            raise StorageError(f"{self.name}: the feedback cannot be {_WORDS[purpose]}: {error}") from None

    def tables(self) -> set[str]:
        """Return the names of the tables that exist."""
        with self.transaction("open") as database:
            return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def erase(self) -> None:
        """Empty the journal, in which deleted texts linger."""
        with contextlib.suppress(sqlite3.Error):  # someone reads: the journal is emptied later
            self._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def close(self) -> None:
        """Close all connections."""
        for connection in self._open:
            connection.close()

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            connection = sqlite3.connect(self.path, timeout=30, isolation_level=None, check_same_thread=False)
            self._open.append(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA secure_delete = ON")
            self._local.connection = connection
        return connection


class PostgreSQL:
    """A schema of its own in a PostgreSQL database. Each thread has a connection, which is made again when it is lost.

    Args:
        location: Address of the database, or ``env:NAME``, the variable that holds it.

    Raises:
        ConfigError: It is no address, or the variable is not set.
    """

    numbered = "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY"
    best = "(SELECT max((hit ->> 'probability')::double precision) FROM json_array_elements(shown::json) AS hit)"

    def __init__(self, location: str) -> None:
        psycopg = require("psycopg", extra="pgvector")
        from psycopg.conninfo import conninfo_to_dict

        self._address = address = from_environment(location, "feedback").strip()
        try:
            self._parameters = conninfo_to_dict(address)
        except psycopg.Error:  # its message may hold a password
            raise ConfigError("the feedback's address is not shown; expected postgresql://user@host/database, or env:NAME") from None
        check_address(address, self._parameters)
        self.secrets = secrets_of(address, self._parameters)
        self.name = f"PostgreSQL, {self._parameters.get('host') or 'default host'}"
        self._errors: tuple[type[Exception], ...] = (psycopg.Error, OSError)
        self._local = threading.local()
        self._open: list[Connection[Any]] = []
        self._down_until = 0.0

    @contextlib.contextmanager
    def transaction(self, purpose: Purpose = "read") -> Iterator[Statements]:
        """Yield a transaction; see `Database`."""
        try:
            connection = self._begun()
            try:
                if purpose in ("pick", "open"):
                    # Readers go on from the highest number that they have seen: no lower one may appear later.
                    connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
                yield _Translated(connection)
            except BaseException:
                with contextlib.suppress(*self._errors):
                    connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")
        except self._errors as error:
            reason = message_of(error, self.secrets)
            raise StorageError(f"{self.name}: the feedback cannot be {_WORDS[purpose]}: {reason}") from None

    def tables(self) -> set[str]:
        """Return the names of the tables that exist. The schema is made if it is missing."""
        with self.transaction("open") as database:
            database.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
            rows = database.execute("SELECT tablename FROM pg_tables WHERE schemaname = ?", (SCHEMA,)).fetchall()
        return {name for (name,) in rows}

    def erase(self) -> None:
        """Leave it to PostgreSQL, which overwrites deleted rows after a vacuum."""

    def close(self) -> None:
        """Close all connections."""
        for connection in self._open:
            connection.close()

    def _begun(self) -> Connection[Any]:
        """Return a connection in a transaction, a new one if the last one was lost."""
        connection: Connection[Any] | None = getattr(self._local, "connection", None)
        if connection is not None:
            try:
                connection.execute("BEGIN")
            except self._errors:
                connection.close()
            else:
                return connection
        connection = self._connected()
        connection.execute("BEGIN")
        return connection

    def _connected(self) -> Connection[Any]:
        import psycopg

        if time.monotonic() < self._down_until:
            raise psycopg.OperationalError("the database did not answer a moment ago")
        try:
            patience = int(self._parameters.get("connect_timeout") or _CONNECT_SECONDS)
            connection: Connection[Any] = psycopg.connect(self._address, autocommit=True, connect_timeout=patience)
            connection.execute(f"SET search_path = {SCHEMA}")
        except psycopg.Error:
            self._down_until = time.monotonic() + _DOWN_SECONDS
            raise
        self._open = [other for other in self._open if not other.closed] + [connection]
        self._local.connection = connection
        return connection


class _Translated:
    """Statements written for SQLite, in PostgreSQL's form."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement; return its cursor. PostgreSQL holds no NUL in a text."""
        clean = [value.replace("\0", "\ufffd") if isinstance(value, str) else value for value in values]
        return self._connection.execute(statement.replace("?", "%s"), clean)  # type: ignore[arg-type]
