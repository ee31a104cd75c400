"""Tables and sentences that commands print."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embedfit import console

if TYPE_CHECKING:
    from pandas import DataFrame

    from embedfit.data.check import Finding
    from embedfit.data.dataset import Dataset
    from embedfit.encode.encoder import Encoder
    from embedfit.pipeline.checking import Check
    from embedfit.pipeline.result import Result


def print_result(result: Result, as_json: bool) -> None:
    """Print the verdict of a run, and where its model and report are."""
    if as_json:
        today = {"today": result.today.to_dict()} if result.today else {}
        console.echo(json.dumps({**result.comparison.to_dict(), **today, "folder": str(result.folder), "reused": result.reused}))
        return
    from embedfit.report.tables import terminal_table

    terminal = console.terminal()
    print_findings(result.findings)
    terminal.print()
    terminal.print(terminal_table(result.comparison, result.others, result.deployed))
    terminal.print()
    again = " (nothing had changed, so nothing was done)" if result.reused else f" ({result.manifest['seconds']:.0f} s)"
    searcher = [f"Searcher: {result.folder / 'searcher'}"] if result.manifest["searcher"] else []
    places = [f"Model:    {result.model}{again}", *searcher, f"Report:   {result.report}", *result.advice]
    print_conclusion(*places, result.comparison.sentence)


def print_conclusion(*lines: str) -> None:
    """Print where the results are, and the conclusion last, in bold."""
    terminal = console.terminal()
    *places, conclusion = lines
    for place in places:
        terminal.print(place, highlight=False, soft_wrap=True)
    terminal.print(conclusion, highlight=False, style="bold", soft_wrap=True)


def print_findings(findings: Sequence[Finding]) -> None:
    """Print what must not be missed of the data: leaks that were allowed, and warnings."""
    from rich.text import Text

    from embedfit.data.check import warnings
    from embedfit.pipeline.notes import alerts

    terminal = console.terminal()
    for alert in alerts(findings):
        terminal.print(alert, style="bold red", soft_wrap=True)
    for warning in warnings(findings):
        terminal.print(Text("Warning:", style="yellow"), warning, soft_wrap=True)


def print_check(checked: Check, *, whole: bool = False) -> None:
    """Print what was read, two examples, and what was noticed.

    Args:
        checked: Result of the check.
        whole: Whether to print every finding, and not only the first few of each kind.
    """
    from textwrap import shorten

    from rich.text import Text

    terminal = console.terminal()
    for line in checked.summary:
        terminal.print(line, highlight=False, soft_wrap=True)
    for number, (query, document) in enumerate(checked.examples, 1):
        terminal.print(
            f"Example {number}: {shorten(query, _EXAMPLE)!r} finds {shorten(document, _EXAMPLE)!r}", highlight=False, soft_wrap=True
        )
    for row in checked.bad_rows:
        terminal.print(Text("bad row", style="red"), str(row), soft_wrap=True)
    colours = {"problem": "red", "warning": "yellow", "note": "default"}
    shown: Counter[str] = Counter()
    for finding in checked.findings:
        shown[finding.kind] += 1
        if whole or shown[finding.kind] <= _OF_A_KIND:
            terminal.print(Text(finding.level, style=colours[finding.level]), finding.message, soft_wrap=True)
    for kind, count in shown.items():
        if count > _OF_A_KIND and not whole:
            terminal.print(f"... and {count - _OF_A_KIND:,} more of the kind '{kind}'; --all shows them", highlight=False)
    if checked.skipped:
        terminal.print(f"note {checked.skipped}", highlight=False, soft_wrap=True)
    if not checked.bad_rows and not checked.findings:
        terminal.print("No problems found.")


_EXAMPLE = 160
"""Maximum length of an example's text, in characters."""
_OF_A_KIND = 3
"""Number of findings of a kind that are printed."""


def print_rows(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, justify="right" if "@" in name or name in ("epoch", "loss", "ms a query") else "left")
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    console.terminal().print(table)


def warn_of_seen(encoders: Sequence[Encoder], dataset: Dataset) -> None:
    """Note which encoders were trained on some of the queries."""
    from embedfit.pipeline import measuring

    for encoder in encoders:
        seen = measuring.seen_in_training(encoder, dataset)
        if seen:
            total = len(dataset.queries)
            console.note(f"Warning: {encoder.name} was trained on {seen:,} of these {total:,} queries; its figures here are too good")


def print_grid(frame: DataFrame, metric: str) -> None:
    """Print what `measuring.evaluate` measured: a row for each encoder, template, retrieval and reranker.

    Args:
        frame: Tidy table, one row per combination and metric; the columns are those of `measuring.evaluate`.
        metric: Metric whose difference from the first row is shown with its 95% interval, such as ``recall@1``.
    """
    from embedfit.metrics import metric_label

    keys = ["model", "document", "retrieval", *(["reranker"] if frame.reranker.astype(bool).any() else [])]
    shares = frame[frame.metric == "recall_of_exact"]
    frame = frame.drop(shares.index)
    frame = frame.assign(name=frame.metric + "@" + frame.k.astype(str))
    names = [f"{name}@{cut}" for name in ("recall", "mrr", "ndcg") for cut in sorted(set(frame.k))]
    compared = metric if metric in set(frame.name) else f"mrr@{max(frame.k)}"
    rows: list[list[str]] = []
    for _, group in frame.groupby([*keys, "seconds"], sort=False):
        metrics = group.set_index("name")
        change = metrics.loc[compared]
        interval = f"{change['difference']:+.3f} ({change['low']:+.3f} to {change['high']:+.3f})" if rows else ""
        cells = [*(str(change[key]) for key in keys), *(f"{metrics['value'][name]:.3f}" for name in names)]
        rows.append([*cells, interval, f"{change['seconds'] * 1000:.2f}"])
    print_rows([*keys, *names, f"{metric_label(compared)} against the first", "ms a query"], rows)
    if len(rows) > 1:
        console.echo(
            f"A winner picked from these {len(rows)} rows must be confirmed on other queries: each interval holds for its row alone, "
            "not for the best of them."
        )
    for row in shares.to_dict("records"):
        console.echo(f"{row['model']}: {row['value']:.4f} of what exact search has in the first {row['k']}")
