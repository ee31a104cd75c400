"""The page, as a browser without scripts sees it, and as people use it in Chromium."""

import html
import json
import re
import time

import pytest
from screen import ANSWERED, KEYS, STATUS, type_in, until
from serve_data import TEXTS, searcher, serving

from embedfit.data.load import load
from embedfit.serve.feedback import Feedback
from embedfit.serve.labelling import ItemSource, Labelling


def token(page):
    return re.search(r'name="csrf" value="([0-9a-f]{64})"', page.text)[1]


def posted(client, path, page, **fields):
    return client.post(f"/picker/{path}", data={"csrf": token(page), **fields})


def buttons(page):
    return [html.unescape(value) for value in re.findall(r'name="choice" value="([^"]+)"', page.text)]


def search_of(page):
    return re.findall(r'name="search" value="([^"]+)"', page.text)[-1]


def test_the_page_works_without_its_script(client):
    page = posted(client, "search", client.get("/"), query="zorbing voucher")
    assert set(buttons(page)) == set(TEXTS)
    saved = posted(client, "pick", page, search=search_of(page), choice="constructor")
    assert "Saved: constructor." in saved.text
    page = posted(client, "search", saved, query="zorbing voucher")
    assert buttons(page)[0] == "constructor"
    assert "like “zorbing voucher”" in page.text
    undone = posted(client, "undo", saved, search=search_of(saved))
    assert "Taken back." in undone.text
    assert "like “" not in posted(client, "search", undone, query="zorbing voucher").text
    assert "There was nothing to take back." in posted(client, "undo", saved, search=search_of(saved)).text


def test_documents_are_found_by_their_words(client):
    page = client.get("/")
    assert buttons(posted(client, "find", page, words="cloud STORAGE", search="s")) == ["cloud"]
    assert buttons(posted(client, "find", page, words="", search="s")) == []
    assert "Nothing has all these words." in posted(client, "find", page, words="nowhere").text


def test_what_cannot_be_searched_is_said_in_the_page(client):
    page = posted(client, "search", client.get("/"), query="  ")
    assert page.status_code == 422
    assert "query 1: is empty; expected a text" in page.text


@pytest.mark.parametrize("text", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "javascript:alert(1)"])
def test_no_text_becomes_markup(client, text):
    page = posted(client, "search", client.get("/"), query=text)
    posted(client, "pick", page, search=search_of(page), choice="<b>rent</b>")
    page = posted(client, "search", page, query=text)
    body = page.text.partition("<main")[2].partition("</main>")[0]
    assert "<script" not in body
    assert "<img" not in body
    assert "<b>" not in body
    assert text in {html.unescape(part) for part in re.findall(r"like “(.*?)”", body)}


def test_the_pages_policy_allows_nothing_but_its_own_style_and_script(client):
    first, second = client.get("/"), client.get("/")
    policy = first.headers["content-security-policy"]
    nonce = re.search(r"script-src 'nonce-([^']+)'", policy)[1]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert all(part in policy for part in ("base-uri 'none'", "frame-ancestors 'none'", "form-action 'self'"))
    assert re.findall(r'<(?:script|style)[^>]*nonce="([^"]+)"', first.text) == [nonce, nonce]
    assert nonce not in second.text
    assert not re.search(r'(?:src|href)="?(?:https?:)?//', first.text)
    assert not re.search(r" on\w+=| style=", first.text)


@pytest.mark.parametrize("path", ["search", "pick", "undo", "find", "person"])
def test_a_form_of_another_page_is_refused(client, path):
    page = client.get("/")
    fields = {"search": "s", "choice": "taxi", "query": "x", "words": "x", "person": "x"}
    for csrf in ("", "0" * 64, token(page)[:-1]):
        assert client.post(f"/picker/{path}", data={**fields, "csrf": csrf}).status_code == 403
    # A right token, from a page of another site or another visitor.
    assert (
        client.post(f"/picker/{path}", data={**fields, "csrf": token(page)}, headers={"Origin": "https://evil.example"}).status_code == 403
    )
    client.cookies.clear()
    assert client.post(f"/picker/{path}", data={**fields, "csrf": token(page)}).status_code == 403


def test_with_a_token_the_page_asks_for_it_and_its_cookie_is_out_of_reach(word_encoder, tmp_path):
    secret = "a-secret-of-this-server"
    with serving(searcher(word_encoder), tmp_path, token=secret) as client:
        page = client.get("/", headers={"Accept": "text/html"}, follow_redirects=True)
        assert page.url.path == "/login"
        assert "words" not in page.text.partition("<main>")[2]
        wrong = client.post("/login", data={"csrf": token(page), "token": "another"})
        assert (wrong.status_code, "This is not the token." in wrong.text) == (401, True)
        entered = client.post("/login", data={"csrf": token(page), "token": secret})
        cookie = entered.headers["set-cookie"]
        assert entered.status_code == 303
        assert secret not in cookie
        assert all(part in cookie.lower() for part in ("httponly", "samesite=strict"))
        assert "What is it?" in client.get("/").text
        client.cookies.set("embedfit_session", "0" * 64)
        assert client.get("/").status_code == 401


def test_a_name_is_kept_with_the_picks(client, tmp_path):
    page = client.get("/")
    posted(client, "person", page, person="Ann <b>Lee\x1b")
    page = client.get("/")
    assert "Ann &lt;b&gt;Lee" in page.text
    page = posted(client, "search", page, query="uber")
    posted(client, "pick", page, search=search_of(page), choice="taxi")
    feedback = Feedback(tmp_path / "feedback.db")
    assert [row["person"] for row in feedback.rows()] == ["Ann <b>Lee"]
    feedback.close()


def labelled(path):
    return {json.loads(line)["query"]: json.loads(line)["expected"] for line in path.read_text().splitlines()}


def test_items_come_once_each_and_are_still_done_after_a_restart(word_encoder, tmp_path):
    items = ["uber", "dinner", "uber ", "servers", "desk"]
    output = tmp_path / "labels.jsonl"
    answers = {"uber": "taxi", "dinner": "food", "servers": "cloud", "desk": ""}
    seen = []
    for _ in range(2):  # the server is started anew half way
        with serving(searcher(word_encoder), tmp_path, Labelling("items", items, output)) as client:
            page = client.get("/")
            for _ in range(2):
                text = html.unescape(re.search(r'class="item"[^>]*>(.*?)</div>', page.text)[1]).strip()
                seen.append(text)
                page = posted(client, "pick", page, search=search_of(page), choice=answers[text], item=item_of(page))
    assert sorted(seen) == sorted(answers)
    assert "All items are labelled" in page.text
    assert "4 of 4 labelled" in page.text
    assert labelled(output) == {"uber": "taxi", "dinner": "food", "servers": "cloud"}
    assert set(load(output).qrels) == set(load(output).queries)


def item_of(page):
    return re.findall(r'name="item" value="(\d+)"', page.text)[-1]  # that of a pick before comes first


def test_as_many_answers_as_wanted_are_shown_and_nine_for_more(word_encoder, tmp_path):
    texts = {f"kind {number}": f"uber number{number}" for number in range(12)}
    with serving(searcher(word_encoder, texts), tmp_path, answers=7) as client:
        page = posted(client, "search", client.get("/"), query="uber")
        assert len(buttons(page)) == 7
        more = posted(client, "more", page, query="uber")
        assert buttons(more)[:7] == buttons(page)
        assert len(buttons(more)) == 9
        assert 'action="/picker/more"' in page.text
        assert 'action="/picker/more"' not in more.text  # there are no more keys
        assert search_of(more) != search_of(page)
        posted(client, "pick", more, search=search_of(more), choice=buttons(more)[8])
        assert posted(client, "more", page, query=" ").status_code == 422
    feedback = Feedback(tmp_path / "feedback.db")
    assert [(row["place"], len(json.loads(row["shown"]))) for row in feedback.rows()] == [(9, 9)]
    feedback.close()
    with serving(searcher(word_encoder, texts), tmp_path, Labelling("items", ["uber", "other"], tmp_path / "l.jsonl")) as client:
        page = client.get("/")
        more = posted(client, "more", page, item=item_of(page))
        assert (item_of(more), len(buttons(page)), len(buttons(more))) == (item_of(page), 5, 9)
        for number in ("", "7", "-1", "\u0663", "1" * 5000):  # of no item: the next one
            assert item_of(posted(client, "more", page, item=number)) == item_of(page)
            for path, fields in (("pick", {"skip": "1"}), ("undo", {"search": "none"})):
                assert posted(client, path, page, item=number, **fields).status_code == 200


def test_skipped_items_come_last_and_undone_ones_next(word_encoder, tmp_path):
    with serving(searcher(word_encoder), tmp_path, Labelling("items", ["uber", "dinner"], tmp_path / "l.jsonl")) as client:
        first = client.get("/")
        second = posted(client, "pick", first, skip="1", item=item_of(first))
        assert item_of(second) != item_of(first)
        third = posted(client, "pick", second, search=search_of(second), choice="taxi", item=item_of(second))
        assert item_of(third) == item_of(first)
        undone = posted(client, "undo", third, search=search_of(second), item=item_of(second))
        assert item_of(undone) == item_of(second)
        assert "0 of 2 labelled" in undone.text
        assert client.post("/picker/pick", data={"csrf": token(undone), "skip": "1", "item": "99"}).status_code == 200


def test_two_people_are_shown_other_items_and_with_two_labels_each_item_comes_twice(word_encoder, tmp_path):
    with serving(searcher(word_encoder), tmp_path, Labelling("items", ["uber", "dinner"], tmp_path / "l.jsonl", people=2)) as client:
        pages = {}
        for name in ("Ann", "Bob"):
            client.cookies.set("embedfit_person", name)
            pages[name] = client.get("/")
        assert item_of(pages["Ann"]) != item_of(pages["Bob"])
        for name in ("Ann", "Bob"):
            client.cookies.set("embedfit_person", name)
            page = client.get("/")
            for _ in range(2):
                page = posted(client, "pick", page, search=search_of(page), choice="taxi" if name == "Ann" else "food", item=item_of(page))
        assert "2 of 2 labelled" in page.text
    assert not (tmp_path / "l.jsonl").exists()  # they disagree on both


def test_items_of_every_format_are_read_and_a_missing_column_is_named(tiny_model, tmp_path, said, capsys):
    (tmp_path / "items.csv").write_text("when,text\n1,uber\n2,dinner\n")
    (tmp_path / "docs.jsonl").write_text('{"id": "taxi", "text": "rides"}\n')
    source = ItemSource(tmp_path / "items.csv", None, tmp_path / "docs.jsonl", str(tiny_model), "{text}", None)
    queries, chosen = source.read()
    assert queries == ["uber", "dinner"]
    assert list(chosen.documents) == ["taxi"]
    capsys.readouterr()  # of a slow machine: a progress bar
    arguments = ("label", tmp_path / "items.csv", "--documents", tmp_path / "docs.jsonl", "--port", 0)
    assert said(*arguments, "--column", "texts")[2] == (
        f"Labels go to {tmp_path / 'items.csv.labels.jsonl'}\nembedfit: {tmp_path / 'items.csv'}: has the columns when, text; "
        "did you mean 'text'?; fix: --column NAME, the column of the text\n"
    )
    assert said("label", tmp_path / "items.csv")[0] == 2


def test_a_pick_is_made_taken_back_and_searched_for_by_keys_alone(browser, client):
    browser.open(str(client.base_url))
    type_in(browser, "zorbing voucher")
    browser.press("Enter", 13)
    until(browser, ANSWERED)
    first = browser.value("document.querySelector('.id').textContent")
    browser.press("1", 49)
    until(browser, f"{STATUS} === 'Saved: {first}.'")
    browser.press("Escape", 27)
    browser.press("u", 85)
    until(browser, f"{STATUS} === 'Taken back.'")
    type_in(browser, "zorbing voucher")
    browser.press("Enter", 13)
    until(browser, ANSWERED)
    browser.press("/", 191)
    type_in(browser, "licence", "words")
    until(browser, "document.querySelectorAll('#found button').length === 1")
    browser.value("document.querySelector('#found button').focus()")
    browser.press("Enter", 13)
    until(browser, f"{STATUS} === 'Saved: constructor.'")
    assert browser.complaints() == []


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (640, False), (390, False)])
def test_the_page_is_not_wider_than_the_screen_and_no_text_runs_in_it(browser, word_encoder, tmp_path, width, dark):
    long = {"W" * 300: "uber <img src=x onerror='window.harmed = 1'>", "word " * 60: "taxi uber"}
    with serving(searcher(word_encoder, long), tmp_path) as client:
        browser.open(str(client.base_url), width=width, dark=dark)
        type_in(browser, "uber <img src=x onerror='window.harmed = 1'>")
        browser.press("Enter", 13)
        until(browser, ANSWERED)
        assert browser.value("document.documentElement.scrollWidth") == width
        assert browser.value("window.harmed") is None
        sizes = browser.value("[...document.querySelectorAll('button')].map((button) => button.getBoundingClientRect().height)")
        assert min(sizes) >= 44
        assert browser.complaints() == []


def test_a_pick_that_cannot_be_saved_is_said_and_stays_on_the_page(browser, word_encoder, tmp_path):
    with serving(searcher(word_encoder), tmp_path) as client:
        browser.open(str(client.base_url))
        type_in(browser, "uber")
        browser.press("Enter", 13)
        until(browser, ANSWERED)
    browser.press("1", 49)  # the server is gone
    until(browser, "document.getElementById('alert').textContent.startsWith('Not saved: ')")
    assert browser.value(ANSWERED)


NEXT = """new Promise((shown) => {
    const look = () => {
        if (!document.querySelector(".progress p").textContent.startsWith("%d of 100")) return setTimeout(look, 2);
        const names = [...document.querySelectorAll("section .answers .id")].map((name) => name.textContent);
        shown([document.getElementById("item")?.textContent.trim(), names]);
    };
    look();
})"""


def test_a_hundred_items_are_labelled_by_keys_in_seconds_and_a_reload_loses_none(browser, word_encoder, tmp_path):
    kinds = {"taxi": "uber train", "food": "dinner coffee", "cloud": "servers storage"}
    items = [f"{words} number{number}" for number, words in enumerate(list(kinds.values()) * 34)][:100]
    output = tmp_path / "labels.jsonl"
    with serving(searcher(word_encoder), tmp_path, Labelling("items", items, output)) as client:
        browser.open(str(client.base_url))
        start = time.monotonic()
        for done in range(100):
            text, names = browser.value(NEXT % done)
            if done == 50:
                browser.open(str(client.base_url))
                text, names = browser.value(NEXT % done)
            right = next(id for id, words in kinds.items() if text.startswith(words))
            key = str(names.index(right) + 1)
            browser.press(key, KEYS[key])
        browser.value(NEXT % 100)
        assert time.monotonic() - start < 30  # 6 s with five other processes on two cores
        assert browser.value("document.querySelector('main').textContent.includes('All items are labelled')")
        assert "right for 50 of the last 50" in browser.value("document.querySelector('.progress p').textContent")
    assert labelled(output) == {text: next(id for id, words in kinds.items() if text.startswith(words)) for text in items}
