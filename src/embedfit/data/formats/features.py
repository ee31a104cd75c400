"""Names of classes in place of their numbers, as the datasets library describes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from embedfit.data.cells import plain
from embedfit.data.formats.source import Rows
from embedfit.data.formats.tables import check_distinct
from embedfit.data.texts import Row
from embedfit.errors import DataError


def class_names(features: Any) -> dict[str, list[str]]:
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


def with_names(row: Row, names_of: Mapping[str, Sequence[str]], where: str) -> Row:
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


def hf_rows(rows: Any, source: str, place: Callable[[int], str]) -> Iterator[tuple[str, Any]]:
    """Yield (place, row or error) for each row of a `datasets.Dataset`, with class names in place of class numbers.

    Args:
        rows: A `datasets.Dataset` or `datasets.IterableDataset`.
        source: Name of the data set, for messages.
        place: Returns the place of a row, for messages, from its index.
    """
    check_distinct(rows.column_names or (), source)
    names_of = class_names(rows.features.to_dict() if rows.features else {})
    for index, row in enumerate(rows):
        where = place(index)
        try:
            yield where, with_names(plain(row), names_of, where)
        except DataError as error:
            yield where, error


def hf_sections(parts: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return queries, documents and judgements of a data set with configurations, or nothing if it has no such ones.

    Args:
        parts: Configuration -> its rows, or its splits. The judgements are called ``qrels`` or ``default``, as MTEB calls them.
        source: Name of the data set, for messages.
    """
    qrels = next((name for name in ("qrels", "default") if name in parts), "")
    if not {"corpus", "queries"} <= set(parts) or not qrels:
        return {}

    def tables(name: str) -> list[tuple[str, Rows]]:
        splits = parts[name] if isinstance(parts[name], Mapping) else {"": parts[name]}
        return [(str(split), _rows_of_split(rows, f"{source} {name}" + (f":{split}" if split else ""))) for split, rows in splits.items()]

    corpus, queries = (_chained([table for _, table in tables(name)]) for name in ("corpus", "queries"))
    return {"documents": corpus, "queries": queries, "judgements": tables(qrels)}


def _rows_of_split(rows: Any, source: str) -> Rows:
    return Rows(source, "data set", hf_rows(rows, source, lambda index: f"{source}[{index}]"), tuple(rows.column_names or ()))


def _chained(tables: Sequence[Rows]) -> Rows:
    first = tables[0]
    return Rows(first.source, first.format, itertools.chain.from_iterable(table.rows for table in tables), first.columns)
