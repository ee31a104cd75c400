import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embedfit.data.dataset import Dataset, Document
from embedfit.data.formats import sniff
from embedfit.data.load import load
from embedfit.errors import DataError

# The header of a table, and what is taken for what: query, label, id, grade, part
COMMON = {
    "Subject,Category": ("Subject", "Category", "", "", ""),
    "text,label": ("text", "label", "", "", ""),
    "utterance,intent,split": ("utterance", "intent", "", "", "split"),
    "id,question,answer": ("question", "answer", "id", "", ""),
    "qid,query,doc_id,relevance": ("query", "doc_id", "qid", "relevance", ""),
    "query,product_id,category": ("query", "product_id", "", "", ""),
    "text,category,doc_id": ("text", "category", "", "", ""),
    "Frage,Kategorie": ("", "", "", "", ""),
    "title,body,queue": ("body", "queue", "", "", ""),
    "query,passage,label": ("query", "passage", "", "label", ""),
    "text,label,label_text": ("text", "label_text", "", "", ""),
}


def table(folder, header):
    """Write three rows under a header. Judgements and numbers of classes are numbers, and parts are parts."""
    special = {"label": ["1", "0", "1"], "relevance": ["2", "0", "1"], "split": ["train", "validation", "test"]}
    names = header.split(",")
    if header in ("text,label",):
        special.pop("label")
    rows = [[special.get(name, [f"{name} {place}"] * 3)[place] for name in names] for place in range(3)]
    path = folder / "table.csv"
    path.write_text("\n".join([header, *map(",".join, rows)]) + "\n")
    return path


@pytest.mark.parametrize(("header", "roles"), COMMON.items(), ids=COMMON)
def test_columns_with_common_names_are_found(tmp_path, header, roles):
    found = sniff(table(tmp_path, header))
    assert (found.query, found.label, found.id, found.grade, found.part) == roles
    assert found.columns == tuple(header.split(","))
    assert found.usable == bool(roles[0])
    if not found.usable:
        with pytest.raises(DataError, match=r'fix: set query = "..." in \[data\] or pass --query, the name of its column'):
            load(found.path)


def test_what_was_taken_for_what_is_said_in_one_line_and_can_be_named(tmp_path, capsys):
    path = table(tmp_path, "Ticket ID,Subject,Category,split,Queue")
    data = load(path)
    assert capsys.readouterr().err == (
        f"{path}: query = column 'Subject', label = column 'Category', id = column 'Ticket ID', part = column 'split'\n"
    )
    assert data.parts == {"train": ("Ticket ID 0",), "dev": ("Ticket ID 1",), "test": ("Ticket ID 2",)}
    assert load(path, label="Queue").qrels["Ticket ID 0"] == {"Queue 0": 1}
    assert "label" not in capsys.readouterr().err
    assert load(path, query="Category", label="Queue", id="Subject", part="split").queries["Subject 0"].text == "Category 0"
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["id", "part", "document_id", "document_text", "document_title"])
def test_a_named_column_that_is_missing_is_named(tmp_path, name):
    path = table(tmp_path, "Subject,Category")
    with pytest.raises(DataError, match=r"table\.csv:2: key 'Categry' is missing in all 3 rows .*did you mean 'Category'"):
        load(path, **{name: "Categry"})


def test_rows_may_bring_their_documents_along(tmp_path):
    rows = ["query,doc_id,doc_title,passage,grade", "lunch,d1,Food,All about meals,2", "lunch,d2,Taxi,All about rides,0"]
    path = tmp_path / "judged.csv"
    path.write_text("\n".join([*rows, "cab,d2,Taxi,All about rides,1"]) + "\n")
    data = load(path)
    assert data.corpus == {"d1": Document("d1", "All about meals", "Food"), "d2": Document("d2", "All about rides", "Taxi")}
    assert data.qrels == {"q1": {"d1": 2, "d2": 0}, "q3": {"d2": 1}}
    path.write_text("\n".join([*rows, "cab,d2,Taxi,Something else,1"]) + "\n")
    with pytest.raises(DataError, match=r"judged\.csv:4: document 'd2' says 'Something else' here and 'All about rides' elsewhere"):
        load(path)


def test_documents_have_columns_of_common_names_too(tmp_path, capsys):
    (tmp_path / "docs.csv").write_text("doc_id,headline,content,owner\n1,Food,Meals,Ann\n2,Taxi,Rides,Bob\n")
    (tmp_path / "pairs.csv").write_text("query,expected\nlunch,1\ncab,2\n")
    data = load(tmp_path / "pairs.csv", tmp_path / "docs.csv")
    assert data.corpus == {"1": Document("1", "Meals", "Food", {"owner": "Ann"}), "2": Document("2", "Rides", "Taxi", {"owner": "Bob"})}
    assert "document_id = column 'doc_id', document_title = column 'headline', document_text = column 'content'" in capsys.readouterr().err
    other = load(tmp_path / "pairs.csv", tmp_path / "docs.csv", document_text="owner")
    assert other.corpus["1"].text == "Ann"


def test_long_labels_become_documents_with_short_ids_and_match_given_ones(tmp_path):
    texts = [f"To reset the password of account {number}, open the settings and choose Security. " * 30 for number in range(2)]
    path = tmp_path / "faq.jsonl"
    path.write_text("".join(json.dumps({"question": f"q {n}", "answer": text}) + "\n" for n, text in enumerate(texts)))
    data = load(path)
    assert [document.text for document in data.corpus.values()] == [text.strip() for text in texts]
    assert all(len(id) < 60 and id.startswith("To reset the password of account") for id in data.corpus)
    assert load(path).corpus == data.corpus
    documents = tmp_path / "docs.jsonl"
    documents.write_text("".join(json.dumps({"id": f"d{n}", "text": text.upper()}) + "\n" for n, text in enumerate(texts)))
    assert load(path, documents).qrels == {"q1": {"d0": 1}, "q2": {"d1": 1}}


def test_from_memory_columns_are_found_by_the_same_rule():
    rows = [{"qid": 1, "question": "lunch", "doc_id": "d1", "passage": "Meals", "relevance": 2}]
    rows += [{"qid": 1, "question": "lunch", "doc_id": "d2", "passage": "Rides", "relevance": 0}]
    data = Dataset.from_records(rows)
    assert data.qrels == {"1": {"d1": 2, "d2": 0}}
    assert data.corpus["d2"].text == "Rides"
    with pytest.raises(TypeError, match="documnet_id"):
        Dataset.from_records(rows, documnet_id="doc_id")


def test_one_row_for_each_judgement_is_one_query_whatever_else_differs(tmp_path):
    path = tmp_path / "judged.csv"
    path.write_text("query,doc_id,relevance,annotator,rank\nlunch,d1,1.0,Ann,1\nlunch,d2,-1,Bob,2\ncab,d2,1,Ann,1\ncab,d2,1,Bob,1\n")
    assert load(path).qrels == {"q1": {"d1": 1, "d2": 0}, "q3": {"d2": 1}}


def test_a_column_of_parts_with_another_value_is_said_not_to_be_one(tmp_path, capsys):
    path = tmp_path / "parts.csv"
    path.write_text("query,expected,split\na,x,train\nb,y,holdout\n")
    assert load(path).parts == {}
    said = "column 'split' is not read as the part, as 'holdout' is none; expected train, dev or test"
    assert said in capsys.readouterr().err
    with pytest.raises(DataError, match=r"parts\.csv:3: split is 'holdout'; expected train, dev or test"):
        load(path, part="split")


def test_columns_of_a_record_are_no_guess_and_not_said(transactions, capsys):
    from embedfit.samples import TRANSACTIONS

    load(TRANSACTIONS / "transactions.jsonl", TRANSACTIONS / "categories.json", record="transaction")
    assert capsys.readouterr().err == ""


def test_judgements_in_place_of_queries_are_told_where_they_belong(tmp_path):
    path = tmp_path / "qrels.csv"
    path.write_text("query_id,doc_id,relevance\n1,d1,1\n")
    with pytest.raises(DataError, match=r"key 'query' is missing .*fix: name it as qrels in \[data\], beside the files of queries"):
        load(path)


def test_an_id_that_belongs_to_several_texts_further_down_is_metadata(tmp_path):
    path = tmp_path / "late.csv"
    rows = [f"t{number},text {number},x" for number in range(1_200)]
    path.write_text("\n".join(["ticket_id,query,expected", *rows, "t0,another text,x"]) + "\n")
    assert load(path).queries["q1"].metadata == {"ticket_id": "t0"}


TICKETS = [
    ("INC0012", "The printer on floor two is out of paper", "Printing", "2026-01-02"),
    ("INC0013", "My screen stays black after an update", "Hardware", "2026-01-02"),
    ("INC0014", "I cannot sign in to the wiki", "Access", "2026-01-03"),
    ("INC0015", "A second printer prints blank pages", "Printing", "2026-01-04"),
    ("INC0016", "Please reset the password of my account", "Access", "2026-01-05"),
    ("INC0017", "The keyboard of the laptop is broken", "Hardware", "2026-01-05"),
]


def written(folder, header, rows):
    path = folder / "table.csv"
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("Ticket,Subject,Category,Date", ("Subject", "Category", "Ticket")),
        ("Message,Title,Topic,Request", ("Title", "Topic", "Message")),
        ("Ticket,Betreff,Category,Date", ("Betreff", "Category", "Ticket")),
        ("id,Subject,Request,Queue", None),
    ],
)
def test_a_column_of_codes_is_not_the_query_where_another_holds_sentences(tmp_path, capsys, header, taken):
    path = written(tmp_path, header, TICKETS)
    found = sniff(path)
    if taken is None:  # a date and a column of names are no queries either
        assert str(found).startswith("query = column 'Subject'")
        assert "column 'Request' holds names that repeat" in str(found)
        return
    taken = "query = column {!r}, label = column {!r}, id = column {!r}; column {!r} holds codes".format(*taken, taken[2])
    assert str(found) == taken
    data = load(path)
    assert capsys.readouterr().err.strip() == f"{path}: {taken}"
    assert data.queries["INC0012"].text == TICKETS[0][1]


def test_a_column_named_query_is_the_query_even_if_it_holds_codes(tmp_path):
    path = written(tmp_path, "query,title,category", [row[:3] for row in TICKETS])
    assert (sniff(path).query, sniff(path).label) == ("query", "category")
    path = written(tmp_path, "text,label", [(number, "ab"[number % 2]) for number in range(8)])
    assert sniff(path).query == "text"


def test_unknown_names_are_not_guessed_by_their_values(tmp_path):
    path = written(tmp_path, "Nr,Anfrage,Bereich,Datum", TICKETS)
    assert (sniff(path).query, sniff(path).label) == ("", "")
    with pytest.raises(DataError, match="key 'query' is missing"):
        load(path)


VOCABULARY = ["my", "card", "is", "lost", "please", "send", "a", "new", "one", "where", "can", "I", "pay"]
WORDS = st.lists(st.sampled_from(VOCABULARY), min_size=3, max_size=8, unique=True)


@settings(max_examples=80, deadline=None)
@given(
    texts=st.lists(WORDS.map(" ".join), min_size=8, max_size=20, unique=True),
    text=st.sampled_from(["Subject", "text", "Description", "user message", "Query", "comment", "Title"]),
    label=st.sampled_from(["Category", "intent", "Queue", "Topic", "label"]),
    codes=st.sampled_from(["Ticket", "Request", "ticket-id", "No", "message", "body", "Input", "Customer"]),
    prefix=st.sampled_from(["", "T-", "INC", "2026/"]),
    order=st.permutations(range(4)),
)
def test_the_text_is_the_query_and_the_codes_are_not(texts, text, label, codes, prefix, order, tmp_path_factory):
    rows = [(f"{prefix}{number + 100}", own, "abc"[number % 3] * 3, f"2026-01-{number + 1:02}") for number, own in enumerate(texts)]
    header = ",".join([codes, text, label, "Date"][place] for place in order)
    path = written(tmp_path_factory.mktemp("made"), header, [[row[place] for place in order] for row in rows])
    found = sniff(path)
    assert (found.query, found.label) == (text, label)
    data = load(path)
    assert [query.text for query in data.queries.values()] == texts
