"""An encoder with a small learned map over its query vectors."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from embedfit.encode.encoder import Encoder, Kind, Vectors, WrappingEncoder, complete
from embedfit.encode.local import LocalEncoder, load_model
from embedfit.encode.saving import why_not_written
from embedfit.encode.sides import save_two_sided
from embedfit.errors import ModelError, StorageError
from embedfit.files import writing
from embedfit.loading import whole_weights

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

_FORMAT = "embedfit query adapter 1"


@dataclass(frozen=True, eq=False)
class Adapter:
    """A linear map for the query vectors of one encoder.

    Attributes:
        weight: Matrix W of q' = (q W + b) / |q W + b|; float32, shape (dimensions, dimensions).
        bias: Vector b of the same formula; float32, shape (dimensions,).
        base: Fingerprint of the encoder that the adapter was fitted on.
        base_name: Name of that encoder, for messages.
        path: File that the adapter was read from; None if it was not read from one.
    """

    weight: Vectors
    bias: Vectors
    base: str
    base_name: str
    path: Path | None = None

    @property
    def fingerprint(self) -> str:
        """A hash of the map and of the base encoder's fingerprint."""
        return hashlib.sha256(self.weight.tobytes() + self.bias.tobytes() + self.base.encode()).hexdigest()

    def apply(self, queries: Vectors) -> Vectors:
        """Return the adapted vectors, which have unit length.

        Args:
            queries: Unit vectors of the base encoder; shape (n, dimensions).
        """
        moved = queries @ self.weight + self.bias
        unit: Vectors = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        return unit

    def save(self, path: str | Path) -> Path:
        """Write the adapter as a safetensors file, whole or not at all.

        Raises:
            StorageError: The file cannot be written.
        """
        from safetensors.numpy import save

        metadata = {"format": _FORMAT, "base": self.base, "base_name": self.base_name}
        with writing(Path(path)) as file:
            file.write(save({"weight": self.weight, "bias": self.bias}, metadata))
        return Path(path)


def load_adapter(path: str | Path) -> Adapter:
    """Read an adapter that `Adapter.save` wrote.

    Raises:
        ModelError: There is no file at the path, or it is not an adapter.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT:
                raise ModelError(f"{path}: is not a query adapter; expected a file that embedfit wrote, marked {_FORMAT!r}")
            return Adapter(file.get_tensor("weight"), file.get_tensor("bias"), metadata["base"], metadata["base_name"], Path(path))
    except (OSError, SafetensorError, KeyError) as error:
        raise ModelError(f"{path}: cannot be read as a query adapter: {str(error).splitlines()[0]}") from None


class AdaptedEncoder(WrappingEncoder):
    """An encoder whose query vectors go through an adapter; document vectors stay as they are.

    Args:
        encoder: Encoder that the adapter was fitted on. If it is cached, adapting encodes nothing again.
        adapter: Map of the query vectors.

    Raises:
        ModelError: The adapter was fitted on another encoder.
    """

    def __init__(self, encoder: Encoder, adapter: Adapter) -> None:
        if encoder.fingerprint != adapter.base:
            raise ModelError(
                f"the adapter was fitted on {adapter.base_name!r} (fingerprint {adapter.base[:12]}), not on {encoder.name!r} "
                f"({encoder.fingerprint[:12]}); fix: use that encoder, or fit an adapter on this one"
            )
        super().__init__(encoder)
        self.name, self.adapter = f"{encoder.name}, query adapter", adapter

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the adapter, which depends on the encoder's."""
        return self.adapter.fingerprint

    @property
    def document_fingerprint(self) -> str:
        """That of the encoder inside, which gives the documents' vectors."""
        return complete(self.encoder).document_fingerprint

    @property
    def identity(self) -> str:
        """The identity of the encoder inside, which gives the documents' vectors."""
        return complete(self.encoder).identity

    @property
    def dimension(self) -> int:
        """Number of dimensions of the vectors."""
        return len(self.adapter.bias)

    @property
    def saved_at(self) -> Path | None:
        """The file that the adapter was read from; None if it was not read from one."""
        return self.adapter.path

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order."""
        vectors = self.encoder.encode(texts, kind)
        return self.adapter.apply(vectors) if kind == "query" else vectors


def save_adapted(encoder: LocalEncoder, adapter: Adapter, folder: str | Path) -> Path:
    """Write a local model with its adapter as an ordinary sentence-transformers folder.

    A Router after the model's own modules sends queries through the map and documents past it, so the transformer is stored once.
    ``SentenceTransformer(folder)`` loads the model without embedfit. ``encode_query`` applies the map; ``encode_document`` and
    ``encode``, which knows no task, do not.

    Raises:
        ModelError: The adapter was fitted on another encoder.
        StorageError: The folder cannot be written, or is not empty.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageError(f"{folder}: exists already; fix: give another folder, or move it away")
    return write_adapted(encoder, adapter, folder)


def write_adapted(encoder: LocalEncoder, adapter: Adapter, folder: Path) -> Path:
    """Write what `save_adapted` writes, replacing a model in the folder."""
    AdaptedEncoder(encoder, adapter)  # refuses an adapter of another encoder
    model = _routed(load_model(encoder.folder, encoder.prompts, encoder.pooling, whole_weights(encoder.loading)), adapter)
    try:
        save_two_sided(model, encoder.documents_read_as, folder)
    except Exception as error:
        reason = why_not_written(error)
        if reason is None:
            raise
        raise StorageError(f"{folder}: cannot be written: {reason}; fix: make room, or give another folder") from None
    return folder


def _routed(model: SentenceTransformer, adapter: Adapter) -> SentenceTransformer:
    from sentence_transformers.base.modules import Dense, Normalize, Router, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    size = len(adapter.bias)
    if model.truncate_dim:  # the map was fitted on truncated vectors, so it comes after truncation
        sizes = [module.get_embedding_dimension() for module in model.children() if isinstance(module, (Dense, Pooling, Transformer))]
        whole = sizes[-1]
        model.append(Dense(whole, size, bias=False, activation_function=None, init_weight=torch.eye(size, whole)))
    weight = torch.from_numpy(np.ascontiguousarray(adapter.weight.T))
    dense = Dense(size, size, activation_function=None, init_weight=weight, init_bias=torch.from_numpy(adapter.bias.copy()))
    # The adapter was fitted on unit vectors, and not every model ends in them.
    model.append(Router.for_query_document([Normalize(), dense, Normalize()], [Normalize()], default_route="document"))
    return model
