import json
import sqlite3
import subprocess
import sys
import threading

import pytest

from embedfit.config import make_config
from embedfit.data.load import load
from embedfit.errors import DataError, StorageError
from embedfit.serve.feedback import Feedback, Search, new_id, one_line
from embedfit.serve.places import read_picks
from embedfit.serve.summary import summarise, write_labels

SHOWN = [{"id": "taxi", "score": 0.9, "probability": 0.8, "because": []}, {"id": "food", "score": 0.5, "probability": 0.1, "because": []}]


@pytest.fixture(params=["sqlite", "postgresql"])
def location(request, tmp_path):
    """Where feedback is kept: an SQLite file, and a real PostgreSQL."""
    return tmp_path / "feedback.db" if request.param == "sqlite" else request.getfixturevalue("postgres")()


@pytest.fixture
def store(location):
    store = Feedback(location)
    yield store
    store.close()


@pytest.fixture
def file_store(tmp_path):
    store = Feedback(tmp_path / "feedback.db")
    yield store
    store.close()


def asked(store, query, *, person="", order_probability=1.0, abstained=False):
    search = Search(new_id(), query, None, person, "api", "model", SHOWN, order_probability, abstained)
    store.record([search])
    return search.id


def learned(store):
    return {text: document for _, text, document in store.examples()[1] if document is not None}


def test_the_same_pick_again_changes_nothing_and_another_one_by_the_same_person_replaces_it(store):
    id = asked(store, "uber")
    assert vars(store.pick(id, "taxi")) == {"repeated": False, "replaced": False, "learned": True, "conflict": False}
    assert vars(store.pick(id, "taxi")) == {"repeated": True, "replaced": False, "learned": True, "conflict": False}
    assert vars(store.pick(id, "food")) == {"repeated": False, "replaced": True, "learned": True, "conflict": False}
    [row] = store.rows()
    assert (row["choice"], row["place"], row["query"], row["order_probability"]) == ("food", 2, "uber", 1.0)
    assert learned(store) == {"uber": "food"}


def test_a_search_that_nobody_made_cannot_be_picked_for(store):
    with pytest.raises(DataError, match="search_id: is unknown"):
        store.pick("nobody", "taxi")


def test_picks_that_conflict_are_held_back_until_one_is_taken_back(store):
    first, second = asked(store, "uber"), asked(store, " uber\n")
    store.pick(first, "taxi", person="Ann")
    assert vars(store.pick(second, "food", person="Bob")) == {"repeated": False, "replaced": False, "learned": False, "conflict": True}
    assert learned(store) == {}
    [conflict] = summarise(store).conflicts
    assert (conflict.query, conflict.choices, conflict.searches) == ("uber", {"taxi": 1, "food": 1}, (first, second))
    assert store.undo(second, "Bob")
    assert learned(store) == {"uber": "taxi"}
    assert not store.undo(second, "Bob")


def test_none_of_these_is_kept_and_is_no_example(store):
    store.pick(asked(store, "uber"), None)
    assert learned(store) == {}
    store.pick(asked(store, "uber"), "taxi", person="Bob")
    assert len(summarise(store).conflicts) == 1


def test_a_click_is_no_label(store):
    assert not store.pick(asked(store, "uber"), "taxi", kind="click").learned
    summary = summarise(store)
    assert (summary.clicks, summary.picks, summary.labels) == (1, 0, 0)


@pytest.mark.parametrize(
    ("agreement", "picks", "expected"),
    [
        ("once", [("a", "Ann")], True),
        ("twice", [("a", "Ann")], False),
        ("twice", [("a", "Ann"), ("b", "Ann")], True),
        ("twice", [("a", "Ann"), ("a", "Bob")], False),
        ("second-person", [("a", "Ann"), ("b", "Ann")], False),
        ("second-person", [("a", "Ann"), ("b", "Bob")], True),
    ],
)
def test_when_a_pick_becomes_an_example(location, agreement, picks, expected):
    store = Feedback(location, agreement)
    ids = {name: asked(store, "uber") for name in "ab"}
    for name, person in picks:
        stored = store.pick(ids[name], "taxi", person=person)
    assert stored.learned is expected
    assert bool(learned(store)) is expected
    store.close()


def test_readers_learn_of_what_was_taken_back(store):
    id = asked(store, "uber")
    store.pick(id, "taxi")
    number, changes = store.examples()
    assert [change[1:] for change in changes] == [("uber", "taxi")]
    store.undo(id)
    later, changes = store.examples(number)
    assert later > number
    assert [change[1:] for change in changes] == [("", None)]
    assert store.examples(later) == (later, [])


def test_what_is_deleted_is_gone(store):
    mine = asked(store, "a very private taxi", person="Ann")
    theirs = asked(store, "a public taxi", person="Bob")
    store.pick(mine, "taxi", person="Bob")
    store.pick(theirs, "taxi", person="Ann")
    assert store.delete(person="Ann") == 3
    assert list(store.rows()) == []
    assert learned(store) == {}
    assert len(store.asked()) == 1
    assert store.delete(search=theirs) == 1
    assert store.asked() == []


def test_what_is_deleted_is_nowhere_in_the_files(file_store):
    store = file_store
    mine = asked(store, "a very private taxi", person="Ann")
    theirs = asked(store, "a public taxi", person="Bob")
    store.pick(mine, "taxi", person="Bob")
    store.pick(theirs, "taxi", person="Ann")
    assert store.delete(person="Ann") == 3
    assert [(row["query"], row["person"]) for row in store.rows()] == []
    assert learned(store) == {}
    assert store.delete(search=theirs) == 1
    for path in store.database.path.parent.iterdir():
        content = path.read_bytes()
        assert b"private" not in content, path.name
        assert b"public" not in content, path.name
        assert b"Ann" not in content, path.name


def test_old_searches_without_a_pick_are_forgotten(store):
    kept = asked(store, "uber")
    store.pick(kept, "taxi")
    asked(store, "dinner")
    assert store.forget_unpicked(1) == 0
    assert store.forget_unpicked(-1) == 1
    assert [row["search"] for row in store.rows()] == [kept]


def test_a_file_of_another_program_is_left_alone(tmp_path):
    with sqlite3.connect(tmp_path / "other.db") as database:
        database.execute("CREATE TABLE recipes (name)")
    with pytest.raises(StorageError, match="is a database of another program"):
        Feedback(tmp_path / "other.db")
    (tmp_path / "text.db").write_text("not a database, and longer than a header of SQLite has to be, so that it is read as one")
    with pytest.raises(StorageError, match="cannot be opened"):
        Feedback(tmp_path / "text.db")


WRITER = """
import sys
from embedfit.serve.feedback import Feedback, Search, new_id
store = Feedback(sys.argv[1])
for number in range(10_000):
    search = Search(new_id(), f"text {sys.argv[2]} {number}", None, sys.argv[2], "api", "model", [])
    store.record([search])
    store.pick(search.id, "taxi", person=sys.argv[2])
    print(search.id, flush=True)
"""


def test_no_accepted_pick_is_lost_when_writers_are_killed(store, location):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(location), name], stdout=subprocess.PIPE, text=True) for name in ("Ann", "Bob")
    ]
    accepted = []
    for writer in writers:
        accepted += [writer.stdout.readline().strip() for _ in range(20)]
    for writer in writers:
        writer.kill()
    for writer in writers:
        accepted += writer.stdout.read().split()
        writer.wait()
    rows = [row["search"] for row in store.rows()]
    assert len(rows) == len(set(rows))
    assert set(accepted) <= set(rows)
    assert len(accepted) >= 40


def test_threads_may_write_at_once(store):
    ids = [asked(store, f"text {number}") for number in range(20)]
    threads = [threading.Thread(target=store.pick, args=(id, "taxi")) for id in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {row["search"] for row in store.rows()} == set(ids)


def test_the_summary_counts_agreement_and_places_worked_out_by_hand(store):
    for query, choices in {"one": ("taxi", "taxi", "food"), "two": ("food",), "three": (None,)}.items():
        for person, choice in enumerate(choices):
            store.pick(asked(store, query), choice, person=str(person))
    asked(store, "four", abstained=True)
    shuffled = asked(store, "five", order_probability=0.5)
    store.pick(shuffled, "food")
    summary = summarise(store)
    assert (summary.searches, summary.picks, summary.none, summary.people, summary.labels) == (7, 6, 1, 4, 2)
    assert (summary.twice, summary.agreement) == (3, pytest.approx(1 / 3))
    assert summary.documents == {"food": 2}
    [week] = summary.weeks
    assert week.abstained == pytest.approx(1 / 7)
    assert week.probability == pytest.approx(0.8)
    assert week.first == pytest.approx(2 / 5)  # the shuffled order does not count
    assert week.rank == pytest.approx((1 + 1 + 1 / 2 + 1 / 2 + 0) / 5)


def test_the_labels_are_a_data_set_that_is_read_as_any_other(store, tmp_path):
    with pytest.raises(DataError, match="has no labels yet"):
        write_labels(store, tmp_path / "labels.jsonl")
    for query, choices in {"uber\nride": ("taxi", "taxi"), "dinner": ("food",), "odd": ("taxi", "food"), "none": (None,)}.items():
        for person, choice in enumerate(choices):
            store.pick(asked(store, query), choice, person=str(person))
    assert write_labels(store, tmp_path / "labels.jsonl") == 2
    dataset = load(tmp_path / "labels.jsonl")
    answers = {query.text: list(dataset.qrels[id]) for id, query in dataset.queries.items()}
    assert answers == {"uber\nride": ["taxi"], "dinner": ["food"]}


def test_the_picks_of_all_runs_of_a_configuration_are_read_once_each(store, location, tmp_path, said):
    config = make_config({"name": "x", "output": str(tmp_path), "data": {"queries": "q"}})
    for folder, query in {"x-0123456789": "uber", "x-live": "dinner", "x-other-0123456789": "of another"}.items():
        (tmp_path / folder).mkdir()
        kept = Feedback(tmp_path / folder / "feedback.db")
        search = Search(new_id(), query, {"a": 1} if query == "dinner" else None, "", "api", "model", SHOWN)
        kept.record([search])
        kept.pick(search.id, "taxi")
        kept.close()
    store.pick(asked(store, "train"), "taxi")
    picks = read_picks(["feedback", str(location), str(tmp_path / "x-live"), str(tmp_path / "x-live")], config)
    assert [(pick.text, pick.document, pick.record) for pick in picks] == [
        ("uber", "taxi", None),
        ("dinner", "taxi", {"a": 1}),
        ("train", "taxi", None),
    ]
    with pytest.raises(DataError, match="does not exist; expected the feedback that 'embedfit serve' keeps"):
        read_picks([str(tmp_path / "nowhere")], config)
    with pytest.raises(DataError, match="holds no run with feedback"):
        read_picks(["feedback"], make_config({"name": "y", "output": str(tmp_path), "data": {"queries": "q"}}))
    (tmp_path / "q.csv").write_text("query,expected\nride,taxi\nlunch,food\n")
    Feedback(tmp_path / "none.db").close()
    code, _, err = said("run", tmp_path / "q.csv", "--add", tmp_path / "none.db")
    assert (code, err) == (
        2,
        "embedfit: feedback: has no labels yet; fix: pick in the page of 'embedfit serve', or send /feedback\n",
    )


def test_the_command_shows_exports_and_deletes(file_store, said):
    store, run = file_store, file_store.database.path.parent
    id = asked(store, "uber", person="Ann")
    store.pick(id, "taxi", person="Ann")
    store.pick(asked(store, "uber"), "food", person="Bob")
    code, out, _ = said("feedback", run)
    assert code == 0
    assert "Searches: 2. Picks: 2. People: 2. Labelled texts: 0." in out
    assert "uber" in out
    assert "taxi (1), food (1)" in out
    assert json.loads(said("feedback", run, "--json")[1])["agreement"] == 0
    assert said("feedback", run, "--forget", "Bob")[1] == "Searches and picks deleted: 1\n"
    assert said("feedback", run, "--output", run / "labels.jsonl")[1] == f"Labels written to {run / 'labels.jsonl'}: 1\n"
    assert said("feedback", run, "--delete", id)[1] == "Searches and picks deleted: 2\n"
    code, _, err = said("feedback", run, "--delete", id, "--forget", "Ann")
    assert (code, err) == (2, "embedfit: --output, --delete and --forget are three things to do; fix: give one of them\n")
    code, _, err = said("feedback", run / "nothing")
    assert code == 2
    assert "does not exist; expected the feedback that 'embedfit serve' keeps" in err


def test_names_of_people_are_one_line():
    assert one_line("  Ann\x1b[31m\n Lee " + "x" * 200)[:12] == "Ann [31m Lee"
    assert len(one_line("x" * 200)) == 100
