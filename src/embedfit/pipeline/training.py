"""Tuning, as often as there are splits and seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from embedfit import console, processes
from embedfit.config import Config
from embedfit.data.check import Finding
from embedfit.data.dataset import Dataset
from embedfit.data.mix import with_others
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder
from embedfit.errors import ConfigError
from embedfit.pipeline.job import Job, locked
from embedfit.pipeline.needs import check_installed, check_method, local, note_unused
from embedfit.retrieve.engine import LocalEngine
from embedfit.tune.training import Training

if TYPE_CHECKING:
    from embedfit.tune.result import Tuned


def run_tune(config: Config, folder: Path) -> tuple[Tuned, tuple[Finding, ...]]:
    """Tune on the train part of one split, choosing on its dev part: with the checks of `run`, and its further data sets.

    Returns:
        What was tuned, and what is odd about the data.

    Raises:
        EmbedfitError: With one line that says what to do.
    """
    check_installed(config, trains=True)
    note_unused(config, "tune")
    job = Job.of(config.model_copy(update={"split": config.split.model_copy(update={"folds": 0})}))
    check_method(job.base, config.tune, config.track.report_to)
    findings = job.findings
    [(train, dev, _)] = job.parts
    with locked(folder):
        return tune_part(job, train, dev, folder, {}), findings


def train_all(job: Job, folder: Path) -> tuple[list[list[Tuned]], Tuned]:
    """Tune as often as there are splits and seeds, and once for the model to use. Returns, for each seed, those of the splits; and that."""
    trainings = [_trained(job, folder if seed == 0 else folder / "seeds" / str(seed), seed) for seed in range(job.config.evaluate.seeds)]
    return trainings, _final(job, trainings[0], folder)


def help_training(job: Job, folder: Path) -> NoReturn:
    """Take part in what the processes of one torchrun do together, the trainings, and end: the rest is the first one's."""
    train_all(job, folder)
    raise SystemExit


def _trained(job: Job, folder: Path, seed: int) -> list[Tuned]:
    """Tune once for each split; seed 0 is the configuration's own."""
    results = []
    for number, (train, dev, _) in enumerate(job.parts):
        if len(job.splits) > 1:
            console.note(f"fold {number + 1} of {len(job.splits)}" + (f", seed {seed + 1} of {job.config.evaluate.seeds}" if seed else ""))
        where = folder / "folds" / str(number) if len(job.splits) > 1 else folder
        results.append(tune_part(job, train, dev, where, {"seed": job.config.tune.seed + seed}))
    return results


def _final(job: Job, training: Sequence[Tuned], folder: Path) -> Tuned:
    """Return the model to use. What the folds measured is a way of training: it is trained in that way on all there is."""
    if len(training) == 1:
        return training[0]
    console.note("training on all queries")
    epochs = [tuned.epoch for tuned in training if tuned.epoch is not None]  # an adapter has none
    changes = {"epochs": round(statistics.median(epochs))} if epochs else {}
    return tune_part(job, job.dataset.select(job.dataset.judged), None, folder, changes)


def tune_part(job: Job, train: Dataset, dev: Dataset | None, folder: Path, changes: dict[str, Any]) -> Tuned:
    """Tune on one part as the configuration says, but for some changes; with further data sets mixed in, if there are any."""
    config = job.config.tune.model_copy(update=changes)
    temperature = job.config.mix.temperature
    train, dev, template = with_others(train, dev, job.template, job.others, temperature=temperature, seed=config.seed)
    engine = job.engine if processes.count() == 1 else LocalEngine()
    return tune(job.base, Training(train, dev, folder, config, template, job.config.track.report_to, engine))


def tune(base: Encoder, training: Training) -> Tuned:
    """Tune a model by the method that the settings name (see `check_method`)."""
    config = training.config
    if config.method == "adapter":
        if processes.count() > 1:
            raise ConfigError("tune.method 'adapter' trains in seconds, in one process; fix: without torchrun")
        from embedfit.tune.adapter import tune_adapter
        from embedfit.tune.frozen import AdapterConfig

        encoder = training.engine.encoder(base)
        if encoder.fingerprint != base.fingerprint:
            encoder = base  # workers of another kind: the map is saved with the model that is here, and must fit its vectors
        settings = AdapterConfig(scale=config.scale, seed=config.seed)
        return tune_adapter(CachedEncoder(encoder), training.train, training.dev, training.folder, settings, template=training.template)
    from embedfit.tune.full import tune_weights

    return tune_weights(local(base), training)
