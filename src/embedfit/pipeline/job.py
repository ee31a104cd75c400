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
from embedfit.config import Config, DataConfig, ModelConfig, TuneConfig, unused_settings
from embedfit.data.check import Finding, check_dataset, check_groups, check_leaks, check_truncation
from embedfit.data.dataset import Dataset
from embedfit.data.duplicates import copies_among
from embedfit.data.load import load
from embedfit.data.records import record_type
from embedfit.data.split import Split, answers_seen, group_numbers, split_dataset, split_folds, without_leaks
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.local import LocalEncoder
from embedfit.encode.pooling import pooling_of, pools_itself
from embedfit.encode.remote import RemoteEncoder, is_remote
from embedfit.errors import ConfigError, DataError, ModelError, check_package
from embedfit.evaluation.score import Scores, score_run
from embedfit.files import clear_leftovers, digest
from embedfit.hub import model_folder
from embedfit.pipeline.generating import write_queries
from embedfit.retrieve.engine import Engine, LocalEngine, RayEngine
from embedfit.retrieve.rerank import LocalReranker
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import DEPTH, Run
from embedfit.track.langwatch import langwatch_key

_FOLDS, _FEW_QUERIES = 5, 1000
"""Under so many judged queries, each is held out once by default, in so many folds."""
_ADAPTERS_SETTINGS = {"method", "scale", "seed"}
"""What an adapter heeds of [tune]; the rest is noted as unused."""

LISTED = 20
"""Leaks that an error or an alert lists."""


def read(config: DataConfig, problems: list[DataError] | None = None) -> Dataset:
    """Read the data set that a configuration names; see `load`."""
    if config.query_template and not config.record:
        raise ConfigError("data.query_template needs data.record: it is filled from a record's fields")
    if Path(config.queries).is_dir():
        unused = [f"data.{name}" for name in ("documents", "record", "label", "grade", "separator") if getattr(config, name) is not None]
        unused += ["data.query"] if config.query != "query" else []
        if unused:
            raise ConfigError(
                f"data.queries is the folder {config.queries}, which has its own documents, judgements and columns; "
                f"fix: drop {' and '.join(unused)}"
            )
    record = record_type(config.record, template=config.query_template, label=config.label) if config.record else None
    return load(
        config.queries,
        config.documents,
        query=config.query,
        label=config.label,
        grade=config.grade,
        separator=config.separator,
        record=record,
        problems=problems,
    )


def encoder(config: ModelConfig, name: str | None = None) -> Encoder:
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
        return AdaptedEncoder(CachedEncoder(encoder(config, adapter.base_name)), adapter)
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


def local(encoder: Encoder) -> LocalEncoder:
    """Return an encoder that has its weights here.

    Raises:
        ModelError: It has not.
    """
    model = complete(encoder).local
    if model is None:
        raise ModelError(f"{encoder.name} reads texts elsewhere, so its tokens and weights are not here")
    return model


def check_installed(config: Config, *, trains: bool = False, stores: bool = False, model: str | None = None) -> None:
    """Refuse in the first second what would need a package that is not installed, and not after hours of work.

    Args:
        config: All settings.
        trains: Whether the command trains a model.
        stores: Whether it needs the vector store.
        model: What it uses in place of the configured model.

    Raises:
        EmbedfitError: A package is missing, with the command that installs it.
    """
    needed: list[tuple[str, str]] = []
    if trains:
        needed += [("peft", "lora")] if config.tune.method == "lora" else []
        needed += [(name, name) for name in config.track.report_to]
        needed += [(name, "generate") for name in ("instructor", "openai") if config.generate.records or config.generate.questions]
    if stores:
        packages = {"chroma": ("chromadb",), "pgvector": ("psycopg", "pgvector"), "qdrant": ("qdrant_client",)}
        needed += [(name, config.store.kind) for name in packages[config.store.kind]]
    if config.engine == "ray":
        needed.append(("ray", "ray"))
    name = model or config.model.name
    if is_remote(name) and name.startswith("openai:"):
        needed.append(("openai", "openai"))
    if config.track.langwatch and langwatch_key():
        needed += [(name, "langwatch") for name in ("opentelemetry.exporter.otlp.proto.common", "opentelemetry.sdk")]
    for package, extra in needed:
        check_package(package, extra=extra)


def note_unused(config: Config, command: str) -> None:
    """Say in one line which settings that were given have no part in a command, where one could think that they had."""
    unused = unused_settings(config, command)
    if unused:
        console.note(f"'embedfit {command}' does not use {', '.join(unused)}")


def check_method(base: Encoder, config: TuneConfig, report_to: Sequence[str] = ()) -> None:
    """Refuse to train weights that are not here, before anything is paid for, and say what the method has no use for.

    Raises:
        ConfigError: The method needs weights, and the model is behind an API; or it is an adapter, and something asked for needs a
            training of weights.
        ModelError: The judge of mined documents is no cross-encoder that is here.
    """
    if config.method == "adapter" and report_to:
        raise ConfigError(
            "track.report_to follows the training of weights, and an adapter is fitted in seconds without it; "
            "fix: leave it out, or tune.method = 'full'"
        )
    if config.method != "adapter" and not complete(base).local:
        raise ConfigError(f'{base.name} has no weights here to train; fix: method = "adapter" in [tune] fits a map of its query vectors')
    unused = sorted(config.model_fields_set - _ADAPTERS_SETTINGS) if config.method == "adapter" else []
    if unused:
        console.note(f"an adapter is fitted without {', '.join(f'tune.{name}' for name in unused)}")
    elif config.method == "full" and "lora_rank" in config.model_fields_set:
        console.note("tune.lora_rank is not used: tune.method is 'full'")
    if config.judge and config.method != "adapter":
        LocalReranker(config.judge)


def splits_of(config: Config, dataset: Dataset) -> list[Split]:
    """Return the splits that a configuration describes: one, or as many as there are folds.

    Where nothing is said, data sets of under 1,000 judged queries are scored out of fold, unless they come with a test part.
    """
    said, folds = config.split, folds_of(config, dataset)
    if folds:
        return split_folds(dataset, folds, dev=said.dev, seed=said.seed, group_by=said.group_by, by=said.by)
    return [one_split(config, dataset)]


def folds_of(config: Config, dataset: Dataset) -> int:
    """Return the number of folds; 0 for one split. Where neither folds nor a share for the test part is said, few queries have folds."""
    said = config.split
    if said.folds is not None:
        return said.folds
    few = len(dataset.judged) < _FEW_QUERIES and not dataset.parts.get("test")
    return _FOLDS if few and "test" not in said.model_fields_set else 0


def one_split(config: Config, dataset: Dataset) -> Split:
    """Return the train, dev and test parts that a configuration describes.

    Raises:
        ConfigError: It says a share for a part that the data set comes with.
    """
    said, judged = config.split, set(dataset.judged)
    for part in ("test", "dev"):
        official = len(judged.intersection(dataset.parts.get(part, ())))
        # A dev part of 0 is none, whatever the data set comes with.
        if official and part in said.model_fields_set and getattr(said, part):
            raise ConfigError(
                f"split.{part} is {getattr(said, part):g}, and the data comes with a {part} part of {official:,} queries, which is used; "
                f"fix: leave split.{part} out"
            )
    return split_dataset(dataset, test=said.test, dev=said.dev, seed=said.seed, group_by=said.group_by, by=said.by)


def leaks(config: Config, dataset: Dataset) -> list[Finding]:
    """Return the leaks between the parts that a configuration describes; folds have none, as what is near stays together.

    Fields by which queries might be grouped are among them, if they are not grouped yet.
    """
    parts = vars(one_split(config, dataset))
    return [*check_leaks(dataset, parts), *([] if config.split.group_by else check_groups(dataset, parts))]


def gated(config: Config, dataset: Dataset, splits: Sequence[Split]) -> tuple[list[Split], list[Finding]]:
    """Return the splits as they may be used, and the leaks that are left in them.

    Raises:
        DataError: A held-out query says what another part says, and ``split.leaks`` is ``fail``.
    """
    policy = config.split.leaks
    clean, left = [], []
    for split in splits:
        found = check_leaks(dataset, vars(split))
        if found and policy == "fail":
            for leak in found[:LISTED]:
                console.note(leak.message)
            more = " ('embedfit check' lists them all)" if len(found) > LISTED else ""
            raise DataError(
                config.data.queries,
                f"{len(found):,} held-out queries say what is trained on{more}, such as: {found[0].message}",
                fix='leaks = "drop" in [split] trains without these; --allow-leaks goes on, and the report says so in red',
            )
        clean.append(without_leaks(split, found) if policy == "drop" else split)
        left += found if policy == "allow" else []
    return clean, left


def without_held_out(config: Config, said: DataConfig, other: Dataset, test: Dataset) -> tuple[Dataset, list[Finding]]:
    """Return the judged queries of a further data set as they may be trained on, and the leaks that are left in them.

    Raises:
        DataError: A held-out query says what one of them says, and ``split.leaks`` is ``fail``; or there are none.
    """
    train = {f"{said.queries} {id}": other.queries[id] for id in other.judged}
    both = Dataset({**train, **{id: query for id, query in test.queries.items() if id not in train}}, {}, {})
    found = check_leaks(both, {"train": list(train), "test": [id for id in test.queries if id not in train]})
    if found and config.split.leaks == "fail":
        raise DataError(
            said.queries,
            f"{len(found):,} held-out queries say what its queries say, such as: {found[0].message}",
            fix='leaks = "drop" in [split] trains without these',
        )
    leaking = {id for finding in found for id in finding.ids[1:]} if config.split.leaks == "drop" else set()
    answers = _held_out_answers(config, said, other, test) if config.split.by == "documents" else set()
    kept = other.select(id for id in other.judged if f"{said.queries} {id}" not in leaking and answers.isdisjoint(other.relevant(id)))
    if not kept.queries:
        raise DataError(said.queries, "has no query that may be trained on", fix="leave it out of [[mix.data]]")
    return kept, found if config.split.leaks == "allow" else []


def _held_out_answers(config: Config, said: DataConfig, other: Dataset, test: Dataset) -> set[str]:
    """Return the documents of a further data set that say what a right answer of a held-out query says, or nearly."""
    held_out = _asked(test, config.data.document_template)
    theirs = _asked(other, said.document_template)
    return {id for id, copies in copies_among(held_out, theirs).items() if copies}


def _asked(dataset: Dataset, template: str) -> dict[str, str]:
    """Return the ids and texts of the documents that are right for some query."""
    asked = {document for id in dataset.judged for document in dataset.relevant(id)}
    return {id: text for id, text in zip(dataset.corpus, dataset.document_texts(template), strict=True) if id in asked}


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
    def of(cls, config: Config) -> Job:
        """Read the data, have it written first where the configuration says so, and find the model.

        Raises:
            EmbedfitError: Either is not there or cannot be used.
        """
        if config.generate.records or config.generate.questions:
            if processes.main():
                write_queries(config)
            processes.agreed(None)  # nobody reads before all is written
        dataset = read(config.data)
        dataset.document_texts(config.data.document_template)  # refuse a wrong template now, not after the queries are encoded
        return cls(config, dataset, encoder(config.model))

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
            more += itertools.chain(*copies_among(_asked(self.dataset, self.template), _asked(other, template)).values())
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
