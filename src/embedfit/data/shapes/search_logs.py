"""What people do with search results: Quepid's ratings, and logs of user behaviour in the UBI shape."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embedfit import console
from embedfit.data.cells import id_of, listed, read_grade, read_text, spelling
from embedfit.data.library import Library, check_known
from embedfit.data.shapes.shape import Lines, Shape, each_row, graded, id_in, source_of
from embedfit.data.texts import Pair, Row
from embedfit.errors import DataError, shown


def _fits_quepid(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    return {"query", "docid", "rating"} == {spelling(key) for key in keys}


def _quepid(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read a rating. A query, or a document of a snapshot, may be without one."""
    text = read_text(row, "query", where)
    if text[:1] == "'" and text[1:2] in ("=", "+", "-", "@"):  # so that a spreadsheet does not take it for a formula
        text = text[1:]
    document, rating = id_of(row.get("docid")), row.get("rating")
    if document is None or rating is None:
        yield Pair(where, number, text, None)
        return
    id = library.id_of(document.strip())
    if library.given:
        check_known(id, library.documents, where, "document")
    try:
        yield Pair(where, number, text, {id: read_grade(rating, negative=True)})
    except ValueError:
        raise DataError(where, f"rating {shown(rating)}", expected="a whole number") from None


def _fits_book(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    """Return whether rows have a column of ratings for each rater, by the rater's name or address."""
    raters = [key for key in keys if key not in ("query", "docid")]
    named = all(key[:1].isupper() or "@" in key or " " in key for key in raters)
    values = [row[key] for row in rows for key in raters if row.get(key) is not None]
    return {"query", "docid"} < keys and named and bool(values) and all(_rating(value) is not None for value in values)


def _book(where: str, number: int, row: Row, library: Library) -> Iterator[Pair]:
    """Read the ratings that several people gave to a document. The lower median counts."""
    ratings = {name: _rating(value) for name, value in row.items() if name not in ("query", "docid") and value is not None}
    for name, rating in ratings.items():
        if rating is None:
            raise DataError(where, f"rating {shown(row[name])} of {name}", expected="a number")
    middle = statistics.median_low(rating for rating in ratings.values() if rating is not None) if ratings else None
    flat = {"query": str(row.get("query") or "").strip(), "docid": row.get("docid"), "rating": middle}
    yield from _quepid(where, number, flat, library)


def _rating(value: Any) -> float | None:
    try:
        rating = float(value)
    except (TypeError, ValueError):
        return None
    return rating if not isinstance(value, bool) and abs(rating) <= _HIGHEST else None


_HIGHEST = 100
"""Highest rating that tells a rater's column from a column of counts or prices."""
_CHOSEN = {
    *("click", "itemclick", "productclick", "resultclick", "addtocart", "addtobasket", "purchase", "buy", "order", "checkout"),
    *(
        "like",
        "thumbsup",
        "accept",
        "bookmark",
        "favorite",
        "favourite",
        "save",
        "download",
        "watch",
        "select",
        "conversion",
        "open",
        "share",
    ),
}
"""Actions by which a user chooses a result, as `spelling` spells them."""
_REFUSED = {"dislike", "thumbsdown", "reject", "dismiss", "hide", "report", "removefromcart", "notrelevant"}
"""Actions by which a user refuses a result."""


def _fits_ubi(keys: frozenset[str], rows: Sequence[Row]) -> bool:
    sources = [row["_source"] for row in rows if isinstance(row.get("_source"), Mapping)]
    keys = keys | {key for source in sources for key in source}
    return {"action_name", "query_id"} <= keys or {"user_query", "query_response_hit_ids"} <= keys


def _ubi(lines: Lines, library: Library) -> Iterator[Pair | DataError]:
    """Read searches and events: what was chosen is right; what stood above it and was not chosen was seen and is not."""
    searches: dict[str, tuple[str, int, Row]] = {}
    events: dict[str, list[tuple[str, Row]]] = {}
    others: Counter[str] = Counter()
    place = ""
    for number, (where, row) in enumerate(lines, 1):
        row = row["_source"] if isinstance(row.get("_source"), Mapping) else row
        place = place or where
        id = id_in(row, "query_id")
        if not id:
            yield DataError(where, f"key 'query_id' is {shown(row.get('query_id'))}", expected="the id of a search")
        elif "action_name" in row:
            events.setdefault(id, []).append((where, row))
            if row.get("user_query"):
                searches.setdefault(id, (where, number, {"user_query": row["user_query"]}))
        else:
            before = searches.get(id)
            searches[id] = (where, before[1] if before else number, row)
    for id, (where, number, search) in searches.items():
        try:
            yield _search(where, number, search, events.pop(id, []), library, others)
        except DataError as error:
            yield error
    for left in events.values():
        yield from (DataError(at, "is an event of a search that is not in the log", fix="add the searches (ubi_queries)") for at, _ in left)
    if others:
        seen = ", ".join(f"{name} {count:,}" for name, count in others.most_common(5))
        console.note(f"{source_of(place)}: events that say neither yes nor no, and are left out: {seen}")


def _search(where: str, number: int, search: Row, events: Sequence[tuple[str, Row]], library: Library, others: Counter[str]) -> Pair:
    hits = search.get("query_response_hit_ids") or []
    if isinstance(hits, str):
        try:
            hits = listed(hits)
        except ValueError:
            hits = [hits]
        if isinstance(hits, str):
            hits = re.split(r"[\s,;|]+", hits.strip())
    shown_ids = [id for hit in (hits if isinstance(hits, list) else [hits]) if (id := id_of(hit))]
    right: list[str] = []
    wrong: list[str] = []
    for at, event in events:
        action, document = str(event["action_name"]), _object(event)
        if spelling(action) not in _CHOSEN | _REFUSED:
            others[action] += 1
        elif not document:
            raise DataError(at, f"action {action!r} has no event_attributes.object.object_id", expected="the id of a result")
        else:
            (right if spelling(action) in _CHOSEN else wrong).append(document)
    lowest = max((shown_ids.index(id) for id in right if id in shown_ids), default=0)
    wrong += [id for id in shown_ids[:lowest] if id not in right]
    known = {id: library.id_of(id) for id in (*right, *wrong)}
    for document in known.values() if library.given else ():
        check_known(document, library.documents, where, "document")
    text = read_text(search, "user_query", where)
    return Pair(where, number, text, graded((known[id] for id in right), (known[id] for id in wrong)) or None)


def _object(event: Mapping[str, Any]) -> str:
    attributes = event.get("event_attributes")
    own = attributes.get("object") if isinstance(attributes, Mapping) else None
    flat = next((event[key] for key in ("event_attributes.object.object_id", "object_id") if event.get(key) is not None), None)
    return id_in(own, "object_id", "internal_id") if isinstance(own, Mapping) else id_of(flat) or ""


SHAPES = (
    Shape("Quepid", _fits_quepid, each_row(_quepid)),
    Shape("Quepid, book", _fits_book, each_row(_book)),
    Shape("UBI", _fits_ubi, _ubi, mined=True),
)
