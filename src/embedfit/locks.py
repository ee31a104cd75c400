"""One process at a time where two would spoil each other's files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from embedfit.errors import StorageError


@contextlib.contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file, which is freed when the process ends, however it ends.

    Args:
        path: Of the file; its folder is made.
        busy: What to say where another process holds it.

    Raises:
        StorageError: Another process holds it, or the file cannot be written.
    """
    import filelock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=0)
        lock.acquire()
    except filelock.Timeout:
        raise StorageError(busy) from None
    except OSError as error:
        raise StorageError(f"{path.parent}: cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()
