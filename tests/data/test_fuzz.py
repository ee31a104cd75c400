"""Any file ends in a data set or in one line, and no row is lost: what was read and what was refused is what was there."""

import contextlib
import json
import re
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from written import FORMATS, delimited, xlsx

from embedfit.data.formats import sniff
from embedfit.data.load import load
from embedfit.errors import EmbedfitError

FOREIGN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 9)
    | st.floats()
    | st.sampled_from(["", " ", "a", "accept", "[1", "d1", "x" * 90, "é\u200b"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["id", "text", "value", "choices", "x"]), inner, max_size=2)
    ),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Every format once: name -> (folder, arguments of load)."""

    class Written(dict):
        def __repr__(self):
            return "written"

    written = Written()
    for place, (name, (_, write)) in enumerate(FORMATS.items()):
        folder = tmp_path_factory.mktemp(f"format{place}")
        written[name] = (folder, write(folder))
    return written


def one_line(call):
    """Return the result, or None if a single line refuses."""
    try:
        return call()
    except EmbedfitError as error:
        line = str(error)
    assert "\n" not in line
    assert len(line) < 1_000
    return None


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(list(FORMATS)), place=st.integers(0, 10_000), damage=st.binary(max_size=6), kind=st.integers(0, 2))
def test_a_damaged_file_of_any_format_is_read_or_refused_in_one_line(files, name, place, damage, kind, tmp_path_factory):
    folder, arguments = files[name]
    copy = tmp_path_factory.mktemp("damaged") / "copy"
    shutil.copytree(folder, copy)
    paths = sorted(path for path in copy.rglob("*") if path.is_file())
    path = paths[place % len(paths)]
    content = path.read_bytes()
    start = place % (len(content) + 1)
    path.write_bytes(
        (content[:start] + damage, content[:start] + damage + content[start:], content[:start] + damage + content[start + 3 :])[kind]
    )
    moved = [copy / argument.relative_to(folder) for argument in arguments]
    one_line(lambda: load(*moved, problems=[]))
    if moved[0].is_file():
        one_line(lambda: sniff(moved[0]))
    shutil.rmtree(copy)


def mutated(draw, value):
    """Return a JSON value in which one place holds something else, or is missing."""
    if isinstance(value, dict) and value and draw(st.integers(0, 3)):
        key = draw(st.sampled_from(sorted(value)))
        if draw(st.integers(0, 5)) == 0:
            return {name: inner for name, inner in value.items() if name != key}
        return {**value, key: mutated(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        place = draw(st.integers(0, len(value) - 1))
        return [*value[:place], mutated(draw, value[place]), *value[place + 1 :]]
    return draw(FOREIGN)


JSON_LINES = [
    *("JSON Lines", "FlagEmbedding", "Tevatron", "Ragas", "Argilla 2, flat", "Prodigy, labels", "Prodigy, choices"),
    "sentence-transformers, lists",
]
JSON_LISTS = ["JSON", "DPR", "Label Studio, choices", "Label Studio, ranker", "Label Studio, JSON-MIN", "Argilla 2", "SQuAD", "LlamaIndex"]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), name=st.sampled_from([*JSON_LINES, *JSON_LISTS]))
def test_a_value_of_another_kind_anywhere_is_read_or_refused_in_one_line(files, data, name, tmp_path_factory):
    path, *documents = files[name][1]
    text = path.read_text()
    copy = tmp_path_factory.mktemp("mutated") / path.name
    if name in JSON_LINES:
        rows = [json.loads(line) for line in text.splitlines()]
        place = data.draw(st.integers(0, len(rows) - 1))
        copy.write_text("".join(json.dumps(mutated(data.draw, row) if at == place else row) + "\n" for at, row in enumerate(rows)))
    else:
        copy.write_text(json.dumps(mutated(data.draw, json.loads(text))))
    problems = []
    one_line(lambda: load(copy, *documents, problems=problems))
    assert all("\n" not in str(problem) for problem in problems)


ROWS = {
    "JSON Lines": {"id": "a", "query": "text {n}", "expected": "d1"},
    "FlagEmbedding": {"query": "text {n}", "pos": ["one"], "neg": ["two"]},
    "sentence-transformers, triplets": {"anchor": "text {n}", "positive": "one", "negative": "two"},
    "pairs with a score": {"sentence1": "text {n}", "sentence2": "one", "score": 1},
    "Tevatron": {"query_id": "a", "query": "text {n}", "positive_passages": [{"docid": "d1", "text": "one"}], "negative_passages": []},
    "SQuAD": {"id": "a", "title": "t", "context": "one", "question": "text {n}", "answers": {"text": ["one"]}},
    "Ragas": {"user_input": "text {n}", "reference_contexts": ["one"], "reference": "x"},
    "Label Studio": {"id": 1, "data": {"text": "text {n}"}, "annotations": [{"result": [{"value": {"choices": ["one"]}}]}]},
    "Argilla": {"id": "a", "fields": {"text": "text {n}"}, "responses": {"label": [{"value": "one", "user_id": "u"}]}},
    "Prodigy": {"text": "text {n}", "label": "one", "answer": "accept", "_task_hash": 1},
    "NLI": {"premise": "text {n}", "hypothesis": "one", "label": "entailment"},
    "Quepid, book": {"query": "text {n}", "docid": "d1", "Ann Lee": 2},
    "sets": {"set": ["text {n}", "one"]},
    "capital keys": {"Query": "text {n}", "Pos": ["one"], "Neg": ["two"]},
    "classes": {"text": "text {n}", "label": "one"},
    "judged": {"qid": "a", "query": "text {n}", "doc_id": "d1", "passage": "one", "relevance": 1},
}


@settings(max_examples=250, deadline=None)
@given(data=st.data(), name=st.sampled_from(list(ROWS)))
def test_no_row_is_lost(data, name, tmp_path_factory):
    """Rows with texts of their own: each is a query, or a line of an error names it."""
    count = data.draw(st.integers(1, 5))
    rows = []
    for number in range(count):
        row = json.loads(json.dumps(ROWS[name]).replace("{n}", str(number)))
        for key in ("id", "query_id", "qid"):
            if key in row:
                row[key] = f"{number}" if isinstance(row[key], str) else number
        rows.append(row)
    spoilt = data.draw(st.integers(0, count - 1))
    rows[spoilt] = mutated(data.draw, rows[spoilt])
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    problems = []
    read = one_line(lambda: load(path, problems=problems))
    refused = {int(number) for problem in problems for number in re.findall(r"rows\.jsonl:(\d+)", problem.where)}
    if read is None:
        return
    whole = any("in all " in str(problem) for problem in problems)  # a column that is missing everywhere is one line
    texts = {query.text for query in read.queries.values()}
    for number in range(count):
        if number != spoilt:
            assert f"text {number}" in texts or number + 1 in refused or whole, number
    merged = json.dumps(rows).count("text ") != count
    assert len(texts) + len(refused) >= count or whole or merged or _says_nothing(rows[spoilt])


CELL = st.text(st.sampled_from("abz019 ,;|\"'é☃[{"), min_size=1, max_size=9).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(
    titles=st.lists(st.lists(CELL, max_size=2), max_size=3),
    rows=st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=6, unique_by=lambda row: row[1].strip()),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    sheet=st.booleans(),
)
def test_no_row_below_a_title_is_lost(titles, rows, delimiter, sheet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("titles")
    table = [*(([*title, "", "", ""])[:3] for title in titles), ["Number", "Question", "Topic"], *map(list, rows)]
    path = xlsx(folder / "t.xlsx", {"Sheet": table}) if sheet else delimited(folder / "t.csv", table, delimiter)
    problems = []
    read = one_line(lambda: load(path, problems=problems))
    if read is not None and not problems:
        assert len(read.queries) == len(rows)


def _says_nothing(row):
    """Return whether a row without any text of its own was merged into another one with the same text."""
    with contextlib.suppress(TypeError, AttributeError):
        return json.dumps(row).count("text ") == 0
    return False
