"""Several processes that train one model together (torchrun)."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
_PATIENCE = timedelta(hours=12)
"""How long one process waits for the others: the first may be encoding a large corpus."""


def count() -> int:
    """Return how many processes there are."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """Return which of them this is, from 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def main() -> bool:
    """Return whether this is the first, which writes and prints."""
    return number() == 0


def join() -> None:
    """Find the other processes, if there are others."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        atexit.unregister(_leave)
        atexit.register(_leave)


def _leave() -> None:
    """Part from the other processes: what gloo's threads do while the interpreter goes away ends, now and then, in an abort."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def agreed(value: T) -> T:
    """Return what the first process says, to all."""
    if count() == 1:
        return value
    from torch import distributed

    said = [value]
    distributed.broadcast_object_list(said, src=0)
    return said[0]


def gathered(value: T) -> list[T]:
    """Return what each process says, to all."""
    if count() == 1:
        return [value]
    from torch import distributed

    said: list[Any] = [None] * count()
    distributed.all_gather_object(said, value)
    return said
