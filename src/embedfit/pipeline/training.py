"""Tuning, once per split and seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from embedfit import processes, progress
from embedfit.config import Config, EvaluateConfig
from embedfit.data.check import Finding
from embedfit.data.dataset import Dataset
from embedfit.data.mix import with_further
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder
from embedfit.encode.local import LocalEncoder, local_of
from embedfit.errors import ConfigError
from embedfit.generate.relevance import relevance_judge
from embedfit.pipeline.job import Job, locked
from embedfit.pipeline.kept_out import parts_for_weights
from embedfit.pipeline.needs import check_installed, local, note_unused, reranker_start
from embedfit.progress import Plan
from embedfit.retrieve.engine import LocalEngine
from embedfit.tune.training import Training

if TYPE_CHECKING:
    from embedfit.tune.result import Tuned


def run_tune(config: Config, folder: Path) -> tuple[Tuned, tuple[Finding, ...]]:
    """Tune on the train part of one split and choose on its dev part, with the checks and the further data sets of `run`.

    Returns:
        The tuned model, and the findings in the data.

    Raises:
        EmbedfitError: Something is missing or wrong; the message is one line and names the fix.
    """
    check_installed(config, trains=True)
    note_unused(config, "tune")
    job = Job.of(config.model_copy(update={"split": config.split.model_copy(update={"folds": 0})}), trains=True)
    findings = job.findings
    [(train, dev, _)] = job.parts
    with locked(folder):
        return tune_part(job, train, dev, folder, {}), findings


ON_ALL = "tuning on all queries"
"""Name of the step that trains the model to use, after the folds were measured."""


def training_steps(job: Job) -> list[str]:
    """Return the names of the trainings of a run, in order."""
    names = [step for seed in range(job.config.evaluate.seeds) for step in _steps_of(job, seed)]
    more = [_weights_step(job, seed) for seed in range(job.config.evaluate.seeds)] if _trains_for_weights(job) else []
    return [*names, *([ON_ALL] if len(job.splits) > 1 else []), *more]


@dataclass(frozen=True)
class Trained:
    """The trainings of a run.

    Attributes:
        parts: Trainings of each seed, one per split.
        for_weights: Trainings of each seed whose unseen queries the searcher's weights are learnt on.
        final: Training of the model to use.
    """

    parts: list[list[Tuned]]
    for_weights: list[list[Tuned]]
    final: Tuned


def train_all(job: Job, folder: Path, plan: Plan) -> Trained:
    """Tune once per split and seed, once more for the model to use, and once more for the searcher's weights where that is needed.

    Args:
        job: Data, parts and settings.
        folder: Run directory.
        plan: Plan with the steps of `training_steps`.
    """
    trainings = [_train(job, _seed_folder(folder, seed), seed, plan) for seed in range(job.config.evaluate.seeds)]
    final = _final(job, trainings[0], folder, plan)
    return Trained(trainings, [_for_weights(job, training, folder, seed, plan) for seed, training in enumerate(trainings)], final)


def help_training(job: Job, folder: Path) -> NoReturn:
    """Take part in the trainings as a process of a torchrun other than the first, then exit; the first does the rest."""
    with progress.plan("training", training_steps(job)) as plan:
        train_all(job, folder, plan)
    raise SystemExit


def _steps_of(job: Job, seed: int) -> list[str]:
    seeds, folds = job.config.evaluate.seeds, len(job.splits)
    of_seed = f", seed {seed + 1} of {seeds}" if seeds > 1 else ""
    return [f"tuning{f', fold {fold} of {folds}' if folds > 1 else ''}{of_seed}" for fold in range(1, folds + 1)]


def _seed_folder(folder: Path, seed: int) -> Path:
    return folder if seed == 0 else folder / "seeds" / str(seed)


def _train(job: Job, folder: Path, seed: int, plan: Plan) -> list[Tuned]:
    """Tune once per split. ``seed`` is added to the configured seed."""
    results = []
    for number, (step, (train, dev, _)) in enumerate(zip(_steps_of(job, seed), job.parts, strict=True)):
        part_folder = folder / "folds" / str(number) if len(job.splits) > 1 else folder
        with _working(plan, step, part_folder):
            results.append(tune_part(job, train, dev, part_folder, {"seed": job.config.tune.seed + seed}))
    return results


def _final(job: Job, training: Sequence[Tuned], folder: Path, plan: Plan) -> Tuned:
    """Return the training of the model to use: the only one, or with folds one more on all queries."""
    if len(training) == 1:
        return training[0]
    epochs = [tuned.epoch for tuned in training if tuned.epoch is not None]  # None for an adapter
    changes = {"epochs": round(statistics.median(epochs))} if epochs else {}
    with _working(plan, ON_ALL, folder):
        return tune_part(job, job.dataset.select(job.dataset.judged), None, folder, changes)


def _for_weights(job: Job, training: list[Tuned], folder: Path, seed: int, plan: Plan) -> list[Tuned]:
    """Return the trainings whose unseen queries the searcher's weights are learnt on: the folds', or one more."""
    if not _trains_for_weights(job):
        return training
    part, tuned = parts_for_weights(job)[0], training[0]
    changes = {"seed": job.config.tune.seed + seed, **({"epochs": tuned.epoch} if tuned.epoch else {})}
    where = _seed_folder(folder, seed) / "weights"
    with _working(plan, _weights_step(job, seed), where):
        return [tune_part(job, part.known, None, where, changes)]


def _trains_for_weights(job: Job) -> bool:
    """Return whether the searcher's weights need a training of their own. A reranker has no searcher."""
    return job.config.tune.method != "reranker" and parts_for_weights(job)[0].model


def _weights_step(job: Job, seed: int) -> str:
    return "tuning for the searcher's weights" + (f", seed {seed + 1}" if job.config.evaluate.seeds > 1 else "")


def _working(plan: Plan, step: str, folder: Path) -> AbstractContextManager[None]:
    """Show a training as a step of the plan, or skip the step if the training is already finished."""
    if (folder / "tuned.json").exists():
        plan.skip(step)
        return nullcontext()
    return plan.step(step)


def tune_part(job: Job, train: Dataset, dev: Dataset | None, folder: Path, changes: dict[str, Any]) -> Tuned:
    """Tune on one part, mixed with the further data sets.

    Args:
        job: Settings, base model and further data sets.
        train: Data set of the training queries.
        dev: Data set of the dev queries; None to train for all epochs.
        folder: Output folder.
        changes: Keys of [tune] with values that replace the configured values.
    """
    config = job.config.tune.model_copy(update=changes)
    temperature = job.config.mix.temperature
    train, dev, template = with_further(train, dev, job.template, job.further, temperature=temperature, seed=config.seed)
    engine = job.engine if processes.count() == 1 else LocalEngine()
    llm = relevance_judge(config.judge, job.config.generate, Path(job.config.output))
    training = Training(train, dev, folder, config, template, job.config.track.report_to, engine, llm)
    return tune(job.base, training, job.config.evaluate)


def tune(base: Encoder, training: Training, evaluate: EvaluateConfig | None = None) -> Tuned:
    """Tune a model by the method that the settings name (see `embedfit.pipeline.needs.check_method`)."""
    config = training.config
    if config.method == "reranker":
        from embedfit.tune.reranker import tune_reranker

        start, model = reranker_start(config, base), local_of(base)
        retriever = CachedEncoder(training.engine.encoder(base))
        top, precision = (evaluate or EvaluateConfig()).rerank_top, model.precision if model else "auto"
        return tune_reranker(retriever, training, start=start, top=top, precision=precision)
    if config.method == "adapter":
        if processes.count() > 1:
            raise ConfigError("tune.method 'adapter' trains in seconds, in one process; fix: run it without torchrun")
        from embedfit.tune.adapter import tune_adapter
        from embedfit.tune.frozen import AdapterConfig

        encoder = training.engine.encoder(base)
        if encoder.fingerprint != base.fingerprint:
            encoder = base  # the workers compute other vectors than the local model, which the map is saved with
        settings = AdapterConfig(scale=config.scale, seed=config.seed)
        return tune_adapter(CachedEncoder(encoder), training.train, training.dev, training.folder, settings, template=training.template)
    from embedfit.tune.full import tune_weights

    if config.documents == "frozen" and config.query_model:
        return tune_weights(LocalEncoder(config.query_model), training, CachedEncoder(training.engine.encoder(base)))
    return tune_weights(local(base), training)
