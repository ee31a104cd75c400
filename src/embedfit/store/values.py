"""Metadata values: how a filter's text is compared with them, and which of them a store keeps exactly."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")
_LONGEST_NUMBER = 1000
"""Characters; a longer value is read as text only."""
_EXACT = 2**53
"""From here on, neighbouring integers have the same float."""
_DIGITS = 17
"""Characters of a float that every JSON reader parses exactly; some servers round longer ones to the next float."""


def readings(value: str) -> list[str | int | float | bool]:
    """Return the metadata values that a filter's text may stand for: the text, and the number or boolean that it spells.

    A store compares each reading with values of its own type only, so ``1e5`` finds the text "1e5" and the number 100000. A text
    in double quotes also stands for the text without them.
    """
    if value in ("true", "True", "false", "False"):
        return [value, value in ("true", "True")]
    if len(value) > 1 and value[0] == value[-1] == '"':
        with contextlib.suppress(ValueError):
            return [value, json.loads(value)]
    number = _number(value)
    return [value] if number is None else [value, number]


def matches(metadata: Mapping[str, Any], filters: Mapping[str, str]) -> bool:
    """Return whether metadata passes filters, as the stores compare: see `embedfit.store.base.Filters`."""
    return all(
        any(_same(item, reading) for item in (value if isinstance(value, list) else [value]) for reading in readings(text))
        for key, text in filters.items()
        for value in [metadata.get(key)]
    )


def _same(value: Any, reading: str | int | float | bool) -> bool:
    """Return whether a metadata value equals a reading of the same type; whole numbers equal floats, and truth values no numbers."""
    if isinstance(value, bool) or isinstance(reading, bool) or isinstance(value, str) or isinstance(reading, str):
        return type(value) is type(reading) and value == reading
    return isinstance(value, (int, float)) and token("", value) == token("", reading)


def _number(text: str) -> int | float | None:
    """Return the number that a text spells, whole numbers exactly; None if it spells none that metadata could hold."""
    if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
        return None
    exact = Decimal(text)
    if exact == int(exact):
        return int(exact)
    nearest = float(text)
    return nearest if 0 < abs(nearest) < math.inf else None  # a number too small for a float is not 0


def token(key: str, value: str | int | float | bool) -> str:
    """Return a text that identifies a key with a value: equal for equal values of the same type only."""
    return json.dumps([key, _number(repr(value)) if isinstance(value, float) else value])


def tokens(metadata: Mapping[str, Any], holds: Callable[[str, Any], bool]) -> list[str]:
    """Return a token for each value, list items included, that a store cannot filter by natively.

    Args:
        metadata: Metadata as JSON values.
        holds: Whether the store can filter by a key and a value. Numbers that are not plain get a token in any store.
    """
    result = []
    for key, value in metadata.items():
        scalars = [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, (str, int, float))]
        if not holds(key, value) or not all(map(is_plain, scalars)):
            result += [token(key, scalar) for scalar in scalars]
    return result


def is_exact(value: Any) -> bool:
    """Return whether a JSON value survives a store that may convert numbers."""
    if isinstance(value, dict):
        return all(map(is_exact, value.values()))
    return all(map(is_exact, value)) if isinstance(value, list) else is_plain(value)


def is_plain(value: Any) -> bool:
    """Return False for a number that some store confuses with another, True for any other scalar."""
    if not isinstance(value, (int, float)):
        return True
    return abs(value) < _EXACT and (isinstance(value, int) or ("e" not in repr(value) and len(repr(value)) <= _DIGITS))
