"""The page of doubtful labels: what it writes is what `embedfit relabel` reads."""

import re

import pandas as pd
import pytest
from screen import STATUS, until
from serve_data import documents, searcher, serving
from test_picker import token

from embedfit.data.dataset import Dataset, Query
from embedfit.studies.suspects import read_decisions, relabelled, write_suspects

QUERIES = {"q1": "uber <b>ride</b>", "=q2": "Name: Nobu\nMemo: <img src=x onerror=alert(1)>", "q3": "desk"}


@pytest.fixture
def file(tmp_path):
    rows = [
        ("q1", QUERIES["q1"], ["food", "cloud"], "taxi", "mislabel", 0.91),
        ("=q2", QUERIES["=q2"], ["<b>rent</b>"], "food", "mislabel", 0.8),
        ("q3", QUERIES["q3"], ["taxi"], "<b>rent</b>", "also right", 0.6),
    ]
    columns = ["query_id", "query", "expected", "suggested", "kind", "confidence"]
    return write_suspects(pd.DataFrame(rows, columns=columns), tmp_path / "suspects.csv")


@pytest.fixture
def client(word_encoder, tmp_path, file):
    with serving(searcher(word_encoder), tmp_path, suspects=str(file)) as client:
        yield client


def decided(client, page, decision):
    answer = client.post("/suspects/decide", data={"csrf": token(page), "id": id_of(page), "decision": decision})
    assert answer.status_code == 200, answer.text
    return answer


def id_of(page):
    return re.findall(r'name="id" value="([^"]+)"', page.text)[-1].replace("&#39;", "'")


def decisions(file):
    return [row["decision"] for row in read_decisions(file)]


def test_each_decision_is_in_the_file_at_once_and_relabel_reads_it(client, file):
    page = client.get("/suspects")
    assert "uber &lt;b&gt;ride&lt;/b&gt;" in page.text
    assert "restaurant dinner coffee" in page.text  # the texts of both documents stand beside their ids
    page = decided(client, page, "replace")
    assert decisions(file) == ["replace", "", ""]
    page = decided(client, page, "skip")
    assert decisions(file) == ["replace", "", ""]
    assert "<dt>" not in page.text  # the third, not the second
    page = decided(client, page, "add")
    assert id_of(page) == "'=q2"
    assert "<dd>&lt;img src=x onerror=alert(1)&gt;</dd>" in page.text
    assert "<img" not in page.text
    page = decided(client, page, "keep")
    assert decisions(file) == ["replace", "keep", "add"]
    assert "Every doubtful label is decided" in page.text
    qrels = {"q1": {"food": 1, "cloud": 1}, "=q2": {"<b>rent</b>": 1}, "q3": {"taxi": 1}}
    data = Dataset({id: Query(id, text) for id, text in QUERIES.items()}, documents().corpus, qrels)
    corrected, _ = relabelled(data, file)
    assert corrected.qrels == {"q1": {"taxi": 1}, "=q2": {"<b>rent</b>": 1, "food": 0}, "q3": {"taxi": 1, "<b>rent</b>": 1}}


def test_a_decision_is_taken_back_unless_it_has_changed_since(client, file):
    made = decided(client, client.get("/suspects"), "replace")
    undo = {"csrf": token(made), "id": "q1", "decision": "replace"}
    undone = client.post("/suspects/undo", data=undo)
    assert decisions(file) == ["", "", ""]
    assert id_of(undone) == "q1"
    decided(client, undone, "keep")
    assert "The decision has changed since, and stays." in client.post("/suspects/undo", data=undo).text
    late = client.post("/suspects/decide", data={"csrf": token(made), "id": "q1", "decision": "add"})
    assert "Somebody else has decided this one." in late.text
    assert decisions(file) == ["keep", "", ""]


def test_a_foreign_form_a_made_up_decision_and_a_broken_file_are_refused(client, file):
    page = client.get("/suspects")
    for path in ("decide", "undo"):
        assert client.post(f"/suspects/{path}", data={"id": "q1", "decision": "keep", "csrf": "0" * 64}).status_code == 403
    assert client.post("/suspects/decide", data={"csrf": token(page), "id": "q1", "decision": "=1+1"}).status_code == 422
    assert decisions(file) == ["", "", ""]
    file.write_text("query_id,query\n")
    broken = client.get("/suspects", headers={"Accept": "text/html"})
    assert (broken.status_code, "has no columns query_id, suggested, decision" in broken.text) == (409, True)


def test_the_page_is_a_tab_only_if_there_is_something_to_decide(client, word_encoder, tmp_path):
    assert '<a href="/suspects">Doubtful labels</a>' in client.get("/").text
    assert '<a href="/suspects" aria-current="page">' in client.get("/suspects").text
    (tmp_path / "none").mkdir()
    empty = tmp_path / "none" / "suspects.csv"
    empty.write_text("query_id,suggested,decision\n")
    with serving(searcher(word_encoder), tmp_path / "none", suspects=str(empty)) as other:
        assert "<nav" not in other.get("/").text


def test_all_is_decided_by_keys_without_violations(browser, client, file, sound):
    for width, dark in ((1280, False), (390, True)):
        browser.open(f"{client.base_url}/suspects", width=width, dark=dark)
        sound()
    for key, code, said in (("r", 82, "The suggestion replaces the label."), ("u", 85, "Taken back."), ("k", 75, "The label stays.")):
        browser.press(key, code)
        until(browser, f"{STATUS} === '{said}'")
    sound()
    for key, code, said in (("s", 83, "Skipped."), ("a", 65, "Both are right."), ("r", 82, "The suggestion replaces the label.")):
        browser.press(key, code)
        until(browser, f"{STATUS} === '{said}'")
    assert decisions(file) == ["keep", "replace", "add"]
    sound()
    assert browser.complaints() == []
