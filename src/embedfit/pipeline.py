"""The whole way, from files to a verdict.

(generate ->) data -> check -> split -> encode -> retrieve -> score -> tune -> compare -> report
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np

from embedfit import console, ranks
from embedfit.check import Finding, check_dataset, check_leaks, check_truncation, warnings
from embedfit.compare import Comparison, compare_scores, metric_label
from embedfit.config import Config, DataConfig, GeneralConfig, ModelConfig, TuneConfig
from embedfit.curve import Curve, learning_curve
from embedfit.data import DOCUMENT_TEMPLATE, Dataset, Query, load, read_documents, text_key, writing
from embedfit.encode import CachedEncoder, Encoder, LocalEncoder, seconds_alone
from embedfit.engine import Engine, LocalEngine, RayEngine
from embedfit.errors import ConfigError, DataError, ModelError, StorageError, require
from embedfit.general import WEIGHTS, Forgetting, general_set, measure_forgetting, merged_runs
from embedfit.generate import Estimate, Generated, estimate, generate
from embedfit.ladder import Ladder, Setting, climb, richer_template
from embedfit.mix import mixed, rendered
from embedfit.parity import Form, check_forms
from embedfit.plan import PERSONAS, STYLES, Questions, Records, Task, prompt_template, read_examples
from embedfit.publish import (
    EXAMPLES,
    Parity,
    Publication,
    Target,
    check_dataset_parity,
    check_parity,
    dataset_publication,
    model_publication,
    public_name,
)
from embedfit.records import record_type
from embedfit.remote import RemoteEncoder, is_remote
from embedfit.report import ForgettingChart, LadderRow, Report, curve_html, generated_html, html, ladder_html, per_query
from embedfit.rerank import TOP, Reranker, rerank
from embedfit.retrieve import DEPTH, BM25Retriever, DenseRetriever, FusedRetriever, Retriever, Run, joined
from embedfit.score import KS, Scores, score_run
from embedfit.split import Split, split_dataset, split_folds, without_leaks
from embedfit.store import Store, open_store
from embedfit.store.versions import Indexed, LiveIndex, index_documents, overlap
from embedfit.suspects import find_suspects, write_suspects
from embedfit.track import Tracker, tracking

if TYPE_CHECKING:
    import pandas as pd

    from embedfit.endpoint import Endpoint
    from embedfit.tune.result import Tuned

_CANDIDATES = {
    "all": "all documents",
    "mined": "the batch's documents, mined and random ones",
    "batch": "the batch's documents and random ones",
}
_FOLDS, _FEW_QUERIES = 5, 1000
"""Under so many judged queries, each is held out once by default, in so many folds."""
_LISTED = 20
"""Leaks that an error or an alert lists."""
_CHEAP_CHARACTERS = 500_000
"""Of documents and queries that are encoded again for each weight of a merge, only to draw a line through them."""


@dataclass(frozen=True)
class Result:
    """What a finished run directory holds.

    Attributes:
        folder: The run directory.
        comparison: Base and tuned on the test queries.
        others: Scores of further baselines on the same queries.
        findings: What was odd about the data.
        manifest: Configuration, identities, times.
        reused: Whether the run directory was there already, and nothing was done.
    """

    folder: Path
    comparison: Comparison
    others: tuple[Scores, ...]
    findings: tuple[Finding, ...]
    manifest: dict[str, Any]
    reused: bool = False

    @property
    def model(self) -> Path:
        """The model to use: an ordinary sentence-transformers folder."""
        return self.folder / str(self.manifest["model"])

    @property
    def report(self) -> Path:
        """The HTML report."""
        return self.folder / "report.html"

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric and k."""
        return self.comparison.to_frame()

    def _repr_html_(self) -> str:
        return self.comparison._repr_html_()


@dataclass(frozen=True)
class _Job:
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
    def of(cls, config: Config) -> _Job:
        """Read the data, have it written first where the configuration says so, and find the model.

        Raises:
            EmbedfitError: Either is not there or cannot be used.
        """
        if config.generate.records or config.generate.questions:
            if ranks.main():
                _all_written(config)
            ranks.agreed(None)  # nobody reads before all is written
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
        findings = check_dataset(self.dataset)
        for finding in findings:
            if finding.level == "problem":
                raise DataError(self.config.data.queries, finding.message)
        allowed = [*self._gated[1], *(leak for _, leaks in self._others for leak in leaks)]
        truncated = check_truncation(self.dataset, self.base.loaded, self.template) if isinstance(self.base, LocalEncoder) else []
        return (*findings, *allowed, *truncated)

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

    @property
    def parts(self) -> list[tuple[Dataset, Dataset | None, Dataset]]:
        """The train, dev (or None) and test data of each split."""
        return [split.datasets(self.dataset) for split in self.splits]

    @cached_property
    def engine(self) -> Engine:
        """Where texts are encoded and searched."""
        return engine_of(self.config.engine)

    def dense(self, model: Encoder) -> DenseRetriever:
        """Return the search by a model's vectors."""
        return DenseRetriever(CachedEncoder(self.engine.encoder(model)), self.template, self.engine.top_k)

    def scored(self, run: Run, name: str) -> Scores:
        """Return the scores of a Run on the held-out queries."""
        return score_run(run, self.test.qrels, ks=self.config.evaluate.k, name=name)

    def folder(self, kind: str, *sections: str, more: Sequence[str] = ()) -> Path:
        """Return a run directory whose name holds a hash of everything that the result depends on."""
        described = [
            version("embedfit"),
            self.dataset.digest(),
            self.template,
            self.base.fingerprint,
            self.config.model_dump(include={"split", "tune", "evaluate", *sections}),
            [self.config.mix.temperature, [(other.digest(), template) for other, template in self.others]],
            *more,
        ]
        identity = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
        return Path(self.config.output) / f"{self.config.name}{kind}-{identity[:10]}"


def run(config: Config) -> Result:
    """Measure a model, tune it, measure it again on the same held-out queries, and write down what came of it.

    The run directory's name holds a hash of the data, the base weights and the settings. The same call again finds
    the finished directory and does nothing; after a crash it goes on where it was.

    Raises:
        EmbedfitError: With one line that says what to do.
    """
    ranks.join()
    job, general = _Job.of(config), read_general(config.general)
    check_method(job.base, config.tune)
    folder = job.folder("", "general", more=[general.digest()])
    for name in config.track.report_to:
        require(name, extra=name)  # now, and not after the base model was measured
    with locked(folder):
        if ranks.agreed((folder / "manifest.json").exists()):
            return read_result(folder)
        if not ranks.main():
            _help(job, folder)
        started = time.monotonic()
        findings = job.findings
        others = [job.scored(BM25Retriever(job.template).search(job.test, job.depth), "BM25")] if config.evaluate.bm25 else []
        base_run = job.dense(job.base).search(job.test, job.depth)
        trainings, final = _trainings(job, folder)
        forgetting = _forgetting(job, trainings[0], final, general)
        weight = forgetting.weight if forgetting and config.general.keep is not None else 1.0
        model = _merged(local(job.base), local(final.encoder), weight, folder / "kept") if weight < 1 else final.encoder
        runs = [_searched(job, training, weight) for training in trainings]
        comparison = compare_scores(
            job.scored(base_run, job.base.name),
            [job.scored(one, f"{job.base.name}, tuned") for one in runs],
            metric=job.metric,
            seed=config.split.seed,
            held_out=True,
        )
        suspects = find_suspects(job.test, base_run, runs[0], scale=config.tune.scale)
        lora = final.folder.parent / "lora"
        forms: tuple[Form, ...] = ()
        if isinstance(model, LocalEncoder):  # an adapter over an API is a matrix in a file, and has no other forms
            forms = check_forms(
                model,
                job.test,
                job.template,
                metric=job.metric,
                ks=config.evaluate.k,
                matryoshka=final.matryoshka,
                lora=lora if lora.is_dir() and weight == 1 else None,
            )
        tuned = [*trainings[0], final] if len(trainings[0]) > 1 else [final]
        manifest = {
            "embedfit": version("embedfit"),
            "config": config.model_dump(),
            "base": {"name": job.base.name, "fingerprint": job.base.fingerprint},
            "model": str((model.folder if isinstance(model, LocalEncoder) else final.folder).relative_to(folder)),
            "fingerprint": model.fingerprint,
            "split": [{part: len(getattr(split, part)) for part in ("train", "dev", "test")} for split in job.splits],
            "tuning": [{"epoch": one.epoch, "tokens": one.tokens, "seconds": one.seconds, "candidates": one.candidates} for one in tuned],
            "seconds": round(time.monotonic() - started, 3),
            "findings": [vars(finding) for finding in findings],
            "others": [other.name for other in others],
            "forms": [{**vars(form), "passed": form.passed} for form in forms],
            "forgetting": forgetting.to_dict() if forgetting else None,
            "bought": vars(job.base.spent) if isinstance(job.base, RemoteEncoder) else None,
        }
        queries = per_query(job.dataset, comparison, base_run, runs[0])
        report = Report(
            config.name,
            comparison,
            queries,
            _facts(job, tuned),
            tuple(others),
            _notes(job, forgetting, final=True),
            tuned[0].history if len(tuned) == 1 else (),
            alerts=alerts(findings),
            documents=dict(zip(job.dataset.corpus, job.dataset.document_texts(job.template), strict=True)),
            suspects=suspects,
            seeds=_seeds(comparison),
            forms=forms,
            forgetting=_chart(forgetting),
        )
        _write(folder, comparison, tuple(others), queries, suspects, manifest, report)
        with tracking(config.name, folder, wanted=config.track.langwatch) as tracker:
            if tracker:
                measured = [(comparison.base, base_run), (comparison.tuned, runs[0])]
                for scores, run in measured:
                    tracker.add(public_name(scores.name), job.test, run, scores, template=job.template)
    return read_result(folder, reused=False)


def run_curve(config: Config, points: int) -> tuple[Path, Curve]:
    """Measure models that were trained on more and more of the train part. Returns the run directory and the curve.

    Args:
        config: All settings.
        points: How many sizes there are, each twice the one before.

    Raises:
        EmbedfitError: With one line that says what to do.
    """
    job = _Job.of(config)
    check_method(job.base, config.tune)
    folder = job.folder("-curve", more=[str(points)])
    with locked(folder):
        findings = job.findings
        most = min(len(split.train) for split in job.splits)
        base = DenseRetriever(CachedEncoder(job.base), job.template).search(job.test, job.depth)

        def train_and_search(train: Dataset, test: Dataset, where: Path) -> Run:
            tuned = _tune(job, train, None, where, {})
            return DenseRetriever(tuned.encoder, job.template).search(test, job.depth)  # not cached: the model is not kept

        found = learning_curve(
            job.dataset,
            job.splits,
            train_and_search,
            folder,
            base=base,
            metric=job.metric,
            sizes=sorted({most >> step for step in range(points)}),
            identity=folder.name,
            seed=config.split.seed,
        )
        page = curve_html(
            f"{config.name}: learning curve",
            found.sentence,
            found.points[1:],
            metric=found.metric,
            untuned=found.points[0].value,
            fitted=[(point.pairs, point.value) for point in found.fitted if point.pairs],
            predictions=found.forecasts,
            notes=_notes(job),
            alerts=alerts(findings),
        )
        _write_found(folder, "curve", found, page)
    return folder, found


def run_ladder(config: Config) -> tuple[Path, Ladder]:
    """Measure every method on the same held-out queries. Returns the run directory and the ladder.

    Raises:
        EmbedfitError: With one line that says what to do.
    """
    job = _Job.of(config)
    richer = config.ladder.document_template or richer_template(job.dataset, job.template)
    folder = job.folder("-ladder", more=[richer or ""])
    with locked(folder):
        findings = job.findings
        console.note(f"{len(job.test.queries):,} held-out queries; what is found is kept in {folder}")
        found = climb(Setting(job.base, config, job.template, richer), job.dataset, job.splits, folder, config.ladder.rungs)
        page = ladder_html(
            f"{config.name}: ladder",
            found.sentence,
            ladder_rows(found),
            metric=found.metric,
            notes=_notes(job),
            alerts=alerts(findings),
        )
        _write_found(folder, "ladder", found, page)
    return folder, found


def run_generate(config: Config, endpoint: Callable[[], Endpoint] | None = None) -> Generated:
    """Have an LLM write the queries that ``[data]`` names, by what ``[generate]`` says, and a report beside them.

    Args:
        config: All settings.
        endpoint: Makes the endpoint when something has to be sent. By default with the key from the environment.

    Raises:
        EmbedfitError: With one line that says what to do.
    """
    output = Path(config.data.queries)
    found = generate(_task(config), output, config.generate, endpoint)
    with writing(output.with_suffix(".html")) as file:
        file.write(generated_html(f"{output.name}: {found.kind} by {config.generate.model}", found).encode())
    return found


def estimate_generate(config: Config) -> Estimate:
    """Return what `run_generate` would still have to ask, and about what that costs; nothing is sent."""
    return estimate(_task(config), Path(config.data.queries), config.generate)


def _task(config: Config) -> Task:
    """Return what ``[generate]`` asks for, of the documents of ``[data]``."""
    said = config.generate
    if bool(said.records) == bool(said.questions):
        raise ConfigError("[generate] asks for records or for questions: set one of them above 0")
    if not config.data.documents:
        raise ConfigError("[generate] needs data.documents: the labels to write records for, or the passages to write questions for")
    documents, examples = read_documents(config.data.documents), read_examples(said.examples)
    if said.questions:
        template = prompt_template(said.prompt, "question")
        return Questions(documents, said.questions, template, said.styles or STYLES, said.personas or PERSONAS, examples, said.seed)
    if not config.data.record:
        raise ConfigError("generate.records needs data.record: 'transaction', 'module:Class' or a JSON Schema file")
    record = record_type(config.data.record, template=config.data.query_template, label=config.data.label)
    template = prompt_template(said.prompt, "transaction" if config.data.record == "transaction" else "record")
    return Records(documents, said.records, record, template, examples, said.seed)


def _all_written(config: Config) -> None:
    found = run_generate(config)
    if found.accepted + found.given_up < found.asked and found.stopped:
        raise ConfigError(f"{found.accepted:,} of {found.asked:,} {found.kind} are written: {found.stopped}")


def read(config: DataConfig, problems: list[DataError] | None = None) -> Dataset:
    """Read the data set that a configuration names; see `load`."""
    if config.query_template and not config.record:
        raise ConfigError("data.query_template needs data.record: it is filled from a record's fields")
    if Path(config.queries).is_dir() and (config.documents or config.record):
        raise ConfigError(
            f"data.queries is the folder {config.queries}, which has its own documents; fix: drop data.documents and data.record"
        )
    record = record_type(config.record, template=config.query_template, label=config.label) if config.record else None
    return load(config.queries, config.documents, query=config.query, label=config.label, record=record, problems=problems)


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
        return RemoteEncoder(name, query_prompt=config.query_prompt, document_prompt=config.document_prompt, price=config.price)
    if name.endswith(".safetensors") and Path(name).is_file():
        from embedfit.tune.adapter import AdaptedEncoder, load_adapter

        adapter = load_adapter(name)
        return AdaptedEncoder(CachedEncoder(encoder(config, adapter.base_name)), adapter)
    return LocalEncoder(name, query_prompt=config.query_prompt, document_prompt=config.document_prompt, precision=config.precision)


def engine_of(name: Literal["local", "ray"]) -> Engine:
    """Return the engine of a name."""
    return RayEngine() if name == "ray" else LocalEngine()


def local(encoder: Encoder) -> LocalEncoder:
    """Return an encoder that has its weights here.

    Raises:
        ModelError: It has not.
    """
    if not isinstance(encoder, LocalEncoder):
        raise ModelError(f"{encoder.name} reads texts elsewhere, so its tokens and weights are not here")
    return encoder


def check_method(base: Encoder, config: TuneConfig) -> None:
    """Refuse to train weights that are not here, before anything is paid for.

    Raises:
        ConfigError: The method needs weights, and the model is behind an API.
    """
    if config.method != "adapter" and not isinstance(base, LocalEncoder):
        raise ConfigError(f'{base.name} has no weights here to train; fix: method = "adapter" in [tune] fits a map of its query vectors')


def measure(
    encoder: Encoder, dataset: Dataset, *, template: str = DOCUMENT_TEMPLATE, ks: Sequence[int] = KS, tracker: Tracker | None = None
) -> Scores:
    """Return how well an encoder retrieves, for each query of a data set; its vectors are cached on disk.

    Args:
        encoder: To measure.
        dataset: Each of its queries must be judged.
        template: What a document says.
        ks: Where to cut the rankings.
        tracker: Takes in every query's result, from `embedfit.track.tracking`; None for none.
    """
    started = time.monotonic()
    run = DenseRetriever(CachedEncoder(encoder), template).search(dataset, max(ks))
    seconds = time.monotonic() - started
    scores = score_run(run, dataset.qrels, ks=ks, name=encoder.name)
    if tracker:
        said = {"fingerprint": encoder.fingerprint[:12], "document": template}
        tracker.add(public_name(encoder.name), dataset, run, scores, template=template, metadata=said, seconds=seconds)
    return scores


def evaluate(
    dataset: Dataset,
    encoders: Sequence[Encoder],
    *,
    templates: Sequence[str] = (DOCUMENT_TEMPLATE,),
    ks: Sequence[int] = KS,
    retrieval: Sequence[str] = ("dense",),
    rerankers: Sequence[Reranker] = (),
    rerank_top: int = TOP,
    engine: Engine | None = None,
    store: Store | None = None,
    tracker: Tracker | None = None,
) -> pd.DataFrame:
    """Measure every encoder with every document template, way of retrieval and reranker: quality and price side by side.

    Args:
        dataset: Every judged query is scored.
        encoders: Their vectors are cached on disk.
        templates: What a document says.
        ks: Where to cut the rankings.
        retrieval: ``dense``, ``bm25`` (once for all encoders), ``hybrid`` (both, fused by rank).
        rerankers: Each reads the top of each ranking; without any of them it is measured too.
        rerank_top: How many documents of a query they read.
        engine: Where texts are encoded, searched and reranked; by default here.
        store: Its live index is measured too, beside exact search on the same documents.
        tracker: Takes in every query's result; None for none.

    Returns:
        A tidy frame: model, document, retrieval, reranker ("" for none), metric, k, value (the mean over queries), and
        seconds that one query takes on this machine: encoded alone, then searched and reranked together with the others. A store has
        one metric more, ``recall_of_exact``: the share of what exact search finds that the store finds.
    """
    import pandas as pd

    engine = engine or LocalEngine()
    judged = dataset.select(dataset.judged)
    depth = max(*ks, rerank_top) if rerankers else max(ks)
    frames = []

    def add(name: str, template: str, way: str, reranker: str, run: Run, seconds: float) -> None:
        scores = score_run(run, judged.qrels, ks=ks, name=name)
        if tracker:
            said = {"document": template, "retrieval": way, "reranker": reranker}
            tracker.add(public_name(name), judged, run, scores, template=template, metadata=said, seconds=seconds * len(judged.queries))
        frame = scores.to_frame()
        for place, (column, value) in enumerate({"document": template, "retrieval": way, "reranker": reranker}.items()):
            frame.insert(1 + place, column, value)
        frames.append(frame.assign(seconds=seconds))

    for template in templates:
        for name, way, retriever, encoder in _retrievers(encoders, template, retrieval, engine):
            encoding = seconds_alone(encoder, judged.query_texts()) if encoder else 0.0
            run, seconds = _timed(retriever, judged, depth)
            add(name, template, way, "", run, encoding + seconds)
            for reranker in map(engine.reranker, rerankers):
                reranker.score([("load", "the model before it is timed")])
                start = time.perf_counter()
                again = rerank(run, judged, reranker, template, top=rerank_top)
                more = (time.perf_counter() - start) / len(judged.queries)
                add(name, template, way, reranker.name, again, encoding + seconds + more)
    if store:
        version = LiveIndex(store, *encoders).version()
        template = version.stamp.template
        run, seconds = _timed(version, judged, depth)
        add(version.name, template, "store", "", run, seconds_alone(version.encoder, judged.query_texts()) + seconds)
        exact = DenseRetriever(CachedEncoder(version.encoder), template).search(judged, max(ks) + DEPTH)
        shares = [(version.name, template, "store", "", "recall_of_exact", k, overlap(run, exact, k)) for k in ks]
        frames.append(pd.DataFrame(shares, columns=[column for column in frames[-1] if column != "seconds"]))
    return pd.concat(frames, ignore_index=True)


def _retrievers(
    encoders: Sequence[Encoder], template: str, ways: Sequence[str], engine: Engine
) -> Iterator[tuple[str, str, Retriever, Encoder | None]]:
    """Yield (name, way, retriever, the encoder that it needs) for each column of the grid."""
    words = BM25Retriever(template)
    if "bm25" in ways:
        yield words.name, "bm25", words, None
    for encoder in encoders:
        dense = DenseRetriever(CachedEncoder(engine.encoder(encoder)), template, engine.top_k)
        if "dense" in ways:
            yield encoder.name, "dense", dense, encoder
        if "hybrid" in ways:
            yield encoder.name, "hybrid", FusedRetriever(dense, words), encoder


def _timed(retriever: Retriever, dataset: Dataset, k: int) -> tuple[Run, float]:
    """Return a Run, and the seconds that one more query took: reading vectors and indexing words are not a query's price."""
    one = dataset.select(list(dataset.queries)[:1])
    run = retriever.search(dataset, k)  # every vector is known from here on
    seconds = []
    for some in (one, dataset):
        start = time.perf_counter()
        retriever.search(some, k)
        seconds.append(time.perf_counter() - start)
    return run, max(0.0, seconds[1] - seconds[0]) / max(1, len(dataset.queries) - 1)


def index(config: Config, model: str | None = None) -> Indexed:
    """Make the documents searchable in the configured vector store, by the configured model or another one.

    Raises:
        EmbedfitError: With one line that says what to do; what was live still is.
    """
    dataset = read(config.data)
    with open_store(config.store) as store:
        return index_documents(
            store, dataset, encoder(config.model, model), config.data.document_template, min_recall=config.store.min_recall
        )


def seen_in_training(model: Encoder, dataset: Dataset) -> int:
    """Return how many queries of a data set a model was tuned on or chosen by, as far as its folder tells."""
    from embedfit.tune.adapter import AdaptedEncoder
    from embedfit.tune.result import seen_by

    if isinstance(model, LocalEncoder):
        path: Path | None = model.folder
    else:
        path = model.adapter.path if isinstance(model, AdaptedEncoder) else None
    seen = set(seen_by(path)) if path else set()
    return sum(text_key(query.text) in seen for query in dataset.queries.values())


def read_result(folder: str | Path, *, reused: bool = True) -> Result:
    """Read a finished run directory.

    Raises:
        DataError: It is not finished, or not a run directory.
    """
    import pandas as pd

    folder = Path(folder)
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        said = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        queries = pd.read_parquet(folder / "queries.parquet")
    except (OSError, ValueError) as error:
        raise DataError(
            str(folder), f"is not a finished run directory: {error}", fix="run 'embedfit run' again; it goes on where it was"
        ) from None
    ids = tuple(queries.query_id)

    def scores(prefix: str, name: str) -> Scores:
        columns = {
            name.removeprefix(prefix): queries[name].to_numpy() for name in map(str, queries) if name.startswith(prefix) and "@" in name
        }
        return Scores(name, ids, columns, queries[f"{prefix}rank"].to_numpy())

    comparison = Comparison.from_dict(said, scores("base_", said["base"]), scores("tuned_", said["tuned"]))
    others = tuple(scores(f"{name.lower()}_", name) for name in manifest["others"])
    findings = tuple(Finding(**{**row, "ids": tuple(row["ids"])}) for row in manifest["findings"])
    return Result(folder, comparison, others, findings, manifest, reused)


def prepare_publications(
    folder: str | Path, target: str, *, dataset: str | None = None, public: bool = False, examples: bool = False
) -> list[Publication]:
    """Return what is to be published of a finished run: the model, and its data set if that is asked for.

    Args:
        folder: The run directory.
        target: Where the model goes: ``owner/name`` on the Hub, ``./folder`` or ``name.tar``.
        dataset: Where the data set goes, likewise; None to keep it.
        public: Whether anybody may see them on the Hub.
        examples: Whether the model's card quotes some training queries.

    Raises:
        EmbedfitError: It is not finished, has no model of its own, or its data is needed and not there.
    """
    result = read_result(folder)
    if not result.model.is_dir():
        raise ConfigError(
            f"{folder}: {result.model.name} is a map over {result.manifest['base']['name']}, and no model that can be published"
        )
    data: Dataset | None = None
    try:
        data = read(_config_of(result).data)
    except DataError:
        if dataset or examples:
            raise
    shown: list[tuple[str, list[str]]] = []
    if examples and data:
        held_out = set(result.comparison.base.query_ids)  # with folds all of them, and the model was trained on all in the end
        trained = [id for id in data.judged if id not in held_out] or data.judged
        shown = [(data.queries[id].text, list(data.relevant(id))) for id in trained[:EXAMPLES]]
    model = model_publication(Target.of(target), result.model, result.manifest, result.comparison, data, public=public, examples=shown)
    if not (dataset and data):
        return [model]
    return [model, dataset_publication(Target.of(dataset), data, result.manifest["config"]["name"], public=public)]


def publish_run(folder: str | Path, publication: Publication) -> Parity | None:
    """Publish the model or the data set of a finished run, fetch it again, and make sure that it is the same.

    Returns:
        How near the fetched model comes; None for a data set, which is the same or refused.

    Raises:
        EmbedfitError: It cannot be sent, or what was fetched is something else.
    """
    result = read_result(folder)
    config = _config_of(result)
    with publication.fetched(publication.send()) as fetched:
        if publication.kind == "dataset":
            check_dataset_parity(fetched, read(config.data))
            return None
        try:
            data = read(config.data)
            data = data.select(result.comparison.base.query_ids)
        except (DataError, KeyError):  # gone or changed since; the run directory keeps the queries' texts
            import pandas as pd

            frame = pd.read_parquet(result.folder / "queries.parquet", columns=["query_id", "query"])
            data = Dataset({id: Query(id, text) for id, text in zip(frame.query_id, frame["query"], strict=True)}, {}, {})
        precision = config.model.precision
        measured, published = LocalEncoder(result.model, precision=precision), LocalEncoder(fetched, precision=precision)
        return check_parity(measured, published, data, config.data.document_template, config.evaluate.metric)


def _config_of(result: Result) -> Config:
    return Config.model_validate(result.manifest["config"])


def splits_of(config: Config, dataset: Dataset) -> list[Split]:
    """Return the splits that a configuration describes: one, or as many as there are folds.

    Where nothing is said, data sets of under 1,000 judged queries are scored out of fold, unless they come with a test part.
    """
    said = config.split
    folds = said.folds
    if folds is None:
        folds = _FOLDS if len(dataset.judged) < _FEW_QUERIES and not dataset.parts.get("test") else 0
    if folds:
        return split_folds(dataset, folds, dev=said.dev, seed=said.seed, group_by=said.group_by)
    return [one_split(config, dataset)]


def one_split(config: Config, dataset: Dataset) -> Split:
    """Return the train, dev and test parts that a configuration describes."""
    said = config.split
    return split_dataset(dataset, test=said.test, dev=said.dev, seed=said.seed, group_by=said.group_by)


def leaks(config: Config, dataset: Dataset) -> list[Finding]:
    """Return the leaks between the parts that a configuration describes; folds have none, as what is near stays together."""
    return check_leaks(dataset, vars(one_split(config, dataset)))


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
            for leak in found[:_LISTED]:
                console.note(leak.message)
            more = " ('embedfit check' lists them all)" if len(found) > _LISTED else ""
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
    kept = other.select(id for id in other.judged if f"{said.queries} {id}" not in leaking)
    if not kept.queries:
        raise DataError(said.queries, "has no query that may be trained on", fix="leave it out of [[mix.data]]")
    return kept, found if config.split.leaks == "allow" else []


def _trainings(job: _Job, folder: Path) -> tuple[list[list[Tuned]], Tuned]:
    """Tune as often as there are splits and seeds, and once for the model to use. Returns, for each seed, those of the splits; and that."""
    trainings = [_trained(job, folder if seed == 0 else folder / "seeds" / str(seed), seed) for seed in range(job.config.evaluate.seeds)]
    return trainings, _final(job, trainings[0], folder)


def _help(job: _Job, folder: Path) -> NoReturn:
    """Take part in what the processes of one torchrun do together, the trainings, and end: the rest is the first one's."""
    _trainings(job, folder)
    raise SystemExit


def _trained(job: _Job, folder: Path, seed: int) -> list[Tuned]:
    """Tune once for each split; seed 0 is the configuration's own."""
    results = []
    for number, (train, dev, _) in enumerate(job.parts):
        if len(job.splits) > 1:
            console.note(f"fold {number + 1} of {len(job.splits)}" + (f", seed {seed + 1} of {job.config.evaluate.seeds}" if seed else ""))
        where = folder / "folds" / str(number) if len(job.splits) > 1 else folder
        results.append(_tune(job, train, dev, where, {"seed": job.config.tune.seed + seed}))
    return results


def _final(job: _Job, training: Sequence[Tuned], folder: Path) -> Tuned:
    """Return the model to use. What the folds measured is a way of training: it is trained in that way on all there is."""
    if len(training) == 1:
        return training[0]
    console.note("training on all queries")
    epochs = round(statistics.median(one.epoch for one in training))
    return _tune(job, job.dataset.select(job.dataset.judged), None, folder, {"epochs": epochs})


def _tune(job: _Job, train: Dataset, dev: Dataset | None, folder: Path, changes: dict[str, Any]) -> Tuned:
    config, template = job.config.tune.model_copy(update=changes), job.template
    if job.others:
        train = mixed([(train, template), *job.others], temperature=job.config.mix.temperature, seed=config.seed)
        dev, template = dev and rendered(dev, template), DOCUMENT_TEMPLATE
    return tune(job.base, train, dev, folder, config, template=template, report_to=job.config.track.report_to)


def tune(
    base: Encoder,
    train: Dataset,
    dev: Dataset | None,
    folder: Path,
    config: TuneConfig,
    *,
    template: str,
    report_to: Sequence[str] = (),
) -> Tuned:
    """Tune a model by the method that the settings name; the result is the same kind of folder for all of them.

    Raises:
        ConfigError: The method needs weights, and the model is behind an API.
    """
    check_method(base, config)
    if config.method == "adapter":
        if ranks.count() > 1:
            raise ConfigError("tune.method 'adapter' trains in seconds, in one process; fix: without torchrun")
        from embedfit.tune.adapter import AdapterConfig, tune_adapter
        from embedfit.tune.result import Tuned

        found = tune_adapter(
            CachedEncoder(base), train, dev, folder, AdapterConfig(scale=config.scale, seed=config.seed), template=template
        )
        if isinstance(base, LocalEncoder):
            return Tuned(found.folder / "model", (), 1, 0, found.seconds, "all", base.precision)
        return Tuned(found.folder / "adapter.safetensors", (), 1, 0, found.seconds, "all", "fp32", over=found.base)
    from embedfit.tune.full import tune_model

    return tune_model(local(base), train, dev, folder, config, template=template, report_to=report_to)


def _forgetting(job: _Job, training: Sequence[Tuned], final: Tuned, general: Dataset) -> Forgetting | None:
    """Return what the merges of base and tuned model keep; None for an adapter, which cannot be merged."""
    keep = job.config.general.keep
    if job.config.tune.method == "adapter":
        if keep is not None:
            raise ConfigError("general.keep merges weights, which an adapter does not change; fix: leave it out, or tune.method = 'full'")
        return None
    # The sweep encodes the corpus once for each weight: too much where the corpus is what takes the time.
    cheap = sum(map(len, job.dataset.document_texts(job.template))) <= _CHEAP_CHARACTERS
    return measure_forgetting(
        local(job.base),
        local(final.encoder),
        general,
        held_out=[(local(one.encoder), test) for one, (_, _, test) in zip(training, job.parts, strict=True)],
        template=job.template,
        weights=WEIGHTS if cheap or keep is not None else (0.0, 1.0),
        keep=keep,
        metric=job.metric,
        ks=job.config.evaluate.k,
    )


def _merged(base: LocalEncoder, tuned: LocalEncoder, weight: float, folder: Path) -> LocalEncoder:
    from embedfit.tune.merge import merge_models

    return merge_models(base, tuned, weight, folder)


def _searched(job: _Job, training: Sequence[Tuned], weight: float) -> Run:
    """Return the Run on all held-out queries: each part by the model that was trained without it, merged with the base if asked for."""
    tests = [test for _, _, test in job.parts]
    if weight < 1:
        held_out = [(local(one.encoder), test) for one, test in zip(training, tests, strict=True)]
        return merged_runs(local(job.base), held_out, [weight], job.template, job.depth)[weight]
    return joined([job.dense(one.encoder).search(test, job.depth) for one, test in zip(training, tests, strict=True)])


def read_general(config: GeneralConfig) -> Dataset:
    """Return the general set that a configuration names; by default the one that ships with embedfit."""
    return load(config.queries, config.documents) if config.queries else general_set()


def alerts(findings: Sequence[Finding]) -> tuple[str, ...]:
    """Return what must not be missed of some findings: leaks that were allowed."""
    leaks = [finding for finding in findings if finding.kind == "leak"]
    if not leaks:
        return ()
    said = f"{len(leaks):,} held-out queries say what training queries say, and were allowed to: the figures below are too good."
    return (said, *(leak.message for leak in leaks[:_LISTED]))


def _notes(job: _Job, forgetting: Forgetting | None = None, *, final: bool = False) -> tuple[str, ...]:
    """Return what should be known of the figures."""
    notes = []
    writers = Counter(str(query.metadata["generated"]["model"]) for query in job.test.queries.values() if _written_by_llm(query.metadata))
    if writers:
        names = ", ".join(name for name, _ in writers.most_common())
        notes.append(
            f"{writers.total():,} of the {len(job.test.queries):,} held-out queries were written by an LLM ({names}): "
            "the figures say how well such queries are answered, and people may ask otherwise."
        )
    if len(job.splits) > 1:
        notes.append(
            f"Every query is scored by a model that never saw it: {len(job.splits)} models, each on the fold that it was trained without."
        )
    if len(job.splits) > 1 and final:
        notes.append(
            f"The model in this directory was trained in the same way on all {len(job.dataset.judged):,} queries; the figures stand for it."
        )
    if forgetting and forgetting.warning:
        notes.append(forgetting.warning)
    return (*notes, *warnings(job.findings))


def _written_by_llm(metadata: Mapping[str, Any]) -> bool:
    origin = metadata.get("generated")
    return isinstance(origin, dict) and "model" in origin


def ladder_rows(ladder: Ladder) -> list[LadderRow]:
    """Return what the report shows of each rung."""
    shown = [name for name in ladder.rungs[0].scores.values if name.startswith("recall@")]
    return [
        LadderRow(
            rung.name,
            {name: rung.scores.mean(name) for name in dict.fromkeys([*shown, ladder.metric])},
            rung.below.difference if rung.below else None,
            rung.below.low if rung.below else None,
            rung.below.high if rung.below else None,
            rung.seconds or None,
            rung.deploys,
            f"{rung.query_milliseconds:.2f} ms",
            rung.key == ladder.recommended,
        )
        for rung in ladder.rungs
    ]


def _seeds(comparison: Comparison) -> tuple[tuple[str, str], ...]:
    """Return what each seed came to, in words."""
    seeds, metric = comparison.seeds, comparison.metric
    if not seeds:
        return ()
    each = [(f"{metric_label(metric)}, seed {number + 1}", f"{value:.3f}") for number, value in enumerate(seeds.means[metric])]
    spread = ("standard deviation over seeds", f"{seeds.spread[metric]:.3f}")
    return (*each, spread, ("standard error from the draw of queries", f"{seeds.query_error[metric]:.3f}"))


def _chart(forgetting: Forgetting | None) -> ForgettingChart | None:
    """Return what the report draws of it."""
    if not forgetting:
        return None
    points = [(point.weight, point.general, point.task) for point in forgetting.points if point.task is not None]
    return ForgettingChart(tuple(points), forgetting.weight, forgetting.sentence, forgetting.metric, forgetting.metric)


def _facts(job: _Job, tuned: Sequence[Tuned]) -> dict[str, str]:
    """Return how it was done, in words."""
    config, settings, first = job.config, job.config.tune, job.splits[0]
    parts = f"{len(first.train):,} train / {len(first.dev):,} dev / {len(first.test):,} test queries"
    weights = "all weights" if settings.train_embeddings else "all weights but the token embeddings"
    trained = f"LoRA of rank {settings.lora_rank} on all linear layers" if settings.method == "lora" else weights
    candidates = _CANDIDATES[tuned[0].candidates]
    tuning = (
        f"{trained}; softmax over {candidates}, scale {settings.scale:g}, "
        f"AdamW at {settings.learning_rate:g}, batch {settings.batch_size}, at most {settings.epochs} epochs; "
        f"kept: epoch {', '.join(str(one.epoch) for one in tuned)}"
    )
    if settings.method == "adapter":
        tuning = f"a linear map of the query's vector, fitted on frozen vectors; scale {settings.scale:g}"
    return {
        "Data": f"{len(job.dataset.judged):,} labelled queries, {len(job.dataset.corpus):,} documents ({Path(config.data.queries).name})",
        "Split": f"{len(job.splits)} folds, each {parts}" if len(job.splits) > 1 else f"{parts}, seed {config.split.seed}",
        "A document says": job.template,
        "Base model": f"{job.base.name} (fingerprint {job.base.fingerprint[:12]})",
        "Tuning": tuning,
        "Training time": f"{sum(one.seconds for one in tuned):.0f} s for {sum(one.tokens for one in tuned):,} tokens",
        "Software": ", ".join(f"{name} {version(name)}" for name in ("embedfit", "sentence-transformers", "transformers", "torch")),
    }


def _write(
    folder: Path,
    comparison: Comparison,
    others: tuple[Scores, ...],
    queries: pd.DataFrame,
    suspects: pd.DataFrame,
    manifest: dict[str, Any],
    report: Report,
) -> None:
    """Write the run directory's files, the manifest last."""
    whole = queries.assign(
        **{f"{other.name.lower()}_{name}": values for other in others for name, values in other.values.items()},
        **{f"{other.name.lower()}_rank": other.ranks for other in others},
    )
    with writing(folder / "queries.parquet") as file:
        whole.to_parquet(file, index=False)
    write_suspects(suspects, folder / "suspects.csv")
    with writing(folder / "comparison.json") as file:
        file.write(json.dumps(comparison.to_dict(), indent=1).encode())
    with writing(folder / "recall.png") as file:
        comparison.plot().savefig(file, dpi=150, format="png")
    with writing(folder / "report.html") as file:
        file.write(html(report).encode())
    with writing(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1, default=_plain).encode())


def _write_found(folder: Path, name: str, found: Curve | Ladder, page: str) -> None:
    """Write what a curve or a ladder found: as JSON, as a chart, and as a page."""
    with writing(folder / f"{name}.json") as file:
        file.write(json.dumps(found.to_dict(), indent=1, default=_plain).encode())
    with writing(folder / f"{name}.png") as file:
        found.plot().savefig(file, dpi=150, format="png")
    with writing(folder / "report.html") as file:
        file.write(page.encode())


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{value!r} cannot stand in JSON")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of a run directory; those of one torchrun go in together.

    Raises:
        StorageError: There is one in it already, or the directory cannot be made.
    """
    import filelock

    if not ranks.main():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise StorageError(f"{folder}: another embedfit is at work in it; fix: wait for it, or change 'name'") from None
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
