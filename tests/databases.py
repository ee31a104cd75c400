"""A real PostgreSQL with pgvector, for all tests that need a database."""

import contextlib
import shutil
import tempfile

import pytest


class Databases:
    """Databases of one PostgreSQL. Making one takes longer than most tests, so a database that was used is emptied and lent again."""

    def __init__(self, server):
        self.server, self.free, self.names = server, [], iter(range(10_000))

    def execute(self, *statements, name=None):
        import psycopg

        with psycopg.connect(self.server.get_uri(database=name or "postgres"), autocommit=True) as connection:
            return [cursor.fetchall() if cursor.description else [] for cursor in map(connection.execute, statements)]

    @contextlib.contextmanager
    def stopped(self):
        """Stop the server, as for an update, and start it again."""
        import pgserver

        pgserver.postgres_server.pg_ctl(["-m", "fast", "-w", "stop"], pgdata=self.server.pgdata, user=self.server.system_user)
        try:
            yield
        finally:
            self.server.ensure_postgres_running()

    def lend(self):
        """Return the name of an empty database."""
        if self.free:
            return self.free.pop()
        name = f"test{next(self.names)}"
        self.execute(f"CREATE DATABASE {name}")
        return name

    def take_back(self, name):
        """Empty a database: what a test made in it goes, and so do the connections that a killed process left behind."""
        [_, tables, schemas] = self.execute(
            "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
            "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'",
            r"SELECT quote_ident(nspname) FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname NOT IN ('public', 'information_schema')",
            name=name,
        )
        self.execute(
            *(f"DROP TABLE public.{table} CASCADE" for (table,) in tables),
            "DROP EXTENSION IF EXISTS vector CASCADE",
            *(f"DROP SCHEMA {schema} CASCADE" for (schema,) in schemas),
            name=name,
        )
        self.free.append(name)


@pytest.fixture(scope="session")
def databases():
    """Empty databases of a real PostgreSQL with pgvector."""
    import pgserver

    # Not in pytest's own folder: under root the server is another user, whom the next pytest to start would lock out of it.
    server = pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    made = Databases(server)
    # No test takes the power away, and writing everything through to the disk took longer than all the rest.
    made.execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    yield made
    # At once: an orderly end writes all databases through to the disk, only for them to be deleted.
    pgserver.postgres_server.pg_ctl(["-m", "immediate", "-w", "stop"], pgdata=server.pgdata, user=server.system_user)
    server.cleanup_mode = None  # it would wait seconds for a server that has ended
    server.cleanup()
    shutil.rmtree(server.pgdata)


@pytest.fixture
def postgres(databases):
    """A function that gives the connection string of an empty database for one test."""
    lent = []

    def database():
        lent.append(databases.lend())
        return databases.server.get_uri(database=lent[-1])

    yield database
    for name in lent:
        databases.take_back(name)
