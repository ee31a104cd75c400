"""The course of a training, whatever is trained: from its start or its last checkpoint to the kept epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset as Rows
from sentence_transformers import SentenceTransformerTrainingArguments
from transformers import EarlyStoppingCallback

from embedfit import console, processes, progress
from embedfit.encode.saving import why_not_written
from embedfit.errors import EmbedfitError, ModelError, StorageError
from embedfit.tune.batches import Counting
from embedfit.tune.dev import DevScores
from embedfit.tune.logged import logged, run_name
from embedfit.tune.mine import MinedCandidates
from embedfit.tune.remembered import Remembered
from embedfit.tune.trainer import RecordingTrainer, TrainingRecord, diverged, last_checkpoint, stopped_early
from embedfit.tune.training import Training

if TYPE_CHECKING:
    from sentence_transformers.base.model import BaseModel


@dataclass(frozen=True)
class Course:
    """What the trainer needs.

    Attributes:
        model: Model in training.
        collator: Function from the positions of some training queries to a batch, which counts the tokens of each batch.
        loss: Loss of a batch.
        judge: Scores of the dev part; None without a dev part.
        rows: Number of training queries.
        epochs: Most epochs to train for.
        learning_rate: Peak learning rate.
        bf16: Whether matrix products run in bfloat16.
        averaged: Whether the learning rate stays, and the model of an epoch is the mean of the weights after each of its steps.
        miner: Source of negatives that are mined again in training; None if none are.
        spent: Seconds spent before the first step, which count as training.
        remembered: Last vectors of the texts; None if every text is encoded in every step.
    """

    model: BaseModel
    collator: Counting
    loss: torch.nn.Module
    judge: DevScores | None
    rows: int
    epochs: int
    learning_rate: float
    bf16: bool
    averaged: bool = False
    miner: MinedCandidates | None = None
    spent: float = 0.0
    remembered: Remembered | None = None


@dataclass(frozen=True)
class Finished:
    """How a training went.

    Attributes:
        seconds: Training time, including that of interrupted processes.
        history: One row per epoch: its number, mean loss and dev scores.
        epoch: Epoch whose weights were kept, from 1.
        tokens: Tokens trained on, without padding.
    """

    seconds: float
    history: tuple[dict[str, Any], ...]
    epoch: int
    tokens: int


def run_course(training: Training, course: Course) -> Finished:
    """Train a model from its start or its last checkpoint. Its weights are then those of the kept epoch.

    Raises:
        ModelError: Training diverged.
    """
    config, checkpoints = training.config, training.folder / "checkpoints"
    steps = -(-course.rows // config.batch_size)
    checkpoint = processes.agreed(last_checkpoint(checkpoints) if processes.main() else None)
    if checkpoint:
        console.note(f"resuming from {checkpoint.name}")
    done = int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0
    with progress.bar("tuning", steps * course.epochs, done) as advance:
        record = TrainingRecord(course.collator, course.miner, course.judge, advance, steps, course.spent, course.remembered)
        trainer = _trainer(training, course, record)
        if checkpoint and course.judge and stopped_early(checkpoint, config.patience):
            trainer.load_finished(checkpoint)
        else:
            with logged(trainer, training.folder):
                trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if record.mean:
            record.mean.put()
    if not all(torch.isfinite(value).all() for value in course.model.parameters()):
        raise diverged(trainer.state)
    best = trainer.state.best_global_step
    epoch = round(best / steps) if course.judge and best else len(record.history)
    return Finished(round(record.seconds, 3), tuple(record.history), epoch, record.tokens)


def _trainer(training: Training, course: Course, record: TrainingRecord) -> RecordingTrainer:
    """Return the trainer, which prints nothing."""
    trainer = RecordingTrainer(
        record,
        course.averaged,
        model=course.model,
        args=_arguments(training, course),
        train_dataset=Rows.from_dict({"row": range(course.rows)}),
        data_collator=course.collator,
        loss=course.loss,
        evaluator=course.judge,
        callbacks=[record, *([EarlyStoppingCallback(training.config.patience)] if course.judge else [])],
    )
    # The library's own callbacks print every log line to stdout.
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ in ("PrinterCallback", "ProgressCallback"):
            trainer.remove_callback(callback)
    return trainer


def _arguments(training: Training, course: Course) -> SentenceTransformerTrainingArguments:
    """Return the settings in the trainer's own terms."""
    config, device = training.config, course.model.device.type
    when_dev = "epoch" if course.judge else "no"
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(training.folder / "checkpoints"),
        num_train_epochs=course.epochs,
        per_device_train_batch_size=config.batch_size,
        learning_rate=course.learning_rate,
        lr_scheduler_type="constant_with_warmup" if course.averaged else "linear",
        warmup_steps=config.warmup,
        weight_decay=config.weight_decay,
        optim="adamw_torch_fused",
        use_cpu=device == "cpu",  # otherwise the library refuses bf16 without a GPU
        bf16=course.bf16,
        seed=config.seed,
        data_seed=config.seed,
        eval_strategy=when_dev,
        save_strategy=when_dev,  # any epoch may be the best; `TrainingRecord` asks for further checkpoints
        save_total_limit=2,
        load_best_model_at_end=course.judge is not None,
        metric_for_best_model="eval_choice" if course.judge else None,
        greater_is_better=True,
        restore_callback_states_from_checkpoint=True,
        logging_strategy="epoch" if training.report_to else "no",
        logging_nan_inf_filter=False,
        report_to=list(training.report_to) or "none",
        run_name=run_name(training.folder),
        disable_tqdm=True,
        dataloader_pin_memory=device == "cuda",
    )
    arguments.dataloader_drop_last = False  # the library sets it for several processes; here each sees the whole batch
    arguments._n_gpu = min(1, arguments.n_gpu)  # one process drives one device (processes.py)
    return arguments


@contextlib.contextmanager
def failures_explained(training: Training) -> Iterator[None]:
    """Raise exhausted memory, a failing tracker and a full disk as errors of one line."""
    try:
        yield
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
            raise ModelError(f"training: memory ran out; fix: a smaller tune.batch_size than {training.config.batch_size}") from None
        package = type(error).__module__.partition(".")[0]
        if package in training.report_to:
            raise EmbedfitError(f"training cannot be logged to {package}: {str(error).splitlines()[0]}") from None
        reason = why_not_written(error)
        if reason is None:
            raise
        raise StorageError(f"{training.folder}: cannot be written: {reason}; fix: make room, then the same command resumes") from None
