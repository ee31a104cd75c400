"""BEIR's layout: corpus, queries and a folder of qrels."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.cells import read_grade, read_id, read_text, spelling
from embedfit.data.documents import HINTS, check_known, documents_of, metadata_of
from embedfit.data.formats.encodings import carriage_return, read_lines
from embedfit.data.formats.opening import open_rows, read_rows, with_last_error, without_errors
from embedfit.data.texts import PARTS, Contents, Qrels, Query
from embedfit.errors import DataError, shown


def read_beir(folder: Path, errors: list[DataError]) -> Contents:
    """Return the contents of a BEIR folder. The errors of bad rows are appended to ``errors``."""
    for name in ("corpus.jsonl", "queries.jsonl", "qrels"):
        if not (folder / name).exists():
            raise DataError(str(folder), f"has no {name}", expected="a BEIR folder: corpus.jsonl, queries.jsonl, qrels/*.tsv")
    corpus = documents_of(open_rows(folder / "corpus.jsonl"), errors)
    queries = queries_of(read_rows(folder / "queries.jsonl"), errors)
    qrels: Qrels = {}
    parts: dict[str, dict[str, None]] = {}
    places: dict[tuple[str, str], str] = {}
    repeated = 0
    for path in qrels_files(folder):
        judged: dict[str, set[str]] = {}
        for where, (query_id, document_id, grade) in without_errors(with_last_error(_judgements(path, queries)), errors):
            try:
                if query_id not in queries:
                    raise DataError(where, f"query {query_id!r} is not in queries.jsonl", fix="remove the line or add the query")
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
        part = {"validation": "dev", "valid": "dev", "val": "dev"}.get(path.stem.lower(), path.stem.lower())
        if part in PARTS:
            parts[part] = parts.get(part, {}) | dict.fromkeys(judged)
    if repeated:
        console.note(f"{folder}: lines of qrels that repeat another one: {repeated:,}")
    return Contents(queries, corpus, qrels, {part: tuple(ids) for part, ids in parts.items()})


def queries_of(rows: Iterator[tuple[str, Any]], errors: list[DataError]) -> dict[str, Query]:
    """Return the queries in some rows, by id.

    Args:
        rows: (place, row) or (place, error) for each query.
        errors: List that receives the errors of bad rows.
    """
    queries: dict[str, Query] = {}
    for where, row in without_errors(rows, errors):
        try:
            id = read_id(row, where)
            if not id:
                raise DataError(where, "key '_id' is missing", expected="an id for each query")
            if id in queries:
                raise DataError(where, f"query id {id!r} occurs here a second time", expected="unique ids")
            queries[id] = Query(id, read_text(row, "text", where), metadata_of(row, ("id", "_id", "text"), where))
        except DataError as error:
            errors.append(error)
    return queries


def qrels_files(folder: Path) -> list[Path]:
    """Return the TSV files under ``qrels/``, by name."""
    return sorted(path for path in (folder / "qrels").glob("*") if path.suffix.lower() == ".tsv")


_QRELS_COLUMNS = {
    "query id": (("queryid", "qid", "topicid"), ("query", "topic")),
    "document id": (("corpusid", "docid", "documentid", "passageid", "pid", "did", "docno"), ("corpus", "doc", "document", "passage")),
    "grade": (("score", "grade", "relevance", "relevancy", "label", "rel", "judgement", "judgment", "relevant", "isrelevant"), ()),
}
"""Meaning of a qrels column -> (its names without punctuation, names that count only if none of the first is present)."""


def _qrels_columns(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the positions of each qrels column in a header. The header is usable if each has one position."""
    spelt = [spelling(name) for name in names]
    places: dict[str, list[int]] = {}
    for column, (certain, perhaps) in _QRELS_COLUMNS.items():
        places[column] = [place for place, name in enumerate(spelt) if name in certain]
        places[column] = places[column] or [place for place, name in enumerate(spelt) if name in perhaps]
    return places


def _judgements(path: Path, queries: Mapping[str, Query]) -> Iterator[tuple[str, Any]]:
    """Yield (where, (query id, document id, grade)) or (where, error) for each line of a file of qrels."""
    header: list[int] | None = None  # positions of the three columns
    width = 0
    begun = False
    for number, line in read_lines(path):
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
            columns = _qrels_columns(cells)
            if all(len(places) == 1 for places in columns.values()):
                header, width = [place for [place] in columns.values()], len(cells)
                continue
            # A header has a word where a line has its grade. A grade that cannot be used is no header.
            if len(cells) >= 3 and cells[0] not in queries and not any(re.search(r"\d", cell) for cell in cells[2:]):
                wrong = next(f"{len(places) or 'no'} columns" + f" of the {name}" for name, places in columns.items() if len(places) != 1)
                problem = f"is a header with {wrong}: {shown(line)}"
                fix = "name the columns query-id, corpus-id and score"
                yield where, DataError(where, problem, expected="one column each of query id, document id and grade", fix=fix)
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
            yield where, (cells[0], cells[1], read_grade(cells[2], negative=True))
        except ValueError:
            yield where, DataError(where, f"is {shown(line)}", expected="query id, document id, whole grade, by tabs")
