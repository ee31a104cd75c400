"""Reports as HTML pages. Each is one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from embedfit.metrics import metric_label
from embedfit.report.tables import Report, by_label, confusions, shown_differences

if TYPE_CHECKING:
    from jinja2 import Environment

    from embedfit.evaluation.calibrate import TrustEvidence
    from embedfit.evaluation.threshold import Threshold
    from embedfit.generate.outcome import Generated
    from embedfit.studies.deployable import Deployable
    from embedfit.studies.forecast import Point
    from embedfit.studies.forgetting import Point as Merge
    from embedfit.studies.ladder import Ladder

_MOST_ROWS = 10_000
"""Maximum number of queries in the page; queries.parquet has all of them."""
_MOST_LABELS = 300
"""Maximum number of labels in a drop-down list; a longer list becomes a text field."""
_MOST_DIFFICULT = 50
"""Maximum number of labels or passages in the table of difficulty, hardest first."""
_MOST_SUSPECTS = 20
"""Maximum number of doubtful labels in their list; the table of queries marks all of them."""
_EXAMPLE_CHARACTERS = 160
"""Length of a query up to which it is preferred as an example; the page cuts a longer one."""
_CHIPS = {
    "all": "all",
    "fixed": "fixed",
    "broken": "broken",
    "better": "better",
    "worse": "worse",
    "same": "same",
    "wrong": "wrong in both",
    "doubt": "label in doubt",
    "seen": "answer seen in training",
    "new": "new answer",
}


def html(report: Report) -> str:
    """Return the report as an HTML page. All text from data is escaped."""
    comparison, forgetting = report.comparison, report.forgetting
    doubted = set() if report.suspects is None else set(report.suspects.query_id)
    rows = _rows(report.queries, doubted)
    labels = sorted({id for row in rows for id in row["expected"]})
    shown = sorted(sorted(rows, key=lambda row: -abs(row["change"]))[:_MOST_ROWS], key=lambda row: row["change"])
    counts = {show: sum(show in row["is"] for row in rows) for show in _CHIPS}
    optional = {"doubt": doubted, "seen": comparison.strata, "new": comparison.strata}
    chart: dict[str, Any] = {}
    if forgetting:
        merges = [point for point in forgetting.points if point.task is not None]
        x = _axis([point.general for point in merges], 66, 596)
        y = _axis([point.task or 0 for point in merges], 336, 40)
        chart = {"x": x, "y": y, "merges": merges, "labelled": _apart(merges, forgetting.weight, x, y)}
    return _page(
        "report.html",
        report.title,
        report.alerts,
        report=report,
        comparison=comparison,
        verdict=comparison[comparison.metric],
        differences=shown_differences(comparison),
        recalls=[difference for difference in comparison.differences if difference.metric.startswith("recall@")],
        ranks=_rank_counts(report.queries),
        rows=shown,
        cut=any(len(row["query"]) > 400 for row in rows),
        counts=counts,
        chips=[(show, name) for show, name in _CHIPS.items() if show not in optional or optional[show]],
        labels=labels if 1 < len(labels) <= _MOST_LABELS else [],
        confusions={name: confusions(report.queries, name)[:12] for name in ("base", "tuned")},
        suspects=None if report.suspects is None else _records(report.suspects.head(_MOST_SUSPECTS)),
        known_id=known_id,
        has_first=any(difference.metric == "recall@1" for difference in comparison.differences),
        examples=_examples(rows),
        by_label=by_label(report.queries)[:_MOST_LABELS],
        methods=_methods(report),
        trust=trust_axes(*report.trust) if report.trust else None,
        **chart,
    )


def with_deployables(page: str, rows: Sequence[Deployable], rejected: Mapping[str, str] = MappingProxyType({})) -> str:
    """Return a report with the table of forms to deploy; the page itself if it is older than that table.

    Args:
        page: The report.
        rows: Forms that passed.
        rejected: Forms that did not -> the reason.
    """
    before, mark, rest = page.partition("<!-- deployable forms -->")
    _, end, after = rest.partition("<!-- end -->")
    if not end or not (rows or rejected):
        return page
    return "".join([before, mark, _environment().get_template("deployable.html").render(rows=rows, rejected=rejected), end, after])


def ladder_html(title: str, ladder: Ladder, *, notes: Sequence[str] = (), alerts: Sequence[str] = ()) -> str:
    """Return a ladder of methods as an HTML page.

    Args:
        title: Title of the page.
        ladder: Ladder with all its rungs.
        notes: Sentences that qualify the figures.
        alerts: Sentences in red above everything else.
    """
    return _page("ladder.html", title, alerts, ladder=ladder, notes=notes)


def curve_html(
    title: str,
    sentence: str,
    points: Sequence[Point],
    *,
    metric: str = "mrr@10",
    untuned: float | None = None,
    fitted: Sequence[tuple[float, float]] = (),
    predictions: Sequence[Point] = (),
    notes: Sequence[str] = (),
    alerts: Sequence[str] = (),
) -> str:
    """Return a learning curve as an HTML page.

    Args:
        title: Title of the page.
        sentence: Conclusion in one sentence.
        points: Measured points, by number of pairs.
        metric: Metric of the points.
        untuned: Score before tuning; None to leave it out.
        fitted: Points (pairs, value) of the fitted curve, dense enough to be joined by straight lines.
        predictions: Forecasts for more pairs.
        notes: Sentences that qualify the figures.
        alerts: Sentences in red above everything else.
    """
    points, predictions = list(points), list(predictions)
    every = points + predictions
    levels = [level for point in every for level in (point.low, point.high)] + [value for _, value in fitted]
    return _page(
        "curve.html",
        title,
        alerts,
        sentence=sentence,
        points=points,
        predictions=predictions,
        fitted=fitted,
        metric=metric,
        untuned=untuned,
        notes=notes,
        x=_axis([point.pairs for point in every] + [pairs for pairs, _ in fitted], 66, 596, logarithmic=True),
        y=_axis(levels + ([] if untuned is None else [untuned]), 336, 40),
    )


def trust_html(title: str, threshold: Threshold, evidence: TrustEvidence, *, alerts: Sequence[str] = ()) -> str:
    """Return the promise of precision, the risk-coverage curve and the reliability diagram as an HTML page.

    Args:
        title: Title of the page.
        threshold: Threshold of trusted answers.
        evidence: Measurements of the probabilities.
        alerts: Sentences in red above everything else.
    """
    return _page("trust.html", title, alerts, threshold=threshold, evidence=evidence, charts=trust_axes(threshold, evidence))


def trust_axes(threshold: Threshold, evidence: TrustEvidence) -> dict[str, Any]:
    """Return the axes of the charts of the macro ``trust`` in parts.html."""
    lowest = min([point.precision for point in evidence.curve] + [threshold.precision])
    least = max(0.0, math.floor(10 * lowest - 1) / 10)
    curve = [replace(point, low=max(point.low, least)) for point in evidence.curve]
    quarters = tuple((place / 4, f"{25 * place}%") for place in range(5))
    tenths = tuple((place / 10, f"{10 * place}%") for place in range(round(10 * least), 11, 1 if least >= 0.5 else 2))
    return {
        "curve": curve,
        "x": _Axis(0.0, 1.0, 66, 596, quarters),
        "y": _Axis(least, 1.0, 336, 40, tenths),
        "square": {"x": _Axis(0.0, 1.0, 66, 596, quarters), "y": _Axis(0.0, 1.0, 336, 40, quarters)},
    }


def generated_html(title: str, generated: Generated) -> str:
    """Return counts, cost, difficulty and diversity of generated data as an HTML page."""
    counts = generated.labels.values()
    totals = {kind: sum(row[kind] for row in generated.difficulty.values()) for kind in ("easy", "hard", "suspect")}
    hardest = sorted(generated.difficulty.items(), key=lambda item: -(1 - item[1]["easy"] / sum(item[1].values())))
    return _page(
        "generate.html",
        title,
        (generated.stopped,) if generated.stopped else (),
        sentence=generated.sentence,
        generated=generated,
        replies=max(1, sum(generated.outcomes.values())),
        difficulty=[("all", totals), *hardest[:_MOST_DIFFICULT]] if hardest else [],
        least=min(counts, default=0),
        most=max(counts, default=0),
    )


def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("embedfit.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["label"] = metric_label
    return environment


def _page(template: str, title: str, alerts: Sequence[str], **values: Any) -> str:
    """Return a page with its style and the one script that it may run."""
    from markupsafe import Markup

    folder = resources.files("embedfit.report") / "templates"
    script = (folder / "table.js").read_text(encoding="utf-8")
    # The browser runs only the script with this hash, even if a text from the data passes for markup.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template(template)
        .render(
            title=title,
            alerts=alerts,
            style=Markup((folder / "style.css").read_text(encoding="utf-8")),  # noqa: S704
            script=Markup(script),  # noqa: S704
            script_source=f"'sha256-{digest}'",
            **values,
        )
    )


def _rows(queries: pd.DataFrame, doubted: Collection[str]) -> list[dict[str, Any]]:
    """Return the table's rows, one per query.

    ``change`` is the change of the reciprocal rank, in which a step near the top weighs more than one far down.
    """
    rows: list[dict[str, Any]] = []
    for query in _records(queries):
        before, after = int(query["base_rank"]), int(query["tuned_rank"])
        change = (1 / after if after else 0.0) - (1 / before if before else 0.0)
        direction = "better" if change > 0 else "worse" if change < 0 else "same"
        edge = "fixed" if after == 1 != before else "broken" if before == 1 != after else ""
        kinds = {"all": True, direction: True, edge: edge, "wrong": before != 1 != after, "doubt": query["query_id"] in doubted}
        kinds |= {"seen": bool(query.get("seen")), "new": not query.get("seen", True)}
        rows.append(
            {
                "id": known_id(query["query_id"]),
                "query": query["query"],
                "expected": list(query["expected"]),
                "base_rank": before,
                "tuned_rank": after,
                "base_first": next(iter(query["base_found"]), ""),
                "tuned_first": next(iter(query["tuned_found"]), ""),
                "change": change,
                "outcome": edge or direction,
                "is": [kind for kind, holds in kinds.items() if holds],
            }
        )
    return rows


def _examples(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return up to three queries whose right answer came first, each of another label, and one whose right answer no longer does."""
    fixed: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: (len(row["query"]) > _EXAMPLE_CHARACTERS, -row["change"], len(row["query"]))):
        if "fixed" in row["is"]:
            fixed.setdefault(row["expected"][0], row)
    broken = [row for row in sorted(rows, key=lambda row: row["change"]) if "broken" in row["is"]]
    return [*fixed.values()][:3] + broken[:1]


def _methods(report: Report) -> list[tuple[str, float]]:
    """Return the main recall of every method, best first; none if only two were measured."""
    comparison = report.comparison
    if not report.others:
        return []
    metric = "recall@1" if any(difference.metric == "recall@1" for difference in comparison.differences) else comparison.metric
    methods = {"base": comparison.base, **{scores.name: scores for scores in report.others}, report.deployed: comparison.tuned}
    return sorted(((name, scores.mean(metric)) for name, scores in methods.items()), key=lambda method: -method[1])


def known_id(id: str) -> str:
    """Return a query's id if it was given with the data; empty if it is the number of a row, which says nothing to anybody."""
    return "" if re.fullmatch(r"q\d+", id) else id


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


@dataclass(frozen=True)
class _Axis:
    """An axis of a drawing.

    Attributes:
        least: Smallest value.
        largest: Largest value.
        start: Coordinate of the smallest value.
        end: Coordinate of the largest value; less than ``start`` on a vertical axis, as coordinates grow downwards.
        ticks: Values of the grid lines, each with its text.
        logarithmic: Whether the axis is logarithmic.
    """

    least: float
    largest: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return the coordinate of a value."""
        turn = math.log10 if self.logarithmic else float
        share = (turn(value) - turn(self.least)) / (turn(self.largest) - turn(self.least))
        return round(self.start + share * (self.end - self.start), 2)


def _axis(values: Sequence[float], start: float, end: float, *, logarithmic: bool = False) -> _Axis:
    """Return an axis with room for all values and ticks at round numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    least, largest = min(values), max(values)
    if logarithmic:
        least, largest = least / 1.2, largest * 1.2
        places = LogLocator(subs=(1, 2, 5), numticks=20).tick_values(least, largest)
        ticks = tuple((float(place), f"{place:,.0f}") for place in places if least <= place <= largest)
        return _Axis(least, largest, start, end, ticks, logarithmic=True)
    room = 0.05 * (largest - least) or 0.05
    places = MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(least - room, largest + room)
    return _Axis(float(places[0]), float(places[-1]), start, end, tuple((float(place), f"{place:.10g}") for place in places))


def _apart(merges: Sequence[Merge], chosen: float, x: _Axis, y: _Axis) -> list[Merge]:
    """Return the points whose labels do not overlap: the chosen point, both ends, then any that are far enough from these."""
    ends = (merges[0].weight, merges[-1].weight)
    labelled: list[Merge] = []
    for point in sorted(merges, key=lambda point: (point.weight != chosen, point.weight not in ends)):
        if all(
            abs(x.at(point.general) - x.at(other.general)) > 50 or abs(y.at(point.task or 0) - y.at(other.task or 0)) > 22
            for other in labelled
        ):
            labelled.append(point)
    return labelled


def _rank_counts(queries: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Return (band of ranks, queries under base, queries under tuned), by the rank of the first right answer."""
    bands = [("1", 1, 1), ("2", 2, 2), ("3", 3, 3), ("4-5", 4, 5), ("6-10", 6, 10), ("11-100", 11, 100)]
    counts = [
        (name, int(queries.base_rank.between(low, high).sum()), int(queries.tuned_rank.between(low, high).sum()))
        for name, low, high in bands
    ]
    missed = [int(((ranks < 1) | (ranks > 100)).sum()) for ranks in (queries.base_rank, queries.tuned_rank)]
    return [*counts, ("not found", *missed)] if any(missed) else counts  # type: ignore[list-item]
