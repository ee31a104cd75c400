"""Rows of labelled queries as the contents of a data set."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from embedfit import console
from embedfit.data.cells import read_id, read_text, without_point
from embedfit.data.columns import Columns, grade_column, labelled_columns, other_parts, part_of
from embedfit.data.documents import fields, metadata_of
from embedfit.data.formats.opening import without_errors
from embedfit.data.formats.source import Rows
from embedfit.data.judgements import has_judgement_columns
from embedfit.data.labels import joined_by, read_grades, read_labels
from embedfit.data.library import HINTS, Library, check_known
from embedfit.data.merging import merged
from embedfit.data.records import RecordType
from embedfit.data.shapes.known import shaped
from embedfit.data.shapes.shape import Shape
from embedfit.data.texts import Contents, Document, Pair, Row
from embedfit.errors import DataError, did_you_mean, shown


def contents_of(
    table: Rows, corpus: dict[str, Document] | None, columns: Columns, record: RecordType | None, errors: list[DataError]
) -> Contents:
    """Return the contents of rows of labelled queries.

    Args:
        table: Rows.
        corpus: Documents by id. None if each distinct label becomes a document.
        columns: Names of the columns.
        record: Type of the rows, whose template gives the query text; None to read the query column.
        errors: List that receives the errors of bad rows.
    """
    with _no_collection():  # millions of rows hold no cycles, and looking for some takes a quarter of the time
        return _contents(table, corpus, columns, record, errors)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _contents(
    table: Rows, corpus: dict[str, Document] | None, columns: Columns, record: RecordType | None, errors: list[DataError]
) -> Contents:
    library = Library(corpus)
    lines = list(table.rows)
    rows = [row for _, row in lines if not isinstance(row, DataError)]
    named = columns.query or columns.label or columns.id or columns.part or columns.grade is not None or columns.separator or record
    shape, as_read = (None, None) if named else shaped(rows)
    if shape and as_read:
        lines = [(where, row if isinstance(row, DataError) else as_read(row)) for where, row in lines]
    contents = _shaped(shape, lines, table, library, errors) if shape else _by_columns(lines, rows, table, library, columns, record, errors)
    if library.matched:
        console.note(f"{table.source}: labels that are the text of a document, and were matched to it: {library.matched:,}")
    if library.added:
        console.note(f"{table.source}: passages that are none of the documents, and were added to them: {library.added:,}")
    return contents._replace(corpus=corpus_of(library, contents))


def _shaped(shape: Shape, lines: Sequence[tuple[str, Any]], table: Rows, library: Library, errors: list[DataError]) -> Contents:
    """Return the queries and judgements of rows that have the shape of a tool."""
    console.note(f"{table.source}: read as {shape.name}")
    good = list(without_errors(iter(lines), errors))
    if library.given and shape.passages:
        library.look_for(text for _, row in good for text in shape.passages(row))
    pairs = []
    for pair in shape.pairs(good, library):
        if isinstance(pair, DataError):
            errors.append(pair)
        else:
            pairs.append(pair)
    return merged(pairs, table.source, errors, by_judgement=True, mined=shape.mined)


def _by_columns(
    lines: list[tuple[str, Any]],
    rows: list[Row],
    table: Rows,
    library: Library,
    columns: Columns,
    record: RecordType | None,
    errors: list[DataError],
) -> Contents:
    """Return the queries and judgements of rows with a column for each part of a pair."""
    if library.given:  # the names are those of the documents' own columns
        columns = replace(columns, document_id="", document_title="", document_text="")
    before, columns = columns, columns_of(rows, columns, record, with_documents=library.given)
    place = next((where for where, row in lines if not isinstance(row, DataError)), "")
    missing = missing_columns(place, rows, table, before, columns, record, with_documents=library.given)
    errors += missing
    if missing:
        return Contents({}, {}, {})
    if not record and (note := columns.read_as(before)):
        console.note(f"{table.source}: {note}")
    if not record and not columns.part and (note := other_parts(rows)):
        console.note(f"{table.source}: {note}")
    if columns.by_name and columns.grade:
        console.note(f"{table.source}: column {columns.grade!r} is read as the grade of the label; 0 is not relevant")
    rows.clear()
    pairs = table_pairs(_consumed(lines), table, library, columns, record, errors)
    pairs = _one_label_a_cell(pairs, library, columns, errors)
    return merged(pairs, table.source, errors, by_judgement=bool(columns.grade) and not record)


def _consumed(lines: list[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield lines, and remove each from the list: a million rows are large."""
    lines.reverse()
    while lines:
        yield lines.pop()


def corpus_of(library: Library, contents: Contents) -> dict[str, Document]:
    """Return the documents: those that were given, and those that are judged."""
    if library.given:
        return library.documents
    judged = dict.fromkeys(document for grades in contents.qrels.values() for document in grades)
    return {id: library.documents.get(id) or Document(id, id) for id in judged}


def columns_of(rows: Sequence[Row], columns: Columns, record: RecordType | None, *, with_documents: bool) -> Columns:
    """Return the columns of rows, with those that are looked for by their names."""
    if record:
        names = dict.fromkeys(name for row in rows for name in row if name not in record.fields)
        id = columns.id or next((name for name in ("id", "_id") if name in names), "")
        columns = replace(columns, label=columns.label or record.label, id=id, part=columns.part or "part")
    else:
        columns = labelled_columns(rows, columns, with_documents=with_documents)
    if columns.grade is not None:
        return columns
    taken = (columns.query, columns.label, columns.document_text, *(record.fields if record else ()))
    return replace(columns, grade=grade_column(rows, taken), by_name=True)


def table_pairs(
    lines: Iterable[tuple[str, Any]],
    table: Rows,
    library: Library,
    columns: Columns,
    record: RecordType | None,
    errors: list[DataError],
) -> list[Pair]:
    """Return the labelled queries of rows with a column for each part of a pair. The errors of bad rows are appended to ``errors``."""
    pairs = []
    number = 0
    may_lack_label = columns.label in table.columns
    for where, row in lines:
        try:
            if isinstance(row, DataError):
                raise row
            number += 1
            row = {columns.label: None, **row} if may_lack_label and columns.label not in row else row
            pair = _pair(where, number, row, library, columns, record)
            if library.given and pair.grades and not (pair.cell and joined_by(pair.cell, library.documents)[1]):
                for document in pair.grades:
                    check_known(document, library.documents, where, "label", hint=len(errors) < HINTS)
            pairs.append(pair)
        except DataError as error:
            errors.append(error)
    return pairs


def _pair(where: str, number: int, row: Row, library: Library, columns: Columns, record: RecordType | None) -> Pair:
    """Return a row as a pair.

    Raises:
        DataError: A cell cannot be used.
    """
    id = read_id(row, where, columns.id) if columns.id else ""
    text = record.text(fields(row, record, columns.grade or ""), where) if record else read_text(row, columns.query, where)
    if columns.document_text and row.get(columns.document_text) is not None:
        row = {**row, columns.label: _own_document(row, library, columns, where)}
    labels, cell = read_labels(row, columns, library, where)
    grades = None if labels in (None, {}) else read_grades(row, labels, columns, library, where)
    try:
        part = part_of(row.get(columns.part)) if columns.part else ""
    except ValueError as error:
        raise DataError(where, f"{columns.part} is {error}", expected="train, dev or test") from None
    grade = "" if isinstance(labels, dict) else columns.grade or ""
    taken = (columns.id, "id", "_id", columns.query, columns.label, columns.part, grade, columns.document_text, columns.document_title)
    return Pair(where, number, text, grades, id, part, metadata_of(row, taken, where), cell if grades and cell in grades else "")


def _own_document(row: Row, library: Library, columns: Columns, where: str) -> str:
    """Return the id of the document that a row brings along."""
    id = read_id(row, where, columns.document_id) if columns.document_id else ""
    text = read_text(row, columns.document_text, where)
    title = row.get(columns.document_title)
    return library.add(text, id=id, title="" if title is None else str(title), where=where)


def _needed(before: Columns, columns: Columns, record: RecordType | None, *, with_documents: bool) -> list[str]:
    """Return the columns that must be there: those without which there is no labelled query, and those that the user named."""
    label = columns.label if not columns.document_text or columns.document_id else columns.document_text
    named = (before.id, before.part, *(() if with_documents else (before.document_id, before.document_title, before.document_text)))
    needed = [*([] if record else [columns.query]), label, columns.grade or "", *named]
    return list(dict.fromkeys(name for name in needed if name))


def _names(rows: Sequence[Row], table: Rows) -> dict[str, None]:
    return dict.fromkeys([*(str(name) for row in rows for name in row), *table.columns])


def missing_columns(
    place: str,
    rows: Sequence[Row],
    table: Rows,
    before: Columns,
    columns: Columns,
    record: RecordType | None,
    *,
    with_documents: bool,
) -> list[DataError]:
    """Return an error for each needed column that no row has, rather than one for each row."""
    names = _names(rows, table)
    every = f" in all {len(rows):,} rows" if len(rows) > 1 else ""
    errors = []
    for name in _needed(before, columns, record, with_documents=with_documents) if rows else ():
        if name not in names:
            problem = f"key {name!r} is missing{every} (keys: {', '.join(names)}){did_you_mean(name, names)}"
            role = "query" if name == columns.query and not record else "label" if name == columns.label else ""
            fix = columns.setting(role, "...") + ", the name of its column" if role and not getattr(before, role) and not record else ""
            if role and not before.given and has_judgement_columns(list(names)):
                fix = "name it as qrels in [data], beside the files of queries and of documents"
            errors.append(DataError(place, problem, fix=fix))
    return errors


def _one_label_a_cell(pairs: list[Pair], library: Library, columns: Columns, errors: list[DataError]) -> list[Pair]:
    """Return the pairs whose cell holds one label. Report the other pairs, and labels that are written in two ways."""
    places = {label: pair.where for pair in reversed(pairs) for label in pair.grades or ()}
    known: Mapping[str, Any] = library.documents if library.given else places
    joined: dict[str, list[Pair]] = {}
    single = []
    for pair in pairs:
        separator, parts = joined_by(pair.cell, known) if pair.cell and pair.cell not in library.documents else ("", [])
        if parts:
            joined.setdefault(separator, []).append(pair)
        else:
            single.append(pair)
    for separator, group in joined.items():
        first = group[0]
        count = len(joined_by(first.cell, known)[1])
        more = f" ({len(group):,} rows have such cells)" if len(group) > 1 else ""
        problem = f"label {shown(first.cell)} holds {count} labels, most of which stand alone elsewhere{more}"
        as_list = "a list" if columns.in_memory else "a JSON list"
        fix = f"{columns.setting('separator', separator)}; or if it is one label, write it as {as_list}"
        if not separator:
            fix = f"write them as {as_list}, as no single sign stands between them; or if it is one label, as a list of one"
        errors.append(DataError(first.where, problem, fix=fix))
    if not library.given:
        for label, where in places.items():
            whole = without_point(label)
            if whole in places:
                fix = "write them alike, or give " + ("documents" if columns.in_memory else "a file of documents") + " with both"
                errors.append(DataError(where, f"label {label!r} is also written {whole!r} at {places[whole]}", fix=fix))
    return single
