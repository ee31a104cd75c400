"""What the values of a column look like: codes, names that repeat, or sentences."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from embedfit.data.texts import Row
from embedfit.words import words_of

_SAMPLE = 200
"""Number of values by which a column is judged."""
_FEWEST = 2
"""Minimum number of values that say what a column holds."""
_CODE = re.compile(r"[-+]?[\d.,:/]+%?|(?=\S*\d)\S+|\d{1,4}[-./]\d{1,2}[-./]\d{1,4}[T ][\d:.]+\S*")
"""A number, a word with a digit (``INC0012``, ``T-12``), or a date with a time."""


@dataclass(frozen=True)
class Likeness:
    """What the values of a column look like.

    Attributes:
        count: Number of values.
        distinct: Share of different values, from 0 to 1.
        codes: Share of values that are numbers, dates, or single words with a digit, from 0 to 1.
        words: Median number of words in a value.
    """

    count: int
    distinct: float
    codes: float
    words: float

    @property
    def is_code(self) -> bool:
        """Whether nearly all values are codes, and not text."""
        return self.count >= _FEWEST and self.codes > 0.9

    @property
    def is_name(self) -> bool:
        """Whether the values are short texts that repeat, such as the names of classes."""
        return self.count >= _FEWEST and self.distinct <= 0.5 and self.words <= 5 and self.codes < 0.5

    @property
    def is_text(self) -> bool:
        """Whether the values are neither codes nor names that repeat."""
        return self.count > 0 and not self.is_code and not self.is_name

    @property
    def is_sentence(self) -> bool:
        """Whether the values are texts of several words that hardly repeat."""
        return self.count >= _FEWEST and self.distinct > 0.5 and self.words >= 3 and self.codes < 0.5


def likeness(rows: Sequence[Row], column: str) -> Likeness:
    """Return what the values of a column look like, judged by some of the rows."""
    sample = rows[:: max(1, len(rows) // _SAMPLE)]
    values = [value if isinstance(value, str) else str(value) for row in sample if isinstance(value := row.get(column), (str, int, float))]
    values = [value.strip() for value in values if value.strip()]
    if not values:
        return Likeness(0, 0.0, 0.0, 0)
    codes = sum(bool(_CODE.fullmatch(value)) for value in values) / len(values)
    words = statistics.median(len(words_of(value[:_LONGEST])) for value in values)
    return Likeness(len(values), len(set(values)) / len(values), codes, words)


_LONGEST = 500
"""Characters of a value that are looked at."""
