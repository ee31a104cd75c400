"""What a person sees while waiting: progress on stderr, nothing at all when nobody looks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

quiet = False
"""Set by ``--quiet``: no progress bars and no notes."""

_shown = False


def note(message: str) -> None:
    """Write one line to stderr, unless quiet."""
    if not quiet:
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def progress(description: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a progress bar; the function given advances it, and may be given something to be ``said`` beside it.

    It stays hidden when stderr is not a terminal, and within work that has a bar already.
    """
    global _shown
    if quiet or _shown or total == 0 or not sys.stderr.isatty():
        yield lambda steps, **said: None
        return
    _shown = True
    with contextlib.ExitStack() as stack:
        stack.callback(_hide)
        bar = stack.enter_context(_bar())
        task = bar.add_task(description, total=total, said="")
        yield lambda steps, **said: bar.update(task, advance=steps, **said)


def _hide() -> None:
    global _shown
    _shown = False


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}"),
        console=Console(stderr=True),
        transient=True,
    )
