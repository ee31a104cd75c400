"""Changes of the training's settings that a doctor tries: towards the defaults first, then to both sides of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from embedfit.config import TuneConfig, with_method

Candidates = Literal["all", "mined", "batch"]
_NO_CHOICE = {
    *("method", "seed", "memory_gb", "patience", "judge", "teacher", "teacher_weight", "lora_rank", "mine_every", "documents", "reranker"),
}
"""Settings that are no likely cause, or that another one stands for."""
_ALIKE = 1.5
"""Largest ratio of two learning rates, or of two numbers of epochs, that are taken for the same."""
_STRICTER_MARGIN = 0.95
_MINING = {"hard_negatives", "mined_margin"}
_UNUSED: Mapping[str, set[str]] = {
    "all": {*_MINING, "negatives"},
    "batch": {*_MINING, "min_gradient"},
    "mined": {"min_gradient"},
}
"""Candidates -> settings that they do not use."""
_OF_WEIGHTS = {"train_embeddings", "dropout", "freeze", "matryoshka"}


@dataclass(frozen=True)
class Resolved:
    """The settings of a training with nothing left to choose, so that a smaller training makes the same choices.

    Attributes:
        config: Settings as they were given.
        candidates: Candidates that the run trained with.
        usual: Candidates that it would train with by default.
        frozen: Number of layers that the run froze.
        usually_frozen: Number of layers that it would freeze by default.
        layers: Number of layers of the model; 0 if unknown.
        epochs: Number of epochs that the run kept; None for the configured number.
    """

    config: TuneConfig
    candidates: Candidates
    usual: Candidates
    frozen: int = 0
    usually_frozen: int = 0
    layers: int = 0
    epochs: int | None = None

    @property
    def pinned(self) -> TuneConfig:
        """The settings of the run."""
        return self._with(self.candidates, epochs=self.epochs or self.config.epochs_with(self.candidates), freeze=self.frozen)

    def _with(self, candidates: Candidates, **changes: Any) -> TuneConfig:
        """Return the settings with other candidates, and with the epochs and the learning rate that follow from them."""
        values = {
            "candidates": candidates,
            "epochs": self.config.epochs_with(candidates),
            "learning_rate": self.config.learning_rate_with(candidates),
        }
        return self.config.model_copy(update={**values, **changes})


@dataclass(frozen=True)
class Ablation:
    """A change of [tune].

    Attributes:
        values: Key of embedfit.toml -> new value.
        config: Settings with the change.
        cost: Time of training, as a multiple of that without the change.
    """

    values: dict[str, Any]
    config: TuneConfig
    cost: float


def ablations(run: Resolved) -> list[Ablation]:
    """Return the changes to try: settings of the run that differ from the defaults, set to these, and then others. Each cheapest first."""
    if run.config.method == "adapter":
        changes = [_of_adapter(run, {"scale": TuneConfig().scale})] if run.config.scale != TuneConfig().scale else []
        return [*changes, *([_of_adapter(run, {"method": "full"})] if run.layers else [])]
    reverts, nearby = _reverts(run), _nearby(run)
    return [*sorted(reverts, key=lambda change: change.cost), *sorted(nearby, key=lambda change: change.cost)]


def _of_adapter(run: Resolved, change: dict[str, Any]) -> Ablation:
    config = with_method(run.config, change.get("method", "adapter")).model_copy(update=change)
    return Ablation({f"tune.{name}": value for name, value in change.items()}, config, 10.0 if "method" in change else 1.0)


def _reverts(run: Resolved) -> list[Ablation]:
    pinned, config = run.pinned, run.config
    usual = TuneConfig(method=config.method)
    unused = _NO_CHOICE | _UNUSED[run.candidates] | (_OF_WEIGHTS if config.method == "lora" else set())
    changes = []
    if run.candidates != run.usual:
        other = run._with(run.usual)
        changes.append(_ablation(run, {"candidates": run.usual}, other))
    for name in TuneConfig.model_fields:
        if name in unused or name == "candidates" or getattr(config, name) == getattr(usual, name):
            continue
        value: Any = getattr(usual, name)
        if name in ("learning_rate", "epochs"):
            value = usual.learning_rate_with(run.candidates) if name == "learning_rate" else usual.epochs_with(run.candidates)
            if _alike(value, getattr(pinned, name)):
                continue
        new: Any = value
        if name == "freeze":
            new = run.usually_frozen
            if new == run.frozen:
                continue
        changes.append(_ablation(run, {name: value}, pinned.model_copy(update={name: new})))
    return changes


def _nearby(run: Resolved) -> list[Ablation]:
    """Return changes of settings that have their defaults."""
    pinned, config = run.pinned, run.config
    changes: list[dict[str, Any]] = []
    usual = TuneConfig(method=config.method)
    rate, epochs = pinned.learning_rate or 0.0, pinned.epochs or 1
    if _alike(rate, usual.learning_rate_with(run.candidates)):
        changes += [{"learning_rate": _rounded(rate * 4)}, {"learning_rate": _rounded(rate / 4)}]
    if _alike(epochs, usual.epochs_with(run.candidates)):
        changes += [{"epochs": epochs * 2}]
        changes += [{"epochs": epochs // 2}] if epochs > 1 else []
    if config.freeze == "auto" and config.method == "full" and not config.train_embeddings:
        if run.frozen:
            changes.append({"freeze": 0})
        elif run.layers > 1:
            changes.append({"freeze": run.layers // 2})
    if run.candidates == "mined":
        if config.mined_margin == usual.mined_margin:
            changes.append({"mined_margin": _STRICTER_MARGIN})
        if run.usual == "mined":
            changes.append({"candidates": "batch"})
    return [_ablation(run, change, pinned.model_copy(update=change)) for change in changes]


def _ablation(run: Resolved, change: dict[str, Any], config: TuneConfig) -> Ablation:
    return Ablation({f"tune.{name}": value for name, value in change.items()}, config, _cost(config) / _cost(run.pinned))


def _cost(config: TuneConfig) -> float:
    """Return about how long a training takes, in a unit of its own."""
    return (config.epochs or 1) * (1.0 if config.freeze else 1.3) * (1.5 if config.candidates == "mined" else 1.0)


def _alike(left: float, right: float) -> bool:
    return max(left, right) <= _ALIKE * min(left, right)


def _rounded(rate: float) -> float:
    return float(f"{rate:.2g}")
