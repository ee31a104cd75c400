"""Rows of JSON Lines and JSON files."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedfit.data.cells import parse_json, spelling
from embedfit.data.columns import KNOWN
from embedfit.data.formats.encodings import carriage_return, encoding_of, read_lines
from embedfit.data.formats.source import Options, Rows
from embedfit.data.formats.tables import cells_by_name
from embedfit.errors import DataError, shown

_ROW_KEYS = ("data", "rows", "records", "examples", "items", "results", "queries", "documents", "samples", "annotations")
"""Keys of an object under which a list of rows stands."""


def jsonl_rows(path: Path, options: Options) -> Rows:
    """Return the rows of a JSON Lines file. A file whose first line opens a list or an object over several lines is read as JSON."""
    first = next((line for _, line in _lines(path, options) if line.strip()), "").strip()
    listed = first.startswith("[") and (first.endswith(",") or _is_rows(_value(first)))
    if first in ("[", "{", "[{") or listed:
        return json_rows(path, options)
    return Rows(str(path), "JSON Lines", _each_line(path, options), details={"encoding": encoding_of(path, options.encoding)})


def _lines(path: Path, options: Options) -> Iterator[tuple[int, str]]:
    return itertools.islice(read_lines(path, options.encoding), options.lines)


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError):
        return None


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _each_line(path: Path, options: Options) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path, options):
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


def json_rows(path: Path, options: Options) -> Rows:
    """Return the rows of a JSON file: a list of objects, columns, an object with such a list, or JSON Lines."""
    text = "".join(line for _, line in read_lines(path, options.encoding))
    details = {"encoding": encoding_of(path, options.encoding)}
    if not text.strip():
        return Rows(str(path), "JSON", iter(()), details=details)
    try:
        value = parse_json(text)
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) > 1 and isinstance(_value(lines[0]), dict):
            return Rows(str(path), "JSON Lines", _each_line(path, options), details=details)
        raise DataError(str(path), f"is not JSON ({_json_problem(error)})", expected="a JSON list of objects") from None
    if isinstance(value, Mapping):
        return _object_rows(path, value, details)
    if not isinstance(value, list):
        raise DataError(str(path), f"is {shown(value)}", expected="a JSON list of objects")
    return Rows(str(path), "JSON", ((f"{path}[{index}]", row) for index, row in enumerate(value)), details=details)


def _object_rows(path: Path, value: Mapping[str, Any], details: Mapping[str, str]) -> Rows:
    """Return the rows of a JSON object: sections by name, a list under a key, or columns."""
    sections = sections_of(value)
    if sections:
        return Rows(str(path), "JSON", iter(()), details=details, sections=sections)
    if isinstance(value.get("columns"), list) and isinstance(value.get("data"), list):  # pandas, orient="split"
        names = [str(name) for name in value["columns"]]
        cells = ((f"{path}.data[{index}]", row) for index, row in enumerate(value["data"]))
        rows = ((where, _row_of_cells(names, row, where)) for where, row in cells)
        return Rows(str(path), "JSON", rows, tuple(names), details)
    for key in _ROW_KEYS:
        if isinstance(value.get(key), list) and value[key] and all(isinstance(row, Mapping) for row in value[key]):
            return Rows(str(path), "JSON", ((f"{path}.{key}[{index}]", row) for index, row in enumerate(value[key])), details=details)
    tables = {key: rows for key, rows in value.items() if _is_rows(rows)}
    if len(tables) == 1:
        [(key, rows)] = tables.items()
        return Rows(str(path), "JSON", ((f"{path}.{key}[{index}]", row) for index, row in enumerate(rows)), details=details)
    columns = list(value.values())
    lists = all(isinstance(column, list) for column in columns)
    indexed = all(isinstance(column, Mapping) for column in columns) and len({tuple(column) for column in columns}) == 1
    if indexed and not _known(value) and _known(columns[0]):  # pandas, orient="index"
        return Rows(str(path), "JSON by id", ((f"{path}[{id!r}]", {"id": id, **row}) for id, row in value.items()), details=details)
    if len(columns) > 1 and (lists or indexed):
        return Rows(str(path), "JSON columns", _rows_of_columns(path, value), tuple(map(str, value)), details)
    raise DataError(str(path), f"is {shown(value)}", expected="a JSON list of objects")


def _known(names: Iterable[Any]) -> bool:
    return not {spelling(name) for name in names}.isdisjoint(KNOWN)


def sections_of(value: Mapping[str, Any]) -> dict[str, Any]:
    """Return queries, documents and judgements of an object that holds them apart by id, as LlamaIndex and BEIR's three dicts do."""
    for corpus, qrels in (("corpus", "relevant_docs"), ("corpus", "qrels"), ("documents", "qrels")):
        parts = {"queries": value.get("queries"), "documents": value.get(corpus), "judgements": value.get(qrels)}
        if all(isinstance(part, Mapping) for part in parts.values()):
            return parts
    return {}


def _row_of_cells(names: Sequence[str], cells: Any, where: str) -> Any:
    if not isinstance(cells, list):
        return cells
    return cells_by_name(names, ["" if cell is None else cell for cell in cells], where)


def _rows_of_columns(path: Path, columns: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a row for each place in columns, which are lists or objects by row."""
    lists = {name: list(column.values()) if isinstance(column, Mapping) else column for name, column in columns.items()}
    lengths = {name: len(column) for name, column in lists.items()}
    if len(set(lengths.values())) > 1:
        seen = ", ".join(f"{name} {length:,}" for name, length in lengths.items())
        raise DataError(str(path), f"has columns of different lengths ({seen})", expected="as many values in each column")
    for index in range(max(lengths.values(), default=0)):
        row = {name: column[index] for name, column in lists.items()}
        yield f"{path}[{index}]", {name: value for name, value in row.items() if value is not None}


def _json_problem(error: ValueError | RecursionError) -> str:
    """Return the problem of a JSON text, without the line number, which is that within one line."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
