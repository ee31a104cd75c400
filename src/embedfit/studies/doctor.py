"""Why a verdict is what it is: changes that need no training, each measured on training queries alone, cheapest first."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from embedfit.data.check import Finding
from embedfit.data.dataset import Dataset
from embedfit.data.split import group_numbers
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison, Difference
from embedfit.evaluation.score import Scores, score_run
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.studies.forms import spread

_QUERIES = 500
"""Largest number of training queries that a change is measured on."""
_ADVICE = {
    "truncated": "shorten data.document_template, cut documents into passages, or take a model that reads longer texts",
    "conflict": "give one text one set of answers: 'embedfit relabel' lists labels in doubt",
    "near conflict": "give queries that nearly say the same the same answers, where they should have them",
    "copy": "merge documents that say the same, as each hides the others",
    "near copy": "merge documents that nearly say the same",
    "joined labels": "set data.separator",
    "label inside": "take the label out of the query's text: it is not there when the model is used",
    "own text": "take the document's text out of the query",
    "rare": "label at least two queries for each document",
    "chain": "look at the near duplicates that hang together",
    "leak": "take copies of held-out queries out of the training part",
}
"""Kind of a finding -> advice."""


@dataclass(frozen=True)
class Change:
    """A change of the settings that can be measured without training.

    Attributes:
        setting: The change, as embedfit.toml has it, such as ``model.query_prompt = ""``.
        encoder: Encoder with the change.
        template: Document template with the change.
    """

    setting: str
    encoder: Encoder
    template: str


@dataclass(frozen=True)
class Trial:
    """A change and what it brought.

    Attributes:
        setting: The change, as embedfit.toml has it.
        difference: Base model without and with the change, on the same training queries. The p-value counts all trials.
    """

    setting: str
    difference: Difference

    @property
    def line(self) -> str:
        """The trial, as text."""
        row = self.difference
        interval = f"95% interval {row.low:+.3f} to {row.high:+.3f}"
        return f"{self.setting}: {row.verdict}, {row.metric} {row.base:.3f} to {row.tuned:.3f} ({row.difference:+.3f}, {interval})"


@dataclass(frozen=True)
class Diagnosis:
    """What was found about a run.

    Attributes:
        verdict: The run's own sentence.
        power: What the number of held-out queries can show, as text.
        remarks: Findings in the data, each with advice.
        trials: Changes that were measured, in order.
        skipped: Changes for which there was no time.
        queries: Number of training queries that the changes were measured on.
    """

    verdict: str
    power: str
    remarks: tuple[str, ...]
    trials: tuple[Trial, ...]
    skipped: tuple[str, ...]
    queries: int

    @property
    def worth_changing(self) -> tuple[str, ...]:
        """The one or two changes that were shown to help, the largest gain first."""
        helpful = [trial for trial in self.trials if trial.difference.verdict == "better"]
        return tuple(trial.setting for trial in sorted(helpful, key=lambda trial: -trial.difference.difference)[:2])

    @property
    def sentence(self) -> str:
        """The conclusion, as text."""
        if self.worth_changing:
            return f"Worth changing: {'; and '.join(self.worth_changing)}. Run again to see what it brings after tuning."
        tried = f"None of {len(self.trials):,} changes was shown to help" if self.trials else "No change could be tried without training"
        return f"{tried}{'; see the findings in the data' if self.remarks else ''}. Settings of the training were not tried."

    @property
    def lines(self) -> list[str]:
        """The evidence, a sentence a line."""
        lines = [self.verdict, self.power, *(f"Data: {remark}" for remark in self.remarks)]
        lines += [f"Tried on {self.queries:,} training queries, without tuning: {trial.line}." for trial in self.trials]
        return [*lines, *(f"Not tried, as the time was up: {setting}." for setting in self.skipped)]

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON has it."""
        trials = [{"setting": trial.setting, **vars(trial.difference), "verdict": trial.difference.verdict} for trial in self.trials]
        return {**vars(self), "trials": trials, "worth_changing": self.worth_changing, "sentence": self.sentence}


def diagnose(
    comparison: Comparison,
    findings: Sequence[Finding],
    train: Dataset,
    base: Change,
    changes: Sequence[Change],
    *,
    seconds: float,
    group_by: str | None = None,
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Diagnosis:
    """Say what the verdict of a run may be due to.

    Args:
        comparison: Comparison of the run.
        findings: Findings of the run in its data.
        train: Training queries and all documents. No held-out query may be among them.
        base: The run's settings, with the model before tuning.
        changes: Changes to measure, cheapest first.
        seconds: Time after which no further change is begun.
        group_by: Metadata field; queries with the same value count as dependent, as near duplicates always do.
        seed: Seed of the intervals.
        clock: Seconds that have passed since any moment.
    """
    ids = list(train.judged)
    train = train.select([ids[row] for row in spread(len(ids), _QUERIES)])
    groups, metric, started = group_numbers(train, group_by), comparison.metric, clock()

    def scores(change: Change) -> Scores:
        k = int(metric.partition("@")[2])
        run = DenseRetriever(CachedEncoder(change.encoder), change.template).search(train, k)
        return score_run(run, train.qrels, ks=(k,), name=change.setting, groups=groups)

    measured: list[tuple[str, Difference]] = []
    skipped: list[str] = []
    before = scores(base) if changes and train.queries else None
    for change in changes if before else ():
        if clock() - started > seconds:
            skipped.append(change.setting)
            continue
        measured.append((change.setting, compare_scores(before, scores(change), metric=metric, seed=seed)[metric]))  # type: ignore[arg-type]
    trials = tuple(Trial(setting, replace(row, p=min(1.0, row.p * len(measured)))) for setting, row in measured)  # Bonferroni
    remarks = tuple(f"{finding.message}; fix: {_ADVICE[finding.kind]}" for finding in findings if finding.kind in _ADVICE)
    return Diagnosis(comparison.sentence, power(comparison), remarks, trials, tuple(skipped), len(train.queries))


def power(comparison: Comparison) -> str:
    """Return what the number of held-out queries can show, as text."""
    row, count = comparison[comparison.metric], len(comparison.base.query_ids)
    if row.verdict != "no difference shown":
        return f"The {count:,} held-out queries were enough to show the difference of {row.difference:+.3f}."
    text = f"{count:,} held-out queries show a difference of about {row.detectable:.2g} or more"
    if abs(row.difference) < 1e-9:
        return f"{text}; there was none on them."
    # The interval narrows with the square root of the number of queries.
    needed = count * (row.detectable / abs(row.difference)) ** 2
    return f"{text}; if the difference of {row.difference:+.3f} is real, about {needed:,.0f} would be needed to show it."
