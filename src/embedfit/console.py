"""What a person sees on a terminal. All text that may come from data goes through here.

A label, a file name or a service's reply may hold what a terminal obeys (colours, titles, an erased line), what turns text around, or
what rich takes for markup. It is shown as it is written, and controls are made visible.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

quiet = False
"""Set by ``--quiet``: no progress bars and no notes."""

_shown = False


# C0, DEL and C1; the end of a line and of a paragraph; marks, embeddings, overrides and isolates of writing direction; half of a
# surrogate pair, which no terminal can be sent.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def printable(text: str) -> str:
    r"""Return a text on one line, with its controls made visible as in JSON: ``\u001b``.

    JSON stays the same JSON.
    """
    return _CONTROLS.sub(lambda control: _SHORT.get(control[0]) or f"\\u{ord(control[0]):04x}", text)


def echo(message: object, *, err: bool = False) -> None:
    """Write one line to stdout, or to stderr."""
    print(printable(str(message)), file=sys.stderr if err else sys.stdout, flush=True)


def note(message: str) -> None:
    """Write one line to stderr, unless quiet."""
    if not quiet:
        echo(message, err=True)


def terminal() -> Console:
    """Return rich's console for stdout; strings printed with it, in tables too, are data: neither markup nor emoji codes.

    What is to have a style is a ``rich.text.Text``, or has the style of the whole print.
    """
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, *, style: str | Any = "", **options: Any) -> Text:
            return Text(printable(text), style=style)

    return Plain() if sys.stdout.isatty() else Plain(width=200)


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
        task = bar.add_task(printable(description), total=total, said="")

        def advance(steps: float, **said: Any) -> None:
            shown: dict[str, Any] = {key: printable(str(value)) for key, value in said.items()}
            bar.update(task, advance=steps, **shown)

        yield advance


def _hide() -> None:
    global _shown
    _shown = False


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[said]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )
