"""What only PostgreSQL with pgvector does."""

import dataclasses
import os

import numpy as np
import pytest
from store_data import SECRET, STAMP, TEMPLATE, A, Numbers, numbered

from embedfit.config import StoreConfig
from embedfit.errors import ConfigError, DamagedError, StorageError
from embedfit.store.base import Entry, check_entries
from embedfit.store.live import LiveIndex
from embedfit.store.open import open_store
from embedfit.store.versions import index_documents


def test_an_id_as_long_as_postgresql_takes_it_is_kept(config_of):
    with open_store(config_of("pgvector")) as store:
        store.create(A, STAMP)
        random = np.random.default_rng(0)  # what repeats itself would be compressed
        entry = Entry("".join(random.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), 2500)), "x", {})
        check_entries([entry], store)
        store.add(A, [entry], np.eye(4, dtype=np.float32)[:1])
        assert store.entries(A, [entry.id]) == {entry.id: entry}


def test_pgvector_refuses_more_dimensions_than_its_graph_takes(config_of):
    with (
        open_store(config_of("pgvector")) as store,
        pytest.raises(StorageError, match=r"takes 2,000 dimensions, and the vectors have 3,072"),
    ):
        store.create(A, dataclasses.replace(STAMP, dimension=3072))


def test_a_table_that_something_else_changed_is_named_with_the_fix_and_indexing_repairs_it(config_of):
    encoder = Numbers()
    with open_store(config_of("pgvector")) as store:
        live = index_documents(store, numbered(), encoder, TEMPLATE).collection
        store._query("ALTER TABLE {table} DROP COLUMN embedding", table=live)
        with pytest.raises(DamagedError, match=r"is damaged \(column \"embedding\" does not exist.*; fix: run 'embedfit index' again"):
            LiveIndex(store, encoder).find("query 7", 1)
        assert index_documents(store, numbered(), encoder, TEMPLATE).written == 60
        assert LiveIndex(store, encoder).find("query 7", 1)[0].id == "d7"


def test_pgvector_may_be_in_another_schema(postgres):
    import psycopg

    uri = postgres()
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute('CREATE SCHEMA "Other extensions"')
        connection.execute('CREATE EXTENSION vector SCHEMA "Other extensions"')
    encoder = Numbers()
    for _ in range(2):
        with open_store(StoreConfig(kind="pgvector", location=uri)) as store:
            index_documents(store, numbered(), encoder, TEMPLATE)
            assert LiveIndex(store, encoder).find("query 7", 1, {"number": "7"})[0].id == "d7"
            assert "hnsw" in str(store._query("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'"))


def test_a_user_who_may_not_create_pgvector_or_a_table_is_told_what_to_do(postgres):
    import psycopg
    from psycopg.conninfo import make_conninfo

    uri = postgres()
    role = f"reader_{os.urandom(4).hex()}"
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        with open_store(StoreConfig(kind="pgvector", location=make_conninfo(uri, user=role))) as store:
            with pytest.raises(
                StorageError, match=r"pgvector is not in this database, and this user may not.*; fix: .*CREATE EXTENSION"
            ) as caught:
                index_documents(store, numbered(), Numbers(), TEMPLATE)
            assert "\n" not in str(caught.value)
            connection.execute("CREATE EXTENSION vector")
            with pytest.raises(StorageError, match=r"permission denied for schema public; fix: GRANT CREATE") as caught:
                index_documents(store, numbered(), Numbers(), TEMPLATE)
            assert "\n" not in str(caught.value)
            connection.execute(f"GRANT CREATE ON SCHEMA public TO {role}")
            assert index_documents(store, numbered(), Numbers(), TEMPLATE).written == 60


@pytest.mark.parametrize(
    "location",
    [
        f"postgresql://me:{SECRET}@127.0.0.1:1/db",
        f"postgresql//me:{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:x@{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:x/{SECRET}@127.0.0.1:1/db",
        f"postgresql://me:x?{SECRET}@127.0.0.1:1/db",
        f"postgresql://127.0.0.1:{SECRET}/db",
        f"host=127.0.0.1 port=1 dbname='postgresql://me:x@{SECRET}@127.0.0.1:1/db'",
        f"host=127.0.0.1 port=1 password={SECRET}",
        f"host=127.0.0.1 port=1 password={SECRET} oops",
        f"host=127.0.0.1 port=1 dbname='postgresql://me:{SECRET}@127.0.0.1:1/db'",
        f"host=127.0.0.1 port=1 dbname='host=127.0.0.1 password={SECRET}'",
        f"postgresql://me@127.0.0.1:1/db?sslpassword={SECRET}",
    ],
)
def test_a_password_of_a_connection_string_is_in_no_error(location, monkeypatch, caplog, capfd):
    caplog.set_level("DEBUG")
    monkeypatch.setenv("DATABASE_URL", location)
    with (
        pytest.raises((StorageError, ConfigError)) as caught,
        open_store(StoreConfig(kind="pgvector", location="env:DATABASE_URL")) as store,
    ):
        store.live()
    assert SECRET not in str(caught.value) + caplog.text + "".join(capfd.readouterr())
    assert "\n" not in str(caught.value)


def test_a_wrong_password_is_told_in_one_line_without_it(postgres, monkeypatch):
    from psycopg.conninfo import make_conninfo

    monkeypatch.setenv("DATABASE_URL", make_conninfo(postgres(), user="nobody", password=SECRET))
    with (
        open_store(StoreConfig(kind="pgvector", location="env:DATABASE_URL")) as store,
        pytest.raises(StorageError, match="nobody") as caught,
    ):
        store.live()
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_secret_is_kept_in_a_store(postgres, monkeypatch, tmp_path):
    import psycopg

    uri = postgres()
    with psycopg.connect(uri, autocommit=True) as connection:
        connection.execute(f"ALTER ROLE postgres PASSWORD '{SECRET}'")
    monkeypatch.setenv("DATABASE_URL", uri.replace("postgres:@", f"postgres:{SECRET}@"))
    with open_store(StoreConfig(kind="pgvector", location="env:DATABASE_URL")) as store:
        index_documents(store, numbered(), Numbers(), TEMPLATE)
        tables = [name for (name,) in store._query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        assert len(tables) == 3
        assert all(SECRET not in str(store._query("SELECT * FROM {table}", table=table)) for table in tables)
        assert SECRET not in store.where + repr(store)
