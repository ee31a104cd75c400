"""Rows of one query as one query with several answers."""

from __future__ import annotations

from embedfit import console
from embedfit.data.texts import TEACHER_SCORES, Contents, Pair, Qrels, Query
from embedfit.errors import DataError, shown
from embedfit.files import json_bytes


def merged(pairs: list[Pair], source: str, errors: list[DataError], *, by_judgement: bool = False, mined: bool = False) -> Contents:
    """Return the queries and judgements of pairs, with the rows of a query merged, and without documents.

    Args:
        pairs: Labelled queries, one for each row. The list is emptied, since a million pairs are large.
        source: Name of the source, for notes.
        errors: List that receives the errors of rows that contradict each other.
        by_judgement: Whether a row is one judgement. Then rows with the same text are one query, whatever else they hold. Otherwise the
            same text with other metadata was asked on another occasion, and stays a query of its own.
        mined: Whether the wrong documents were mined by a model. Then a document that another row has as right is right.
    """
    groups: dict[tuple[str, ...] | str, Pair | list[Pair]] = {}
    for pair in pairs:
        occasion = "" if by_judgement or not pair.metadata or pair.id else json_bytes(sorted(pair.metadata.items())).decode()
        further = ("id", pair.id) if pair.id else ("text", pair.text, pair.part, occasion)
        key = further if pair.id or pair.part or occasion else pair.text
        earlier = groups.setdefault(key, pair)
        if isinstance(earlier, list):
            earlier.append(pair)
        elif earlier is not pair:
            groups[key] = [earlier, pair]
    pairs.clear()
    in_order = list(reversed(groups.values()))
    groups.clear()
    queries: dict[str, Query] = {}
    qrels: Qrels = {}
    parts: dict[str, list[str]] = {}
    several, rows, overruled, differing = [], 0, 0, dict[str, None]()
    while in_order:
        group = in_order.pop()
        first, *repeats = group if isinstance(group, list) else [group]
        id = first.id or f"q{first.number}"
        if id in queries:
            errors.append(DataError(first.where, f"id {id!r} occurs here a second time", expected="an id in each row, or in none"))
            continue
        grades, metadata, judged = first.grades or {}, first.metadata, first.grades is not None
        scores = dict(first.scores)
        if repeats:
            grades, places = dict(grades), dict.fromkeys(grades, first.where)
        for pair in repeats:
            try:
                overruled += _add_answers(pair, first, grades, places, by_judgement=by_judgement or mined, mined=mined)
            except DataError as error:
                errors.append(error)
                continue
            judged |= pair.grades is not None
            scores = {**pair.scores, **scores}
            unlike = {name for name in {**metadata, **pair.metadata} if metadata.get(name) != pair.metadata.get(name)}
            differing |= dict.fromkeys(sorted(unlike))
            metadata = {name: value for name, value in metadata.items() if name not in unlike}
        rows += len(repeats)
        if repeats and len(grades) > len(first.grades or {}) and not first.id:
            several.append(id)
        queries[id] = Query(id, first.text, {**metadata, TEACHER_SCORES: scores} if scores else metadata)
        if judged:
            qrels[id] = grades
        if first.part:
            parts.setdefault(first.part, []).append(id)
    if rows:
        left_out = f"; left out, as it differs between them: {', '.join(differing)}" if differing else ""
        console.note(f"{source}: rows whose answers were added to an earlier row with the same query: {rows:,}{left_out}")
    if overruled:
        console.note(f"{source}: negatives that another row of the same query has as right, and that count as right: {overruled:,}")
    several = [] if by_judgement or mined else several
    return Contents(queries, {}, qrels, {part: tuple(ids) for part, ids in parts.items()}, tuple(several))


def _add_answers(pair: Pair, first: Pair, grades: dict[str, int], places: dict[str, str], *, by_judgement: bool, mined: bool) -> int:
    """Add a row's answers to those of its query, and return the number of negatives that are right after all.

    Raises:
        DataError: The row contradicts an earlier row, is another query with the same id, or repeats a row with an id.
    """
    if pair.text != first.text or pair.part != first.part:
        other = f"another text, {shown(pair.text)}" if pair.text != first.text else f"another part, {shown(pair.part)}"
        raise DataError(pair.where, f"id {pair.id!r} occurs here a second time with {other}", expected="unique ids")
    own = pair.grades or {}
    overruled = [document for document, grade in own.items() if mined and (grade > 0) != (grades.get(document, grade) > 0)]
    for document, grade in own.items():
        if grades.get(document, grade) != grade and document not in overruled:
            problem = f"grade of {shown(document)} is {grade} here and {grades[document]} at {places[document]}"
            raise DataError(pair.where, problem, fix="leave one of the two rows")
    if pair.id and not by_judgement and own.keys() <= grades.keys():
        raise DataError(pair.where, f"id {pair.id!r} occurs here a second time with the same label", expected="unique ids")
    for document, grade in own.items():
        grades[document] = max(grade, grades.get(document, grade))
        places.setdefault(document, pair.where)
    return len(overruled)
