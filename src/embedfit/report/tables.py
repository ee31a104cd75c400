"""The figures of a run as tables."""

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

    from embedfit.evaluation.calibrate import TrustEvidence
    from embedfit.evaluation.threshold import Threshold
    from embedfit.studies.forgetting import Forgetting
    from embedfit.studies.forms import Form
    from embedfit.studies.ladder import Ladder

_SHOWN = ("recall", "mrr", "ndcg")


@dataclass(frozen=True)
class Report:
    """The contents of a report.

    Attributes:
        title: Title of the experiment.
        comparison: Comparison of the base and the tuned model.
        queries: Frame with one row per held-out query, from `per_query`.
        facts: Setup in words, by label: data, model, settings, times.
        others: Scores of further baselines, such as BM25.
        notes: Sentences that qualify the figures, and warnings.
        history: One row per epoch, with its loss and dev scores.
        alerts: Sentences in red above everything else, such as leaks that were allowed.
        documents: Document texts, by id.
        suspects: Doubtful labels, from `find_suspects`; None if there was no search for them.
        seeds: Means per seed and their spread, as pairs of name and value in words.
        forms: Measurements of the model in other forms.
        forgetting: Scores on general queries before and after tuning; None if the weights did not change.
        trust: Threshold of answers that need no person, and the evidence for the probabilities; None for too few queries.
        deployed: What is compared with the base, in a word.
        next: What can be done next, each with its command.
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
    trust: tuple[Threshold, TrustEvidence] | None = None
    deployed: str = "tuned"
    next: tuple[tuple[str, str], ...] = ()

    @property
    def headline(self) -> str:
        """The result for people who know no metric."""
        first = self.comparison["recall@1"]
        before, after = round(100 * first.base), round(100 * first.tuned)
        text = f"Of 100 queries, the right answer came first for {before}; now it does for {after}."
        if self.trust and self.trust[0].value is not None:
            text += f" {round(100 * self.trust[0].coverage)} could be answered without a person."
        return text


@dataclass(frozen=True)
class Label:
    """How often the queries of one label were answered.

    Attributes:
        id: Document id.
        queries: Number of held-out queries that it answers.
        before: Share of them for which a right answer came first with the base model.
        after: The share with what is deployed.
    """

    id: str
    queries: int
    before: float
    after: float


def by_label(queries: pd.DataFrame) -> list[Label]:
    """Return the figures of each label, those answered worst first; none if labels hardly repeat.

    Args:
        queries: Frame from `per_query`.
    """
    rows = queries[["expected", "base_rank", "tuned_rank"]].explode("expected").dropna()
    groups = [(str(id), group) for id, group in rows.groupby("expected")]
    if len(groups) < 2 or len(rows) < 2 * len(groups):
        return []
    labels = [Label(id, len(group), float((group.base_rank == 1).mean()), float((group.tuned_rank == 1).mean())) for id, group in groups]
    return sorted(labels, key=lambda label: (label.after, -label.queries, label.id))


def per_query(dataset: Dataset, comparison: Comparison, base: Run, tuned: Run, chances: Mapping[str, float] | None = None) -> pd.DataFrame:
    """Return a frame with one row per held-out query: its text, right answers, ranks under both models, and their top documents.

    Args:
        dataset: Data set with the texts and judgements.
        comparison: Comparison of the two models on the held-out queries.
        base: Run of the base model.
        tuned: Run of the tuned model.
        chances: Query id -> probability that the tuned model's best answer is right; None if there are no probabilities.
    """
    frame = comparison.per_query()
    frame.insert(1, "query", [dataset.queries[id].text for id in frame.query_id])
    frame.insert(2, "expected", [list(dataset.relevant(id)) for id in frame.query_id])
    for name, run in (("base", base), ("tuned", tuned)):
        row = {id: index for index, id in enumerate(run.query_ids)}
        frame.insert(5, f"{name}_found", [run.documents_at(row[id], 3) for id in frame.query_id])
    if chances:
        frame["probability"] = [chances[id] for id in frame.query_id]
    return frame


def confusions(queries: pd.DataFrame, model: str) -> list[tuple[str, str, int]]:
    """Return (expected document, document ranked first instead, number of queries), most frequent first.

    Args:
        queries: Frame from `per_query`.
        model: Model to look at: ``base`` or ``tuned``.
    """
    counts: Counter[tuple[str, str]] = Counter()
    for expected, ranked in zip(queries.expected, queries[f"{model}_found"], strict=True):
        if len(ranked) and ranked[0] not in expected:
            counts[(expected[0], ranked[0])] += 1
    return [(*pair, count) for pair, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def terminal_table(comparison: Comparison, others: tuple[Scores, ...] = (), deployed: str = "tuned") -> Table:
    """Return the comparison as a table for the terminal.

    Args:
        comparison: Comparison with the base.
        others: Scores of further methods.
        deployed: What is compared with the base, in a word.
        next: What can be done next, each with its command.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for name in (*(other.name for other in others), "base", deployed, "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("95% interval", justify="right", no_wrap=True)
    table.add_column("won / tied / lost", justify="right", no_wrap=True)

    def add(name: str, difference: Difference, baselines: Sequence[Scores]) -> None:
        colour = {"better": "green", "worse": "red"}.get(difference.verdict, "default")
        table.add_row(
            name,
            *(f"{scores.mean(difference.metric):.3f}" for scores in baselines),
            f"{difference.base:.3f}",
            Text(f"{difference.tuned:.3f}", style="bold"),
            Text(f"{difference.difference:+.3f}", style=colour),
            f"{difference.low:+.3f} to {difference.high:+.3f}",
            f"{difference.wins} / {difference.ties} / {difference.losses}",
        )

    for difference in shown_differences(comparison):
        add(metric_label(difference.metric), difference, others)
        for stratum in comparison.strata if difference.metric == comparison.metric else ():
            name = f"  {'answers seen' if stratum.seen else 'new answers'}, {stratum.queries:,}"
            ids = comparison.query_ids(seen=stratum.seen)
            add(name, stratum[difference.metric], [scores.select(ids) for scores in others])
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
    """Return the rows of the table: recall at each k, MRR and nDCG at the largest k, and the metric of the verdict."""
    by_metric = {difference.metric: difference for difference in comparison.differences}
    largest = max(int(metric.partition("@")[2]) for metric in by_metric)

    def is_shown(metric: str, kind: str) -> bool:
        return metric.startswith(f"{kind}@") and (kind == "recall" or metric in (f"{kind}@{largest}", comparison.metric))

    names = [metric for kind in _SHOWN for metric in by_metric if is_shown(metric, kind)]
    if comparison.metric not in names:
        names.append(comparison.metric)
    return [by_metric[metric] for metric in names]
