"""Rows of labelled queries as the contents of a data set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from embedfit import console
from embedfit.data.cells import (
    GRADE_COLUMNS,
    GRADE_OF_WORD,
    PERHAPS_GRADES,
    Columns,
    joined_by,
    read_grades,
    read_id,
    read_labels,
    read_text,
    spelling,
    whole_number,
    without_point,
)
from embedfit.data.documents import HINTS, check_known, fields, metadata_of
from embedfit.data.records import RecordType
from embedfit.data.texts import PARTS, Contents, Document, Qrels, Query, Row
from embedfit.errors import DataError, did_you_mean, shown
from embedfit.files import json_bytes

_OTHER_JUDGEMENTS = ("0", "1", "-1", "yes", "no", "positive", "negative", "correct", "incorrect", "match", "nomatch")
"""Values that may judge a document, but not always the label. As grades they are refused rather than interpreted."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """A row of labelled queries.

    Attributes:
        where: Place of the row, for messages.
        id: Id of the query, by default from the number of the row.
        has_id: Whether the row gives the id.
        text: Text of the query.
        part: ``train``, ``dev``, ``test``, or an empty string.
        metadata: Other columns of the row.
        grades: Document id -> grade.
        cell: Text of the label cell if it holds a single label, else an empty string.
    """

    where: str
    id: str
    has_id: bool
    text: str
    part: str
    metadata: dict[str, Any]
    grades: dict[str, int]
    cell: str


def contents_of(
    lines: Iterator[tuple[str, Any]],
    corpus: dict[str, Document] | None,
    columns: Columns,
    record: RecordType | None,
    source: str,
    errors: list[DataError],
) -> Contents:
    """Return the contents of rows of labelled queries.

    Args:
        lines: (place, row) or (place, error) for each row.
        corpus: Documents by id. None if each distinct label becomes a document.
        columns: Names of the columns.
        record: Type of the rows, whose template gives the query text; None to read the query column.
        source: Name of the source, for notes.
        errors: List that receives the errors of bad rows.
    """
    given = corpus is not None
    corpus = corpus or {}
    all_rows = list(lines)
    rows = [(where, row) for where, row in all_rows if not isinstance(row, DataError)]
    missing = _missing_columns(rows, [*([] if record else [columns.query]), columns.label, *([columns.grade] if columns.grade else [])])
    if missing:
        errors += missing
        return Contents({}, corpus, {})
    if columns.grade is None:
        guess = _grade_column(rows, (columns.query, columns.label, *(record.fields if record else ())))
        columns = replace(columns, grade=guess, by_name=True)
        if guess:
            console.note(f"{source}: column {guess!r} is read as the grade of the label; 0 is not relevant")
    pairs = []
    number = 0
    for where, row in all_rows:
        try:
            if isinstance(row, DataError):
                raise row
            number += 1
            pair = _pair(where, row, number, corpus, columns, record)
            if given and not (pair.cell and joined_by(pair.cell, corpus)[1]):
                for document in pair.grades:
                    check_known(document, corpus, where, "label", hint=len(errors) < HINTS)
            pairs.append(pair)
        except DataError as error:
            errors.append(error)
    pairs = _one_label_a_cell(pairs, corpus if given else None, columns, errors)
    contents = _merged(pairs, corpus, source, errors)
    if not given:
        corpus |= {document: Document(document, document) for grades in contents.qrels.values() for document in grades}
    return contents


def _pair(where: str, row: Row, number: int, corpus: Mapping[str, Document], columns: Columns, record: RecordType | None) -> _Pair:
    """Return a row as a pair.

    Raises:
        DataError: A cell cannot be used.
    """
    id = read_id(row, where)
    text = record.text(fields(row, record, columns.grade or ""), where) if record else read_text(row, columns.query, where)
    labels, cell = read_labels(row, columns, corpus, where)
    grades = read_grades(row, labels, columns, corpus, where)
    part = row.get("part")
    if part is not None and part not in PARTS:
        raise DataError(where, f"part is {shown(part)}", expected="train, dev or test")
    taken = ("id", "_id", columns.query, columns.label, "part", "" if isinstance(labels, dict) else columns.grade or "")
    return _Pair(where, id or f"q{number}", bool(id), text, part or "", metadata_of(row, taken, where), grades, cell)


def _missing_columns(rows: Sequence[tuple[str, Row]], needed: Sequence[str]) -> list[DataError]:
    """Return an error for each needed column that no row has, rather than one for each row."""
    names = dict.fromkeys(name for _, row in rows for name in row)
    every = f" in all {len(rows):,} rows" if len(rows) > 1 else ""
    return [
        DataError(rows[0][0], f"key {name!r} is missing{every} (keys: {', '.join(map(str, names))}){did_you_mean(name, names)}")
        for name in needed
        if rows and name not in names
    ]


def _grade_column(rows: Sequence[tuple[str, Row]], taken: Sequence[str]) -> str:
    """Return the name of the column of grades, or an empty text if there is none."""
    names = dict.fromkeys(name for _, row in rows for name in row if name not in taken)
    spelt = {spelling(name): name for name in names}
    for column in (spelt[spelling(name)] for name in GRADE_COLUMNS if spelling(name) in spelt):
        return str(column)
    for name in PERHAPS_GRADES:
        if spelling(name) in spelt:
            column = spelt[spelling(name)]
            values = {_judgement(row[column]) for _, row in rows if row.get(column) is not None}
            judged = all(value in GRADE_OF_WORD or value in _OTHER_JUDGEMENTS for value in values)
            numbers = name not in ("label", "target") and all(re.fullmatch(r"[-+]?\d+(\.\d*)?", value) for value in values)
            if values and (judged or numbers):
                return str(column)
    return ""


def _judgement(value: Any) -> str:
    """Return a cell as text, for comparison with the known judgements."""
    word = str(whole_number(value)).strip()
    return re.sub(r"(?<=\d)\.0*$", "", word) if re.match(r"[-+]?\d", word) else spelling(word)


def _one_label_a_cell(pairs: list[_Pair], corpus: Mapping[str, Document] | None, columns: Columns, errors: list[DataError]) -> list[_Pair]:
    """Return the pairs whose cell holds one label. Report the other pairs, and labels that are written in two ways."""
    places = {label: pair.where for pair in reversed(pairs) for label in pair.grades}
    known: Mapping[str, Any] = places if corpus is None else corpus
    joined: dict[str, list[_Pair]] = {}
    single = []
    for pair in pairs:
        separator, parts = joined_by(pair.cell, known) if pair.cell and (corpus is None or pair.cell not in corpus) else ("", [])
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
    if corpus is None:
        for label, where in places.items():
            whole = without_point(label)
            if whole in places:
                fix = "write them alike, or give " + ("documents" if columns.in_memory else "a file of documents") + " with both"
                errors.append(DataError(where, f"label {label!r} is also written {whole!r} at {places[whole]}", fix=fix))
    return single


def _merged(pairs: Sequence[_Pair], corpus: dict[str, Document], source: str, errors: list[DataError]) -> Contents:
    """Return the contents of the pairs, with the rows of a query merged."""
    groups: dict[tuple[str, ...], list[_Pair]] = {}
    for pair in pairs:
        # The same text with other metadata was asked on another occasion, so it stays a query of its own.
        key = ("id", pair.id) if pair.has_id else ("text", pair.text, pair.part, json_bytes(sorted(pair.metadata.items())).decode())
        groups.setdefault(key, []).append(pair)
    queries: dict[str, Query] = {}
    qrels: Qrels = {}
    parts: dict[str, list[str]] = {}
    merged, rows, differing = [], 0, dict[str, None]()
    for first, *repeats in groups.values():
        id = first.id
        if id in queries:
            errors.append(DataError(first.where, f"id {id!r} occurs here a second time", expected="an id in each row, or in none"))
            continue
        grades, places, metadata = dict(first.grades), dict.fromkeys(first.grades, first.where), dict(first.metadata)
        for pair in repeats:
            try:
                _add_answers(pair, first, grades, places)
            except DataError as error:
                errors.append(error)
                continue
            unlike = {name for name in {**metadata, **pair.metadata} if metadata.get(name) != pair.metadata.get(name)}
            differing |= dict.fromkeys(sorted(unlike))
            metadata = {name: value for name, value in metadata.items() if name not in unlike}
        rows += len(repeats)
        if len(grades) > len(first.grades) and not first.has_id:
            merged.append(id)
        queries[id] = Query(id, first.text, metadata)
        if grades:
            qrels[id] = grades
        if first.part:
            parts.setdefault(first.part, []).append(id)
    if rows:
        left_out = f"; left out, as it differs between them: {', '.join(differing)}" if differing else ""
        console.note(f"{source}: rows whose answers were added to an earlier row with the same query: {rows:,}{left_out}")
    return Contents(queries, corpus, qrels, {part: tuple(ids) for part, ids in parts.items()}, tuple(merged))


def _add_answers(pair: _Pair, first: _Pair, grades: dict[str, int], places: dict[str, str]) -> None:
    """Add a row's answers to those of its query.

    Raises:
        DataError: The row contradicts an earlier row, is another query with the same id, or repeats a row with an id.
    """
    if pair.text != first.text or pair.part != first.part:
        other = f"another text, {shown(pair.text)}" if pair.text != first.text else f"another part, {shown(pair.part)}"
        raise DataError(pair.where, f"id {pair.id!r} occurs here a second time with {other}", expected="unique ids")
    for document, grade in pair.grades.items():
        if grades.get(document, grade) != grade:
            problem = f"grade of {shown(document)} is {grade} here and {grades[document]} at {places[document]}"
            raise DataError(pair.where, problem, fix="leave one of the two rows")
    if pair.has_id and pair.grades.keys() <= grades.keys():
        raise DataError(pair.where, f"id {pair.id!r} occurs here a second time with the same label", expected="unique ids")
    for document, grade in pair.grades.items():
        grades.setdefault(document, grade)
        places.setdefault(document, pair.where)
