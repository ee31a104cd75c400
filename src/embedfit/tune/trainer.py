"""sentence-transformers' trainer with small checkpoints: the trained weights, and the record of the training."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from accelerate.data_loader import prepare_data_loader
from sentence_transformers import SentenceTransformerTrainer
from torch import distributed
from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerState

from embedfit import processes
from embedfit.errors import ModelError
from embedfit.files import writing
from embedfit.tune.average import EpochMean, trained_weights
from embedfit.tune.batches import Counting
from embedfit.tune.dev import DevScores
from embedfit.tune.mine import MinedCandidates
from embedfit.tune.remembered import Remembered

_SAVE_SECONDS = 20.0
"""Shortest time between two checkpoints that no dev part may choose."""
_SAVE_SHARE = 1 / 20
"""Largest share of the time spent on checkpoints, which take seconds for a large model."""
_WEIGHTS, _MEAN, _VECTORS = "trained.safetensors", "mean.safetensors", "vectors.safetensors"
_LAST = "last"
_RECORD = "embedfit.json"


def last_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint, and remove those that a killed process left incomplete."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        try:
            # The trainer writes this file last.
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            whole.append((int(state["global_step"]), path))
        except (OSError, ValueError, KeyError):
            shutil.rmtree(path)
    return max(whole)[1] if whole else None


def stopped_early(checkpoint: Path, patience: int) -> bool:
    """Return whether training had stopped early at this checkpoint."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    saved = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {})
    return int(saved.get("attributes", {}).get("early_stopping_patience_counter", 0)) >= patience


class RecordingTrainer(SentenceTransformerTrainer):
    """The library's trainer with checkpoints that hold only the trained weights and the record.

    It stops when training diverges.

    Args:
        record: Record of the training.
        averaged: Whether the model of an epoch is the mean of the weights after each of its steps.
        settings: Arguments of the library's trainer.
    """

    def __init__(self, record: TrainingRecord, averaged: bool, **settings: Any) -> None:
        super().__init__(**settings)
        self._record = record
        self._record.mean = EpochMean(self.model) if averaged else None

    def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
        """Write no model card, which would publish training examples."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the batches of training queries; every process gets the whole batch."""
        if processes.count() == 1:
            whole: DataLoader[Any] = super().get_train_dataloader()
            return whole
        # Candidates belong to the whole batch, so every process gets all of it and encodes a share (see CandidateLoss).
        loader = self._build_dataloader(self.train_dataset, self.args.train_batch_size, dataset_kind="train")
        every: DataLoader[Any] = prepare_data_loader(
            loader,
            self.args.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            use_seedable_sampler=True,  # as in a single process, or the order of the queries would differ
            data_seed=self.args.data_seed,
        )
        self._train_dataloader = every
        return every

    def training_step(self, *inputs: Any, **named: Any) -> torch.Tensor:
        """Take one step, and return its loss.

        Raises:
            ModelError: The loss is not finite.
        """
        loss = super().training_step(*inputs, **named)
        if processes.count() > 1:
            # The sum; DistributedDataParallel takes the mean, and would count a chunk computed again as a second step.
            gradients = [value.grad for value in self.model.parameters() if value.grad is not None]
            whole = torch.cat([gradient.flatten() for gradient in gradients])
            distributed.all_reduce(whole)
            parts = torch.split(whole, [gradient.numel() for gradient in gradients])
            for gradient, part in zip(gradients, parts, strict=True):
                gradient.copy_(part.view_as(gradient))
        if not torch.isfinite(loss):
            raise diverged(self.state)
        self._record.losses.append(loss.item())
        return loss

    def evaluate(self, *inputs: Any, **named: Any) -> Any:
        """Return the dev scores of the epoch's model."""
        with self._record.mean.in_place() if self._record.mean else contextlib.nullcontext():
            return super().evaluate(*inputs, **named)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if not self.args.should_save:
            return  # every process calls this, and only the first has scored the epoch
        target = Path(str(output_dir or self.args.output_dir))
        target.mkdir(parents=True, exist_ok=True)
        self._record.write(target / _RECORD)
        safetensors.torch.save_file(trained_weights(self.model), target / _WEIGHTS)
        if self._record.mean:
            safetensors.torch.save_file(self._record.mean.values, target / _MEAN)
        if self._record.remembered:
            safetensors.torch.save_file({_LAST: self._record.remembered.vectors}, target / _VECTORS)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        trained = trained_weights(self.model)
        with torch.no_grad():
            for name, value in safetensors.torch.load_file(Path(checkpoint_path) / _WEIGHTS).items():
                trained[name].copy_(value)
        if self._record.mean:
            self._record.mean.restore(safetensors.torch.load_file(Path(checkpoint_path) / _MEAN))
        if self._record.remembered:
            self._record.remembered.vectors.copy_(safetensors.torch.load_file(Path(checkpoint_path) / _VECTORS)[_LAST])

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def load_finished(self, checkpoint: Path) -> None:
        """Load a training that had stopped early and was not saved yet; `train` would run one epoch more before it stops."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._load_best_model()
        self._record.on_train_begin(self.args, self.state, None)


def diverged(state: TrainerState) -> ModelError:
    """Return the error for a loss or weight that is not finite."""
    step = min(state.global_step + 1, state.max_steps)
    return ModelError(
        f"training diverged: the loss or a weight is not a finite number at step {step:,} of {state.max_steps:,}; "
        'fix: a lower tune.learning_rate, or precision = "fp32" in [model]'
    )


class TrainingRecord(TrainerCallback):  # type: ignore[misc]
    """Record of a training: everything but the weights that a resumed training needs. Checkpoints contain it.

    It also decides when to write a checkpoint. The trainer itself counts steps and epochs, which take milliseconds or hours.

    Args:
        collator: Counting, which counts the tokens of each batch.
        miner: Source of mined negatives; None if none are mined.
        judge: Scores of the dev part; None without a dev part.
        advance: Function that moves the progress bar by a number of steps.
        steps: Steps per epoch.
        spent: Seconds spent before the first step, which count as training.
        remembered: Last vectors of the texts, which a resumed training needs; None if every text is encoded in every step.

    Attributes:
        history: One row per epoch: its number, mean loss and dev scores.
        losses: Loss of each step in the present epoch.
        tokens: Tokens trained on so far, without padding.
        mean: Mean of the weights over the present epoch; None if the weights themselves are its model.
    """

    def __init__(
        self,
        collator: Counting,
        miner: MinedCandidates | None,
        judge: DevScores | None,
        advance: Callable[[int], None],
        steps: int,
        spent: float = 0.0,
        remembered: Remembered | None = None,
    ) -> None:
        self._collator, self._miner, self._judge, self._advance, self._steps = collator, miner, judge, advance, steps
        self.remembered = remembered
        self.history: list[dict[str, float]] = []
        self.losses: list[float] = []
        self.tokens = 0
        self.mean: EpochMean | None = None
        self._before = spent
        self._started = self._saving = self._saved = self._cost = 0.0

    @property
    def seconds(self) -> float:
        """Training time so far, including that of interrupted processes."""
        return self._before + time.monotonic() - self._started

    def write(self, path: Path) -> None:
        """Write the record beside a checkpoint's weights."""
        self._saving = time.monotonic()
        judge = {"kept": self._judge.kept, "choice": self._judge.choice} if self._judge else None
        payload = {"seconds": self.seconds, "tokens": self.tokens, "history": self.history, "losses": self.losses, "judge": judge}
        with writing(path) as file:
            file.write(json.dumps(payload).encode())

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Restore the record from the checkpoint, if there is one."""
        self._started = self._saved = time.monotonic()
        if state.global_step:
            payload = json.loads((Path(args.output_dir) / f"checkpoint-{state.global_step}" / _RECORD).read_text(encoding="utf-8"))
            self._before += payload["seconds"]
            self.tokens, self.history, self.losses = (payload[key] for key in ("tokens", "history", "losses"))
            if self._judge:
                self._judge.kept, self._judge.choice = payload["judge"]["kept"], payload["judge"]["choice"]
            if self._miner:
                self._miner.batch = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the tokens, and ask for a checkpoint if one is due."""
        self._advance(1)
        self.tokens += self._collator.tokens.popleft() - (self.remembered.left_out if self.remembered else 0)
        if self.mean:
            self.mean.add(len(self.losses))
        # After the last step of an epoch the checkpoint waits for the dev scores, or a resumed training would lack them.
        if state.global_step % self._steps:
            control.should_save |= self._due()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the epoch's mean loss to the history."""
        self.history.append({"epoch": len(self.history) + 1, "loss": statistics.fmean(self.losses)})
        self.losses = []
        if state.global_step < state.max_steps:
            control.should_save |= self._due()

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the dev scores to the epoch's row."""
        self.history[-1] |= {key: kwargs["metrics"][f"eval_{key}"] for key in ("mrr@10", "recall@1")}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note how long the checkpoint took."""
        self._saved = time.monotonic()
        self._cost = self._saved - self._saving

    def _due(self) -> bool:
        return processes.agreed(time.monotonic() - self._saved > max(_SAVE_SECONDS, self._cost / _SAVE_SHARE))
