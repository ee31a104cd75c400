"""Every shape that is known, and the step that says which one some rows have."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from embedfit.data.cells import listed
from embedfit.data.shapes import annotation, label_studio, reading, search_logs, training
from embedfit.data.shapes.shape import Shape
from embedfit.data.texts import Row

SHAPES: tuple[Shape, ...] = (
    *label_studio.SHAPES,
    *annotation.SHAPES,
    *search_logs.SHAPES,
    *reading.SHAPES,
    *training.SHAPES,
)
"""Shapes in the order in which they are tried: those with the most peculiar keys first."""
_ROWS = 100
"""Number of rows by which a shape is recognised."""


_NESTED = {
    *("answers", "passages", "positive_passages", "negative_passages", "positive_ctxs", "negative_ctxs", "hard_negative_ctxs"),
    *("annotations", "data", "fields", "responses", "options", "accept", "meta", "texts", "set", "event_attributes"),
}
"""Keys under which some shape has lists or objects, which a table holds as texts."""


def shape_of(rows: Sequence[Row]) -> Shape | None:
    """Return the shape of rows, or None if they are a table with a column for each part of a pair."""
    return _shape(rows)[0]


def shaped(rows: Sequence[Row]) -> tuple[Shape | None, Callable[[Row], Row]]:
    """Return the shape of rows, and a function that returns a row with the keys and values that the shape reads."""
    shape, lowered = _shape(rows)
    return shape, lambda row: _as_read(row, lowered=lowered)


def _shape(rows: Sequence[Row]) -> tuple[Shape | None, bool]:
    """Return the shape of rows, and whether they have it with keys in lower case alone."""
    for lowered in (False, True):
        sample = [_as_read(row, lowered=lowered) for row in rows[:_ROWS]]
        keys = frozenset(str(key) for row in sample for key in row)
        shape = next((shape for shape in SHAPES if sample and shape.fits(keys, sample)), None)
        if shape:
            return shape, lowered
    return None, False


def _as_read(row: Row, *, lowered: bool) -> Row:
    if lowered:
        lower = {re.sub(r"[\s-]+", "_", str(key).strip().lower()): value for key, value in row.items()}
        row = lower if len(lower) == len(row) else row
    nested = {key: row[key] for key in row.keys() & _NESTED if isinstance(row[key], str)}
    return {**row, **{key: _unpacked(text) for key, text in nested.items()}} if nested else row


def _unpacked(text: str) -> Any:
    try:
        return listed(text)
    except ValueError:
        return text
