"""What every experiment begins with: the data, its parts without leaks, the model, and where its results go."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from embedfit import console, files, processes
from embedfit.config import Config, DataConfig, ModelConfig
from embedfit.data.check import Finding, check_dataset
from embedfit.data.dataset import Dataset
from embedfit.data.duplicates import copies_among
from embedfit.data.split import Split, answers_seen, group_numbers
from embedfit.data.write import write_jsonl
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Kind, complete
from embedfit.encode.local import LocalEncoder, ModelEncoder
from embedfit.encode.pooling import pooling_of, pools_itself
from embedfit.encode.remote import RemoteEncoder, is_remote
from embedfit.errors import ConfigError, DataError
from embedfit.evaluation.score import Scores, score_run
from embedfit.files import clear_leftovers, digest
from embedfit.hub import model_folder
from embedfit.pipeline.generating import write_queries
from embedfit.pipeline.parts import asked, folds_of, gated, read, splits_of, without_held_out
from embedfit.pipeline.source import IN_MEMORY
from embedfit.retrieve.engine import Engine, LocalEngine, RayEngine
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import DEPTH, Run


def encoder_of(config: ModelConfig, name: str | None = None) -> Encoder:
    """Return the encoder that a configuration names, or another model with its prompts and precision.

    Args:
        config: Of the model.
        name: A folder or a Hub name; a remote encoder (`embedfit.remote`); or the ``adapter.safetensors`` of one.

    Raises:
        EmbedfitError: There is no such model, or no key for it.
    """
    name = name or config.name
    if is_remote(name):
        if config.pooling != "auto":
            raise ConfigError(f"model.pooling is for models that run here, and {name} pools its tokens itself; fix: leave it out")
        if config.precision != "auto":
            console.note(f"model.precision is not used: {name} computes elsewhere")
        return RemoteEncoder(name, query_prompt=config.query_prompt, document_prompt=config.document_prompt, price=config.price)
    if name.endswith(".safetensors") and Path(name).is_file():
        from embedfit.encode.adapted import AdaptedEncoder, load_adapter

        adapter = load_adapter(name)
        return AdaptedEncoder(CachedEncoder(encoder_of(config, adapter.base_name)), adapter)
    if config.price is not None and name == config.name:
        console.note(f"model.price is not used: {name} is no remote encoder")
    query, document = config.query_prompt, config.document_prompt
    pooling = config.pooling
    if pooling != "auto" and name != config.name:
        folder = model_folder(name, proof="config.json")
        if pools_itself(folder) or pooling_of(folder):
            pooling = "auto"  # another model may say its own
    return LocalEncoder(name, query_prompt=query, document_prompt=document, precision=config.precision, pooling=pooling)


def engine_of(name: Literal["local", "ray"]) -> Engine:
    """Return the engine of a name."""
    return RayEngine() if name == "ray" else LocalEngine()


@dataclass(frozen=True)
class Job:
    """What `run`, `ladder` and `curve` begin with.

    Attributes:
        config: All settings.
        dataset: As read.
        base: The model to start from, here or behind an API; not loaded before it is needed.
    """

    config: Config
    dataset: Dataset
    base: Encoder

    @classmethod
    def of(cls, config: Config, dataset: Dataset | None = None, base: Encoder | None = None) -> Job:
        """Read the data, after an LLM has written it where the settings say so, and find the model.

        Args:
            config: All settings.
            dataset: Data set in memory, in place of the files that the settings name.
            base: Encoder to start from, in place of the model that the settings name.

        Raises:
            EmbedfitError: The data or the model is missing or cannot be used.
        """
        if dataset is None:
            if config.generate.records or config.generate.questions:
                if processes.main():
                    write_queries(config)
                processes.agreed(None)  # nobody reads before all is written
            dataset = read(config.data)
        dataset.document_texts(config.data.document_template)  # refuse a wrong template now, not after the queries are encoded
        return cls(config, dataset, base or encoder_of(config.model))

    def kept_data(self, folder: Path) -> DataConfig:
        """Return where a run's data can be read again. Data in memory is written into the run directory, which then stands alone.

        Raises:
            StorageError: The data cannot be written.
        """
        if self.config.data.queries != IN_MEMORY:
            return self.config.data
        write_jsonl(self.dataset, folder / "data")
        files = {name: str(folder / "data" / f"{name}.jsonl") for name in ("queries", "documents")}
        return self.config.data.model_copy(update=files)

    @property
    def template(self) -> str:
        """What a document says."""
        return self.config.data.document_template

    @property
    def metric(self) -> str:
        """The one that verdicts are about."""
        return self.config.evaluate.metric

    @property
    def depth(self) -> int:
        """How far down a ranking the right answer is looked for."""
        return max(DEPTH, *self.config.evaluate.k)

    @cached_property
    def findings(self) -> tuple[Finding, ...]:
        """What is odd about the data; those about leaks only if they are allowed.

        Raises:
            DataError: Something that makes all figures wrong.
        """
        model = complete(self.base).local
        truncated = check_truncation(self.dataset, model.loaded, self.template) if model else []
        return (*self.checked, *truncated)

    @cached_property
    def checked(self) -> tuple[Finding, ...]:
        """The findings that need no model.

        Raises:
            DataError: Something that makes all figures wrong.
        """
        findings = check_dataset(self.dataset)
        for finding in findings:
            if finding.level == "problem":
                raise DataError(self.config.data.queries, finding.message)
        return (*findings, *self._gated[1], *(leak for _, leaks in self._others for leak in leaks))

    @property
    def splits(self) -> list[Split]:
        """One split, or as many as there are folds.

        Raises:
            DataError: A held-out query says what a training query says, and that is not allowed.
        """
        return self._gated[0]

    @cached_property
    def _gated(self) -> tuple[list[Split], list[Finding]]:
        return gated(self.config, self.dataset, splits_of(self.config, self.dataset))

    @property
    def others(self) -> list[tuple[Dataset, str]]:
        """Further data sets to train on, and their templates: without what a held-out query says, unless that is allowed.

        Raises:
            DataError: A query says what a held-out one says, and that is not allowed.
        """
        return [(other, said.document_template) for (other, _), said in zip(self._others, self.config.mix.data, strict=True)]

    @cached_property
    def _others(self) -> list[tuple[Dataset, list[Finding]]]:
        return [without_held_out(self.config, said, read(said), self.test) for said in self.config.mix.data]

    @cached_property
    def test(self) -> Dataset:
        """The queries that are held out, of all folds."""
        return self.dataset.select([id for split in self.splits for id in split.test])

    @cached_property
    def seen(self) -> dict[str, bool]:
        """Held-out query -> whether training saw one of its right answers, by the split in which it is held out."""
        more: list[str] = []  # our documents that say what a right one of a further data set says
        for other, template in self.others:
            more += itertools.chain(*copies_among(asked(self.dataset, self.template), asked(other, template)).values())
        seen: dict[str, bool] = {}
        for split in self.splits:
            seen |= zip(split.test, answers_seen(self.dataset, (*split.train, *split.dev), split.test, more=more), strict=True)
        return seen

    @property
    def parts(self) -> list[tuple[Dataset, Dataset | None, Dataset]]:
        """The train, dev (or None) and test data of each split."""
        return [split.datasets(self.dataset) for split in self.splits]

    @cached_property
    def groups(self) -> dict[str, int]:
        """Query id -> number of its group: queries that say the same or nearly, or share the value of ``split.group_by``."""
        return group_numbers(self.dataset, self.config.split.group_by)

    @cached_property
    def engine(self) -> Engine:
        """Where texts are encoded and searched."""
        return engine_of(self.config.engine)

    def dense(self, model: Encoder) -> DenseRetriever:
        """Return the search by a model's vectors."""
        return DenseRetriever(CachedEncoder(self.engine.encoder(model)), self.template, self.engine.top_k)

    def scored(self, run: Run, name: str) -> Scores:
        """Return the scores of a Run on the held-out queries."""
        return score_run(run, self.test.qrels, ks=self.config.evaluate.k, name=name, groups=self.groups)

    def folder(self, kind: str, *sections: str, more: Sequence[str] = ()) -> Path:
        """Return a run directory whose name holds a hash of everything that the result depends on."""
        described = [
            version("embedfit"),
            self.dataset.digest(),
            self.template,
            self.base.fingerprint,
            self.config.model_dump(include={"split", "tune", "evaluate", *sections}),
            folds_of(self.config, self.dataset),
            [self.config.mix.model_dump(include={"temperature"}), [(other.digest(), template) for other, template in self.others]],
            *more,
        ]
        identity = digest(described)
        return Path(self.config.output) / f"{self.config.name}{kind}-{identity[:10]}"


def check_truncation(dataset: Dataset, encoder: ModelEncoder, template: str) -> list[Finding]:
    """Return the texts that exceed the maximum length of a model.

    Args:
        dataset: Data set to check.
        encoder: Encoder that counts the tokens.
        template: Template of the document text.
    """
    texts: dict[Kind, list[str]] = {"query": dataset.query_texts(), "document": dataset.document_texts(template)}
    ids: dict[Kind, tuple[str, ...]] = {"query": tuple(dataset.queries), "document": tuple(dataset.corpus)}
    findings = []
    for kind in texts:
        truncation = encoder.truncation(texts[kind], kind)
        cut = tuple(id for id, is_cut in zip(ids[kind], truncation.cut, strict=True) if is_cut)
        if cut:
            findings.append(Finding("warning", "truncated", truncation.describe(kind), cut))
    return findings


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a run directory; those of one torchrun go in together.

    Raises:
        StorageError: There is one in it already, or the directory cannot be made.
    """
    if not processes.main():
        yield
        return
    with files.locked(folder / ".lock", f"{folder}: another embedfit is at work in it; fix: wait for it, or change 'name'"):
        clear_leftovers(folder, deep=True)
        yield
