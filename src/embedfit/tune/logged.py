"""Logging of a training by the trainer's own callbacks: MLflow, Weights & Biases, TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sentence_transformers import SentenceTransformerTrainer
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback


def run_name(folder: Path) -> str:
    """Return the name of a training for trackers: the experiment's folder, with the seed and fold."""
    parts = folder.absolute().parts
    within = [place for place, part in enumerate(parts) if part in ("seeds", "folds")]
    return "/".join(parts[min(within, default=len(parts)) - 1 :])


@contextlib.contextmanager
def logged(trainer: SentenceTransformerTrainer, folder: Path) -> Iterator[None]:
    """Keep the log of one training, apart from the next training in this process.

    By default TensorBoard writes among the checkpoints, which are removed at the end, and Weights & Biases appends every
    later training to the first run. A Weights & Biases run that the caller has started stays open.
    """
    ours = None
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            base = callback.logging_dir  # $TENSORBOARD_LOGGING_DIR
            callback.logging_dir = str(Path(base) / run_name(folder) if base else folder / "tensorboard")
        elif isinstance(callback, WandbCallback):
            import wandb

            ours = wandb if wandb.run is None else None
    try:
        yield
    finally:
        if ours:
            ours.finish()
