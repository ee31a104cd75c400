import numpy as np

from embedfit.check import check_dataset, check_truncation, warnings
from embedfit.data import Dataset, Document, Query
from embedfit.encode import Truncation


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


def test_documents_that_say_the_same_are_copies():
    (copy,) = found(data_of(CLEAN, {"food": "Meals", "taxi": "Rides", "cab": "rides "}), "copy")
    assert (copy.level, copy.ids) == ("warning", ("taxi", "cab"))
    assert copy.message == "documents taxi, cab say the same: 'Rides'"


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
