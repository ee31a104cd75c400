"""Rows of JSON Lines, JSON, Parquet files and Hub data sets."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.cells import parse_json, plain
from embedfit.data.encodings import carriage_return, read_lines
from embedfit.data.tables import check_distinct, csv_rows, tsv_rows
from embedfit.data.texts import Row
from embedfit.errors import DataError, OfflineError, did_you_mean, shown


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


def read_rows(source: str | Path) -> Iterator[tuple[str, Row | DataError]]:
    """Yield (where, row) for each row of a file, or (where, error) for a broken one."""
    if str(source).startswith("hub:"):
        yield from _hub_rows(str(source))
        return
    path = Path(source)
    readers: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".json": _json_rows,
        ".csv": lambda path: csv_rows(path, ","),
        ".tsv": tsv_rows,
        ".parquet": _parquet_rows,
    }
    if path.is_dir():
        raise DataError(str(path), "is a folder", expected="a file")
    if not path.is_file():
        near = (
            [other for other in path.parent.iterdir() if other.is_dir() or other.suffix.lower() in readers] if path.parent.is_dir() else []
        )
        hint = did_you_mean(path.name, [other.name for other in near if other.is_file() or (other / "corpus.jsonl").exists()])
        raise DataError(str(path), f"does not exist{hint}", fix="give a file, a BEIR folder, or hub:owner/name")
    if path.suffix.lower() not in readers:
        raise DataError(str(path), f"ends in {path.suffix!r}", expected=", ".join(readers))
    empty = True
    try:
        for where, row in readers[path.suffix.lower()](path):
            empty = False
            yield where, row if isinstance(row, (dict, DataError)) else not_named(row, where)
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}") from None
    if empty:
        raise DataError(str(path), "is empty", expected="at least one row")


def not_named(row: Any, where: str) -> DataError:
    """Return the error for a row that is not an object with named keys."""
    return DataError(where, f"is {shown(row)}", expected="an object with named keys")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield where, parse_json(line)
        except (ValueError, RecursionError) as error:
            if re.search(r"[}\]]\r\s*[{\[]", line):
                yield where, carriage_return(where)
                continue
            problem = f"is not JSON ({_json_problem(error)}): {shown(line.rstrip())}"
            yield where, DataError(where, problem, expected="one JSON object per line")


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = "".join(line for _, line in read_lines(path))
    if not text.strip():
        return
    try:
        rows = parse_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), f"is not JSON ({_json_problem(error)})", expected="a JSON list of objects") from None
    if not isinstance(rows, list):
        raise DataError(str(path), f"is {shown(rows)}", expected="a JSON list of objects")
    yield from ((f"{path}[{index}]", row) for index, row in enumerate(rows))


def _json_problem(error: ValueError | RecursionError) -> str:
    """Return the problem of a JSON text, without the line number, which is that within one line."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        check_distinct(schema.names, str(path))
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names_of = _class_names(described.get("info", {}).get("features", {}))
        number = 0
        for batch in file.iter_batches():
            for row in _batch_rows(batch):
                number += 1
                where = f"{path}:{number}"
                try:
                    if isinstance(row, KeyError):
                        raise DataError(where, f"has a map with a key twice ({row.args[0]})", expected="each key once")
                    yield where, {key: value for key, value in _with_names(row, names_of, where).items() if value is not None}
                except DataError as error:
                    yield where, error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(str(path), f"is not Parquet ({error})") from None


def _batch_rows(batch: Any) -> Iterator[Row | KeyError]:
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except KeyError as error:
        if batch.num_rows == 1:
            yield error
            return
        for offset in range(batch.num_rows):
            yield from _batch_rows(batch.slice(offset, 1))


def _class_names(features: Any) -> dict[str, list[str]]:
    """Return {column: class names} from the features that the datasets library describes."""
    names = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):  # a list of them
            feature = feature["feature"]
        if isinstance(feature, list) and len(feature) == 1:
            [feature] = feature
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            names[column] = list(feature["names"])
    return names


def _with_names(row: Row, names_of: Mapping[str, Sequence[str]], where: str) -> Row:
    """Return a row with class names in place of class numbers, and without the empty fields of structs.

    Raises:
        DataError: A class number has no name.
    """

    def named(value: Any, names: Sequence[str]) -> Any:
        if isinstance(value, list):
            return [named(item, names) for item in value]
        if not isinstance(value, int) or value == -1:  # the library's value for an unknown label
            return None if value == -1 else value
        if not 0 <= value < len(names):
            raise DataError(where, f"class {value} has no name", expected=f"0 to {len(names) - 1}")
        return names[value]

    row = {key: named(value, names_of[key]) if key in names_of else value for key, value in row.items()}
    for key, value in row.items():
        if isinstance(value, dict):  # a column of structs has every key in every row
            row[key] = {name: grade for name, grade in value.items() if grade is not None} or value
    return row


def _hub_rows(source: str) -> Iterator[tuple[str, Any]]:
    from embedfit.hub import check_reachable, hub_errors, reason_of

    name, _, split = source.removeprefix("hub:").partition(":")
    check_reachable(f"data set {name!r}", instead="give a local file or folder")
    import datasets

    if console.quiet or not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        raise DataError(source, f"cannot be loaded from the Hub: {reason_of(error.__cause__ or error)}") from None
    except OSError as error:
        raise OfflineError(f"data set {name!r} cannot be loaded from the Hub: {reason_of(error)}") from None
    except hub_errors() as error:
        raise DataError(source, f"cannot be loaded from the Hub: {reason_of(error)}") from None
    yield from hf_rows(rows, source, lambda index: f"{source}[{index}]")


def hf_rows(rows: Any, source: str, place: Callable[[int], str]) -> Iterator[tuple[str, Any]]:
    """Yield (place, row or error) for each row of a `datasets.Dataset`, with class names in place of class numbers.

    Args:
        rows: A `datasets.Dataset` or `datasets.IterableDataset`.
        source: Name of the data set, for messages.
        place: Returns the place of a row, for messages, from its index.
    """
    check_distinct(rows.column_names or (), source)
    names_of = _class_names(rows.features.to_dict() if rows.features else {})
    for index, row in enumerate(rows):
        where = place(index)
        try:
            yield where, _with_names(plain(row), names_of, where)
        except DataError as error:
            yield where, error
