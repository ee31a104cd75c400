"""What a shape is: how its rows are recognised, and how they become labelled queries."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from embedfit.data.cells import id_of, listed, spelling, whole_number
from embedfit.data.columns import GRADE_OF_WORD
from embedfit.data.labels import says_no_answer
from embedfit.data.library import HINTS, Library, check_known
from embedfit.data.texts import Pair, Row
from embedfit.errors import DataError, did_you_mean, shown

Lines: TypeAlias = Iterable[tuple[str, Any]]


@dataclass(frozen=True)
class Shape:
    """A shape of rows.

    Attributes:
        name: Name of the tool, or of the shape.
        fits: Returns whether the first rows, of which the keys are given too, have this shape.
        pairs: Yields a pair or an error for what each row says; gets (place, row) for each row that is an object, and the documents.
        mined: Whether wrong documents may be right in another row, as negatives that a model mined are.
        passages: Returns the texts of a row that may be part of a longer document; None if there are none.
    """

    name: str
    fits: Callable[[frozenset[str], Sequence[Row]], bool]
    pairs: Callable[[Lines, Library], Iterator[Pair | DataError]]
    mined: bool = False
    passages: Callable[[Row], list[str]] | None = None


def source_of(where: str) -> str:
    """Return the name of the source in the place of a row, for notes; ``rows`` for rows in memory."""
    return re.sub(r"(:\d+|\[\d+\]|row \S+)$", "", where) or "rows"


def each_row(
    read: Callable[[str, int, Row, Library], Iterable[Pair]], *needed: str
) -> Callable[[Lines, Library], Iterator[Pair | DataError]]:
    """Return a function that reads rows one by one. A row that cannot be used, or lacks a needed key, becomes an error."""

    def pairs(lines: Lines, library: Library) -> Iterator[Pair | DataError]:
        for number, (where, row) in enumerate(lines, 1):
            try:
                for key in needed:
                    if key not in row:
                        raise DataError(where, f"key {key!r} is missing (keys: {', '.join(map(str, row))}){did_you_mean(key, row)}")
                yield from list(read(where, number, row, library))
            except DataError as error:
                yield error

    return pairs


def is_texts(value: Any) -> bool:
    """Return whether a value is a list of texts, or nothing."""
    return value is None or (isinstance(value, list) and all(isinstance(item, str) for item in value))


def texts_of(row: Row, key: str, where: str) -> list[str]:
    """Return the texts under a key: one, a list, or a list in a cell; none if the key is missing or null.

    Raises:
        DataError: There is something else, or an empty text.
    """
    value = row.get(key)
    if isinstance(value, str):
        try:
            value = listed(value)
        except ValueError:
            raise DataError(where, f"key {key!r} is {shown(value)}, which looks like a list but is none") from None
    texts = value if isinstance(value, list) else [] if value is None else [value]
    for text in texts:
        if not isinstance(text, str) or not text.strip():
            raise DataError(where, f"key {key!r} is {shown(row[key])}", expected="a text that is not empty, or a list of such texts")
    return texts


def id_in(row: Mapping[str, Any], *keys: str) -> str:
    """Return the first id under some keys; empty if there is none."""
    return next((id for key in keys if (id := id_of(row.get(key)))), "")


def passages_in(row: Row, key: str, where: str, library: Library) -> list[str]:
    """Return the ids of documents that a row brings along as objects with a text, and perhaps an id and a title.

    Raises:
        DataError: There is something else under the key.
    """
    value = row.get(key)
    ids = []
    for passage in value if isinstance(value, list) else [] if value is None else [value]:
        if not isinstance(passage, Mapping):
            raise DataError(where, f"key {key!r} is {shown(value)}", expected="a list of objects with a text")
        text = next((passage[name] for name in ("text", "contents", "passage", "body") if passage.get(name)), None)
        if not isinstance(text, str):
            raise DataError(where, f"key {key!r} has {shown(dict(passage))}", expected="an object with a text")
        id = id_in(passage, "docid", "passage_id", "psg_id", "doc_id", "id", "_id")
        ids.append(library.add(text, id=id, title=str(passage.get("title") or ""), where=where))
    return ids


def graded(right: Iterable[str], wrong: Iterable[str]) -> dict[str, int]:
    """Return the grades of right and wrong documents. A document in both lists is right."""
    grades = dict.fromkeys(right, 1)
    return grades | {id: 0 for id in wrong if id not in grades}


def rest_of(row: Row, *taken: str) -> dict[str, Any]:
    """Return the keys of a row that are not taken and not null."""
    return {key: value for key, value in row.items() if key not in taken and value is not None}


_JUDGEMENTS = {
    **GRADE_OF_WORD,
    **dict.fromkeys(("yes", "accept", "accepted", "correct", "match", "good", "right", "highlyrelevant", "exact"), 1),
    **dict.fromkeys(("no", "reject", "rejected", "incorrect", "nomatch", "bad", "wrong", "notmatch"), 0),
    "partiallyrelevant": 1,
    "somewhatrelevant": 1,
}
"""Answer of an annotator about a query and a document, as `spelling` spells it -> grade."""


def grade_of(value: Any) -> int | None:
    """Return the grade that an annotator's answer gives to a document, or None for another kind of answer."""
    value = whole_number(value)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, (bool, str)):
        word = spelling(value)
        return int(word) if word.isdecimal() and len(word) < 3 else _JUDGEMENTS.get(word)
    return max(value, 0) if isinstance(value, int) else None


def answered(
    where: str,
    number: int,
    text: str,
    passage: str,
    answers: Sequence[tuple[str, Any]],
    library: Library,
    *,
    id: str = "",
    document_id: str = "",
    metadata: Mapping[str, Any] | None = None,
) -> Pair:
    """Return what annotators say about a text, or about a text and a passage.

    About a passage they give a grade, of which the median counts. About a text alone they name labels, which all count as right.

    Args:
        where: Place of the row, for messages.
        number: Number of the row.
        text: Text of the query.
        passage: Text of the document; empty if there is none.
        answers: (annotator, answer) for each annotator: a label, a list of labels, or a grade.
        library: Documents by id and text.
        id: Id of the query.
        document_id: Id of the document, if the row has one.
        metadata: Further fields.

    Raises:
        DataError: An answer is no label, or a label is not among the documents.
    """
    further = dict(metadata or {})
    if len(answers) > 1:
        further["annotators"] = dict(answers)
    grades: dict[str, int] | None
    judgements = [grade for _, answer in answers if (grade := grade_of(answer)) is not None]
    if passage and (not answers or len(judgements) == len(answers)):
        document = library.add(passage, id=document_id, where=where)
        # A passage makes the row one judgement of several, so that its id is not the query's, and its metadata not either.
        return Pair(where, number, text, {document: statistics.median_low(judgements)} if judgements else None)
    labels = [label for _, answer in answers for label in (answer if isinstance(answer, list) else [answer])]
    grades = {} if answers else None
    for label in labels:
        name = id_of(label)
        if name is None:
            raise DataError(where, f"has the answer {shown(label)}", expected="a label, a list of labels, or a grade")
        if not says_no_answer(name):
            document = library.id_of(name.strip())
            if library.given:
                check_known(document, library.documents, where, "label", hint=number < HINTS)
            grades = {**(grades or {}), document: 1}
    return Pair(where, number, text, grades, id, "", further)
