"""Lists, DataFrames, records and Hugging Face data sets as rows, in the form that files are read in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from embedfit.data.apart import contents_apart, queries_of
from embedfit.data.cells import id_of, plain
from embedfit.data.columns import Columns
from embedfit.data.documents import documents_of
from embedfit.data.formats.features import hf_rows, hf_sections
from embedfit.data.formats.opening import not_named, open_rows
from embedfit.data.formats.source import Rows
from embedfit.data.formats.tables import check_distinct
from embedfit.data.judgements import judgements_in
from embedfit.data.labels import read_grades, read_labels
from embedfit.data.library import HINTS, Library, check_known
from embedfit.data.records import RecordType, record_type
from embedfit.data.rows import contents_of
from embedfit.data.texts import Contents, Qrels, Row
from embedfit.errors import ConfigError, DataError, shown
from embedfit.files import json_bytes

Source: TypeAlias = Any
"""A DataFrame of pandas or polars, a pyarrow table, a `datasets.Dataset`, an iterable of dicts, dataclasses or Pydantic models, or the
path of a file."""


def table_contents(
    source: Source,
    documents: Source | None,
    columns: Columns,
    name: str,
    errors: list[DataError],
    *,
    record: RecordType | str | type | None = None,
    template: str | None = None,
) -> Contents:
    """Return the contents of labelled queries in memory.

    Args:
        source: Rows of labelled queries.
        documents: Rows of documents, or None if each distinct label becomes a document.
        columns: Names of the columns. An empty label stands for the default.
        name: Name of the source, for messages.
        errors: List that receives the errors of bad rows.
        record: Record type of the rows, its name, or a Pydantic class.
        template: Query text of a record, with field names in braces.
    """
    if columns.separator == "":
        raise ConfigError("the separator is empty; expected what stands between two labels, such as ';'")
    if record is not None and not isinstance(record, RecordType):
        record = record_type(record, template=template, label=columns.label or None)
    elif template is not None:
        raise ConfigError("template needs record, a record type by its name or class; fix: pass both, or leave both out")
    columns = dataclasses.replace(columns, in_memory=True)
    sections = hf_sections(source, name) if isinstance(source, Mapping) else {}
    if sections and documents is None:
        return contents_of_sections(Rows(name, "data set", iter(()), sections=sections), errors)
    corpus = None if documents is None else documents_of(rows_of(documents, "documents", "documents row"), errors, columns)
    return contents_of(rows_of(source, name), corpus, columns, record, errors)


def beir_contents(queries: Mapping[Any, Any], corpus: Mapping[Any, Any], qrels: Mapping[Any, Any], errors: list[DataError]) -> Contents:
    """Return the contents of BEIR's three dicts.

    Args:
        queries: Query id -> text, or a dict with ``text`` and metadata.
        corpus: Document id -> text, or a dict with ``text``, optional ``title`` and metadata.
        qrels: Query id -> {document id: grade}, or a list of relevant document ids.
        errors: List that receives the errors of bad entries.
    """
    documents = documents_of(Rows("corpus", "dict", _entries(corpus, "document")), errors)
    library = Library(documents)
    known = queries_of(Rows("queries", "dict", _entries(queries, "query")), errors)
    columns = Columns("text", "qrels", grade="", in_memory=True)
    if not isinstance(qrels, Mapping):
        raise DataError("qrels", f"is {shown(qrels)}", expected="a dict by query id")
    judged: Qrels = {}
    for key, value in qrels.items():
        where = f"qrels of {shown(plain(key))}"
        try:
            id = id_of(plain(key))
            if id is None or id not in known:
                raise DataError(where, "is not among the queries", fix="remove the entry or add the query")
            row = {"qrels": plain(value)}
            labels = read_labels(row, columns, library, where)[0]
            if labels in (None, {}):
                continue
            grades = read_grades(row, labels, columns, library, where)
            for document in grades:
                check_known(document, documents, where, "document", hint=len(errors) < HINTS)
            judged[id] = grades
        except DataError as error:
            errors.append(error)
    return Contents(known, documents, judged)


def contents_of_sections(table: Rows, errors: list[DataError]) -> Contents:
    """Return the contents of a source that holds queries, documents and judgements apart.

    They are dicts by id, as in LlamaIndex' JSON, or tables, as in the data sets of MTEB.
    """
    sections = table.sections
    if isinstance(sections["queries"], Rows):
        corpus, queries = documents_of(sections["documents"], errors), queries_of(sections["queries"], errors)
        judgements = ((split, judgements_in(rows)) for split, rows in sections["judgements"])
        return contents_apart(queries, corpus, judgements, table.source, errors, queries_in="the queries")
    found: list[DataError] = []
    contents = beir_contents(sections["queries"], sections["documents"], sections["judgements"], found)
    errors += [DataError(f"{table.source}: {error.where}", error.problem, expected=error.expected, fix=error.fix) for error in found]
    return contents


def pair_rows(texts: Iterable[Any], labels: Iterable[Any]) -> list[Row]:
    """Return a row with ``text`` and ``label`` for each text and its label.

    Raises:
        DataError: There are more texts than labels, or fewer.
    """
    for name, values in (("texts", texts), ("labels", labels)):
        if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
            raise DataError(name, f"is {shown(values)}", expected="a sequence, such as a list, a Series or an array")
    texts, labels = list(plain(texts)), list(plain(labels))
    if len(texts) != len(labels):
        raise DataError("texts and labels", f"are {len(texts):,} and {len(labels):,}", expected="one label for each text")
    return [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]


def rows_of(source: Source, name: str, place: str = "row") -> Rows:
    """Return the rows of a source, with an error in place of a row that cannot be used.

    Args:
        source: Rows in memory, or the path of a file.
        name: Name of the source, for messages about the whole of it.
        place: Words before the number of a row, for messages. The number is the index label in a DataFrame with distinct labels,
            else the position from 0.

    Raises:
        DataError: The source is none of the known kinds. Its rows raise one if there are none.
    """
    if isinstance(source, (str, Path)):
        return open_rows(source)
    if isinstance(source, Mapping) and hasattr(source, "column_names"):
        splits = list(source)
        raise DataError(name, f"has splits: {', '.join(map(str, splits))}", fix=f"pass one of them, such as dataset[{splits[0]!r}]")
    for to_rows in ("to_dicts", "to_pylist"):  # polars, pyarrow
        if hasattr(source, to_rows):
            names = tuple(map(str, getattr(source, "column_names", None) or source.columns))
            cells = ({key: value for key, value in row.items() if value is not None} for row in getattr(source, to_rows)())
            return Rows(name, "rows in memory", _checked(((f"{place} {number}", row) for number, row in enumerate(cells)), name), names)
    is_series = hasattr(source, "iloc") and not hasattr(source, "columns")
    if isinstance(source, Mapping) or not isinstance(source, Iterable) or is_series:
        raise DataError(name, f"is {shown(source)}", expected="a DataFrame, a datasets.Dataset, or a list of records")
    columns: tuple[str, ...] = ()
    table: Any = source
    rows: Iterator[tuple[str, Any]]
    if hasattr(table, "iloc"):
        rows, columns = _frame_rows(table, name, place), tuple(map(str, table.columns))
    elif hasattr(table, "features"):
        rows, columns = hf_rows(table, name, lambda index: f"{place} {index}"), tuple(table.column_names or ())
    else:
        rows = ((f"{place} {number}", row) for number, row in enumerate(source))
    return Rows(name, "rows in memory", _checked(rows, name), columns)


def _checked(rows: Iterator[tuple[str, Any]], name: str) -> Iterator[tuple[str, Row | DataError]]:
    empty = True
    for where, row in rows:
        empty = False
        yield where, row if isinstance(row, DataError) else _row_of(row, where)
    if empty:
        raise DataError(name, "is empty", expected="at least one row")


def _row_of(value: Any, where: str) -> Row | DataError:
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if not isinstance(value, Mapping):
        return not_named(value, where)
    row = {str(key): plain(cell) for key, cell in value.items()}
    try:
        json_bytes(row)
    except (ValueError, RecursionError) as error:
        return DataError(where, f"cannot be written as JSON ({error})", expected="text, numbers, lists and dicts")
    return row


def _frame_rows(frame: Any, name: str, place: str) -> Iterator[tuple[str, Row]]:
    """Yield (place, row) for each row of a DataFrame, without its missing cells."""
    names = [str(column) for column in frame.columns]
    check_distinct(names, name)
    labels = frame.index.tolist() if frame.index.is_unique else range(len(frame))
    columns = [(frame.iloc[:, number].tolist(), frame.iloc[:, number].isna().tolist()) for number in range(len(names))]
    for number, label in enumerate(labels):
        cells = zip(names, columns, strict=True)
        yield f"{place} {label}", {column: values[number] for column, (values, missing) in cells if not missing[number]}


def _entries(texts: Mapping[Any, Any], kind: str) -> Iterator[tuple[str, Row | DataError]]:
    """Yield (place, row) for each text of a dict by id."""
    if not isinstance(texts, Mapping):
        raise DataError(kind, f"is {shown(texts)}", expected="a dict by id")
    for id, value in texts.items():
        where = f"{kind} {shown(plain(id))}"
        row = _row_of({"text": value} if isinstance(value, str) or value is None else value, where)
        if not isinstance(row, DataError):
            if "text" not in row:
                row = DataError(where, f"key 'text' is missing (keys: {', '.join(row)})", expected="a text, or a dict with one")
            else:
                row["id"] = plain(id)
        yield where, row
