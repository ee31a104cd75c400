"""Between two models: base and tuned weights mixed, to win back what tuning forgot.

theta(w) = (1 - w) theta_base + w theta_tuned, for every weight of the model. Where the second model was tuned from the
first, the models on the line between them often keep most of what both can do, and are as fast as either (WiSE-FT:
Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", equation 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from embedfit.encode.encoder import BaseEncoder, Kind, Vectors
from embedfit.encode.local import LocalEncoder, ModelEncoder, load_model
from embedfit.encode.precision import use_bf16
from embedfit.encode.saving import save_in_place, why_not_written
from embedfit.errors import ConfigError, ModelError, StorageError
from embedfit.files import digest
from embedfit.tune.result import claim, seen_by

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def merge_models(base: LocalEncoder | str | Path, tuned: LocalEncoder | str | Path, weight: float, folder: str | Path) -> LocalEncoder:
    """Write the merge of two models as an ordinary sentence-transformers folder.

    The same call again finds the model and does nothing.

    Args:
        base: The model before tuning, or its name or folder.
        tuned: The model after it.
        weight: Of the tuned model, from 0 (the base model's very weights) to 1 (the tuned model's).
        folder: Where the model goes (``folder/model``), as with `tune_model`; what is known of the queries that the
            tuned model has seen goes beside it.

    Raises:
        ConfigError: The weight is not between 0 and 1.
        ModelError: The models are not built alike.
        StorageError: The folder cannot be written, or holds another model.
    """
    merges, folder = Merges(_encoder(base), _encoder(tuned)), Path(folder)
    merged = merges.at(weight)
    model = None if (folder / "model").exists() else merges.loaded(weight).model  # a folder is claimed only for what can be merged
    try:
        tuned_folder = merges.tuned.folder
        described = ["merge", merges.base.fingerprint, merges.tuned.fingerprint, weight]
        claim(folder, described, seen_by(tuned_folder), seen_by(tuned_folder, "answers"))
        if model is not None:
            save_in_place(partial(model.save_pretrained, create_model_card=False), folder / "model")
    except Exception as error:
        reason = why_not_written(error)
        if reason is None:
            raise
        raise StorageError(f"{folder}: cannot be written: {reason}") from None
    return LocalEncoder(folder / "model", precision=merged.precision)


class Merges:
    """Every merge of two models, with one of them in memory at a time: for trying several weights.

    Args:
        base: The model before tuning.
        tuned: The model after it, with the same prompts and precision.

    Raises:
        ModelError: They have other prompts, or compute in another precision.
    """

    def __init__(self, base: LocalEncoder, tuned: LocalEncoder) -> None:
        for what in ("prompts", "precision"):
            before, after = getattr(base, what), getattr(tuned, what)
            if before != after:
                raise ModelError(f"{tuned.name} cannot be merged with {base.name}: its {what} {_is(what)} {after!r}, not {before!r}")
        self.base, self.tuned = base, tuned
        self._weight: float | None = None

    def at(self, weight: float) -> MergedEncoder:
        """Return the encoder of one weight. The models are loaded when it first has something to encode.

        Raises:
            ConfigError: The weight is not between 0 and 1.
        """
        if not 0 <= weight <= 1:
            raise ConfigError(f"the weight of the tuned model is {weight:g}; expected a number from 0 (base) to 1 (tuned)")
        return MergedEncoder(self, float(weight))

    def loaded(self, weight: float) -> ModelEncoder:
        """Return the model in memory, set to a weight; the next call with another weight changes it.

        Raises:
            ModelError: The models are not built alike.
        """
        encoder, ends = self._ends
        if weight != self._weight:
            tensors = encoder.model.state_dict()
            with torch.no_grad():
                for name, (before, after) in ends.items():
                    # lerp goes out from the nearer end, and so is exact at both.
                    tensors[name].copy_(torch.lerp(before, after, weight))
            self._weight = weight
        return encoder

    @cached_property
    def _ends(self) -> tuple[ModelEncoder, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """The model whose weights are set, and the tensors that tuning changed: before and after."""
        base, model = self.base.loaded.model, load_model(self.tuned.folder, self.tuned.prompts)
        before, after = base.state_dict(), model.state_dict()
        difference = _difference(base, model)
        if difference:
            raise ModelError(f"{self.tuned.name} cannot be merged with {self.base.name}: {difference}; expected a model tuned from it")
        ends = {name: (before[name], value.clone()) for name, value in after.items() if not torch.equal(before[name], value)}
        encoder = ModelEncoder(model, self.tuned.prompts, bf16=use_bf16(self.tuned.precision, model.device.type), warns=False)
        return encoder, ends


class MergedEncoder(BaseEncoder):
    """One merge of two models as an Encoder; made by `Merges.at`.

    Args:
        merges: The two models.
        weight: Of the tuned one.
    """

    def __init__(self, merges: Merges, weight: float) -> None:
        self._merges, self.weight = merges, weight
        self.prompts, self.precision = merges.tuned.prompts, merges.tuned.precision
        self.name = f"{merges.base.name}, {weight:.0%} tuned"

    @property
    def fingerprint(self) -> str:
        """The base model's at 0, the tuned model's at 1: these have the same vectors."""
        base, tuned = self._merges.base.fingerprint, self._merges.tuned.fingerprint
        if self.weight in (0, 1):
            return tuned if self.weight else base
        return digest(["merge", base, tuned, self.weight])

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions)."""
        return self._merges.loaded(self.weight).encode(texts, kind)


def _difference(base: SentenceTransformer, tuned: SentenceTransformer) -> str:
    """Return what two models do not have in common and would need to, or an empty string."""
    kinds = [[type(module).__name__ for module in model] for model in (base, tuned)]
    if kinds[0] != kinds[1]:
        return f"it is made of {', '.join(kinds[1])}, not of {', '.join(kinds[0])}"
    before, after = base.state_dict(), tuned.state_dict()
    unshared = sorted(before.keys() ^ after.keys())
    if unshared:
        return f"{len(unshared):,} of their tensors are not in both, such as {unshared[0]}"
    for name, value in after.items():
        if before[name].shape != value.shape:
            return f"{name} has the shape {_shape(value)}, not {_shape(before[name])}"
        if not value.is_floating_point() and not torch.equal(before[name], value):
            return f"{name} is made of whole numbers, which cannot be mixed, and is not the same"
    for one, other in zip(base, tuned, strict=True):
        if _pooling(one) != _pooling(other):
            return "it pools the tokens' vectors in another way"
    if _vocabulary(base) != _vocabulary(tuned):
        return "its tokenizer has another vocabulary"
    return ""


def _pooling(module: torch.nn.Module) -> Any:
    return module.get_config_dict() if type(module).__name__ == "Pooling" else None  # type: ignore[operator]


def _vocabulary(model: SentenceTransformer) -> Any:
    vocabulary = getattr(model.tokenizer, "get_vocab", None)
    return vocabulary() if vocabulary else None


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(map(str, tensor.shape))


def _is(what: str) -> str:
    return "are" if what.endswith("s") else "is"


def _encoder(model: LocalEncoder | str | Path) -> LocalEncoder:
    return model if isinstance(model, LocalEncoder) else LocalEncoder(model)
