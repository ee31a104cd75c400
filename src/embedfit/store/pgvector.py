"""PostgreSQL with pgvector.

A version is a table ``(id, text, metadata, embedding)`` with an HNSW index. Two small tables beside it hold what the versions
were made from, and for each index which of them answers.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, LiteralString

from embedfit.encode.encoder import Vectors
from embedfit.errors import ConfigError, StorageError, require
from embedfit.store.base import Entry, Filters, Found, Live, Stamp, belongs, is_exact, one_line, readings

if TYPE_CHECKING:
    from psycopg import Connection
    from psycopg.sql import Composed

_EF_SEARCH, _MOST = 40, 1000
"""pgvector's own hnsw.ef_search, under which no more documents are found, and the highest it takes."""
_WIDEST = 2000
"""Dimensions that pgvector's HNSW takes."""
_LONGEST_ID = 2500
"""Bytes; a little under what PostgreSQL's B-tree takes of a key that cannot be compressed."""
_IS_THERE: LiteralString = "to_regclass(quote_ident(collection)) IS NOT NULL"
"""A table that somebody dropped leaves its row behind."""
_WHOLE = "embedfit:whole"
"""Key, in the metadata, of all of it as JSON: there where jsonb would make a whole number of a large float."""


class PgvectorStore:
    """Collections as tables of PostgreSQL, with pgvector's default settings but for cosine distance.

    Args:
        location: A connection string; an empty one leaves everything to PGHOST, PGUSER, PGPASSWORD ...
        index: The live name.

    Raises:
        ConfigError: The location is no connection string.
    """

    takes_nul = False
    longest_id: int | None = _LONGEST_ID

    def __init__(self, location: str, index: str) -> None:
        psycopg = require("psycopg", extra="pgvector")
        require("pgvector", extra="pgvector")
        from psycopg.conninfo import conninfo_to_dict

        try:
            said = conninfo_to_dict(location)
        except psycopg.Error:
            # What it says is not shown: it may hold a password.
            raise ConfigError(
                "store.location is not a connection string; expected one like postgresql://user@host/database, or env:NAME"
            ) from None
        _check_address(location, said)
        self.location, self.index = location, index
        database = str(said.get("dbname") or "default database")
        if "=" in database or "://" in database:  # libpq takes a whole connection string here, password and all
            database = "a database"
        self.where = f"PostgreSQL, {said.get('host') or 'default host'}/{database}"
        self.secrets = _secrets(location, said)
        self._connection: Connection[Any] | None = None

    @property
    def errors(self) -> tuple[type[Exception], ...]:
        """What psycopg raises."""
        import psycopg

        return (psycopg.Error,)

    @property
    def _database(self) -> Connection[Any]:
        import psycopg

        if self._connection is None or self._connection.closed:
            connection = psycopg.connect(self.location, autocommit=True)
            # No plan is kept: it would not heed the settings that each search makes.
            connection.prepare_threshold = None
            # The server notices a killed client while it builds an index, and gives up the lock; not every system's can.
            with contextlib.suppress(psycopg.errors.InvalidParameterValue, psycopg.errors.UndefinedObject):
                connection.execute("SET client_connection_check_interval = '1s'")
            self._connection = connection
            self._use_extension()
        return self._connection

    def _use_extension(self) -> bool:
        """Make the type of pgvector known to this connection, from whatever schema it is in; returns whether it is there."""
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

    def _is_there(self) -> bool:
        return bool(
            self._query("SELECT to_regclass('embedfit_live') IS NOT NULL AND to_regclass('embedfit_collections') IS NOT NULL")[0][0]
        )

    def writing(self) -> contextlib.AbstractContextManager[None]:
        """Keep other writers out, by a lock of the server that ends with the connection."""
        return self._locked()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock()
        try:
            yield
        finally:
            if self._connection and not self._connection.closed:
                self._query("SELECT pg_advisory_unlock(hashtext(%s))", [f"embedfit {self.index}"])

    @one_line
    def _lock(self) -> None:
        import psycopg

        try:
            with self._database.transaction():
                # The server may take a moment to notice that the last writer was killed.
                self._query("SET LOCAL lock_timeout = '2s'")
                self._query("SELECT pg_advisory_lock(hashtext(%s))", [f"embedfit {self.index}"])
        except psycopg.errors.LockNotAvailable:
            raise StorageError(f"{self.where}: another process is writing to it; fix: wait for it") from None

    @one_line
    def live(self) -> Live:
        """Return which collection answers."""
        found = self._query("SELECT live, previous FROM embedfit_live WHERE index = %s", [self.index]) if self._is_there() else []
        return Live(*found[0]) if found else Live()

    @one_line
    def switch(self, live: Live) -> None:
        """Let another collection answer, for every reader from one moment on."""
        self._query(
            "INSERT INTO embedfit_live (index, live, previous) VALUES (%s, %s, %s)"
            " ON CONFLICT (index) DO UPDATE SET live = EXCLUDED.live, previous = EXCLUDED.previous",
            [self.index, live.current, live.previous],
        )

    @one_line
    def collections(self) -> list[str]:
        """Return the names of the collections of this index."""
        if not self._is_there():
            return []
        found = self._query("SELECT collection FROM embedfit_collections WHERE " + _IS_THERE)
        return [name for (name,) in found if belongs(name, self.index)]

    @one_line
    def create(self, collection: str, stamp: Stamp) -> None:
        """Make an empty table, and before it what all of them need.

        Raises:
            StorageError: The vectors have more dimensions than pgvector's HNSW takes, or pgvector is not there.
        """
        if stamp.dimension > _WIDEST:
            raise StorageError(
                f"{self.where}: pgvector's HNSW takes {_WIDEST:,} dimensions, and the vectors have {stamp.dimension:,}; "
                "fix: cut them (Matryoshka), or use another store"
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
            schema = "its schema, public by default"
            raise StorageError(f"{self.where}: {error.diag.message_primary}; fix: GRANT CREATE ON SCHEMA {schema}, to this user") from None

    def _create_extension(self) -> None:
        import psycopg

        try:
            self._query("CREATE EXTENSION IF NOT EXISTS vector")
        except (psycopg.errors.InsufficientPrivilege, psycopg.errors.FeatureNotSupported, psycopg.errors.UndefinedFile) as error:
            refused = isinstance(error, psycopg.errors.InsufficientPrivilege)
            why = "this user may not create it" if refused else "the server has not got it"
            raise StorageError(
                f"{self.where}: the extension pgvector is not in this database, and {why}; "
                "fix: install pgvector on the server, and as its superuser, in this database: CREATE EXTENSION vector"
            ) from None
        self._use_extension()

    @one_line
    def stamp(self, collection: str) -> Stamp:
        """Return what a collection was made from."""
        found = self._query("SELECT stamp FROM embedfit_collections WHERE collection = %s AND " + _IS_THERE, [collection])
        return Stamp.from_json(found[0][0] if found else "null", self.where)

    @one_line
    def ids(self, collection: str) -> set[str]:
        """Return the ids of the documents that are in a collection."""
        return {id for (id,) in self._query("SELECT id FROM {table}", table=collection)}

    @one_line
    def add(self, collection: str, entries: Sequence[Entry], vectors: Vectors) -> None:
        """Put documents in that are not there yet: all of them, or none."""
        from psycopg.types.json import Jsonb

        statement = _sql("COPY {table} (id, text, metadata, embedding) FROM STDIN WITH (FORMAT BINARY)", table=collection)
        with self._database.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(["text", "text", "jsonb", "vector"])
            for entry, vector in zip(entries, vectors, strict=True):
                copy.write_row((entry.id, entry.text, Jsonb(_kept(entry.metadata)), vector))

    @one_line
    def finish(self, collection: str) -> None:
        """Build the HNSW index: many times faster over a full table than row by row."""
        with self._database.transaction():
            # Enough for the graph of some 100,000 vectors; beyond it, pgvector goes on, more slowly.
            self._query("SET LOCAL maintenance_work_mem = '512MB'")
            self._query(
                "CREATE INDEX IF NOT EXISTS {name} ON {table} USING hnsw (embedding vector_cosine_ops)",
                name=f"{collection}_hnsw",
                table=collection,
            )
        self._query("ANALYZE {table}", table=collection)

    @one_line
    def nearest(self, collection: str, vectors: Vectors, k: int, filters: Filters) -> list[Found]:
        """Return up to k documents for each vector; exactly, where there are filters.

        HNSW drops what a filter refuses only after it has chosen what is near, so a rare value would find next to nothing.
        """
        conditions = [(key, candidate) for key, value in filters.items() for candidate in [_contained(key, value)]]
        where: LiteralString = " AND ".join(["metadata @> ANY (%s)"] * len(conditions)) or "true"
        found: list[Found] = []
        with self._database.transaction():
            if conditions or k > _MOST:
                self._query("SET LOCAL enable_indexscan = off")
            else:
                self._query("SELECT set_config('hnsw.ef_search', %s, true)", [str(max(_EF_SEARCH, k))])
            for vector in vectors:
                found.append(
                    self._query(
                        "SELECT id, 1 - (embedding <=> %s) AS score FROM {table} WHERE " + where + " ORDER BY embedding <=> %s LIMIT %s",
                        [vector, *(candidate for _, candidate in conditions), vector, k],
                        table=collection,
                    )  # type: ignore[arg-type]
                )
        return found

    @one_line
    def entries(self, collection: str, ids: Sequence[str]) -> dict[str, Entry]:
        """Return documents by their ids."""
        found = self._query("SELECT id, text, metadata FROM {table} WHERE id = ANY (%s)", [list(ids)], table=collection)
        return {id: Entry(id, text, _given_back(metadata)) for id, text, metadata in found}

    @one_line
    def drop(self, collection: str) -> None:
        """Remove a table."""
        with self._database.transaction():
            self._query("DROP TABLE IF EXISTS {table}", table=collection)
            self._query("DELETE FROM embedfit_collections WHERE collection = %s", [collection])

    def close(self) -> None:
        """Close the connection."""
        if self._connection:
            self._connection.close()
            self._connection = None


def _check_address(location: str, said: Mapping[str, Any]) -> None:
    """Refuse a URL whose password is not percent-encoded: libpq would take a part of it for the host, the port or the database.

    Raises:
        ConfigError: It has two ``@``, one behind the host, or a port that is no number. What it says is not shown.
    """
    inner = str(said.get("dbname") or "")
    if "://" in inner or "=" in inner:  # libpq takes a whole connection string there
        from psycopg import Error
        from psycopg.conninfo import conninfo_to_dict

        with contextlib.suppress(Error):
            _check_address(inner, conninfo_to_dict(inner))
    url = location if location.startswith(("postgresql://", "postgres://")) else ""
    user_and_host, slash, rest = url.partition("://")[2].partition("?")[0].partition("/")
    ports = str(said.get("port") or "").split(",")
    if user_and_host.count("@") > 1 or "@" in slash + rest or not all(port.isascii() and (port.isdigit() or not port) for port in ports):
        raise ConfigError(
            "store.location is not a connection string like postgresql://user:password@host:5432/database; it is not shown; "
            "fix: percent-encode what is special in the password: @ as %40, / as %2F, : as %3A, ? as %3F"
        )


def _secrets(location: str, said: Mapping[str, Any]) -> tuple[str, ...]:
    """Return what of a connection string may be in no message, the longest first."""
    from urllib.parse import quote, quote_plus

    words = [str(said[name]) for name in ("password", "sslpassword", "dbname") if said.get(name)]
    words = [word for word in words if word != said.get("dbname") or "=" in word or "://" in word]
    forms = {form for word in words for form in (word, quote(word, safe=""), quote(word), quote_plus(word))}
    return tuple(sorted({location, *forms} - {""}, key=len, reverse=True))


def _kept(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata as jsonb keeps it, led by all of it as JSON where that alone is exact."""
    if is_exact(metadata) and _WHOLE not in metadata:
        return metadata
    own = metadata.get(_WHOLE, [])  # a field of this name can be filtered by too
    return {**metadata, _WHOLE: [json.dumps(metadata), *(own if isinstance(own, list) else [own])]}


def _given_back(metadata: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(metadata[_WHOLE][0]) if _WHOLE in metadata else metadata
    return whole


def _sql(text: LiteralString, **tables: str) -> Composed:
    from psycopg import sql

    return sql.SQL(text).format(**{name: sql.Identifier(table) for name, table in tables.items()})


def _contained(key: str, value: str) -> list[Any]:
    """Return the metadata that contains a key with a value, or with a list that holds it."""
    from psycopg.types.json import Jsonb

    return [Jsonb({key: form}) for reading in readings(value) for form in (reading, [reading])]
