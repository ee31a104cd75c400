"""Settings of stores, and their secrets."""

import json
import os
import re
import urllib.parse

import pytest
from store_data import SECRET

from embedfit.config import StoreConfig, read_config
from embedfit.errors import ConfigError, StorageError
from embedfit.store.base import one_line
from embedfit.store.open import open_store


def toml(tmp_path, store):
    path = tmp_path / "embedfit.toml"
    path.write_text(f'[data]\nqueries = "q.jsonl"\n[store]\n{store}\n')
    return path


@pytest.mark.parametrize(
    "said",
    [
        f'kind = "pgvector"\nlocation = "postgresql://me:{SECRET}@host/db"',
        f'kind = "pgvector"\nlocation = "host=x password={SECRET}"',
        f'kind = "qdrant"\nlocation = "https://me:{SECRET}@host"',
        f'kind = "qdrant"\napi_key = "{SECRET}"',
    ],
)
def test_a_secret_in_the_file_is_refused_without_showing_it(tmp_path, said):
    with pytest.raises(ConfigError, match="env:NAME") as caught:
        read_config(toml(tmp_path, said))
    assert SECRET not in str(caught.value)


def test_a_folder_is_beside_the_file_and_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch):
    assert read_config(toml(tmp_path, "")).store.location == str(tmp_path / "store")
    assert read_config(toml(tmp_path, 'location = "http://localhost:8000"')).store.location == "http://localhost:8000"
    config = read_config(toml(tmp_path, 'kind = "pgvector"\nlocation = "env:DATABASE_URL"')).store
    assert config.location == "env:DATABASE_URL"
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pytest.raises(ConfigError, match="the environment variable DATABASE_URL is not set"), open_store(config):
        pass


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
@pytest.mark.parametrize("location", [f"https://me:{SECRET}@host", f"https://host/{SECRET}", f"postgresql://{SECRET}@host"])
def test_a_url_that_is_not_plain_is_refused_without_showing_it(monkeypatch, kind, location):
    monkeypatch.setenv("WHERE", location)
    with pytest.raises(ConfigError, match="is not a plain URL") as caught, open_store(StoreConfig(kind=kind, location="env:WHERE")):
        pass
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "location"),
    [
        ("qdrant", f"https://h/?jwt={SECRET}"),
        ("qdrant", f"https://h:6333/#{SECRET}"),
        ("chroma", f"https://h/{SECRET}"),
        ("chroma", f"https://h:{SECRET}/"),
        ("chroma", f"http://[{SECRET}/"),
        ("qdrant", f"u:{SECRET}@h/d"),
        ("pgvector", f"postgresql://h/d?user=u&sslkey={SECRET}"),
        ("pgvector", f"postgresql://u:x@{SECRET}@h/d"),
        ("pgvector", f"host=h sslkey={SECRET}"),
    ],
)
def test_what_may_be_secret_in_a_location_is_refused_when_the_file_is_read(tmp_path, kind, location):
    with pytest.raises(ConfigError, match=r"key 'store\.location' .*env:NAME") as caught:
        read_config(toml(tmp_path, f'kind = "{kind}"\nlocation = "{location}"'))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "location", ["", "postgresql://me@host/db?sslmode=require&connect_timeout=3", "host=a,b port=1,2 dbname=d", "postgresql:///d?host=/tmp"]
)
def test_a_connection_string_without_a_secret_may_stand_in_the_file(tmp_path, location):
    assert read_config(toml(tmp_path, f'kind = "pgvector"\nlocation = "{location}"')).store.location == location


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
@pytest.mark.parametrize("end", ["\nx", "\0", "é"])
def test_a_key_that_no_header_can_hold_is_refused_before_it_is_sent(kind, end, refusing, monkeypatch):
    url, seen = refusing
    monkeypatch.setattr(os, "environ", {**os.environ, "STORE_KEY": SECRET + end})  # a process may be started with less strict ones
    config = StoreConfig(kind=kind, location=url, api_key="env:STORE_KEY")
    with pytest.raises(ConfigError, match=r"store\.api_key holds a character") as caught, open_store(config):
        pass
    assert SECRET not in str(caught.value)
    assert seen == []


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
def test_the_line_break_at_the_end_of_a_keys_file_is_not_part_of_the_key(kind, refusing, monkeypatch):
    url, seen = refusing
    monkeypatch.setenv("STORE_KEY", SECRET + "\n")
    monkeypatch.setenv("WHERE", url + "\n")
    with open_store(StoreConfig(kind=kind, location="env:WHERE", api_key="env:STORE_KEY")) as store, pytest.raises(StorageError) as caught:
        store.live()
    assert SECRET not in str(caught.value)
    assert any(SECRET in str(headers) for _, headers, _ in seen)


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
@pytest.mark.parametrize(
    "location", [f"http://[{SECRET}/", f"http://127.0.0.1:{SECRET}/", f"http://h/#{SECRET}", f"http://h:99999{SECRET}"]
)
def test_an_address_that_is_none_is_refused_without_its_text(kind, location, monkeypatch):
    monkeypatch.setenv("WHERE", location)
    with pytest.raises(ConfigError, match="is not a plain URL") as caught, open_store(StoreConfig(kind=kind, location="env:WHERE")):
        pass
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("write", [str, repr, json.dumps, lambda key: repr(key.encode()), lambda key: urllib.parse.quote(key, safe="")])
def test_a_secret_is_hidden_however_a_library_writes_it(write):
    secret = "a\"b'c\nd e/é"

    class Failing:
        where, secrets, errors = "store", (secret,), (ValueError,)

        def fix_of(self, error):
            return ""

        @one_line
        def fail(self):
            raise ValueError(f"before {write(secret)} after")

    with pytest.raises(StorageError) as caught:
        Failing().fail()
    assert re.fullmatch(r"store: before b?['\"]?\*\*\*['\"]? after", str(caught.value))


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
def test_a_key_goes_to_the_server_and_into_no_error_and_no_log(kind, refusing, monkeypatch, caplog, capfd):
    caplog.set_level("DEBUG")
    url, seen = refusing
    monkeypatch.setenv("STORE_KEY", SECRET)
    with open_store(StoreConfig(kind=kind, location=url, api_key="env:STORE_KEY")) as store:
        for call in (store.live, store.collections, lambda: store.ids("documents_x")):
            with pytest.raises(StorageError) as caught:
                call()
            assert SECRET not in str(caught.value)
            assert "\n" not in str(caught.value)
            assert caught.value.__cause__ is None
    assert any(SECRET in str(headers) for _, headers, _ in seen)
    assert not any(SECRET in path or SECRET.encode() in body for path, _, body in seen)
    assert SECRET not in caplog.text + "".join(capfd.readouterr())
