"""A file, or a data set of the Hub, as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from embedfit.data.formats.arrow import arrow_rows, parquet_rows
from embedfit.data.formats.compressed import without_compression
from embedfit.data.formats.hub import hub_rows
from embedfit.data.formats.json_rows import json_rows, jsonl_rows
from embedfit.data.formats.sheets import sheet_rows
from embedfit.data.formats.source import NO_OPTIONS, Options, Rows
from embedfit.data.formats.tables import delimited_rows, tsv_rows
from embedfit.errors import DataError, did_you_mean, shown

READERS: dict[str, Callable[[Path, Options], Rows]] = {
    ".jsonl": jsonl_rows,
    ".ndjson": jsonl_rows,
    ".json": json_rows,
    ".csv": delimited_rows,
    ".tsv": tsv_rows,
    ".tab": tsv_rows,
    ".txt": delimited_rows,
    ".xlsx": sheet_rows,
    ".xls": sheet_rows,
    ".ods": sheet_rows,
    ".parquet": parquet_rows,
    ".arrow": arrow_rows,
    ".feather": arrow_rows,
}
"""Suffix of a file -> its reader. A text file may also be compressed."""


def suffix_of(path: Path) -> str:
    """Return a file's suffix in lower case, without that of its compression."""
    return Path(without_compression(path)).suffix.lower()


def open_rows(source: str | Path, options: Options = NO_OPTIONS) -> Rows:
    """Return the rows of a file or of a data set of the Hub.

    Args:
        source: Path of a file, or ``hub:owner/name``.
        options: What the user says about files.

    Raises:
        DataError: There is no such file, it has no rows, or it is not what its suffix says.
        OfflineError: A data set of the Hub is named and there is no network.
    """
    if str(source).startswith("hub:"):
        return hub_rows(str(source))
    path = Path(source)
    if path.is_dir():
        raise DataError(str(path), "is a folder", expected="a file")
    if not path.is_file():
        near = [other for other in path.parent.iterdir() if other.is_dir() or suffix_of(other) in READERS] if path.parent.is_dir() else []
        hint = did_you_mean(path.name, [other.name for other in near if other.is_file() or (other / "corpus.jsonl").exists()])
        raise DataError(str(path), f"does not exist{hint}", fix="give a file, a BEIR folder, or hub:owner/name")
    if suffix_of(path) not in READERS:
        raise DataError(str(path), f"ends in {suffix_of(path)!r}", expected=", ".join(READERS))
    try:
        table = READERS[suffix_of(path)](path, options)
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}") from None
    if not table.sections:
        table.rows = _checked(table.rows, table.source)
    return table


def read_rows(source: str | Path, options: Options = NO_OPTIONS) -> Iterator[tuple[str, Any]]:
    """Yield (where, row) for each row of a file, or (where, error) for a broken one."""
    yield from open_rows(source, options).rows


def _checked(rows: Iterator[tuple[str, Any]], source: str) -> Iterator[tuple[str, Any]]:
    """Yield rows, with an error in place of what is no row.

    Raises:
        DataError: There is no row, or the file cannot be read further.
    """
    empty = True
    try:
        for where, row in rows:
            empty = False
            if isinstance(row, list) and len(row) > 1 and all(isinstance(text, str) for text in row):
                row = {**dict(zip(("anchor", "positive"), row, strict=False)), **_negatives(row[2:])}
            yield where, row if isinstance(row, (dict, DataError)) else not_named(row, where)
    except OSError as error:
        raise DataError(source, f"cannot be read: {error.strerror or error}") from None
    if empty:
        raise DataError(source, "is empty", expected="at least one row")


def _negatives(texts: list[str]) -> dict[str, str]:
    """Return the further texts of a line that is a list, as sentence-transformers' training sets have them: all are negatives."""
    return {f"negative_{number}": text for number, text in enumerate(texts, 1)}


def not_named(row: Any, where: str) -> DataError:
    """Return the error for a row that is not an object with named keys."""
    return DataError(where, f"is {shown(row)}", expected="an object with named keys")


def without_errors(rows: Iterator[tuple[str, Any]], errors: list[DataError]) -> Iterator[tuple[str, Any]]:
    """Yield the good rows, and append the errors to ``errors``."""
    for where, row in rows:
        if isinstance(row, DataError):
            errors.append(row)
        else:
            yield where, row


def with_last_error(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield rows, and an error that makes the rest of a file unreadable as the last row, so that it does not hide earlier errors."""
    started = False
    try:
        for row in rows:
            started = True
            yield row
    except DataError as error:
        if not started:
            raise
        yield error.where, error
