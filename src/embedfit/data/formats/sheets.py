"""Rows of spreadsheets: Excel and OpenDocument."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.cells import whole_number
from embedfit.data.columns import ANY_COLUMNS, labelled_columns
from embedfit.data.formats.compressed import opened
from embedfit.data.formats.source import Options, Rows
from embedfit.data.formats.tables import check_distinct, has_known, without_title
from embedfit.data.texts import Row
from embedfit.errors import DataError, did_you_mean, shown


def sheet_rows(path: Path, options: Options) -> Rows:
    """Return the rows of a sheet: the one that the options name, else the first one of labelled queries, else the first one with rows.

    Cells are read as a CSV file would show them: numbers and dates as texts.
    """
    import python_calamine

    try:
        with opened(path) as file:
            book = python_calamine.load_workbook(file)
            names = book.sheet_names
            if options.sheet and options.sheet not in names:
                hint = did_you_mean(options.sheet, names) or f"; it has {', '.join(names)}"
                raise DataError(str(path), f"has no sheet {options.sheet!r}{hint}")
            sheets = {name: _cells(book.get_sheet_by_name(name).to_python(skip_empty_area=False)) for name in names}
    except python_calamine.PasswordError:
        raise DataError(str(path), "is protected by a password", fix="save it without one") from None
    except (python_calamine.CalamineError, ValueError) as error:
        raise DataError(str(path), f"is not a spreadsheet ({error})", expected="a workbook of Excel or OpenDocument") from None
    tables = {name: [(number, cells) for number, cells in enumerate(sheets[name], 1) if any(cells)] for name in names}
    full = [name for name in names if tables[name]]
    name = options.sheet or _likeliest(full, tables, options)
    if len(full) > 1 and not options.sheet:
        console.note(f"{path}: sheet {name!r} of {len(full)} is read ({', '.join(full)}); set sheet in [data] for another")
    table = without_title(tables.get(name, []), options.names, str(path))
    if not table:
        return Rows(str(path), "spreadsheet", iter(()), (), {"sheet": name})
    (number, header), *rows = table
    header = [cell.strip() for cell in header]
    check_distinct(header, f"{path}:{number}")
    return Rows(str(path), "spreadsheet", _rows(path, header, rows), tuple(filter(None, header)), {"sheet": name})


def _likeliest(full: Sequence[str], tables: Mapping[str, Sequence[tuple[int, list[str]]]], options: Options) -> str:
    """Return the first sheet with columns of a query and a label, else the first with a known column and rows, else the first with rows."""
    known = []
    for name in full:
        table = without_title(tables[name], options.names)
        if len(table) > 1 and has_known(table[0][1], options.names):
            header = [cell.strip() for cell in table[0][1]]
            found = labelled_columns(
                [dict(zip(header, cells, strict=False)) for _, cells in table[1:_SAMPLE]], ANY_COLUMNS, with_documents=True
            )
            if found.query in header and found.label in header:
                return name
            known.append(name)
    return (known or full or [""])[0]


_SAMPLE = 100
"""Rows of a sheet by which its columns are recognised."""


def _rows(path: Path, header: Sequence[str], rows: Sequence[tuple[int, list[str]]]) -> Iterator[tuple[str, Row | DataError]]:
    for number, cells in rows:
        where = f"{path}:{number}"
        nameless = next((cell for name, cell in zip(header, cells, strict=False) if cell and not name), "")
        if nameless:
            yield where, DataError(where, f"has {shown(nameless)} in a column without a name", expected="a name for each column")
        else:
            yield where, {name: cell for name, cell in zip(header, cells, strict=False) if cell and name}


def _cells(rows: Sequence[Sequence[Any]]) -> list[list[str]]:
    """Return the cells of a sheet as texts, in rows of one length."""
    width = max(map(len, rows), default=0)
    return [[*map(_text, row), *[""] * (width - len(row))] for row in rows]


def _text(cell: Any) -> str:
    if isinstance(cell, datetime.datetime) and cell.time() == datetime.time():
        cell = cell.date()
    if isinstance(cell, (datetime.date, datetime.time)):
        return cell.isoformat()
    return str(whole_number(cell))
