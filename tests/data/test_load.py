import contextlib
import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedfit.data.dataset import Dataset, Document, Query, normalised
from embedfit.data.load import load
from embedfit.data.write import write_beir, write_jsonl
from embedfit.errors import ConfigError, DataError, OfflineError, StorageError
from embedfit.files import writing

DOCUMENTS = {"food": Document("food", "Meals"), "taxi": Document("taxi", "Rides")}


def put(folder, name, *rows):
    """Write rows (text as it is, anything else as JSON), one to a line."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def refusal(*args, **kwargs):
    """Return the one line with which `load` refuses."""
    with pytest.raises(DataError) as caught:
        load(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def beir(folder, qrels, *, queries=("q1", "q2"), name="test.tsv"):
    """Write a BEIR folder with two documents."""
    put(folder, "corpus.jsonl", {"_id": "d1", "title": "A", "text": "one"}, {"_id": "d2", "text": "two"})
    put(folder, "queries.jsonl", *({"_id": id, "text": f"about {id}"} for id in queries))
    put(folder, f"qrels/{name}", *qrels)
    return folder


# Readers


def test_jsonl_takes_one_label_a_list_or_graded_labels(tmp_path):
    rows = [
        {"query": "lunch", "expected": "food"},
        {"query": "lunch on the way", "expected": ["food", "taxi"]},
        {"query": "cab", "expected": {"taxi": 2, "food": 0}},
    ]
    found = load(put(tmp_path, "pairs.jsonl", *rows))
    assert found.qrels == {"q1": {"food": 1}, "q2": {"food": 1, "taxi": 1}, "q3": {"taxi": 2, "food": 0}}
    assert found.query_texts() == ["lunch", "lunch on the way", "cab"]
    assert found.relevant("q3") == {"taxi": 2}


def test_without_documents_each_label_is_a_document_that_says_its_name(tmp_path):
    found = load(put(tmp_path, "pairs.jsonl", {"query": "lunch", "expected": "food"}, {"query": "cab", "expected": ["taxi", "food"]}))
    assert found.corpus == {"food": Document("food", "food"), "taxi": Document("taxi", "taxi")}


def test_ids_parts_and_further_columns_are_kept(tmp_path):
    rows = [
        {"id": 7, "query": "lunch", "expected": "food", "part": "train", "customer": "c1"},
        {"id": "b", "query": "cab", "expected": "taxi", "part": "test", "metadata": {"customer": "c2"}},
    ]
    found = load(put(tmp_path, "pairs.jsonl", *rows))
    assert found.queries == {"7": Query("7", "lunch", {"customer": "c1"}), "b": Query("b", "cab", {"customer": "c2"})}
    assert found.parts == {"train": ("7",), "test": ("b",)}


def test_a_documents_file_gives_titles_and_metadata(tmp_path):
    documents = put(
        tmp_path, "docs.jsonl", {"id": "food", "title": "Meals", "text": "Eating out", "owner": "Ann"}, {"id": 2, "text": "Rides"}
    )
    found = load(put(tmp_path, "pairs.jsonl", {"query": "lunch", "expected": "food"}, {"query": "cab", "expected": 2}), documents)
    assert found.corpus == {"food": Document("food", "Eating out", "Meals", {"owner": "Ann"}), "2": Document("2", "Rides")}
    assert found.document_texts() == ["Meals Eating out", "Rides"]
    assert found.qrels["q2"] == {"2": 1}


def test_categories_json_makes_the_name_id_and_text(transactions):
    assert len(transactions.corpus) == 27
    assert len(transactions.judged) == 326
    document = transactions.corpus["Cloud Infrastructure & Hosting"]
    assert document.text == document.id
    assert document.metadata["departments"] == ["Engineering", "Infrastructure", "Machine Learning", "Web"]


def test_document_templates_say_more_or_less(transactions):
    def said(template):
        texts = dict(zip(transactions.corpus, transactions.document_texts(template), strict=True))
        return texts["Cloud Infrastructure & Hosting"]

    name = "Cloud Infrastructure & Hosting"
    samples = "AWS EC2 usage May, Hetzner dedicated servers, Vercel bandwidth overage, MongoDB Atlas cluster, Backblaze B2 storage"
    departments = "Engineering, Infrastructure, Machine Learning, Web"
    assert said("{title} {text}") == said("{category}") == name
    assert said("{category}: {sample_transactions}") == f"{name}: {samples}"
    assert said("{category}: {sample_transactions} ({departments})") == f"{name}: {samples} ({departments})"


def test_a_document_template_with_an_unknown_field_names_the_nearest(transactions):
    with pytest.raises(ConfigError, match="no field 'departmnts'; did you mean 'departments'"):
        transactions.document_texts("{category} {departmnts}")


def test_a_document_that_says_nothing_under_a_template_is_refused():
    data = Dataset({}, {"a": Document("a", "x", "Title"), "b": Document("b", "x")}, {})
    with pytest.raises(DataError, match=r"document 'b': is empty under the template '\{title\}'"):
        data.document_texts("{title}")


@pytest.mark.parametrize(("name", "delimiter"), [("pairs.csv", ","), ("pairs.tsv", "\t")])
def test_csv_and_tsv_with_named_columns(tmp_path, name, delimiter):
    rows = [["no", "question", "answer", "team"], ["1", '"say ""hi"", twice"', "food", ""], ["2", "cab", "taxi", "ops"]]
    found = load(put(tmp_path, name, *(delimiter.join(row) for row in rows)), query="question", label="answer")
    assert found.query_texts() == ['say "hi", twice', "cab"]
    assert found.qrels == {"q1": {"food": 1}, "q2": {"taxi": 1}}
    assert found.queries["q2"].metadata == {"no": "2", "team": "ops"}


def test_a_csv_cell_may_hold_a_json_list_or_grades(tmp_path):
    found = load(put(tmp_path, "pairs.csv", "query,expected", 'both,"[""food"", ""taxi""]"', 'cab,"{""taxi"": 3}"', "square,[food]"))
    assert found.qrels == {"q1": {"food": 1, "taxi": 1}, "q2": {"taxi": 3}, "q3": {"[food]": 1}}


def test_a_quoted_csv_cell_may_go_over_lines(tmp_path):
    found = load(put(tmp_path, "pairs.csv", "query,expected", '"first', 'second",food', "cab,taxi"))
    assert found.query_texts() == ["first\nsecond", "cab"]


def test_parquet_with_named_columns(tmp_path):
    frame = pd.DataFrame({"question": ["lunch", "cab"], "answer": [["food", "taxi"], ["taxi"]], "team": [None, "ops"]})
    frame.to_parquet(tmp_path / "pairs.parquet")
    found = load(tmp_path / "pairs.parquet", query="question", label="answer")
    assert found.qrels == {"q1": {"food": 1, "taxi": 1}, "q2": {"taxi": 1}}
    assert [query.metadata for query in found.queries.values()] == [{}, {"team": "ops"}]


@pytest.mark.parametrize("as_map", [False, True])
def test_parquet_grades_as_structs_or_maps(tmp_path, as_map):
    # In a struct column every row has every key: those that a row does not grade are null.
    grades = pa.map_(pa.string(), pa.int64()) if as_map else pa.struct([("food", pa.int64()), ("taxi", pa.int64())])
    values = [[("food", 2)], [("taxi", 1)]] if as_map else [{"food": 2}, {"taxi": 1}]
    pq.write_table(pa.table({"query": ["lunch", "cab"], "expected": pa.array(values, grades)}), tmp_path / "pairs.parquet")
    assert load(tmp_path / "pairs.parquet").qrels == {"q1": {"food": 2}, "q2": {"taxi": 1}}


def test_parquet_columns_that_json_lacks_can_be_written_and_hashed(tmp_path):
    frame = pd.DataFrame({"query": ["lunch", "cab"], "expected": ["food", "taxi"], "when": pd.to_datetime(["2024-05-01", "2024-05-02"])})
    frame.to_parquet(tmp_path / "pairs.parquet")
    found = load(tmp_path / "pairs.parquet")
    assert len(found.digest()) == 64
    written = load(write_beir(found, tmp_path / "beir"))
    assert written.queries["q1"].metadata["when"].startswith("2024-05-01")


def test_json_list(tmp_path):
    assert load(put(tmp_path, "pairs.json", [{"query": "lunch", "expected": "food"}])).qrels == {"q1": {"food": 1}}


def test_beir_folder_keeps_grades_titles_metadata_and_official_parts(tmp_path):
    folder = beir(tmp_path, ["query-id\tcorpus-id\tscore", "q1\td1\t2", "q1\td2\t0"])
    put(folder, "qrels/dev.tsv", "query-id\tcorpus-id\tscore", "q2\td2\t1")
    found = load(folder)
    assert found.corpus == {"d1": Document("d1", "one", "A"), "d2": Document("d2", "two")}
    assert found.qrels == {"q1": {"d1": 2, "d2": 0}, "q2": {"d2": 1}}
    assert found.parts == {"test": ("q1",), "dev": ("q2",)}


@pytest.mark.parametrize(
    "lines",
    [
        ["query-id\tcorpus-id\tscore", "q1\td1\t2", "q2\td2\t1"],
        ["q1\td1\t2", "q2\td2\t1"],
        ["q1 0 d1 2", "q2 0 d2 1"],
        ["q1\t0\td1\t2", "q2\tQ0\td2\t1"],
        ["query-id\titer\tcorpus-id\tscore", "q1\t0\td1\t2", "", "q2\t0\td2\t1"],
        ["query-id\tcorpus-id\tscore\r", "q1\td1\t2\r", "\r", "q2\td2\t1\r"],
    ],
    ids=["header", "no header", "trec", "trec by tabs", "trec with header", "crlf"],
)
def test_qrels_in_three_or_four_columns_with_or_without_header(tmp_path, lines):
    assert load(beir(tmp_path, lines)).qrels == {"q1": {"d1": 2}, "q2": {"d2": 1}}


@pytest.mark.parametrize(
    "lines",
    [
        ["query-id\tscore\tcorpus-id", "1\t0\t2", "2\t2\t1"],
        ["corpus-id\tquery-id\tscore", "2\t1\t0", "1\t2\t2"],
        ["query-id\tcorpus-id\tscore\tannotator", "1\t2\t0\t1", "2\t1\t2\t1"],
        ["", "Relevance QID annotator doc_id", "0 1 2 2", "2 2 2 1"],
        ["query\tdocument\tlabel\tnote", "1\t2\t0\t", "2\t1\t2\t"],
    ],
    ids=["score first", "documents first", "one more", "by spaces", "short names"],
)
def test_the_header_of_qrels_says_which_column_is_which(tmp_path, lines):
    put(tmp_path, "corpus.jsonl", *({"_id": id, "text": f"text {id}"} for id in "012"))
    put(tmp_path, "queries.jsonl", *({"_id": id, "text": f"about {id}"} for id in "12"))
    put(tmp_path, "qrels/test.tsv", *lines)
    assert load(tmp_path).qrels == {"1": {"2": 0}, "2": {"1": 2}}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ("a\tb\tc", "no columns of the query id"),
        ("query-id\tcorpus-id\tx", "no columns of the grade"),
        ("query-id\tcorpus-id\tscore\tlabel", "2 columns of the grade"),
        ("query-id\titer\tcorpus-id\tx", "no columns of the grade"),
    ],
)
def test_a_header_of_qrels_without_known_names_is_refused_once(tmp_path, header, said):
    problems = []
    load(beir(tmp_path, [header, "q1\td1\t2", "q9\td1\t2"]), problems=problems)
    assert len(problems) == 1
    assert f"test.tsv:1: is a header with {said}: " in str(problems[0])


def test_a_line_of_qrels_that_is_shorter_than_the_header_is_refused(tmp_path):
    folder = beir(tmp_path, ["query-id\tcorpus-id\tscore\tby", "q1\td1\t2\tme", "q2\td2\t1"])
    assert "test.tsv:3: has 3 cells: 'q2\\td2\\t1'; expected 4, as in the header" in refusal(folder)


@pytest.mark.parametrize("name", ["Test.tsv", "TEST.TSV"])
def test_the_name_of_a_part_may_have_capitals(tmp_path, name):
    assert load(beir(tmp_path, ["q1\td1\t1"], name=name)).parts == {"test": ("q1",)}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("qrels/test.tsv", b"query-id\tcorpus-id\tscore\rq1\td1\t1\r"),
        ("pairs.tsv", b"query\texpected\rx\ta\r"),
        ("pairs.jsonl", b'{"query": "x", "expected": "a"}\r{"query": "y", "expected": "b"}\r'),
    ],
)
def test_lines_that_end_in_a_carriage_return_alone_are_named_as_that(tmp_path, name, content):
    beir(tmp_path, ["q1\td1\t1"])
    (tmp_path / name).write_bytes(content)
    line = refusal(tmp_path if "qrels" in name else tmp_path / name)
    assert f"{name}:1: has a carriage return alone; expected lines that end in a line feed; fix: save it with" in line


def test_beir_validation_part_is_dev(tmp_path):
    assert load(beir(tmp_path, ["q1\td1\t1"], name="validation.tsv")).parts == {"dev": ("q1",)}


def test_banking77(bench):
    found = load(bench / "banking77")
    assert len(found.corpus) == 77
    assert {part: len(ids) for part, ids in found.parts.items()} == {"train": 9_978, "test": 3_080}


def test_scifact(bench):
    found = load(bench / "scifact")
    assert len(found.corpus) == 5_183
    assert len(found.parts["test"]) == 300
    assert found.corpus["4983"].title.startswith("Microstructural development")


# Labels


NOT_AN_ID = [
    "true",
    "[null]",
    "[true]",
    '[["a"]]',
    '[{"id": "a"}]',
    "[NaN]",
    "1e999",
    "1e17",
    "1.5",
    "[1.5]",
    '[""]',
    '["a", null]',
]


@pytest.mark.parametrize("value", NOT_AN_ID)
def test_a_label_that_is_neither_a_text_nor_a_whole_number_is_refused(tmp_path, value):
    line = refusal(put(tmp_path, "pairs.jsonl", f'{{"query": "a", "expected": {value}}}'))
    assert f"pairs.jsonl:1: key 'expected' is {json.loads(value)!r}; expected a document id, a list of them, or {{id: grade}}" in line


@pytest.mark.parametrize("grade", ["null", "true", '"1"', "[1]", "NaN", "1.5", "1e99", "4294967296"])
def test_a_grade_that_is_no_whole_number_is_refused(tmp_path, grade):
    line = refusal(put(tmp_path, "pairs.jsonl", f'{{"query": "a", "expected": {{"b": {grade}}}}}'))
    assert f"pairs.jsonl:1: grade {json.loads(grade)!r}; expected a whole number, 0 or more" in line


@pytest.mark.parametrize("value", ["1", "1.0", '"1"', '" 1 "', "[1]", "[1.0]", '["1"]', '[1, 1.0, "1"]', '{"1": 1.0}', '"[1.0]"'])
def test_a_whole_number_is_the_same_id_however_it_is_written(tmp_path, value):
    rows = [f'{{"query": "a", "expected": {value}}}', {"query": "b", "expected": 1}]
    found = load(put(tmp_path, "pairs.jsonl", *rows), put(tmp_path, "docs.jsonl", {"id": 1.0, "text": "one"}))
    assert found.qrels == {"q1": {"1": 1}, "q2": {"1": 1}}


def test_whole_numbers_that_pandas_made_floats_are_ids_in_parquet(tmp_path):
    pd.DataFrame({"id": [7, None, 9], "query": ["a", "b", "c"], "expected": [1.0, 2.0, None]}).iloc[:2].to_parquet(
        tmp_path / "pairs.parquet"
    )
    found = load(tmp_path / "pairs.parquet")
    assert found.qrels == {"7": {"1": 1}, "q2": {"2": 1}}


def test_a_float_in_a_cell_of_text_is_a_text_and_never_a_second_label_silently(tmp_path):
    documents = put(tmp_path, "docs.jsonl", {"id": 12, "text": "twelve"}, {"id": "3", "text": "three"})
    assert "label '3.0' is not among the 2 documents; did you mean '3'?" in refusal(
        put(tmp_path, "pairs.csv", "query,expected", "a,12", "b,3.0"), documents
    )
    line = refusal(put(tmp_path, "pairs.csv", "query,expected", "a,12", "b,3.0", "c,3"))
    assert "pairs.csv:3: label '3.0' is also written '3' at " in line
    assert load(put(tmp_path, "pairs.csv", "query,expected", "a,v1.0", "b,3.0")).qrels == {"q1": {"v1.0": 1}, "q2": {"3.0": 1}}


@pytest.mark.parametrize(
    "cell",
    ["['a', 'b']", '["a", "b"]', "('a', 'b')", "{'a', 'b'}", "{'a': 1, 'b': 1}", '{"a": 1, "b": 1}', "['a',\n 'b']", " [ 'b', \"a\" ] "],
)
def test_a_cell_with_a_list_as_python_or_pandas_writes_it_is_a_list(tmp_path, cell):
    pd.DataFrame({"query": ["x"], "expected": [cell]}).to_csv(tmp_path / "pairs.csv", index=False)
    assert load(tmp_path / "pairs.csv").qrels == {"q1": {"a": 1, "b": 1}}


@pytest.mark.parametrize(
    "cell",
    [
        "array(['a', 'b'], dtype=object)",
        "np.array(['a',\n       'b'])",
        "frozenset({'a', 'b'})",
        "[np.str_('a'), np.str_('b')]",
        "Counter({'a': 1, 'b': np.int64(1)})",
        "tuple(['b', 'a'])",
    ],
)
def test_a_cell_with_a_collection_as_python_or_numpy_writes_it_is_a_list(tmp_path, cell):
    pd.DataFrame({"query": ["x"], "expected": [cell]}).to_csv(tmp_path / "pairs.csv", index=False)
    assert load(tmp_path / "pairs.csv").qrels == {"q1": {"a": 1, "b": 1}}


def test_lists_in_a_column_of_pandas_come_back_from_its_csv(tmp_path):
    pd.DataFrame({"query": ["x", "y"], "expected": [["it's", 'a "b"'], ["c"]]}).to_csv(tmp_path / "pairs.csv")
    assert load(tmp_path / "pairs.csv").qrels == {"q1": {"it's": 1, 'a "b"': 1}, "q2": {"c": 1}}


@pytest.mark.parametrize(
    "cell",
    [
        "array(['a' 'b'])",
        "defaultdict(<class 'int'>, {'a': 1})",
        "[np.str_('a') np.str_('b')]",
        "['a' 'b']",
        "['a', nan]",
        "[1 2]",
        "[nan]",
        "['a', 'b'",
        "{'a': 1, 'a': 2}",
        '{"a": 1, "a": 2}',
        '["a" "b"]',
    ],
)
def test_a_cell_that_looks_like_a_list_but_is_none_is_refused(tmp_path, cell):
    with (tmp_path / "pairs.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["query", "expected"], ["x", cell]])
    line = refusal(tmp_path / "pairs.csv")
    assert f"pairs.csv:2: key 'expected' is {cell!r}, which looks like a list but is none; fix: write a JSON list" in line


def test_brackets_in_a_name_do_not_make_it_a_list(tmp_path):
    names = ["set(up)", "Index (old)", "array(1)", "[URGENT] billing", "(a) lunch", "{b}", "[food]", "[1] one", "(1)"]
    rows = [{"query": f"text {number}", "expected": name} for number, name in enumerate(names)]
    assert list(load(put(tmp_path, "pairs.jsonl", *rows)).corpus) == names


# Several labels in one cell

SIGNS = ["/", "+", "&", ">", "\u2022", "\u00b7", " - ", " \u2013 ", " \u2014 ", " and "]
JOINED = {
    **{sign: (f"a {sign.strip()} b", sign) for sign in SIGNS},
    "semicolon": ("a; b", ";"),
    "bar": ("a|b", "|"),
    "comma": ("a, b", ","),
    "line": ("a\nb", "\n"),
    "tab": ("a\tb", "\t"),
}


@pytest.mark.parametrize(("cell", "separator"), JOINED.values(), ids=JOINED)
@pytest.mark.parametrize("with_documents", [False, True])
def test_a_cell_of_labels_that_are_known_alone_is_refused_and_names_the_setting(tmp_path, cell, separator, with_documents):
    documents = put(tmp_path, "docs.jsonl", {"id": "a", "text": "A"}, {"id": "b", "text": "B"}) if with_documents else None
    rows = [{"query": "x", "expected": "a"}, {"query": "y", "expected": "b"}, {"query": "z", "expected": cell}]
    pairs = put(tmp_path, "pairs.jsonl", *rows)
    line = refusal(pairs, documents)
    assert f"pairs.jsonl:3: label {cell!r} holds 2 labels" in line
    assert f"fix: set separator = {json.dumps(separator, ensure_ascii=False)} in [data]" in line
    assert load(pairs, documents, separator=separator).qrels == {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"a": 1, "b": 1}}


@pytest.mark.parametrize("cell", ["a; b, c", "a, b and c", "a / b; c", "a; b, a; b", "[a; b, c]"])
@pytest.mark.parametrize("with_documents", [False, True])
def test_a_cell_of_labels_with_different_signs_between_them_is_refused(tmp_path, cell, with_documents):
    documents = put(tmp_path, "docs.jsonl", {"id": "a", "text": "A"}, {"id": "b", "text": "B"}) if with_documents else None
    rows = [{"query": "x", "expected": "a"}, {"query": "y", "expected": "b"}, {"query": "z", "expected": cell}]
    line = refusal(put(tmp_path, "pairs.jsonl", *rows), documents)
    assert f"pairs.jsonl:3: label {cell!r} holds {3 if 'c' in cell else 2} labels" in line
    assert "fix: write them as a JSON list, as no single sign stands between them" in line


def test_labels_that_hold_signs_themselves_are_told_from_those_between_them(tmp_path):
    names = ["a; b/c", "b/c", "a", "b", "c"]
    line = refusal(put(tmp_path, "pairs.jsonl", *({"query": f"t{n}", "expected": name} for n, name in enumerate(names[:2] + names[2:3]))))
    assert "pairs.jsonl:1: label 'a; b/c' holds 2 labels" in line
    assert 'fix: set separator = ";"' in line


def test_signs_in_names_whose_parts_are_no_labels_keep_them_whole(tmp_path):
    names = [
        "R&D",
        "A+",
        "A",
        "C/C++",
        "Food",
        "Food > Fruit",
        "Travel",
        "Travel / Travel",
        "check-in",
        "Sales and tax",
        "tax",
        "B - C",
        "B",
    ]
    pairs = put(tmp_path, "pairs.jsonl", *({"query": f"t{n}", "expected": name} for n, name in enumerate(names)))
    assert list(load(pairs).corpus) == names


def test_many_cells_of_several_labels_are_one_error(tmp_path):
    rows = [{"query": f"t{n}", "expected": ["a", "b", "c", "a; b", "c;b", "a;b;new"][n % 6]} for n in range(60)]
    problems = []
    load(put(tmp_path, "pairs.jsonl", *rows), problems=problems)
    assert len(problems) == 1
    assert "pairs.jsonl:4: label 'a; b' holds 2 labels, most of which stand alone elsewhere (30 rows have such cells)" in str(problems[0])


def test_a_label_that_holds_a_separator_stays_whole_where_its_parts_are_no_labels(tmp_path):
    rows = [{"query": "x", "expected": "Salt; pepper"}, {"query": "y", "expected": "Salt"}, {"query": "z", "expected": "Oil, vinegar"}]
    assert list(load(put(tmp_path, "pairs.jsonl", *rows)).corpus) == ["Salt; pepper", "Salt", "Oil, vinegar"]


def test_a_label_whose_parts_are_labels_can_be_said_to_be_one(tmp_path):
    rows = [{"query": "x", "expected": "Food"}, {"query": "y", "expected": "Drink"}]
    as_list = put(tmp_path, "list.jsonl", *rows, {"query": "z", "expected": ["Food, Drink"]})
    assert load(as_list).qrels["q3"] == {"Food, Drink": 1}
    documents = put(tmp_path, "docs.jsonl", *({"id": name, "text": name} for name in ("Food", "Drink", "Food, Drink")))
    pairs = put(tmp_path, "pairs.jsonl", *rows, {"query": "z", "expected": "Food, Drink"})
    assert load(pairs, documents).qrels["q3"] == {"Food, Drink": 1}


def test_with_a_separator_parts_are_stripped_and_empty_ones_left_out(tmp_path):
    pairs = put(tmp_path, "pairs.csv", "query,expected", "x, a ;b;", "y,;;", 'z,"[""a;b"", ""c""]"')
    problems = []
    found = load(pairs, separator=";", problems=problems)
    assert found.qrels == {"q1": {"a": 1, "b": 1}, "q3": {"a;b": 1, "c": 1}}
    assert [str(problem).partition("pairs.csv")[2] for problem in problems] == [
        ":3: key 'expected' is ';;'; expected a document id, a list of them, or {id: grade}"
    ]


def test_with_a_separator_a_document_that_holds_it_is_found_whole(tmp_path):
    documents = put(tmp_path, "docs.jsonl", *({"id": name, "text": name} for name in ("Salt; pepper", "oil", "salt")))
    rows = [{"query": "x", "expected": "Salt; pepper"}, {"query": "y", "expected": "oil; salt"}]
    assert load(put(tmp_path, "pairs.jsonl", *rows), documents, separator=";").qrels == {
        "q1": {"Salt; pepper": 1},
        "q2": {"oil": 1, "salt": 1},
    }


def test_with_a_separator_labels_that_are_all_documents_are_several(tmp_path):
    documents = put(tmp_path, "docs.jsonl", *({"id": name, "text": name} for name in ("Food, Drink", "Food", "Drink")))
    pairs = put(tmp_path, "pairs.jsonl", {"query": "x", "expected": "Food, Drink"})
    assert load(pairs, documents, separator=",").qrels == {"q1": {"Food": 1, "Drink": 1}}


def test_a_document_whose_id_looks_like_a_list_is_found(tmp_path):
    documents = put(tmp_path, "docs.jsonl", *({"id": name, "text": name} for name in ("[1]", "1", "['a' 'b']")))
    pairs = put(tmp_path, "pairs.csv", "query,expected", "x,[1]", "y,['a' 'b']", "z,1")
    assert load(pairs, documents).qrels == {"q1": {"[1]": 1}, "q2": {"['a' 'b']": 1}, "q3": {"1": 1}}


def test_arguments_that_mean_nothing_are_refused(tmp_path):
    folder = beir(tmp_path, ["q1\td1\t1"])
    for name in ("separator", "grade", "label"):
        with pytest.raises(ConfigError, match=f"is a folder, which has documents and judgements of its own; fix: leave '{name}' out"):
            load(folder, **{name: ";"})
    with pytest.raises(ConfigError, match="the separator is empty"):
        load(put(tmp_path, "pairs.jsonl", {"query": "a", "expected": "b"}), separator="")


# Grades in a column, and several rows for one query


@pytest.mark.parametrize("name", ["grade", "score", "Relevance", "relevance-score", " Rel "])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_a_column_of_grades_beside_the_label_is_its_grade(tmp_path, name, form):
    frame = pd.DataFrame({"query": ["x", "x", "y"], "expected": ["a", "b", "c"], name: [2, 0, 1]})
    if form == "csv":
        frame.to_csv(tmp_path / "pairs.csv", index=False)
    elif form == "jsonl":
        frame.to_json(tmp_path / "pairs.jsonl", orient="records", lines=True)
    else:
        frame.astype({name: float}).to_parquet(tmp_path / "pairs.parquet")
    found = load(tmp_path / f"pairs.{form}")
    assert found.qrels == {"q1": {"a": 2, "b": 0}, "q3": {"c": 1}}
    assert found.relevant("q1") == {"a": 2}
    assert [query.metadata for query in found.queries.values()] == [{}, {}]


def test_what_is_read_as_the_grade_and_put_together_is_said(tmp_path, capsys):
    load(put(tmp_path, "pairs.csv", "query,expected,score,who", "x,a,1,me", "x,b,0,me", "y,c,1,you"))
    assert [line.partition("pairs.csv: ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "column 'score' is read as the grade of the label; 0 is not relevant",
        "rows whose answers were added to an earlier row with the same query: 1",
    ]


def test_a_column_label_of_zeros_and_ones_beside_documents_is_their_grade(tmp_path):
    rows = ["query,passage,label", "x,a,1", "x,b,0", "y,c,1"]
    assert load(put(tmp_path, "pairs.csv", *rows), label="passage").qrels == {"q1": {"a": 1, "b": 0}, "q3": {"c": 1}}
    rows = ["query,passage,label", "x,a,3", "y,c,1"]
    assert load(put(tmp_path, "pairs.csv", *rows), label="passage").queries["q1"].metadata == {"label": "3"}


ONE_AND_ZERO = [(True, False), (1.0, 0.0), ("True", "False"), ("1.0", "0.0"), ("relevant", "irrelevant"), ("Relevant", "not relevant")]


@pytest.mark.parametrize("name", ["label", "is_relevant", "isRelevant", "relevancy", "rating", "gold", "qrel", "relevant", "is_duplicate"])
@pytest.mark.parametrize(("right", "wrong"), ONE_AND_ZERO)
@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_truth_values_in_a_column_of_judgements_are_grades(tmp_path, name, right, wrong, form):
    frame = pd.DataFrame({"query": ["x", "x", "y"], "passage": ["a", "b", "c"], name: [right, wrong, right]})
    if form == "csv":
        frame.to_csv(tmp_path / "pairs.csv", index=False)
    else:
        frame.to_json(tmp_path / "pairs.jsonl", orient="records", lines=True)
    assert load(tmp_path / f"pairs.{form}", label="passage").qrels == {"q1": {"a": 1, "b": 0}, "q3": {"c": 1}}


@pytest.mark.parametrize("name", ["label", "relevance", "gold"])
@pytest.mark.parametrize(("right", "wrong"), [(1, -1), ("1", "-1"), ("positive", "negative"), ("yes", "no"), (True, "no"), (1, "No match")])
def test_judgements_that_are_no_grades_are_refused_in_one_line(tmp_path, name, right, wrong):
    if name == "relevance" and str(wrong) == "-1":
        pytest.skip("below 0 is judged and not relevant, in a column that can only hold grades")
    rows = [{"query": f"t{n}", "passage": "ab"[n % 2], name: [right, wrong][n % 2]} for n in range(12)]
    problems = []
    load(put(tmp_path, "pairs.jsonl", *rows), label="passage", problems=problems)
    assert len(problems) == 1
    assert f"grade {(wrong if right in (1, '1') else right)!r} (and " in str(problems[0])
    fix = f'fix: set grade = "" in [data] if {name!r} holds no grades, else write 1 for right and 0 for wrong'
    assert fix in str(problems[0])


@pytest.mark.parametrize("values", [["spam", "ham"], [3, 7], [0, 2], ["true story", "false alarm"]])
def test_a_column_label_of_another_kind_is_metadata(tmp_path, values):
    rows = [{"query": "x", "passage": "a", "label": values[0]}, {"query": "y", "passage": "b", "label": values[1]}]
    found = load(put(tmp_path, "pairs.jsonl", *rows), label="passage")
    assert [query.metadata for query in found.queries.values()] == [{"label": value} for value in values]


@pytest.mark.parametrize(
    ("names", "grades"), [(["irrelevant", "relevant"], (1, 0)), (["relevant", "irrelevant"], (0, 1)), (["0", "1"], (1, 0))]
)
@pytest.mark.parametrize("column", ["relevance", "label"])
def test_classes_in_a_column_of_judgements_are_grades_by_their_names(tmp_path, names, grades, column):
    features = {"query": {"dtype": "string", "_type": "Value"}, column: {"names": names, "_type": "ClassLabel"}}
    table = pa.table({"query": ["x", "x", "y", "y"], "passage": ["a", "b", "a", "b"], column: [1, 0, 1, 0]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}), tmp_path / "pairs.parquet")
    right, wrong = grades
    assert load(tmp_path / "pairs.parquet", label="passage").qrels == {"q1": {"a": right, "b": wrong}, "q3": {"a": right, "b": wrong}}


@pytest.mark.parametrize("name", ["gold", "rating"])
def test_a_column_of_numbers_that_may_be_grades_holds_them_or_is_refused(tmp_path, name):
    rows = [{"query": "x", "expected": "a", name: 2}, {"query": "y", "expected": "b", name: 0}]
    assert load(put(tmp_path, "pairs.jsonl", *rows)).qrels == {"q1": {"a": 2}, "q2": {"b": 0}}
    assert "grade 4.5; expected a whole number" in refusal(put(tmp_path, "pairs.jsonl", *rows, {"query": "z", "expected": "c", name: 4.5}))
    rows = [{"query": "x", "expected": "a", name: "PG-13"}]
    assert load(put(tmp_path, "pairs.jsonl", *rows)).queries["q1"].metadata == {name: "PG-13"}


def test_a_score_that_is_no_grade_is_refused_once_and_can_be_left_out(tmp_path):
    pairs = put(tmp_path, "pairs.csv", "query,expected,score", *(f"text {n},a,0.{n}" for n in range(1, 9)), "z,b,0")
    problems = []
    load(pairs, problems=problems)
    assert len(problems) == 1
    assert "pairs.csv:2: grade '0.1' (and 7 more rows like it, the last at " in str(problems[0])
    assert "fix: set grade = \"\" in [data] if 'score' holds no grades" in str(problems[0])
    assert load(pairs, grade="").queries["q1"].metadata == {"score": "0.1"}


@pytest.mark.parametrize(
    ("cell", "said"), [("-x", "grade '-x'"), ("", "key 'votes' is missing"), ("yes", "grade 'yes'"), ("1.5", "grade '1.5'")]
)
def test_a_named_column_of_grades_must_hold_one_in_each_row(tmp_path, cell, said):
    pairs = put(tmp_path, "pairs.csv", "query,expected,votes", "x,a,2", f"y,b,{cell}")
    assert f"pairs.csv:3: {said}" in refusal(pairs, grade="votes")
    assert "key 'vote' is missing in all 2 rows (keys: query, expected, votes); did you mean 'votes'?" in refusal(pairs, grade="vote")


def test_grades_with_the_labels_leave_a_score_what_it_is(tmp_path):
    pairs = put(tmp_path, "pairs.jsonl", {"query": "x", "expected": {"a": 2}, "score": 0.7})
    assert load(pairs).queries["q1"].metadata == {"score": 0.7}
    assert "pairs.jsonl:1: has grades in both 'expected' and 'score'" in refusal(pairs, grade="score")


def test_a_field_of_a_record_is_no_grade(tmp_path):
    (tmp_path / "ticket.json").write_text(json.dumps({"properties": {"subject": {}, "score": {}, "expected": {}}}))
    pairs = put(
        tmp_path, "pairs.jsonl", {"subject": "x", "score": 0, "expected": "a"}, {"subject": "y", "score": 3, "expected": "b", "grade": 2}
    )
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    assert load(put(tmp_path, "one.jsonl", rows[0]), record=str(tmp_path / "ticket.json")).qrels == {"q1": {"a": 1}}
    found = load(put(tmp_path, "two.jsonl", rows[1]), record=str(tmp_path / "ticket.json"))
    assert (found.qrels, found.queries["q1"].text) == ({"q1": {"b": 2}}, "Subject: y\nScore: 3")


@pytest.mark.parametrize("ids", [("7", "7", "8", "7"), None], ids=["by id", "by text"])
def test_several_rows_for_one_query_are_one_query(tmp_path, ids):
    rows = [{"query": text, "expected": label} for text, label in (("x", "a"), ("x", ["b", "c"]), ("y", "a"), ("x", {"d": 0}))]
    rows = [{**({"id": id} if id else {}), **row} for id, row in zip(ids or [None] * 4, rows, strict=True)]
    found = load(put(tmp_path, "pairs.jsonl", *rows))
    assert list(found.qrels.values()) == [{"a": 1, "b": 1, "c": 1, "d": 0}, {"a": 1}]
    assert list(found.queries) == (["7", "8"] if ids else ["q1", "q3"])
    assert found.merged == (() if ids else ("q1",))


def test_the_same_text_with_another_id_part_or_origin_is_another_query(tmp_path):
    for key, values in (("id", ["a", "b"]), ("part", ["train", "test"]), ("customer", ["c1", "c2"])):
        rows = [{"query": "x", "expected": "a", key: values[0]}, {"query": "x", "expected": "b", key: values[1]}]
        found = load(put(tmp_path, "pairs.jsonl", *rows))
        assert (list(found.qrels.values()), found.merged) == ([{"a": 1}, {"b": 1}], ()), key


def test_what_differs_between_the_rows_of_one_id_is_left_out_and_said(tmp_path, capsys):
    rows = ["id,query,expected,team,title", "1,x,a,ops,A", "1,x,b,ops,B", "2,y,a,it,A"]
    found = load(put(tmp_path, "pairs.csv", *rows))
    assert [query.metadata for query in found.queries.values()] == [{"team": "ops"}, {"team": "it", "title": "A"}]
    assert "left out, as it differs between them: title" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"id": 1, "query": "y", "expected": "b"}, "id '1' occurs here a second time with another text, 'y'"),
        ({"id": 1, "query": "x", "expected": "b", "part": "dev"}, "id '1' occurs here a second time with another part, 'dev'"),
        ({"id": 1, "query": "x", "expected": {"a": 0}}, "grade of 'a' is 0 here and 1 at "),
        ({"id": 1.0, "query": "x", "expected": ["a"]}, "id '1' occurs here a second time with the same label"),
    ],
)
def test_rows_of_one_id_that_contradict_each_other_are_refused(tmp_path, second, said):
    rows = [{"id": 1, "query": "x", "expected": "a"}, second]
    assert f"pairs.jsonl:2: {said}" in refusal(put(tmp_path, "pairs.jsonl", *rows))


def test_a_pair_without_id_that_is_graded_twice_must_have_one_grade(tmp_path):
    line = refusal(put(tmp_path, "pairs.csv", "query,expected,grade", "x,a,2", "x,b,1", "x,a,1"))
    assert "pairs.csv:4: grade of 'a' is 1 here and 2 at " in line
    assert load(put(tmp_path, "pairs.csv", "query,expected,grade", "x,a,2", "x,a,2")).qrels == {"q1": {"a": 2}}


def test_an_id_that_is_a_row_without_ids_name_is_refused(tmp_path):
    for rows in ([{}, {"id": "q1"}], [{"id": "q2"}, {}]):
        pairs = put(tmp_path, "pairs.jsonl", *({"query": f"text {n}", "expected": "a", **row} for n, row in enumerate(rows)))
        assert "occurs here a second time; expected an id in each row, or in none" in refusal(pairs)


# Columns that stand twice


@pytest.mark.parametrize("second", ["query", "Query", " query "])
@pytest.mark.parametrize(("name", "delimiter"), [("pairs.csv", ","), ("pairs.tsv", "\t")])
def test_a_column_that_stands_twice_is_refused(tmp_path, second, name, delimiter):
    pairs = put(tmp_path, name, delimiter.join(["query", second, "expected"]), delimiter.join("abc"))
    assert f"{name}:1: column {second.strip()!r} stands beside column 'query'; expected names that differ" in refusal(pairs)


def test_a_key_that_stands_twice_in_an_object_is_refused(tmp_path):
    assert "pairs.jsonl:1: is not JSON (key 'query' stands twice" in refusal(
        put(tmp_path, "pairs.jsonl", '{"query": "a", "query": "b", "expected": "c"}')
    )
    line = refusal(put(tmp_path, "pairs.jsonl", {"query": "a", "expected": "b", "team": 1, "metadata": {"team": 2}}))
    assert "pairs.jsonl:1: key 'team' is 1, and 2 in 'metadata'; expected one value" in line


def test_parquet_refuses_a_column_or_a_key_of_a_map_that_stands_twice(tmp_path):
    table = pa.table([pa.array(["a"]), pa.array(["b"]), pa.array(["c"])], names=["query", "Query", "expected"])
    pq.write_table(table, tmp_path / "pairs.parquet")
    assert "pairs.parquet: column 'Query' stands beside column 'query'" in refusal(tmp_path / "pairs.parquet")
    grades = pa.array([[("a", 1)], [("a", 1), ("a", 2)]], pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({"query": ["x", "y"], "expected": grades}), tmp_path / "pairs.parquet")
    assert "pairs.parquet:2: has a map with a key twice" in refusal(tmp_path / "pairs.parquet")


def test_columns_without_a_name_may_be_empty_but_not_hide_each_other(tmp_path):
    assert load(put(tmp_path, "pairs.csv", "query,expected,,", "a,b,,", ",,,")).queries == {"q1": Query("q1", "a")}
    assert "pairs.csv:2: has '5' in a column without a name" in refusal(put(tmp_path, "pairs.csv", "query,expected,,", "a,b,4,5"))


def test_a_struct_of_parquet_without_any_grade_is_refused(tmp_path):
    grades = pa.array([{"a": 1, "b": None}, {"a": None, "b": None}], pa.struct([("a", pa.int64()), ("b", pa.int64())]))
    pq.write_table(pa.table({"query": ["x", "y"], "expected": grades}), tmp_path / "pairs.parquet")
    assert "pairs.parquet:2: grade None; expected a whole number" in refusal(tmp_path / "pairs.parquet")


def class_labels(folder, values, kind):
    """Write Parquet as the datasets library does, with a column of classes."""
    feature = {"names": ["food", "taxi"], "_type": "ClassLabel"}
    if isinstance(values[0], list):
        feature = {"feature": feature, "_type": "List"}
    features = {"query": {"dtype": "string", "_type": "Value"}, "expected": feature}
    table = pa.table({"query": [f"text {n}" for n in range(len(values))], "expected": pa.array(values, kind)})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, folder / "pairs.parquet")
    return folder / "pairs.parquet"


def test_numbers_of_classes_in_parquet_become_their_names(tmp_path):
    assert list(load(class_labels(tmp_path, [1, 0], pa.int64())).corpus) == ["taxi", "food"]
    assert load(class_labels(tmp_path, [[1], [0, 1]], pa.list_(pa.int64()))).qrels == {"q1": {"taxi": 1}, "q2": {"food": 1, "taxi": 1}}
    assert "pairs.parquet:2: class 2 has no name; expected 0 to 1" in refusal(class_labels(tmp_path, [0, 2], pa.int64()))
    assert load(class_labels(tmp_path, [-1, 0], pa.int64())).qrels == {"q2": {"food": 1}}  # the library's value for an unknown label


# Quotes in CSV and TSV


def test_a_quote_is_a_sign_like_others_in_tsv(tmp_path):
    texts = ["lunch", '"hello', "cab", 'the "best" bus', 'a 5" pipe', '"', '""', '"quoted"', 'end"']
    pairs = put(tmp_path, "pairs.tsv", "query\texpected", *(f"{text}\t{'ab'[n % 2]}" for n, text in enumerate(texts)))
    assert load(pairs).query_texts() == texts


def test_ids_of_qrels_may_begin_with_a_quote(tmp_path):
    folder = beir(tmp_path, ["query-id\tcorpus-id\tscore", '"q1\td1\t1', "q2\td2\t1"], queries=('"q1', "q2"))
    assert load(folder).qrels == {'"q1': {"d1": 1}, "q2": {"d2": 1}}


def test_tsv_that_pandas_or_r_wrote_loses_its_quotes(tmp_path, capsys):
    frame = pd.DataFrame({"query": ['say "hi"', "cab"], "expected": [["food", "it's"], ["taxi"]]})
    for quoting in (csv.QUOTE_MINIMAL, csv.QUOTE_ALL):
        frame.to_csv(tmp_path / "pairs.tsv", sep="\t", index=False, quoting=quoting)
        found = load(tmp_path / "pairs.tsv")
        assert found.query_texts() == ['say "hi"', "cab"]
        assert found.qrels == {"q1": {"food": 1, "it's": 1}, "q2": {"taxi": 1}}
    assert "pairs.tsv: cells that were quoted as in CSV, and have lost these quotes: 2" in capsys.readouterr().err


def test_tsv_in_which_one_quote_is_bare_keeps_them_all(tmp_path):
    pairs = put(tmp_path, "pairs.tsv", "query\texpected", '"say ""hi"""\ta', 'a 5" pipe\tb')
    assert load(pairs).query_texts() == ['"say ""hi"""', 'a 5" pipe']


@pytest.mark.parametrize("cell", ["one\ttwo", "one\ntwo"])
def test_a_tab_or_line_end_within_a_cell_of_tsv_is_refused(tmp_path, cell):
    pd.DataFrame({"query": ["a", cell], "expected": ["x", "y"]}).to_csv(tmp_path / "pairs.tsv", sep="\t", index=False)
    line = refusal(tmp_path / "pairs.tsv")
    assert "pairs.tsv:3: has " in line
    assert "a tab or the end of a line cannot stand within a cell of TSV" in line


@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv"])
@pytest.mark.parametrize(("cells", "count"), [(["a"], 1), (["a", "b", "c"], 3)])
def test_a_row_of_too_few_or_too_many_cells_is_named_by_its_line(tmp_path, name, cells, count):
    delimiter = "," if name.endswith("csv") else "\t"
    rows = [delimiter.join(row) for row in (["query", "expected"], ["x", "y"], cells, ["z", "y"])]
    assert f"{name}:3: has {count} cells; expected 2, as in the header" in refusal(put(tmp_path, name, *rows))


# What stands in the rows, and the line of the quote that does not close
UNBALANCED = {
    "to the end": (['"open,food', "cab,taxi"], 4),
    "junk behind the next quote": (['"open,food', "cab,taxi", '"a, b",food'], 4),
    "a quote at the end of a cell far below": (['"open,food', "cab,taxi", "bus,taxi", 'the 5",food'], 4),
    "the next line": (['"open,taxi', '5",food'], 4),
    "in the last column": (['bus,"taxi', "cab,taxi", 'tea,food"'], 4),
    "behind a cell of two lines": (['"one', 'two","fo', 'cab,taxi"'], 5),
    "two in one row": (['"fine, thanks","taxi', "cab,taxi", 'tea,food"'], 4),
}


@pytest.mark.parametrize(("rows", "line"), UNBALANCED.values(), ids=UNBALANCED)
@pytest.mark.parametrize("more", [0, 60])
def test_a_csv_quote_that_swallows_rows_is_refused_with_the_line_where_it_opens(tmp_path, rows, line, more):
    padding = [f"text {n},{['food', 'taxi'][n % 2]}" for n in range(more)]
    message = refusal(put(tmp_path, "pairs.csv", "query,expected", "lunch,food", "dinner,food", *rows, *padding))
    assert f"pairs.csv:{line}: " in message
    assert "expected quotes that close" in message


CELLS_OVER_LINES = [
    "Hi, I lost my card\nPlease help",
    "Dear all,\nI lost it, again.\n\nBest,\nAnn",
    'She said "no", twice\nand left',
    "你好,我的卡丢了\n请帮忙",
    "one,two\nthree",
    "a list:\n- one\n- two, or three",
    "ich brauche 1,5 kg Mehl\nbitte schnell",
    "1,5 kg Mehl\n2,5 kg Zucker\nbitte",
    "categorise: milk,food\nbread",
]


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_cells_over_lines_that_pandas_and_excel_write_are_read(tmp_path, ending):
    texts = [*CELLS_OVER_LINES, "three", *(f"text {n}" for n in range(60))]
    for order in (["query", "expected"], ["expected", "query"]):
        frame = pd.DataFrame({"query": texts, "expected": [["food", "taxi"][n % 2] for n in range(len(texts))]})[order]
        frame.to_csv(tmp_path / "pairs.csv", index=False, lineterminator=ending)
        assert load(tmp_path / "pairs.csv").query_texts() == texts


def test_a_cell_over_lines_in_a_short_file_is_read_where_it_is_prose(tmp_path):
    pd.DataFrame({"query": CELLS_OVER_LINES[:3], "expected": ["a", "b", "c"]}).to_csv(tmp_path / "pairs.csv", index=False)
    assert load(tmp_path / "pairs.csv").query_texts() == CELLS_OVER_LINES[:3]


@pytest.mark.parametrize("text", CELLS_OVER_LINES[-3:])
@pytest.mark.parametrize("more", [0, 60])
def test_a_comma_within_a_number_or_in_a_single_line_is_no_sign_of_rows(tmp_path, text, more):
    texts = ["lunch", text, "cab", *(f"text {n}" for n in range(more))]
    frame = pd.DataFrame({"query": texts, "expected": [["food", "taxi"][n % 2] for n in range(len(texts))]})
    frame.to_csv(tmp_path / "pairs.csv", index=False)
    assert load(tmp_path / "pairs.csv").query_texts() == texts


def test_rows_of_three_columns_within_a_cell_are_refused(tmp_path):
    padding = [f"{n},text {n},{['food', 'taxi'][n % 2]}" for n in range(60)]
    rows = ['a,"open,food', "b,cab,taxi", 'c,the 5",food']
    assert "pairs.csv:2: begins a cell of 3 lines" in refusal(put(tmp_path, "pairs.csv", "who,query,expected", *rows, *padding))
    assert "pairs.csv:2: begins a cell of 2 lines" in refusal(put(tmp_path, "pairs.csv", "who,query,expected", rows[0], rows[2], *padding))


def test_a_row_over_lines_is_named_by_its_first(tmp_path):
    assert "pairs.csv:3: has 3 cells" in refusal(put(tmp_path, "pairs.csv", "query,expected", "a,b", '"one', 'two",b,c'))


# Readers on anything at all

signs = st.text(st.sampled_from("ab\"',;|\t\n\r[]{}:1.0 \\é\u200b\u2028\ufeff\x00"), max_size=8)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | signs,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(signs, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(value=jsons)
def test_labels_of_any_json_are_texts_and_whole_grades_or_refused(value, tmp_path_factory):
    path = put(tmp_path_factory.mktemp("any"), "pairs.jsonl", {"query": "x", "expected": "other"}, {"query": "y", "expected": value})
    with contextlib.suppress(DataError):
        found = load(path)
        grades = found.qrels.get("q2", {})
        assert all(type(grade) is int and grade >= 0 for grade in grades.values())
        assert all((label == label.strip() != "" and label not in ("None", "nan", "True", "False")) or label == value for label in grades)
        if isinstance(value, (list, dict)):
            assert set(grades) == {str(int(label)) if isinstance(label, float) else str(label).strip() for label in value}


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60) | signs.map(str.encode), name=st.sampled_from(["csv", "tsv", "jsonl", "json", "parquet"]))
def test_readers_of_any_bytes_end_in_a_data_set_or_in_one_line(content, name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    header = {"csv": b"query,expected\n", "tsv": b"query\texpected\n", "jsonl": b'{"query": "a", "expected": "b"}\n'}
    for start in (b"", header.get(name, b"")):
        (folder / f"pairs.{name}").write_bytes(start + content)
        with contextlib.suppress(DataError):
            load(folder / f"pairs.{name}")


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 2_000), byte=st.integers(0, 255))
def test_damaged_parquet_ends_in_a_data_set_or_in_one_line(place, byte, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    content = bytearray(class_labels(folder, [[1], [0, 1]], pa.list_(pa.int64())).read_bytes())
    content[place % len(content)] = byte
    (folder / "pairs.parquet").write_bytes(content)
    with contextlib.suppress(DataError):
        load(folder / "pairs.parquet")


said = signs.filter(lambda text: text.strip() and text.strip("\ufeff") == text)


@settings(max_examples=150, deadline=None)
@given(cells=st.lists(said, min_size=1, max_size=6, unique=True), ending=st.sampled_from(["\n", "\r\n"]))
def test_any_cells_of_csv_come_back_or_are_refused(cells, ending, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "pairs.csv"
    file = io.StringIO()
    # Python leaves a carriage return without quotes where lines end in a line feed alone.
    quoting = csv.QUOTE_ALL if ending == "\n" else csv.QUOTE_MINIMAL
    csv.writer(file, lineterminator=ending, quoting=quoting).writerows(
        [["query", "expected", "place"], *([cell, "b", n] for n, cell in enumerate(cells))]
    )
    path.write_bytes(file.getvalue().encode())
    problems = []
    texts = load(path, problems=problems).query_texts()
    assert texts == cells or (all("lines that read like rows of their own" in str(problem) for problem in problems) and problems)


@settings(max_examples=150, deadline=None)
@given(cells=st.lists(said.filter(lambda text: not set(text) & set("\t\r\n")), min_size=1, max_size=6, unique=True))
def test_any_cells_of_tsv_come_back_where_a_quote_is_bare(cells, tmp_path_factory):
    path = put(tmp_path_factory.mktemp("any"), "pairs.tsv", "query\texpected", *(f"{cell}\tb" for cell in ['a 5" pipe', *cells]))
    assert load(path, problems=[]).query_texts() == list(dict.fromkeys(['a 5" pipe', *cells]))


# Writing and reading back


@pytest.mark.parametrize("write", [write_beir, write_jsonl])
def test_the_transactions_come_back_as_they_were(transactions, tmp_path, write):
    assert read_back(write(transactions, tmp_path)) == transactions


def read_back(folder):
    documents = folder / "documents.jsonl"
    return load(folder / "queries.jsonl", documents) if documents.exists() else load(folder)


# Ids are anything that fits on a line of a TSV file; texts are anything that says something.
ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\r\n"), min_size=1, max_size=6).filter(str.strip)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
values = st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=2), max_leaves=3)
metadata = st.dictionaries(st.sampled_from(["id", "_id", "text", "query", "metadata", "part", "größe"]), values, max_size=3)


@st.composite
def datasets(draw):
    corpus = draw(st.dictionaries(ids, st.tuples(texts, texts | st.just(""), metadata), min_size=1, max_size=4))
    queries = draw(st.dictionaries(ids, st.tuples(texts, metadata), min_size=1, max_size=5))
    qrels, parts = {}, {}
    for id in queries:
        chosen = draw(st.lists(st.sampled_from(sorted(corpus)), min_size=1, max_size=3, unique=True))
        qrels[id] = {document: draw(st.integers(0, 3)) for document in chosen}
        part = draw(st.sampled_from(["train", "dev", "test", None]))
        if part:
            parts[part] = (*parts.get(part, ()), id)
    first = next(iter(qrels))
    qrels[first] = dict.fromkeys(qrels[first], 1)
    return Dataset(
        {id: Query(id, *said) for id, said in queries.items()}, {id: Document(id, *said) for id, said in corpus.items()}, qrels, parts
    )


@pytest.mark.parametrize("write", [write_beir, write_jsonl])
@settings(max_examples=100, deadline=None)
@given(data=datasets())
def test_any_data_set_comes_back_without_loss(write, data, tmp_path_factory):
    assert read_back(write(data, tmp_path_factory.mktemp("written"))) == data


@pytest.mark.parametrize("write", [write_beir, write_jsonl])
def test_a_query_without_judgements_comes_back_too(write, tmp_path):
    data = Dataset({"a": Query("a", "lunch"), "b": Query("b", "hello")}, DOCUMENTS, {"a": {"food": 1}})
    assert read_back(write(data, tmp_path)) == data
    assert data.judged == ("a",)


def test_an_id_that_a_qrels_file_cannot_hold_is_refused(tmp_path):
    data = Dataset({"a\tb": Query("a\tb", "lunch")}, DOCUMENTS, {"a\tb": {"food": 1}})
    with pytest.raises(DataError, match=r"'a\\tb'.*tab"):
        write_beir(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_digest_changes_with_every_part_of_the_data():
    base = Dataset({"a": Query("a", "x")}, DOCUMENTS, {"a": {"food": 1}}, {"test": ("a",)})
    others = [
        Dataset({"a": Query("a", "y")}, DOCUMENTS, base.qrels, base.parts),
        Dataset({"a": Query("a", "x", {"team": 1})}, DOCUMENTS, base.qrels, base.parts),
        Dataset(base.queries, {**DOCUMENTS, "taxi": Document("taxi", "Rides", "T")}, base.qrels, base.parts),
        Dataset(base.queries, DOCUMENTS, {"a": {"food": 2}}, base.parts),
        Dataset(base.queries, DOCUMENTS, base.qrels, {"train": ("a",)}),
    ]
    assert len({data.digest() for data in [base, *others]}) == 6


def test_to_frame_has_a_row_for_each_judged_pair():
    data = Dataset({"a": Query("a", "lunch")}, DOCUMENTS, {"a": {"food": 2, "taxi": 0}})
    assert data.to_frame().to_dict("records") == [
        {"query_id": "a", "query": "lunch", "document_id": "food", "grade": 2},
        {"query_id": "a", "query": "lunch", "document_id": "taxi", "grade": 0},
    ]


def test_select_keeps_the_corpus_and_the_order_asked_for(transactions):
    some = transactions.select(["q5", "q2"])
    assert list(some.queries) == list(some.qrels) == ["q5", "q2"]
    assert some.corpus is transactions.corpus


def test_normalised_folds_case_width_and_white_space():
    assert normalised("  Ｃａｆé\u00a0 STRASSE ") == normalised("café straße") == "café strasse"


# Bad input: one line with file and line, the value seen, what was expected or how to mend it


BAD = {
    "an empty file": ([], ["pairs.jsonl: is empty", "expected at least one row"]),
    "broken JSON": (
        [*[{"query": "a", "expected": "b"}] * 6, '{"query": "a", '],
        ["pairs.jsonl:7: is not JSON", "expected one JSON object"],
    ),
    "JSON too deep": (["[" * 100_000], ["pairs.jsonl:1: is not JSON", "expected one JSON object"]),
    "not an object": (["5"], ["pairs.jsonl:1: is 5", "expected an object"]),
    "a missing key": (
        [{"qery": "a", "expected": "b"}],
        ["pairs.jsonl:1: key 'query' is missing (keys: qery, expected); did you mean 'qery'?"],
    ),
    "a missing label": (
        [{"query": "a", "lable": "b"}],
        [
            "pairs.jsonl:1: key 'expected' is missing (keys: query, lable)",
            'fix: set label = "..." in [data] or pass --label, the name of its column',
        ],
    ),
    "an empty text": ([{"query": " ", "expected": "b"}], ["pairs.jsonl:1: key 'query' is ' '", "expected a text that is not empty"]),
    "a number for a text": ([{"query": 5, "expected": "b"}], ["pairs.jsonl:1: key 'query' is 5", "expected a text"]),
    "an empty list": ([{"query": "a", "expected": []}], ["pairs.jsonl: has no query with a relevant document", "expected at least one"]),
    "an empty label": ([{"query": "a", "expected": ""}], ["pairs.jsonl:1: key 'expected' is ''", "expected a document id"]),
    "a negative grade": ([{"query": "a", "expected": {"b": -1}}], ["pairs.jsonl:1: grade -1", "expected a whole number, 0 or more"]),
    "half a grade": ([{"query": "a", "expected": {"b": 0.5}}], ["pairs.jsonl:1: grade 0.5", "expected a whole number, 0 or more"]),
    "no relevant document": ([{"query": "a", "expected": {"b": 0}}], ["pairs.jsonl: has no query with a relevant document"]),
    "an id twice": ([{"id": 1, "query": "a", "expected": "b"}] * 2, ["pairs.jsonl:2: id '1' occurs here a second time", "unique ids"]),
    "a list as id": ([{"id": [1], "query": "a", "expected": "b"}], ["pairs.jsonl:1: id is [1]", "expected a text or a whole number"]),
    "an unknown part": (
        [{"query": "a", "expected": "b", "part": "tset"}],
        ["pairs.jsonl:1: part is 'tset'", "expected train, dev or test"],
    ),
    "half a character": (['{"query": "\\ud800", "expected": "b"}'], ["pairs.jsonl:1: ", "\\ud800", "expected"]),
}


@pytest.mark.parametrize(("rows", "parts"), BAD.values(), ids=BAD)
def test_bad_rows_get_one_line(tmp_path, rows, parts):
    line = refusal(put(tmp_path, "pairs.jsonl", *rows))
    for part in parts:
        assert part in line


def test_a_label_without_a_document_gets_the_nearest_one(tmp_path):
    documents = put(tmp_path, "docs.jsonl", {"id": "travel", "text": "Rides"})
    line = refusal(put(tmp_path, "pairs.jsonl", {"query": "cab", "expected": "travle"}), documents)
    assert "pairs.jsonl:1: label 'travle' is not among the 1 documents; did you mean 'travel'?" in line
    assert "fix: correct it, or add the document" in line


def test_bad_documents_are_named(tmp_path):
    pairs = put(tmp_path, "pairs.jsonl", {"query": "cab", "expected": "a"})
    assert "docs.jsonl:2: document id 'a' occurs here a second time" in refusal(
        pairs, put(tmp_path, "docs.jsonl", {"id": "a", "text": "x"}, {"id": "a", "text": "y"})
    )
    assert "docs.jsonl:1: key 'id' is missing" in refusal(pairs, put(tmp_path, "docs.jsonl", {"text": "x"}))
    assert "docs.jsonl:1: key 'text' is missing (keys: id, txt); did you mean 'txt'?" in refusal(
        pairs, put(tmp_path, "docs.jsonl", {"id": "a", "txt": "x"})
    )


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("q9\td1\t1", "test.tsv:2: query 'q9' is not in queries.jsonl; fix: remove the line or add the query"),
        ("q1\td11\t1", "test.tsv:2: document 'd11' is not among the 2 documents; did you mean 'd1'?"),
        ("q1\td1", "test.tsv:2: is 'q1\\td1'; expected query id, document id, whole grade, by tabs"),
        ("q1\td1\t0.5", "test.tsv:2: is 'q1\\td1\\t0.5'; expected query id, document id, whole grade"),
        ("q1\td1\t²", "test.tsv:2: is 'q1\\td1\\t²'; expected query id, document id, whole grade"),
        ("q1\td1\t-1.5", "test.tsv:2: is 'q1\\td1\\t-1.5'; expected query id, document id, whole grade"),
        ("q2\td2\t0", "test.tsv:2: grade of document 'd2' for query 'q2' is 0 here and 1 at "),
    ],
)
def test_qrels_that_point_at_nothing_are_named(tmp_path, line, said):
    assert said in refusal(beir(tmp_path, ["q2\td2\t1", line]))


@pytest.mark.parametrize("line", ["q1\td1\t0.5", "q1\td1\t-0.5", "q1\td1\tyes"])
def test_a_first_line_of_qrels_with_a_bad_grade_is_no_header(tmp_path, line):
    assert "test.tsv:1: is " in refusal(beir(tmp_path, [line, "q2\td2\t1"]))


def test_a_first_line_of_qrels_with_an_unknown_query_is_no_header(tmp_path):
    assert "test.tsv:1: query 'q9' is not in queries.jsonl" in refusal(beir(tmp_path, ["q9\td1\t1", "q2\td2\t1"]))


def test_a_second_line_of_qrels_with_the_same_grade_is_harmless_and_counted(tmp_path, capsys):
    folder = beir(tmp_path, ["q1\td1\t1", "q2\td2\t1", "q1\td1\t1"])
    put(folder, "qrels/all.tsv", "q1\td1\t1.0")
    assert load(folder).qrels == {"q1": {"d1": 1}, "q2": {"d2": 1}}
    assert f"{folder}: lines of qrels that repeat another one: 1\n" == capsys.readouterr().err
    put(folder, "qrels/train.tsv", "q1\td1\t2")
    assert "train.tsv:1: grade of document 'd1' for query 'q1' is 2 here and 1 at " in refusal(folder)


def test_two_files_of_one_part_are_one_part(tmp_path):
    folder = beir(tmp_path, ["q1\td1\t1"], name="dev.tsv")
    put(folder, "qrels/validation.tsv", "q2\td2\t1")
    assert load(folder).parts == {"dev": ("q1", "q2")}


def test_a_query_id_twice_in_a_beir_folder_is_refused(tmp_path):
    line = refusal(beir(tmp_path, ["q1\td1\t1"], queries=("q1", "q2", "q1")))
    assert "queries.jsonl:3: query id 'q1' occurs here a second time" in line


@pytest.mark.parametrize("gone", ["corpus.jsonl", "queries.jsonl", "qrels"])
def test_a_folder_that_is_not_beir_says_what_is_missing(tmp_path, gone):
    folder = beir(tmp_path, ["q1\td1\t1"])
    (folder / gone).rename(folder / "elsewhere")
    assert f"has no {gone}; expected a BEIR folder: corpus.jsonl, queries.jsonl, qrels/*.tsv" in refusal(folder)


def test_text_that_is_not_utf8_is_refused_with_the_command_that_mends_it(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes('{"query": "a", "expected": "b"}\n{"query": "caf\u00e9", "expected": "b"}\n'.encode("cp1252"))
    line = refusal(path)
    assert "pairs.jsonl:2: is not UTF-8 (byte 0xe9 at column 15); expected UTF-8" in line
    assert 'fix: set encoding = "cp1252" in [data], or iconv -f WINDOWS-1252 -t UTF-8 pairs.jsonl > fixed.jsonl' in line
    assert load(path, encoding="cp1252").query_texts() == ["a", "caf\u00e9"]


OTHER_ENCODINGS = {
    "GBK": ("\u6211\u7684\u5361", "gbk"),
    "GBK whose bytes are letters everywhere": ("\u6b9a", "gbk"),
    "Shift-JIS": ("\u30ab\u30fc\u30c9", "shift-jis"),
    "Big5": ("\u6211\u7684\u5361", "big5"),
    "Korean": ("\uce74\ub4dc", "euc-kr"),
    "Cyrillic": ("\u043a\u0430\u0440\u0442\u0430", "cp1251"),
    "Polish": ("\u0142\u00f3d\u017a", "cp1250"),
    "Czech": ("\u010desk\u00e1", "cp1250"),
    "DOS": ("caf\u00e9", "cp437"),
}


@pytest.mark.parametrize(("text", "encoding"), OTHER_ENCODINGS.values(), ids=OTHER_ENCODINGS)
def test_another_encoding_is_never_guessed_and_read_where_it_is_named(tmp_path, text, encoding):
    content = f"query,expected\n{text},food\ncab,taxi\n".encode(encoding)
    (tmp_path / "pairs.csv").write_bytes(content)
    line = refusal(tmp_path / "pairs.csv")
    assert "save it as UTF-8 where it was written" in line
    assert 'set encoding = "..." in [data]' in line
    assert "1252" not in line
    assert load(tmp_path / "pairs.csv", encoding=encoding).query_texts() == [text, "cab"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-8-sig"])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("name", ["pairs.csv", "pairs.tsv", "pairs.jsonl", "pairs.json"])
def test_encodings_that_a_mark_or_zeros_show_are_read(tmp_path, encoding, named, name):
    texts = {
        "pairs.csv": "query,expected\r\nlunch,food\r\ncab,taxi\r\n",
        "pairs.tsv": "query\texpected\r\nlunch\tfood\r\ncab\ttaxi\r\n",
        "pairs.jsonl": '{"query": "lunch", "expected": "food"}\n{"query": "cab", "expected": "taxi"}\n',
        "pairs.json": '[{"query": "lunch", "expected": "food"},\n{"query": "cab", "expected": "taxi"}]\n',
    }
    (tmp_path / name).write_bytes(texts[name].encode(encoding))
    assert load(tmp_path / name, encoding=encoding if named else None).qrels == {"q1": {"food": 1}, "q2": {"taxi": 1}}


def test_a_named_encoding_leaves_files_in_utf8_as_they_are(tmp_path):
    rows = [{"query": "caf\u00e9", "expected": "food"}, {"query": "cab", "expected": "taxi"}]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert load(path, encoding="cp1252").query_texts() == ["caf\u00e9", "cab"]
    path.write_bytes(json.dumps(rows[1] | {"query": "\u30ab"}, ensure_ascii=False).encode("iso2022_jp"))
    assert load(path, encoding="iso2022_jp").query_texts() == ["\u30ab"]


@pytest.mark.parametrize("encoding", ["latin-nine", "rot13", "base64", ""])
def test_an_encoding_that_there_is_not_is_refused(tmp_path, encoding):
    path = put(tmp_path, "pairs.jsonl", {"query": "a", "expected": "b"})
    if encoding:
        with pytest.raises(ConfigError, match=f"encoding '{encoding}' is unknown; expected one such as 'utf-8', 'cp1252'"):
            load(path, encoding=encoding)
    else:
        assert load(path, encoding=encoding).query_texts() == ["a"]


def test_bytes_that_the_named_encoding_lacks_are_named_by_their_line(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(b"query,expected\na,b\n\x81\xff,c\n")
    assert "pairs.csv:3: is not shift_jis (illegal multibyte sequence); expected shift_jis" in refusal(
        tmp_path / "pairs.csv", encoding="shift-jis"
    )


def test_a_file_of_zeros_is_not_said_to_have_an_encoding(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(b"\0" * 100)
    assert "UTF-" not in refusal(tmp_path / "pairs.csv")


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.json"])
def test_byte_order_mark_and_crlf_are_accepted(tmp_path, name):
    rows = {
        "pairs.jsonl": '{"query": "lunch", "expected": "food"}\r\n\r\n{"query": "cab", "expected": "taxi"}\r\n',
        "pairs.csv": "query,expected\r\nlunch,food\r\n\r\ncab,taxi\r\n",
        "pairs.json": '[{"query": "lunch", "expected": "food"},\r\n{"query": "cab", "expected": "taxi"}]\r\n',
    }
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + rows[name].encode())
    found = load(tmp_path / name)
    assert found.query_texts() == ["lunch", "cab"]
    assert found.qrels == {"q1": {"food": 1}, "q2": {"taxi": 1}}


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv"])
def test_a_text_of_100_000_characters_is_accepted(tmp_path, name):
    text = "word " * 20_000
    row = json.dumps({"query": text, "expected": "b"}) if name.endswith("jsonl") else f"query,expected\n{text},b"
    assert load(put(tmp_path, name, row)).query_texts() == [text]


def test_an_unknown_suffix_lists_the_known_ones(tmp_path):
    known = ".jsonl, .ndjson, .json, .csv, .tsv, .tab, .txt, .xlsx, .xls, .ods, .parquet, .arrow, .feather"
    assert f"pairs.docx: ends in '.docx'; expected {known}" in refusal(put(tmp_path, "pairs.docx", "x"))


def test_a_missing_file_gets_the_nearest_name(tmp_path):
    put(tmp_path, "pairs.jsonl", "x")
    line = refusal(tmp_path / "pair.jsonl")
    assert "pair.jsonl: does not exist; did you mean 'pairs.jsonl'?" in line
    assert "fix: give a file, a BEIR folder, or hub:owner/name" in line
    (tmp_path / "model").mkdir()
    put(tmp_path, "data.py", "x")
    assert "did you mean" not in refusal(tmp_path / "modell") + refusal(tmp_path / "data")
    beir(tmp_path / "scifact", ["q1\td1\t1"])
    assert "did you mean 'scifact'?" in refusal(tmp_path / "scifcat")


def test_a_folder_of_documents_is_not_said_to_be_missing(tmp_path):
    line = refusal(put(tmp_path, "pairs.jsonl", {"query": "cab", "expected": "taxi"}), tmp_path)
    assert f"{tmp_path}: has no documents; expected files that end in .md" in line


def test_a_ragged_csv_row_is_counted_against_the_header(tmp_path):
    assert "pairs.csv:3: has 3 cells; expected 2, as in the header" in refusal(put(tmp_path, "pairs.csv", "query,expected", "a,b", "a,b,c"))


def test_a_csv_with_a_header_only_is_empty(tmp_path):
    assert "pairs.csv: is empty" in refusal(put(tmp_path, "pairs.csv", "query,expected"))


def test_a_csv_quote_that_does_not_close_is_refused(tmp_path):
    line = refusal(put(tmp_path, "pairs.csv", "query,expected", "a,b", '"open,b', "c,d"))
    assert "pairs.csv:3: is not CSV (unexpected end of data); expected quotes that close" in line


def test_a_csv_of_lines_that_end_in_a_carriage_return_alone_is_refused(tmp_path):
    (tmp_path / "pairs.csv").write_bytes(b"query,expected\rlunch,food\r")
    assert "is not CSV (it has a carriage return alone); expected lines that end in a line feed" in refusal(tmp_path / "pairs.csv")


def test_json_and_parquet_that_are_neither(tmp_path):
    assert "pairs.json: is not JSON" in refusal(put(tmp_path, "pairs.json", "[1,"))
    assert "pairs.json: is {'a': 1}; expected a JSON list" in refusal(put(tmp_path, "pairs.json", {"a": 1}))
    assert "pairs.json[0]: is 1; expected an object" in refusal(put(tmp_path, "pairs.json", [1]))
    assert "pairs.parquet: is not Parquet" in refusal(put(tmp_path, "pairs.parquet", "hello"))


def test_several_bad_rows_are_counted_in_the_first_ones_message(tmp_path):
    rows = [{"query": "a", "expected": "b"}, {"query": "", "expected": "b"}, "x", {"query": "c"}]
    line = refusal(put(tmp_path, "pairs.jsonl", *rows))
    assert line.count("pairs.jsonl:2") == 1
    assert line.endswith("(and 2 more; 'embedfit check' lists them)")


def test_a_wrong_column_name_is_said_once_with_the_columns_there_are(tmp_path):
    pairs = put(tmp_path, "pairs.csv", "txt,expected,team", *(f"text {n},a,{'' if n % 2 else 'ops'}" for n in range(400)))
    problems = []
    load(pairs, problems=problems)
    assert [str(problem).partition("pairs.csv")[2] for problem in problems] == [
        ":2: key 'query' is missing in all 400 rows (keys: txt, expected, team); "
        'fix: set query = "..." in [data] or pass --query, the name of its column'
    ]
    documents = put(tmp_path, "docs.csv", "id,txt", *(f"d{n},a" for n in range(400)))
    load(put(tmp_path, "pairs.jsonl", {"query": "a", "expected": "d1"}), documents, problems=(problems := []))
    assert "docs.csv:2: key 'text' is missing (keys: id, txt); did you mean 'txt'? (and 399 more rows like it, the last at " in str(
        problems[0]
    )


@pytest.mark.parametrize(("rows", "lines"), [(3, 3), (4, 1)])
def test_the_same_problem_in_more_than_three_rows_is_one_line(tmp_path, rows, lines):
    pairs = put(tmp_path, "pairs.jsonl", {"query": "a", "expected": "b"}, *[{"query": "a", "expected": [True]}] * rows)
    load(pairs, problems=(problems := []))
    assert len(problems) == lines
    assert ("(and 3 more rows like it, the last at " in str(problems[0])) == (lines == 1)


def test_what_makes_the_rest_of_a_file_unreadable_does_not_hide_the_rows_before_it(tmp_path):
    for name, rows in {
        "pairs.csv": b'query,expected\na,b\nc\n"open,b\n',
        "pairs.jsonl": b'{"query": "a", "expected": "b"}\n{"query": 5}\n\xff\xfe\n',
    }.items():
        (tmp_path / name).write_bytes(rows)
        problems = []
        assert load(tmp_path / name, problems=problems).query_texts() == ["a"]
        assert len(problems) == 2, name


def test_bad_rows_can_be_collected_and_the_good_ones_kept(tmp_path):
    rows = [{"query": "a", "expected": "b"}, {"query": "", "expected": "b"}, "x", {"query": "c"}, {"query": "d", "expected": "b"}]
    problems = []
    found = load(put(tmp_path, "pairs.jsonl", *rows), problems=problems)
    assert found.query_texts() == ["a", "d"]
    assert [problem.where.rpartition(":")[2] for problem in problems] == ["2", "3", "4"]


# Disks that say no


def test_a_folder_that_cannot_be_made_is_a_storage_error(transactions, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for write in (write_beir, write_jsonl):
        with pytest.raises(StorageError, match="cannot be written: Not a directory"):
            write(transactions, tmp_path / "file" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


FULL = """
import resource, signal, sys
from embedfit.files import writing
from embedfit.errors import StorageError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from pathlib import Path
try:
    with writing(Path(sys.argv[1])) as file:
        file.write(b"x" * 1_000_000)
except StorageError as error:
    print(error)
"""


def test_a_full_disk_is_a_storage_error_and_leaves_the_last_good_file(tmp_path):
    good = put(tmp_path, "good.jsonl", "as it was")
    done = subprocess.run([sys.executable, "-c", FULL, str(good)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{good}: cannot be written: File too large\n"
    assert good.read_text() == "as it was\n"
    assert [path.name for path in tmp_path.iterdir()] == ["good.jsonl"]


def test_an_interrupted_write_leaves_nothing(tmp_path):
    def interrupted():
        with writing(tmp_path / "file") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


# The Hub


def test_a_hub_name_offline_says_so_in_one_line(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OfflineError, match="data set 'owner/name' is not on this machine and HF_HUB_OFFLINE is set; fix: ") as caught:
        load("hub:owner/name")
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("fix: unset it, or give a local file or folder")


def test_a_hub_that_does_not_answer_is_offline(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OfflineError, match=r"data set 'owner/name' .* cannot be reached; fix: give a local file or folder$"):
        load("hub:owner/name")


HUB_FILES = {
    "me/pairs/README.md": "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.jsonl}\n"
    "  - {split: extra, path: extra.jsonl}\n---\n",
    "me/pairs/train.jsonl": '{"query": "lunch", "expected": ["food"]}\n{"query": "cab", "expected": ["taxi"]}\n',
    "me/pairs/extra.jsonl": '{"query": "tea", "expected": ["food"]}\n',
    "me/classes/README.md": "---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n"
    "dataset_info:\n  features:\n  - {name: query, dtype: string}\n"
    "  - {name: expected, dtype: {class_label: {names: {'0': food, '1': taxi}}}}\n---\n",
    "me/classes/train.jsonl": '{"query": "lunch", "expected": 0}\n{"query": "cab", "expected": 1}\n',
    "me/broken/train.jsonl": '{"query": "lunch", "expected": "food"}\n{"query": 5',
    "me/mteb/README.md": "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: test, path: qrels/test.jsonl}\n"
    "- config_name: corpus\n  data_files:\n  - {split: corpus, path: corpus.jsonl}\n"
    "- config_name: queries\n  data_files:\n  - {split: queries, path: queries.jsonl}\n---\n",
    "me/mteb/corpus.jsonl": '{"_id": "food", "title": "", "text": "Meals"}\n{"_id": "taxi", "title": "", "text": "Rides"}\n',
    "me/mteb/queries.jsonl": '{"_id": "a", "text": "lunch"}\n',
    "me/mteb/qrels/test.jsonl": '{"query-id": "a", "corpus-id": "food", "score": 1.0}\n'
    '{"query-id": "a", "corpus-id": "taxi", "score": 0.0}\n',
    "me/ragged/train_1.jsonl": '{"query": "lunch", "expected": "food"}\n',
    "me/ragged/train_2.jsonl": '{"question": "lunch", "answer": 5}\n',
}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as the datasets library asks for."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        name = next((name for name in ("me/pairs", "me/classes", "me/broken", "me/ragged", "me/mteb") if name in path), "")
        files = {key.removeprefix(f"{name}/"): text.encode() for key, text in HUB_FILES.items() if key.startswith(f"{name}/")}
        wanted = path.partition(f"/resolve/{'a' * 40}/")[2] or path.rpartition("/")[2]
        if path == "/":
            return self.send(b"")
        if not name:
            return self.send(b"{}", 404)
        if path.startswith("/api/") and (path.endswith(name) or "/revision/" in path):
            return self.send(json.dumps({"id": name, "sha": "a" * 40, "siblings": [{"rfilename": file} for file in files]}).encode())
        if "/tree/" in path:
            rows = [{"type": "file", "oid": "b" * 40, "size": len(text), "path": file} for file, text in files.items()]
            return self.send(json.dumps(rows).encode())
        if "/resolve/" in path and wanted in files:
            return self.send(files[wanted])
        return self.send(b"{}", 404)

    do_HEAD = do_GET

    def send(self, content, status=200):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Repo-Commit", "a" * 40)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound" if "me/" in self.path else "RepoNotFound")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


FROM_HUB = """
from embedfit.data.load import load
from embedfit.errors import EmbedfitError
names = "pairs classes pairs:extra mteb pairs:none broken ragged"
for source in (*(f"hub:me/{name}" for name in names.split()), "hub:me2/gone"):
    try:
        print(load(source).to_frame().values.tolist())
    except EmbedfitError as error:
        print(error)
"""


def test_data_sets_of_the_hub_are_read_by_the_datasets_library(tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    # A process of its own: the library reads HF_ENDPOINT when it is imported.
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run([sys.executable, "-c", FROM_HUB], env=environment, capture_output=True, text=True, timeout=120)
    server.shutdown()
    assert done.returncode == 0, done.stderr
    train, classes, extra, mteb, none, *unusable = done.stdout.splitlines()
    assert train == classes == "[['q1', 'lunch', 'food', 1], ['q2', 'cab', 'taxi', 1]]"
    assert extra == "[['q1', 'tea', 'food', 1]]"
    assert mteb == "[['a', 'lunch', 'food', 1], ['a', 'lunch', 'taxi', 0]]"
    assert none.startswith('hub:me/pairs:none: cannot be loaded from the Hub: Unknown split "none"')
    for name, line in zip(("me/broken", "me/ragged", "me2/gone"), unusable, strict=True):
        assert line.startswith(f"hub:{name}: cannot be loaded from the Hub: ")
    assert done.stderr == ""  # no progress bars where stderr is not a terminal
