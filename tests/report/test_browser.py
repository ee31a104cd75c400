"""The report as a browser runs it: Chromium without a window, told what to do over its DevTools protocol."""

import json

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Browser

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Difference
from embedfit.evaluation.score import Scores, score_run
from embedfit.report.pages import curve_html, html, ladder_html
from embedfit.report.tables import Report, confusions, per_query
from embedfit.retrieve.run import Run
from embedfit.studies.forecast import Point
from embedfit.studies.forgetting import Forgetting
from embedfit.studies.forgetting import Point as Merge
from embedfit.studies.ladder import Ladder, Rung

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")

LABELS = ("<b>food</b>", "hotel", "taxi", "train", "phone", "</script><script>window.harmed = 1</script>")
QUERIES = 120
FIRST = "document.querySelector('#queries tbody tr')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


def run_of(rank_of):
    """Return a Run of 5 of the 6 documents, with the right one at a rank that depends on the query's number."""
    ranked = np.empty((QUERIES, 5), np.int64)
    for number in range(QUERIES):
        right = number // 6 % 6
        rest = [label for label in range(6) if label != right]
        rest.insert(rank_of(number) - 1, right)
        ranked[number] = rest[:5]
    return Run(tuple(f"q{number}" for number in range(QUERIES)), LABELS, ranked, np.zeros(ranked.shape, np.float32))


@pytest.fixture(scope="module")
def queries():
    # Base: rank 1, 2, not found in turn. Tuned: 1, 3 in turn. Of six: one the same, two fixed, one broken,
    # one worse (2 to 3), one better (none to 3).
    base, tuned = run_of(lambda number: (1, 2, 6)[number % 3]), run_of(lambda number: (1, 3)[number % 2])
    texts = {f"q{number}": f"Number {number} word{number % 7} <img src=x onerror='window.harmed = 1'>" for number in range(QUERIES)}
    qrels = {f"q{number}": {LABELS[number // 6 % 6]: 1} for number in range(QUERIES)}
    data = Dataset({id: Query(id, text) for id, text in texts.items()}, {label: Document(label, label) for label in LABELS}, qrels)
    comparison = compare_scores(score_run(base, qrels, ks=(1, 3)), score_run(tuned, qrels, ks=(1, 3)), metric="mrr@3")
    return comparison, per_query(data, comparison, base, tuned)


@pytest.fixture(scope="module")
def report(queries, tmp_path_factory):
    comparison, frame = queries
    suspects = pd.DataFrame(
        [(f"q{number}", "a query", ["hotel"], "taxi", "mislabel", 0.5) for number in (1, 5, 7)],
        columns=["query_id", "query", "expected", "suggested", "kind", "confidence"],
    )
    points = (Merge(0.0, 0.6, 0.3), Merge(0.5, 0.59, 0.5), Merge(1.0, 0.5, 0.6))
    forgetting = Forgetting(points, comparison, keep=0.9, weight=0.5)
    page = html(Report("A report", comparison, frame, {"Data": "made up"}, suspects=suspects, forgetting=forgetting))
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_the_page_opens_without_a_complaint_and_is_not_wider_than_the_screen(browser, report, width, dark):
    browser.open(report, width=width, dark=dark)
    assert browser.complaints() == []
    assert browser.value("document.documentElement.scrollWidth") == width
    colour = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (colour == "rgb(20, 23, 26)") == dark
    assert browser.count() == ("120 queries, 1 to 25 shown", 25)


def test_the_other_pages_open_without_a_complaint(browser, tmp_path):
    low, high = (Scores(name, ("q",), {"mrr@10": np.array([mean])}, np.array([1])) for name, mean in (("BM25", 0.3), ("tuned", 0.5)))
    below = Difference("mrr@10", 0.3, 0.5, 0.2, 0.1, 0.3, 0.01, 1, 0, 0, 0.1)
    rungs = (Rung("bm25", "BM25", "", low, 0.0, 0.1), Rung("full", "tuned", "a model", high, 20.0, 2.0, below))
    points = [Point(30, 0.4, 0.35, 0.45), Point(300, 0.6, 0.55, 0.65)]
    for page in (
        ladder_html("A ladder", Ladder(rungs, "mrr@10", "full", {}, 1)),
        curve_html("A curve", "More.", points, predictions=[Point(900, 0.7, 0.6, 0.8)]),
    ):
        (tmp_path / "page.html").write_text(page, encoding="utf-8")
        for width in (1280, 390):
            browser.open(tmp_path / "page.html", width=width)
            assert browser.complaints() == []
            assert browser.value("document.documentElement.scrollWidth") == width


def test_a_click_on_a_header_sorts_and_another_turns_the_order(browser, report):
    browser.open(report)
    browser.choose("size", "")
    assert browser.column(4)[:21] == ["broken"] * 20 + ["worse label in doubt"]  # the worst come first, before anything is clicked
    browser.click("#queries th:nth-child(3) button")
    assert browser.value("document.querySelector('[aria-sort]').innerText") == "Rank before"
    assert browser.column(2) == ["1"] * 40 + ["2"] * 40 + ["not found"] * 40
    browser.click("#queries th:nth-child(3) button")
    assert browser.value("document.querySelector('[aria-sort]').getAttribute('aria-sort')") == "descending"
    assert browser.column(2) == ["2"] * 40 + ["1"] * 40 + ["not found"] * 40  # what was not found is last either way
    browser.click("#queries th:nth-child(1) button")
    assert [text.split()[1] for text in browser.column(0)] == [str(number) for number in range(QUERIES)]  # 2 before 10
    assert browser.value("document.querySelectorAll('[aria-sort]').length") == 1


def test_headers_can_be_used_from_the_keyboard(browser, report):
    browser.open(report)
    browser.value("document.querySelector('#queries th:nth-child(4) button').focus()")
    browser.press("Enter", 13)
    assert browser.column(3) == ["1"] * 25
    browser.press("Enter", 13)
    assert browser.column(3) == ["3"] * 25


def test_words_that_are_typed_filter_and_all_must_be_there(browser, report):
    browser.open(report)
    browser.write("WORD3")
    assert browser.count() == ("17 of 120 queries", 17)
    assert all("word3" in text for text in browser.column(0))
    browser.write(" number 10")
    assert {text.split()[1] for text in browser.column(0)} == {"10", "101", "108"}
    browser.write(" nothing says this")
    assert browser.count() == ("0 of 120 queries", 0)
    browser.click("#clear")
    assert browser.count() == ("120 queries, 1 to 25 shown", 25)
    assert browser.value("document.getElementById('words').value") == ""


@pytest.mark.parametrize(
    ("show", "expected"), [("fixed", 40), ("broken", 20), ("better", 60), ("worse", 40), ("same", 20), ("wrong", 40), ("doubt", 3)]
)
def test_each_chip_shows_as_many_queries_as_it_says(browser, report, show, expected):
    browser.open(report)
    browser.choose("size", "")
    browser.click(f"#chips [data-show={show}]")
    assert browser.count() == (f"{expected} of 120 queries", expected)
    assert browser.value(f"document.querySelector('#chips [data-show={show}]').innerText").endswith(f" {expected}")
    assert browser.value("document.querySelector('#chips [aria-pressed=true]').dataset.show") == show
    if show in ("fixed", "broken", "same"):
        assert {text.split()[0] for text in browser.column(4)} == {show}


def test_the_label_and_a_chip_filter_together(browser, report):
    browser.open(report)
    browser.choose("label", "<b>food</b>")
    assert browser.count() == ("24 of 120 queries", 24)
    assert set(browser.column(1)) == {"<b>food</b>"}
    browser.click("#chips [data-show=broken]")
    assert browser.count() == ("4 of 120 queries", 4)


def test_links_in_the_text_show_the_fixed_and_the_broken(browser, report):
    browser.open(report)
    browser.write("word3")
    browser.click("p a[data-show=broken]")
    assert browser.count() == ("20 of 120 queries", 20)  # whatever was typed before is dropped
    browser.click("p a[data-show=fixed]")
    assert browser.count()[0].startswith("40 of 120 queries")


@pytest.mark.parametrize("side", ["base", "tuned"])
def test_a_click_on_a_confusion_shows_its_queries(browser, report, queries, side):
    browser.open(report)
    for number, (expected, found, count) in enumerate(confusions(queries[1], side)[:6]):
        browser.value(f"document.querySelectorAll('a[data-side={side}]')[{number}].click()")
        assert browser.count() == (f"{count} of 120 queries", count)
        assert set(browser.column(1)) == {expected}
        assert set(browser.column({"base": 5, "tuned": 6}[side])) == {found}
        assert browser.value("document.getElementById('pair').innerText") == f"{side}: {expected} taken for {found} \u00d7"
    browser.click("#pair")
    assert browser.count() == ("120 queries, 1 to 25 shown", 25)


def test_pages_follow_each_other_and_hold_every_query_once(browser, report):
    browser.open(report)
    seen = browser.column(0)
    for shown in ("26 to 50", "51 to 75", "76 to 100", "101 to 120"):
        assert not browser.value("document.getElementById('next').disabled")
        browser.click("#next")
        assert shown in browser.count()[0]
        seen += browser.column(0)
    assert browser.value("document.getElementById('next').disabled")
    assert sorted(text.split()[1] for text in seen) == sorted(map(str, range(QUERIES)))
    browser.click("#chips [data-show=fixed]")
    assert "1 to 25" in browser.count()[0]


def test_without_a_script_the_whole_table_is_there_and_no_button_that_does_nothing(browser, report):
    browser.open(report, script=False)
    tree = browser.tell("DOM.getDocument", depth=1)["root"]["nodeId"]
    rows = browser.tell("DOM.querySelectorAll", nodeId=tree, selector="#queries tbody tr")["nodeIds"]
    assert len(rows) == QUERIES
    assert browser.tell("DOM.getBoxModel", nodeId=rows[-1])["model"]["height"] > 0
    controls = browser.tell("DOM.querySelector", nodeId=tree, selector="#controls")["nodeId"]
    with pytest.raises(AssertionError, match="box model"):
        browser.tell("DOM.getBoxModel", nodeId=controls)


def test_nothing_that_data_says_is_run_even_if_it_should_become_markup(browser, report):
    browser.open(report)
    for label in LABELS:
        browser.choose("label", label)
    assert browser.value("document.querySelectorAll('main script, main img').length") == 0
    browser.value("""document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.harmed = 1'>")""")
    browser.value("""document.body.append(Object.assign(document.createElement("script"), {textContent: "window.harmed = 1"}))""")
    assert "Content Security Policy" in json.dumps(browser.complaints())
    assert browser.value("window.harmed") is None


def test_on_paper_the_figures_are_there_and_the_controls_are_not(browser, report):
    browser.open(report, dark=True)
    browser.tell("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert browser.value("document.getElementById('chips').offsetHeight") == 0
    assert browser.value("document.getElementById('count').offsetHeight") > 0
    assert browser.value(f"{FIRST}.offsetHeight") > 0
    assert browser.value("getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 250)"  # dark is for screens
