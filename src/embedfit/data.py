"""Queries, documents and the judgements between them, from the files people have.

Every reader ends in one `Dataset`; `write_beir` and `write_jsonl` write it back without loss.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import hashlib
import io
import itertools
import json
import re
import sys
import tokenize
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from embedfit import console
from embedfit.errors import ConfigError, DataError, OfflineError, StorageError, did_you_mean, shown
from embedfit.files import writing as writing  # the stages write with it
from embedfit.records import RecordType, Template, record_type

if TYPE_CHECKING:
    import pandas as pd

Row: TypeAlias = dict[str, Any]
Qrels: TypeAlias = dict[str, dict[str, int]]
"""Query id -> {document id: grade}; a grade of 0 means judged and not relevant."""

PARTS = ("train", "dev", "test")
DOCUMENT_TEMPLATE = "{title} {text}"


@dataclass(frozen=True, slots=True)
class Query:
    """A text to search with."""

    id: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Document:
    """A text to find."""

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def fields(self) -> dict[str, Any]:
        """What a document template may name: the metadata, and id, title and text."""
        return {**self.metadata, "id": self.id, "title": self.title, "text": self.text}


@dataclass(frozen=True)
class Dataset:
    """Queries, the corpus they search, and which documents are right for which query.

    Attributes:
        queries: By id. A query without qrels is kept, but takes no part in tuning or scoring.
        corpus: By id.
        qrels: Query id -> {document id: grade}.
        parts: Official parts, if the data came with any: ``train``, ``dev``, ``test`` -> query ids.
        merged: Ids of the queries that `load` made of several rows with the same text, no id, and different answers.
    """

    queries: dict[str, Query]
    corpus: dict[str, Document]
    qrels: Qrels
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    merged: tuple[str, ...] = field(default=(), compare=False, repr=False)

    @property
    def judged(self) -> tuple[str, ...]:
        """Ids of the queries with at least one relevant document, in their order."""
        return tuple(id for id in self.queries if self.relevant(id))

    def relevant(self, query_id: str) -> dict[str, int]:
        """Return the documents that are right for a query, with their grades (all above 0)."""
        return {id: grade for id, grade in self.qrels.get(query_id, {}).items() if grade > 0}

    def select(self, query_ids: Iterable[str]) -> Dataset:
        """Return the data set of these queries alone, on the same corpus."""
        ids = list(query_ids)
        return Dataset({id: self.queries[id] for id in ids}, self.corpus, {id: self.qrels[id] for id in ids if id in self.qrels})

    def query_texts(self) -> list[str]:
        """Return the text of every query, in order."""
        return [query.text for query in self.queries.values()]

    def document_texts(self, template: str = DOCUMENT_TEMPLATE) -> list[str]:
        """Return what each document says under a template over its fields, in order.

        Raises:
            ConfigError: The template names a field that no document has.
            DataError: A document says nothing under it.
        """
        parsed = Template(template)
        parsed.check({name for document in self.corpus.values() for name in document.fields})
        texts = [parsed.render(document.fields) for document in self.corpus.values()]
        for id, text in zip(self.corpus, texts, strict=True):
            if not text:
                raise DataError(f"document {id!r}", f"is empty under the template {template!r}", fix="use another field")
        return texts

    def digest(self) -> str:
        """Return a hash of everything in the data set."""
        sha = hashlib.sha256()
        for query in self.queries.values():
            sha.update(_json([query.id, query.text, dict(query.metadata)]))
        for document in self.corpus.values():
            sha.update(_json([document.id, document.text, document.title, dict(document.metadata)]))
        sha.update(_json([self.qrels, self.parts]))
        return sha.hexdigest()

    def to_frame(self) -> pd.DataFrame:
        """Return one row per judged pair: query id, query, document id, grade."""
        import pandas as pd

        rows = [(id, self.queries[id].text, document, grade) for id, grades in self.qrels.items() for document, grade in grades.items()]
        return pd.DataFrame(rows, columns=["query_id", "query", "document_id", "grade"])

    def __repr__(self) -> str:
        return f"Dataset({len(self.queries):,} queries, {len(self.corpus):,} documents)"


def normalised(text: str) -> str:
    """Return a text as compared for identity: compatible characters, case and white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_key(text: str) -> str:
    """Return a short hash of a normalised text: what a tuned model remembers of the queries it was trained on."""
    return hashlib.blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


# Reading


GRADE_COLUMNS = (
    *("grade", "relevance", "relevance_grade", "relevance_score", "relevance_label", "relevance_judgement", "relevance_judgment"),
    *(
        "graded_relevance",
        "relevant",
        "is_relevant",
        "relevancy",
        "relevancy_score",
        "rel",
        "qrel",
        "qrels",
        "judgement",
        "judgment",
        "score",
    ),
)
"""Names of a column of grades. Where there are several, the first of these."""

_PERHAPS_GRADES = (
    *("rating", "gold", "gold_score", "gold_label", "label", "target", "correct", "is_correct", "match", "is_match"),
    *("positive", "is_positive", "is_duplicate", "duplicate", "is_answer"),
)
"""Names of a column that holds grades if its values look like them. ``label`` and ``target`` may also hold the numbers of classes."""

_GRADE_OF_WORD = {"true": 1, "false": 0, "relevant": 1, "irrelevant": 0, "nonrelevant": 0, "notrelevant": 0}
_OTHER_JUDGEMENTS = ("0", "1", "-1", "yes", "no", "positive", "negative", "correct", "incorrect", "match", "nomatch")
"""What says whether a document is right, but not always of the label: the words are refused as grades rather than guessed at."""

SEPARATORS = (";", "|", "\n", "\t", "\uff1b", "\uff5c", "\u3001", "\uff0c", ",")
"""What may stand between the labels of one cell, also in Chinese and Japanese. A comma is part of many names, so it comes last."""

_SIGNS = ("/", "+", "&", ">", "\u2022", "\u00b7", " - ", " \u2013 ", " \u2014 ", " and ")
"""What may stand there too, but mostly is part of a name: it counts only where the labels beside it are known."""

_ANY_SEPARATOR = re.compile("|".join(map(re.escape, (*SEPARATORS, *_SIGNS))))


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
        dataset = _read_beir(Path(source), found)
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
    corpus = _read_documents(documents, found) if documents else {}
    lines = list(_to_the_end(_rows(source)))
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
            id = _id(row, where)
            text = record.text(_fields(row, record, grade_column), where) if record else _text(row, query, where)
            labels, cell = _labels(row, label, separator, corpus, where)
            grades = _grades(row, label, labels, grade_column, corpus, where, by_name=grade is None)
            if documents and not (cell and _joined_by(cell, corpus)[1]):
                for document in grades:
                    _known_document(document, corpus, where, "label", hint=len(found) < _HINTS)
            part = row.get("part")
            if part is not None and part not in PARTS:
                raise DataError(where, f"part is {shown(part)}", expected="train, dev or test")
            taken = ("id", "_id", query, label, "part", "" if isinstance(labels, dict) else grade_column)
            pairs.append(_Pair(where, id or f"q{number}", bool(id), text, part or "", _metadata(row, taken, where), grades, cell))
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
    spelt = {_spelling(name): name for name in names}
    for column in (spelt[_spelling(name)] for name in GRADE_COLUMNS if _spelling(name) in spelt):
        return str(column)
    for name in _PERHAPS_GRADES:
        if _spelling(name) in spelt:
            column = spelt[_spelling(name)]
            values = {_judgement(row[column]) for _, row in rows if row.get(column) is not None}
            judged = all(value in _GRADE_OF_WORD or value in _OTHER_JUDGEMENTS for value in values)
            numbers = name not in ("label", "target") and all(re.fullmatch(r"[-+]?\d+(\.\d*)?", value) for value in values)
            if values and (judged or numbers):
                return str(column)
    return ""


def _judgement(value: Any) -> str:
    """Return a value of a column as it is compared with what says whether a document is right."""
    word = str(_whole(value)).strip()
    return re.sub(r"(?<=\d)\.0*$", "", word) if re.match(r"[-+]?\d", word) else _spelling(word)


def _one_label_a_cell(pairs: list[_Pair], corpus: Mapping[str, Document] | None, found: list[DataError]) -> list[_Pair]:
    """Return the pairs without those whose cell holds several labels, or a label that is another one written otherwise."""
    places = {label: pair.where for pair in reversed(pairs) for label in pair.grades}
    known: Mapping[str, Any] = places if corpus is None else corpus
    joined: dict[str, list[_Pair]] = {}
    for pair in pairs:
        separator, parts = _joined_by(pair.cell, known) if pair.cell and (corpus is None or pair.cell not in corpus) else ("", [])
        if parts:
            joined.setdefault(separator, []).append(pair)
    for separator, group in joined.items():
        first = group[0]
        count = len(_joined_by(first.cell, known)[1])
        more = f" ({len(group):,} rows have such cells)" if len(group) > 1 else ""
        problem = f"label {shown(first.cell)} holds {count} labels, most of which stand alone elsewhere{more}"
        fix = f"set separator = {json.dumps(separator, ensure_ascii=False)} in [data]; or if it is one label, write it as a JSON list"
        if not separator:
            fix = "write them as a JSON list, as no single sign stands between them; or if it is one label, as a list of one"
        found.append(DataError(first.where, problem, fix=fix))
    if corpus is None:
        for label, where in places.items():
            whole = _without_point(label)
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
        said = ("id", pair.id) if pair.has_id else ("text", pair.text, pair.part, _json(sorted(pair.metadata.items())).decode())
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


def read_documents(path: str | Path) -> dict[str, Document]:
    """Read a file of documents, as `load` does.

    Raises:
        DataError: A row cannot be used.
    """
    found: list[DataError] = []
    corpus = _read_documents(path, found)
    if found:
        raise found[0]
    return corpus


def _read_documents(path: str | Path, found: list[DataError]) -> dict[str, Document]:
    corpus: dict[str, Document] = {}
    for where, row in _collected(_rows(path), found):
        try:
            if "text" not in row and "category" in row:
                # The categories.json shape: the name is both the id and what the document says by itself.
                text = _text(row, "category", where)
                document = Document(text, text, "", row)
            else:
                title = _title(row, where)
                # Public sets have documents that are a title and no more.
                text = "" if title and row.get("text") == "" else _text(row, "text", where)
                id = _id(row, where)
                if not id:
                    raise DataError(where, "key 'id' is missing", expected="an id for each document")
                document = Document(id, text, title, _metadata(row, _DOCUMENT_KEYS, where))
            if document.id in corpus:
                raise DataError(where, f"document id {document.id!r} stands here a second time", expected="ids that differ")
        except DataError as error:
            found.append(error)
            continue
        corpus[document.id] = document
    return corpus


_DOCUMENT_KEYS = ("id", "_id", "text", "title")


def _read_beir(folder: Path, found: list[DataError]) -> Dataset:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels"):
        if not (folder / name).exists():
            raise DataError(str(folder), f"has no {name}", expected="a BEIR folder: corpus.jsonl, queries.jsonl, qrels/*.tsv")
    corpus = _read_documents(folder / "corpus.jsonl", found)
    queries: dict[str, Query] = {}
    for where, row in _collected(_rows(folder / "queries.jsonl"), found):
        try:
            id = _id(row, where)
            if not id:
                raise DataError(where, "key '_id' is missing", expected="an id for each query")
            if id in queries:
                raise DataError(where, f"query id {id!r} stands here a second time", expected="ids that differ")
            queries[id] = Query(id, _text(row, "text", where), _metadata(row, ("id", "_id", "text"), where))
        except DataError as error:
            found.append(error)
    qrels: Qrels = {}
    parts: dict[str, dict[str, None]] = {}
    places: dict[tuple[str, str], str] = {}
    repeated = 0
    for path in _qrels_files(folder):
        judged: dict[str, set[str]] = {}
        for where, (query_id, document_id, grade) in _collected(_to_the_end(_judgements(path, queries)), found):
            try:
                if query_id not in queries:
                    raise DataError(where, f"query {query_id!r} is not in queries.jsonl", fix="remove the line or add the query")
                _known_document(document_id, corpus, where, "document", hint=len(found) < _HINTS)
                grades = qrels.setdefault(query_id, {})
                if grades.get(document_id, grade) != grade:
                    before = f"{grades[document_id]} at {places[query_id, document_id]}"
                    problem = f"grade of document {document_id!r} for query {query_id!r} is {grade} here and {before}"
                    raise DataError(where, problem, fix="leave one of the two lines")
            except DataError as error:
                found.append(error)
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
    return Dataset(queries, corpus, qrels, {part: tuple(ids) for part, ids in parts.items()})


def _qrels_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "qrels").glob("*") if path.suffix.lower() == ".tsv")


_QRELS_COLUMNS = {
    "query id": (("queryid", "qid", "topicid"), ("query", "topic")),
    "document id": (("corpusid", "docid", "documentid", "passageid", "pid", "did", "docno"), ("corpus", "doc", "document", "passage")),
    "grade": (("score", "grade", "relevance", "relevancy", "label", "rel", "judgement", "judgment", "relevant", "isrelevant"), ()),
}
"""What a column of qrels holds -> its names, without signs; then names that count only where none of those is there."""


def _spelling(name: Any) -> str:
    """Return the name of a column as it is compared: in small letters, without white space, hyphens and underscores."""
    return re.sub(r"[\s_-]+", "", str(name)).casefold()


def _qrels_columns(names: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of each column of qrels in a header. One place for each means that the header can be read."""
    spelt = [_spelling(name) for name in names]
    places: dict[str, list[int]] = {}
    for column, (certain, perhaps) in _QRELS_COLUMNS.items():
        places[column] = [place for place, name in enumerate(spelt) if name in certain]
        places[column] = places[column] or [place for place, name in enumerate(spelt) if name in perhaps]
    return places


def _judgements(path: Path, queries: Mapping[str, Query]) -> Iterator[tuple[str, Any]]:
    """Yield (where, (query id, document id, grade)) or (where, error) for each line of a file of qrels."""
    header: list[int] | None = None  # places of the three columns
    width = 0
    begun = False
    for number, line in _lines(path):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        where = f"{path}:{number}"
        if "\r" in line:
            yield where, _carriage_return(where)
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
            yield where, (cells[0], cells[1], _grade(cells[2]))
        except ValueError:
            yield where, DataError(where, f"is {shown(line)}", expected="query id, document id, whole grade, by tabs")


def _carriage_return(where: str) -> DataError:
    fix = "save it with Unix or Windows line ends"
    return DataError(where, "has a carriage return alone", expected="lines that end in a line feed", fix=fix)


def _collected(rows: Iterator[tuple[str, Any]], found: list[DataError]) -> Iterator[tuple[str, Any]]:
    """Pass good rows on, put those that are errors aside."""
    for where, row in rows:
        if isinstance(row, DataError):
            found.append(row)
        else:
            yield where, row


def _to_the_end(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Pass rows on, and as the last one an error that makes the rest of the file unreadable: it must not hide those before it."""
    begun = False
    try:
        for row in rows:
            begun = True
            yield row
    except DataError as error:
        if not begun:
            raise
        yield error.where, error


def _rows(source: str | Path) -> Iterator[tuple[str, Row | DataError]]:
    """Yield (where, row) for each row of a file, or (where, error) for a broken one."""
    if str(source).startswith("hub:"):
        yield from _hub_rows(str(source))
        return
    path = Path(source)
    readers: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".json": _json_rows,
        ".csv": lambda path: _csv_rows(path, ","),
        ".tsv": _tsv_rows,
        ".parquet": _parquet_rows,
    }
    if path.is_dir():
        raise DataError(str(path), "is a folder", expected="a file")
    if not path.is_file():
        near = (
            [other for other in path.parent.iterdir() if other.is_dir() or other.suffix.lower() in readers] if path.parent.is_dir() else []
        )
        hint = did_you_mean(path.name, [other.name for other in near if other.is_file() or (other / "corpus.jsonl").exists()])
        raise DataError(str(path), f"does not exist{hint}", fix="give a file, a BEIR folder, or hub:owner/name")
    if path.suffix.lower() not in readers:
        raise DataError(str(path), f"ends in {path.suffix!r}", expected=", ".join(readers))
    empty = True
    try:
        for where, row in readers[path.suffix.lower()](path):
            empty = False
            if not isinstance(row, (dict, DataError)):
                row = DataError(where, f"is {shown(row)}", expected="an object with named keys")
            yield where, row
    except OSError as error:
        raise DataError(str(path), f"cannot be read: {error.strerror or error}") from None
    if empty:
        raise DataError(str(path), "is empty", expected="at least one row")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) with line ends and without a byte order mark."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        file.seek(0)
        for mark, encoding in _MARKS.items():
            if head.startswith(mark):
                encoding = encoding[:6]  # with its mark, which iconv then takes away
            elif not _has_zeros(head, encoding):
                continue
            raise DataError(str(path), f"is {encoding}", expected="UTF-8", fix=_conversion(path, encoding))
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}",
                    f"is not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})",
                    expected="UTF-8",
                    fix=_conversion(path, _WESTERN) if _is_western(head) and _is_western(raw) else _UNKNOWN_ENCODING,
                ) from None
            yield number, line


_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32LE",
    b"\x00\x00\xfe\xff": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
}
"""Byte order mark -> encoding. The mark of UTF-16LE begins that of UTF-32LE, so the longer ones come first."""

_WESTERN = "WINDOWS-1252"
_UNKNOWN_ENCODING = "save it as UTF-8 where it was written ('CSV UTF-8' in Excel), or convert it from the encoding that it really has"


def _conversion(path: Path, encoding: str) -> str:
    return f"iconv -f {encoding} -t UTF-8 {path.name} > fixed{path.suffix}"


def _has_zeros(head: bytes, encoding: str) -> bool:
    """Return whether bytes have zeros where mostly Latin text in an encoding of two or four bytes has them."""
    width, low = int(encoding[4:6]) // 8, 0 if encoding.endswith("LE") else int(encoding[4:6]) // 8 - 1
    shares = [head[place::width].count(0) / max(1, len(head[place::width])) for place in range(width)]
    return len(head) >= 2 * width and shares[low] < 0.1 and all(share > 0.5 for place, share in enumerate(shares) if place != low)


def _is_western(raw: bytes) -> bool:
    """Return whether all bytes beyond ASCII are single letters that read the same in all the Latin code pages of Windows.

    Scripts with two bytes for each sign, and code pages of other alphabets, have such bytes side by side.
    """
    for match in re.finditer(rb"[\x80-\xff]+", raw):
        readings = {match[0].decode(page, "replace") for page in ("cp1252", "cp1250", "cp1254", "cp1257")}
        if len(match[0]) > 1 or len(readings) > 1 or not readings.pop().isalpha():
            return False
    return True


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield where, _parsed(line)
        except (ValueError, RecursionError) as error:
            if re.search(r"[}\]]\r\s*[{\[]", line):
                yield where, _carriage_return(where)
                continue
            problem = f"is not JSON ({_json_problem(error)}): {shown(line.rstrip())}"
            yield where, DataError(where, problem, expected="one JSON object per line")


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = "".join(line for _, line in _lines(path))
    if not text.strip():
        return
    try:
        rows = _parsed(text)
    except (ValueError, RecursionError) as error:
        raise DataError(str(path), f"is not JSON ({_json_problem(error)})", expected="a JSON list of objects") from None
    if not isinstance(rows, list):
        raise DataError(str(path), f"is {shown(rows)}", expected="a JSON list of objects")
    yield from ((f"{path}[{index}]", row) for index, row in enumerate(rows))


def _parsed(text: str) -> Any:
    value = json.loads(text, object_pairs_hook=_with_distinct_keys)
    if "\\u" in text:  # may be half a character (a lone surrogate), which no tokenizer and no file takes: a ValueError
        _json(value)
    return value


def _with_distinct_keys(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"key {name!r} stands twice in an object")
    return row


def _json_problem(error: ValueError | RecursionError) -> str:
    """Return what is wrong with JSON, without the line number that it has within its own line."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    lines: list[str] = []  # of the row that is being read

    def each_line() -> Iterator[str]:
        for _, line in _lines(path):
            lines.append(line)
            yield line

    reader = csv.reader(each_line(), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    rows: list[tuple[int, list[str]]] = []
    problem = None
    try:
        for cells in reader:
            number = reader.line_num - len(lines) + 1
            lines.clear()
            if header is None:
                header = _header(cells, f"{path}:{number}")
            elif any(cells):
                rows.append((number, cells))
    except csv.Error as error:
        number = reader.line_num - len(lines) + 1 + _open_quote("".join(lines), delimiter)
        fix = "close the quote; a quote within a quoted cell is written twice"
        expected, seen = "quotes that close, in the cell that begins here", str(error)
        if seen.startswith("new-line character"):
            fix, expected, seen = (
                "save it with Unix or Windows line ends",
                "lines that end in a line feed",
                "it has a carriage return alone",
            )
        problem = DataError(f"{path}:{number}", f"is not CSV ({seen})", expected=expected, fix=fix)
    except DataError as error:  # such as text that is not UTF-8, after rows that may have problems of their own
        if not rows:
            raise
        problem = error
    swallowed = _swallowed([cells for _, cells in rows], len(header or ()), delimiter)
    for place, (number, cells) in enumerate(rows):
        if place in swallowed:
            before, cell = swallowed[place]
            seen = f"begins a cell of {cell.count(chr(10)) + 1:,} lines that read like rows of their own: {shown(cell)}"
            fix = "close the quote that begins the cell, or double it; if it really is one cell, write the file as JSONL"
            number += before
            yield f"{path}:{number}", DataError(f"{path}:{number}", seen, expected="quotes that close", fix=fix)
        else:
            yield f"{path}:{number}", _cells_by_name(header or [], cells, f"{path}:{number}")
    if problem is not None:
        yield problem.where, problem


def _open_quote(text: str, delimiter: str) -> int:
    """Return in which line of a broken row, from 0, the quote stands that does not close where a cell ends."""
    place = 0
    while place < len(text):
        if text[place] != '"':
            end = re.compile(rf"[{re.escape(delimiter)}\r\n]").search(text, place)
            place = end.end() if end else len(text)
            continue
        quoted = re.compile('"[^"]*(?:""[^"]*)*"').match(text, place)
        if quoted is None or text[quoted.end() : quoted.end() + 1] not in ("", delimiter, "\r", "\n"):
            break
        place = quoted.end() + 1
    return text.count("\n", 0, place)


_MANY_ROWS = 30
"""In so many rows, a column of labels has most of its values more than once."""


def _swallowed(rows: Sequence[Sequence[str]], width: int, delimiter: str) -> dict[int, tuple[int, str]]:
    """Return the cells that hold whole rows: place of the row -> (lines of the row before the cell, cell).

    A quote that never closes runs on to the next quote at the end of a cell, which may be many rows further. Each line of such a
    cell has as many cells as the header. Lines of prose may have as many by chance. So at least half of those with a delimiter must
    repeat a value of a column in which values repeat, such as the label's. In a file of few rows it is enough that no cell is
    empty or begins with a blank, and that most lines have a delimiter that is not within a number.

    A single line with a delimiter is no sign of rows by itself: the cell must also stand in the column of labels, or end in a number,
    whose sign for inches may have closed the quote.
    """
    suspects = []
    for place, cells in enumerate(rows):
        for column, cell in enumerate(cells) if len(cells) == width > 1 else ():
            # The cells before this one are those of its first line, and those behind it of its last.
            texts = [line.rstrip("\r") for line in cell.split("\n")]
            first, *rest = ([*enumerate(line.split(delimiter))] for line in texts)
            lines = [[(column + number, value) for number, value in first], *rest]
            if rest and len(first) == width - column and len(lines[-1]) == column + 1 and all(len(line) == width for line in lines[1:-1]):
                suspects.append((place, column, texts, lines))
    if not suspects:
        return {}
    values = [Counter(cells[column] for cells in rows if len(cells) == width and cells[column]) for column in range(width)]
    repeating = [2 * sum(count for count in counts.values() if count > 1) >= sum(counts.values()) > 1 for counts in values]
    few = len(rows) < _MANY_ROWS or not any(repeating)
    within_number = re.compile(rf"(?<=\d){re.escape(delimiter)}(?=\d)")
    found = {}
    for place, column, texts, lines in suspects:
        like_rows = [line for line in lines if len(line) > 1]
        if len(like_rows) < 2 and not (repeating[column] or texts[-1][-1:].isdigit()):
            continue
        repeats = sum(any(repeating[name] and value in values[name] for name, value in line) for line in like_rows)
        parted = sum(delimiter in within_number.sub("", text) for text in texts)
        whole = all(value and not value[0].isspace() for line in lines for _, value in line)
        if 2 * repeats >= len(like_rows) or (few and whole and 2 * parted > len(like_rows)):
            cells = rows[place]
            found[place] = (sum(cell.count("\n") for cell in cells[:column]), cells[column])
    return found


def _header(names: Sequence[str], where: str) -> list[str]:
    """Return the names of the columns, without white space around them.

    Raises:
        DataError: One stands twice, so that a column would win over another.
    """
    header = [name.strip() for name in names]
    _check_distinct(header, where)
    return header


def _check_distinct(names: Iterable[str], where: str) -> None:
    first: dict[str, str] = {}
    for name in names:
        key = name.strip().casefold()
        if key and key in first:
            raise DataError(where, f"column {name!r} stands beside column {first[key]!r}", expected="names that differ", fix="rename one")
        first[key] = name


def _cells_by_name(header: Sequence[str], cells: Sequence[str], where: str) -> Row | DataError:
    if len(cells) != len(header):
        return DataError(where, f"has {len(cells)} cells", expected=f"{len(header)}, as in the header")
    row = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
    if "" in row and header.count("") > 1:
        return DataError(where, f"has {shown(row[''])} in a column without a name", expected="a name for each column")
    return row


_QUOTED = re.compile('"(?=[^"]*"")(?:[^"]|"")*"')
"""A cell in quotes that holds a doubled quote, as it is written where cells are quoted."""


def _tsv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file of cells between tabs, in which a quote is a sign like others.

    pandas and Excel quote such files all the same. Where all cells are quoted, the header too, the file is read as CSV with tabs.
    Where each cell with a quote is written as they write it, the quotes are taken away.
    """
    lines = [(number, line.rstrip("\r\n").split("\t")) for number, line in _lines(path)]
    lines = [(number, cells) for number, cells in lines if any(cells)]
    if not lines:
        return
    if len(lines) == 1 and any("\r" in cell for cell in lines[0][1]):
        raise _carriage_return(f"{path}:{lines[0][0]}")
    (number, names), *rows = lines
    if all(re.fullmatch('"[^"]+"', name) for name in names):
        yield from _csv_rows(path, "\t")
        return
    header = _header(names, f"{path}:{number}")
    with_quotes = [cell for _, cells in rows for cell in cells if '"' in cell]
    quoted = bool(with_quotes) and all(_QUOTED.fullmatch(cell) and re.search(r"\w", cell) for cell in with_quotes)
    if quoted:
        console.note(f"{path}: cells that were quoted as in CSV, and have lost these quotes: {len(with_quotes):,}")
    for number, cells in rows:
        where = f"{path}:{number}"
        row = _cells_by_name(header, [cell[1:-1].replace('""', '"') if quoted and '"' in cell else cell for cell in cells], where)
        if isinstance(row, DataError) and any(cell.count('"') % 2 for cell in cells):
            fix = "a tab or the end of a line cannot stand within a cell of TSV, quoted or not; write CSV or JSONL"
            row = DataError(where, row.problem, expected=row.expected, fix=fix)
        yield where, row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
        _check_distinct(schema.names, str(path))
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        names_of = _class_names(described.get("info", {}).get("features", {}))
        number = 0
        for batch in file.iter_batches():
            for row in _batch_rows(batch):
                number += 1
                where = f"{path}:{number}"
                try:
                    if isinstance(row, KeyError):
                        raise DataError(where, f"has a map with a key twice ({row.args[0]})", expected="each key once")
                    yield where, {key: value for key, value in _with_names(row, names_of, where).items() if value is not None}
                except DataError as error:
                    yield where, error
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, AttributeError) as error:
        raise DataError(str(path), f"is not Parquet ({error})") from None


def _batch_rows(batch: Any) -> Iterator[Row | KeyError]:
    try:
        yield from batch.to_pylist(maps_as_pydicts="strict")
    except KeyError as error:
        if batch.num_rows == 1:
            yield error
            return
        for offset in range(batch.num_rows):
            yield from _batch_rows(batch.slice(offset, 1))


def _class_names(features: Any) -> dict[str, list[str]]:
    """Return the names of classes by column, from what the datasets library writes about its features."""
    found = {}
    for column, feature in features.items() if isinstance(features, dict) else ():
        while isinstance(feature, dict) and isinstance(feature.get("feature"), dict):  # a list of them
            feature = feature["feature"]
        if isinstance(feature, list) and len(feature) == 1:
            [feature] = feature
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names"):
            found[column] = list(feature["names"])
    return found


def _with_names(row: Row, names_of: Mapping[str, Sequence[str]], where: str) -> Row:
    """Return a row with the names of classes in place of their numbers, and without what fills up columns of structs.

    Raises:
        DataError: A number has no name.
    """

    def named(value: Any, names: Sequence[str]) -> Any:
        if isinstance(value, list):
            return [named(item, names) for item in value]
        if not isinstance(value, int) or value == -1:  # the library's sign for a label that is not known
            return None if value == -1 else value
        if not 0 <= value < len(names):
            raise DataError(where, f"class {value} has no name", expected=f"0 to {len(names) - 1}")
        return names[value]

    row = {key: named(value, names_of[key]) if key in names_of else value for key, value in row.items()}
    for key, value in row.items():
        if isinstance(value, dict):  # a column of structs has every key in every row
            row[key] = {name: grade for name, grade in value.items() if grade is not None} or value
    return row


def _hub_rows(source: str) -> Iterator[tuple[str, Any]]:
    from embedfit.hub import check_reachable, hub_errors, reason_of

    name, _, split = source.removeprefix("hub:").partition(":")
    check_reachable(f"data set {name!r}", instead="give a local file or folder")
    import datasets

    if console.quiet or not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        raise DataError(source, f"cannot be loaded from the Hub: {reason_of(error.__cause__ or error)}") from None
    except OSError as error:
        raise OfflineError(f"data set {name!r} cannot be loaded from the Hub: {reason_of(error)}") from None
    except hub_errors() as error:
        raise DataError(source, f"cannot be loaded from the Hub: {reason_of(error)}") from None
    _check_distinct(rows.column_names, source)
    names_of = _class_names(rows.features.to_dict())
    for index, row in enumerate(rows):
        where = f"{source}[{index}]"
        try:
            yield where, _with_names(dict(row), names_of, where)
        except DataError as error:
            yield where, error


def _id(row: Row, where: str) -> str:
    value = row.get("id", row.get("_id"))
    if value is None:
        return ""
    id = _id_of(value)
    if id is None:
        raise DataError(where, f"id is {shown(value)}", expected="a text or a whole number")
    return id


def _id_of(value: Any) -> str | None:
    """Return an id as text, or None if the value is none. 1.0 is the id 1, since pandas makes floats of whole numbers."""
    value = _whole(value)
    return str(value) if isinstance(value, (str, int)) and not isinstance(value, bool) and str(value).strip() else None


def _whole(value: Any) -> Any:
    """Return a float that is a whole number as that. Beyond 2^53 a float may stand for several."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53 else value


def _text(row: Row, key: str, where: str) -> str:
    if key not in row:
        hint = did_you_mean(key, row)
        raise DataError(where, f"key {key!r} is missing (keys: {', '.join(map(str, row))}){hint}")
    if not isinstance(row[key], str) or not row[key].strip():
        raise DataError(where, f"key {key!r} is {shown(row[key])}", expected="a text that is not empty")
    return str(row[key])


def _title(row: Row, where: str) -> str:
    title = row.get("title")
    if title is None or title == "":
        return ""
    if _id_of(title) is None and not isinstance(title, str):
        raise DataError(where, f"key 'title' is {shown(title)}", expected="a text")
    return str(_whole(title))


def _labels(
    row: Row, label: str, separator: str | None, corpus: Mapping[str, Document], where: str
) -> tuple[list[Any] | dict[Any, Any], str]:
    """Return the labels of a row as a list, or with grades; and the label itself where it stands alone as a text."""
    if label not in row:
        raise DataError(where, f"key {label!r} is missing (keys: {', '.join(map(str, row))}){did_you_mean(label, row)}")
    value = row[label]
    if isinstance(value, str) and value not in corpus:
        try:
            value = _listed(value)
        except ValueError:
            fix = 'write a JSON list, like ["a", "b"]'
            raise DataError(where, f"key {label!r} is {shown(value)}, which looks like a list but is none", fix=fix) from None
    if isinstance(value, (list, dict)):
        return value, ""
    if not isinstance(value, str):
        return [value], ""
    if separator is None or (value in corpus and not all(part in corpus for part in _parts(value, separator))):
        return [value], value.strip()
    return list(_parts(value, separator)), ""


def _grades(
    row: Row, label: str, labels: list[Any] | dict[Any, Any], column: str, corpus: Mapping[str, Document], where: str, *, by_name: bool
) -> dict[str, int]:
    """Return the grade of each document that a row names.

    Args:
        row: Of a file.
        label: Its column of labels.
        labels: Those, with grades of their own or without.
        column: Of the grade; empty if there is none.
        corpus: The documents; empty if they are made of the labels.
        where: File and line.
        by_name: Whether the column of the grade was found by its name.
    """
    grade: Any = 1
    if column and not isinstance(labels, dict):
        if column not in row:
            raise DataError(where, f"key {column!r} is missing (keys: {', '.join(map(str, row))})", expected="a grade in each row")
        grade = row[column]
    elif column in row and not by_name:
        raise DataError(where, f"has grades in both {label!r} and {column!r}", fix="leave one of them out")
    grades: dict[str, int] = {}
    for document, own in labels.items() if isinstance(labels, dict) else ((document, grade) for document in labels):
        id = _id_of(document)
        if id is None:
            raise DataError(where, f"key {label!r} is {shown(row[label])}", expected="a document id, a list of them, or {id: grade}")
        id = id if id in corpus else id.strip()
        try:
            if isinstance(labels, dict) and isinstance(own, str):
                raise ValueError
            value = _grade(own if isinstance(labels, dict) else _GRADE_OF_WORD.get(_spelling(own), own))
        except ValueError:
            fix = (
                f'set grade = "" in [data] if {column!r} holds no grades, else write 1 for right and 0 for wrong'
                if column and by_name and not isinstance(labels, dict)
                else ""
            )
            raise DataError(where, f"grade {shown(own)}", expected="a whole number, 0 or more", fix=fix) from None
        if grades.setdefault(id, value) != value:
            raise DataError(where, f"grade of {shown(id)} is {grades[id]} and {value}", expected="one grade for each document")
    if not grades and not isinstance(labels, dict):
        raise DataError(where, f"key {label!r} is {shown(row[label])}", expected="a document id, a list of them, or {id: grade}")
    return grades


def _grade(value: Any) -> int:
    """Return a grade as a number, also from the text of one.

    Raises:
        ValueError: It is not a whole number of 0 or more.
    """
    if isinstance(value, str) and re.fullmatch(r"\s*\d+(\.0*)?\s*", value):
        value = int(value.partition(".")[0])
    value = _whole(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise ValueError
    return value


_CONTAINERS = ("array", "list", "set", "frozenset", "tuple", "deque", "dict", "OrderedDict", "Counter", "Index", "Series")
_SCALARS = ("str_", "int64", "int32", "float64", "float32")
_CONSTRUCTED = re.compile(rf"""(?:\w+\.)?(?:{"|".join(_CONTAINERS)}|defaultdict)\(\s*([\[{{("'<)]?)""")


class _Literals(ast.NodeTransformer):
    """Puts what an object is made of in its place, as in ``array(['a'], dtype=object)``."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in (*_CONTAINERS, *_SCALARS) and len(node.args) == 1 and all(keyword.arg == "dtype" for keyword in node.keywords):
            return cast(ast.AST, self.visit(node.args[0]))
        return node


def _listed(text: str) -> Any:
    """Return the list, or the object of grades, that a text is in JSON or in Python, as pandas writes it; else the text.

    Raises:
        ValueError: It looks like a list, but cannot be read as one.
    """
    cell = text.strip()
    constructed = _CONSTRUCTED.match(cell)
    if cell[:1] not in ("[", "{", "(") and not constructed:
        return text
    for parse in (_parsed, _python_list):
        with contextlib.suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
            value = parse(cell)
            if isinstance(value, (list, dict)):
                return value
    if constructed and constructed[1]:
        raise ValueError(cell)
    items = re.split(r"[\s,;]+", cell[1:-1].strip())
    numbers = all(re.fullmatch(r"[-+]?\d[\d.eE+-]*|nan|none|null|nat|<na>|true|false", item.casefold()) for item in items)
    if re.search(r"""^[\[{]\s*(\w+\.\w+\()?["']|["']\s*[\]}]$""", cell) or (numbers and cell[-1] in "]}"):
        raise ValueError(cell)
    return text


def _python_list(text: str) -> Any:
    """Return a literal of Python, with sets and tuples as lists.

    Raises:
        ValueError: Two strings stand side by side, as in ``['a' 'b']``, which numpy writes and Python joins; or a key stands twice.
        SyntaxError: It is no literal.
    """
    with warnings.catch_warnings(action="ignore"):
        tree = _Literals().visit(ast.parse(text, mode="eval").body)
    value = ast.literal_eval(tree)
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.NL]
    if (tokenize.STRING, tokenize.STRING) in itertools.pairwise(kinds) or (isinstance(tree, ast.Dict) and len(tree.keys) != len(value)):
        raise ValueError(text)
    if isinstance(value, set):
        return sorted(value, key=str)
    return list(value) if isinstance(value, tuple) else value


def _parts(cell: str, separator: str) -> list[str]:
    """Return what stands between the separators of a cell, and not the brackets of a list without quotes."""
    inside = cell.strip()
    if inside[:1] == "[" and inside[-1:] == "]":
        inside = inside[1:-1]
    return [part.strip() for part in inside.split(separator) if part.strip()]


def _joined_by(cell: str, known: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return what stands between the labels of a cell, and these, if more than half of them are known; else no labels.

    Where different signs stand between them, the first is an empty text.
    """
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


def _without_point(id: str) -> str:
    """Return what a whole number is that was written as a float, like ``1.0``; an empty text for anything else."""
    match = re.fullmatch(r"(-?\d+)\.0+", id)
    return match[1] if match else ""


_HINTS = 20
"""So many unknown documents get the nearest known one. It is searched for among all documents, which takes its time."""


def _known_document(id: str, corpus: Mapping[str, Document], where: str, kind: str, *, hint: bool = True) -> None:
    if id not in corpus:
        whole = _without_point(id)
        near = (f"; did you mean {whole!r}?" if whole in corpus else did_you_mean(id, corpus)) if hint else ""
        raise DataError(
            where,
            f"{kind} {shown(id)} is not among the {len(corpus):,} documents{near}",
            fix="correct it, or add the document",
        )


def _fields(row: Row, record: RecordType, grade: str) -> Row:
    """Return a record's own fields: a row's id, part, origin and grade are ours, unless the record type has such fields too."""
    ours = ("id", "_id", "part", "generated", grade)
    return {key: value for key, value in row.items() if key in record.fields or key not in ours}


def _metadata(row: Row, taken: Sequence[str], where: str) -> dict[str, Any]:
    """Return the other keys of a row; a ``metadata`` object is opened.

    Raises:
        DataError: It has a key that the row has too, with another value.
    """
    rest = {key: value for key, value in row.items() if key not in taken and key != "metadata"}
    nested = row.get("metadata")
    if not isinstance(nested, dict):
        return rest if nested is None else {**rest, "metadata": nested}
    for key in rest.keys() & nested.keys():
        if rest[key] != nested[key]:
            problem = f"key {key!r} is {shown(rest[key])}, and {shown(nested[key])} in 'metadata'"
            raise DataError(where, problem, expected="one value", fix="leave one of them out")
    return {**rest, **nested}


# Writing


def write_beir(dataset: Dataset, folder: str | Path) -> Path:
    """Write corpus.jsonl, queries.jsonl and qrels/<part>.tsv (``qrels/all.tsv`` if there are no parts).

    Raises:
        DataError: An id holds a tab or the end of a line, which a qrels file cannot.
        StorageError: The folder cannot be written, or holds judgements of another data set.
    """
    folder = Path(folder)
    for id in (*dataset.queries, *dataset.corpus):
        if any(sign in id for sign in "\t\r\n"):
            raise DataError(f"id {shown(id)}", "holds a tab or the end of a line", fix="use write_jsonl, or another id")
    in_parts = {id for ids in dataset.parts.values() for id in ids}
    rest = tuple(id for id in dataset.qrels if id not in in_parts)
    parts = {**dataset.parts, **({"rest" if dataset.parts else "all": rest} if rest else {})}
    for path in _qrels_files(folder):
        if path.stem not in parts:
            raise StorageError(f"{path}: would be read as a part of this data set; fix: give another folder, or move it away")
    with writing(folder / "corpus.jsonl") as file:
        for document in dataset.corpus.values():
            file.write(_json(_beir_row(document.id, document.text, document.metadata, title=document.title)) + b"\n")
    with writing(folder / "queries.jsonl") as file:
        for query in dataset.queries.values():
            file.write(_json(_beir_row(query.id, query.text, query.metadata)) + b"\n")
    for part, ids in parts.items():
        with writing(folder / "qrels" / f"{part}.tsv") as file:
            file.write(b"query-id\tcorpus-id\tscore\n")
            for id in ids:
                file.writelines(f"{id}\t{document}\t{grade}\n".encode() for document, grade in dataset.qrels.get(id, {}).items())
    return folder


def write_jsonl(dataset: Dataset, folder: str | Path) -> Path:
    """Write queries.jsonl (id, query, expected, part, metadata) and documents.jsonl.

    ``load(folder / "queries.jsonl", folder / "documents.jsonl")`` reads them back.

    Raises:
        StorageError: The folder cannot be written.
    """
    folder = Path(folder)
    part_of = {id: part for part, ids in dataset.parts.items() for id in ids}
    with writing(folder / "documents.jsonl") as file:
        for document in dataset.corpus.values():
            row: Row = {"id": document.id, "text": document.text}
            if document.title:
                row["title"] = document.title
            file.write(_json({**row, "metadata": dict(document.metadata)}) + b"\n")
    with writing(folder / "queries.jsonl") as file:
        for query in dataset.queries.values():
            row = {"id": query.id, "query": query.text, "expected": dataset.qrels.get(query.id, {})}
            if query.id in part_of:
                row["part"] = part_of[query.id]
            file.write(_json({**row, "metadata": dict(query.metadata)}) + b"\n")
    return folder


def _beir_row(id: str, text: str, metadata: Mapping[str, Any], *, title: str = "") -> Row:
    row: Row = {"_id": id, "text": text}
    if title:
        row["title"] = title
    if metadata:
        row["metadata"] = dict(metadata)
    return row


def _json(value: Any) -> bytes:
    # Parquet and the Hub have values that JSON lacks, such as dates: they are written as text.
    return json.dumps(value, ensure_ascii=False, default=str).encode()
