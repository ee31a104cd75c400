"""Labels of a row: one document, a list of them, or grades by document; and what stands between several in one cell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from embedfit.data.cells import id_of, listed, read_grade, spelling
from embedfit.data.columns import GRADE_OF_LETTER, GRADE_OF_WORD, SURE_GRADES, Columns
from embedfit.data.library import Library
from embedfit.data.texts import Row
from embedfit.errors import DataError, did_you_mean, shown

SEPARATORS = (";", "|", "\n", "\t", "\uff1b", "\uff5c", "\u3001", "\uff0c", ",")
"""Separators of several labels in one cell, also in Chinese and Japanese. A comma is part of many names, so it comes last."""
_SIGNS = ("/", "+", "&", ">", "\u2022", "\u00b7", " - ", " \u2013 ", " \u2014 ", " and ")
"""Separators that are usually part of a name. They count only if the labels beside them are known."""
_ANY_SEPARATOR = re.compile("|".join(map(re.escape, (*SEPARATORS, *_SIGNS))))


_NO_ANSWER = ("noneofthese", "noneoftheabove", "noanswer", "norelevantdocument", "norelevantdocuments", "nomatch", "unanswerable")
"""Labels that say that no document is right, as `spelling` spells them."""
_LONGEST = 40
"""Number of characters from which a label is a name or a text."""
_PERHAPS_NO_ANSWER = ("none", "null", "nan", "n/a", "na")
"""Labels that say so where the documents are given and none has this id."""


def says_no_answer(label: str) -> bool:
    """Return whether a label says that no document is right."""
    return len(label) < _LONGEST and spelling(label) in _NO_ANSWER


def read_labels(row: Row, columns: Columns, library: Library, where: str) -> tuple[list[Any] | dict[Any, Any] | None, str]:
    """Return the labels of a row as a list or as {label: grade}, and the cell's text if it is a single label.

    An empty list says that no document is right. None says nothing.
    """
    corpus = library.documents
    label, separator = columns.label, columns.separator
    if label not in row:
        raise DataError(where, f"key {label!r} is missing (keys: {', '.join(map(str, row))}){did_you_mean(label, row)}")
    value = row[label]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, ""
    if isinstance(value, str) and value not in corpus:
        if says_no_answer(value) or (library.given and spelling(value) in _PERHAPS_NO_ANSWER):
            return [], ""
        try:
            value = listed(value)
        except ValueError:
            fix = 'write a JSON list, like ["a", "b"]'
            raise DataError(where, f"key {label!r} is {shown(value)}, which looks like a list but is none", fix=fix) from None
    if isinstance(value, (list, dict)):
        return value, ""
    if not isinstance(value, str):
        return [value], ""
    if separator is None or (value in corpus and not all(part in corpus for part in _parts(value, separator))):
        return [value], value.strip()
    parts = _parts(value, separator)
    if not parts:
        raise DataError(where, f"key {label!r} is {shown(value)}", expected="a document id, a list of them, or {id: grade}")
    return list(parts), ""


def read_grades(row: Row, labels: list[Any] | dict[Any, Any], columns: Columns, library: Library, where: str) -> dict[str, int]:
    """Return {document id: grade} for the labels of a row.

    Args:
        row: Row of named cells.
        labels: Labels of the row, as a list or as {label: grade}.
        columns: Names of the columns, with the grade column resolved.
        library: Documents by id and text.
        where: Place of the row, for messages.
    """
    label, column = columns.label, columns.grade
    grade: Any = 1
    if column and not isinstance(labels, dict):
        if column not in row:
            raise DataError(where, f"key {column!r} is missing (keys: {', '.join(map(str, row))})", expected="a grade in each row")
        grade = row[column]
    elif column in row and not columns.by_name:
        raise DataError(where, f"has grades in both {label!r} and {column!r}", fix="leave one of them out")
    negative = not isinstance(labels, dict) and bool(column) and (not columns.by_name or spelling(column) in SURE_GRADES)
    grades: dict[str, int] = {}
    for document, own in labels.items() if isinstance(labels, dict) else ((document, grade) for document in labels):
        id = id_of(document)
        if id is None:
            raise DataError(where, f"key {label!r} is {shown(row[label])}", expected="a document id, a list of them, or {id: grade}")
        id = library.id_of(id if id in library.documents else id.strip())
        try:
            if isinstance(labels, dict) and isinstance(own, str):
                raise ValueError
            if isinstance(own, (str, bool)) and not isinstance(labels, dict):
                words = GRADE_OF_WORD | GRADE_OF_LETTER if spelling(column) == "escilabel" else GRADE_OF_WORD
                own = words.get(spelling(own), own)
            value = read_grade(own, negative=negative)
        except ValueError:
            guessed = column and columns.by_name and not isinstance(labels, dict)
            fix = f"{columns.setting('grade', '')} if {column!r} holds no grades, else write 1 for right and 0 for wrong" if guessed else ""
            raise DataError(where, f"grade {shown(own)}", expected="a whole number, 0 or more", fix=fix) from None
        if grades.setdefault(id, value) != value:
            raise DataError(where, f"grade of {shown(id)} is {grades[id]} and {value}", expected="one grade for each document")
    return grades


def _parts(cell: str, separator: str) -> list[str]:
    """Return the parts of a cell between its separators, without the brackets of an unquoted list."""
    inside = cell.strip()
    if inside[:1] == "[" and inside[-1:] == "]":
        inside = inside[1:-1]
    return [part.strip() for part in inside.split(separator) if part.strip()]


def joined_by(cell: str, known: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the separator of a cell and its labels, if more than half of them are known; else no labels.

    The separator is an empty string if the labels have different separators.
    """
    if not _ANY_SEPARATOR.search(cell):
        return "", []
    splits = [(separator, _parts(cell, separator)) for separator in (*SEPARATORS, *_SIGNS) if separator in cell]
    splits.append(("", _parts(_ANY_SEPARATOR.sub(";", cell), ";")))
    likely = []
    for separator, parts in splits:
        if separator not in SEPARATORS:  # a path may repeat a name: Travel / Travel
            parts = list(dict.fromkeys(parts))
        share = sum(part in known for part in parts)
        if len(parts) > 1 and 2 * share > len(parts):
            likely.append(((share == len(parts), share), separator, parts))
    _, separator, parts = max(likely, key=lambda split: split[0], default=(None, "", []))
    return separator, parts
