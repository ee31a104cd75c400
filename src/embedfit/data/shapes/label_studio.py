"""Label Studio's exports: JSON and JSON-MIN, with choices, ratings and rankers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embedfit.data.cells import id_of, listed, read_text, spelling
from embedfit.data.columns import GRADE_COLUMNS, LABEL_COLUMNS, PERHAPS_GRADES
from embedfit.data.library import Library
from embedfit.data.shapes.fields import roles_of
from embedfit.data.shapes.shape import Shape, answered, each_row, id_in
from embedfit.data.texts import Pair, Row
from embedfit.errors import DataError, shown

_REJECTED = re.compile(r"neg|irrelevant|not_|not |bad|wrong|reject|biased|unrelated", re.IGNORECASE)
"""Names of buckets that hold what is not right. The bucket ``_`` holds what nobody moved."""


def _task(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read a task of the JSON export with the annotations of all annotators; those of a ground truth count alone."""
    data, annotations = row["data"], row.get("annotations", row.get("completions")) or []
    if not isinstance(data, Mapping) or not isinstance(annotations, list):
        raise DataError(where, f"has the data {shown(data)}", expected="an object, and a list of annotations")
    done = [note for note in annotations if isinstance(note, Mapping) and not note.get("was_cancelled")]
    done = [note for note in done if note.get("ground_truth")] or done
    results = [(_annotator(note), result) for note in done for result in note.get("result") or () if isinstance(result, Mapping)]
    values = [(who, str(result.get("from_name")), result.get("value")) for who, result in results]
    yield _read(where, number, dict(data), values, library, id_in(row, "id"))


def _annotator(note: Mapping[str, Any]) -> str:
    who = note.get("completed_by")
    return str(who.get("email") or who.get("id")) if isinstance(who, Mapping) else str(who)


_SPELT_LABELS = {spelling(name) for name in (*LABEL_COLUMNS, *GRADE_COLUMNS, *PERHAPS_GRADES, "sentiment", "choice")}
_ABOUT = ("annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement", "id")


def _flat(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read a row of JSON-MIN or CSV: the fields of the task, its id, the answers, and who gave them when."""
    names = list(row)
    start = names.index("id") + 1 if "id" in names else 0
    answers = [name for name in names[start : names.index("annotator") if "annotator" in names else None] if name not in _ABOUT]
    if not answers or names == sorted(names):  # CSV, with its columns in alphabetical order
        rest = {name: value for name, value in row.items() if name not in _ABOUT}
        query, passage, _, _ = roles_of(rest)
        others = [name for name in rest if name not in (query, passage)]
        answers = [name for name in others if spelling(name) in _SPELT_LABELS] or others[:1]
    data = {name: value for name, value in row.items() if name not in (*_ABOUT, *answers)}
    values = [(str(row.get("annotator")), name, _unpacked(row[name], where)) for name in answers]
    yield _read(where, number, data, values, library, id_in(row, "id"))


def _unpacked(value: Any, where: str) -> Any:
    if isinstance(value, str):
        try:
            value = listed(value)
        except ValueError:
            raise DataError(where, f"has the answer {shown(value)}, which looks like a list but is none") from None
    return value if isinstance(value, Mapping) else {"choices": value}


def _read(where: str, number: int, data: Row, values: Sequence[tuple[str, str, Any]], library: Library, id: str) -> Pair:
    """Return what annotators say about the fields of a task.

    Args:
        where: Place of the task, for messages.
        number: Number of the task.
        data: Fields of the task.
        values: (annotator, name of the control, value) for each answer.
        library: Documents by id and text.
        id: Id of the task.
    """
    ranked = [order for _, name, value in values if (order := _ranker(name, value)) is not None]
    if ranked:
        return _ranking(where, number, data, ranked, library, id)
    query, passage, document_id, rest = roles_of(data)
    answers: dict[str, Any] = {}
    for who, _, value in values:
        answer = _answer(value)
        if answer is not None:
            answers[who] = [*_list(answers[who]), *_list(answer)] if who in answers else answer
    text, about = read_text(data, query, where), read_text(data, passage, where) if passage else ""
    return answered(where, number, text, about, list(answers.items()), library, id=id, document_id=document_id, metadata=rest)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _answer(value: Any) -> Any:
    """Return the labels or the grade that a result gives, or None for a result of another kind, such as a marked span."""
    if not isinstance(value, Mapping):
        return None
    for kind in ("choices", "rating", "number"):
        if value.get(kind) is not None:
            return value[kind]
    paths = value.get("taxonomy")
    return [" > ".join(map(str, path)) for path in paths if isinstance(path, list)] if isinstance(paths, list) else None


def _ranker(name: str, value: Any) -> list[Any] | dict[str, list[Any]] | None:
    """Return the order of a ranker's result, or its buckets, or None for another result.

    A ranker without buckets has its own name, or none, before its order.
    """
    inside = value.get("ranker", value) if isinstance(value, Mapping) else None
    if isinstance(inside, Mapping) and inside and all(isinstance(ids, list) for ids in inside.values()):
        if "ranker" not in value and inside.keys() & {"choices", "taxonomy", "labels"}:
            return None
        return inside[name] if list(inside) == [name] else dict(inside)
    return inside if isinstance(inside, list) else None


def _ranking(where: str, number: int, data: Row, ranked: Sequence[Any], library: Library, id: str) -> Pair:
    """Read the buckets or the order of a ranker.

    What lies in a bucket is right, or wrong where its name says so. In an order, the last is wrong, and each place above is one better.
    """
    items = next((value for value in data.values() if isinstance(value, list) and all(isinstance(item, Mapping) for item in value)), [])
    ids = {}
    for item in items:
        own = id_in(item, "id")
        text = next((item[key] for key in ("body", "text", "page_content", "html", "title") if isinstance(item.get(key), str)), "")
        if not own or not text:
            raise DataError(where, f"has the item {shown(dict(item))}", expected="an id, and a body or a text")
        title = "" if item.get("title") == text else str(item.get("title") or "")
        ids[own] = library.add(text, id=own, title=title, where=where)
    grades: dict[str, int] = {}
    for inside in ranked:
        if isinstance(inside, list):
            buckets = {document: len(inside) - 1 - place for place, document in enumerate(map(id_of, inside)) if document}
        else:
            moved = ((name, id_of(own)) for name, own_ids in inside.items() if name != "_" for own in own_ids or ())
            buckets = {own: int(not _REJECTED.search(name)) for name, own in moved if own}
        for own, grade in buckets.items():
            if own not in ids:
                raise DataError(where, f"ranks {shown(own)}, which is no item of the task", expected=f"one of {', '.join(ids)}")
            grades[ids[own]] = max(grade, grades.get(ids[own], 0))
    query, _, _, rest = roles_of({key: value for key, value in data.items() if value is not items})
    return Pair(where, number, read_text(data, query, where), grades or None, id, "", rest)


SHAPES = (
    Shape("Label Studio", lambda keys, rows: "data" in keys and bool(keys & {"annotations", "completions"}), each_row(_task, "data")),
    Shape("Label Studio, JSON-MIN", lambda keys, rows: {"annotation_id", "lead_time"} <= keys, each_row(_flat)),
)
