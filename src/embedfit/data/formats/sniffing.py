"""What a file is, from its beginning: format, encoding, columns, and which of them hold the query and the label."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Unpack

from embedfit.data.columns import Columns, FurtherColumns, grade_column, labelled_columns
from embedfit.data.formats.opening import open_rows, without_errors
from embedfit.data.formats.source import Options
from embedfit.data.shapes.known import shape_of
from embedfit.data.texts import Row

_LINES = 1_000
"""Lines of a text file by which it is judged."""


@dataclass(frozen=True)
class Sniffed:
    """What a file is.

    Attributes:
        path: Path of the file.
        format: Format in words, such as ``CSV``.
        encoding: Encoding of a text file, such as ``utf-8``; empty for others.
        delimiter: Sign between the cells of a CSV file; empty for others.
        sheet: Sheet of a workbook; empty for others.
        columns: Names of the columns, or of the keys in the first rows.
        rows: The first rows.
        shape: Name of the tool whose shape the rows have; empty for a table with a column for each part of a pair.
        query: Column of the query text; empty if none has a common name.
        label: Column of the labels; empty if none has a common name.
        id: Column of the query's id; empty if there is none.
        grade: Column of the label's grade; empty if there is none.
        part: Column of the part; empty if there is none.
        document_id: Column of the id of a document that the rows bring along; empty if they do not.
        document_title: Column of that document's title.
        document_text: Column of that document's text.
        why: Reason for a choice of columns that their names do not explain; empty for none.
        options: Settings of [data] that reading this file needs: those that were passed, and the encoding if it is not UTF-8.
    """

    path: str
    format: str
    encoding: str = ""
    delimiter: str = ""
    sheet: str = ""
    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    shape: str = ""
    query: str = ""
    label: str = ""
    id: str = ""
    grade: str = ""
    part: str = ""
    document_id: str = ""
    document_title: str = ""
    document_text: str = ""
    why: str = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the file can be read: it has a column for the query and one for the label, or the shape of a known tool."""
        return bool(self.shape or (self.query and self.label))

    def __str__(self) -> str:
        if self.shape:
            return f"the shape of {self.shape}"
        roles = ("query", "label", "id", "grade", "part", "document_id", "document_title", "document_text")
        taken = ", ".join(f"{role} = column {name!r}" for role in roles if (name := getattr(self, role)))
        return f"{taken}; {self.why}" if self.why else taken


def sniff(
    path: str | Path,
    *,
    rows: int = 3,
    query: str | None = None,
    label: str | None = None,
    grade: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    sheet: str | None = None,
    **columns: Unpack[FurtherColumns],
) -> Sniffed:
    """Look at the beginning of a file of labelled queries.

    Columns that are not named are looked for by the rules of `load`, which reads the file in the same way.

    Args:
        path: Path of a file.
        rows: Number of rows to return.
        query: Column of the query text.
        label: Column of the labels.
        grade: Column of the label's grade; an empty string for none.
        encoding: Encoding of a text file that is not UTF-8.
        delimiter: Sign between the cells of a CSV file.
        sheet: Sheet of a workbook.
        columns: Further columns of `load`: id, part, document_id, document_title, document_text.

    Raises:
        DataError: The file cannot be read, or has no rows.
        ConfigError: The encoding is unknown.
    """
    before = Columns(query or "", label or "", grade, **columns)
    table = open_rows(path, Options(encoding or "", delimiter or "", sheet or "", before.given, _LINES))
    sample = [row for _, row in itertools.islice(without_errors(table.rows, []), _LINES)]
    names = table.columns or tuple(dict.fromkeys(str(name) for row in sample for name in row))
    found = labelled_columns(sample, before, with_documents=False)
    if grade is None:
        found = replace(found, grade=grade_column(sample, (found.query, found.label, found.document_text)))
    shape = None if query or label else shape_of(sample)
    given = {"encoding": encoding, "delimiter": delimiter, "sheet": sheet}
    taken: dict[str, Any] = {name: getattr(found, name) if getattr(found, name) in names else "" for name in _ROLES}
    return Sniffed(
        str(path),
        table.format,
        **{name: table.details.get(name, "") for name in given},
        columns=names,
        rows=tuple(sample[:rows]),
        shape="sections apart" if table.sections else shape.name if shape else "",
        **({} if shape else {**taken, "why": found.why}),
        options={name: value for name, value in given.items() if value},
    )


_ROLES = ("query", "label", "id", "grade", "part", "document_id", "document_title", "document_text")
