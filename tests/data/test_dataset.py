import dataclasses
import json
import re
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.load import load
from embedfit.data.write import write_beir
from embedfit.errors import ConfigError, DataError

CORPUS = {"food": "Meals", "taxi": "Rides"}
UNKNOWN = "document 'fod' is not among the 2 documents; did you mean 'food'?; fix: correct it, or add the document"
NO_TEXT = "expected a text, or a dict with one"


def refusal(make, *args, **kwargs):
    """Return the one line with which a data set is refused."""
    with pytest.raises(DataError) as caught:
        make(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def jsonl(folder, name, rows):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# Pairs


@pytest.mark.parametrize(
    "kind", [list, tuple, iter, pd.Series, pd.Categorical, np.array, lambda values: pd.Series(values, index=[7, 7, 9])]
)
def test_pairs_come_from_any_two_sequences(kind):
    data = Dataset.from_pairs(kind(["lunch", "cab", "tea"]), kind(["food", "taxi", "food"]))
    assert data.queries == {"q1": Query("q1", "lunch"), "q2": Query("q2", "cab"), "q3": Query("q3", "tea")}
    assert data.corpus == {"food": Document("food", "food"), "taxi": Document("taxi", "taxi")}
    assert data.qrels == {"q1": {"food": 1}, "q2": {"taxi": 1}, "q3": {"food": 1}}


@pytest.mark.parametrize(
    "both", [["food", "taxi"], ("food", "taxi"), {"taxi", "food"}, np.array(["food", "taxi"]), pd.Series(["food", "taxi"])]
)
def test_a_label_may_be_several_or_have_grades(both):
    data = Dataset.from_pairs(["lunch on the way", "cab"], [both, {"taxi": 2, "food": 0}])
    assert data.qrels == {"q1": {"food": 1, "taxi": 1}, "q2": {"taxi": 2, "food": 0}}


def test_labels_that_are_numbers_are_documents_by_that_number():
    assert Dataset.from_pairs(["a", "b"], np.array([3, 4])).corpus == {"3": Document("3", "3"), "4": Document("4", "4")}
    assert Dataset.from_pairs(["a", "b"], pd.Series([3.0, 4.0])).qrels == {"q1": {"3": 1}, "q2": {"4": 1}}


def test_the_same_text_twice_is_one_query_with_both_answers():
    data = Dataset.from_pairs(["lunch", "cab", "lunch"], ["food", "taxi", "taxi"])
    assert data.qrels == {"q1": {"food": 1, "taxi": 1}, "q2": {"taxi": 1}}
    assert data.merged == ("q1",)


@pytest.mark.parametrize(
    ("texts", "labels", "line"),
    [
        (["a", "b"], ["x"], "texts and labels: are 2 and 1; expected one label for each text"),
        ("ab", ["x", "y"], "texts: is 'ab'; expected a sequence, such as a list, a Series or an array"),
        (["a"], 3, "labels: is 3; expected a sequence, such as a list, a Series or an array"),
        ([], [], "texts and labels: is empty; expected at least one row"),
        (["a", " "], ["x", "y"], "row 1: key 'text' is ' '; expected a text that is not empty"),
        (["a", 5], ["x", "y"], "row 1: key 'text' is 5; expected a text that is not empty"),
        (["a", "b"], ["x", 0.5], "row 1: key 'label' is 0.5; expected a document id, a list of them, or {id: grade}"),
        (["a", "b"], [None, []], "texts and labels: has no query with a relevant document; expected at least one"),
        (["a", "b"], ["x", {"y": 1.5}], "row 1: grade 1.5; expected a whole number, 0 or more"),
        (["a", "b", None], ["x", True, "y"], "row 1: key 'label' is True; expected a document id, a list of them, or {id: grade}"
         " (and 1 more; problems=[] takes them all)"),
    ],
)  # fmt: skip
def test_a_pair_that_cannot_be_used_is_named_by_its_row(texts, labels, line):
    assert refusal(Dataset.from_pairs, texts, labels) == line


@pytest.mark.parametrize("missing", [None, float("nan"), pd.NA, pd.NaT])
def test_a_query_without_a_label_is_kept_and_one_without_an_answer_is_judged(missing):
    data = Dataset.from_frame(pd.DataFrame({"query": ["a", "b", "c", "d"], "expected": ["x", missing, [], "none of these"]}))
    assert data.query_texts() == ["a", "b", "c", "d"]
    assert data.qrels == {"q1": {"x": 1}, "q3": {}, "q4": {}}
    assert data.judged == ("q1",)
    assert list(data.corpus) == ["x"]
    assert Dataset.from_pairs(["a", "b"], ["x", missing]).qrels == {"q1": {"x": 1}}


def test_a_cell_of_several_labels_names_the_argument_that_parts_them():
    rows = [{"query": text, "expected": label} for text, label in zip("abc", ["food", "taxi", "food;taxi"], strict=True)]
    line = refusal(Dataset.from_records, rows)
    assert line.startswith("row 2: label 'food;taxi' holds 2 labels")
    assert line.endswith('fix: pass separator=";"; or if it is one label, write it as a list')
    assert Dataset.from_records(rows, separator=";").qrels["q3"] == {"food": 1, "taxi": 1}


def test_a_text_with_half_a_character_is_refused():
    assert refusal(Dataset.from_pairs, ["fine", "\ud83d"], ["x", "y"]).startswith("row 1: cannot be written as JSON")


# Frames


def test_a_frame_gives_queries_labels_grades_parts_and_metadata():
    frame = pd.DataFrame(
        {
            "id": ["a", "a", "b"],
            "text": ["lunch", "lunch", "cab"],
            "category": ["food", "taxi", "taxi"],
            "relevance": [2, 0, 1],
            "part": ["train", "train", "test"],
            "team": ["ops", "ops", None],
            "amount": [1.5, 1.5, float("nan")],
        }
    )
    documents = pd.DataFrame({"id": ["food", "taxi"], "title": ["Food", None], "text": ["Meals", "Rides"], "owner": ["Ann", pd.NA]})
    data = Dataset.from_frame(frame, documents, query="text", label="category")
    assert data.queries == {"a": Query("a", "lunch", {"team": "ops", "amount": 1.5}), "b": Query("b", "cab")}
    assert data.corpus == {"food": Document("food", "Meals", "Food", {"owner": "Ann"}), "taxi": Document("taxi", "Rides")}
    assert data.qrels == {"a": {"food": 2, "taxi": 0}, "b": {"taxi": 1}}
    assert data.parts == {"train": ("a",), "test": ("b",)}


def test_a_row_of_a_frame_is_named_by_its_index_label():
    frame = pd.DataFrame({"query": ["a", "b", ""], "expected": ["x", "y", "z"]}, index=[5, 17, 23])
    assert refusal(Dataset.from_frame, frame) == "row 23: key 'query' is ''; expected a text that is not empty"
    assert refusal(Dataset.from_frame, frame.set_index(pd.Index([1, 1, 1]))).startswith("row 2: ")


def test_a_missing_cell_and_a_missing_column_are_told_apart():
    frame = pd.DataFrame({"query": ["a", None], "label": ["x", "y"]})
    assert refusal(Dataset.from_frame, frame, label="label") == "row 1: key 'query' is missing (keys: label)"
    assert refusal(Dataset.from_frame, frame, query="quer", label="label") == (
        "row 0: key 'quer' is missing in all 2 rows (keys: query, label); did you mean 'query'?"
    )
    assert refusal(Dataset.from_frame, pd.DataFrame({"query": [], "expected": []})) == "frame: is empty; expected at least one row"
    assert "column 'query' stands beside" in refusal(Dataset.from_frame, pd.DataFrame([["a", "b"]], columns=["query", "query"]))
    assert refusal(Dataset.from_frame, "no frame.csv").startswith("no frame.csv: does not exist")
    assert refusal(Dataset.from_frame, 7) == "frame: is 7; expected a DataFrame, a datasets.Dataset, or a list of records"


def test_a_document_row_is_named_and_a_label_without_document_too():
    frame = pd.DataFrame({"query": ["a"], "expected": ["fod"]})
    documents = pd.DataFrame({"id": ["food", "food"], "text": ["Meals", "Rides"]})
    assert refusal(Dataset.from_frame, frame, documents) == (
        "documents row 1: document id 'food' occurs here a second time; expected unique ids (and 1 more; problems=[] takes them all)"
    )
    line = "row 0: label 'fod' is not among the 1 documents; did you mean 'food'?; fix: correct it, or add the document"
    assert refusal(Dataset.from_frame, frame, documents[:1]) == line


def test_problems_takes_every_bad_row_and_many_alike_as_one():
    problems = []
    frame = pd.DataFrame({"query": ["a", "", "", "", "", "b"], "expected": ["x", "x", "x", "x", "x", [None]]})
    data = Dataset.from_frame(frame, problems=problems)
    assert data.query_texts() == ["a"]
    assert [str(problem) for problem in problems] == [
        "row 1: key 'query' is '' (and 3 more rows like it, the last at row 4); expected a text that is not empty",
        "row 5: key 'expected' is [None]; expected a document id, a list of them, or {id: grade}",
    ]


def test_a_frame_with_repeated_index_labels_keeps_rows_apart():
    frame = pd.DataFrame({"query": ["a", "b", "c"], "expected": ["food", "taxi", "food;taxi"]}, index=[0, 0, 0])
    problems = []
    assert Dataset.from_frame(frame, problems=problems).query_texts() == ["a", "b"]
    assert [problem.where for problem in problems] == ["row 2"]


# Records


class Ticket(BaseModel):
    subject: str
    body: str
    topic: str


TICKETS = [
    {"subject": "Login", "body": "Cannot log in", "topic": "password"},
    {"subject": "Bill", "body": "Where is it", "topic": "invoice"},
]


@pytest.mark.parametrize("make", [dict, lambda **row: Ticket(**row), lambda **row: dataclasses.make_dataclass("Row", row)(**row)])
def test_records_are_read_with_a_template(make):
    rows = [make(**row) for row in TICKETS]
    data = Dataset.from_records(iter(rows), record=Ticket, template="{subject}: {body}", label="topic")
    assert data.query_texts() == ["Login: Cannot log in", "Bill: Where is it"]
    assert data.qrels == {"q1": {"password": 1}, "q2": {"invoice": 1}}
    assert data.queries["q1"].metadata == {"subject": "Login", "body": "Cannot log in"}
    plain = Dataset.from_records(rows, query="body", label="topic")
    assert plain.query_texts() == ["Cannot log in", "Where is it"]
    assert plain.queries["q1"].metadata == {"subject": "Login"}


def test_a_record_that_is_none_is_named():
    line = "row 1: key 'topic': Field required (keys: subject, body)"
    assert refusal(Dataset.from_records, [TICKETS[0], {"subject": "a", "body": "b"}], record=Ticket, label="topic").startswith(line)
    assert refusal(Dataset.from_records, [TICKETS[0], 3], query="body", label="topic") == "row 1: is 3; expected an object with named keys"
    with pytest.raises(ConfigError, match="template needs record"):
        Dataset.from_records(TICKETS, template="{subject}", label="topic")
    with pytest.raises(ConfigError, match=r"record type .*int.*expected a Pydantic model class"):
        Dataset.from_records(TICKETS, record=int, label="topic")
    with pytest.raises(ConfigError, match="the separator is empty"):
        Dataset.from_records(TICKETS, separator="")


def test_the_bundled_records_are_the_same_from_memory(transactions):
    from embedfit.samples import TRANSACTIONS

    rows = [json.loads(line) for line in (TRANSACTIONS / "transactions.jsonl").read_text().splitlines()]
    documents = json.loads((TRANSACTIONS / "categories.json").read_text())
    data = Dataset.from_records(rows, documents, record="transaction")
    assert data.digest() == transactions.digest()
    assert Dataset.from_frame(pd.DataFrame(rows).astype(object), documents, record="transaction").qrels == transactions.qrels


# Dicts


def test_beirs_three_dicts_with_texts_or_fields():
    data = Dataset.from_dicts(
        {"a": "lunch", 2: {"text": "cab", "team": "ops"}},
        {"food": "Meals", "taxi": {"title": "Taxi", "text": "Rides"}, 3: {"title": "Three", "text": ""}},
        {"a": {"food": np.int64(2), "taxi": 0}, 2: ["taxi", 3]},
    )
    assert data.queries == {"a": Query("a", "lunch"), "2": Query("2", "cab", {"team": "ops"})}
    assert data.corpus == {
        "food": Document("food", "Meals"),
        "taxi": Document("taxi", "Rides", "Taxi"),
        "3": Document("3", "", "Three"),
    }
    assert data.qrels == {"a": {"food": 2, "taxi": 0}, "2": {"taxi": 1, "3": 1}}


@pytest.mark.parametrize(
    ("queries", "corpus", "qrels", "line"),
    [
        ({"a": ""}, CORPUS, {}, "query 'a': key 'text' is ''; expected a text that is not empty"),
        ({"a": None}, CORPUS, {}, "query 'a': key 'text' is None; expected a text that is not empty"),
        ({"a": {"title": "x"}}, CORPUS, {}, f"query 'a': key 'text' is missing (keys: title); {NO_TEXT}"),
        ({"a": "x"}, CORPUS, {"b": ["food"]}, "qrels of 'b': is not among the queries; fix: remove the entry or add the query"),
        ({"a": "x"}, CORPUS, {"a": {"fod": 1}}, f"qrels of 'a': {UNKNOWN}"),
        ({"a": "x"}, CORPUS, {"a": {"food": 0.5}}, "qrels of 'a': grade 0.5; expected a whole number, 0 or more"),
        ({"a": "x"}, CORPUS, {"a": 5}, "qrels of 'a': document '5' is not among the 2 documents; fix: correct it, or add the document"),
        ({"a": "x"}, CORPUS, {"a": {"food": 0}}, "qrels: has no query with a relevant document; expected at least one"),
        ({"a": "x"}, {"d": ["no"]}, {}, "document 'd': is ['no']; expected an object with named keys"),
        ({"a": "x"}, {"d": {"category": "no"}}, {}, f"document 'd': key 'text' is missing (keys: category); {NO_TEXT}"),
        (["x"], CORPUS, {}, "query: is ['x']; expected a dict by id"),
        ({"a": "x"}, CORPUS, [], "qrels: is []; expected a dict by query id"),
        ({1: "x", "1": "y"}, CORPUS, {}, "query '1': query id '1' occurs here a second time; expected unique ids"),
    ],
)  # fmt: skip
def test_an_entry_that_cannot_be_used_is_named(queries, corpus, qrels, line):
    assert refusal(Dataset.from_dicts, queries, corpus, qrels) == line


# Hugging Face


def features(**columns):
    return datasets.Features({"text": datasets.Value("string"), **columns})


def test_a_hugging_face_data_set_gives_the_names_of_classes():
    label = datasets.ClassLabel(names=["food", "taxi"])
    rows = datasets.Dataset.from_dict({"text": ["lunch", "cab"], "label": [0, 1]}, features=features(label=label))
    expected = {"q1": {"food": 1}, "q2": {"taxi": 1}}
    assert Dataset.from_hf(rows, query="text", label="label").qrels == expected
    assert Dataset.from_hf(rows.with_format("numpy"), query="text", label="label").qrels == expected
    assert Dataset.from_hf(rows.to_iterable_dataset(), query="text", label="label").qrels == expected
    several = datasets.Dataset.from_dict({"text": ["both"], "label": [[0, 1]]}, features=features(label=datasets.List(label)))
    assert Dataset.from_hf(several, query="text", label="label").qrels == {"q1": {"food": 1, "taxi": 1}}
    documents = datasets.Dataset.from_dict({"id": ["food", "taxi"], "text": ["Meals", "Rides"]})
    assert Dataset.from_hf(rows, documents, query="text", label="label").document_texts() == ["Meals", "Rides"]


def test_a_row_of_a_hugging_face_data_set_is_named_and_splits_are_not_guessed():
    label = datasets.ClassLabel(names=["food", "taxi"])
    rows = datasets.Dataset.from_dict({"text": ["lunch", "cab"], "label": [0, -1]}, features=features(label=label))
    assert Dataset.from_hf(rows, query="text", label="label").qrels == {"q1": {"food": 1}}  # -1 is an unknown label
    odd = datasets.Dataset.from_dict({"text": ["lunch", ""], "label": [0, 1]}, features=features(label=label))
    assert refusal(Dataset.from_hf, odd, query="text", label="label").startswith("row 1: key 'text' is ''; expected a text")
    splits = datasets.DatasetDict({"train": rows, "test": rows})
    assert refusal(Dataset.from_hf, splits) == "dataset: has splits: train, test; fix: pass one of them, such as dataset['train']"


# The same content from memory and from files

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).filter(str.strip)
labels = st.text("abcdefg ", min_size=1, max_size=6).filter(str.strip)
pairs = st.lists(st.tuples(texts, labels | st.lists(labels, min_size=1, max_size=3, unique_by=str.strip)), min_size=1, max_size=6)


def outcome(make):
    """Return the digest of a data set, or what is wrong with it after the place."""
    try:
        data = make()
        return data.digest(), data.merged
    except DataError as error:
        return re.sub(r"JSON list", "list", re.split(r"; fix: |\(and ", error.problem)[0])


@settings(max_examples=100, deadline=None)
@given(rows=pairs)
@example(rows=[("lunch", "food"), ("lunch", "taxi"), ("cab", ["taxi", "food"])])
@example(rows=[("[", "['a']"), ("]", "['a'"), ("", "{}")])
def test_pairs_frames_records_and_hugging_face_are_the_file_with_the_same_content(rows, tmp_path_factory):
    records = [{"text": text, "label": label} for text, label in rows]
    path = jsonl(tmp_path_factory.mktemp("same"), "pairs.jsonl", records)
    expected = outcome(lambda: load(path, query="text", label="label"))
    columns = {"text": [text for text, _ in rows], "label": [label for _, label in rows]}
    made = [
        lambda: Dataset.from_pairs(columns["text"], columns["label"]),
        lambda: Dataset.from_records(records, query="text", label="label"),
        lambda: Dataset.from_frame(pd.DataFrame(columns), query="text", label="label"),
    ]  # fmt: skip
    lists = [{"text": text, "label": label if isinstance(label, list) else [label]} for text, label in rows]
    assert [outcome(make) for make in made] == [expected] * 3
    expected = outcome(lambda: load(jsonl(path.parent, "lists.jsonl", lists), query="text", label="label"))
    assert outcome(lambda: Dataset.from_hf(datasets.Dataset.from_list(lists), query="text", label="label")) == expected


@st.composite
def dicts(draw):
    ids = st.text("abc123", min_size=1, max_size=3)
    corpus = draw(st.dictionaries(ids, texts | st.fixed_dictionaries({"text": texts, "title": texts}), min_size=1, max_size=4))
    queries = draw(st.dictionaries(ids, texts, min_size=1, max_size=4))
    grades = st.dictionaries(st.sampled_from(sorted(corpus)), st.integers(1, 3), min_size=1)
    return queries, corpus, {id: draw(grades) for id in queries}


@settings(max_examples=100, deadline=None)
@given(three=dicts())
def test_dicts_are_the_beir_folder_with_the_same_content_and_come_back(three, tmp_path_factory):
    data = Dataset.from_dicts(*three)
    assert load(write_beir(data, tmp_path_factory.mktemp("beir"))).digest() == data.digest()
    queries, corpus, qrels = three
    assert Dataset.from_dicts(queries, corpus, {id: list(grades) for id, grades in qrels.items()}).qrels.keys() == qrels.keys()
    fields = {id: {"title": document.title, "text": document.text} for id, document in data.corpus.items()}
    assert Dataset.from_dicts({id: query.text for id, query in data.queries.items()}, fields, data.qrels) == data
    assert Dataset(data.queries, data.corpus, data.qrels).digest() == data.digest()


@settings(max_examples=100, deadline=None)
@given(three=dicts())
def test_a_frame_of_the_judged_pairs_makes_the_data_set_again(three):
    data = Dataset.from_dicts(*three)
    frame = data.to_frame().rename(columns={"query_id": "id"})
    documents = [{"id": id, "text": document.text, "title": document.title} for id, document in data.corpus.items()]
    assert Dataset.from_frame(frame, documents, label="document_id") == data


# The constructor


def test_plain_strings_become_queries_and_documents():
    data = Dataset(
        {"a": "lunch", "b": Query("b", "cab", {"team": 1})}, {"food": Document("food", "Meals", "T"), "taxi": "Rides"}, {"a": {"food": 1}}
    )
    assert data.queries == {"a": Query("a", "lunch"), "b": Query("b", "cab", {"team": 1})}
    assert data.corpus == {"food": Document("food", "Meals", "T"), "taxi": Document("taxi", "Rides")}
    assert dataclasses.replace(data, parts={"test": ("a",)}).parts == {"test": ("a",)}


def test_numbers_of_numpy_are_kept_as_pythons_own():
    data = Dataset({"a": "lunch"}, CORPUS, {"a": {"food": np.int32(2)}})
    assert type(data.qrels["a"]["food"]) is int
    assert data.digest() == Dataset({"a": "lunch"}, CORPUS, {"a": {"food": 2}}).digest()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (({"a": ""}, CORPUS, {}), "query 'a': is ''; expected a text that is not empty"),
        (({"a": 5}, CORPUS, {}), "query 'a': is 5; expected a text that is not empty"),
        (({"a": Query("a", " ")}, CORPUS, {}), "query 'a': is ' '; expected a text that is not empty"),
        (({"a": Query("b", "x")}, CORPUS, {}), "query 'a': has the id 'b'; expected the id that is its key"),
        (({1: "x"}, CORPUS, {}), "query 1: has the id 1; expected a text that is not empty as id"),
        (({}, {"d": Document("d", "")}, {}), "document 'd': is ''; expected a text that is not empty"),
        (({"a": "x"}, CORPUS, {"b": {"food": 1}}), "qrels of 'b': is not among the 1 queries; fix: remove the entry or add the query"),
        (({"a": "x"}, CORPUS, {"a": {"fod": 1}}), f"qrels of 'a': {UNKNOWN}"),
        (({"a": "x"}, CORPUS, {"a": {"food": 1.0}}), "qrels of 'a': grade of 'food' is 1.0; expected a whole number, 0 or more"),
        (({"a": "x"}, CORPUS, {"a": {"food": True}}), "qrels of 'a': grade of 'food' is True; expected a whole number, 0 or more"),
        (({"a": "x"}, CORPUS, {"a": {"food": -1}}), "qrels of 'a': grade of 'food' is -1; expected a whole number, 0 or more"),
        (({"a": "x"}, CORPUS, {"a": ["food"]}), "qrels of 'a': is ['food']; expected {document id: grade}"),
        (({"a": "x"}, CORPUS, {}, {"test": ("b",)}), "part test: query 'b' is not among the 1 queries"),
        (({"a": "x"}, CORPUS, {}, {"final": ("a",)}), "parts: has 'final'; expected train, dev or test"),
    ],
)  # fmt: skip
def test_the_constructor_refuses_what_cannot_be_used_in_one_line(arguments, line):
    assert refusal(Dataset, *arguments) == line


def test_the_constructor_copies_nothing_and_a_selection_shares_the_documents():
    corpus = {f"d{number}": Document(f"d{number}", "text") for number in range(100)}
    queries = {f"q{number}": Query(f"q{number}", "text") for number in range(10)}
    data = Dataset(queries, corpus, {id: {"d1": 1} for id in queries})
    assert data.corpus is corpus
    assert data.select(["q1", "q2"]).corpus is corpus


# How it shows itself


def test_it_says_its_size_and_shows_a_few_queries_escaped():
    qrels = {"q0": {"food": 1, "taxi": 1}, "q1": {"taxi": 2, "food": 0}}
    data = Dataset({f"q{number}": f"<b>{'x' * 200}" for number in range(9)}, CORPUS, qrels)
    assert repr(data) == "Dataset(9 queries, 2 documents, 1.5 answers a query)"
    assert repr(Dataset({"a": "x"}, {}, {})) == "Dataset(1 query, 0 documents, no answers)"
    page = data._repr_html_()
    assert "<b>" not in page
    assert page.count("<tr>") == 6
    assert page.count("&lt;b&gt;") == 5
    assert "food, taxi" in page
    assert len(page) < 1_500


def test_making_a_data_set_of_lists_loads_no_pandas():
    code = "import sys, embedfit; embedfit.Dataset.from_pairs(['a'], ['x']); print({'pandas', 'datasets'} & {*sys.modules})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
