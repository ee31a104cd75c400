"""Every shape that is known, and the step that says which one some rows have."""

from __future__ import annotations

from collections.abc import Sequence

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


def shape_of(rows: Sequence[Row]) -> Shape | None:
    """Return the shape of rows, or None if they are a table with a column for each part of a pair."""
    sample = rows[:_ROWS]
    keys = frozenset(str(key) for row in sample for key in row)
    return next((shape for shape in SHAPES if sample and shape.fits(keys, sample)), None)
