"""What arithmetic alone would take: the parameters that every token is multiplied with, and the rate of matrix products here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def parameters(model: Any) -> int:
    """Return the number of a model's parameters without embeddings: a token costs 2 FLOPs for each, and 6 in training."""
    return sum(value.numel() for name, value in model.named_parameters() if "embeddings" not in name)


def clock() -> float:
    """Return the processor time of this process, in seconds for each thread; on a GPU the time by the clock."""
    import torch

    return time.perf_counter() if torch.cuda.is_available() else time.process_time() / torch.get_num_threads()


def matmul_rate(dtype: torch.dtype, device: str = "cpu") -> float:
    """Return the FLOP/s of products of a small transformer's usual shape, or on a GPU of products large enough to fill it.

    It is the best of 20 products, in the time that `clock` gives.
    """
    import torch

    m, k, n = (1024, 384, 1536) if device == "cpu" else (8192, 8192, 8192)
    left, right = torch.randn(m, k, device=device).to(dtype), torch.randn(k, n, device=device).to(dtype)
    best = float("inf")
    for _ in range(20):
        start = clock()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return 2 * m * k * n / best
