"""Rows of CSV and TSV files: their delimiter, their headers, and quotes that are not closed."""

from __future__ import annotations

import contextlib
import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.cells import spelling
from embedfit.data.columns import KNOWN
from embedfit.data.formats.encodings import carriage_return, encoding_of, read_lines
from embedfit.data.formats.source import Options, Rows
from embedfit.data.texts import Row
from embedfit.errors import DataError, shown

DELIMITERS = (",", ";", "\t", "|")
"""Delimiters that are looked for. A comma comes first."""
_SHORT_ROWS = (("query", "docid", "rating"),)
"""Headers of tools that leave out empty cells at the end of a row (Quepid: a query without ratings)."""


def delimited_rows(path: Path, options: Options) -> Rows:
    """Return the rows of a CSV file, with the delimiter that its beginning shows unless the options name one."""
    first: list[str] = []
    with contextlib.suppress(DataError):  # which reading the whole file raises too, with the rows before it
        first.extend(line for _, line in itertools.islice(read_lines(path, options.encoding), 20))
    excel = re.fullmatch(r'"?sep=(.)"?\s*', first[0]) if first else None  # a first line that Excel writes and reads
    delimiter = options.delimiter or (excel[1] if excel else _delimiter(first, options.names))
    return csv_rows(path, delimiter, options, skip=1 if excel else 0)


def _delimiter(lines: Sequence[str], names: Sequence[str]) -> str:
    """Return the delimiter of the first lines of a file: one that the header has, and that gives the most rows as many cells."""
    widths = {}
    for delimiter in DELIMITERS:
        try:
            numbered = [(0, cells) for cells in csv.reader(lines, delimiter=delimiter) if any(cells)]
            rows = [cells for _, cells in without_title(numbered, names)]
        except csv.Error:
            continue
        if rows and len(rows[0]) > 1:
            widths[delimiter] = sum(len(cells) == len(rows[0]) for cells in rows) / len(rows)
    return max(widths, key=lambda delimiter: widths[delimiter]) if widths else ","


def csv_rows(path: Path, delimiter: str, options: Options, *, skip: int = 0) -> Rows:
    """Return the rows of a CSV file.

    Args:
        path: CSV file.
        delimiter: Sign between two cells.
        options: Encoding, names of columns, and number of lines to read.
        skip: Number of lines before the header.
    """
    table, problem = _parsed(path, delimiter, options, skip)
    table = without_title(table, options.names, str(path)) or [(1, [])]
    (start, names), *rows = table
    if _is_header(table, options, _WORDS_OF_NAME):
        header, short = _header(names, f"{path}:{start}"), tuple(map(spelling, names)) in _SHORT_ROWS
    else:
        header, short, rows = _numbered(names), False, table
    details = {"encoding": encoding_of(path, options.encoding), "delimiter": delimiter}
    return Rows(str(path), "CSV", _named_rows(path, header, rows, problem, delimiter, short), tuple(filter(None, header)), details)


def _parsed(path: Path, delimiter: str, options: Options, skip: int) -> tuple[list[tuple[int, list[str]]], DataError | None]:
    """Return (line, cells) for each row that is not empty, and the error that ends the file early."""
    csv.field_size_limit(2**31 - 1)
    lines: list[str] = []  # lines of the current row

    def each_line() -> Iterator[str]:
        for _, line in itertools.islice(read_lines(path, options.encoding), skip, options.lines):
            lines.append(line)
            yield line

    reader = csv.reader(each_line(), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            number = reader.line_num - len(lines) + 1 + skip
            lines.clear()
            if any(cells):
                rows.append((number, cells))
    except csv.Error as error:
        if options.lines is not None and rows:  # the last row may have been cut
            return rows, None
        number = reader.line_num - len(lines) + 1 + skip + _open_quote("".join(lines), delimiter)
        fix = "close the quote; a quote within a quoted cell is written twice"
        expected, seen = "quotes that close, in the cell that begins here", str(error)
        if seen.startswith("new-line character"):
            fix, expected, seen = (
                "save it with Unix or Windows line ends",
                "lines that end in a line feed",
                "it has a carriage return alone",
            )
        return rows, DataError(f"{path}:{number}", f"is not CSV ({seen})", expected=expected, fix=fix)
    except DataError as error:  # such as text that is not UTF-8; rows before it may have problems too
        if len(rows) < 2:
            raise
        return rows, error
    return rows, None


def _named_rows(
    path: Path, header: list[str], rows: list[tuple[int, list[str]]], problem: DataError | None, delimiter: str, short: bool
) -> Iterator[tuple[str, Any]]:
    """Yield (place, row or error) for each row, and the error that ends the file early."""
    swallowed = _swallowed([cells for _, cells in rows], len(header), delimiter)
    for place, (number, cells) in enumerate(rows):
        rows[place] = (number, [])  # a million rows are large
        if place in swallowed:
            before, cell = swallowed[place]
            seen = f"begins a cell of {cell.count(chr(10)) + 1:,} lines that read like rows of their own: {shown(cell)}"
            fix = "close the quote that begins the cell, or double it; if it really is one cell, write the file as JSONL"
            number += before
            yield f"{path}:{number}", DataError(f"{path}:{number}", seen, expected="quotes that close", fix=fix)
        else:
            cells = [*cells, *[""] * (len(header) - len(cells))] if short else cells
            yield f"{path}:{number}", cells_by_name(header, cells, f"{path}:{number}")
    if problem is not None:
        yield problem.where, problem


_TITLE_ROWS = 10
"""Maximum number of rows above a header."""


def without_title(lines: Sequence[tuple[int, list[str]]], names: Sequence[str], source: str = "") -> list[tuple[int, list[str]]]:
    """Return rows from the header on. Rows above it, such as a title, have fewer cells and no known name, and a note shows them.

    Args:
        lines: (number, cells) for each row that is not empty.
        names: Names of columns that the user gave.
        source: Name of the file for the note; empty for none.
    """
    widest = 0
    for place, (_, cells) in enumerate(lines[: _TITLE_ROWS + 1]):
        filled = sum(bool(cell.strip()) for cell in cells)
        if has_known(cells, names):
            if not 0 < place < len(lines) - 1 or filled <= max(1, widest):
                break
            if source:
                shown_cells = shown(" ".join(cell for cell in lines[0][1] if cell.strip()))
                console.note(f"{source}: rows above the header that are left out: {place} ({shown_cells})")
            return list(lines[place:])
        widest = max(widest, filled)
    return list(lines)


def has_known(cells: Sequence[str], names: Sequence[str]) -> bool:
    """Return whether one of the cells is a common name of a column, or one that the user gave."""
    return bool({spelling(cell) for cell in cells} & KNOWN) or not {cell.strip() for cell in cells}.isdisjoint(names)


def _is_header(lines: Sequence[tuple[int, list[str]]], options: Options, longest: int) -> bool:
    """Return whether the first row has names of columns.

    A known name is one. A row is values if a cell is a number, as is the one below it, or has more words than a name.
    """
    names, below = lines[0][1], lines[1][1] if len(lines) > 1 else lines[0][1]
    if has_known(names, options.names):
        return True
    numbers = any(_NUMBER.fullmatch(name.strip()) and _NUMBER.fullmatch(cell.strip()) for name, cell in zip(names, below, strict=False))
    return not numbers and all(len(name.split()) <= longest for name in names)


_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
_WORDS_OF_NAME, _WORDS_OF_NAME_TSV = 25, 3
"""Maximum number of words of a column's name. Surveys have whole questions as names; TSV files of benchmarks often have no header."""


def _numbered(cells: Sequence[str]) -> list[str]:
    """Return names for the columns of a file without a header: their numbers, from 1."""
    return [str(number) for number in range(1, len(cells) + 1)]


def _open_quote(text: str, delimiter: str) -> int:
    """Return the line of a broken row, from 0, with the quote that does not close at the end of a cell."""
    place = 0
    while place < len(text):
        if text[place] != '"':
            end = re.compile(rf"[{re.escape(delimiter)}\r\n]").search(text, place)
            place = end.end() if end else len(text)
            continue
        quoted = re.compile('"[^"]*(?:""[^"]*)*"').match(text, place)
        if quoted is None or text[quoted.end() : quoted.end() + 1] not in ("", delimiter, "\r", "\n"):
            break
        place = quoted.end() + 1
    return text.count("\n", 0, place)


_MANY_ROWS = 30
"""Number of rows from which most values in a label column repeat."""


def _swallowed(rows: Sequence[Sequence[str]], width: int, delimiter: str) -> dict[int, tuple[int, str]]:
    """Return the cells that hold whole rows: place of the row -> (lines of the row before the cell, cell).

    A quote that never closes runs on to the next quote at the end of a cell, which may be many rows further. Each line of such a
    cell has as many cells as the header. Lines of prose may have as many by chance. So at least half of those with a delimiter must
    repeat a value of a column in which values repeat, such as the label's. In a file of few rows it is enough that no cell is
    empty or begins with a blank, and that most lines have a delimiter that is not within a number.

    A single line with a delimiter is no sign of rows by itself: the cell must also stand in the column of labels, or end in a number,
    whose sign for inches may have closed the quote.
    """
    suspects = []
    for place, cells in enumerate(rows):
        for column, cell in enumerate(cells) if len(cells) == width > 1 else ():
            if "\n" not in cell:
                continue
            # The cells before this one are those of its first line, and those behind it of its last.
            texts = [line.rstrip("\r") for line in cell.split("\n")]
            first, *rest = ([*enumerate(line.split(delimiter))] for line in texts)
            lines = [[(column + number, value) for number, value in first], *rest]
            if rest and len(first) == width - column and len(lines[-1]) == column + 1 and all(len(line) == width for line in lines[1:-1]):
                suspects.append((place, column, texts, lines))
    if not suspects:
        return {}
    values = [Counter(cells[column] for cells in rows if len(cells) == width and cells[column]) for column in range(width)]
    repeating = [2 * sum(count for count in counts.values() if count > 1) >= sum(counts.values()) > 1 for counts in values]
    few = len(rows) < _MANY_ROWS or not any(repeating)
    within_number = re.compile(rf"(?<=\d){re.escape(delimiter)}(?=\d)")
    swallowing = {}
    for place, column, texts, lines in suspects:
        like_rows = [line for line in lines if len(line) > 1]
        if len(like_rows) < 2 and not (repeating[column] or texts[-1][-1:].isdigit()):
            continue
        repeats = sum(any(repeating[name] and value in values[name] for name, value in line) for line in like_rows)
        parted = sum(delimiter in within_number.sub("", text) for text in texts)
        whole = all(value and not value[0].isspace() for line in lines for _, value in line)
        if 2 * repeats >= len(like_rows) or (few and whole and 2 * parted > len(like_rows)):
            cells = rows[place]
            swallowing[place] = (sum(cell.count("\n") for cell in cells[:column]), cells[column])
    return swallowing


def _header(names: Sequence[str], where: str) -> list[str]:
    """Return the names of the columns, without surrounding white space.

    Raises:
        DataError: A name occurs twice.
    """
    header = [name.strip() for name in names]
    check_distinct(header, where)
    return header


def check_distinct(names: Iterable[str], where: str) -> None:
    """Raise a DataError if two column names differ only in case or white space."""
    first: dict[str, str] = {}
    for name in names:
        key = name.strip().casefold()
        if key and key in first:
            raise DataError(where, f"column {name!r} stands beside column {first[key]!r}", expected="names that differ", fix="rename one")
        first[key] = name


def cells_by_name(header: Sequence[str], cells: Sequence[str], where: str) -> Row | DataError:
    """Return a row of named cells, without the empty ones, or the error of a row that has not as many cells as the header."""
    if len(cells) != len(header):
        return DataError(where, f"has {len(cells)} cells", expected=f"{len(header)}, as in the header")
    row = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
    if "" in row and header.count("") > 1:
        return DataError(where, f"has {shown(row[''])} in a column without a name", expected="a name for each column")
    return row


_QUOTED = re.compile('"(?=[^"]*"")(?:[^"]|"")*"')
"""A quoted cell with a doubled quote inside, as CSV writers produce it."""


def tsv_rows(path: Path, options: Options) -> Rows:
    """Return the rows of a TSV file, in which quotes are ordinary characters.

    pandas and Excel quote cells of TSV files nevertheless. If the whole header is quoted, the file is read as CSV with tabs. If every
    cell with a quote is written in their way, the quotes are removed.
    """
    if options.delimiter and options.delimiter != "\t":
        return csv_rows(path, options.delimiter, options)
    lines = [
        (number, line.rstrip("\r\n").split("\t")) for number, line in itertools.islice(read_lines(path, options.encoding), options.lines)
    ]
    lines = [(number, cells) for number, cells in lines if any(cells)]
    details = {"encoding": encoding_of(path, options.encoding), "delimiter": "\t"}
    if not lines:
        return Rows(str(path), "TSV", iter(()), (), details)
    if len(lines) == 1 and any("\r" in cell for cell in lines[0][1]):
        raise carriage_return(f"{path}:{lines[0][0]}")
    (number, names), *rows = lines
    if all(re.fullmatch('"[^"]+"', name) for name in names):
        return csv_rows(path, "\t", options)
    if _is_header(lines, options, _WORDS_OF_NAME_TSV):
        header = _header(names, f"{path}:{number}")
    else:
        header, rows = _numbered(names), lines
    return Rows(str(path), "TSV", _unquoted_rows(path, header, rows), tuple(filter(None, header)), details)


def _unquoted_rows(path: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> Iterator[tuple[str, Any]]:
    """Yield (place, row or error) for each row of a TSV file."""
    with_quotes = [cell for _, cells in rows for cell in cells if '"' in cell]
    quoted = bool(with_quotes) and all(_QUOTED.fullmatch(cell) and re.search(r"\w", cell) for cell in with_quotes)
    if quoted:
        console.note(f"{path}: cells that were quoted as in CSV, and have lost these quotes: {len(with_quotes):,}")
    for number, cells in rows:
        where = f"{path}:{number}"
        row = cells_by_name(header, [cell[1:-1].replace('""', '"') if quoted and '"' in cell else cell for cell in cells], where)
        if isinstance(row, DataError) and any(cell.count('"') % 2 for cell in cells):
            fix = "a tab or the end of a line cannot stand within a cell of TSV, quoted or not; write CSV or JSONL"
            row = DataError(where, row.problem, expected=row.expected, fix=fix)
        yield where, row
