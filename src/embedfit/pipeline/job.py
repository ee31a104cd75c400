"""Starting point of every experiment: the data, its parts without leaks, the model, and the run directory."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from embedfit import files, processes
from embedfit.config import Config, DataConfig
from embedfit.data.check import Finding, check_dataset
from embedfit.data.dataset import Dataset
from embedfit.data.duplicates import copies_among
from embedfit.data.split import Split, answers_seen, group_numbers
from embedfit.data.write import write_jsonl
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Kind
from embedfit.encode.lengths import Lengths
from embedfit.encode.local import ModelEncoder, Truncation, local_of
from embedfit.encode.named import encoder_of
from embedfit.errors import DataError
from embedfit.evaluation.compare import compare_scores
from embedfit.evaluation.comparison import Comparison
from embedfit.evaluation.score import Scores, score_run
from embedfit.files import clear_leftovers, digest
from embedfit.pipeline.generating import write_queries
from embedfit.pipeline.needs import check_method
from embedfit.pipeline.parts import answer_texts, folds_of, gated, read, splits_of, without_held_out
from embedfit.pipeline.picked import Pick, Picked, with_picks
from embedfit.pipeline.source import IN_MEMORY
from embedfit.retrieve.engine import Engine, LocalEngine, RayEngine
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import DEPTH, Run
from embedfit.tune.candidates import has_judged_negatives


def engine_of(name: Literal["local", "ray"]) -> Engine:
    """Return an engine by name."""
    return RayEngine() if name == "ray" else LocalEngine()


@dataclass(frozen=True)
class Job:
    """Starting point of `run`, `ladder` and `curve`.

    Attributes:
        config: All settings.
        dataset: Data set from the files or from memory.
        base: Encoder to start from, local or behind an API; loaded on first use.
        picked: What people picked, which is part of the data set; None if there is none.
    """

    config: Config
    dataset: Dataset
    base: Encoder
    picked: Picked | None = None

    @classmethod
    def of(
        cls,
        config: Config,
        dataset: Dataset | None = None,
        base: Encoder | None = None,
        *,
        trains: bool = False,
        picks: Sequence[Pick] | None = None,
    ) -> Job:
        """Find the model and read the data. An LLM writes the queries before that, if the settings ask for it.

        Args:
            config: All settings.
            dataset: Data set in memory, in place of the files that the settings name.
            base: Encoder to start from, in place of the model that the settings name.
            trains: Whether the model is going to be trained by the method of the settings, which is checked before an LLM is paid.
            picks: What people picked, to train on too; None for nothing.

        Raises:
            EmbedfitError: The data or the model is missing or unusable.
        """
        base = base or encoder_of(config.model)
        if trains:
            check_method(base, config.tune, config.track.report_to)
        if dataset is None:
            if config.generate.records or config.generate.questions:
                model = local_of(base)
                if model and model.loading:
                    model.loaded  # noqa: B018 (raises before an LLM is paid if the weights cannot be loaded so)
                if processes.main():
                    write_queries(config)
                processes.agreed(None)  # no process reads before everything is written
            dataset = read(config.data, model=config.model)
        dataset.document_texts(config.data.document_template)  # raises on a wrong template before anything is encoded
        picked = None if picks is None else with_picks(dataset, processes.agreed(picks), config)
        return cls(config, picked.dataset if picked else dataset, base, picked)

    def kept_data(self, folder: Path) -> DataConfig:
        """Return the settings that read a run's data again. Data in memory, or with picks, is written into the run directory first.

        Raises:
            StorageError: The data cannot be written.
        """
        if self.config.data.queries != IN_MEMORY and not self.picked:
            return self.config.data
        write_jsonl(self.dataset, folder / "data")
        files = {name: str(folder / "data" / f"{name}.jsonl") for name in ("queries", "documents")}
        return DataConfig(**files, document_template=self.template)

    @property
    def template(self) -> str:
        """The document template."""
        return self.config.data.document_template

    @property
    def metric(self) -> str:
        """The metric of the verdict."""
        return self.config.evaluate.metric

    @property
    def depth(self) -> int:
        """The number of documents in each ranking."""
        return max(DEPTH, *self.config.evaluate.k)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """The findings in the data; leaks are among them only if they are allowed.

        Raises:
            DataError: A finding makes all figures wrong.
        """
        model = local_of(self.base)
        truncated = check_truncation(self.dataset, model.loaded, self.template) if model else []
        return (*self.checked, *truncated)

    @cached_property
    def checked(self) -> tuple[Finding, ...]:
        """The findings that need no model.

        Raises:
            DataError: A finding makes all figures wrong.
        """
        findings = check_dataset(self.dataset)
        for finding in findings:
            if finding.level == "problem":
                raise DataError(self.config.data.queries, finding.message)
        return (*findings, *self._gated[1], *(leak for _, leaks in self._further for leak in leaks))

    @property
    def splits(self) -> list[Split]:
        """The splits: one per fold, or a single one without folds.

        Raises:
            DataError: A held-out query repeats a training query, and leaks are not allowed.
        """
        return self._gated[0]

    @cached_property
    def _gated(self) -> tuple[list[Split], list[Finding]]:
        splits, leaks = gated(self.config, self._labelled, splits_of(self.config, self._labelled))
        return [self.picked.joined(split, self.config) for split in splits] if self.picked else splits, leaks

    @property
    def _labelled(self) -> Dataset:
        """The data set without picks."""
        return self.picked.labelled if self.picked else self.dataset

    @property
    def further(self) -> list[tuple[Dataset, str]]:
        """Further data sets to train on, each with its template; without copies of held-out queries, unless leaks are allowed.

        Raises:
            DataError: A query repeats a held-out query, and leaks are not allowed.
        """
        return [(dataset, source.document_template) for (dataset, _), source in zip(self._further, self.config.mix.data, strict=True)]

    @cached_property
    def _further(self) -> list[tuple[Dataset, list[Finding]]]:
        test = self.test
        if self.picked:
            ids = [*test.queries, *self.picked.today.queries]
            test = self.picked.everything.select(ids)
        return [without_held_out(self.config, source, read(source, model=self.config.model), test) for source in self.config.mix.data]

    @cached_property
    def test(self) -> Dataset:
        """The held-out queries of all folds."""
        return self.dataset.select([id for split in self.splits for id in split.test])

    @cached_property
    def seen(self) -> dict[str, bool]:
        """Held-out query id -> whether training saw one of its right answers, in the split that holds the query out."""
        copies: list[str] = []  # ids of documents whose text is a right answer in a further data set
        for dataset, template in self.further:
            copies += itertools.chain(*copies_among(answer_texts(self.dataset, self.template), answer_texts(dataset, template)).values())
        seen: dict[str, bool] = {}
        for split in self.splits:
            seen |= zip(split.test, answers_seen(self.dataset, (*split.train, *split.dev), split.test, more=copies), strict=True)
        return seen

    @property
    def parts(self) -> list[tuple[Dataset, Dataset | None, Dataset]]:
        """The train, dev (or None) and test data of each split."""
        return [split.datasets(self.dataset) for split in self.splits]

    @property
    def choices(self) -> int:
        """The number of models that the base was chosen from by its scores on held-out queries; 1 if it was not."""
        candidates = set(self.config.model.candidates)
        return len(candidates) if candidates and len(self.splits) > 1 else 1

    @cached_property
    def groups(self) -> dict[str, int]:
        """Query id -> number of its group: copies, near copies, or queries with the same value of ``split.group_by``."""
        return group_numbers(self.dataset, self.config.split.group_by)

    @cached_property
    def engine(self) -> Engine:
        """The engine that encodes and searches."""
        return engine_of(self.config.engine)

    def dense(self, model: Encoder) -> DenseRetriever:
        """Return the dense retriever of a model."""
        return DenseRetriever(CachedEncoder(self.engine.encoder(model)), self.template, self.engine.top_k)

    def scored(self, run: Run, name: str) -> Scores:
        """Return the scores of a Run on the held-out queries."""
        return score_run(run, self.test.qrels, ks=self.config.evaluate.k, name=name, groups=self.groups)

    def compared(self, base: Scores, tuned: Sequence[Scores]) -> Comparison:
        """Return the comparison of two models on the held-out queries.

        Args:
            base: Scores of the first model.
            tuned: Scores of the second model, one for each seed.
        """
        seen = [self.seen[id] for id in base.query_ids]
        return compare_scores(base, tuned, metric=self.metric, seed=self.config.split.seed, held_out=True, seen=seen, choices=self.choices)

    def folder(self, kind: str, *sections: str, more: Sequence[str] = ()) -> Path:
        """Return a run directory whose name contains a hash of everything the result depends on."""
        described = [
            version("embedfit"),
            self.dataset.digest(),
            self.template,
            self.base.fingerprint,
            {**self.config.model_dump(include={"split", "evaluate", *sections}), "tune": self.config.tune.identity()},
            folds_of(self.config, self._labelled),
            [self.config.mix.model_dump(include={"temperature"}), [(dataset.digest(), template) for dataset, template in self.further]],
            *(["candidates", self.choices] if self.choices > 1 else []),
            *(["judged negatives"] if has_judged_negatives(self.dataset) else []),  # they were not drawn once
            *([self.picked.today.digest()] if self.picked else []),
            *more,
        ]
        identity = digest(described)
        return Path(self.config.output) / f"{self.config.name}{kind}-{identity[:10]}"


def check_truncation(dataset: Dataset, encoder: ModelEncoder, template: str) -> list[Finding]:
    """Return a finding for the queries, and one for the documents, that exceed the maximum length of a model.

    Args:
        dataset: Data set to check.
        encoder: Encoder that counts the tokens.
        template: Template of the document text.
    """
    return truncated(dataset, truncations(dataset, encoder, template))


def truncations(dataset: Dataset, counter: ModelEncoder | Lengths, template: str) -> dict[Kind, Truncation]:
    """Return the token counts of the queries and of the documents."""
    texts: dict[Kind, list[str]] = {"query": dataset.query_texts(), "document": dataset.document_texts(template)}
    return {kind: counter.truncation(texts[kind], kind) for kind in texts}


def truncated(dataset: Dataset, counted: Mapping[Kind, Truncation]) -> list[Finding]:
    """Return a finding for the queries, and one for the documents, that are longer than the model reads."""
    ids: dict[Kind, Iterable[str]] = {"query": dataset.queries, "document": dataset.corpus}
    findings = []
    for kind, truncation in counted.items():
        cut = tuple(id for id, is_cut in zip(ids[kind], truncation.cut, strict=True) if is_cut)
        if cut:
            findings.append(Finding("warning", "truncated", truncation.describe(kind), cut))
    return findings


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a run directory against other processes; those of the same torchrun share it.

    Raises:
        StorageError: Another process holds the lock, or the directory cannot be made.
    """
    if not processes.main():
        yield
        return
    with files.locked(folder / ".lock", f"{folder}: another embedfit process is using it; fix: wait for it, or change 'name'"):
        clear_leftovers(folder, deep=True)
        yield
