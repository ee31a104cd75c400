"""What a person sees while waiting: progress on stderr, nothing at all when nobody looks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

quiet = False
"""Set by ``--quiet``: no progress bars and no notes."""


def note(message: str) -> None:
    """Write one line to stderr, unless quiet."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a progress bar; the function given advances it.

    It stays hidden when stderr is not a terminal, and for work that ends at once.
    """
    if quiet or total == 0 or not sys.stderr.isatty():
        yield lambda steps: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(description, total=total)
        yield lambda steps: bar.advance(task, steps)
