import dataclasses
import random
import re

import numpy as np
import pytest

from embedfit.data.check import check_dataset, check_groups, check_leaks, warnings
from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.load import load
from embedfit.data.split import split_dataset
from embedfit.encode.local import Truncation
from embedfit.pipeline.job import check_truncation


def data_of(queries, corpus=None, qrels=None):
    """Return a data set from {id: (text, labels)}; by default each label is a document."""
    labels = {label: label for _, answers in queries.values() for label in answers}
    return Dataset(
        {id: Query(id, text) for id, (text, _) in queries.items()},
        {id: Document(id, text) for id, text in (corpus or labels).items()},
        qrels or {id: dict.fromkeys(answers, 1) for id, (_, answers) in queries.items()},
    )


def found(data, kind):
    return [finding for finding in check_dataset(data) if finding.kind == kind]


CLEAN = {"q1": ("lunch", ["food"]), "q2": ("dinner", ["food"]), "q3": ("cab", ["taxi"]), "q4": ("ride", ["taxi"])}


def test_nothing_is_found_in_clean_data():
    assert check_dataset(data_of(CLEAN)) == []


def test_the_bundled_transactions_have_no_problem(transactions):
    assert [finding for finding in check_dataset(transactions) if finding.level == "problem"] == []


def test_the_same_text_with_different_labels_is_a_conflict():
    (conflict,) = found(data_of({**CLEAN, "q5": (" LUNCH", ["taxi"])}), "conflict")
    assert (conflict.level, conflict.ids) == ("warning", ("q1", "q5"))
    assert conflict.message.startswith("2 queries say 'lunch' and have different labels (food, taxi)")


def test_the_same_text_with_the_same_labels_is_no_conflict():
    assert found(data_of({**CLEAN, "q5": ("LUNCH", ["food"])}), "conflict") == []


def test_many_warnings_of_one_kind_are_cut_short_where_they_are_not_the_point():
    data = data_of({f"q{number}": (f"text {number // 2}", ["ab"[number % 2]]) for number in range(10)})
    assert len(found(data, "conflict")) == 5
    lines = warnings(check_dataset(data))
    assert len(lines) == 4
    assert lines[-1] == "... and 2 more of the kind 'conflict'; 'embedfit check' lists them"


@pytest.mark.parametrize(("queries", "level"), [(20, "warning"), (5, "note")])
def test_a_text_in_several_rows_with_different_labels_is_a_conflict_where_that_is_rare(tmp_path, queries, level):
    rows = ["query,expected", "lunch,food", "lunch,taxi", *(f"text {n},{['food', 'taxi'][n % 2]}" for n in range(1, queries))]
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    (conflict,) = found(load(tmp_path / "pairs.csv"), "conflict")
    assert (conflict.level, conflict.ids) == (level, ("q1",))
    assert conflict.message.startswith(f"1 of {queries} queries stand in several rows with different labels")
    assert "such as 'lunch' (food, taxi)" in conflict.message


def test_labels_in_ever_new_combinations_look_like_lists(tmp_path):
    cells = ["a; b", "b; c", "a; c", "c; d", "d; a"]
    (tmp_path / "pairs.csv").write_text("\n".join(["query,expected", *(f"text {n},{cell}" for n, cell in enumerate(cells))]))
    (joined,) = found(load(tmp_path / "pairs.csv"), "joined labels")
    assert (joined.level, len(joined.ids)) == ("warning", 5)
    assert joined.message.startswith("5 labels look like several with ';' between them, such as 'a; b'")
    assert found(load(tmp_path / "pairs.csv", separator=";"), "joined labels") == []


def test_names_with_a_word_in_common_do_not_look_like_lists():
    names = ["Travel, air", "Travel, rail", "Food, lunch", "Food, dinner"]
    for more in ([], ["x, y", "y, z", "x, z"], ["a; b", "b; a"]):
        data = data_of({f"q{n}": (f"text {n}", [name]) for n, name in enumerate(names + more)})
        assert found(data, "joined labels") == []


@pytest.mark.parametrize(
    ("labels", "warned"),
    [
        (["0", "1", "2"], True),
        (["A-17", "B-4", "7.1"], True),
        (["3", "4", "food"], True),
        (["1", "food", "taxi"], False),
        (["a", "b", "c"], False),
        (["茶1", "水2", "米3"], False),
    ],
)
def test_labels_that_are_bare_codes_are_warned_of(labels, warned):
    findings = found(data_of({f"q{n}": (f"text {n}", [label]) for n, label in enumerate(labels)}), "bare code")
    assert [finding.level for finding in findings] == ["warning"] * warned
    if warned:
        assert f"documents are bare numbers or codes, such as {labels[0]!r}" in findings[0].message


def test_documents_that_say_the_same_are_copies():
    (copy,) = found(data_of(CLEAN, {"food": "Meals", "taxi": "Rides", "cab": "rides "}), "copy")
    assert (copy.level, copy.ids) == ("warning", ("taxi", "cab"))
    assert copy.message == "documents taxi, cab say the same: 'Rides'"


LONG = "I topped up my card with cash but the money is missing"


def test_documents_that_nearly_say_the_same_are_near_copies():
    (near,) = found(data_of(CLEAN, {"food": "Meals", "taxi": LONG, "cab": LONG.replace("cash", "coins"), "car": LONG.upper()}), "near copy")
    assert (near.level, near.ids) == ("warning", ("taxi", "cab", "car"))
    assert near.message == f"documents taxi, cab, car nearly say the same: {LONG!r}"


def test_documents_that_say_the_very_same_are_no_near_copies():
    assert found(data_of(CLEAN, {"food": "Meals", "taxi": LONG, "cab": LONG.upper()}), "near copy") == []


def test_nearly_the_same_text_with_different_labels_is_a_near_conflict():
    near = {"q5": (LONG, ["food"]), "q6": (LONG.replace("cash", "coins"), ["taxi"])}
    (conflict,) = found(data_of({**CLEAN, **near}), "near conflict")
    assert (conflict.level, conflict.ids) == ("note", ("q5", "q6"))
    assert conflict.message == f"2 queries nearly say {LONG!r} and have different labels (food, taxi)"


@pytest.mark.parametrize(("other", "label"), [(LONG.replace("cash", "coins"), "food"), (LONG.upper(), "taxi")])
def test_the_same_labels_or_the_very_same_text_are_no_near_conflict(other, label):
    assert found(data_of({**CLEAN, "q5": (LONG, ["food"]), "q6": (other, [label])}), "near conflict") == []


def test_queries_that_hold_the_name_of_their_document_are_counted():
    queries = {
        "q1": ("My ATM fee, please!", ["fee"]),
        "q2": ("is there a FEE at the atm", ["fee"]),  # not one after the other
        "q3": ("lost cards", ["lost"]),  # not whole words
        "q4": ("I have lost (card) it", ["lost", "fee"]),
        "q5": ("ATM fee", ["lost"]),  # the name of another
    }
    (inside,) = found(data_of(queries, {"fee": "atm fee", "lost": "Lost card"}), "label inside")
    assert (inside.level, inside.ids) == ("warning", ("q1", "q4"))
    assert inside.message.startswith("2 of 5 queries (40.0%) hold the name of their own document, such as 'q1': 'atm fee';")


def test_a_documents_title_is_its_name_and_a_passage_is_none():
    passage = "one two three four five six seven eight nine ten eleven"
    data = data_of({"q1": ("What is a tax?", ["a"]), "q2": (passage, ["b"])}, {"a": passage, "b": passage})
    data.corpus["a"] = Document("a", passage, "Tax")
    assert found(data, "label inside")[0].ids == ("q1",)


def test_a_large_group_of_copies_is_warned_of():
    copies = {f"q{number}": (LONG.replace("cash", ["cash", "coins"][number % 2]), ["food"]) for number in range(5, 16)}
    data = data_of({**CLEAN, **copies})
    (chain,) = found(data, "chain")
    assert (chain.level, len(chain.ids)) == ("warning", 11)
    assert chain.message.startswith("11 of 15 queries are copies or near copies, or copies of those, and are never divided")


def with_queries(data, texts):
    """Return a data set with further queries, from {id: (text, labels)}."""
    queries = {id: Query(id, text) for id, (text, _) in texts.items()}
    return dataclasses.replace(data, queries=data.queries | queries, qrels=data.qrels | {id: labels for id, (_, labels) in texts.items()})


def planted(data, test, rng):
    """Return a data set with copies of 15 test queries: of 10 with other case and spaces, of 5 with another word."""
    copies = {}
    for number, id in enumerate(rng.sample(test, 15)):
        text = data.queries[id].text
        if number < 10:
            changed = rng.choice([str.upper, str.lower, str.swapcase])(text).replace(" ", rng.choice(["  ", " \t", "\u00a0"]))
        else:
            word = rng.choice(list(re.finditer(r"\S+", text)))
            changed = f"{text[: word.start()]}paraphrased{text[word.end() :]}"
        copies[f"copy of {id}"] = (changed, data.relevant(id))
    return with_queries(data, copies), copies


@pytest.mark.parametrize("seed", range(20))
def test_every_planted_leak_is_found_and_nothing_else(transactions, seed):
    split = split_dataset(transactions, dev=0.1, seed=seed)
    assert check_leaks(transactions, vars(split)) == []
    data, copies = planted(transactions, split.test, random.Random(seed))
    leaks = check_leaks(data, {**vars(split), "train": (*split.train, *copies)})
    assert {leak.ids for leak in leaks} == {(copy.removeprefix("copy of "), copy) for copy in copies}
    assert len(leaks) == 15
    assert {(leak.level, leak.kind) for leak in leaks} == {("problem", "leak")}
    # Where the parts are dealt here and not given, a copy goes where its original goes.
    dealt = split_dataset(data, dev=0.1, seed=seed)
    assert check_leaks(data, vars(dealt)) == []
    assert all((copy in dealt.test) == (copy.removeprefix("copy of ") in dealt.test) for copy in copies)


def test_a_leak_says_what_leaks_from_where_in_one_line():
    data = data_of({"q1": (LONG, ["a"]), "q2": (LONG.upper(), ["a"]), "q3": (LONG.replace("cash", "coins"), ["a"]), "q4": ("Hi", ["b"])})

    def said(**parts):
        return [(leak.message, leak.ids) for leak in check_leaks(data, parts)]

    assert said(test=["q1"], train=["q2", "q4"]) == [(f"test query 'q1' says what train query 'q2' says: {LONG.upper()!r}", ("q1", "q2"))]
    assert said(dev=["q4", "q3"], train=["q1"]) == [(f"dev query 'q3' says nearly what train query 'q1' says: {LONG!r}", ("q3", "q1"))]
    assert said(test=["q1"], train=["q2", "q4"], dev=["q3"]) == [
        (f"test query 'q1' says what train query 'q2' says: {LONG.upper()!r} (and 1 more)", ("q1", "q2", "q3")),
        (f"dev query 'q3' says nearly what train query 'q2' says: {LONG.upper()!r}", ("q3", "q2")),
    ]


def test_copies_within_a_part_do_not_leak():
    data = data_of({"q1": (LONG, ["a"]), "q2": (LONG, ["a"]), "q3": ("Hi", ["b"])})
    assert check_leaks(data, {"train": ("q1", "q2"), "test": ("q3",)}) == []


def test_a_query_that_stands_in_two_parts_leaks():
    data = data_of({"q1": ("Hi", ["a"]), "q2": ("Bye", ["b"])})
    (leak,) = check_leaks(data, {"train": ("q1", "q2"), "test": ("q1",)})
    assert leak.ids == ("q1", "q1")


def test_thousands_of_copies_in_two_parts_are_one_leak_for_each_held_out_query():
    data = data_of({f"q{number}": (LONG, ["a"]) for number in range(2000)})
    leaks = check_leaks(data, {"train": tuple(data.queries)[:1000], "test": tuple(data.queries)[1000:]})
    assert len(leaks) == 1000
    assert all(len(leak.ids) == 1001 for leak in leaks)


def test_a_single_answer_for_all_queries_is_a_problem():
    (one,) = found(data_of({"q1": ("lunch", ["food"]), "q2": ("dinner", ["food"])}), "one label")
    assert one.level == "problem"
    assert "all 2 queries have the same answer" in one.message


def test_labels_with_a_single_query_are_rare_where_others_repeat():
    (rare,) = found(data_of({**CLEAN, "q5": ("hotel", ["stay"])}), "rare")
    assert (rare.level, rare.ids) == ("warning", ("stay",))
    assert rare.message.startswith("1 of 3 labels have a single query")


def test_passages_with_one_query_each_are_not_rare():
    assert found(data_of({f"q{number}": (f"text {number}", [f"d{number}"]) for number in range(5)}), "rare") == []


def test_documents_that_no_query_asks_for_are_noted():
    (note,) = found(data_of(CLEAN, {"food": "Meals", "taxi": "Rides", "stay": "Hotels"}), "not asked for")
    assert (note.level, note.ids) == ("note", ("stay",))
    assert note.message == "1 of 3 documents are right for no query"


def test_queries_without_a_relevant_document_are_noted():
    qrels = {"q1": {"food": 1}, "q2": {"food": 0}, "q3": {"taxi": 1}}
    (note,) = found(data_of(CLEAN, qrels=qrels), "unjudged")
    assert (note.level, note.ids) == ("note", ("q2", "q4"))


class Counting:
    """Stands for a model that reads four words."""

    def truncation(self, texts, kind):
        return Truncation(np.array([len(text.split()) for text in texts]), 4)


def test_texts_longer_than_the_model_reads_are_counted_with_what_is_lost():
    data = data_of(
        {"q1": ("one two", ["a"]), "q2": ("one two three four five six", ["b"])}, {"a": "one two three", "b": "four words are read"}
    )
    (cut,) = check_truncation(data, Counting(), "{text}")
    assert (cut.level, cut.kind, cut.ids) == ("warning", "truncated", ("q2",))
    # 2 of 8 words are lost.
    assert cut.message == "1 of 2 query texts are longer than the 4 tokens the model reads: 25.0% of all their tokens are lost"


def test_what_a_document_says_under_the_template_is_what_is_counted():
    data = data_of({"q1": ("one", ["a"])}, {"a": "one two three"})
    (cut,) = check_truncation(data, Counting(), "{text} {text}")
    assert cut.message.startswith("1 of 1 document texts")


def test_queries_that_are_copies_of_their_own_document_are_counted():
    passage = "one two three four five six seven eight nine ten eleven"
    queries = {
        "q1": (f"{passage.upper()}!", ["a"]),
        "q2": (passage, ["b"]),
        "q3": (f"Title: {passage}", ["a"]),
        "q4": (f"{passage} 12", ["a"]),
    }
    data = data_of(queries, {"a": passage, "b": "else"})
    data.corpus["a"] = Document("a", passage, "title")
    (own,) = found(data, "own text")
    assert (own.level, own.ids) == ("warning", ("q1", "q3"))
    assert own.message.startswith(
        f"2 of 4 queries (50.0%) say word for word what their own document says, such as 'q1': '{passage.upper()}!'"
    )


def test_queries_that_are_documents_are_noted():
    data = data_of({"a": ("printer is broken", ["b"]), "q": ("else", ["b"])}, {"a": "Printer is broken", "b": "no paper"})
    (itself,) = found(data, "itself")
    assert (itself.level, itself.ids) == ("note", ("a",))


def with_field(values, label="ab"):
    queries = {f"q{number}": Query(f"q{number}", f"text {number}", {"field": value}) for number, value in enumerate(values)}
    qrels = {id: {label[number % len(label)]: 1} for number, id in enumerate(queries)}
    return Dataset(queries, {name: Document(name, name) for name in label}, qrels)


def grouped(values, label="ab"):
    """Return what is suggested where the last fifth of the queries is for the test."""
    data = with_field(values, label)
    ids = tuple(data.queries)
    cut = len(ids) * 4 // 5
    return check_groups(data, {"train": ids[: cut // 2], "dev": ids[cut // 2 : cut], "test": ids[cut:]})


@pytest.mark.parametrize("name", [lambda number: f"customer {number}", lambda number: number])
def test_a_field_of_customers_that_are_in_several_parts_is_one_to_group_by(name):
    (group,) = grouped([name(number % 12) for number in range(60)])
    assert (group.level, group.kind, group.ids) == ("note", "group", tuple(f"q{number}" for number in range(48, 60)))
    assert group.message.startswith(
        f"12 of 12 test queries have a field that train or dev queries have too, such as {name(0)!r}".replace("such as 0", "such as '0'")
    )
    assert 'group_by = "field" in [split]' in group.message


@pytest.mark.parametrize(
    "values",
    [
        range(60),  # of one query each
        [number // 5 for number in range(60)],  # in one part each
        [number % 3 for number in range(60)],  # a category
        [number % 9 for number in range(60)],
        [0] * 20 + [number % 12 for number in range(40)],  # one of a third of the queries
        [number % 12 + 0.5 for number in range(60)],  # measured
        [[number % 12] for number in range(60)],
        [None] * 60,
        [number % 12 if number < 53 else f"new {number}" for number in range(60)],  # five of twelve test queries
    ],
)
def test_other_fields_are_not_to_be_grouped_by(values):
    assert grouped(list(values)) == []


def test_a_field_that_says_the_label_is_not_to_be_grouped_by():
    assert grouped([number % 12 for number in range(60)], label="abcdefghijkl") == []
    assert len(grouped([number % 12 for number in range(60)], label="abcdefghijk")) == 1
