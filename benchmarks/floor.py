"""What arithmetic alone would take: the parameters that every token is multiplied with, and the rate of matrix products here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def parameters(model: Any) -> int:
    """Return the number of a model's parameters without embeddings: a token costs 2 FLOPs for each, and 6 in training."""
    return sum(value.numel() for name, value in model.named_parameters() if "embeddings" not in name)


def matmul_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Return the FLOP/s of products of a small transformer's usual shape, or on a GPU of products large enough to fill it."""
    from embedfit.encode.precision import matmul_seconds

    m, k, n = (1024, 384, 1536) if device == "cpu" else (8192, 8192, 8192)
    return 2 * m * k * n / matmul_seconds(dtype, (m, k, n), device=device)
