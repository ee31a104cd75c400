"""Metadata values: kept and found exactly, by every store."""

import dataclasses
import json
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_data import KINDS, METADATA, STAMP, A, B, Numbers, named

from embedfit.config import StoreConfig
from embedfit.errors import DataError
from embedfit.store.base import Entry, check_entries
from embedfit.store.open import open_store
from embedfit.store.values import is_exact, is_plain, matches, readings
from embedfit.store.version import Version


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
        databases = request.getfixturevalue("databases")
        config = StoreConfig(kind="pgvector", location=databases.server.get_uri(database=databases.lend()))
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
    assert {id for id, kept in VALUES.items() if matches({"v": kept}, {"v": value})} == expected  # what is compared here, not in the store


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
