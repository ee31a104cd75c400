import hashlib
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

from embedfit.data import Dataset, Document, Query, load, normalised, write_beir, write_jsonl, writing
from embedfit.errors import ConfigError, DataError, OfflineError, StorageError

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
    "a missing label": ([{"query": "a", "label": "b"}], ["pairs.jsonl:1: key 'expected' is missing (keys: query, label)"]),
    "an empty text": ([{"query": " ", "expected": "b"}], ["pairs.jsonl:1: key 'query' is ' '", "expected a text that is not empty"]),
    "a number for a text": ([{"query": 5, "expected": "b"}], ["pairs.jsonl:1: key 'query' is 5", "expected a text"]),
    "an empty list": ([{"query": "a", "expected": []}], ["pairs.jsonl:1: key 'expected' is []", "expected a document id, a list"]),
    "an empty label": ([{"query": "a", "expected": ""}], ["pairs.jsonl:1: key 'expected' is ''", "expected a document id"]),
    "a negative grade": ([{"query": "a", "expected": {"b": -1}}], ["pairs.jsonl:1: grade -1", "expected a whole number, 0 or more"]),
    "half a grade": ([{"query": "a", "expected": {"b": 0.5}}], ["pairs.jsonl:1: grade 0.5", "expected a whole number, 0 or more"]),
    "no relevant document": ([{"query": "a", "expected": {"b": 0}}], ["pairs.jsonl: has no query with a relevant document"]),
    "an id twice": ([{"id": 1, "query": "a", "expected": "b"}] * 2, ["pairs.jsonl:2: id '1' stands here a second time", "ids that differ"]),
    "a list as id": ([{"id": [1], "query": "a", "expected": "b"}], ["pairs.jsonl:1: id is [1]", "expected a text or a number"]),
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
    assert "docs.jsonl:2: document id 'a' stands here a second time" in refusal(
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
    ],
)
def test_qrels_that_point_at_nothing_are_named(tmp_path, line, said):
    assert said in refusal(beir(tmp_path, ["q2\td2\t1", line]))


def test_a_query_id_twice_in_a_beir_folder_is_refused(tmp_path):
    line = refusal(beir(tmp_path, ["q1\td1\t1"], queries=("q1", "q2", "q1")))
    assert "queries.jsonl:3: query id 'q1' stands here a second time" in line


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
    assert "fix: iconv -f WINDOWS-1252 -t UTF-8 pairs.jsonl > fixed.jsonl" in line


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
    assert "pairs.xlsx: ends in '.xlsx'; expected .jsonl, .ndjson, .json, .csv, .tsv, .parquet" in refusal(put(tmp_path, "pairs.xlsx", "x"))


def test_a_missing_file_gets_the_nearest_name(tmp_path):
    put(tmp_path, "pairs.jsonl", "x")
    line = refusal(tmp_path / "pair.jsonl")
    assert "pair.jsonl: does not exist; did you mean 'pairs.jsonl'?" in line
    assert "fix: give a file, a BEIR folder, or hub:owner/name" in line


def test_a_folder_of_documents_is_not_said_to_be_missing(tmp_path):
    line = refusal(put(tmp_path, "pairs.jsonl", {"query": "cab", "expected": "taxi"}), tmp_path)
    assert f"{tmp_path}: is a folder; expected a file" in line


def test_a_ragged_csv_row_is_counted_against_the_header(tmp_path):
    assert "pairs.csv:3: has 3 cells; expected 2, as in the header" in refusal(put(tmp_path, "pairs.csv", "query,expected", "a,b", "a,b,c"))


def test_a_csv_with_a_header_only_is_empty(tmp_path):
    assert "pairs.csv: is empty" in refusal(put(tmp_path, "pairs.csv", "query,expected"))


def test_a_csv_quote_that_does_not_close_is_refused(tmp_path):
    line = refusal(put(tmp_path, "pairs.csv", "query,expected", "a,b", '"open,b', "c,d"))
    assert "pairs.csv:4: is not CSV (unexpected end of data); expected quotes that close" in line


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
from embedfit.data import writing
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


def test_a_hub_that_does_not_answer_is_offline(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(OfflineError, match=r"data set 'owner/name' .* http://127\.0\.0\.1:9 cannot be reached"):
        load("hub:owner/name")


HUB_FILES = {
    "me/pairs/README.md": "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: train.jsonl}\n"
    "  - {split: extra, path: extra.jsonl}\n---\n",
    "me/pairs/train.jsonl": '{"query": "lunch", "expected": ["food"]}\n{"query": "cab", "expected": ["taxi"]}\n',
    "me/pairs/extra.jsonl": '{"query": "tea", "expected": ["food"]}\n',
    "me/broken/train.jsonl": '{"query": "lunch", "expected": "food"}\n{"query": 5',
    "me/ragged/train_1.jsonl": '{"query": "lunch", "expected": "food"}\n',
    "me/ragged/train_2.jsonl": '{"question": "lunch", "answer": 5}\n',
}


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as the datasets library asks for."""

    def do_GET(self):
        path = self.path.partition("?")[0]
        name = next((name for name in ("me/pairs", "me/broken", "me/ragged") if name in path), "")
        files = {key.removeprefix(f"{name}/"): text.encode() for key, text in HUB_FILES.items() if key.startswith(f"{name}/")}
        wanted = path.rpartition("/")[2]
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
from embedfit.data import load
from embedfit.errors import EmbedfitError
for source in ("hub:me/pairs", "hub:me/pairs:extra", "hub:me/pairs:none", "hub:me/broken", "hub:me/ragged", "hub:me2/gone"):
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
    train, extra, none, *unusable = done.stdout.splitlines()
    assert train == "[['q1', 'lunch', 'food', 1], ['q2', 'cab', 'taxi', 1]]"
    assert extra == "[['q1', 'tea', 'food', 1]]"
    assert none.startswith('hub:me/pairs:none: cannot be loaded from the Hub: Unknown split "none"')
    for name, line in zip(("me/broken", "me/ragged", "me2/gone"), unusable, strict=True):
        assert line.startswith(f"hub:{name}: cannot be loaded from the Hub: ")
    assert done.stderr == ""  # no progress bars where stderr is not a terminal
