"""Queries, documents and judgements that stand apart: each in a table of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from embedfit import console
from embedfit.data.cells import read_id, read_text
from embedfit.data.columns import ANY_COLUMNS, Columns, labelled_columns, part_name
from embedfit.data.documents import metadata_of
from embedfit.data.formats.opening import with_last_error, without_errors
from embedfit.data.formats.source import Rows
from embedfit.data.library import HINTS, check_known
from embedfit.data.texts import Contents, Document, Qrels, Query
from embedfit.errors import DataError

_SAMPLE = 1_000
"""Number of rows by which columns are recognised."""


def contents_apart(
    queries: dict[str, Query],
    corpus: dict[str, Document],
    judgements: Iterable[tuple[str, Iterator[tuple[str, Any]]]],
    source: str,
    errors: list[DataError],
    *,
    queries_in: str = "queries.jsonl",
) -> Contents:
    """Return the contents of tables that stand apart.

    Args:
        queries: Queries by id.
        corpus: Documents by id.
        judgements: (name of the file, (place, judgement) or (place, error) for each line) for each file. A name such as ``test`` or
            ``validation`` is an official part.
        source: Name of the whole, for notes.
        errors: List that receives the errors of bad lines.
        queries_in: Name of the file of queries, for messages.
    """
    qrels: Qrels = {}
    parts: dict[str, dict[str, None]] = {}
    places: dict[tuple[str, str], str] = {}
    repeated = 0
    for name, lines in judgements:
        judged: dict[str, set[str]] = {}
        for where, (query_id, document_id, grade) in without_errors(with_last_error(lines), errors):
            try:
                if query_id not in queries:
                    raise DataError(where, f"query {query_id!r} is not in {queries_in}", fix="remove the line or add the query")
                check_known(document_id, corpus, where, "document", hint=len(errors) < HINTS)
                grades = qrels.setdefault(query_id, {})
                if grades.get(document_id, grade) != grade:
                    before = f"{grades[document_id]} at {places[query_id, document_id]}"
                    problem = f"grade of document {document_id!r} for query {query_id!r} is {grade} here and {before}"
                    raise DataError(where, problem, fix="leave one of the two lines")
            except DataError as error:
                errors.append(error)
                continue
            repeated += document_id in judged.setdefault(query_id, set())
            judged[query_id].add(document_id)
            grades[document_id] = grade
            places.setdefault((query_id, document_id), where)
        part = part_name(name)
        if part:
            parts[part] = parts.get(part, {}) | dict.fromkeys(judged)
    if repeated:
        console.note(f"{source}: lines of qrels that repeat another one: {repeated:,}")
    return Contents(queries, corpus, qrels, {part: tuple(ids) for part, ids in parts.items()})


def queries_of(table: Rows, errors: list[DataError], columns: Columns = ANY_COLUMNS) -> dict[str, Query]:
    """Return the queries in some rows, by id.

    Args:
        table: A row for each query.
        errors: List that receives the errors of bad rows.
        columns: Names of the columns.
    """
    queries: dict[str, Query] = {}
    rows = list(without_errors(with_last_error(table.rows), errors))
    sample = [row for _, row in rows[:_SAMPLE]]
    before, columns = columns, _query_columns(table, sample, columns)
    if (note := columns.read_as(before)) and (columns.query, columns.id) not in (("text", "_id"), ("text", "id")):
        console.note(f"{table.source}: {note}")
    for where, row in rows:
        try:
            id = read_id(row, where, columns.id)
            if not id:
                raise DataError(where, f"key {columns.id!r} is missing", expected="an id for each query")
            if id in queries:
                raise DataError(where, f"query id {id!r} occurs here a second time", expected="unique ids")
            taken = ("id", "_id", columns.query, columns.id)
            queries[id] = Query(id, read_text(row, columns.query, where), metadata_of(row, taken, where))
        except DataError as error:
            errors.append(error)
    return queries


def _query_columns(table: Rows, sample: list[Any], columns: Columns) -> Columns:
    """Return the columns of a table of queries. Without a header, it has ids and texts."""
    if table.columns == ("1", "2") and not columns.given:
        return replace(columns, id="1", query="2")
    text = columns.query or ("text" if any("text" in row for row in sample) else "")
    guess = labelled_columns(sample, replace(columns, query=text), with_documents=True)
    return replace(columns, query=guess.query if guess.query != "query" or not text else text, id=guess.id or "_id")
