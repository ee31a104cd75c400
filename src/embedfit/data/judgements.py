"""Judgements that stand apart from queries and documents: TREC and BEIR files, and tables."""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from embedfit.data.cells import id_of, read_grade, spelling
from embedfit.data.columns import GRADE_COLUMNS
from embedfit.data.formats.compressed import without_compression
from embedfit.data.formats.encodings import carriage_return, read_lines
from embedfit.data.formats.opening import open_rows, suffix_of
from embedfit.data.formats.source import NO_OPTIONS, Options, Rows
from embedfit.errors import DataError, shown


class Judgement(NamedTuple):
    """What one line says: how relevant a document is to a query."""

    query: str
    document: str
    grade: int


_COLUMNS = {
    "query id": (("queryid", "qid", "topicid"), ("query", "topic")),
    "document id": (
        ("corpusid", "docid", "documentid", "passageid", "pid", "did", "docno", "corpusids"),
        ("corpus", "doc", "document", "passage"),
    ),
    "grade": (("label", *dict.fromkeys(map(spelling, GRADE_COLUMNS)), "rating"), ()),
}
"""Meaning of a column -> (its names as `spelling` spells them, names that count only if none of the first is present)."""
_RUN_COLUMNS = 6
"""Columns of a TREC run: query id, Q0, document id, rank, score, name of the run."""


def judgements_of(path: Path, queries: Container[str], options: Options = NO_OPTIONS) -> Iterator[tuple[str, Any]]:
    """Yield (place, judgement) or (place, error) for each judgement in a file.

    Args:
        path: File of judgements: lines of three columns or TREC's four, with or without a header; or a table with named columns.
        queries: Known ids of queries, by which a line is told from a header.
        options: What the user says about files.
    """
    if suffix_of(path) in (".tsv", ".txt", ".qrels", ".qrel", ".trec", ""):
        yield from _lines(path, queries, options)
    else:
        yield from judgements_in(open_rows(path, options))


def has_judgement_columns(names: Sequence[str]) -> bool:
    """Return whether a table with these columns holds judgements: ids of queries and documents, and no text."""
    places = _places(names)
    return bool(places["query id"] and places["document id"]) and len(names) <= _RUN_COLUMNS


def _places(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the positions of each column. A header is usable if each has one position."""
    spelt = [spelling(name) for name in names]
    places: dict[str, list[int]] = {}
    for column, (certain, perhaps) in _COLUMNS.items():
        places[column] = [place for place, name in enumerate(spelt) if name in certain]
        places[column] = places[column] or [place for place, name in enumerate(spelt) if name in perhaps]
    return places


def _wrong_header(where: str, seen: str, places: Mapping[str, Sequence[int]]) -> DataError:
    wrong = next(f"{len(found) or 'no'} columns" + f" of the {name}" for name, found in places.items() if len(found) != 1)
    expected = "one column each of query id, document id and grade"
    return DataError(where, f"is a header with {wrong}: {seen}", expected=expected, fix="name the columns query-id, corpus-id and score")


def judgements_in(table: Rows) -> Iterator[tuple[str, Any]]:
    """Yield the judgements of a table with named columns. Without a column of grades, each document is right."""
    header: list[str] = []
    for where, row in table.rows:
        if isinstance(row, DataError):
            yield where, row
            continue
        if not header:
            names = list(table.columns or row)
            places = _places(names)
            if not places["grade"]:
                places["grade"] = [len(names)]
            if any(len(found) != 1 for found in places.values()):
                yield where, _wrong_header(where, shown(", ".join(names)), places)
                return
            header = [[*names, ""][place] for [place] in places.values()]
        query, document = id_of(row.get(header[0])), id_of(row.get(header[1]))
        try:
            grade = read_grade(row.get(header[2]), negative=True) if header[2] else 1
            if query is None or document is None:
                raise ValueError
            yield where, Judgement(query, document, grade)
        except ValueError:
            yield where, DataError(where, f"is {shown(row)}", expected="a query id, a document id and a whole grade")


def _lines(path: Path, queries: Container[str], options: Options) -> Iterator[tuple[str, Any]]:
    header: list[int] | None = None  # positions of the three columns
    width = 0
    begun = False
    for number, line in read_lines(path, options.encoding):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        where = f"{path}:{number}"
        if "\r" in line:
            yield where, carriage_return(where)
            return
        cells = line.split("\t") if "\t" in line else line.split()
        first, begun = not begun, True
        if first:
            columns = _places(cells)
            if all(len(places) == 1 for places in columns.values()):
                header, width = [place for [place] in columns.values()], len(cells)
                continue
            if len(cells) == _RUN_COLUMNS and cells[1].casefold() == "q0":
                seen = f"is a TREC run, which ranks and does not judge: {shown(line)}"
                yield where, DataError(where, seen, expected="judgements", fix="give the qrels; 'embedfit compare' takes a run")
                return
            # A header has a word where a line has its grade. A grade that cannot be used is no header.
            if len(cells) >= 3 and cells[0] not in queries and not any(re.search(r"\d", cell) for cell in cells[2:]):
                yield where, _wrong_header(where, shown(line), columns)
                return
        if header and len(cells) == width:
            cells = [cells[place] for place in header]
        elif header:
            yield where, DataError(where, f"has {len(cells)} cells: {shown(line)}", expected=f"{width}, as in the header")
            continue
        elif len(cells) == 4:  # TREC's own form has an iteration column, and no header
            cells = [cells[0], cells[2], cells[3]]
        try:
            if len(cells) != 3:
                raise ValueError
            yield where, Judgement(cells[0], cells[1], read_grade(cells[2], negative=True))
        except ValueError:
            yield where, DataError(where, f"is {shown(line)}", expected="query id, document id, whole grade, by tabs")


def stem_of(path: Path) -> str:
    """Return a file's name without its suffixes, in lower case."""
    return Path(without_compression(path)).stem.lower()
