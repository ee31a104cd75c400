"""Records of Argilla 2 and Prodigy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embedfit.data.cells import id_of, listed, read_text
from embedfit.data.library import HINTS, Library, check_known
from embedfit.data.shapes.fields import roles_of
from embedfit.data.shapes.shape import Shape, answered, each_row, id_in
from embedfit.data.texts import Pair, Row
from embedfit.errors import DataError, shown

_PREFERRED = ("label", "labels", "category", "intent", "relevance", "relevant", "rating", "grade", "score", "class", "topic")
"""Names of the question that holds the label, the likeliest first. Otherwise the first question counts."""


def _record(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read a record as ``records.to_list()`` and ``to_json()`` write it: fields, metadata, suggestions, responses."""
    fields, responses = row["fields"], row.get("responses") or {}
    if not isinstance(fields, Mapping) or not isinstance(responses, Mapping):
        raise DataError(where, f"has the fields {shown(fields)}", expected="an object of fields, and one of responses")
    answers: dict[str, list[tuple[str, Any]]] = {}
    for question, given in responses.items():
        for place, response in enumerate(given if isinstance(given, list) else [given]):
            if isinstance(response, Mapping) and response.get("status") in (None, "submitted"):
                answers.setdefault(question, []).append((str(response.get("user_id", place)), response.get("value")))
    metadata = row.get("metadata")
    yield _about(where, number, {**fields}, metadata if isinstance(metadata, Mapping) else {}, answers, library, row)


def _flat_record(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read a record as ``to_list(flatten=True)`` and ``to_datasets()`` write it: ``label.responses``, ``label.responses.users`` ..."""
    answers: dict[str, list[tuple[str, Any]]] = {}
    row = {key: _list_in(value, key, where) if ".responses" in key and isinstance(value, str) else value for key, value in row.items()}
    for key, values in row.items():
        if key.endswith(".responses") and isinstance(values, list):
            users = row.get(f"{key}.users") or [str(place) for place in range(len(values))]
            statuses = row.get(f"{key}.status") or [None] * len(values)
            if not len(values) == len(users) == len(statuses):
                raise DataError(where, f"has {len(values)} answers and {len(users)} users under {key!r}", expected="as many of each")
            given = zip(values, users, statuses, strict=True)
            answers[key.removesuffix(".responses")] = [(str(user), value) for value, user, status in given if status in (None, "submitted")]
    about = ("id", "status", "_server_id", "score")
    fields = {key: value for key, value in row.items() if "." not in key and key not in about and value is not None}
    yield _about(where, number, fields, {}, answers, library, row)


def _list_in(cell: str, key: str, where: str) -> Any:
    """Return the list that a cell of a table holds."""
    try:
        return listed(cell)
    except ValueError:
        raise DataError(where, f"key {key!r} is {shown(cell)}, which looks like a list but is none") from None


def _about(
    where: str,
    number: int,
    fields: Row,
    metadata: Mapping[str, Any],
    answers: Mapping[str, Sequence[tuple[str, Any]]],
    library: Library,
    row: Row,
) -> Pair:
    query, passage, document_id, rest = roles_of({**fields, **{key: value for key, value in metadata.items() if key not in fields}})
    questions = [*(name for name in _PREFERRED if name in answers), *answers]
    values = [(user, value) for user, value in answers[questions[0]] if value is not None] if questions else []
    values = [] if row.get("status") == "discarded" else values
    text, about = read_text(fields, query, where), read_text(fields, passage, where) if passage in fields else ""
    return answered(where, number, text, about, values, library, id=id_in(row, "id"), document_id=document_id, metadata=rest)


_ANSWERS = ("accept", "reject", "ignore")


def _fits_prodigy(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    marks = keys & {"_task_hash", "_input_hash", "_view_id", "options", "accept"}
    return "answer" in keys and bool(marks) and all(row.get("answer") in _ANSWERS for row in rows if "answer" in row)


def _prodigy(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read a decision: an accepted label is right, a rejected one is not, and an ignored task says nothing."""
    answer = row.get("answer")
    if answer not in _ANSWERS:
        raise DataError(where, f"has the answer {shown(answer)}", expected="accept, reject or ignore")
    about = ("answer", "label", "options", "accept", "config", "spans", "tokens", "meta", "html", "style", "priority", "score")
    fields = {key: value for key, value in row.items() if key not in about and not key.startswith("_") and isinstance(value, str)}
    query, passage, document_id, _ = roles_of(fields)
    text, right = read_text(fields, query, where), int(answer == "accept")
    meta = row["meta"] if isinstance(row.get("meta"), Mapping) else {}
    if answer == "ignore":
        yield Pair(where, number, text, None)
    elif passage:
        document = library.add(read_text(fields, passage, where), id=document_id or id_in(meta, "doc_id", "document_id"), where=where)
        yield Pair(where, number, text, {document: right})
    elif isinstance(row.get("options"), list):
        options = {id: option.get("text") for option in row["options"] if isinstance(option, Mapping) and (id := id_of(option.get("id")))}
        accepted = row.get("accept") or []
        ids = [id_of(own) or "" for own in (accepted if isinstance(accepted, list) else [accepted])]
        unknown = [own for own in ids if own not in options]
        if unknown:
            raise DataError(where, f"accepts {shown(unknown[0])}, which is no option", expected=f"one of {', '.join(map(str, options))}")
        # Rejecting a task with options rejects what was chosen; a task that is accepted without a choice has no answer.
        yield Pair(where, number, text, {_label(own, options[own], library, where, number): right for own in ids})
    else:
        label = row.get("label")
        if not isinstance(label, str) or not label.strip():
            raise DataError(where, f"has the label {shown(label)}", expected="a label, options, or a passage")
        yield Pair(where, number, text, {_label(label.strip(), None, library, where, number): right})


def _label(id: str, text: Any, library: Library, where: str, number: int) -> str:
    if library.given:
        document = library.id_of(id)
        check_known(document, library.documents, where, "label", hint=number < HINTS)
        return document
    return library.add(text, id=id, where=where) if isinstance(text, str) and text.strip() and text != id else library.id_of(id)


def _fits_flat(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    return any(key.endswith(".responses") for key in keys)


SHAPES = (
    Shape("Argilla", lambda keys, rows: {"fields", "responses"} <= keys, each_row(_record, "fields")),
    Shape("Argilla, flat", _fits_flat, each_row(_flat_record)),
    Shape("Prodigy", _fits_prodigy, each_row(_prodigy), mined=True),
)
