"""Rows of Parquet and Arrow files."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embedfit.data.formats.compressed import opened
from embedfit.data.formats.features import class_names, with_names
from embedfit.data.formats.source import Options, Rows
from embedfit.data.formats.tables import check_distinct
from embedfit.data.texts import Row
from embedfit.errors import DataError


def parquet_rows(path: Path, options: Options) -> Rows:
    """Return the rows of a Parquet file."""
    import pyarrow.parquet

    with _named(path, "Parquet"):
        file = pyarrow.parquet.ParquetFile(path)
        return Rows(str(path), "Parquet", *_table(path, "Parquet", file.schema_arrow, file.iter_batches()))


def arrow_rows(path: Path, options: Options) -> Rows:
    """Return the rows of an Arrow file: the file format (also called Feather) or the stream format of the datasets library."""
    import pyarrow

    with _named(path, "Arrow"):
        # Read into memory, since a file that is cut off is a crash where it is mapped.
        with opened(path) as file:
            content = pyarrow.py_buffer(file.read())
        try:
            reader = pyarrow.ipc.open_file(content)
            batches: Iterator[Any] = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:
            reader = pyarrow.ipc.open_stream(content)
            batches = iter(reader)
        return Rows(str(path), "Arrow", *_table(path, "Arrow", reader.schema, batches))


@contextlib.contextmanager
def _named(path: Path, format: str) -> Iterator[None]:
    """Turn the errors of the library into one line."""
    import pyarrow

    try:
        yield
    except FileNotFoundError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(str(path), f"is not {format} ({error})") from None


def _table(path: Path, format: str, schema: Any, batches: Iterator[Any]) -> tuple[Iterator[tuple[str, Any]], tuple[str, ...]]:
    """Return the rows of a table and the names of its columns."""
    check_distinct(schema.names, str(path))
    described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names_of = class_names(described.get("info", {}).get("features", {}))

    def rows() -> Iterator[tuple[str, Any]]:
        number = itertools.count(1)
        with _named(path, format):
            for batch in batches:
                for row in _batch_rows(batch):
                    where = f"{path}:{next(number)}"
                    try:
                        if isinstance(row, KeyError):
                            raise DataError(where, f"has a map with a key twice ({row.args[0]})", expected="each key once")
                        yield where, {key: value for key, value in with_names(row, names_of, where).items() if value is not None}
                    except DataError as error:
                        yield where, error

    return rows(), tuple(schema.names)


def _batch_rows(batch: Any) -> Iterator[Row | KeyError]:
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except KeyError as error:
        if batch.num_rows == 1:
            yield error
            return
        for offset in range(batch.num_rows):
            yield from _batch_rows(batch.slice(offset, 1))
