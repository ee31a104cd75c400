import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from embedfit.compare import compare_scores
from embedfit.data import Dataset, Document, Query
from embedfit.report import Report, confusions, html, per_query, shown_differences, terminal_table
from embedfit.retrieve import Run
from embedfit.score import score_run

HOSTILE = """<script>alert(1)</script> "double" 'single' & {{ 7 * 7 }} <img src=x onerror=alert(2)>"""
DOCUMENTS = ("<b>food</b>", "hotel", "taxi")

# First found by base and tuned, and what is right: food is fixed, taxi broken, the rest the same.
RANKINGS = {
    "q1": (("hotel", "<b>food</b>", "taxi"), ("<b>food</b>", "hotel", "taxi"), "<b>food</b>"),
    "q2": (("taxi", "hotel", "<b>food</b>"), ("hotel", "<b>food</b>", "taxi"), "taxi"),
    "q3": (("hotel", "taxi", "<b>food</b>"), ("hotel", "taxi", "<b>food</b>"), "taxi"),
    "q4": (("hotel", "taxi", "<b>food</b>"), ("hotel", "taxi", "<b>food</b>"), "hotel"),
}


def run_of(side):
    ranked = np.array([[DOCUMENTS.index(id) for id in rankings[side]] for rankings in RANKINGS.values()])
    return Run(tuple(RANKINGS), DOCUMENTS, ranked, np.zeros(ranked.shape, np.float32))


@pytest.fixture(scope="module")
def data():
    queries = {id: Query(id, f"{HOSTILE} {id}") for id in RANKINGS}
    qrels = {id: {right: 1} for id, (_, _, right) in RANKINGS.items()}
    return Dataset(queries, {id: Document(id, id) for id in DOCUMENTS}, qrels)


@pytest.fixture(scope="module")
def comparison(data):
    base, tuned = (score_run(run_of(side), data.qrels, ks=(1, 2, 3), name=f"{name} {HOSTILE}") for side, name in enumerate(("old", "new")))
    return compare_scores(base, tuned, metric="mrr@3")


@pytest.fixture(scope="module")
def queries(data, comparison):
    return per_query(data, comparison, run_of(0), run_of(1))


@pytest.fixture(scope="module")
def page(comparison, queries):
    history = ({"epoch": 1, "loss": 1.25, "mrr@10": 0.5, "recall@1": 0.25},)
    return html(Report(HOSTILE, comparison, queries, {HOSTILE: HOSTILE}, notes=(HOSTILE,), history=history))


class Elements(HTMLParser):
    """Collects (tag, attributes) and all text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        self.text += text


def test_per_query_says_what_was_expected_and_found(queries):
    row = queries.set_index("query_id").loc["q1"]
    assert (row.base_rank, row.tuned_rank) == (2, 1)
    assert row.expected == ["<b>food</b>"]
    assert row.base_found == ["hotel", "<b>food</b>", "taxi"]
    assert row.tuned_found[0] == "<b>food</b>"
    assert row["base_mrr@3"] == 0.5


def test_confusions_count_what_was_found_first_instead(queries):
    assert confusions(queries, "base") == [("<b>food</b>", "hotel", 1), ("taxi", "hotel", 1)]
    assert confusions(queries, "tuned") == [("taxi", "hotel", 2)]


def test_the_most_frequent_confusion_is_first():
    frame = pd.DataFrame({"expected": [["a"], ["b"], ["b"]], "base_found": [["c"], ["d"], ["d"]]})
    assert confusions(frame, "base") == [("b", "d", 2), ("a", "c", 1)]


def test_any_of_several_right_documents_first_is_no_confusion():
    frame = pd.DataFrame({"expected": [["a", "b"], ["a", "b"], ["a"]], "base_found": [["b"], ["c"], []]})
    assert confusions(frame, "base") == [("a", "c", 1)]


def test_confusions_are_the_same_after_the_frame_was_on_disk(queries, tmp_path):
    queries.to_parquet(tmp_path / "queries.parquet")
    assert confusions(pd.read_parquet(tmp_path / "queries.parquet"), "tuned") == [("taxi", "hotel", 2)]


def test_hostile_text_is_shown_and_never_markup(page):
    found = Elements(page)
    assert not {tag for tag, _ in found.tags} & {"script", "img"}
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert "<script" not in page
    assert "<b>food" not in page
    # Title of the page and of the report, a fact's name and value, a note, both models' names.
    assert found.text.count("<script>alert(1)</script>") >= 7
    assert found.text.count("{{ 7 * 7 }}") == found.text.count("<script>alert(1)</script>")


def test_the_page_needs_nothing_from_elsewhere(page):
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    for tag, attributes in Elements(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not {"src", "href", "srcset", "action"} & attributes.keys()


def test_the_page_says_the_verdict_and_its_evidence(page, comparison):
    text = Elements(page).text
    assert comparison.sentence in text
    assert "No difference shown: MRR@3" in text
    assert re.search(r"Fixed: 1 quer", text)
    assert re.search(r"Broken: 1 quer", text)


def test_the_pages_chart_has_a_bar_for_each_model_and_k_as_high_as_its_recall(page):
    bars = [attributes for tag, attributes in Elements(page).tags if tag == "rect"]
    heights = {side: [float(bar["height"]) for bar in bars if bar["class"] == side] for side in "bt"}
    # Base finds 2 of 4 first and all in two; tuned 2, 3 and all 4. The axis is 220 high.
    assert heights["b"] == pytest.approx([220 * share for share in (2 / 4, 4 / 4, 4 / 4)])
    assert heights["t"] == pytest.approx([220 * share for share in (2 / 4, 3 / 4, 4 / 4)])


def test_the_plot_has_the_same_bars(comparison):
    axes = comparison.plot().axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.5, 1, 1, 0.5, 0.75, 1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["recall@1", "recall@2", "recall@3"]


def test_the_table_for_the_terminal_has_the_figures(comparison, data):
    other = score_run(run_of(0), data.qrels, ks=(1, 2, 3), name="BM25")
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(terminal_table(comparison, (other,)))
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[0][:3] == ["BM25", "base", "tuned"]
    (recall,) = (line for line in lines if line[:1] == ["recall@2"])
    assert recall[1:5] == ["1.000", "1.000", "0.750", "-0.250"]
    assert recall[-5:] == ["0", "/", "3", "/", "1"]


def test_what_is_shown_is_recall_at_each_k_the_largest_of_mrr_and_ndcg_and_the_verdicts_own(comparison):
    assert [found.metric for found in shown_differences(comparison)] == ["recall@1", "recall@2", "recall@3", "mrr@3", "ndcg@3"]
    by_map = compare_scores(comparison.base, comparison.tuned, metric="map@2")
    assert [found.metric for found in shown_differences(by_map)][-1] == "map@2"
