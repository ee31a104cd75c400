import csv
import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.data.load import load
from embedfit.data.write import write_jsonl
from embedfit.errors import DataError
from embedfit.retrieve.run import Run
from embedfit.studies.suspects import COUNTED, decide, find_suspects, read_decisions, relabelled, write_suspects

DOCUMENTS = ("food", "hotel", "taxi")


def run_of(**scores):
    """Return a Run from scores for food, hotel and taxi."""
    ranked = np.array([sorted(range(3), key=lambda place: -of[place]) for of in scores.values()])
    sorted_scores = np.array([sorted(of, reverse=True) for of in scores.values()], np.float32)
    return Run(tuple(scores), DOCUMENTS, ranked, sorted_scores)


def dataset_of(**qrels):
    queries = {id: Query(id, f"text of {id}", {"team": "red"}) for id in qrels}
    return Dataset(queries, {id: Document(id, id) for id in DOCUMENTS}, qrels, {"test": tuple(qrels)})


@pytest.fixture
def dataset():
    return dataset_of(q1={"food": 1}, q2={"food": 2}, q3={"taxi": 1}, q4={"food": 1})


@pytest.fixture
def runs():
    ln2 = float(np.log(2))
    base = run_of(q1=(0, 1, 0.5), q2=(0, 1, 0.5), q3=(1, 0, 0.5), q4=(0, 1, 0.5))
    # Scale 1: weights 8:2:1, 2:2:1 and so on. q3: base and tuned differ. q4: both are right in the tuned model.
    tuned = run_of(q1=(0, 3 * ln2, ln2), q2=(ln2, ln2 + 0.01, 0), q3=(0, 1, 0.5), q4=(1, 0, 0.5))
    return base, tuned


def test_suspects_are_those_where_both_models_agree_against_the_label(dataset, runs):
    found = find_suspects(dataset, *runs, scale=1)
    assert list(found.query_id) == ["q1", "q2"]
    first = found.iloc[0]
    assert (first["query"], first.expected, first.suggested, first.kind) == ("text of q1", ["food"], "hotel", "mislabel")
    assert first.confidence == pytest.approx(8 / (8 + 1))
    assert found.iloc[1].kind == "also right"
    assert found.iloc[1].confidence == pytest.approx(np.exp(0.01) / (np.exp(0.01) + 1))


def test_the_confidence_is_by_the_softmax_of_the_tuning_unless_another_scale_is_given(dataset, runs):
    assert find_suspects(dataset, *runs).confidence[0] == pytest.approx(8**14 / (8**14 + 1), abs=1e-15)
    assert find_suspects(dataset, *runs, scale=2).confidence[0] == pytest.approx(64 / 65)


def test_the_best_of_several_expected_documents_counts(runs):
    data = dataset_of(q1={"food": 1, "taxi": 1})
    base, tuned = (Run(run.query_ids[:1], run.document_ids, run.ranked[:1], run.scores[:1]) for run in runs)
    assert find_suspects(data, base, tuned, scale=1).confidence[0] == pytest.approx(8 / (8 + 2))


def test_an_expected_document_that_was_not_retrieved_counts_as_the_last_that_was(runs):
    data = dataset_of(q1={"food": 1})
    base, tuned = (Run(run.query_ids[:1], run.document_ids, run.ranked[:1, :2], run.scores[:1, :2]) for run in runs)
    (found,) = find_suspects(data, base, tuned, scale=1).itertuples()
    assert found.confidence == pytest.approx(8 / (8 + 2))
    assert found.kind == "mislabel"


def test_what_was_judged_not_to_be_right_is_not_suggested_and_an_unjudged_query_has_no_label_to_doubt(runs):
    data = dataset_of(q1={"food": 1, "hotel": 0}, q2={}, q3={"taxi": 1}, q4={"food": 1})
    assert find_suspects(data, *runs).empty


def test_the_runs_queries_may_stand_in_another_order(dataset, runs):
    base, tuned = runs
    turned = Run(base.query_ids[::-1], base.document_ids, base.ranked[::-1], base.scores[::-1])
    pd.testing.assert_frame_equal(find_suspects(dataset, turned, tuned), find_suspects(dataset, base, tuned))


@pytest.fixture
def decided(dataset, runs, tmp_path):
    """Return a function that writes the suspects, fills their decisions, and returns the path."""

    def write(*decisions, delimiter=",", encoding="utf-8", columns=None):
        path = write_suspects(find_suspects(dataset, *runs), tmp_path / "suspects.csv")
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8-sig"), newline="")))
        for row, decision in zip(rows, decisions, strict=True):
            row["decision"] = decision
        with path.open("w", encoding=encoding, newline="") as file:
            writer = csv.DictWriter(file, columns or list(rows[0]), delimiter=delimiter, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
        return path

    return write


def counts_of(**counts):
    return dict.fromkeys(COUNTED, 0) | {name.replace("_", " "): count for name, count in counts.items()}


def test_the_csv_has_an_empty_column_for_the_decision(dataset, runs, tmp_path):
    path = write_suspects(find_suspects(dataset, *runs, scale=1), tmp_path / "new" / "suspects.csv")
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    frame = pd.read_csv(path, keep_default_na=False)
    assert list(frame) == ["query_id", "query", "expected", "suggested", "kind", "confidence", "decision"]
    assert frame.iloc[0].to_list() == ["q1", "text of q1", "food", "hotel", "mislabel", 0.889, ""]


@pytest.mark.parametrize(
    ("decision", "grades", "counted"),
    [
        ("", {"food": 2}, "undecided"),
        ("keep", {"food": 2, "hotel": 0}, "keep"),
        (" Replace ", {"hotel": 2}, "replace"),
        ("add", {"food": 2, "hotel": 2}, "add"),
        ("taxi", {"taxi": 2}, "document ids"),
        ("taxi | food", {"taxi": 2, "food": 2}, "document ids"),
        ('["taxi", "taxi"]', {"taxi": 2}, "document ids"),
    ],
)
def test_each_decision_does_what_it_says(dataset, decided, decision, grades, counted):
    corrected, counts = relabelled(dataset, decided("", decision))
    assert corrected.qrels["q2"] == grades
    assert {id: corrected.qrels[id] for id in ("q1", "q3", "q4")} == {id: dataset.qrels[id] for id in ("q1", "q3", "q4")}
    assert counts == {**counts_of(undecided=1), counted: 1 + (counted == "undecided")}
    assert (corrected.queries, corrected.corpus, corrected.parts) == (dataset.queries, dataset.corpus, dataset.parts)
    assert dataset.qrels["q2"] == {"food": 2}


def test_what_was_kept_is_not_suspected_again(dataset, runs, decided):
    corrected, _ = relabelled(dataset, decided("keep", "keep"))
    assert find_suspects(corrected, *runs).empty


def test_judged_and_not_right_stays_so_unless_it_is_decided_otherwise(decided, runs):
    data = dataset_of(q1={"food": 1, "taxi": 0}, q2={"food": 2}, q3={"taxi": 1}, q4={"food": 1})
    path = decided("replace", "")
    assert relabelled(data, path)[0].qrels["q1"] == {"taxi": 0, "hotel": 1}
    assert relabelled(data, decided("taxi", ""))[0].qrels["q1"] == {"taxi": 1}


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_it_is_read_as_spreadsheets_save_it(dataset, decided, delimiter, encoding):
    path = decided("replace", "add", delimiter=delimiter, encoding=encoding, columns=["decision", "suggested", "note", "query_id"])
    assert relabelled(dataset, path)[1] == counts_of(replace=1, add=1)


def test_rows_that_are_empty_or_lack_the_empty_cells_at_their_end_are_read(dataset, tmp_path):
    (tmp_path / "s.csv").write_text("query_id;suggested;decision;note\r\nq1;hotel\r\n;;;\r\n\r\nq2;hotel;add;;;\r\n")
    assert relabelled(dataset, tmp_path / "s.csv")[1] == counts_of(undecided=1, add=1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("query_id,suggested,decision\nq1,hotel,keep\nq11,hotel,keep\n", ":3: query 'q11' is not among the 4 queries; did you mean 'q1'?"),
        ("query_id,suggested,decision\nq1,hotle,add\n", ":2: document 'hotle' is not among the 3 documents; did you mean 'hotel'?"),
        ("query_id,suggested,decision\nq1,hotel,repalce\n", ":2: decision 'repalce' is unknown; did you mean 'replace'?; expected keep, "),
        ("query_id,suggested,decision\nq1,hotel,hotl\n", ":2: decision 'hotl' is unknown; did you mean 'hotel'?"),
        ("query_id,suggested,decision\nq1,hotel,taxi|fod\n", ":2: document 'fod' is not among the 3 documents; did you mean 'food'?"),
        ('query_id,suggested,decision\nq1,hotel,"[""taxi"""\n', ":2: decision"),
        ("query_id,suggested,decision\nq1,hotel,[]\n", ":2: decision names no document"),
        ("query_id,suggested,decision\nq1,hotel,keep\nq1,hotel,add\n", ":3: query 'q1' occurs here a second time"),
        ('query_id,suggested,decision,query\nq1,hotel,,"a\nb"\nq8,hotel,,\n', ":4: query 'q8'"),
        ('query_id,suggested,decision,query\nq1,hotel,,x\nq8,hotel,,"a\nb"\n', ":3: query 'q8'"),
        ("query_id,suggested,decision\nq1,hotel,keep,extra\n", ":2: has 4 cells; expected 3"),
        ("query_id,suggested\nq1,hotel\n", ":1: has no columns query_id, suggested, decision"),
        ("", ":1: has no columns"),
        ('query_id,suggested,decision\nq1,"hotel,keep\n', "is not CSV"),
    ],
)
def test_a_line_that_cannot_be_applied_is_one_clear_error(dataset, tmp_path, text, said):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(DataError) as refused:
        relabelled(dataset, path)
    assert str(refused.value).startswith(str(path))
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_file_that_is_not_there_or_not_in_utf_8_is_one_clear_error(dataset, tmp_path):
    with pytest.raises(DataError, match="cannot be read: No such file"):
        relabelled(dataset, tmp_path / "none.csv")
    (tmp_path / "s.csv").write_bytes("query_id,suggested,decision\nq1,hôtel,\n".encode("windows-1252"))
    with pytest.raises(DataError, match="is not UTF-8; fix: save it from the spreadsheet as 'CSV UTF-8'"):
        relabelled(dataset, tmp_path / "s.csv")


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "a;=1+1", 'a,"=1', "a\n=1", "'=1", "\uff1d1", " =1", "x|y", "a 'b'", "1-1", "é"]


def test_no_cell_begins_with_a_formula_and_every_id_is_known_again(tmp_path):
    queries = {id: Query(id, f"{id}\n{id}") for id in FORMULAS}
    documents = {f"{id} document": Document(f"{id} document", "text") for id in FORMULAS}
    data = Dataset(queries, documents | {"right": Document("right", "right")}, {id: {"right": 1} for id in queries})
    frame = pd.DataFrame(
        [(id, queries[id].text, ["right"], f"{id} document", "mislabel", 0.5) for id in queries],
        columns=["query_id", "query", "expected", "suggested", "kind", "confidence"],
    )
    path = write_suspects(frame, tmp_path / "suspects.csv")
    text = path.read_text("utf-8-sig")
    for delimiter in ",;\t":  # as it should be read, and as a spreadsheet set to another separator reads it
        cells = [cell for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) for cell in row]
        assert not [cell for cell in cells if cell.lstrip().lstrip('"').startswith(("=", "+", "-", "@", "\uff1d"))]
    path.write_text(text.replace('"0.500",""', '"0.500","replace"'), encoding="utf-8")
    assert text.count('"0.500",""') == len(FORMULAS)
    corrected, counts = relabelled(data, path)
    assert corrected.qrels == {id: {f"{id} document": 1} for id in queries}
    assert counts == counts_of(replace=len(FORMULAS))


def test_a_corrected_data_set_is_the_same_after_it_was_on_disk(dataset, decided, tmp_path):
    corrected, _ = relabelled(dataset, decided("add", "keep"))
    folder = write_jsonl(corrected, tmp_path / "corrected")
    again = load(folder / "queries.jsonl", folder / "documents.jsonl")
    assert again.qrels == {**dataset.qrels, "q1": {"food": 1, "hotel": 1}, "q2": {"food": 2, "hotel": 0}}
    assert again.digest() == corrected.digest()


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_decision_is_written_and_all_else_stays(tmp_path, delimiter):
    path = tmp_path / "suspects.csv"
    rows = [
        ["note", "decision ", "query_id", "suggested"],
        ["see; mail, now", "", "'=1+1", "a|b"],
        ["", "keep", "q2"],
        ["line\nbreak", "", "q3", "c"],
    ]
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    assert decide(path, "'=1+1", "", "replace")
    assert not decide(path, "'=1+1", "", "keep")  # somebody else was there first
    assert not decide(path, "q4", "", "keep")
    assert decide(path, "q2", "keep", "")
    assert [list(row.values()) for row in read_decisions(path)] == [
        ["see; mail, now", "replace", "'=1+1", "a|b"],
        ["", "", "q2", ""],
        ["line\nbreak", "", "q3", "c"],
    ]
    assert path.read_bytes().startswith(b"\xef\xbb\xbf")
    path.write_text("query_id,suggested\n")
    with pytest.raises(DataError, match="has no columns query_id, suggested, decision"):
        decide(path, "q", "", "keep")


def test_decisions_made_at_once_are_all_kept(tmp_path):
    path = tmp_path / "suspects.csv"
    path.write_text("query_id,suggested,decision\n" + "".join(f"q{number},a,\n" for number in range(40)))
    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(lambda number: decide(path, f"q{number}", "", "keep"), range(40)))
    assert {row["decision"] for row in read_decisions(path)} == {"keep"}
