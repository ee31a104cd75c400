"""Every page in Chromium: light, dark, on a phone and at 200% zoom, with long labels, many documents, none, and an error."""

import pytest
from screen import ANSWERED, KEYS, STATUS, type_in, until
from serve_data import searcher, serving

from embedfit.serve.labelling import Labelling
from embedfit.serve.pages import beyond, brief, fields_of, percent

RECORD = "Name: Nobu\nMemo: dinner for two\nAmount: 12"
LONG = {
    "W" * 300: "uber train",
    "a label of many words " * 14: "taxi uber",
    **{f"Category {number}": f"kind {number}" for number in range(1000)},
}


def ask(browser, text):
    type_in(browser, text)
    browser.press("Enter", 13)
    until(browser, ANSWERED)


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (640, False), (390, False), (390, True)])
def test_every_step_of_a_pick_is_without_violations(browser, client, sound, width, dark):
    browser.open(str(client.base_url), width=width, dark=dark)
    sound()
    ask(browser, RECORD)
    browser.press("/", 191)
    type_in(browser, "coffee", "words")
    until(browser, "document.querySelectorAll('#found button').length === 1")
    sound()
    browser.press("Escape", 27)
    browser.press("1", 49)
    until(browser, f"{STATUS}.startsWith('Saved')")
    sound()


def test_long_labels_and_a_thousand_documents(browser, word_encoder, tmp_path, sound):
    with serving(searcher(word_encoder, LONG), tmp_path) as client:
        for width in (1280, 390):
            browser.open(str(client.base_url), width=width)
            ask(browser, "uber")
            browser.press("/", 191)
            type_in(browser, "category", "words")
            until(browser, "document.querySelectorAll('#found button').length === 30")
            assert "These are the first 30." in browser.value("document.getElementById('found').textContent")
            sound()
            browser.press("Escape", 27)
            browser.press("m", KEYS["m"])
            until(browser, "document.querySelectorAll('section .answers button').length === 9")
            assert browser.value("document.activeElement.id") == "answers"
            sound()
            ninth = browser.value("[...document.querySelectorAll('section .answers .id')][8].textContent")
            browser.press("9", KEYS["9"])
            until(browser, f"{STATUS} === 'Saved: {ninth}.'")


def test_a_page_without_documents_an_unknown_page_a_bad_form_and_the_login(browser, word_encoder, tmp_path, sound):
    with serving(searcher(word_encoder, {}), tmp_path) as client:
        browser.open(str(client.base_url))
        assert "There are no documents to choose from." in browser.value("document.body.innerText")
        sound()
        browser.open(f"{client.base_url}/nowhere")
        assert "There is no such page." in browser.value("document.querySelector('[role=alert].problem').textContent")
        sound()
        answer = client.post("/picker/search", data={"csrf": "0"}, headers={"Accept": "text/html"})
        assert answer.status_code == 403
        assert "the form is not of this page, or too old; reload the page" in answer.text
        assert client.post("/picker/search", data={"csrf": "0"}).json()["error"]["code"] == "wrong_form"
    with serving(searcher(word_encoder), tmp_path, token="a-secret-of-this-server") as client:
        browser.open(f"{client.base_url}/login")
        sound()


@pytest.mark.parametrize("width", [1280, 390])
def test_an_item_is_shown_with_its_fields_and_can_be_scrolled_by_keys(browser, word_encoder, tmp_path, sound, width):
    record = "\n".join(f"Field {number}: value {number}" for number in range(40))
    with serving(searcher(word_encoder), tmp_path, Labelling("items", [record, RECORD], tmp_path / "l.jsonl")) as client:
        browser.open(str(client.base_url), width=width)
        until(browser, "document.activeElement.id === 'item'")
        sound()
        browser.press("s", 83)
        until(browser, f"{STATUS} === 'Skipped.'")
        until(browser, "document.activeElement.id === 'item'")
        seen = browser.value("[...document.querySelectorAll('#item dt')].map((name) => name.textContent).join()")
        assert seen in ("Name,Memo,Amount", ",".join(f"Field {number}" for number in range(40)))
        sound()


def test_texts_are_shown_so_that_they_are_read_at_a_glance():
    assert fields_of(RECORD) == [("Name", "Nobu"), ("Memo", "dinner for two"), ("Amount", "12")]
    assert [fields_of(text) for text in ("one: line", "a: b\nno field", "", "http://x\nhttp://y", ": x\n: y")] == [[]] * 5
    assert brief(RECORD) == "Nobu · dinner for two · 12"
    assert brief(" two\n lines ") == "two lines"
    assert beyond("Taxi: rides \n and trains", "taxi") == "rides and trains"
    assert beyond("taxi", "taxi") == ""
    assert beyond("rides", "taxi") == "rides"
    assert [percent(value) for value in (0, 0.0049, 0.006, 0.5, 0.994, 0.9951, 1)] == ["< 1%", "< 1%", "1%", "50%", "99%", "> 99%", "> 99%"]
