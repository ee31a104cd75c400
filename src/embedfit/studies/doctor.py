"""Why a verdict is what it is: flaws of the data, then changes of the settings, each measured on training queries alone."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embedfit import progress
from embedfit.data.check import Finding
from embedfit.evaluation.comparison import Comparison, Difference
from embedfit.evaluation.families import compare_all
from embedfit.evaluation.score import Scores
from embedfit.studies.symptoms import Cause, queries_needed

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
_EACH = 3
"""Largest number of findings of one kind that are listed."""


@dataclass(frozen=True)
class Change:
    """A change of the settings that can be measured.

    Attributes:
        values: Key of embedfit.toml -> new value, such as ``{"model.query_prompt": ""}``; None for a line to remove. Empty for a
            change elsewhere.
        measure: Function that returns the scores of the training queries with the change.
        cost: Expected time, as a multiple of the time of the stage's base.
        elsewhere: The change as text, if it is not one of embedfit.toml.
    """

    values: Mapping[str, Any]
    measure: Callable[[], Scores]
    cost: float = 1.0
    elsewhere: str = ""

    @property
    def setting(self) -> str:
        """The change as text, such as ``model.query_prompt = ""``."""
        return self.elsewhere or " and ".join(_line(key, value) for key, value in self.values.items())

    @property
    def toml(self) -> tuple[str, ...]:
        """The change as lines of embedfit.toml."""
        sections: dict[str, list[str]] = {}
        for key, value in self.values.items():
            section, _, name = key.partition(".")
            sections.setdefault(f"[{section}]", []).append(_line(name, value))
        return tuple(line for section, lines in sections.items() for line in (section, *lines))


def _line(key: str, value: Any) -> str:
    return f"# remove {key}" if value is None else f"{key} = {json.dumps(value, ensure_ascii=False)}"


@dataclass(frozen=True)
class Stage:
    """Changes that are measured the same way, cheapest first.

    Attributes:
        name: How they are measured, such as ``without tuning``.
        base: Functions that return the scores with the run's settings; several if the base is trained with several seeds.
        changes: Changes to measure, in order.
        folds: Number of the fold of each query, shape (queries,); None for one fold.
    """

    name: str
    base: Sequence[Callable[[], Scores]]
    changes: Sequence[Change]
    folds: npt.NDArray[np.int64] | None = None

    @property
    def steps(self) -> list[str]:
        """Names of the measurements, in order."""
        seeds = [f", seed {seed} of {len(self.base)}" for seed in range(1, len(self.base) + 1)] if len(self.base) > 1 else [""]
        return [f"{self.name}: {what}" for what in [*(f"as it is{seed}" for seed in seeds), *(change.setting for change in self.changes)]]


@dataclass(frozen=True)
class Trial:
    """A change and what it brought.

    Attributes:
        setting: The change, as text.
        toml: The change, as lines of embedfit.toml; empty if it is one elsewhere.
        how: How it was measured: the name of its stage.
        difference: Metric without and with the change, on the same training queries. Interval and p-value hold for all changes at
            once.
    """

    setting: str
    toml: tuple[str, ...]
    how: str
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
        causes: Flaws of the data that explain a poor verdict, the gravest first.
        remarks: Further findings in the data, each with advice.
        trials: Changes that were measured, in order.
        skipped: Changes for which there was no time.
        queries: Number of training queries that the changes were measured on.
        notes: Reasons why some changes were not planned, and how to read the figures.
    """

    verdict: str
    power: str
    causes: tuple[Cause, ...]
    remarks: tuple[str, ...]
    trials: tuple[Trial, ...]
    skipped: tuple[str, ...]
    queries: int
    notes: tuple[str, ...] = ()

    @property
    def helpful(self) -> tuple[Trial, ...]:
        """The one or two changes that were shown to help, the largest gain first."""
        helpful = [trial for trial in self.trials if trial.difference.verdict == "better"]
        return tuple(sorted(helpful, key=lambda trial: -trial.difference.difference)[:2])

    @property
    def worth_changing(self) -> tuple[str, ...]:
        """These changes, as text."""
        return tuple(trial.setting for trial in self.helpful)

    @property
    def named(self) -> tuple[str, ...]:
        """Names of the likely causes: of flaws in the data, then the settings worth changing."""
        return (*(cause.name for cause in self.causes), *self.worth_changing)

    @property
    def sentence(self) -> str:
        """The conclusion, as text."""
        parts = [f"Look at the data first: {'; '.join(cause.name for cause in self.causes)}."] if self.causes else []
        if self.worth_changing:
            parts.append(f"Worth changing: {'; and '.join(self.worth_changing)}. Then 'embedfit run' shows what it brings.")
            return " ".join(parts)
        tried = f"None of {len(self.trials):,} changes was shown to help" if self.trials else "No change could be tried"
        see = "; see the findings in the data" if self.remarks and not self.causes else ""
        return " ".join([*parts, f"{tried}{see}."])

    @property
    def lines(self) -> list[str]:
        """The evidence, a sentence a line."""
        lines = [self.verdict, self.power, *(f"Cause: {cause}." for cause in self.causes), *(f"Data: {remark}" for remark in self.remarks)]
        lines += [f"Tried on {self.queries:,} training queries, {trial.how}: {trial.line}." for trial in self.trials]
        return [*lines, *(f"Not tried, as the time was up: {setting}." for setting in self.skipped), *self.notes, *self.settings]

    @property
    def settings(self) -> list[str]:
        """The settings worth changing as lines of embedfit.toml."""
        lines = [line for trial in self.helpful for line in trial.toml]
        return ["In embedfit.toml:", *lines] if lines else []

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as JSON has it."""
        trials = [{**vars(trial), **vars(trial.difference), "verdict": trial.difference.verdict} for trial in self.trials]
        causes = [vars(cause) for cause in self.causes]
        more = {"worth_changing": self.worth_changing, "named": self.named, "sentence": self.sentence}
        return {**vars(self), "causes": causes, "trials": trials, **more}


def diagnose(
    comparison: Comparison,
    findings: Sequence[Finding],
    causes: Sequence[Cause],
    stages: Sequence[Stage],
    *,
    seconds: float,
    queries: int,
    notes: Sequence[str] = (),
    seed: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Diagnosis:
    """Say what the verdict of a run may be due to.

    The intervals hold for all planned changes at once, measured or not, since the best is chosen.

    Args:
        comparison: Comparison of the run.
        findings: Findings of the run in its data.
        causes: Flaws of the data that were measured.
        stages: Changes to measure. No held-out query may be scored.
        seconds: Time after which no further change is begun. A change that would take longer than what is left is not begun either.
        queries: Number of training queries that the changes are measured on.
        notes: Sentences to add.
        seed: Seed of the intervals.
        clock: Seconds that have passed since any moment.
    """
    started, family = clock(), sum(len(stage.changes) for stage in stages)
    trials: list[Trial] = []
    skipped: list[str] = []
    with progress.plan("doctor", [step for stage in stages for step in stage.steps]) as plan:
        for stage in stages:
            done, left = _measured(stage, plan, lambda: seconds - (clock() - started), clock)
            skipped += left
            if done:
                base, changed = done[: len(stage.base)], done[len(stage.base) :]
                rows = compare_all(base, changed, metric=comparison.metric, family=family, folds=stage.folds, seed=seed)
                measured = [change for change in stage.changes if change.setting not in left]
                trials += [Trial(change.setting, change.toml, stage.name, row) for change, row in zip(measured, rows, strict=True)]
    return Diagnosis(
        comparison.sentence, power(comparison), tuple(causes), _remarks(findings), tuple(trials), tuple(skipped), queries, tuple(notes)
    )


def _measured(stage: Stage, plan: progress.Plan, left: Callable[[], float], clock: Callable[[], float]) -> tuple[list[Scores], list[str]]:
    """Return the scores of the base and of the changes that there was time for, and the other changes."""
    steps, count = stage.steps, len(stage.base)
    scores: list[Scores] = []
    skipped: list[str] = []
    slowest = 0.0
    if not stage.changes or left() < 0:
        plan.skip(*steps)
        return [], [change.setting for change in stage.changes]
    for step, measure in zip(steps[:count], stage.base, strict=True):
        began = clock()
        with plan.step(step):
            scores.append(measure())
        slowest = max(slowest, clock() - began)
        if left() < 0:
            plan.skip(*steps[len(scores) :])
            return [], [change.setting for change in stage.changes]
    for step, change in zip(steps[count:], stage.changes, strict=True):
        if left() < (slowest * change.cost if count > 1 else 0):
            skipped.append(change.setting)
            plan.skip(step)
            continue
        with plan.step(step):
            scores.append(replace(change.measure(), name=change.setting))
    return scores, skipped


def _remarks(findings: Sequence[Finding]) -> tuple[str, ...]:
    remarks: dict[str, list[str]] = {}
    for finding in findings:
        if finding.kind in _ADVICE:
            remarks.setdefault(finding.kind, []).append(f"{finding.message}; fix: {_ADVICE[finding.kind]}")
    more = {kind: f"... and {len(texts) - _EACH:,} more of the kind '{kind}'" for kind, texts in remarks.items() if len(texts) > _EACH}
    return tuple(text for kind, texts in remarks.items() for text in [*texts[:_EACH], *([more[kind]] if kind in more else [])])


def power(comparison: Comparison) -> str:
    """Return what the number of held-out queries can show, as text."""
    row, count = comparison[comparison.metric], len(comparison.base.query_ids)
    if row.verdict != "no difference shown":
        return f"The {count:,} held-out queries were enough to show the difference of {row.difference:+.3f}."
    text = f"{count:,} held-out queries show a difference of about {row.detectable:.2g} or more"
    if abs(row.difference) < 1e-9:
        return f"{text}; there was none on them."
    needed = queries_needed(comparison, row.difference)
    return f"{text}; if the difference of {row.difference:+.3f} is real, about {needed:,} would be needed to show it."
