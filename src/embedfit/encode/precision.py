"""The precision that a model computes in, and where bf16 is faster."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit.encode.encoder import Precision
from embedfit.errors import ConfigError
from embedfit.files import cache_folder, writing

if TYPE_CHECKING:
    import torch


def autocast(device: str, bf16: bool) -> contextlib.AbstractContextManager[object]:
    """Return a context that runs matrix products in bfloat16, or one that does nothing."""
    import torch

    return torch.autocast(device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


@contextlib.contextmanager
def without_cudnn_attention(device: str) -> Iterator[None]:
    """Compute attention on a GPU with torch's own fused kernels.

    cuDNN plans its kernels anew for every shape, which takes tens of milliseconds, and here nearly every batch has a new shape
    (docs/decisions.md).
    """
    if device != "cuda":
        yield
        return
    import torch

    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def train_by_plain_attention(transformer: Any, bf16: bool) -> None:
    """Compute a transformer's attention by plain matrix products, if torch's fused kernel would train slower.

    In bfloat16 on a CPU the kernel's backward pass takes 1.5 to 7 times as long as plain products, for texts of 10 to 1,024 tokens
    (docs/decisions.md). Plain products keep a square matrix for each text and head.
    """
    set_attention = getattr(transformer, "set_attn_implementation", None)
    if bf16 and transformer.device.type == "cpu" and set_attention and transformer.config._attn_implementation == "sdpa":
        set_attention("eager")


def use_bf16(precision: Precision, device: str) -> bool:
    """Return whether to compute in bfloat16: if it is asked for, or if ``auto`` is asked for and it is faster.

    On a GPU that supports bfloat16, it is faster. On a CPU the flag says little: with AMX it is several times faster than fp32, with
    AVX-512 alone it was half as fast on the machine where this was measured (docs/decisions.md). So both are timed once for each
    kind of CPU, and the answer is kept beside the embedding cache.

    Raises:
        ConfigError: The precision is unknown.
    """
    import torch

    if precision not in ("auto", "bf16", "fp32"):
        raise ConfigError(f"precision {precision!r} is unknown; expected auto, bf16 or fp32")
    if precision != "auto":
        return precision == "bf16"
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and _bf16_pays_here()


def _bf16_pays_here() -> bool:
    import torch

    key = f"{processor()} torch {torch.__version__}"
    path = cache_folder() / "bf16.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        single = matmul_seconds(torch.float32)
        # Where bfloat16 is emulated, a product can take a second.
        known[key] = single > 1.2 * matmul_seconds(torch.bfloat16, hopeless=5 * single)
        with writing(path) as file:
            file.write(json.dumps(known).encode())
    return bool(known[key])


def matmul_seconds(
    dtype: torch.dtype, size: tuple[int, int, int] = (1024, 384, 1536), *, device: str = "cpu", hopeless: float = math.inf
) -> float:
    """Return the seconds of one product (m, k) x (k, n), by default of a transformer's usual shape.

    It is the best of 20 runs; of 2, if both take longer than ``hopeless`` seconds.
    """
    import torch

    m, k, n = size
    # Random numbers: with ones, a GPU needs less power and is faster.
    left, right = (torch.randn(size, device=device).to(dtype) for size in ((m, k), (k, n)))
    best = float("inf")
    for tried in range(20):
        if tried == 2 and best > hopeless:
            break
        start = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def processor() -> str:
    """Return the kind of CPU: the architecture and a hash of its vector extensions; where /proc/cpuinfo is missing, its name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("flags"):
                flags = [flag for flag in line.split() if flag.startswith(("avx", "amx"))]
                return f"{platform.machine()} {hashlib.sha256(' '.join(flags).encode()).hexdigest()[:8]}"
    return platform.processor() or platform.machine()
