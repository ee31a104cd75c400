"""Whole experiments: a run, a curve, a ladder, and the files they write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit import console, processes, progress
from embedfit.data.dataset import Dataset
from embedfit.data.load import load
from embedfit.encode.encoder import Encoder
from embedfit.encode.export import check_exporter
from embedfit.encode.local import local_of
from embedfit.errors import ConfigError, check_package
from embedfit.evaluation.comparison import Comparison
from embedfit.evaluation.score import Scores
from embedfit.hub import public_name
from embedfit.loading import is_quantized
from embedfit.pipeline.choosing import job_with_choice
from embedfit.pipeline.deploying import STATIC, export_wanted
from embedfit.pipeline.job import Job, locked
from embedfit.pipeline.manifest import manifest_of
from embedfit.pipeline.needs import check_installed, local, note_unused, refuse_parts
from embedfit.pipeline.notes import MIXED, alerts, facts, next_steps, notes_on, seeds
from embedfit.pipeline.picked import Pick
from embedfit.pipeline.reranking import check_reranker_run, run_reranker, start_digest
from embedfit.pipeline.result import Result, read_result
from embedfit.pipeline.searching import (
    ALONE,
    SEARCHER,
    UNTUNED,
    Bench,
    Searched,
    described,
    measure_searchers,
    merged_with_base,
    need_for_tuning,
    trusted,
)
from embedfit.pipeline.source import Inputs, Model, Source
from embedfit.pipeline.today import Today, measure_today
from embedfit.pipeline.training import help_training, train_all, training_steps, tune_part
from embedfit.pipeline.written import write_run, write_study
from embedfit.report.pages import curve_html, ladder_html
from embedfit.report.tables import Report, per_query
from embedfit.retrieve.retrievers import BM25Retriever, DenseRetriever
from embedfit.retrieve.run import Run, joined
from embedfit.sections import GeneralConfig
from embedfit.studies.curve import learning_curve
from embedfit.studies.forecast import Curve
from embedfit.studies.forgetting import WEIGHTS, Forgetting, general_set, measure_forgetting, merged_runs
from embedfit.studies.forms import Form, check_forms
from embedfit.studies.handed_over import recommended_searcher
from embedfit.studies.ladder import Ladder, check_rungs, climb
from embedfit.studies.methods import Setting, richer_template
from embedfit.studies.suspects import find_suspects
from embedfit.track.tracker import tracking

if TYPE_CHECKING:
    from embedfit.searcher.searcher import Searcher
    from embedfit.tune.result import Tuned


def run(source: Source, *, model: Model | None = None, picks: Sequence[Pick] | None = None, **settings: Any) -> Result:
    """Measure a model, tune it, measure it again on the same held-out queries, and write down the verdict.

    The name of the run directory holds a hash of the data, the base weights and the settings. A repeated call reads the
    finished directory and computes nothing. After a crash, it continues where it stopped.

    Args:
        source: A Dataset, a Config, or the path of an embedfit.toml or of labelled queries.
        model: Model to start from: a name, a folder or an Encoder; by default that of the settings.
        picks: Picks of people, to train on too. The newest ones are held out as a test of their own.
        settings: Sections and keys of embedfit.toml, such as ``tune={"epochs": 2}`` or ``output="runs"``.

    Raises:
        EmbedfitError: Something is missing or wrong; the message is one line and names the fix.
    """
    inputs = Inputs.of(source, model, settings)
    config = inputs.config
    processes.join()
    check_installed(config, trains=True)
    refuse_parts(config, "run")
    if set(config.deploy.forms) - {STATIC}:
        check_exporter()
    if config.tune.method == "adapter" and config.general.keep is not None:
        raise ConfigError("general.keep merges weights, which an adapter does not change; fix: leave it out, or tune.method = 'full'")
    reranks = config.tune.method == "reranker"
    if reranks:
        check_reranker_run(config, picks=picks is not None)
    general = None if reranks else read_general(config.general)
    job = job_with_choice(config, inputs.dataset, inputs.base, trains=True, picks=picks)
    if reranks:
        folder = job.folder("", more=[start_digest(job)])
    else:
        folder = job.folder("", "general", "searcher", more=[general.digest() if general else ""])
    if not (folder / "manifest.json").exists():
        job.checked  # noqa: B018 (raises before the folder is made)
    with locked(folder):
        reused = processes.agreed((folder / "manifest.json").exists())
        if not reused and not processes.main():
            help_training(job, folder)
        if not reused and reranks:
            run_reranker(job, folder)
        elif not reused:
            steps = ["base model", *training_steps(job), "tuned model", SEARCHER, "other forms of the model", "report"]
            with progress.plan("run", steps) as plan:
                measured = _measure(job, folder, general, plan)
                with plan.step("report"):
                    _write(job, folder, measured)
    result = read_result(folder, reused=reused)
    return result if reranks else export_wanted(result, config.deploy)


@dataclass(frozen=True)
class _Measured:
    """Measurements of a run, before they are written.

    Attributes:
        base_run: Rankings of the base model on the held-out queries.
        tuned_run: Rankings of the tuned model on the same queries, with the first seed.
        deployed: Rankings of the searcher on the same queries, with the first seed.
        advice: Whether tuning was needed, in a sentence; empty if nothing says so.
        others: Scores of further methods: BM25, the searcher over the base model, the tuned model alone.
        comparison: Base model and searcher, paired by query.
        alone: Base and tuned model, each by its documents' vectors alone.
        searcher: Searcher to deploy.
        tuned: Trainings behind the figures; the last produced the model to use.
        model: Encoder to use.
        forgetting: Retrieval that merges of base and tuned keep on the general set; None for an adapter.
        forms: Scores of the model in other forms; empty for an adapter over an API.
        published: Scores of the model to use, checked after publishing; None if they are those of the comparison.
        today: Base model and searcher on the newest picks; None without them.
        seconds: Duration of the measurements and trainings, in seconds.
    """

    base_run: Run
    tuned_run: Run
    deployed: Searched
    advice: tuple[str, ...]
    others: tuple[Scores, ...]
    comparison: Comparison
    alone: Comparison
    searcher: Searcher
    tuned: list[Tuned]
    model: Encoder
    forgetting: Forgetting | None
    forms: tuple[Form, ...]
    published: Scores | None
    today: Today | None
    seconds: float


def _measure(job: Job, folder: Path, general: Dataset | None, plan: progress.Plan) -> _Measured:
    """Measure the base model, tune it, and measure the tuned model and the searcher."""
    config, started, bench = job.config, time.monotonic(), Bench(job)
    with plan.step("base model"):
        job.findings  # noqa: B018 (raises before anything is trained)
        others: tuple[Scores, ...] = ()
        if config.evaluate.bm25:
            others = (job.scored(BM25Retriever(job.template).search(job.test, job.depth), "BM25"),)
        base_run = job.dense(job.base).search(job.test, job.depth)
    trained = train_all(job, folder, plan)
    trainings, final = trained.parts, trained.final
    with plan.step("tuned model"):
        model = final.encoder  # loaded once for everything below
        runs = [_searched(job, trainings[0], final, model)]
        forgetting = _forgetting(job, trainings[0], final, model, general) if general else None
        weight = forgetting.weight if forgetting and config.general.keep is not None else 1.0
        if weight < 1:
            model = merged_with_base(job, model, weight, folder / "kept")
            runs = [_merged_run(job, training, weight) for training in trainings]
        else:
            runs += [_searched(job, training, final, model) for training in trainings[1:]]
        base = job.scored(base_run, job.base.name)
        alone = job.compared(base, [job.scored(run, f"{job.base.name}, tuned") for run in runs])
        tuned = [*trainings[0], final] if len(trainings[0]) > 1 else [final]
        published = _own_scores(job, model) if len(tuned) > 1 or len(runs) > 1 else None
    with plan.step(SEARCHER):
        deployed = measure_searchers(bench, trained, model, weight, folder)
        comparison = alone
        advice: tuple[str, ...] = ()
        if deployed.untuned is not None:
            comparison = job.compared(base, [job.scored(searched.run, f"{job.base.name}, searcher") for searched in deployed.searched])
            untuned = job.scored(deployed.untuned, UNTUNED)
            others += (untuned, replace(alone.tuned, name=ALONE))
            advice = need_for_tuning(job, untuned, alone.tuned, comparison.tuned)
        today = measure_today(job, deployed.searcher)
        advice += (today.sentence,) if today else ()
    with plan.step("other forms of the model"):
        forms = _forms(job, model, final, whole=weight == 1)
    seconds = time.monotonic() - started
    return _Measured(
        base_run,
        runs[0],
        deployed.searched[0],
        advice,
        others,
        comparison,
        alone,
        deployed.searcher,
        tuned,
        model,
        forgetting,
        forms,
        published,
        today,
        seconds,
    )


def _forms(job: Job, model: Encoder, final: Tuned, *, whole: bool) -> tuple[Form, ...]:
    """Return the scores of the model in other forms. An adapter over an API is a matrix in a file and has none."""
    kept, lora = local_of(model), final.model.parent / "lora"
    if not kept:
        return ()
    return check_forms(
        kept,
        job.test,
        job.template,
        metric=job.metric,
        ks=job.config.evaluate.k,
        matryoshka=final.matryoshka,
        lora=lora if lora.is_dir() and whole and job.config.tune.documents == "trained" and not is_quantized(kept.loading) else None,
    )


def _write(job: Job, folder: Path, measured: _Measured) -> None:
    """Write the run directory and send the results to the trackers."""
    config, comparison, tuned = job.config, measured.comparison, measured.tuned
    assessed = measured.deployed.assessed
    queries = per_query(job.dataset, comparison, measured.base_run, measured.deployed.run, measured.deployed.chances)
    suspects = find_suspects(job.test, measured.base_run, measured.tuned_run, scale=config.tune.scale)
    report = Report(
        config.name,
        comparison,
        queries,
        facts(job, tuned),
        measured.others,
        (*measured.advice, *notes_on(job, measured.forgetting, final=True)),
        tuned[0].history if len(tuned) == 1 and tuned[0].epoch else (),
        alerts=alerts(job.findings),
        documents=dict(zip(job.dataset.corpus, job.dataset.document_texts(job.template), strict=True)),
        suspects=suspects,
        seeds=seeds(comparison),
        forms=measured.forms,
        forgetting=measured.forgetting,
        trust=(assessed.trust.threshold, assessed.evidence) if assessed else None,
        deployed=_deployed(measured),
        next=next_steps(job, folder, comparison, len(suspects)),
    )
    manifest = _manifest(job, folder, measured)
    measured.searcher.save(folder / "searcher")
    if measured.today:
        measured.today.write(folder)
    write_run(folder, comparison, measured.alone, measured.others, queries, suspects, manifest, report, measured.published)
    with tracking(config.name, folder, wanted=config.track.langwatch) as tracker:
        if tracker:
            for scores, run in ((comparison.base, measured.base_run), (comparison.tuned, measured.deployed.run)):
                tracker.add(public_name(scores.name), job.test, run, scores, template=job.template)


def _deployed(measured: _Measured) -> str:
    return "tuned" if measured.comparison.tuned.name == measured.alone.tuned.name else "searcher"


def _manifest(job: Job, folder: Path, measured: _Measured) -> dict[str, Any]:
    """Return the manifest of a run: its data, settings and trainings, and what was measured."""
    kept = local_of(measured.model)
    return manifest_of(job, folder, measured.tuned, measured.seconds) | {
        "model": str((kept.folder if kept else measured.tuned[-1].model).relative_to(folder)),
        "fingerprint": measured.model.fingerprint,
        "identity": kept.whole_identity if kept else None,
        "others": [scores.name for scores in measured.others],
        "searcher": described(measured.searcher),
        "deployed": _deployed(measured),
        "advice": [*measured.advice, *trusted(measured.deployed)],
        "forms": [{**vars(form), "passed": form.passed} for form in measured.forms],
        "forgetting": measured.forgetting.to_dict() if measured.forgetting else None,
    }


def curve(source: Source, points: int = 4, *, model: Model | None = None, **settings: Any) -> Curve:
    """Measure models trained on growing shares of the training queries, and estimate the gain from more labels.

    Args:
        source: A Dataset, a Config, or the path of an embedfit.toml or of labelled queries.
        points: Number of training sizes, each double the previous size.
        model: Model to start from: a name, a folder or an Encoder; by default that of the settings.
        settings: Sections and keys of embedfit.toml.

    Raises:
        EmbedfitError: Something is missing or wrong; the message is one line and names the fix.
    """
    inputs = Inputs.of(source, model, settings)
    config = inputs.config
    check_installed(config, trains=True)
    refuse_parts(config, "curve")
    note_unused(config, "curve")
    job = job_with_choice(config, inputs.dataset, inputs.base, trains=True)
    findings = job.findings
    most = min(len(split.train) for split in job.splits)
    if not most >> (points - 1):
        raise ConfigError(f"{points} points, each half the next, are too many for {most:,} training queries; fix: fewer points")
    folder = job.folder("-curve", more=[str(points)])
    with locked(folder):
        base = job.dense(job.base).search(job.test, job.depth)

        def train_and_search(train: Dataset, test: Dataset, where: Path) -> Run:
            tuned = tune_part(job, train, None, where, {})
            using = job.engine.encoder(tuned.encoder)  # not cached: the model is not kept
            return DenseRetriever(using, job.template, job.engine.top_k).search(test, job.depth)

        study = learning_curve(
            job.dataset,
            job.splits,
            train_and_search,
            folder,
            base=base,
            metric=job.metric,
            sizes=sorted({most >> step for step in range(points)}),
            identity=folder.name,
            group_by=config.split.group_by,
            seed=config.split.seed,
        )
        page = curve_html(
            f"{config.name}: learning curve",
            study.sentence,
            study.points[1:],
            metric=study.metric,
            untuned=study.points[0].value,
            fitted=[(point.pairs, point.value) for point in study.fitted if point.pairs],
            predictions=study.forecasts,
            notes=notes_on(job),
            alerts=alerts(findings),
        )
        write_study(folder, "curve", study, page)
    return replace(study, folder=folder)


def ladder(source: Source, *, model: Model | None = None, save: str | Path | None = None, **settings: Any) -> Ladder:
    """Measure every method on the same held-out queries, cheapest first, and recommend the simplest good one.

    Args:
        source: A Dataset, a Config, or the path of an embedfit.toml or of labelled queries.
        model: Model to start from: a name, a folder or an Encoder; by default that of the settings.
        save: Folder for the recommended method as a searcher, which `embedfit.Searcher.load` reads; None to save nothing.
        settings: Sections and keys of embedfit.toml, such as ``ladder={"rungs": ["bm25", "base", "full"]}``.

    Raises:
        EmbedfitError: Something is missing or wrong; the message is one line and names the fix.
    """
    inputs = Inputs.of(source, model, settings)
    config = inputs.config
    chosen = check_rungs(config.ladder.rungs)
    check_installed(config, trains=True)
    if "lora" in config.ladder.rungs:
        check_package("peft", extra="lora")
    note_unused(config, "ladder")
    job = job_with_choice(config, inputs.dataset, inputs.base)
    findings = job.findings
    richer = config.ladder.document_template or richer_template(job.dataset, job.template)
    folder = job.folder("-ladder", more=[richer or ""])
    with locked(folder):
        console.note(f"{len(job.test.queries):,} held-out queries; results are kept in {folder}")
        setting = Setting(job.base, config, job.template, richer, job.engine, tuple(job.further))
        study = climb(setting, job.dataset, job.splits, folder, chosen)
        page = ladder_html(
            f"{config.name}: ladder",
            study,
            notes=(*notes_on(job), *([MIXED] if job.further else [])),
            alerts=alerts(findings),
        )
        write_study(folder, "ladder", study, page)
        if save:
            recommended_searcher(study, setting, job.dataset, job.splits, folder).save(save)
    return replace(study, folder=folder)


def _forgetting(job: Job, training: Sequence[Tuned], final: Tuned, model: Encoder, general: Dataset) -> Forgetting | None:
    """Return the general retrieval before and after tuning; None for an adapter, which cannot be merged."""
    if job.config.tune.method == "adapter":
        return None
    return measure_forgetting(
        local(job.base),
        local(model),
        general,
        held_out=[(local(_encoder(tuned, final, model)), test) for tuned, (_, _, test) in zip(training, job.parts, strict=True)],
        template=job.template,
        weights=WEIGHTS if job.config.general.measure == "sweep" else (),
        keep=job.config.general.keep,
        metric=job.metric,
        ks=job.config.evaluate.k,
    )


def _own_scores(job: Job, model: Encoder) -> Scores | None:
    """Return the scores of the model to use, for the check after publishing; None if it cannot be published.

    They are no evidence of quality: with folds, the model was trained on these queries; with several seeds, it is one of several.
    """
    return job.scored(job.dense(model).search(job.test, job.depth), "published") if local_of(model) else None


def _encoder(tuned: Tuned, final: Tuned, model: Encoder) -> Encoder:
    """Return the encoder of a training: the one in memory if it is the final training, else loaded from its folder."""
    return model if tuned is final else tuned.encoder


def _searched(job: Job, training: Sequence[Tuned], final: Tuned, model: Encoder) -> Run:
    """Return the Run on all held-out queries: each part by the model trained without it."""
    parts = zip(training, job.parts, strict=True)
    return joined([job.dense(_encoder(tuned, final, model)).search(test, job.depth) for tuned, (_, _, test) in parts])


def _merged_run(job: Job, training: Sequence[Tuned], weight: float) -> Run:
    """Return the Run on all held-out queries: each part by the model trained without it, merged with the base."""
    held_out = [(local(tuned.encoder), test) for tuned, (_, _, test) in zip(training, job.parts, strict=True)]
    return merged_runs(local(job.base), held_out, [weight], job.template, job.depth)[weight]


def read_general(config: GeneralConfig) -> Dataset | None:
    """Return the general set that a configuration names, by default the bundled set; None if nothing is to be measured on it."""
    if config.measure == "off":
        return None
    return load(config.queries, config.documents) if config.queries else general_set()
