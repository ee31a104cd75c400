"""PostgreSQL with pgvector.

A version is a table ``(id, text, metadata, embedding)`` with an HNSW index. Two small tables beside it hold the stamps of all
versions and the live version of each index.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, LiteralString, ParamSpec, TypeVar

import numpy as np

from embedfit.encode.encoder import Vectors
from embedfit.errors import ConfigError, StorageError, require
from embedfit.store.base import INDEX_AGAIN, Entry, Filters, Live, Neighbours, Stamp, belongs, one_line
from embedfit.store.connection import check_address, secrets_of
from embedfit.store.values import is_exact, readings

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.sql import Composed

_EF_SEARCH, _MOST = 40, 1000
"""Default and maximum of pgvector's hnsw.ef_search, which limits how many documents a search returns."""
_WIDEST = 2000
"""Maximum number of dimensions of pgvector's HNSW index."""
_LONGEST_ID = 2500
"""Bytes; slightly under the limit of PostgreSQL's B-tree for a key that does not compress."""
_TABLE_EXISTS: LiteralString = "to_regclass(quote_ident(collection)) IS NOT NULL"
"""Condition for a row whose table still exists: a table that somebody dropped leaves its row behind."""
_WHOLE = "embedfit:whole"
"""Metadata key of the whole metadata as JSON, for values that jsonb would change, such as large floats."""


_Arguments = ParamSpec("_Arguments")
_Returned = TypeVar("_Returned")


def _read(
    method: Callable[Concatenate[PgvectorStore, _Arguments], _Returned],
) -> Callable[Concatenate[PgvectorStore, _Arguments], _Returned]:
    """Make a method that only reads begin again, on a new connection, if its own turns out to be lost."""

    @one_line
    @functools.wraps(method)
    def call(self: PgvectorStore, /, *args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Returned:
        try:
            return method(self, *args, **kwargs)
        except self.errors:
            if not self.is_lost:
                raise
        return method(self, *args, **kwargs)

    return call


class PgvectorStore:
    """Collections as tables of PostgreSQL, with pgvector's default settings except for cosine distance.

    Args:
        location: Connection string; if empty, PGHOST, PGUSER, PGPASSWORD and so on apply.
        index: Live name of the index.

    Raises:
        ConfigError: The location is not a connection string.
    """

    takes_nul = False
    longest_id: int | None = _LONGEST_ID

    def __init__(self, location: str, index: str) -> None:
        psycopg = require("psycopg", extra="pgvector")
        require("pgvector", extra="pgvector")
        from psycopg.conninfo import conninfo_to_dict

        try:
            parameters = conninfo_to_dict(location)
        except psycopg.Error:
            # psycopg's message is not shown, because it may contain a password.
            raise ConfigError(
                "store.location is not a connection string; expected one like postgresql://user@host/database, or env:NAME"
            ) from None
        check_address(location, parameters)
        self.location, self.index = location, index
        database = str(parameters.get("dbname") or "default database")
        if "=" in database or "://" in database:  # libpq accepts a whole connection string here, including a password
            database = "a database"
        self.where = f"PostgreSQL, {parameters.get('host') or 'default host'}/{database}"
        self.secrets = secrets_of(location, parameters)
        self._connection: Connection[Any] | None = None
        self._is_writing = False

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """Exceptions that psycopg raises."""
        import psycopg

        return (psycopg.Error,)

    def fix_of(self, error: BaseException) -> str:
        """Return how to repair the damage that an error shows; empty if it shows none."""
        from psycopg.errors import DataCorrupted, IndexCorrupted, UndefinedColumn, UndefinedTable

        return INDEX_AGAIN if isinstance(error, DataCorrupted | IndexCorrupted | UndefinedColumn | UndefinedTable) else ""

    @property
    def is_lost(self) -> bool:
        """Whether the connection was lost, and no lock of a writer with it."""
        return self._connection is not None and self._connection.closed and not self._is_writing

    @property
    def _database(self) -> Connection[Any]:
        import psycopg

        if self._connection is None or self._connection.closed:
            connection = psycopg.connect(self.location, autocommit=True)
            # A prepared plan would ignore the settings that each search makes.
            connection.prepare_threshold = None
            # Lets the server notice a killed client during an index build and release the lock; not supported on every platform.
            with contextlib.suppress(psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject):
                connection.execute("SET client_connection_check_interval = '1s'")
            self._connection = connection
            self._use_extension()
        return self._connection

    def _use_extension(self) -> bool:
        """Register the vector type with this connection, in whatever schema it is. Returns False if the extension is missing."""
        from pgvector.psycopg import register_vector

        schema = self._query("SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = 'vector'")
        if not schema:
            return False
        if not self._query("SELECT to_regtype('vector') IS NOT NULL")[0][0]:
            self._query(
                "SELECT set_config('search_path', concat_ws(', ', nullif(current_setting('search_path'), ''), %s::text), false)", schema[0]
            )
        register_vector(self._database)
        return True

    def _query(self, text: LiteralString, values: Sequence[Any] = (), **tables: str) -> list[tuple[Any, ...]]:
        cursor = self._database.execute(_sql(text, **tables), values or None)
        return cursor.fetchall() if cursor.description else []

    def _has_tables(self) -> bool:
        return bool(
            self._query("SELECT to_regclass('embedfit_live') IS NOT NULL AND to_regclass('embedfit_collections') IS NOT NULL")[0][0]
        )

    @contextlib.contextmanager
    def writing(self, wait: float = 0) -> Iterator[None]:
        """Hold an advisory lock of the server, which ends with the connection."""
        # The server may need a moment to notice that the last writer was killed.
        self._lock(max(2, wait))
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False
            if self._connection and not self._connection.closed:
                self._query("SELECT pg_advisory_unlock(hashtext(%s))", [f"embedfit {self.index}"])

    @one_line
    def _lock(self, seconds: float) -> None:
        import psycopg

        try:
            with self._database.transaction():
                self._query("SELECT set_config('lock_timeout', %s, true)", [f"{seconds * 1000:.0f}ms"])
                self._query("SELECT pg_advisory_lock(hashtext(%s))", [f"embedfit {self.index}"])
        except psycopg.errors.LockNotAvailable:
            raise StorageError(f"{self.where}: another process is writing to it; fix: wait for it") from None

    @_read
    def live(self) -> Live:
        """Return the collections behind the live name."""
        rows = self._query("SELECT live, previous FROM embedfit_live WHERE index = %s", [self.index]) if self._has_tables() else []
        return Live(*rows[0]) if rows else Live()

    @one_line
    def switch(self, live: Live) -> None:
        """Point the live name to other collections, atomically for all readers."""
        self._query(
            "INSERT INTO embedfit_live (index, live, previous) VALUES (%s, %s, %s)"
            " ON CONFLICT (index) DO UPDATE SET live = EXCLUDED.live, previous = EXCLUDED.previous",
            [self.index, live.current, live.previous],
        )

    @_read
    def collections(self) -> list[str]:
        """Return the names of all collections of this index."""
        if not self._has_tables():
            return []
        rows = self._query("SELECT collection FROM embedfit_collections WHERE " + _TABLE_EXISTS)
        return [name for (name,) in rows if belongs(name, self.index)]

    @one_line
    def create(self, collection: str, stamp: Stamp) -> None:
        """Create an empty table, after the extension and the shared tables if they are missing.

        Raises:
            StorageError: The vectors have too many dimensions for an HNSW index, or pgvector is missing.
        """
        if stamp.dimension > _WIDEST:
            raise StorageError(
                f"{self.where}: pgvector's HNSW takes {_WIDEST:,} dimensions, and the vectors have {stamp.dimension:,}; "
                "fix: truncate them (Matryoshka), or use another store"
            )
        if not self._use_extension():
            self._create_extension()
        with self._allowed(), self._database.transaction():
            self._query("CREATE TABLE IF NOT EXISTS embedfit_collections (collection text PRIMARY KEY, stamp text NOT NULL)")
            self._query("CREATE TABLE IF NOT EXISTS embedfit_live (index text PRIMARY KEY, live text NOT NULL, previous text NOT NULL)")
            self._query("INSERT INTO embedfit_collections VALUES (%s, %s) ON CONFLICT DO NOTHING", [collection, stamp.to_json()])
            self._query(
                "CREATE TABLE IF NOT EXISTS {table} (id text PRIMARY KEY, text text NOT NULL, metadata jsonb NOT NULL,"
                f" embedding vector({int(stamp.dimension)}) NOT NULL)",
                table=collection,
            )

    @contextlib.contextmanager
    def _allowed(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except psycopg.errors.InsufficientPrivilege as error:
            raise StorageError(
                f"{self.where}: {error.diag.message_primary}; fix: GRANT CREATE ON SCHEMA public (or the schema in use) to this user"
            ) from None

    def _create_extension(self) -> None:
        import psycopg

        try:
            self._query("CREATE EXTENSION IF NOT EXISTS vector")
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
            refused = isinstance(error, psycopg.errors.InsufficientPrivilege)
            why = "this user may not create it" if refused else "the server does not provide it"
            raise StorageError(
                f"{self.where}: the extension pgvector is not in this database, and {why}; "
                "fix: install pgvector on the server, and as its superuser, in this database: CREATE EXTENSION vector"
            ) from None
        self._use_extension()

    @_read
    def stamp(self, collection: str) -> Stamp:
        """Return the stamp of a collection."""
        rows = self._query("SELECT stamp FROM embedfit_collections WHERE collection = %s AND " + _TABLE_EXISTS, [collection])
        return Stamp.from_json(rows[0][0] if rows else "null", self.where)

    @_read
    def ids(self, collection: str) -> set[str]:
        """Return the ids of all documents in a collection."""
        return {id for (id,) in self._query("SELECT id FROM {table}", table=collection)}

    @one_line
    def add(self, collection: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        """Add new documents: all of them, or none."""
        from psycopg.types.json import Jsonb

        statement = _sql("COPY {table} (id, text, metadata, embedding) FROM STDIN WITH (FORMAT BINARY)", table=collection)
        with self._database.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(["text", "text", "jsonb", "vector"])
            for entry, vector in zip(entries, vectors, strict=True):
                copy.write_row((entry.id, entry.text, Jsonb(_stored(entry.metadata)), vector))

    @one_line
    def finish(self, collection: str) -> None:
        """Build the HNSW index, which is many times faster over a full table than row by row."""
        with self._database.transaction():
            # Enough for the graph of about 100,000 vectors; beyond that, pgvector continues more slowly.
            self._query("SET LOCAL maintenance_work_mem = '512MB'")
            self._query(
                "CREATE INDEX IF NOT EXISTS {name} ON {table} USING hnsw (embedding vector_cosine_ops)",
                name=f"{collection}_hnsw",
                table=collection,
            )
        self._query("ANALYZE {table}", table=collection)

    @_read
    def nearest(self, collection: str, vectors: Vectors, k: int, filters: Filters) -> list[Neighbours]:
        """Return up to k documents for each query vector. Searches with filters are exact.

        HNSW applies filters only after it has chosen the nearest documents, so a rare value would match almost nothing.
        """
        conditions = [(key, candidate) for key, value in filters.items() for candidate in [_contained(key, value)]]
        where: LiteralString = " AND ".join(["metadata @> ANY (%s)"] * len(conditions)) or "true"
        neighbours: list[Neighbours] = []
        with self._database.transaction():
            if conditions or k > _MOST:
                self._query("SET LOCAL enable_indexscan = off")
            else:
                self._query("SELECT set_config('hnsw.ef_search', %s, true)", [str(max(_EF_SEARCH, k))])
            for vector in vectors:
                neighbours.append(
                    self._query(
                        "SELECT id, 1 - (embedding <=> %s) AS score FROM {table} WHERE " + where + " ORDER BY embedding <=> %s LIMIT %s",
                        [vector, *(candidate for _, candidate in conditions), vector, k],
                        table=collection,
                    )  # type: ignore[arg-type]
                )
        return neighbours

    @_read
    def entries(self, collection: str, ids: Sequence[str]) -> dict[str, Entry]:
        """Return documents by id."""
        rows = self._query("SELECT id, text, metadata FROM {table} WHERE id = ANY (%s)", [list(ids)], table=collection)
        return {id: Entry(id, text, _restored(metadata)) for id, text, metadata in rows}

    @_read
    def vectors(self, collection: str, ids: Sequence[str]) -> dict[str, Vectors]:
        """Return vectors by id."""
        rows = self._query("SELECT id, embedding FROM {table} WHERE id = ANY (%s)", [list(ids)], table=collection)
        return {id: vector.to_numpy().astype(np.float32) for id, vector in rows}

    @one_line
    def delete(self, collection: str, ids: Sequence[str]) -> None:
        """Delete entries by id."""
        self._query("DELETE FROM {table} WHERE id = ANY (%s)", [list(ids)], table=collection)

    @one_line
    def drop(self, collection: str) -> None:
        """Drop a table and its stamp."""
        with self._database.transaction():
            self._query("DROP TABLE IF EXISTS {table}", table=collection)
            self._query("DELETE FROM embedfit_collections WHERE collection = %s", [collection])

    def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            self._connection = None


def _stored(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata as jsonb stores it, with the whole as JSON where jsonb is not exact."""
    if is_exact(metadata) and _WHOLE not in metadata:
        return metadata
    own = metadata.get(_WHOLE, [])  # a field of the same name can still be filtered by
    return {**metadata, _WHOLE: [json.dumps(metadata), *(own if isinstance(own, list) else [own])]}


def _restored(metadata: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(metadata[_WHOLE][0]) if _WHOLE in metadata else metadata
    return whole


def _sql(text: LiteralString, **tables: str) -> Composed:
    from psycopg import sql

    return sql.SQL(text).format(**{name: sql.Identifier(table) for name, table in tables.items()})


def _contained(key: str, value: str) -> list[Any]:
    """Return the jsonb values that contain a key with a value, or with a list that contains it."""
    from psycopg.types.json import Jsonb

    return [Jsonb({key: form}) for reading in readings(value) for form in (reading, [reading])]
