"""A bridge: a map that lets the queries of a new model search the document vectors of an old one."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from embedfit.encode.encoder import Vectors
from embedfit.errors import ModelError
from embedfit.files import writing

BridgeKind: TypeAlias = Literal["orthogonal", "affine", "residual"]
SHAPES: Mapping[BridgeKind, Mapping[str, tuple[str, ...]]] = {
    "orthogonal": {"rotation": ("new", "old")},
    "affine": {"down": ("new", "rank"), "up": ("rank", "old"), "bias": ("new",)},
    "residual": {
        "rotation": ("new", "old"),
        "first": ("new", "hidden"),
        "first_bias": ("hidden",),
        "second": ("hidden", "old"),
        "second_bias": ("old",),
    },
}
"""Kind -> name of each of its tensors -> names of its dimensions."""
_FORMAT = "embedfit bridge 1"
_Floats: TypeAlias = npt.NDArray[np.float32]


class Bridged(NamedTuple):
    """Queries in the old model's space, and what their cosines there say about cosines in the new one.

    Attributes:
        vectors: Unit vectors; shape (n, old dimensions).
        slopes: Slope of each query; shape (n,). The new cosine is about ``slope * cosine + offset``.
        offsets: Offset of each query; shape (n,).
    """

    vectors: Vectors
    slopes: _Floats
    offsets: _Floats

    def estimates(self, cosines: _Floats) -> _Floats:
        """Return cosines of the new model, estimated from cosines of the mapped queries with old vectors; shape (n, k)."""
        return np.asarray(self.slopes[:, None] * cosines + self.offsets[:, None], np.float32)


@dataclass(frozen=True, eq=False)
class Bridge:
    """A map of the new model's query vectors into the old model's space.

    Attributes:
        kind: ``orthogonal``: q R. ``affine``: the least-squares estimate d M + b of a document's new vector from its old one, moved to
            the query's side, since q . (d M + b) = (q M^T) . d + q . b; M^T has a low rank. ``residual``: q R + gelu(q A + a) B + b.
        tensors: Name -> float32 array, of the shapes in `SHAPES`.
        slope: Slope of the line from bridged scores to cosines of the new model.
        offset: Offset of the same line.
        old: Identity of the model that encoded the documents.
        new: Identity of the model that encodes queries.
        old_name: Name of the old model, for messages.
        new_name: Name of the new model, for messages.
        path: File that the bridge was read from; None if it was not read from one.
    """

    kind: BridgeKind
    tensors: Mapping[str, _Floats]
    slope: float
    offset: float
    old: str
    new: str
    old_name: str
    new_name: str
    path: Path | None = field(default=None, compare=False)

    @property
    def fingerprint(self) -> str:
        """A hash of the map and of both models."""
        parts = [name.encode() + self.tensors[name].tobytes() for name in sorted(self.tensors)]
        return hashlib.sha256(b"".join([*parts, repr([self.kind, self.slope, self.offset, self.old, self.new]).encode()])).hexdigest()

    def apply(self, queries: Vectors) -> Bridged:
        """Map query vectors of the new model.

        Args:
            queries: Unit vectors; shape (n, new dimensions).
        """
        tensors = self.tensors
        offsets: _Floats = np.zeros(len(queries), np.float32)
        if self.kind == "affine":
            moved = np.asarray(queries @ tensors["down"] @ tensors["up"], np.float32)
            offsets = np.asarray(queries @ tensors["bias"], np.float32)
        else:
            moved = np.asarray(queries @ tensors["rotation"], np.float32)
        if self.kind == "residual":
            moved = moved + gelu(queries @ tensors["first"] + tensors["first_bias"]) @ tensors["second"] + tensors["second_bias"]
        lengths: _Floats = np.maximum(np.linalg.norm(moved, axis=1), np.finfo(np.float32).tiny).astype(np.float32)
        # Only the affine map estimates the new cosine by itself; the others give a cosine in the old space.
        slopes: _Floats = np.float32(self.slope) * (lengths if self.kind == "affine" else np.ones_like(lengths))
        offsets = np.asarray(np.float32(self.slope) * offsets + np.float32(self.offset), np.float32)
        return Bridged((moved / lengths[:, None]).astype(np.float32), slopes, offsets)

    def save(self, path: str | Path) -> Path:
        """Write the bridge as a safetensors file, whole or not at all.

        Raises:
            StorageError: The file cannot be written.
        """
        from safetensors.numpy import save

        texts = {name: str(getattr(self, name)) for name in ("kind", "old", "new", "old_name", "new_name")}
        metadata = {"format": _FORMAT, **texts, "slope": repr(self.slope), "offset": repr(self.offset)}
        with writing(Path(path)) as file:
            file.write(save({name: np.ascontiguousarray(tensor) for name, tensor in self.tensors.items()}, metadata))
        return Path(path)


def load_bridge(path: str | Path) -> Bridge:
    """Read a bridge that `Bridge.save` wrote.

    Raises:
        ModelError: There is no file at the path, or it is not a bridge.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != _FORMAT or metadata.get("kind") not in SHAPES:
                raise ModelError(f"{path}: is not a bridge; expected a file that embedfit wrote, marked {_FORMAT!r}")
            kind = cast(BridgeKind, metadata["kind"])
            tensors = {name: file.get_tensor(name) for name in SHAPES[kind]}
            _check_shapes(kind, tensors, path)
            texts = {name: metadata[name] for name in ("old", "new", "old_name", "new_name")}
            return Bridge(kind, tensors, float(metadata["slope"]), float(metadata["offset"]), **texts, path=Path(path))
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as a bridge: {str(error).splitlines()[0]}") from None


def _check_shapes(kind: BridgeKind, tensors: Mapping[str, _Floats], path: str | Path) -> None:
    sizes: dict[str, int] = {}
    for name, dimensions in SHAPES[kind].items():
        shape = tensors[name].shape
        if len(shape) != len(dimensions) or any(sizes.setdefault(key, size) != size for key, size in zip(dimensions, shape, strict=True)):
            raise ModelError(f"{path}: its tensor {name!r} has the shape {shape}, expected ({', '.join(dimensions)})")


def gelu(values: _Floats) -> _Floats:
    """Return the Gaussian error linear unit, in its form with a tangent (Hendrycks and Gimpel 2016)."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (values + np.float32(0.044715) * values**3)
    return np.asarray(np.float32(0.5) * values * (1 + np.tanh(inner)), np.float32)
