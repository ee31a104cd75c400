"""A comparison as people read it: a table for the terminal, and one HTML file that needs nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import pandas as pd

from embedfit.compare import Comparison, Difference, metric_label
from embedfit.data import Dataset
from embedfit.retrieve import Run
from embedfit.score import Scores

if TYPE_CHECKING:
    from rich.table import Table

_SHOWN = ("recall", "mrr", "ndcg")
_MOST_ROWS = 500
"""Of queries in the HTML; the Parquet file beside it has them all."""


@dataclass(frozen=True)
class Report:
    """All that the report shows.

    Attributes:
        title: Of the experiment.
        comparison: Base and tuned.
        queries: One row per test query, from `per_query`.
        facts: Label -> value: data, model, settings, times.
        others: Scores of further baselines, such as BM25.
        notes: Sentences about what the figures belong to, and warnings.
        history: Per epoch: loss and dev scores.
    """

    title: str
    comparison: Comparison
    queries: pd.DataFrame
    facts: Mapping[str, str]
    others: tuple[Scores, ...] = ()
    notes: tuple[str, ...] = ()
    history: tuple[Mapping[str, float], ...] = ()


def per_query(dataset: Dataset, comparison: Comparison, base: Run, tuned: Run) -> pd.DataFrame:
    """Return one row per test query: its text, what was expected, where both models rank it, and what they put first.

    Args:
        dataset: With the texts and judgements.
        comparison: Of the same queries.
        base: The first model's Run.
        tuned: The second's.
    """
    frame = comparison.per_query()
    frame.insert(1, "query", [dataset.queries[id].text for id in frame.query_id])
    frame.insert(2, "expected", [list(dataset.relevant(id)) for id in frame.query_id])
    for name, run in (("base", base), ("tuned", tuned)):
        row = {id: index for index, id in enumerate(run.query_ids)}
        found = [[run.document_ids[position] for position in run.ranked[row[id], :3]] for id in frame.query_id]
        frame.insert(5, f"{name}_found", found)
    return frame


def confusions(queries: pd.DataFrame, model: str) -> list[tuple[str, str, int]]:
    """Return (expected, found first instead, how often), most frequent first.

    Args:
        queries: From `per_query`.
        model: ``base`` or ``tuned``.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for expected, found in zip(queries.expected, queries[f"{model}_found"], strict=True):
        if len(found) and found[0] not in expected:
            counts[(expected[0], found[0])] += 1
    return [(*pair, count) for pair, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def terminal_table(comparison: Comparison, others: tuple[Scores, ...] = ()) -> Table:
    """Return the comparison as a table for the terminal."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for name in (*(other.name for other in others), "base", "tuned", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("won / tied / lost", justify="right", no_wrap=True)
    for found in shown_differences(comparison):
        colour = {"better": "green", "worse": "red"}.get(found.verdict, "default")
        table.add_row(
            metric_label(found.metric),
            *(f"{other.mean(found.metric):.3f}" for other in others),
            f"{found.base:.3f}",
            f"[bold]{found.tuned:.3f}[/]",
            f"[{colour}]{found.difference:+.3f}[/]",
            f"{found.low:+.3f} to {found.high:+.3f}",
            f"{found.wins} / {found.ties} / {found.losses}",
        )
    return table


def shown_differences(comparison: Comparison) -> list[Difference]:
    """Return the differences worth a row: recall at each k, MRR and nDCG at the largest, and the verdict's own."""
    largest = max(int(found.metric.partition("@")[2]) for found in comparison.differences)
    return [
        found
        for kind in _SHOWN
        for found in comparison.differences
        if found.metric.startswith(f"{kind}@")
        and (kind == "recall" or found.metric == f"{kind}@{largest}" or found.metric == comparison.metric)
    ] + [found for found in comparison.differences if found.metric == comparison.metric and found.metric.partition("@")[0] not in _SHOWN]


def html(report: Report) -> str:
    """Return the report as one HTML page with everything in it; all text from data is escaped."""
    from jinja2 import Environment, StrictUndefined

    source = resources.files("embedfit").joinpath("templates/report.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["label"] = metric_label
    comparison, queries = report.comparison, report.queries
    fixed = queries[(queries.base_rank != 1) & (queries.tuned_rank == 1)].sort_values("base_rank", key=_not_found_last, ascending=False)
    broken = queries[(queries.base_rank == 1) & (queries.tuned_rank != 1)].sort_values("tuned_rank", key=_not_found_last, ascending=False)
    return environment.from_string(source).render(
        report=report,
        comparison=comparison,
        verdict=comparison[comparison.metric],
        differences=shown_differences(comparison),
        recalls=[found for found in comparison.differences if found.metric.startswith("recall@")],
        ranks=_rank_counts(queries),
        fixed=_rows(fixed),
        broken=_rows(broken),
        most=_MOST_ROWS,
        confusions={name: confusions(queries, name)[:12] for name in ("base", "tuned")},
    )


def _not_found_last(ranks: pd.Series) -> pd.Series:
    """Return ranks with 0, "not found", as the largest."""
    return ranks.where(ranks > 0, 10**6)


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.head(_MOST_ROWS).to_dict("records")]


def _rank_counts(queries: pd.DataFrame) -> list[tuple[str, int, int]]:
    """Return (rank, how many queries in base, in tuned) for the rank of the first right answer."""
    bands = [("1", 1, 1), ("2", 2, 2), ("3", 3, 3), ("4-5", 4, 5), ("6-10", 6, 10), ("11-100", 11, 100)]
    counts = [
        (name, int(queries.base_rank.between(low, high).sum()), int(queries.tuned_rank.between(low, high).sum()))
        for name, low, high in bands
    ]
    missed = [int(((ranks < 1) | (ranks > 100)).sum()) for ranks in (queries.base_rank, queries.tuned_rank)]
    return [*counts, ("not found", *missed)] if any(missed) else counts  # type: ignore[list-item]
