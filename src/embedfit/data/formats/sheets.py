"""Rows of spreadsheets: Excel and OpenDocument."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.cells import whole_number
from embedfit.data.formats.compressed import opened
from embedfit.data.formats.source import Options, Rows
from embedfit.data.formats.tables import check_distinct
from embedfit.data.texts import Row
from embedfit.errors import DataError, did_you_mean, shown


def sheet_rows(path: Path, options: Options) -> Rows:
    """Return the rows of a sheet: the one that the options name, else the first one with rows.

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
    full = [name for name in names if any(map(any, sheets[name]))]
    name = options.sheet or (full[0] if full else "")
    if len(full) > 1 and not options.sheet:
        console.note(f"{path}: sheet {name!r} of {len(full)} is read ({', '.join(full)}); set sheet in [data] for another")
    table = [(number, cells) for number, cells in enumerate(sheets.get(name, ()), 1) if any(cells)]
    if not table:
        return Rows(str(path), "spreadsheet", iter(()), (), {"sheet": name})
    (number, header), *rows = table
    header = [cell.strip() for cell in header]
    check_distinct(header, f"{path}:{number}")
    return Rows(str(path), "spreadsheet", _rows(path, header, rows), tuple(filter(None, header)), {"sheet": name})


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
