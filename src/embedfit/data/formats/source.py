"""Rows of one table, and how they were read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Options:
    """What the user says about files.

    Attributes:
        encoding: Encoding of text files that are not UTF-8; empty for none.
        delimiter: Sign between the cells of a CSV file; empty to find it out.
        sheet: Name of the sheet of a workbook; empty for the first one with rows.
        names: Names of columns that the user gave, by which a header is recognised.
        lines: Number of lines after which a text file is not read further, to look at its beginning; None for all.
    """

    encoding: str = ""
    delimiter: str = ""
    sheet: str = ""
    names: tuple[str, ...] = ()
    lines: int | None = None


NO_OPTIONS = Options()


@dataclass
class Rows:
    """Rows of one table.

    Attributes:
        source: Name of the file or the object, for messages.
        format: Format in words, such as ``CSV``.
        rows: (place, row) or (place, error) for each row.
        columns: Names of the columns, if every row has the same; a row that lacks one has an empty cell there.
        details: Encoding, delimiter or sheet, where the format has them and they were found out.
        sections: Queries, documents and judgements, where one file holds them apart; then there are no rows.
    """

    source: str
    format: str
    rows: Iterator[tuple[str, Any]]
    columns: tuple[str, ...] = ()
    details: Mapping[str, str] = field(default_factory=dict)
    sections: Mapping[str, Any] = field(default_factory=dict)
