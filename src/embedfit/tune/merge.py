"""Merges of base and tuned weights, which win back what tuning forgot.

theta(w) = (1 - w) theta_base + w theta_tuned, for every parameter. If the second model was tuned from the first, a merge
often keeps most of the abilities of both, and it is as fast as either (WiSE-FT: Wortsman et al. 2022, "Robust fine-tuning of
zero-shot models", equation 1).
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
from embedfit.encode.sides import is_two_sided, save_two_sided, two_sided
from embedfit.errors import ConfigError, ModelError, StorageError
from embedfit.files import digest
from embedfit.loading import whole_weights
from embedfit.tune.result import claim, seen_by

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def merge_models(base: LocalEncoder | str | Path, tuned: LocalEncoder | str | Path, weight: float, folder: str | Path) -> LocalEncoder:
    """Write the merge of two models as a plain sentence-transformers folder.

    The same call again finds the model and does nothing.

    Args:
        base: Model before tuning, or its name or folder.
        tuned: Model after tuning, or its name or folder.
        weight: Weight of the tuned model, from 0 (the base model) to 1 (the tuned model).
        folder: Output folder: the model goes to ``folder/model``, and the hashes of the queries that the tuned model has seen
            beside it, as in `tune_model`.

    Raises:
        ConfigError: The weight is not between 0 and 1.
        ModelError: The models differ in architecture.
        StorageError: The folder cannot be written, or holds another model.
    """
    merges, folder = Merges(_encoder(base), _encoder(tuned)), Path(folder)
    merged = merges.at(weight)
    model = None if (folder / "model").exists() else merges.loaded(weight).model  # only models that can be merged claim a folder
    try:
        tuned_folder = merges.tuned.folder
        described = ["merge", merges.base.fingerprint, merges.tuned.fingerprint, weight]
        claim(folder, described, seen_by(tuned_folder), seen_by(tuned_folder, "answers"))
        if model is not None:
            if is_two_sided(model) and merges.tuned.document_fingerprint == merges.base.document_fingerprint:
                save_two_sided(model, merges.base.documents_read_as, folder / "model")
            else:
                save_in_place(partial(model.save_pretrained, create_model_card=False), folder / "model")
    except Exception as error:
        reason = why_not_written(error)
        if reason is None:
            raise
        raise StorageError(f"{folder}: cannot be written: {reason}") from None
    return LocalEncoder(folder / "model", precision=merged.precision, model_kwargs=merges.tuned.loading)


class Merges:
    """All merges of two models, one in memory at a time, for trying several weights.

    Args:
        base: Model before tuning.
        tuned: Model after tuning.

    Raises:
        ModelError: The models differ in prompts, precision or the options for loading.
    """

    def __init__(self, base: LocalEncoder, tuned: LocalEncoder) -> None:
        for what in ("prompts", "precision", "loading"):
            before, after = getattr(base, what), getattr(tuned, what)
            if before != after:
                raise ModelError(f"{tuned.name} cannot be merged with {base.name}: its {what} {_is(what)} {after!r}, not {before!r}")
        self.base, self.tuned = base, tuned
        self._weight: float | None = None

    def at(self, weight: float) -> MergedEncoder:
        """Return the encoder of one weight. It loads the models when it first encodes.

        Raises:
            ConfigError: The weight is not between 0 and 1.
        """
        if not 0 <= weight <= 1:
            raise ConfigError(f"the weight of the tuned model is {weight:g}; expected a number from 0 (base) to 1 (tuned)")
        return MergedEncoder(self, float(weight))

    def loaded(self, weight: float) -> ModelEncoder:
        """Return the model in memory, set to a weight. The next call with another weight changes the same model.

        Raises:
            ModelError: The models differ in architecture.
        """
        encoder, ends = self._ends
        if weight != self._weight:
            tensors = encoder.model.state_dict()
            with torch.no_grad():
                for name, (before, after) in ends.items():
                    # lerp starts from the nearer end, so it is exact at both.
                    tensors[name].copy_(torch.lerp(before, after, weight))
            self._weight = weight
        return encoder

    @cached_property
    def _ends(self) -> tuple[ModelEncoder, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
        """The model whose weights are set, and {name: (before, after)} of the tensors that tuning changed."""
        options = whole_weights(self.base.loading)
        same = options == self.base.loading
        base = self.base.loaded.model if same else load_model(self.base.folder, self.base.prompts, self.base.pooling, options)
        model = load_model(self.tuned.folder, self.tuned.prompts, options=options)
        if is_two_sided(model) and not is_two_sided(base):
            base = two_sided(base, base)
        before, after = base.state_dict(), model.state_dict()
        difference = _difference(base, model)
        if difference:
            raise ModelError(f"{self.tuned.name} cannot be merged with {self.base.name}: {difference}; expected a model tuned from it")
        ends = {name: (before[name], value.clone()) for name, value in after.items() if not torch.equal(before[name], value)}
        encoder = ModelEncoder(model, self.tuned.prompts, bf16=use_bf16(self.tuned.precision, model.device.type), warns=False)
        return encoder, ends


class MergedEncoder(BaseEncoder):
    """One merge of two models as an Encoder, created by `Merges.at`.

    Args:
        merges: The two models.
        weight: Weight of the tuned model, from 0 to 1.
    """

    def __init__(self, merges: Merges, weight: float) -> None:
        self._merges, self.weight = merges, weight
        self.prompts, self.precision = merges.tuned.prompts, merges.tuned.precision
        self.name = f"{merges.base.name}, {weight:.0%} tuned"

    @property
    def fingerprint(self) -> str:
        """Hash of both models and the weight; the base model's own at 0 and the tuned model's at 1."""
        base, tuned = self._merges.base.fingerprint, self._merges.tuned.fingerprint
        if self.weight in (0, 1):
            return tuned if self.weight else base
        return digest(["merge", base, tuned, self.weight])

    @property
    def document_fingerprint(self) -> str:
        """That of both models if they have the same document vectors, else the fingerprint."""
        base, tuned = self._merges.base.document_fingerprint, self._merges.tuned.document_fingerprint
        return base if base == tuned else self.fingerprint

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions)."""
        if self.weight in (0, 1):  # no merge: the model itself, which may be in memory already
            return (self._merges.tuned if self.weight else self._merges.base).encode(texts, kind)
        return self._merges.loaded(self.weight).encode(texts, kind)


def _difference(base: SentenceTransformer, tuned: SentenceTransformer) -> str:
    """Return why two models cannot be merged, or an empty string."""
    kinds = [[type(module).__name__ for module in model] for model in (base, tuned)]
    if kinds[0] != kinds[1]:
        return f"its modules are {', '.join(kinds[1])}, not {', '.join(kinds[0])}"
    before, after = base.state_dict(), tuned.state_dict()
    unshared = sorted(before.keys() ^ after.keys())
    if unshared:
        return f"{len(unshared):,} tensors are in one of them only, such as {unshared[0]}"
    for name, value in after.items():
        if before[name].shape != value.shape:
            return f"{name} has the shape {_shape(value)}, not {_shape(before[name])}"
        if not value.is_floating_point() and not torch.equal(before[name], value):
            return f"{name} holds different integers, which cannot be mixed"
    for base_module, tuned_module in zip(base, tuned, strict=True):
        if _pooling(base_module) != _pooling(tuned_module):
            return "it pools the token vectors differently"
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
