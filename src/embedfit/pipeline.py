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
from typing import TYPE_CHECKING, Any

import numpy as np

from embedfit import console
from embedfit.check import Finding, check_dataset, check_leaks, check_truncation, warnings
from embedfit.compare import Comparison, compare_scores, metric_label
from embedfit.config import Config, DataConfig, GeneralConfig, ModelConfig, TuneConfig
from embedfit.curve import Curve, learning_curve
from embedfit.data import DOCUMENT_TEMPLATE, Dataset, load, read_documents, text_key, writing
from embedfit.encode import CachedEncoder, Encoder, LocalEncoder
from embedfit.errors import ConfigError, DataError, StorageError
from embedfit.general import WEIGHTS, Forgetting, general_set, measure_forgetting, merged_runs
from embedfit.generate import Estimate, Generated, estimate, generate
from embedfit.ladder import Ladder, Setting, climb, richer_template
from embedfit.parity import check_forms
from embedfit.plan import PERSONAS, STYLES, Questions, Records, Task, prompt_template, read_examples
from embedfit.records import record_type
from embedfit.report import ForgettingChart, LadderRow, Report, curve_html, generated_html, html, ladder_html, per_query
from embedfit.retrieve import DEPTH, BM25Retriever, DenseRetriever, Run, joined
from embedfit.score import KS, Scores, score_run
from embedfit.split import Split, split_dataset, split_folds, without_leaks
from embedfit.suspects import find_suspects, write_suspects

if TYPE_CHECKING:
    import pandas as pd

    from embedfit.endpoint import Endpoint
    from embedfit.tune.result import Tuned

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
        base: The model to start from; not loaded before it is needed.
    """

    config: Config
    dataset: Dataset
    base: LocalEncoder

    @classmethod
    def of(cls, config: Config) -> _Job:
        """Read the data, have it written first where the configuration says so, and find the model.

        Raises:
            EmbedfitError: Either is not there or cannot be used.
        """
        if config.generate.records or config.generate.questions:
            _all_written(config)
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
        return (*findings, *self._gated[1], *check_truncation(self.dataset, self.base.loaded, self.template))

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

    @cached_property
    def test(self) -> Dataset:
        """The queries that are held out, of all folds."""
        return self.dataset.select([id for split in self.splits for id in split.test])

    @property
    def parts(self) -> list[tuple[Dataset, Dataset | None, Dataset]]:
        """The train, dev (or None) and test data of each split."""
        return [split.datasets(self.dataset) for split in self.splits]

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
    job, general = _Job.of(config), read_general(config.general)
    folder = job.folder("", "general", more=[general.digest()])
    with locked(folder):
        if (folder / "manifest.json").exists():
            return read_result(folder)
        started = time.monotonic()
        findings = job.findings
        others = [job.scored(BM25Retriever(job.template).search(job.test, job.depth), "BM25")] if config.evaluate.bm25 else []
        base_run = DenseRetriever(CachedEncoder(job.base), job.template).search(job.test, job.depth)
        trainings = [_trained(job, folder if seed == 0 else folder / "seeds" / str(seed), seed) for seed in range(config.evaluate.seeds)]
        final = _final(job, trainings[0], folder)
        forgetting = _forgetting(job, trainings[0], final, general)
        weight = forgetting.weight if forgetting and config.general.keep is not None else 1.0
        model = _merged(job.base, final.encoder, weight, folder / "kept") if weight < 1 else final.encoder
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
            "model": str(model.folder.relative_to(folder)),
            "fingerprint": model.fingerprint,
            "split": [{part: len(getattr(split, part)) for part in ("train", "dev", "test")} for split in job.splits],
            "tuning": [{"epoch": one.epoch, "tokens": one.tokens, "seconds": one.seconds, "candidates": one.candidates} for one in tuned],
            "seconds": round(time.monotonic() - started, 3),
            "findings": [vars(finding) for finding in findings],
            "others": [other.name for other in others],
            "forms": [{**vars(form), "passed": form.passed} for form in forms],
            "forgetting": forgetting.to_dict() if forgetting else None,
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


def encoder(config: ModelConfig, name: str | None = None) -> LocalEncoder:
    """Return the encoder that a configuration names, or another model with its prompts and precision."""
    return LocalEncoder(
        name or config.name, query_prompt=config.query_prompt, document_prompt=config.document_prompt, precision=config.precision
    )


def measure(encoder: Encoder, dataset: Dataset, *, template: str = DOCUMENT_TEMPLATE, ks: Sequence[int] = KS) -> Scores:
    """Return how well an encoder retrieves, for each query of a data set; its vectors are cached on disk."""
    run = DenseRetriever(CachedEncoder(encoder), template).search(dataset, max(ks))
    return score_run(run, dataset.qrels, ks=ks, name=encoder.name)


def evaluate(dataset: Dataset, encoders: Sequence[Encoder], *, templates: Sequence[str], ks: Sequence[int] = KS) -> pd.DataFrame:
    """Measure every encoder with every document template.

    Args:
        dataset: Every judged query is scored.
        encoders: Their vectors are cached on disk.
        templates: What a document says.
        ks: Where to cut the rankings.

    Returns:
        A tidy frame: model, document, metric, k, value (the mean over queries).
    """
    import pandas as pd

    judged = dataset.select(dataset.judged)
    frames = []
    for one in encoders:
        for template in templates:
            frame = measure(one, judged, template=template, ks=ks).to_frame()
            frame.insert(1, "document", template)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def seen_in_training(model: LocalEncoder, dataset: Dataset) -> int:
    """Return how many queries of a data set a model was tuned on or chosen by, as far as its folder tells."""
    from embedfit.tune.result import seen_by

    seen = set(seen_by(model))
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
    return tune(job.base, train, dev, folder, job.config.tune.model_copy(update=changes), template=job.template)


def tune(base: LocalEncoder, train: Dataset, dev: Dataset | None, folder: Path, config: TuneConfig, *, template: str) -> Tuned:
    """Tune a model by the method that the settings name; the result is the same kind of folder for all of them."""
    if config.method == "adapter":
        from embedfit.tune.adapter import AdapterConfig, tune_adapter
        from embedfit.tune.result import Tuned

        found = tune_adapter(base, train, dev, folder, AdapterConfig(scale=config.scale, seed=config.seed), template=template)
        return Tuned(found.folder / "model", (), 1, 0, found.seconds, "all", base.precision)
    from embedfit.tune.full import tune_model

    return tune_model(base, train, dev, folder, config, template=template)


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
        job.base,
        final.encoder,
        general,
        held_out=[(one.encoder, test) for one, (_, _, test) in zip(training, job.parts, strict=True)],
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
    held_out = [(one.encoder, test) for one, (_, _, test) in zip(training, job.parts, strict=True)]
    if weight < 1:
        return merged_runs(job.base, held_out, [weight], job.template, job.depth)[weight]
    return joined([DenseRetriever(CachedEncoder(model), job.template).search(test, job.depth) for model, test in held_out])


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
    candidates = "all documents" if tuned[0].candidates == "all" else "the batch's documents and random ones"
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
    """Keep a second process out of a run directory.

    Raises:
        StorageError: There is one in it already, or the directory cannot be made.
    """
    import filelock

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
