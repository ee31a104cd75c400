"""Bad rows: reported one by one, and as one line where many rows have the same problem."""

from __future__ import annotations

import re
from collections.abc import Sequence

from embedfit.errors import DataError

_ALIKE = 3
"""Up to this many rows with the same problem are reported one by one. More become one line."""
_ROW = re.compile(r"(:\d+|\[\d+\]|(?<=^row )\S.*|(?<=^documents row )\S.*|(?<=^query )\S.*|(?<=^document )\S.*|(?<=^qrels of )\S.*)$")
"""The part of a place that names the row."""
_VARYING = re.compile(r" \(keys: .*\)|, seen .*|; did you mean .*|(?<=^grade ).*")
"""The parts of a problem that differ between rows with the same problem."""


def report(errors: Sequence[DataError], problems: list[DataError] | None, *, hint: str) -> None:
    """Append the errors to ``problems``; without such a list, raise the first one.

    Args:
        errors: Errors in the order of the rows.
        problems: List that receives them, or None.
        hint: Advice on how to see all errors, for the message of the one that is raised.

    Raises:
        DataError: ``problems`` is None and there is an error. Its message counts the other errors.
    """
    errors = grouped(errors)
    if problems is not None:
        problems.extend(errors)
    elif errors:
        first = errors[0]
        if len(errors) > 1:
            first.args = (f"{first} (and {len(errors) - 1:,} more; {hint})",)
        raise first


def grouped(errors: Sequence[DataError]) -> list[DataError]:
    """Return the errors, where the same problem in many rows of one source becomes one error."""
    alike: dict[tuple[str, ...], list[DataError]] = {}
    for error in errors:
        source = _ROW.sub("", error.where)
        alike.setdefault((source, _VARYING.sub("", error.problem), error.expected, error.fix), []).append(error)
    kept: dict[int, DataError] = {}
    for group in alike.values():
        first, last = group[0], group[-1]
        more = f"{first.problem} (and {len(group) - 1:,} more rows like it, the last at {last.where})"
        summary = [DataError(first.where, more, expected=first.expected, fix=first.fix)]
        kept |= {id(error): line for error, line in zip(group, group if len(group) <= _ALIKE else summary, strict=False)}
    return [kept[id(error)] for error in errors if id(error) in kept]
