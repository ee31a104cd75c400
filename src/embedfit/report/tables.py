"""Figures of a run as tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pandas as pd

from embedfit.data.dataset import Dataset
from embedfit.evaluation.comparison import Comparison, Difference
from embedfit.evaluation.score import Scores
from embedfit.metrics import metric_label
from embedfit.retrieve.run import Run

if TYPE_CHECKING:
    from rich.table import Table

    from embedfit.studies.forgetting import Forgetting
    from embedfit.studies.forms import Form
    from embedfit.studies.ladder import Ladder

_SHOWN = ("recall", "mrr", "ndcg")


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
        alerts: Sentences that nobody may miss, such as leaks that were allowed; red, above everything.
        documents: Document id -> what it says, for ids that say nothing by themselves.
        suspects: Labels in doubt, from `find_suspects`; None where nobody looked for them.
        seeds: (name, value) in words: the mean for each seed, the spread over seeds and over queries.
        forms: The model in other forms, beside the model as measured.
        forgetting: What tuning cost on general queries.
    """

    title: str
    comparison: Comparison
    queries: pd.DataFrame
    facts: Mapping[str, str]
    others: tuple[Scores, ...] = ()
    notes: tuple[str, ...] = ()
    history: tuple[Mapping[str, float], ...] = ()
    alerts: tuple[str, ...] = ()
    documents: Mapping[str, str] = field(default_factory=dict)
    suspects: pd.DataFrame | None = None
    seeds: tuple[tuple[str, str], ...] = ()
    forms: tuple[Form, ...] = ()
    forgetting: Forgetting | None = None


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
        found = [run.documents_at(row[id], 3) for id in frame.query_id]
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
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for name in (*(other.name for other in others), "base", "tuned", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("won / tied / lost", justify="right", no_wrap=True)

    def add(name: str, found: Difference, others: Sequence[Scores]) -> None:
        colour = {"better": "green", "worse": "red"}.get(found.verdict, "default")
        table.add_row(
            name,
            *(f"{other.mean(found.metric):.3f}" for other in others),
            f"{found.base:.3f}",
            Text(f"{found.tuned:.3f}", style="bold"),
            Text(f"{found.difference:+.3f}", style=colour),
            f"{found.low:+.3f} to {found.high:+.3f}",
            f"{found.wins} / {found.ties} / {found.losses}",
        )

    for found in shown_differences(comparison):
        add(metric_label(found.metric), found, others)
        for stratum in comparison.strata if found.metric == comparison.metric else ():
            name = f"  {'answers seen' if stratum.seen else 'new answers'}, {stratum.queries:,}"
            ids = comparison.query_ids(seen=stratum.seen)
            add(name, stratum[found.metric], [other.select(ids) for other in others])
    return table


def ladder_table(ladder: Ladder) -> Table:
    """Return a ladder as a table for the terminal."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for name in (*map(metric_label, ladder.shown), "to the row above", "95% interval", "training", "per query"):
        table.add_column(name, justify="right", no_wrap=True)
    for rung in ladder.rungs:
        below = rung.below
        table.add_row(
            Text(f"* {rung.name}", style="bold") if rung.key == ladder.recommended else f"  {rung.name}",
            *(f"{rung.scores.mean(metric):.3f}" for metric in ladder.shown),
            f"{below.difference:+.3f}" if below else "",
            f"{below.low:+.3f} to {below.high:+.3f}" if below else "",
            f"{rung.seconds:.1f} s" if rung.seconds else "",
            f"{rung.query_milliseconds:.2f} ms",
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
