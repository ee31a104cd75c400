"""One contract for all stores: Chroma in a folder and as a real server, a real PostgreSQL with pgvector, Qdrant's local mode."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embedfit.config import StoreConfig, read_config
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.encode.cache import CachedEncoder
from embedfit.errors import ConfigError, DataError, ModelError, StorageError
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import Run
from embedfit.store.base import Entry, Live, Stamp, check_entries, one_line
from embedfit.store.open import open_store
from embedfit.store.values import is_exact, is_plain, readings
from embedfit.store.versions import LiveIndex, Version, entries_of, identity, index_documents, overlap, roll_back

KINDS = ("chroma", "chroma server", "pgvector", "qdrant")
TEMPLATE = "{title} {text}"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("EMBEDFIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def postgres():
    """A real PostgreSQL with pgvector; returns a function that makes a new database and its connection string."""
    import pgserver
    import psycopg

    # Not in pytest's own folder: under root the server is another user, whom the next pytest to start would lock out of it.
    server = pgserver.get_server(tempfile.mkdtemp(), cleanup_mode="delete")
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        # No test takes the power away: writing a hundred databases through to the disk took longer than all the rest.
        connection.execute("ALTER SYSTEM SET fsync = off")
        connection.execute("SELECT pg_reload_conf()")
    names = iter(range(10_000))

    def database():
        name = f"test{next(names)}"
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return server.get_uri(database=name)

    yield database
    # At once: an orderly end writes all databases through to the disk, only for them to be deleted.
    pgserver.postgres_server.pg_ctl(["-m", "immediate", "-w", "stop"], pgdata=server.pgdata, user=server.system_user)
    server.cleanup()


@pytest.fixture(scope="session")
def chroma_server(tmp_path_factory):
    """A real `chroma run`; returns its URL."""
    folder = tmp_path_factory.mktemp("chroma")
    port = free_port()
    command = [Path(sys.executable).with_name("chroma"), "run", "--path", folder, "--host", "127.0.0.1", "--port", str(port)]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    for _ in range(300):
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture
def config_of(tmp_path, request):
    """Return the settings of a new store of some kind."""
    names = iter(range(1000))

    def config(kind):
        if kind == "pgvector":
            return StoreConfig(kind="pgvector", location=request.getfixturevalue("postgres")())
        if kind == "chroma server":
            index = f"test_{os.urandom(4).hex()}"
            return StoreConfig(kind="chroma", location=request.getfixturevalue("chroma_server"), index=index)
        return StoreConfig(kind=kind, location=str(tmp_path / f"{kind}{next(names)}"))

    return config


@pytest.fixture(params=KINDS)
def config(request, config_of):
    return config_of(request.param)


@pytest.fixture
def store(config):
    with open_store(config) as store:
        yield store


class Numbers:
    """Encodes 'doc 7' and 'query 7' as nearly the same direction; another seed is another model.

    Texts differ in twelve ways, whatever the dimension: no graph finds its way through vectors that are noise and no more.
    """

    def __init__(self, seed=0, size=400, dimension=16):
        self.name = self.fingerprint = f"numbers-{seed}-{size}-{dimension}"
        random = np.random.default_rng(seed)
        ways = random.normal(size=(12, dimension)).astype(np.float32)
        self.table = random.normal(size=(size, 12)).astype(np.float32) @ ways
        self.noise = random.normal(size=(size, 12)).astype(np.float32) @ ways * 0.1
        self.asked = []

    def encode(self, texts, kind):
        self.asked += texts
        rows = [int(text.split()[-1]) % len(self.table) for text in texts]
        vectors = self.table[rows] + (self.noise[rows] if kind == "query" else 0)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def numbered(n=60, queries=20, **metadata):
    """A data set of numbered documents, where query i is for document i."""
    corpus = {f"d{i}": Document(f"d{i}", str(i), "doc", {"parity": "odd" if i % 2 else "even", "number": i, **metadata}) for i in range(n)}
    asked = {f"q{i}": Query(f"q{i}", f"query {i}") for i in range(queries)}
    return Dataset(asked, corpus, {f"q{i}": {f"d{i}": 1} for i in range(queries)})


STAMP = Stamp("words", "f" * 64, 4, "query: ", "", TEMPLATE, 3, "0" * 64)
A, B = "documents_" + "a" * 12, "documents_" + "b" * 12
METADATA = {
    "title": "T\u00e9a \U0001f375",
    "year": 2020,
    "text_year": "2020",
    "price": 2.5,
    "sold": True,
    "tags": ["red", "blue"],
    "counts": [1, 2],
    "nested": {"a": [1, {"b": None}]},
    "mixed": [1, "a"],
    "empty": [],
    "nothing": None,
    "big": 2**70,
    "quote ' \" {x} %s": "; DROP TABLE",
    "": "no key",
}


def named(store, collection):
    """Return a collection's name under this store's own index."""
    return collection.replace("documents", store.index)


# The contract


def test_a_collection_gives_back_what_was_put_in(store):
    a = named(store, A)
    store.create(a, STAMP)
    entries = [Entry("id 1/\u00fc'\"", "first \u2028 text", METADATA), Entry("2", "second", {}), Entry("3", "third", {"year": 1999})]
    store.add(a, entries, np.eye(4, dtype=np.float32)[:3])
    store.finish(a)
    assert store.stamp(a) == STAMP
    assert store.ids(a) == {entry.id for entry in entries}
    back = store.entries(a, [entry.id for entry in entries])
    assert back == {entry.id: entry for entry in entries}
    assert store.collections() == [a]


def test_creating_a_collection_again_keeps_it(store):
    a = named(store, A)
    store.create(a, STAMP)
    store.add(a, [Entry("1", "one", {})], np.eye(4, dtype=np.float32)[:1])
    store.create(a, STAMP)
    assert store.ids(a) == {"1"}


def test_scores_are_cosine_similarities_best_first(store):
    a = named(store, A)
    store.create(a, STAMP)
    vectors = np.array([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [-1, 0, 0, 0]], np.float32)
    store.add(a, [Entry(str(i), "x", {}) for i in range(3)], vectors)
    store.finish(a)
    found, second = store.nearest(a, np.array([[1, 0, 0, 0], [0, 1, 0, 0]], np.float32), 3, {})
    assert [id for id, _ in found] == ["0", "1", "2"]
    np.testing.assert_allclose([score for _, score in found], [1, 0.6, -1], atol=1e-6)
    assert second[0][0] == "1"
    assert second[0][1] == pytest.approx(0.8, abs=1e-6)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"year": "2020"}, {"1"}),
        ({"text_year": "2020"}, {"1"}),
        ({"price": "2.5"}, {"1"}),
        ({"price": "2"}, {"2"}),
        ({"sold": "true"}, {"1"}),
        ({"sold": "false"}, {"2"}),
        ({"tags": "blue"}, {"1", "2"}),
        ({"counts": "2"}, {"1"}),
        ({"tags": "blue", "year": "1999"}, {"2"}),
        ({"year": "1"}, set()),
        ({"unknown": "x"}, set()),
        ({"title": "' OR 1=1 --"}, set()),
    ],
)
def test_a_filter_finds_values_as_texts_numbers_and_in_lists(filtered, filters, expected):
    store, a = filtered
    [found] = store.nearest(a, np.ones((1, 4), np.float32), 3, filters)
    assert {id for id, _ in found} == expected


@pytest.fixture(scope="module", params=KINDS)
def filtered(request, tmp_path_factory):
    if request.param == "pgvector":
        config = StoreConfig(kind="pgvector", location=request.getfixturevalue("postgres")())
    elif request.param == "chroma server":
        config = StoreConfig(location=request.getfixturevalue("chroma_server"), index="filtered")
    else:
        config = StoreConfig(kind=request.param, location=str(tmp_path_factory.mktemp("filtered")))
    with open_store(config) as store:
        a = named(store, A)
        store.create(a, STAMP)
        other = {"year": 1999, "price": 2.0, "sold": False, "tags": ["blue"]}
        store.add(a, [Entry("1", "x", METADATA), Entry("2", "y", other), Entry("3", "z", {})], np.eye(4, dtype=np.float32)[:3])
        store.finish(a)
        yield store, a


BIG = 2**53
VALUES = {
    "big": BIG + 1,
    "next to big": BIG,
    "big float": float(BIG),
    "in 64 bits": 2**63 - 1,
    "beyond 64 bits": 2**64 + 1,
    "far beyond": 2**70,
    "large float": 1e23,
    "infinity": "Infinity",
    "nan": "nan",
    "exponent": "1e5",
    "number": 100_000,
    "zeros": "007",
    "seven": 7,
    "true text": "true",
    "true": True,
    "one": 1,
    "null text": "null",
    "null": None,
    "mixed": [1, "a", True, BIG + 1],
    "list of one kind": [BIG + 1, 3],
    "nested": {"a": "a"},
    "tiny": 5e-324,
    "fraction": 1.5,
    "fractions": [1.5, -0.5],
    "minus one": -1,
    "nineteen": 19,
    "price": 19.99,
    "whole floats": [19.0, 3.5],
    "quoted": '"red"',
    "red": "red",
}
"""Of one field of a document each."""


@pytest.fixture(scope="module")
def valued(filtered):
    store, _ = filtered
    b = named(store, B)
    store.create(b, STAMP)
    entries = [Entry(id, "x", {"v": value}) for id, value in VALUES.items()]
    store.add(b, entries, np.ones((len(entries), 4), np.float32))
    store.finish(b)
    assert store.entries(b, list(VALUES)) == {entry.id: entry for entry in entries}
    return store, b


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("9007199254740993", {"big", "mixed", "list of one kind"}),
        ("9007199254740992", {"next to big", "big float"}),
        ("9007199254740994", set()),
        ("9223372036854775807", {"in 64 bits"}),
        ("9223372036854775808", set()),
        ("18446744073709551617", {"beyond 64 bits"}),
        ("18446744073709551616", set()),
        ("1180591620717411303424", {"far beyond"}),
        ("1e23", {"large float"}),
        ("Infinity", {"infinity"}),
        ("inf", set()),
        ("nan", {"nan"}),
        ("NaN", set()),
        ("1e5", {"exponent", "number"}),
        ("100000", {"number"}),
        ("1e999", set()),
        ("1" + "0" * 2000, set()),
        ("007", {"zeros", "seven"}),
        ("7.0", {"seven"}),
        ("true", {"true text", "true", "mixed"}),
        ("True", {"true", "mixed"}),
        ("1", {"one", "mixed"}),
        ("null", {"null text"}),
        ("None", set()),
        ("a", {"mixed"}),
        ("5e-324", {"tiny"}),
        ("1e-999", set()),
        ("0", set()),
        ("1.5", {"fraction", "fractions"}),
        ("1.25", set()),
        ("-0.5", {"fractions"}),
        ("-1.5", set()),
        ("0.5", set()),
        ("-1", {"minus one"}),
        ("19.99", {"price"}),
        ("19.5", set()),
        ("19", {"nineteen", "whole floats"}),
        ("19.0", {"nineteen", "whole floats"}),
        ("7.9", set()),
        ("100000.5", set()),
        ('"red"', {"quoted", "red"}),
        ("red", {"red"}),
        ("", set()),
        ("\udcff", set()),
        ("x\0", set()),
    ],
)
def test_a_filter_compares_with_the_type_that_the_field_has_and_exactly(valued, value, expected):
    store, b = valued
    encoder = Numbers(dimension=4)
    version = Version(store, b, encoder)
    version.stamp = dataclasses.replace(version.stamp, documents=len(VALUES))
    assert {hit.id for hit in version.find("query 1", 30, {"v": value})} == expected


NAMES = (
    "#",
    "$price",
    "",
    "#document",
    "$and",
    "chroma:document",
    "chroma:x",
    "embedfit",
    "embedfit:odd",
    "embedfit:whole",
    "whole",
    "odd",
)
NAMES += ("id", "text", "document", "embedding", "metadata", "a.b", "a[0]", "a[]", "it's", 'say "x"', "back\\slash", "select", "%s", "{x}")
NAMES += ("x" * 300, "\u00fc \U0001f375", "\n", " ")


def test_a_field_may_have_any_name(filtered):
    store, _ = filtered
    c = named(store, "documents_" + "c" * 12)
    store.create(c, STAMP)
    entries = [Entry(f"d{row}", "x", {name: "here", "other": "there"}) for row, name in enumerate(NAMES)]
    entries.append(Entry("all", "x", dict.fromkeys(NAMES, "all of them")))
    store.add(c, entries, np.ones((len(entries), 4), np.float32))
    store.finish(c)
    assert store.entries(c, [entry.id for entry in entries]) == {entry.id: entry for entry in entries}
    for row, name in enumerate(NAMES):
        [found] = store.nearest(c, np.ones((1, 4), np.float32), 50, {name: "here", "other": "there"})
        assert [id for id, _ in found] == [f"d{row}"], name


def has(metadata, key, text):
    """Return whether a field is a value given as text, or a list that holds it: the same as the stores should, otherwise done."""

    def same(value):
        if isinstance(value, bool):
            return text.lower() == json.dumps(value)
        if isinstance(value, str):
            return value == text or json.dumps(value, ensure_ascii=False) == text
        try:
            return isinstance(value, (int, float)) and Decimal(text) == Decimal(repr(value))
        except ArithmeticError:
            return False

    value = metadata.get(key)
    return any(map(same, value if isinstance(value, list) else [value]))


scalars = (
    st.text(max_size=6)
    | st.sampled_from(["true", "1e5", "007", "Infinity", "null", "[1]"])
    | st.integers()
    | st.builds(lambda power, more: 2**power + more, st.sampled_from([53, 63, 64, 80]), st.integers(-1, 1))
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda value: value + 0.0)  # -0.0 may come back as 0.0
    | st.sampled_from([0, 1, 1.0, 1.5, 19, 19.99, -1, -0.5])  # of which a store that cuts fractions confuses some
    | st.booleans()
    | st.none()
)
fields = st.dictionaries(
    st.sampled_from(NAMES) | st.text(max_size=5), scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=3), scalars)
)
documents = st.lists(
    st.tuples(st.text(min_size=1, max_size=20), st.text(max_size=20), fields),
    min_size=1,
    max_size=4,
    unique_by=lambda it: it[0],
)


@given(documents)
@settings(
    max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_any_document_is_refused_in_one_line_or_given_back_and_found_by_each_of_its_values(filtered, drawn):
    store, _ = filtered
    d = named(store, "documents_" + "d" * 12)
    entries = [Entry(id, text, metadata) for id, text, metadata in drawn]
    if not store.takes_nul and "\\u0000" in json.dumps([vars(entry) for entry in entries]):
        with pytest.raises(DataError, match="NUL"):
            check_entries(entries, store)
        return
    check_entries(entries, store)
    store.create(d, dataclasses.replace(STAMP, dimension=2))
    try:
        store.add(d, entries, np.ones((len(entries), 2), np.float32))
        back = store.entries(d, [entry.id for entry in entries])
        # As JSON, which tells 1 from 1.0 and from true.
        as_json = [json.dumps(vars(back[entry.id]), sort_keys=True) for entry in entries]
        assert as_json == [json.dumps(vars(entry), sort_keys=True) for entry in entries]
        assert store.ids(d) == {entry.id for entry in entries}
        asked = [
            (key, one)
            for entry in entries
            for key, value in entry.metadata.items()
            for one in (value if isinstance(value, list) else [value])
        ]
        for key, value in asked[:6]:
            text = value if isinstance(value, str) else json.dumps(value)
            [found] = store.nearest(d, np.ones((1, 2), np.float32), 10, {key: text})
            assert {id for id, _ in found} == {entry.id for entry in entries if has(entry.metadata, key, text)}, (key, text)
    finally:
        store.drop(d)


def test_the_live_name_goes_to_one_collection_and_back(store):
    a, b = named(store, A), named(store, B)
    assert store.live() == Live()
    for name in (a, b):
        store.create(name, STAMP)
    for live in (Live(a, ""), Live(b, a), Live(a, b), Live(b, "")):
        store.switch(live)
        assert store.live() == live


def test_all_of_it_is_there_when_the_store_is_opened_again(config):
    with open_store(config) as store:
        a = named(store, A)
        store.create(a, STAMP)
        store.add(a, [Entry("1", "one", {"k": "v"})], np.eye(4, dtype=np.float32)[:1])
        store.finish(a)
        store.switch(Live(a, ""))
    with open_store(config) as store:
        assert store.live() == Live(a, "")
        assert store.stamp(a) == STAMP
        assert store.entries(a, ["1"]) == {"1": Entry("1", "one", {"k": "v"})}


def test_a_dropped_collection_is_gone_and_only_collections_of_the_index_are_listed(store):
    a, b = named(store, A), named(store, B)
    for name in (a, b, f"{store.index}_notes", f"{store.index}_face", f"another_{a}"):
        store.create(name, STAMP)
    store.drop(a)
    assert store.collections() == [b]
    store.create(a, STAMP)
    assert store.ids(a) == set()


def test_vectors_of_another_dimension_are_refused_with_one_line(store):
    a = named(store, A)
    store.create(a, STAMP)
    store.add(a, [Entry("1", "one", {})], np.eye(4, dtype=np.float32)[:1])
    with pytest.raises(StorageError) as caught:
        store.add(a, [Entry("2", "two", {})], np.eye(5, dtype=np.float32)[:1])
    assert "\n" not in str(caught.value)
    assert store.ids(a) == {"1"}


# Versions


def test_indexing_makes_documents_searchable_with_scores_and_metadata(store):
    data, encoder = numbered(), Numbers()
    found = index_documents(store, data, encoder, TEMPLATE)
    assert (found.documents, found.written, found.previous) == (60, 60, "")
    assert found.recall == pytest.approx(1, abs=0.05)
    hits = LiveIndex(store, encoder).find("query 7", 3)
    exact = DenseRetriever(encoder, TEMPLATE).search(data.select(["q7"]), 3)
    assert [hit.id for hit in hits] == exact.documents("q7")
    np.testing.assert_allclose([hit.score for hit in hits], exact.scores[0], atol=1e-5)
    assert hits[0].text == "doc 7"
    assert hits[0].metadata == {"title": "doc", "parity": "odd", "number": 7}
    assert {hit.metadata["parity"] for hit in LiveIndex(store, encoder).find("query 7", 10, {"parity": "even"})} == {"even"}


def test_a_stamp_says_encoder_dimension_prompts_and_template(store, word_encoder):
    word_encoder.prompts = {"query": "query: ", "document": "passage: "}
    index_documents(store, numbered(10, 3), CachedEncoder(word_encoder), "{text} of {title}")
    stamp = store.stamp(store.live().current)
    assert dataclasses.replace(stamp, digest="") == Stamp("words", "words", 64, "query: ", "passage: ", "{text} of {title}", 10, "")


def test_a_query_by_another_encoder_is_refused_with_one_line(store):
    index_documents(store, numbered(), Numbers(), TEMPLATE)
    for search in (lambda index: index.find("query 1"), lambda index: index.search(numbered(), 3)):
        with pytest.raises(ModelError, match=r"made with 'numbers-0-400-16' .*, not with 'numbers-1-400-16' .*; fix: --model") as caught:
            search(LiveIndex(store, Numbers(1)))
        assert "\n" not in str(caught.value)


def test_indexing_again_does_nothing_and_other_documents_make_another_version_without_encoding_twice(store):
    data, encoder = numbered(), Numbers(size=500)
    first = index_documents(store, data, encoder, TEMPLATE)
    encoder.asked.clear()
    again = index_documents(store, data, encoder, TEMPLATE)
    assert (again.collection, again.written, again.recall) == (first.collection, 0, None)
    assert encoder.asked == []
    assert "nothing had changed" in again.sentence
    more = index_documents(store, numbered(61), encoder, TEMPLATE)
    assert [text for text in encoder.asked if text.startswith("doc")] == ["doc 60"]
    assert more.collection != first.collection
    assert (more.previous, more.written) == (first.collection, 61)


def test_changed_metadata_makes_another_version(store):
    encoder = Numbers()
    index_documents(store, numbered(), encoder, TEMPLATE)
    found = index_documents(store, numbered(colour="red"), encoder, TEMPLATE)
    assert found.written == 60
    assert LiveIndex(store, encoder).find("query 3", 1)[0].metadata["colour"] == "red"


@pytest.mark.parametrize("kind", ["chroma", "qdrant"])
def test_roll_back_of_a_store_that_is_not_there_makes_no_folder(config_of, tmp_path, kind):
    with open_store(config_of(kind)) as store, pytest.raises(StorageError, match="no version to go back to"):
        roll_back(store)
    assert list(tmp_path.iterdir()) == []


def test_roll_back_goes_to_the_version_before_and_forward_again(store):
    old, new = Numbers(0), Numbers(1)
    with pytest.raises(StorageError, match="no version to go back to"):
        roll_back(store)
    index_documents(store, numbered(), old, TEMPLATE)
    index_documents(store, numbered(), new, TEMPLATE)
    assert roll_back(store).fingerprint == old.fingerprint
    assert LiveIndex(store, old).find("query 5", 1)[0].id == "d5"
    assert roll_back(store).fingerprint == new.fingerprint
    with pytest.raises(ModelError):
        LiveIndex(store, old).find("query 5", 1)


def lose(store, collection, ids):
    """Remove documents as a stranger would, by the store's own means."""
    if hasattr(store, "_collection"):
        store._collection(collection).delete(ids=list(ids))
    elif hasattr(store, "_query"):
        store._query("DELETE FROM {table} WHERE id = ANY (%s)", [list(ids)], table=collection)
    else:
        from embedfit.store.qdrant import _point

        store._client.delete(collection, [_point(id) for id in ids])


def remove(store, collection):
    """Remove a collection as a stranger would."""
    if hasattr(store, "_query"):
        store._query("DROP TABLE {table}", table=collection)
    else:
        store._client.delete_collection(collection)


def test_a_live_collection_that_lost_documents_is_made_whole_again(store, capsys):
    encoder = Numbers()
    index_documents(store, numbered(), Numbers(1), TEMPLATE)
    first = index_documents(store, numbered(), encoder, TEMPLATE)
    lose(store, first.collection, ["d3", "d7"])
    assert store.ids(first.collection) == {f"d{i}" for i in range(60)} - {"d3", "d7"}
    again = index_documents(store, numbered(), encoder, TEMPLATE)
    assert (again.collection, again.previous, again.written) == (first.collection, first.previous, 2)
    assert again.recall == pytest.approx(1, abs=0.05)
    assert "has lost or changed documents; they are written again" in capsys.readouterr().err
    assert LiveIndex(store, encoder).find("query 7", 1)[0].id == "d7"
    assert index_documents(store, numbered(), encoder, TEMPLATE).recall is None
    assert store.live() == Live(first.collection, first.previous)


def overwrite(store, collection, entry, vector):
    """Put a document in the place of the one of its id, as a stranger would."""
    if hasattr(store, "_query"):
        store._query("DELETE FROM {table} WHERE id = %s", [entry.id], table=collection)
    store.add(collection, [entry], vector)


@pytest.mark.parametrize("changes", [{"text": "another"}, {"metadata": {"parity": "none"}}])
def test_a_live_collection_whose_documents_something_else_changed_is_written_again(store, changes, capsys):
    encoder, data = Numbers(), numbered()
    first = index_documents(store, data, encoder, TEMPLATE)
    entry = next(entry for entry in entries_of(data, TEMPLATE) if entry.id == "d7")
    overwrite(store, first.collection, dataclasses.replace(entry, **changes), encoder.encode([entry.text], "document"))
    again = index_documents(store, data, encoder, TEMPLATE)
    assert (again.collection, again.written) == (first.collection, 60)
    assert "has lost or changed documents; they are written again" in capsys.readouterr().err
    assert store.entries(first.collection, ["d7"]) == {"d7": entry}
    assert index_documents(store, data, encoder, TEMPLATE).recall is None


def test_of_many_documents_a_sample_over_all_of_them_is_compared(config_of):
    encoder, data = Numbers(size=700), numbered(700)
    with open_store(config_of("chroma")) as store:
        first = index_documents(store, data, encoder, TEMPLATE)
        store.add(first.collection, [Entry(f"d{i}", "another", {}) for i in range(600, 700)], encoder.table[600:])
        assert index_documents(store, data, encoder, TEMPLATE).written == 700
        assert index_documents(store, data, encoder, TEMPLATE).recall is None


def test_a_live_collection_that_is_gone_is_said_to_be_and_made_again(store):
    encoder = Numbers()
    first = index_documents(store, numbered(), encoder, TEMPLATE)
    remove(store, first.collection)
    with pytest.raises(StorageError, match="fix: run 'embedfit index'") as caught:
        LiveIndex(store, encoder).find("query 7", 1)
    assert "\n" not in str(caught.value)
    again = index_documents(store, numbered(), encoder, TEMPLATE)
    assert (again.collection, again.written) == (first.collection, 60)
    assert LiveIndex(store, encoder).find("query 7", 1)[0].id == "d7"


def test_documents_of_somebody_else_in_a_live_collection_are_told_and_taken_out(store):
    encoder = Numbers()
    first = index_documents(store, numbered(), encoder, TEMPLATE)
    if hasattr(store, "_collection"):
        store._collection(first.collection).add(ids=["new"], embeddings=encoder.encode(["doc 7"], "document"), documents=["x"])
    elif hasattr(store, "_query"):
        store._query("INSERT INTO {table} SELECT 'new', 'x', '{{}}', embedding FROM {table} WHERE id = 'd7'", table=first.collection)
    else:
        from qdrant_client import models

        [vector] = encoder.encode(["doc 7"], "document").tolist()
        store._client.upsert(first.collection, [models.PointStruct(id=1, vector=vector, payload={"mine": 1})])
    with pytest.raises(StorageError, match="holds documents that embedfit did not write; fix: run 'embedfit index'"):
        LiveIndex(store, encoder).search(numbered(), 10)
    if not hasattr(store, "_query"):  # in a table, a row is a row
        with pytest.raises(StorageError, match="holds documents that embedfit did not write; fix: run 'embedfit index'"):
            LiveIndex(store, encoder).find("query 7", 10)
    assert index_documents(store, numbered(), encoder, TEMPLATE).written == 60
    assert store.ids(first.collection) == {f"d{i}" for i in range(60)}


@pytest.mark.parametrize("how", ["gone", "lost"])
def test_rolling_back_to_a_version_that_is_not_whole_is_refused(store, how):
    old, new = Numbers(0), Numbers(1)
    before = index_documents(store, numbered(), old, TEMPLATE)
    index_documents(store, numbered(), new, TEMPLATE)
    live = store.live()
    if how == "gone":
        remove(store, before.collection)
        message = "is gone|no version to go back to"  # an alias of Qdrant goes with its collection
    else:
        lose(store, before.collection, ["d5"])
        message = "has 59 of its 60 documents"
    with pytest.raises(StorageError, match=message):
        roll_back(store)
    assert store.live().current == live.current
    assert LiveIndex(store, new).find("query 5", 1)[0].id == "d5"


def test_what_a_killed_process_had_begun_is_removed_by_the_next_start_even_if_nothing_changed(store):
    encoder = Numbers()
    first = index_documents(store, numbered(), encoder, TEMPLATE)
    begun = named(store, B)
    store.create(begun, STAMP)
    store.add(begun, [Entry("1", "one", {})], np.eye(4, dtype=np.float32)[:1])
    assert "nothing had changed" in index_documents(store, numbered(), encoder, TEMPLATE).sentence
    assert store.collections() == [first.collection]


def document(id="d1", text="text", **metadata):
    return Document(id, text, "", metadata)


def test_a_document_that_no_store_can_keep_is_named_before_anything_is_encoded(store):
    half = "half \ud800"
    for bad, message in [
        (document(half), r"document 'half \\ud800': its id contains half of a character"),
        (document(text=half), r"document 'd1': its text contains half of a character .*; fix:"),
        (document(colour=half), r"document 'd1': its field 'colour' contains half of a character"),
        (document(colours=["red", {"more": half}]), r"document 'd1': its field 'colours' contains half of a character"),
        (document(**{half: "red"}), r"document 'd1': its field 'half \\ud800' contains half of a character"),
        (document(""), r"document '': its id is empty"),
    ]:
        data, encoder = numbered(), Numbers()
        data.corpus[bad.id] = bad
        with pytest.raises(DataError, match=message) as caught:
            index_documents(store, data, encoder, TEMPLATE)
        assert "\n" not in str(caught.value)
        assert encoder.asked == []
    assert store.collections() == []


def test_what_postgresql_cannot_keep_is_named_and_other_stores_keep_it(store):
    odd = {
        r"document 'nul \\x00': its id contains a NUL character, which PostgreSQL, .* cannot keep; fix: remove it": document("nul \0"),
        "document 'd1': its text contains a NUL character": document(text="nul \0"),
        "document 'd2': its field 'colour' contains a NUL character": document("d2", colour=["nul \0"]),
        "document '0123456789.*: its id has 6,890 bytes, and PostgreSQL, .* takes 2,500; fix: ": document("".join(map(str, range(2000)))),
    }
    if store.takes_nul:
        data, encoder = numbered(), Numbers()
        data.corpus.update({document.id: document for document in odd.values()})
        entries = {entry.id: entry for entry in entries_of(data, TEMPLATE)}
        encoder.encode = lambda texts, kind: np.eye(16, dtype=np.float32)[[len(text) % 16 for text in texts]]
        collection = index_documents(store, data, encoder, TEMPLATE, min_recall=0).collection
        assert store.entries(collection, list(entries)) == entries
        return
    for message, bad in odd.items():
        data, encoder = numbered(), Numbers()
        data.corpus[bad.id] = bad
        with pytest.raises(DataError, match=message):
            index_documents(store, data, encoder, TEMPLATE)
        assert encoder.asked == []
    assert store.collections() == []


def test_an_id_as_long_as_postgresql_takes_it_is_kept(config_of):
    with open_store(config_of("pgvector")) as store:
        store.create(A, STAMP)
        random = np.random.default_rng(0)  # what repeats itself would be compressed
        entry = Entry("".join(random.choice(list("abcdefghijklmnopqrstuvwxyz0123456789"), 2500)), "x", {})
        check_entries([entry], store)
        store.add(A, [entry], np.eye(4, dtype=np.float32)[:1])
        assert store.entries(A, [entry.id]) == {entry.id: entry}


def test_a_query_that_is_no_text_is_refused_in_one_line(store):
    encoder = Numbers()
    index_documents(store, numbered(), encoder, TEMPLATE)
    with pytest.raises(DataError, match="the query: contains half of a character"):
        LiveIndex(store, encoder).find("query \udcff 7")


def test_dates_numbers_of_numpy_and_what_is_no_number_are_kept_as_json_has_them():
    import datetime

    metadata = {"day": datetime.date(2020, 1, 2), "count": np.int64(3), "share": np.float32(0.5), "none": float("nan"), "far": float("inf")}
    [entry] = entries_of(Dataset({}, {"d": document("d", **metadata, all=np.arange(2))}, {}), "{text}")
    assert entry.metadata == {"day": "2020-01-02", "count": 3, "share": 0.5, "none": None, "far": None, "all": [0, 1]}


def test_what_is_in_neither_the_live_nor_the_previous_version_is_removed(store):
    for seed in range(3):
        index_documents(store, numbered(30, 5), Numbers(seed), TEMPLATE)
    assert sorted(store.collections()) == sorted({store.live().current, store.live().previous})
    assert len(store.collections()) == 2


def test_chromas_folders_of_dropped_collections_are_removed_even_after_a_kill_and_no_others(config_of, monkeypatch):
    config = config_of("chroma")
    folder = Path(config.location)
    others = folder / "0b0e1f3c-6d3f-4c54-9b57-3a2f1c0d9e8f"
    others.mkdir(parents=True)

    def graphs():
        return {path.name for path in folder.iterdir() if path.is_dir()} - {others.name}

    for seed in range(4):
        with open_store(config) as store:
            index_documents(store, numbered(), Numbers(seed), TEMPLATE)
        assert len(graphs()) == min(seed + 1, 2)
    with open_store(config) as store:
        monkeypatch.setattr(type(store), "_remove_dropped", lambda self: None)  # killed before it came to that
        index_documents(store, numbered(), Numbers(4), TEMPLATE)
        assert len(graphs()) == 3
        (folder / "mine").mkdir()
        begun = store._folders(store._collection(store.live().current).id)  # noted by a process that was killed before it dropped
        with (folder / ".embedfit.dropped").open("a") as file:
            file.write("\n".join(["mine", "../mine", "..", *begun, ""]))
        monkeypatch.undo()
        index_documents(store, numbered(), Numbers(4), TEMPLATE)
    assert len(graphs()) == 3
    assert "mine" in graphs()
    with open_store(config) as store:
        assert set(store._folders()) >= graphs() - {"mine"}
        assert LiveIndex(store, Numbers(4)).find("query 7", 1)[0].id == "d7"
    assert others.is_dir()
    assert not (folder / ".embedfit.dropped").exists()


def test_a_version_that_finds_too_little_does_not_go_live(store, monkeypatch):
    index_documents(store, numbered(), Numbers(), TEMPLATE)
    live = store.live()
    nearest = type(store).nearest
    # A store that loses one of three documents: what it finds in the first ten is then less than 0.95 of exact search.
    monkeypatch.setattr(type(store), "nearest", lambda *args: [row[::3] for row in nearest(*args)])
    with pytest.raises(
        StorageError, match=r"recall@10 of .* against exact search is 0\.[34]\d* on 20 queries, under 0.95; it did not go live"
    ):
        index_documents(store, numbered(), Numbers(1), TEMPLATE)
    assert store.live() == live
    monkeypatch.undo()
    assert index_documents(store, numbered(), Numbers(1), TEMPLATE).written == 0


def test_wrong_vectors_in_a_store_are_seen_by_the_check(store, monkeypatch):
    add = type(store).add
    monkeypatch.setattr(type(store), "add", lambda self, name, entries, vectors: add(self, name, entries, vectors[::-1].copy()))
    with pytest.raises(StorageError, match="it did not go live"):
        index_documents(store, numbered(), Numbers(), TEMPLATE)


def test_a_store_is_a_retriever_that_ranks_as_exact_search_does(store):
    data, encoder = numbered(), Numbers()
    index_documents(store, data, encoder, TEMPLATE)
    run = LiveIndex(store, encoder).search(data, 10)
    exact = DenseRetriever(encoder, TEMPLATE).search(data, 10)
    assert run.query_ids == exact.query_ids
    assert run.document_ids == exact.document_ids
    assert (run.ranked == exact.ranked).mean() > 0.95
    assert overlap(run, DenseRetriever(encoder, TEMPLATE).search(data, 100), 10) > 0.95
    assert LiveIndex(store, encoder).search(data, 60).ranked.shape == (20, 60)
    with pytest.raises(StorageError, match="holds other documents than the data set"):
        LiveIndex(store, encoder).search(numbered(59), 10)


def test_evaluate_measures_the_live_index_beside_exact_search(store, word_encoder, transactions):
    from embedfit.pipeline import measuring

    template = "{category}: {sample_transactions}"
    index_documents(store, transactions, word_encoder, template)
    frame = measuring.evaluate(transactions, [word_encoder], templates=["{category}"], ks=[1, 10], store=store)
    rows = {(row.model, row.document, row.metric, row.k): row.value for row in frame.itertuples()}
    name = f"words in {store.where}"
    assert rows[name, template, "recall_of_exact", 10] == pytest.approx(1, abs=0.01)
    assert rows[name, template, "mrr", 10] == pytest.approx(rows["words", template, "mrr", 10], abs=0.01)
    assert ("words", "{category}", "mrr", 10) in rows


def test_there_is_no_index_before_indexing_and_asking_for_it_makes_nothing(store, tmp_path):
    with pytest.raises(StorageError, match=f"there is no index '{store.index}'; fix: run 'embedfit index'"):
        LiveIndex(store, Numbers()).find("query 1")
    assert not any(tmp_path.iterdir())


# Two writers


HOLD = """
import sys, time
from embedfit.config import StoreConfig
from embedfit.store.open import open_store
with open_store(StoreConfig.model_validate_json(sys.argv[1])) as store, store.writing():
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_is_gone_even_by_kill(config):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, config.model_dump_json()], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with open_store(config) as store:
        with pytest.raises(StorageError, match="another process is writing to it"):
            index_documents(store, numbered(), Numbers(), TEMPLATE)
        with pytest.raises(StorageError, match="another process is writing to it"):
            roll_back(store)
        holder.kill()
        holder.wait()
        assert index_documents(store, numbered(), Numbers(), TEMPLATE).written == 60


# Killed and resumed


INDEX = """
import sys, os
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/.."]
from embedfit.config import StoreConfig
from embedfit.store.open import open_store; from embedfit.store import versions
from test_store import TEMPLATE, Numbers, numbered

config, count, seed, dimension = StoreConfig.model_validate_json(sys.argv[1]), *map(int, sys.argv[3:6])
versions.BATCH_BYTES = int(sys.argv[6])
with open_store(config) as store:
    for name in ("create", "add", "finish", "nearest", "switch"):
        def told(*args, name=name, method=getattr(store, name)):
            print(name, flush=True)
            return method(*args)
        setattr(store, name, told)
    found = versions.index_documents(store, numbered(count), Numbers(seed, count, dimension), TEMPLATE)
    print("written", found.written, flush=True)
"""


def indexing(config, count, seed, dimension, batch_bytes):
    command = [sys.executable, "-c", INDEX, config.model_dump_json(), str(Path(__file__).parent)]
    command += map(str, (count, seed, dimension, batch_bytes))
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def killed_at(process, moment, times):
    """Kill a process without warning shortly after it said a word for the n-th time; returns whether it got there."""
    for line in process.stdout:
        times -= line.strip() == moment
        if times == 0:
            time.sleep(0.003)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
    return False


def killed_and_resumed(config, count, dimension, batch_bytes, moments, reads):
    """Index while killing at some moments, and go on to the end; `reads` says whether another process reads meanwhile."""
    old, new = Numbers(0, count, dimension), Numbers(1, count, dimension)
    CachedEncoder(new).encode([f"doc {i}" for i in range(count)], "document")
    small = numbered(50)
    with open_store(config) as store:
        index_documents(store, small, old, TEMPLATE)
        before = store.live()
    answers, failures, stop = [], [], threading.Event()

    def read():
        with open_store(config) as store:
            while not stop.is_set():
                try:
                    version = LiveIndex(store, old, new).version()
                    answers.append((version.collection, version.find("query 7", 1)[0].id))
                except Exception as error:  # every failure is one
                    failures.append(error)
                time.sleep(0.01)

    reader = threading.Thread(target=read)
    if reads:
        reader.start()
    try:
        for moment, times in moments:
            process = indexing(config, count, 1, dimension, batch_bytes)
            assert killed_at(process, moment, times), f"never came to {moment} {times}"
            if moment != "switch" and reads:
                with open_store(config) as store:
                    assert store.live() == before
        process = indexing(config, count, 1, dimension, batch_bytes)
        said = process.communicate()[0]
        assert process.returncode == 0
        for _ in range(3000 if reads else 0):  # a reader that was there all the while sees the new version too
            if failures or (answers and answers[-1][0] != before.current):
                break
            time.sleep(0.01)
    finally:
        stop.set()
        if reads:
            reader.join()
    assert not failures
    with open_store(config) as store:
        collection = store.live().current
        assert not reads or (len(answers) > 20 and set(answers) == {(before.current, "d7"), (collection, "d7")})
        assert store.live() == Live(collection, before.current)
        assert store.ids(collection) == {f"d{i}" for i in range(count)}
        assert stores_count(config, store, collection) == count
        assert LiveIndex(store, new).find(f"query {count - 1}", 1)[0].id == f"d{count - 1}"
    return int(said.split()[-1])


def stores_count(config, store, collection):
    """Return how many rows there are, by the store's own count."""
    if config.kind == "chroma":
        return store._collection(collection).count()
    if config.kind == "qdrant":
        return store._client.count(collection, exact=True).count
    return store._query("SELECT count(*) FROM {table}", table=collection)[0][0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "batch_bytes", "moments"),
    [
        ("pgvector", 48 * 2**20, [("create", 1), ("add", 2), ("add", 5), ("finish", 1), ("nearest", 1)]),
        ("chroma", 24 * 2**20, [("create", 1), ("add", 2), ("add", 3), ("nearest", 1), ("switch", 1)]),
    ],
)
def test_fifty_thousand_documents_killed_at_five_moments_are_all_there_once_and_the_live_index_answered(
    config_of, kind, batch_bytes, moments
):
    written = killed_and_resumed(config_of(kind), 50_000, 384, batch_bytes, moments, reads=True)
    assert written == 0  # all were there by the fourth kill


@pytest.mark.slow
def test_chromas_server_killed_goes_on_while_the_live_index_answers(config_of):
    assert killed_and_resumed(config_of("chroma server"), 3000, 64, 800_000, [("add", 2), ("switch", 1)], reads=True) == 0


@pytest.mark.slow
def test_qdrants_local_mode_killed_goes_on(config_of):
    assert 0 < killed_and_resumed(config_of("qdrant"), 200, 16, 20_000, [("add", 1), ("add", 2)], reads=False) < 200


KILLS = """
import json, os, random, sys, time, traceback
from pathlib import Path
sys.path[:0] = [sys.argv[2], sys.argv[2] + "/.."]
from embedfit.encode import encoder as encoders
from embedfit.config import StoreConfig
from embedfit.store import versions
from embedfit.store.open import open_store
from test_store import TEMPLATE, Numbers, numbered
import chromadb, pgvector.psycopg, psycopg, qdrant_client

config, log, count, seed = StoreConfig.model_validate_json(sys.argv[1]), Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
encoders.SLICE, versions.BATCH_BYTES = 20, 30_000

class Paid(Numbers):
    def encode(self, texts, kind):
        with open(log, "a") as file:  # what was asked for is paid, whatever becomes of the answer
            file.writelines(text + os.linesep for text in texts if kind == "document")
        return super().encode(texts, kind)

def index(turn):
    encoder = Paid(size=count)
    with open_store(config) as store:
        data = numbered(count, colour=turn)
        found = versions.index_documents(store, data, encoder, f"turn {turn} {{title}} {{text}}")
        live = store.live()
        assert live.current == found.collection
        assert store.ids(live.current) == set(data.corpus)
        assert sorted(store.collections()) == sorted(filter(None, {live.current, live.previous})), (store.collections(), live)
        hit = versions.LiveIndex(store, encoder).find("query 7", 1)[0]
        assert (hit.id, hit.metadata["colour"], hit.text) == ("d7", turn, f"turn {turn} doc 7")
        return live

def start(turn):
    process = os.fork()  # with all imported, so that what is killed is the work
    if process == 0:
        try:
            index(turn)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process

def finished(process, seconds):
    # Waits up to so many seconds, and says whether the process came to its end.
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            assert status == 0
            return True
        time.sleep(0.002)
    return False

seconds, killed = 5.0, 0
random.seed(seed)
for turn in range(60):
    if killed == 10:
        break
    if turn:
        log.unlink()
    begun, moment = time.monotonic(), random.uniform(0, seconds) if turn else 600  # the first one goes to its end
    process = start(turn)
    if finished(process, moment):  # this is how long it takes now: the next moment lies within
        seconds, extra = time.monotonic() - begun, 0
    else:
        os.kill(process, 9)
        gone = os.waitpid(process, 0)[1] == 9
        killed, extra = killed + gone, encoders.SLICE * gone
        assert os.waitpid(start(turn), 0)[1] == 0
    asked = log.read_text().splitlines()
    assert count <= len(asked) <= count + extra, (len(asked), extra)
    assert len(set(asked)) == count
    print(f"{turn} {min(moment / seconds, 1):.2f} killed {killed} asked {len(asked)}")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "count"), [("chroma", 200), ("pgvector", 200), ("qdrant", 60)])
def test_killed_at_ten_random_moments_nothing_is_lost_nothing_paid_twice_and_nothing_left_over(kind, count, config_of, tmp_path):
    config = config_of(kind)
    command = [sys.executable, "-c", KILLS, config.model_dump_json(), str(Path(__file__).parent), str(tmp_path / "log"), str(count), "14"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    assert "killed 10 " in done.stdout.splitlines()[-1]
    cache = Path(os.environ["EMBEDFIT_CACHE"])
    [vectors] = cache.glob("*.sqlite")
    assert {path.name for path in cache.iterdir()} <= {vectors.name, vectors.with_suffix(".lock").name, "locks"}
    with open_store(config) as store:
        collections = store.collections()
        assert len(collections) == 2
        if kind == "pgvector":
            tables = {name for (name,) in store._query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}
            assert tables == {"embedfit_live", "embedfit_collections", *collections}
            assert {name for (name,) in store._query("SELECT collection FROM embedfit_collections")} == set(collections)
        elif kind == "qdrant":
            assert {path.name for path in (Path(config.location) / "collection").iterdir()} == set(collections)
    if kind == "chroma":
        with contextlib.closing(sqlite3.connect(Path(config.location) / "chroma.sqlite3")) as database:
            segments = {id for (id,) in database.execute("SELECT id FROM segments WHERE scope = 'VECTOR'")}
        assert {path.name for path in Path(config.location).iterdir() if path.is_dir()} <= segments


# A switch under load


def test_switching_and_rolling_back_under_constant_reading_gives_no_failed_and_no_mixed_answer(config):
    data, old, new = numbered(), Numbers(0), Numbers(1)
    templates = {"old doc": "old {title} {text}", "new doc": "new {title} {text}"}
    expected = {}
    for (said, template), encoder in zip(templates.items(), (old, new), strict=True):
        run = DenseRetriever(encoder, template).search(data, 5)
        expected |= {(said, row): run.scores[row] for row in range(20)}
    answers, failures, stop = [], [], threading.Event()
    with open_store(config) as store:
        index_documents(store, data, old, templates["old doc"])

        def read(start):
            # A server's clients have a connection each; an embedded store is one for all threads.
            with open_store(config) if config.kind == "pgvector" else contextlib.nullcontext(store) as own:
                live, row = LiveIndex(own, old, new), start
                while not stop.is_set():
                    row = (row + 1) % 20
                    try:
                        answers.append((row, live.find(f"query {row}", 5)))
                    except Exception as error:  # every failure is one
                        failures.append(error)

        readers = [threading.Thread(target=read, args=(start,)) for start in (0, 7, 13)]
        for reader in readers:
            reader.start()
        try:
            time.sleep(0.3)
            index_documents(store, data, new, templates["new doc"])
            for _ in range(10):
                time.sleep(0.1)
                roll_back(store)
        finally:
            stop.set()
            for reader in readers:
                reader.join()
    assert not failures
    seen = set()
    for row, hits in answers:
        [said] = {hit.text.rpartition(" ")[0] for hit in hits}
        assert len(hits) == 5
        np.testing.assert_allclose([hit.score for hit in hits], expected[said, row], atol=1e-5)
        seen.add(said)
    assert seen == set(templates)


# Pieces


def test_overlap_is_the_share_of_the_exact_best_with_ties_worth_the_same():
    def run(rows, scores):
        return Run(("q",) * len(rows), tuple("abcdef"), np.array(rows), np.array(scores, np.float32))

    exact = run([[0, 1, 2, 3], [0, 1, 2, 3]], [[0.9, 0.8, 0.8, 0.1], [0.9, 0.8, 0.7, 0.1]])
    assert overlap(run([[0, 2], [0, 2]], np.zeros((2, 2))), exact, 2) == pytest.approx((1 + 0.5) / 2)
    assert overlap(run([[4, 5], [1, 0]], np.zeros((2, 2))), exact, 2) == pytest.approx((0 + 1) / 2)


def test_places_that_a_store_leaves_empty_count_as_not_found(config_of, monkeypatch):
    from embedfit.evaluation.score import score_run

    data, encoder = numbered(), Numbers()
    with open_store(config_of("pgvector")) as store:
        index_documents(store, data, encoder, TEMPLATE)
        nearest = type(store).nearest
        monkeypatch.setattr(type(store), "nearest", lambda *args: [row[:2] for row in nearest(*args)])
        run = LiveIndex(store, encoder).search(data, 10)
    assert run.ranked.shape == (20, 10)
    assert len(run.documents("q1")) == 2
    scores = score_run(run, data.qrels, ks=[1, 10])
    assert scores.mean("recall@1") == scores.mean("recall@10") == 1


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("red", ["red"]),
        ("2020", ["2020", 2020]),
        ("2020.0", ["2020.0", 2020]),
        ("2.5", ["2.5", 2.5]),
        ("true", ["true", True]),
        ('"2020"', ['"2020"', "2020"]),
        ("True", ["True", True]),
        ("9007199254740993", ["9007199254740993", 9007199254740993]),
        ("1e5", ["1e5", 100000]),
        ("-.5", ["-.5", -0.5]),
        ("007", ["007", 7]),
        ("1_000", ["1_000"]),
        ("\u0663", ["\u0663"]),
        ("1e-400", ["1e-400"]),
        ("NaN", ["NaN"]),
        ("Infinity", ["Infinity"]),
        ("9" * 1001, ["9" * 1001]),
        ("null", ["null"]),
        ("[1]", ["[1]"]),
    ],
)
def test_a_value_given_as_text_is_read_as_all_that_it_may_be(text, values):
    assert list(map(repr, readings(text))) == list(map(repr, values))


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (2**53 - 1, True),
        (2**53, False),
        (-(2**53), False),
        (0.123456789012345, True),
        (0.1234567890123456, False),
        (-0.25, True),
        (1e-5, False),
        (1e22, False),
        ("1e22", True),
        (True, True),
        (None, True),
    ],
)
def test_numbers_that_some_store_would_confuse_are_known(value, plain):
    assert is_plain(value) == plain
    assert is_exact({"a": [1, {"b": value}]}) == plain


def test_an_encoder_has_the_same_identity_in_a_cache_and_with_a_query_adapter(word_encoder):
    class Around:
        name, fingerprint, encoder = "adapted", "another", word_encoder

    assert identity(CachedEncoder(word_encoder)) == identity(Around()) == identity(word_encoder) == "words"


def test_a_models_identity_changes_with_weights_and_prompts_but_not_with_precision(tiny_model, tmp_path):
    import shutil

    from embedfit.encode.local import LocalEncoder

    shutil.copytree(tiny_model, tmp_path / "copy")
    first = identity(LocalEncoder(tiny_model))
    assert identity(LocalEncoder(tmp_path / "copy", precision="fp32")) == first
    assert identity(LocalEncoder(tiny_model, query_prompt="query: ")) != first
    weights = tmp_path / "copy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    assert identity(LocalEncoder(tmp_path / "copy")) != first


@pytest.mark.parametrize("kind", ["chroma", "pgvector"])
def test_a_graph_gives_as_many_as_were_asked_for_and_all_that_a_filter_lets_through(config_of, kind):
    data, encoder = numbered(3000), Numbers(size=3000)
    odd = dataclasses.replace(data, corpus={id: one for id, one in data.corpus.items() if one.metadata["parity"] == "odd"})
    exact = DenseRetriever(encoder, TEMPLATE).search(odd.select(["q1"]), 60)
    with open_store(config_of(kind)) as store:
        index_documents(store, data, encoder, TEMPLATE)
        collection = store.live().current
        query = encoder.encode(["query 1"], "query")
        assert {len(found) for found in store.nearest(collection, np.repeat(query, 12, axis=0), 100, {})} == {100}
        assert len(store.nearest(collection, query, 1500, {})[0]) == 1500
        found = [id for id, _ in store.nearest(collection, query, 60, {"parity": "odd"})[0]]
        assert len(found) == 60
        assert len(set(found) & set(exact.documents("q1"))) >= 57
        assert [id for id, _ in store.nearest(collection, query, 10, {"number": "2999"})[0]] == ["d2999"]
        if kind == "pgvector":
            plan = store._query("EXPLAIN SELECT id FROM {table} ORDER BY embedding <=> %s LIMIT 10", [query[0]], table=collection)
            assert "hnsw" in str(plan)


def test_pgvector_refuses_more_dimensions_than_its_graph_takes(config_of):
    with (
        open_store(config_of("pgvector")) as store,
        pytest.raises(StorageError, match=r"takes 2,000 dimensions, and the vectors have 3,072"),
    ):
        store.create(A, dataclasses.replace(STAMP, dimension=3072))


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


def test_another_collection_of_the_name_in_chroma_is_not_taken_for_ours(config_of):
    with open_store(config_of("chroma")) as store:
        store._client.create_collection("documents", metadata={"mine": "yes"}, embedding_function=None)
        with pytest.raises(StorageError, match=r"is not embedfit's; fix: choose another store\.index"):
            store.live()


# Settings and secrets

SECRET = "s3cr3t-w0rd"


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

        @one_line
        def fail(self):
            raise ValueError(f"before {write(secret)} after")

    with pytest.raises(StorageError) as caught:
        Failing().fail()
    assert re.fullmatch(r"store: before b?['\"]?\*\*\*['\"]? after", str(caught.value))


@pytest.fixture
def refusing():
    """A server on loopback that remembers what it was sent, and refuses it, with the key in its answer."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            seen.append((self.path, dict(self.headers), self.rfile.read(length)))
            body = json.dumps({"error": "Unauthorized", "message": f"key {SECRET}\nis wrong"}).encode()
            self.send_response(401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", seen
    server.shutdown()


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


# The command line


@pytest.fixture
def project(tmp_path, tiny_model, capsys):
    """A folder as 'embedfit init' makes it; returns it, and a function that runs commands in it."""
    from embedfit.cli import main

    def said(*arguments):
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return caught.value.code or 0, out, err

    said("init", tmp_path)
    path = tmp_path / "embedfit.toml"
    path.write_text(path.read_text().replace("all-MiniLM-L6-v2", str(tiny_model)))
    return path, said


def test_index_search_rollback_and_evaluate_on_the_command_line(project, monkeypatch):
    path, said = project
    monkeypatch.chdir(path.parent)
    assert said("search", "x")[::2] == (2, "embedfit: Chroma, store: there is no index 'documents'; fix: run 'embedfit index'\n")
    code, out, _ = said("index")
    assert (code, out[:16]) == (0, "Live: documents_")
    assert "4 documents (4 written now); recall@10 against exact search 1.0000 on 20 queries." in out
    code, out, _ = said("search", "download all data", "--k", "2", "--json")
    hits = json.loads(out)
    assert len(hits) == 2
    assert hits[0].keys() == {"id", "score", "text", "metadata"}
    code, out, _ = said("search", "download all data", path, "--filter", "title=Reset a password")
    assert code == 0
    assert len(out.splitlines()) == 2
    assert "password" in out
    assert "title=Reset a password" in out
    assert said("index", "--rollback")[::2] == (2, "embedfit: Chroma, store: the index 'documents' has no version to go back to\n")
    code, out, _ = said("evaluate", path, "--store")
    assert "in Chroma, store: 1.0000 of what exact search has in the first 10" in out.replace(str(path.parent) + "/", "")
    before = json.loads(said("index", "--json")[1])
    path.write_text(path.read_text().replace("{title}. {text}", "{text}"))
    after = json.loads(said("index", "--json")[1])
    assert after["previous"] == before["collection"] != after["collection"]
    assert said("index", "--rollback")[1].startswith("Live again: 4 documents by ")
    assert json.loads(said("index", "--json")[1])["written"] == 0


@pytest.mark.parametrize("given", ["colour", "=red"])
def test_a_filter_without_key_or_value_is_refused(project, given):
    path, said = project
    code, _, err = said("search", "x", path, "--filter", given)
    assert (code, err) == (2, f"embedfit: --filter {given!r}; expected KEY=VALUE\n")
    assert said("search", "x", path, "--filter", "a=1", "--filter", "a=2")[2].startswith("embedfit: --filter names a key twice")
