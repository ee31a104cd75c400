"""What a person reads while a command or a call works: lines, notes and tables.

Text that may come from data goes through here. A label, a file name or a service's reply may hold what a terminal obeys (colours,
titles, an erased line), what turns the writing direction around, or what rich takes for markup. It is shown as it is written, and its
controls are made visible.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

quiet = False
"""Set by ``--quiet``: no progress and no notes."""

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
    """Return rich's console for stdout. It treats strings, in tables too, as data: neither markup nor emoji codes.

    To give text a style, print a ``rich.text.Text``, or style the whole print.
    """
    from rich.console import Console
    from rich.text import Text

    class Plain(Console):
        def render_str(self, text: str, *, style: str | Any = "", **options: Any) -> Text:
            return Text(printable(text), style=style)

    return Plain() if sys.stdout.isatty() else Plain(width=200)
