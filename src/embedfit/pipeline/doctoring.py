"""Diagnosis of a finished run: flaws of its data, changes that need no training, and small trainings, all on training queries."""

from __future__ import annotations

import typing
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from embedfit.config import Config
from embedfit.data.dataset import Dataset
from embedfit.data.split import group_numbers
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.lengths import Lengths
from embedfit.encode.local import local_of
from embedfit.encode.longer import LongerEncoder, readable_length
from embedfit.encode.named import encoder_of
from embedfit.encode.pooling import Pooling, settings_of
from embedfit.errors import ConfigError
from embedfit.evaluation.score import Scores, score_run
from embedfit.pipeline.ablating import Bed
from embedfit.pipeline.job import Job, locked, truncations
from embedfit.pipeline.result import Result, config_of, data_of, is_reranker, read_result
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import Run
from embedfit.studies.doctor import Change, Diagnosis, Stage, diagnose
from embedfit.studies.forms import spread
from embedfit.studies.methods import richer_template
from embedfit.studies.symptoms import Cause, causes_in, limits_of, unrelated

UNTUNED, TUNED = "without tuning", "after tuning"
"""Names of the stages."""
_QUERIES = 500
"""Largest number of training queries that a change without training is measured on."""


def diagnose_run(folder: str | Path, *, minutes: float = 10.0) -> Diagnosis:
    """Say what the verdict of a run may be due to, by changes that are measured on its training queries alone.

    What was measured is kept in ``RUN/doctor``, so an interrupted diagnosis goes on where it stopped, and one with more minutes
    measures what there was no time for.

    Args:
        folder: Run directory.
        minutes: Time after which no further change is begun.

    Raises:
        EmbedfitError: The run is not finished, its data has changed, or its base model cannot be loaded.
    """
    result = read_result(folder)
    if is_reranker(result):
        raise ConfigError(f"{folder}: tuned a reranker, and the causes and changes that are known are those of encoders")
    config = config_of(result)
    base = encoder_of(config.model)
    job = Job.of(config, data_of(result), base)
    where = result.folder / "doctor"
    with locked(where):
        patient = Patient(job, result)
        stages, notes = [patient.untuned], list(patient.notes)
        trainings, why_not = Bed.of(job, result, where)
        if trainings:
            stages.append(trainings.stage(TUNED))
        return diagnose(
            result.alone,
            result.findings,
            patient.causes,
            stages,
            seconds=60 * minutes,
            queries=len(patient.train.queries),
            notes=[*notes, *why_not],
            seed=config.split.seed,
        )


@dataclass
class Patient:
    """A finished run, of which everything without training is measured.

    Attributes:
        job: Data, settings and base model of the run.
        result: The run.
    """

    job: Job
    result: Result

    @cached_property
    def train(self) -> Dataset:
        """Training queries of the first split, at most `_QUERIES`, and all documents."""
        train = self.job.parts[0][0]
        ids = list(train.judged)
        return train.select([ids[row] for row in spread(len(ids), _QUERIES)])

    @cached_property
    def groups(self) -> dict[str, int]:
        """Query id -> number of its group."""
        return group_numbers(self.train, self.job.config.split.group_by)

    @property
    def notes(self) -> list[str]:
        """How to read the figures."""
        if len(self.job.splits) < 2:
            return []
        return [
            "Each query is held out in one fold of the run, so these queries return in the verdict of the next run, which may flatter a "
            "setting chosen here: measure it on new queries where it matters."
        ]

    @cached_property
    def causes(self) -> list[Cause]:
        """Flaws of the data."""
        prompts = {kind: prompt for kind, prompt in complete(self.job.base).prompts.items() if prompt}
        causes = causes_in(self.result.findings, self.train, typing.cast(dict[str, str], prompts))
        if not complete(self.job.base).remote and self.train.queries:
            encoder = CachedEncoder(self.job.engine.encoder(self.job.base))
            run = self.searched(self.job.base, self.job.template)
            causes += unrelated(self.train, run, encoder, self.groups, seed=self.job.config.split.seed)
        return [*causes, *limits_of(self.result.alone)]

    @property
    def untuned(self) -> Stage:
        """The changes that need no training."""
        job = self.job
        if complete(job.base).remote or not self.train.queries:
            return Stage(UNTUNED, [], [])
        changes = [
            Change(values, self._measure(encoder, template), elsewhere=elsewhere)
            for values, encoder, template, elsewhere in _changes(job.config, job.base, self.train)
        ]
        return Stage(UNTUNED, [self._measure(job.base, job.template)], changes)

    def searched(self, encoder: Encoder, template: str) -> Run:
        """Return the ranking of the training queries by an encoder's vectors."""
        retriever = DenseRetriever(CachedEncoder(self.job.engine.encoder(encoder)), template, self.job.engine.top_k)
        return retriever.search(self.train, self.job.depth)

    def _measure(self, encoder: Encoder, template: str) -> Callable[[], Scores]:
        k = int(self.job.metric.partition("@")[2])
        return lambda: score_run(self.searched(encoder, template), self.train.qrels, ks=(k,), groups=self.groups)


def _changes(config: Config, base: Encoder, train: Dataset) -> list[tuple[dict[str, Any], Encoder, str, str]]:
    """Return (values, encoder, template, text) of each change, cheapest first: of queries alone, then of documents."""
    template = config.data.document_template
    changes: list[tuple[dict[str, Any], Encoder, str, str]] = []

    def add(**prompts: str) -> None:
        encoder = encoder_of(config.model.model_copy(update=prompts))
        changes.append(({f"model.{name}": text for name, text in prompts.items()}, encoder, template, ""))

    own = complete(base).prompts
    if own["query"]:
        add(query_prompt="")
    if own["document"]:
        add(document_prompt="")
    if own["query"] and own["document"]:
        add(query_prompt="", document_prompt="")
    local = local_of(base)
    named = settings_of(local.folder).get("prompts") or {} if local else {}
    for text in dict.fromkeys(text for text in named.values() if text and text not in own.values()):
        add(query_prompt=text)
    richer = richer_template(train, template)
    if richer:
        changes.append(({"data.document_template": richer}, base, richer, ""))
    length = _worth_reading(base, train, template)
    if local and length:
        text = f"max_seq_length of {length:,} in sentence_bert_config.json of the model's folder"
        changes.append(({}, LongerEncoder(local, length), template, text))
    for pooling in typing.get_args(Pooling) if local and local.pooling else ():
        if pooling not in ("auto", local.pooling if local else "") and pooling in ("mean", "cls", "lasttoken"):
            encoder = encoder_of(config.model.model_copy(update={"pooling": pooling}))
            changes.append(({"model.pooling": pooling}, encoder, template, ""))
    return changes


def _worth_reading(base: Encoder, train: Dataset, template: str) -> int | None:
    """Return the number of tokens that the model could read of the longest text, if that is more than it reads; else None."""
    local = local_of(base)
    most = readable_length(local) if local else None
    if local is None or most is None:
        return None
    counted = truncations(train, Lengths(local), template).values()
    longest = max(int(truncation.counts.max(initial=0)) for truncation in counted)
    limit = next(iter(counted)).limit
    length = min(most, longest)
    return length if limit < length else None
