"""Several processes that train one model together (torchrun)."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Any, TypeVar

T = TypeVar("T")
_PATIENCE = timedelta(hours=12)
"""Time for which a process waits for the other processes. The first may be encoding a large corpus."""


def count() -> int:
    """Return the number of processes."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def number() -> int:
    """Return the number of this process, from 0."""
    return int(os.environ.get("RANK") or 0) if count() > 1 else 0


def main() -> bool:
    """Return whether this is the first process, which writes and prints."""
    return number() == 0


def join() -> None:
    """Connect to the other processes, if there are any."""
    if count() > 1:
        import torch
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
        atexit.unregister(_leave)
        atexit.register(_leave)


def _leave() -> None:
    """Disconnect from the other processes. Threads of gloo sometimes abort if they are alive while the interpreter exits."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def agreed(value: T) -> T:
    """Return the value of the first process, in every process."""
    if count() == 1:
        return value
    from torch import distributed

    values = [value]
    distributed.broadcast_object_list(values, src=0)
    return values[0]


def gathered(value: T) -> list[T]:
    """Return the values of all processes, in every process."""
    if count() == 1:
        return [value]
    from torch import distributed

    values: list[Any] = [None] * count()
    distributed.all_gather_object(values, value)
    return values
