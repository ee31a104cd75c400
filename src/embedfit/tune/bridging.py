"""Fitting a bridge: three kinds of maps, chosen on documents that were held out from the fit.

Only vectors of the same documents under both models are needed, no labels. A map is judged by the neighbours that it finds: each
held-out document's new vector is mapped and compared with the old vectors of the others, and its ten nearest should be those that the
new model finds alone. (Drift-Adapter, arXiv 2509.23471, fits orthogonal, low-rank affine and residual maps from new to old vectors.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from embedfit.encode.bridge import Bridge, BridgeKind
from embedfit.encode.encoder import Encoder, Vectors, complete
from embedfit.errors import DataError
from embedfit.retrieve.exact import top_k

FEWEST = 100
"""Fewest documents that a map can be fitted on and chosen."""
_HELD_OUT = 0.2
"""Share of the documents that choose the map."""
_NEAREST = 10
_RIDGE = 1e-3
"""Strength of the affine map's pull to zero, as a share of the mean variance of a dimension."""
_RANKS = (1.0, 0.5, 0.25)
"""Ranks of the affine map that are tried, as shares of the smaller dimension."""
_STEPS, _BATCH, _LEARNING_RATE, _HIDDEN = 400, 256, 1e-3, 256

_Tensors = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class FittedBridge:
    """A bridge, and how it was chosen.

    Attributes:
        bridge: The chosen map, fitted on all documents.
        agreement: Map -> mean share of the new model's ten nearest documents that it finds, on held-out documents; between 0 and 1.
        documents: Number of documents of the fit.
        seconds: Duration of the fit, in seconds.
    """

    bridge: Bridge
    agreement: Mapping[str, float]
    documents: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the choice as JSON has it."""
        return {"kind": self.bridge.kind, "agreement": dict(self.agreement), "documents": self.documents, "seconds": self.seconds}


def fit_bridge(old: Vectors, new: Vectors, old_model: Encoder, new_model: Encoder, *, seed: int = 0) -> FittedBridge:
    """Fit maps on the vectors of documents under two models, and keep the best one.

    Args:
        old: Vectors of the old model; shape (documents, old dimensions).
        new: Vectors of the new model, of the same documents in the same order; shape (documents, new dimensions).
        old_model: Model that gave the old vectors.
        new_model: Model that gave the new vectors.
        seed: Seed of the held-out documents and of the residual map.

    Raises:
        DataError: There are fewer documents than `FEWEST`.
    """
    started, count = time.monotonic(), len(old)
    if count < FEWEST:
        raise DataError("documents", f"are {count:,}", expected=f"at least {FEWEST} to fit a bridge", fix="index them with the new model")
    order = np.random.default_rng(seed).permutation(count)
    held_out, rest = order[: int(count * _HELD_OUT)], order[int(count * _HELD_OUT) :]
    size = min(old.shape[1], new.shape[1])
    fits: dict[str, tuple[BridgeKind, Callable[[Vectors, Vectors], _Tensors]]] = {
        "orthogonal": ("orthogonal", _orthogonal),
        **{f"affine, rank {rank}": ("affine", _affine_of(rank)) for rank in sorted({max(1, int(size * share)) for share in _RANKS})},
        "residual": ("residual", lambda old, new: _residual(old, new, seed)),
    }
    models = complete(old_model).identity, complete(new_model).identity, old_model.name, new_model.name
    agreement: dict[str, float] = {}
    bridges: dict[str, Bridge] = {}
    for name, (kind, fit) in fits.items():
        bridges[name] = Bridge(kind, fit(old[rest], new[rest]), 1.0, 0.0, *models)
        agreement[name] = _agreement(bridges[name], old[held_out], new[held_out])
    best = max(agreement, key=agreement.__getitem__)  # the simplest comes first, so a tie goes to it
    slope, offset = _line(bridges[best], old[held_out], new[held_out])
    bridge = replace(bridges[best], tensors=fits[best][1](old, new), slope=slope, offset=offset)
    return FittedBridge(bridge, agreement, count, round(time.monotonic() - started, 3))


def _orthogonal(old: Vectors, new: Vectors) -> _Tensors:
    """Return the rotation that brings the new vectors nearest to the old ones (Schoenemann 1966)."""
    left, _, right = np.linalg.svd(new.T.astype(np.float64) @ old, full_matrices=False)
    return {"rotation": (left @ right).astype(np.float32)}


def _affine_of(rank: int) -> Callable[[Vectors, Vectors], _Tensors]:
    def fit(old: Vectors, new: Vectors) -> _Tensors:
        """Return the least-squares estimate of new document vectors from old ones, of a rank (Izenman 1975), for the query's side."""
        old_mean, new_mean = (vectors.mean(axis=0, dtype=np.float64) for vectors in (old, new))
        inputs, outputs = old - old_mean, new - new_mean
        moments = inputs.T @ inputs
        moments[np.diag_indices_from(moments)] += _RIDGE * np.trace(moments) / len(moments)
        weights = np.linalg.solve(moments, inputs.T @ outputs)
        _, _, directions = np.linalg.svd(inputs @ weights, full_matrices=False)
        kept = directions[:rank].T
        whole = weights @ kept  # (old, rank); the estimate is whole @ kept.T
        bias = new_mean - old_mean @ whole @ kept.T
        return {name: tensor.astype(np.float32) for name, tensor in (("down", kept), ("up", whole.T), ("bias", bias))}

    return fit


def _residual(old: Vectors, new: Vectors, seed: int) -> _Tensors:
    """Return a rotation and a small network beside it, trained to bring new vectors near the old ones."""
    import torch
    from torch.nn.functional import gelu, normalize

    generator = torch.Generator().manual_seed(seed)
    start = torch.from_numpy(_orthogonal(old, new)["rotation"])
    inputs, outputs = torch.from_numpy(np.ascontiguousarray(new)), torch.from_numpy(np.ascontiguousarray(old))
    tensors = {
        "rotation": start,
        "first": torch.randn(new.shape[1], _HIDDEN, generator=generator) / new.shape[1] ** 0.5,
        "first_bias": torch.zeros(_HIDDEN),
        "second": torch.zeros(_HIDDEN, old.shape[1]),
        "second_bias": torch.zeros(old.shape[1]),
    }
    for tensor in tensors.values():
        tensor.requires_grad_(True)
    optimiser = torch.optim.AdamW(tensors.values(), lr=_LEARNING_RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
    for _ in range(_STEPS):
        rows = torch.randint(len(inputs), (min(_BATCH, len(inputs)),), generator=generator)
        batch = inputs[rows]
        hidden = gelu(batch @ tensors["first"] + tensors["first_bias"], approximate="tanh")
        moved = batch @ tensors["rotation"] + hidden @ tensors["second"] + tensors["second_bias"]
        optimiser.zero_grad()
        (1 - (normalize(moved, dim=1) * outputs[rows]).sum(dim=1).mean()).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


def _agreement(bridge: Bridge, old: Vectors, new: Vectors) -> float:
    """Return the mean share of the new model's nearest documents that the bridge finds; a document does not find itself."""
    wanted, _ = top_k(new, new, _NEAREST + 1)
    found, _ = top_k(bridge.apply(new).vectors, old, _NEAREST + 1)
    return float(np.mean([_shared(row, left, right) for row, (left, right) in enumerate(zip(wanted, found, strict=True))]))


def _shared(own: int, left: Sequence[int], right: Sequence[int]) -> float:
    first, second = ([place for place in places if place != own][:_NEAREST] for places in (left, right))
    return len(set(first) & set(second)) / max(1, len(first))


def _line(bridge: Bridge, old: Vectors, new: Vectors) -> tuple[float, float]:
    """Return the slope and offset from bridged scores to the new model's cosines, among the documents that the bridge ranks first."""
    bridged = bridge.apply(new)
    places, cosines = top_k(bridged.vectors, old, _NEAREST + 1)
    scores = bridged.estimates(cosines)
    exact = np.einsum("qd,qkd->qk", new, new[places])
    others = places != np.arange(len(old))[:, None]
    slope, offset = np.polyfit(scores[others].astype(np.float64), exact[others].astype(np.float64), 1)
    return float(slope), float(offset)
