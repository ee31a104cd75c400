"""From files to a data set: pairs, or BEIR's corpus, queries and qrels."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.beir import read_beir
from embedfit.data.cells import (
    GRADE_COLUMNS,
    GRADE_OF_WORD,
    PERHAPS_GRADES,
    joined_by,
    read_grades,
    read_id,
    read_labels,
    read_text,
    spelling,
    whole_number,
    without_point,
)
from embedfit.data.dataset import PARTS, Dataset, Document, Query, Row
from embedfit.data.documents import HINTS, check_known, collect_documents, fields, metadata_of
from embedfit.data.formats import read_rows, with_last_error
from embedfit.data.records import RecordType, record_type
from embedfit.errors import ConfigError, DataError, did_you_mean, shown
from embedfit.files import json_bytes

_OTHER_JUDGEMENTS = ("0", "1", "-1", "yes", "no", "positive", "negative", "correct", "incorrect", "match", "nomatch")
"""What says whether a document is right, but not always of the label: the words are refused as grades rather than guessed at."""


def load(
    source: str | Path,
    documents: str | Path | None = None,
    *,
    query: str = "query",
    label: str | None = None,
    grade: str | None = None,
    separator: str | None = None,
    record: RecordType | str | None = None,
    problems: list[DataError] | None = None,
) -> Dataset:
    """Read a data set.

    Rows with the same id are one query with several answers. Without ids, rows with the same text and metadata are.

    Args:
        source: A BEIR folder; or a file of labelled queries (JSONL, JSON, CSV, TSV, Parquet); or ``hub:owner/name``
            for a data set of the Hugging Face Hub, ``hub:owner/name:split`` for another split than ``train``.
        documents: A file of documents: rows with id, text and optional title and metadata, or rows in the shape of
            categories.json (category, sample_transactions, departments). By default each distinct label becomes a
            document that says its own name.
        query: The column of the query text.
        label: The column of the document ids that are right: one, a list, or {id: grade}; ``{}`` says that the query
            is not judged. By default ``expected``, or the record type's own.
        grade: The column of the label's grade. By default ``grade``, ``relevance``, ``score`` or the like (`GRADE_COLUMNS`), if
            there is one; an empty text says that there is none.
        separator: What stands between several labels in one cell, such as ``;``. By default a cell of text is one label.
        record: Rows are records of this type (or of the type of this name), whose template writes the query text.
        problems: Where to put every bad row and go on. By default the first is raised.

    Raises:
        DataError: A row cannot be used, or there is nothing to use.
        ConfigError: The separator is empty, or an argument means nothing for a BEIR folder.
        OfflineError: A Hub data set without a network.
    """
    found: list[DataError] = []
    if separator == "":
        raise ConfigError("the separator is empty; expected what stands between two labels, such as ';'")
    if isinstance(record, str):
        record = record_type(record, label=label)
    if not str(source).startswith("hub:") and Path(source).is_dir():
        given = {"documents": documents, "label": label, "grade": grade, "separator": separator, "record": record}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{source} is a folder, which has documents and judgements of its own; fix: leave {name!r} out")
        dataset = read_beir(Path(source), found)
    else:
        dataset = _read_pairs(source, documents, query, label, grade, separator, record, found)
    found = _each_once(found)
    if problems is not None:
        problems.extend(found)
    elif found:
        more = f" (and {len(found) - 1:,} more; 'embedfit check' lists them)" if len(found) > 1 else ""
        first = found[0]
        first.args = (f"{first}{more}",)
        raise first
    if not dataset.judged and not found:
        raise DataError(str(source), "has no query with a relevant document", expected="at least one")
    return dataset


_ALIKE = 3
"""So many rows with the same problem are listed one by one. More are one line."""
_OF_ONE_ROW = re.compile(r" \(keys: .*\)|, seen .*|; did you mean .*|(?<=^grade ).*")
"""What is not the same in a problem that is the same in many rows."""


def _each_once(problems: Sequence[DataError]) -> list[DataError]:
    """Return the problems, with the same problem of many rows of a file as one."""
    alike: dict[tuple[str, ...], list[DataError]] = {}
    for problem in problems:
        file = re.sub(r"(:\d+|\[\d+\])$", "", problem.where)
        seen = _OF_ONE_ROW.sub("", problem.problem)
        alike.setdefault((file, seen, problem.expected, problem.fix), []).append(problem)
    lines: dict[int, DataError] = {}
    for group in alike.values():
        first, last = group[0], group[-1]
        more = f"{first.problem} (and {len(group) - 1:,} more rows like it, the last at {last.where})"
        several = [DataError(first.where, more, expected=first.expected, fix=first.fix)]
        lines |= {id(problem): line for problem, line in zip(group, group if len(group) <= _ALIKE else several, strict=False)}
    return [lines[id(problem)] for problem in problems if id(problem) in lines]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A row of a file of labelled queries.

    Attributes:
        where: File and line.
        id: Of the query, by default from the number of the row.
        has_id: Whether the row said the id itself.
        text: Of the query.
        part: ``train``, ``dev``, ``test``, or empty.
        metadata: Of the query.
        grades: Document id -> grade.
        cell: The label, if it is a text that stands alone in its cell; else empty.
    """

    where: str
    id: str
    has_id: bool
    text: str
    part: str
    metadata: dict[str, Any]
    grades: dict[str, int]
    cell: str


def _read_pairs(
    source: str | Path,
    documents: str | Path | None,
    query: str,
    label: str | None,
    grade: str | None,
    separator: str | None,
    record: RecordType | None,
    found: list[DataError],
) -> Dataset:
    label = label or (record.label if record else "expected")
    corpus = collect_documents(documents, found) if documents else {}
    lines = list(with_last_error(read_rows(source)))
    rows = [(where, row) for where, row in lines if not isinstance(row, DataError)]
    missing = _missing_columns(rows, [*([] if record else [query]), label, *([grade] if grade else [])])
    if missing:
        found += missing
        return Dataset({}, corpus, {})
    grade_column = _grade_column(rows, (query, label, *(record.fields if record else ()))) if grade is None else grade
    pairs = []
    number = 0
    for where, row in lines:
        try:
            if isinstance(row, DataError):
                raise row
            number += 1
            id = read_id(row, where)
            text = record.text(fields(row, record, grade_column), where) if record else read_text(row, query, where)
            labels, cell = read_labels(row, label, separator, corpus, where)
            grades = read_grades(row, label, labels, grade_column, corpus, where, by_name=grade is None)
            if documents and not (cell and joined_by(cell, corpus)[1]):
                for document in grades:
                    check_known(document, corpus, where, "label", hint=len(found) < HINTS)
            part = row.get("part")
            if part is not None and part not in PARTS:
                raise DataError(where, f"part is {shown(part)}", expected="train, dev or test")
            taken = ("id", "_id", query, label, "part", "" if isinstance(labels, dict) else grade_column)
            pairs.append(_Pair(where, id or f"q{number}", bool(id), text, part or "", metadata_of(row, taken, where), grades, cell))
        except DataError as error:
            found.append(error)
    pairs = _one_label_a_cell(pairs, corpus if documents else None, found)
    if grade is None and grade_column:
        console.note(f"{source}: column {grade_column!r} is read as the grade of the label; 0 is not relevant")
    dataset = _merged(pairs, corpus, str(source), found)
    if not documents:
        corpus |= {document: Document(document, document) for grades in dataset.qrels.values() for document in grades}
    return dataset


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
    """Return a value of a column as it is compared with what says whether a document is right."""
    word = str(whole_number(value)).strip()
    return re.sub(r"(?<=\d)\.0*$", "", word) if re.match(r"[-+]?\d", word) else spelling(word)


def _one_label_a_cell(pairs: list[_Pair], corpus: Mapping[str, Document] | None, found: list[DataError]) -> list[_Pair]:
    """Return the pairs without those whose cell holds several labels, or a label that is another one written otherwise."""
    places = {label: pair.where for pair in reversed(pairs) for label in pair.grades}
    known: Mapping[str, Any] = places if corpus is None else corpus
    joined: dict[str, list[_Pair]] = {}
    for pair in pairs:
        separator, parts = joined_by(pair.cell, known) if pair.cell and (corpus is None or pair.cell not in corpus) else ("", [])
        if parts:
            joined.setdefault(separator, []).append(pair)
    for separator, group in joined.items():
        first = group[0]
        count = len(joined_by(first.cell, known)[1])
        more = f" ({len(group):,} rows have such cells)" if len(group) > 1 else ""
        problem = f"label {shown(first.cell)} holds {count} labels, most of which stand alone elsewhere{more}"
        fix = f"set separator = {json.dumps(separator, ensure_ascii=False)} in [data]; or if it is one label, write it as a JSON list"
        if not separator:
            fix = "write them as a JSON list, as no single sign stands between them; or if it is one label, as a list of one"
        found.append(DataError(first.where, problem, fix=fix))
    if corpus is None:
        for label, where in places.items():
            whole = without_point(label)
            if whole in places:
                fix = "write them alike, or give a file of documents with both"
                found.append(DataError(where, f"label {label!r} is also written {whole!r} at {places[whole]}", fix=fix))
    left_out = {pair.where for group in joined.values() for pair in group}
    return [pair for pair in pairs if pair.where not in left_out]


def _merged(pairs: Sequence[_Pair], corpus: dict[str, Document], source: str, found: list[DataError]) -> Dataset:
    """Return the data set of the rows, those of one query together."""
    groups: dict[tuple[str, ...], list[_Pair]] = {}
    for pair in pairs:
        # The same text with other metadata was asked on another occasion, so it stays a query of its own.
        said = ("id", pair.id) if pair.has_id else ("text", pair.text, pair.part, json_bytes(sorted(pair.metadata.items())).decode())
        groups.setdefault(said, []).append(pair)
    dataset = Dataset({}, corpus, {})
    parts: dict[str, list[str]] = {}
    merged, rows, differing = [], 0, dict[str, None]()
    for first, *others in groups.values():
        id = first.id
        if id in dataset.queries:
            found.append(DataError(first.where, f"id {id!r} stands here a second time", expected="an id in each row, or in none"))
            continue
        grades, places, metadata = dict(first.grades), dict.fromkeys(first.grades, first.where), dict(first.metadata)
        for pair in others:
            try:
                _add_answers(pair, first, grades, places)
            except DataError as error:
                found.append(error)
                continue
            unlike = {name for name in {**metadata, **pair.metadata} if metadata.get(name) != pair.metadata.get(name)}
            differing |= dict.fromkeys(sorted(unlike))
            metadata = {name: value for name, value in metadata.items() if name not in unlike}
        rows += len(others)
        if len(grades) > len(first.grades) and not first.has_id:
            merged.append(id)
        dataset.queries[id] = Query(id, first.text, metadata)
        if grades:
            dataset.qrels[id] = grades
        if first.part:
            parts.setdefault(first.part, []).append(id)
    if rows:
        left_out = f"; left out, as it differs between them: {', '.join(differing)}" if differing else ""
        console.note(f"{source}: rows whose answers were added to an earlier row with the same query: {rows:,}{left_out}")
    return replace(dataset, parts={part: tuple(ids) for part, ids in parts.items()}, merged=tuple(merged))


def _add_answers(pair: _Pair, first: _Pair, grades: dict[str, int], places: dict[str, str]) -> None:
    """Add a row's answers to those of its query.

    Raises:
        DataError: They contradict an earlier row, or the row is another query or only repeats one under its id.
    """
    if pair.text != first.text or pair.part != first.part:
        other = f"another text, {shown(pair.text)}" if pair.text != first.text else f"another part, {shown(pair.part)}"
        raise DataError(pair.where, f"id {pair.id!r} stands here a second time with {other}", expected="ids that differ")
    for document, grade in pair.grades.items():
        if grades.get(document, grade) != grade:
            problem = f"grade of {shown(document)} is {grade} here and {grades[document]} at {places[document]}"
            raise DataError(pair.where, problem, fix="leave one of the two rows")
    if pair.has_id and pair.grades.keys() <= grades.keys():
        raise DataError(pair.where, f"id {pair.id!r} stands here a second time with the same label", expected="ids that differ")
    for document, grade in pair.grades.items():
        grades.setdefault(document, grade)
        places.setdefault(document, pair.where)
