"""Where a training is logged to by the trainer's own callbacks: MLflow, Weights & Biases, TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sentence_transformers import SentenceTransformerTrainer
from transformers.integrations.integration_utils import TensorBoardCallback, WandbCallback


def run_name(folder: Path) -> str:
    """Return what trackers call a training: the experiment's folder, and which of its seeds and folds this is."""
    parts = folder.absolute().parts
    within = [place for place, part in enumerate(parts) if part in ("seeds", "folds")]
    return "/".join(parts[min(within, default=len(parts)) - 1 :])


@contextlib.contextmanager
def logged(trainer: SentenceTransformerTrainer, folder: Path) -> Iterator[None]:
    """Have what one training logs kept, and kept apart from the next training of this process.

    Left alone, TensorBoard's files go beside the checkpoints, which are removed in the end, and Weights & Biases
    takes every later training for more of the first. A run that the caller has begun there is left open.
    """
    ours = None
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback):
            given = callback.logging_dir  # $TENSORBOARD_LOGGING_DIR
            callback.logging_dir = str(Path(given) / run_name(folder) if given else folder / "tensorboard")
        elif isinstance(callback, WandbCallback):
            import wandb

            ours = wandb if wandb.run is None else None
    try:
        yield
    finally:
        if ours:
            ours.finish()
