import base64
import hashlib
import re
from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from embedfit.data.dataset import Dataset, Document, Query
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Difference
from embedfit.evaluation.score import Scores, score_run
from embedfit.metrics import metric_label
from embedfit.report import pages
from embedfit.report.pages import curve_html, html, ladder_html
from embedfit.report.tables import Report, by_label, confusions, per_query, shown_differences, terminal_table
from embedfit.retrieve.run import Run
from embedfit.studies.forecast import Point
from embedfit.studies.forgetting import Forgetting
from embedfit.studies.forgetting import Point as Merge
from embedfit.studies.ladder import Ladder, Rung
from embedfit.studies.suspects import COLUMNS

HOSTILE = """<script>alert(1)</script> "double" 'single' & {{ 7 * 7 }} <img src=x onerror=alert(2)>"""
DASH = "\u2013"
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


def test_ids_that_people_gave_are_shown_and_numbers_of_rows_are_not(comparison, queries, page):
    known = queries.assign(query_id=[f"TICKET-{number}" for number in range(len(queries))])
    suspects = pd.DataFrame([("TICKET-7", "text", ["taxi"], "hotel", "mislabel", 0.9)], columns=list(COLUMNS))
    shown = Elements(html(Report("x", comparison, known, {}, suspects=suspects))).text
    assert [f"TICKET-{number} " in shown for number in (0, 1, 2, 3, 7)] == [True] * 5
    assert "q1 <script>" not in Elements(page).text


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
    assert [attributes for tag, attributes in found.tags if tag == "script"] == [{}]  # our own, and no other
    assert "img" not in {tag for tag, _ in found.tags}
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert page.count("<script") == page.count("</script") == 1
    assert "<b>food" not in page
    # Title of the page and of the report, a fact's name and value, a note, both models' names.
    assert found.text.count("<script>alert(1)</script>") >= 7
    assert found.text.count("{{ 7 * 7 }}") == found.text.count("<script>alert(1)</script>")


def test_the_page_needs_nothing_from_elsewhere(page):
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page)
    for tag, attributes in Elements(page).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert not {"src", "srcset", "action"} & attributes.keys()
        assert attributes.get("href", "#").startswith("#")


def test_the_browser_is_told_to_run_our_script_alone_and_to_load_nothing(page):
    (policy,) = (attributes["content"] for tag, attributes in Elements(page).tags if "http-equiv" in attributes)
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def test_the_page_says_the_verdict_and_its_evidence(page, comparison):
    text = Elements(page).text
    assert comparison.sentence in text
    assert "No difference shown: MRR@3" in text
    assert re.search(r"Fixed: 1 quer", text)
    assert re.search(r"Broken: 1 quer", text)


def rows_of(page):
    """Return (what it is, texts of the cells) for each row of the table of queries, as a reader without scripts sees it."""
    body = re.search(r'id="queries">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)[1]
    rows = re.findall(r'<tr data-is="([^"]*)">(.*?)</tr>', body, re.DOTALL)
    return [(is_, [Elements(cell).text for cell in re.findall(r"<td.*?</td>", cells, re.DOTALL)]) for is_, cells in rows]


def test_every_query_has_a_row_with_what_became_of_it_the_worst_first(page):
    rows = rows_of(page)
    assert [is_ for is_, _ in rows] == ["all worse broken", "all same wrong", "all same", "all better fixed"]
    food = "<b>food</b>"
    assert [cells[1:] for _, cells in rows] == [
        ["taxi", "1", "3", "broken", "taxi", "hotel"],
        ["taxi", "2", "2", "same", "hotel", "hotel"],
        ["hotel", "1", "1", "same", "hotel", "hotel"],
        [food, "2", "1", "fixed", "hotel", food],
    ]
    assert rows[0][1][0] == f"{HOSTILE} q2"


def test_queries_not_found_say_so_and_a_text_on_several_lines_is_on_one(comparison, queries):
    frame = queries.assign(tuned_rank=[0, 0, 0, 1], query="one\ntwo")
    rows = rows_of(html(Report("a report", comparison, frame, {})))
    assert [cells[3] for _, cells in rows] == ["not found", "not found", "not found", "1"]
    assert rows[0][1][0] == "one · two"


def test_of_more_queries_than_a_page_can_hold_those_that_changed_most_are_shown_and_the_page_says_so(comparison, queries, monkeypatch):
    monkeypatch.setattr(pages, "_MOST_ROWS", 2)
    page = html(Report("a report", comparison, queries, {}))
    assert [cells[4] for _, cells in rows_of(page)] == ["broken", "fixed"]
    assert "Shown are the 2 of 4 queries that changed most" in page
    assert "all 4" in Elements(page).text  # the counts are of all


def test_what_a_document_says_stands_by_an_id_that_says_nothing(comparison, queries):
    page = html(Report("a report", comparison, queries, {}, documents={"taxi": "Rides <i>in town</i>", "hotel": "hotel"}))
    assert "taxi Rides <i>in town</i>" in Elements(page).text
    assert "<i>in" not in page
    assert "hotel hotel" not in Elements(page).text


def test_alerts_stand_above_the_verdict(comparison, queries):
    text = Elements(html(Report("a report", comparison, queries, {}, alerts=(HOSTILE, "15 leaks were allowed.")))).text
    assert text.index(HOSTILE) < text.index("15 leaks were allowed.") < text.index("No difference shown: MRR@3")


def test_labels_in_doubt_are_listed_and_marked_in_the_table(comparison, queries):
    suspects = pd.DataFrame(
        [("q3", HOSTILE, ["taxi"], "hotel", "mislabel", 0.875)],
        columns=["query_id", "query", "expected", "suggested", "kind", "confidence"],
    )
    page = html(Report("a report", comparison, queries, {}, suspects=suspects))
    (doubted,) = (cells for is_, cells in rows_of(page) if "doubt" in is_.split())
    assert doubted[0] == f"{HOSTILE} q3"
    assert "label in doubt" in doubted[4]
    assert "0.88" in Elements(page).text
    assert "For 1 query, base and tuned both put the same other document first" in Elements(page).text
    assert "Labels in doubt" not in html(Report("a report", comparison, queries, {}))
    assert "None: where base and tuned agree" in html(Report("a report", comparison, queries, {}, suspects=suspects.head(0)))


def test_further_tables_are_there_when_they_are_given(comparison, queries):
    forms = (
        SimpleNamespace(
            name="int8",
            metric="mrr@3",
            value=0.5,
            difference=-0.25,
            tolerance=0.01,
            cosine=None,
            bytes=384,
            queries_per_second=12_345.6,
            passed=False,
        ),
        SimpleNamespace(
            name="loaded",
            metric="mrr@3",
            value=0.75,
            difference=0.0,
            tolerance=None,
            cosine=1.0,
            bytes=1536,
            queries_per_second=99.0,
            passed=True,
        ),
    )
    seeds = (("seed 0", "0.512"), ("spread over seeds", "0.004"))
    page = html(Report("a report", comparison, queries, {}, forms=forms, seeds=seeds))
    cells = [Elements(cell).text for cell in re.findall(r"<td.*?</td>", page)]
    where = cells.index("int8")
    assert cells[where : where + 8] == ["int8", DASH, "0.500", "-0.250", "0.010", "384", "12,346", "no"]
    assert cells[where + 8 : where + 16] == ["loaded", "1.000000", "0.750", "+0.000", DASH, "1,536", "99", "yes"]
    assert cells[cells.index("seed 0") + 1] == "0.512"
    plain = html(Report("a report", comparison, queries, {}))
    assert not [heading for heading in ("Other forms", "over seeds", "Forgetting") if heading in plain]


def test_forgetting_is_drawn_on_two_axes_with_the_chosen_weight_marked(comparison, queries):
    hostile = replace(comparison, metric=HOSTILE, differences=(replace(comparison["mrr@3"], metric=HOSTILE),))
    forgetting = Forgetting((Merge(0.0, 0.6, 0.2), Merge(0.5, 0.59, 0.5), Merge(1.0, 0.4, 0.6)), hostile, keep=0.9, weight=0.5)
    page = html(Report("a report", comparison, queries, {}, forgetting=forgetting))
    dots = [attributes for tag, attributes in Elements(page).tags if tag == "circle"]
    assert [dot["class"] for dot in dots] == ["t", "chosen", "t"]
    x, y = ([float(dot[name]) for dot in dots] for name in ("cx", "cy"))
    # Along x by the general score, up (so to a smaller y) by the task's, both evenly.
    assert (x[0] - x[1]) / (x[0] - x[2]) == pytest.approx(0.01 / 0.2, abs=1e-3)
    assert (y[0] - y[1]) / (y[0] - y[2]) == pytest.approx(0.3 / 0.4, abs=1e-3)
    assert x[2] < x[1] < x[0]
    assert y[2] < y[1] < y[0]
    assert "0.5 chosen" in Elements(page).text
    assert forgetting.sentence in Elements(page).text
    assert metric_label(HOSTILE) in forgetting.sentence
    ends = Elements(
        html(Report("a report", comparison, queries, {}, forgetting=replace(forgetting, points=forgetting.points[::2], weight=1.0)))
    )
    assert "1, chosen" in ends.text  # two points are a table, and no chart
    assert not [tag for tag, _ in ends.tags if tag == "circle"]


def rung(key, name, deploys, means, seconds, milliseconds, below=None):
    scores = Scores(name, ("q1",), {metric: np.array([mean]) for metric, mean in means.items()}, np.array([1]))
    return Rung(key, name, deploys, scores, seconds, milliseconds, below)


BELOW = Difference("mrr@10", 0.5, 0.75, 0.25, 0.125, 0.375, 0.01, 1, 0, 0, 0.1)
RUNGS = (
    rung("bm25", "BM25", HOSTILE, {"recall@1": 0.25, "mrr@10": 0.5}, 0.0, 0.25),
    rung("full", "tuned", "the model", {"recall@1": 0.5, "mrr@10": 0.75}, 21.84, 2.0, BELOW),
)


def test_a_ladder_has_a_row_and_a_dot_for_each_rung_with_the_interval_from_the_rung_below():
    page = ladder_html(HOSTILE, Ladder(RUNGS, "mrr@10", "full", {}, 1), notes=("Out of fold.",))
    found = Elements(page)
    assert [float(attributes["cx"]) for tag, attributes in found.tags if tag == "circle"] == [20 + 600 * 0.5, 20 + 600 * 0.75]
    (whisker,) = (attributes for tag, attributes in found.tags if attributes.get("class") == "whisker")
    assert (float(whisker["x1"]), float(whisker["x2"])) == (20 + 600 * 0.625, 20 + 600 * 0.875)
    cells = [Elements(cell).text for cell in re.findall(r"<td.*?</td>", page)]
    assert cells == [
        "BM25",
        "0.250",
        "0.500",
        DASH,
        DASH,
        HOSTILE,
        "0.25 ms",
        "tuned",
        "0.500",
        "0.750",
        "+0.250+0.125 to +0.375",
        "21.8",
        "the model",
        "2.00 ms",
    ]
    assert "script" not in {tag for tag, _ in found.tags}


def test_a_curve_shows_what_was_measured_and_what_is_predicted_on_a_logarithmic_scale():
    points = [Point(10, 0.4, 0.3, 0.5), Point(100, 0.5, 0.4, 0.6)]
    page = curve_html(HOSTILE, "More.", points, untuned=0.25, fitted=[(10, 0.4), (1000, 0.6)], predictions=[Point(1000, 0.6, 0.5, 0.7)])
    found = Elements(page)
    dots = [attributes for tag, attributes in found.tags if tag == "circle"]
    assert [dot["class"] for dot in dots] == ["t", "t", "guess"]
    x, y = ([float(dot[name]) for dot in dots] for name in ("cx", "cy"))
    assert x[1] - x[0] == pytest.approx(x[2] - x[1], abs=0.05)
    assert y[0] - y[1] == pytest.approx(y[1] - y[2], abs=0.05)
    (line,) = (attributes for tag, attributes in found.tags if tag == "polyline")
    assert line["points"].split() == [f"{x[0]},{y[0]}", f"{x[2]},{y[2]}"]
    cells = [Elements(cell).text for cell in re.findall(r"<td.*?</td>", page)]
    assert cells[-4:] == ["1,000", "0.600", "0.500 to 0.700", "predicted"]


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


@pytest.fixture(scope="module")
def in_strata(comparison):
    return compare_scores(comparison.base, comparison.tuned, metric="mrr@3", seen=[True, True, False, True])


def test_the_terminal_shows_both_strata_under_the_metric_that_the_verdict_is_about(in_strata):
    console = Console(width=200)
    other = replace(in_strata.tuned, name="BM25")
    with console.capture() as capture:
        console.print(terminal_table(in_strata, (other,)))
    lines = [line.split() for line in capture.get().splitlines()]
    place = [line[0] for line in lines].index("MRR@3") + 1
    # q1 2 -> 1, q2 1 -> 3, q4 1 -> 1 of seen answers; q3 2 -> 2 of a new one.
    assert lines[place][:7] == ["answers", "seen,", "3", "0.778", "0.833", "0.778", "-0.056"]
    assert lines[place][-5:] == ["1", "/", "1", "/", "1"]
    assert lines[place + 1][:7] == ["new", "answers,", "1", "0.500", "0.500", "0.500", "+0.000"]
    assert sum(line[:2] == ["new", "answers,"] for line in lines) == 1


def test_the_page_has_every_figure_of_both_strata_and_marks_their_queries(data, in_strata):
    frame = per_query(data, in_strata, run_of(0), run_of(1))
    assert frame.set_index("query_id").seen.to_dict() == {"q1": True, "q2": True, "q3": False, "q4": True}
    page = html(Report("a report", in_strata, frame, {}))
    text = Elements(page).text
    assert in_strata.sentence in text
    section = text.partition("Answers seen in training, and new answers")[2].partition("Rank of the right answer")[0]
    seen, _, new = section.partition("New answers (1 query)")
    assert "Answers seen in training (3 queries)" in seen
    for part, stratum in ((seen, in_strata.strata[0]), (new, in_strata.strata[1])):
        for found in map(stratum.__getitem__, ("recall@1", "recall@3", "mrr@3", "ndcg@3")):
            assert f"{found.base:.3f}{found.tuned:.3f}{found.difference:+.3f}{found.low:+.3f} to {found.high:+.3f}" in part
            assert f"{found.wins} / {found.ties} / {found.losses}{found.verdict}" in part
    assert [is_.split()[-1] for is_, _ in rows_of(page)] == ["seen", "new", "seen", "seen"]
    assert re.search(r'data-show="new">new answer 1<', page)


def test_where_there_are_no_strata_the_page_says_nothing_of_them(page):
    assert "new answer" not in page.casefold()
    assert 'data-show="seen"' not in page


def test_the_figures_of_each_label_are_there_where_labels_repeat_and_what_to_do_next(comparison, queries):
    repeated = queries.assign(expected=[["taxi"] if row % 2 else ["hotel", "taxi"] for row in range(len(queries))])
    labels = {label.id: label for label in by_label(repeated)}
    ranks = repeated.tuned_rank[[row for row in range(len(queries)) if not row % 2]]
    assert labels["taxi"].queries == len(queries)
    assert labels["hotel"].after == (ranks == 1).mean()
    page = html(Report("x", comparison, repeated, {}, next=(("Try it", f"embedfit serve {HOSTILE}"),)))
    text = Elements(page).text
    assert "Every label" in text
    assert f"embedfit serve {HOSTILE}" in text
    assert "Every label" not in html(Report("x", comparison, queries.assign(expected=[[f"d{row}"] for row in range(len(queries))]), {}))
