"""Queries, documents and the judgements between them, from the files people have.

Every reader ends in one `Dataset`; `write_beir` and `write_jsonl` write it back without loss.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from embedfit import console
from embedfit.errors import DataError, OfflineError, StorageError, did_you_mean, shown
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
    """

    queries: dict[str, Query]
    corpus: dict[str, Document]
    qrels: Qrels
    parts: dict[str, tuple[str, ...]] = field(default_factory=dict)

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


def load(
    source: str | Path,
    documents: str | Path | None = None,
    *,
    query: str = "query",
    label: str | None = None,
    record: RecordType | str | None = None,
    problems: list[DataError] | None = None,
) -> Dataset:
    """Read a data set.

    Args:
        source: A BEIR folder; or a file of labelled queries (JSONL, JSON, CSV, TSV, Parquet); or ``hub:owner/name``
            for a data set of the Hugging Face Hub, ``hub:owner/name:split`` for another split than ``train``.
        documents: A file of documents: rows with id, text and optional title and metadata, or rows in the shape of
            categories.json (category, sample_transactions, departments). By default each distinct label becomes a
            document that says its own name.
        query: The column of the query text.
        label: The column of the document ids that are right: one, a list, or {id: grade}; ``{}`` says that the query
            is not judged. By default ``expected``, or the record type's own.
        record: Rows are records of this type (or of the type of this name), whose template writes the query text.
        problems: Where to put every bad row and go on. By default the first is raised.

    Raises:
        DataError: A row cannot be used, or there is nothing to use.
        OfflineError: A Hub data set without a network.
    """
    found: list[DataError] = []
    if isinstance(record, str):
        record = record_type(record, label=label)
    if not str(source).startswith("hub:") and Path(source).is_dir():
        dataset = _read_beir(Path(source), found)
    else:
        dataset = _read_pairs(source, documents, query, label, record, found)
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


def _read_pairs(
    source: str | Path,
    documents: str | Path | None,
    query: str,
    label: str | None,
    record: RecordType | None,
    found: list[DataError],
) -> Dataset:
    label = label or (record.label if record else "expected")
    corpus = _read_documents(documents, found) if documents else {}
    queries: dict[str, Query] = {}
    qrels: Qrels = {}
    parts: dict[str, list[str]] = {}
    number = 0
    for where, row in _collected(_rows(source), found):
        number += 1
        try:
            id = _id(row, where) or f"q{number}"
            if id in queries:
                raise DataError(where, f"id {id!r} stands here a second time", expected="ids that differ")
            text = record.text(_fields(row, record), where) if record else _text(row, query, where)
            grades = _grades(row, label, where)
            if documents:
                for document in grades:
                    _known_document(document, corpus, where, "label")
            else:
                for document in grades:
                    corpus.setdefault(document, Document(document, document))
            part = row.get("part")
            if part is not None and part not in PARTS:
                raise DataError(where, f"part is {shown(part)}", expected="train, dev or test")
        except DataError as error:
            found.append(error)
            continue
        queries[id] = Query(id, text, _metadata(row, ("id", "_id", query, label, "part")))
        if grades:
            qrels[id] = grades
        if part:
            parts.setdefault(part, []).append(id)
    return Dataset(queries, corpus, qrels, {part: tuple(ids) for part, ids in parts.items()})


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
                title = str(row.get("title") or "")
                # Public sets have documents that are a title and no more.
                text = "" if title and row.get("text") == "" else _text(row, "text", where)
                id = _id(row, where)
                if not id:
                    raise DataError(where, "key 'id' is missing", expected="an id for each document")
                document = Document(id, text, title, _metadata(row, _DOCUMENT_KEYS))
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
            queries[id] = Query(id, _text(row, "text", where), _metadata(row, ("id", "_id", "text")))
        except DataError as error:
            found.append(error)
    qrels: Qrels = {}
    parts: dict[str, tuple[str, ...]] = {}
    for path in sorted((folder / "qrels").glob("*.tsv")):
        ids: dict[str, None] = {}
        for where, (query_id, document_id, grade) in _collected(_judgements(path), found):
            try:
                if query_id not in queries:
                    raise DataError(where, f"query {query_id!r} is not in queries.jsonl", fix="remove the line or add the query")
                _known_document(document_id, corpus, where, "document")
            except DataError as error:
                found.append(error)
                continue
            qrels.setdefault(query_id, {})[document_id] = grade
            ids[query_id] = None
        part = {"validation": "dev", "valid": "dev"}.get(path.stem, path.stem)
        if part in PARTS:
            parts[part] = tuple(ids)
    return Dataset(queries, corpus, qrels, parts)


def _judgements(path: Path) -> Iterator[tuple[str, tuple[str, str, int]]]:
    for number, line in _lines(path):
        cells = line.split("\t") if "\t" in line else line.split()
        if len(cells) == 4:  # TREC's own form has an iteration column
            cells = [cells[0], cells[2], cells[3]]
        if number == 1 and len(cells) == 3 and not cells[2].strip().lstrip("-").isdecimal():
            continue
        if not line:
            continue
        where = f"{path}:{number}"
        if len(cells) != 3 or not cells[2].strip().isdecimal():
            yield where, DataError(where, f"is {shown(line)}", expected="query id, document id, whole grade, by tabs")  # type: ignore[misc]
        else:
            yield where, (cells[0], cells[1], int(cells[2]))


def _collected(rows: Iterator[tuple[str, Any]], found: list[DataError]) -> Iterator[tuple[str, Any]]:
    """Pass good rows on, put those that are errors aside."""
    for where, row in rows:
        if isinstance(row, DataError):
            found.append(row)
        else:
            yield where, row


def _rows(source: str | Path) -> Iterator[tuple[str, Row | DataError]]:
    """Yield (where, row) for each row of a file, or (where, error) for a broken one."""
    if str(source).startswith("hub:"):
        yield from _hub_rows(str(source))
        return
    path = Path(source)
    if path.is_dir():
        raise DataError(str(path), "is a folder", expected="a file")
    if not path.is_file():
        hint = did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        raise DataError(str(path), f"does not exist{hint}", fix="give a file, a BEIR folder, or hub:owner/name")
    readers: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
        ".jsonl": _jsonl_rows,
        ".ndjson": _jsonl_rows,
        ".json": _json_rows,
        ".csv": lambda path: _csv_rows(path, ","),
        ".tsv": lambda path: _csv_rows(path, "\t"),
        ".parquet": _parquet_rows,
    }
    if path.suffix.lower() not in readers:
        raise DataError(str(path), f"ends in {path.suffix!r}", expected=", ".join(readers))
    empty = True
    for where, row in readers[path.suffix.lower()](path):
        empty = False
        if not isinstance(row, (dict, DataError)):
            row = DataError(where, f"is {shown(row)}", expected="an object with named keys")
        yield where, row
    if empty:
        raise DataError(str(path), "is empty", expected="at least one row")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number, line) without line ends and byte order mark."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}",
                    f"is not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})",
                    expected="UTF-8",
                    fix=f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > fixed{path.suffix}",
                ) from None
            yield number, line.rstrip("\r\n")


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            yield where, _parsed(line)
        except (ValueError, RecursionError) as error:
            yield where, DataError(where, f"is not JSON ({_json_problem(error)}): {shown(line)}", expected="one JSON object per line")


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = "\n".join(line for _, line in _lines(path))
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
    value = json.loads(text)
    if "\\u" in text:  # may be half a character (a lone surrogate), which no tokenizer and no file takes: a ValueError
        _json(value)
    return value


def _json_problem(error: ValueError | RecursionError) -> str:
    """Return what is wrong with JSON, without the line number that it has within its own line."""
    return f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((line + "\n" for _, line in _lines(path)), delimiter=delimiter, strict=True)
    try:
        header = next(reader, None)
        for cells in reader:
            where = f"{path}:{reader.line_num}"
            if not cells:
                continue
            if header is None or len(cells) != len(header):
                yield where, DataError(where, f"has {len(cells)} cells", expected=f"{len(header or [])}, as in the header")
            else:
                yield where, {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}", f"is not CSV ({error})", expected="quotes that close") from None


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        number = 0
        for batch in file.iter_batches():
            for row in batch.to_pylist(maps_as_pydicts="lossy"):
                number += 1
                yield f"{path}:{number}", {key: value for key, value in row.items() if value is not None}
    except pyarrow.ArrowException as error:
        raise DataError(str(path), f"is not Parquet ({error})") from None


def _hub_rows(source: str) -> Iterator[tuple[str, Any]]:
    from embedfit.hub import check_reachable

    name, _, split = source.removeprefix("hub:").partition(":")
    check_reachable(f"data set {name!r}")
    import datasets

    if console.quiet or not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, split=split or "train")
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        raise DataError(source, f"cannot be loaded from the Hub: {str(error.__cause__ or error).splitlines()[0]}") from None
    except OSError as error:
        raise OfflineError(f"data set {name!r} cannot be loaded from the Hub: {str(error).splitlines()[0]}") from None
    yield from ((f"{source}[{index}]", dict(row)) for index, row in enumerate(rows))


def _id(row: Row, where: str) -> str:
    value = row.get("id", row.get("_id"))
    if value is None:
        return ""
    if isinstance(value, (dict, list)) or not str(value).strip():
        raise DataError(where, f"id is {shown(value)}", expected="a text or a number")
    return str(value)


def _text(row: Row, key: str, where: str) -> str:
    if key not in row:
        hint = did_you_mean(key, row)
        raise DataError(where, f"key {key!r} is missing (keys: {', '.join(map(str, row))}){hint}")
    if not isinstance(row[key], str) or not row[key].strip():
        raise DataError(where, f"key {key!r} is {shown(row[key])}", expected="a text that is not empty")
    return str(row[key])


def _grades(row: Row, label: str, where: str) -> dict[str, int]:
    value = row.get(label)
    if label not in row:
        raise DataError(where, f"key {label!r} is missing (keys: {', '.join(map(str, row))}){did_you_mean(label, row)}")
    if isinstance(value, str) and value[:1] in "[{":  # a CSV cell may hold a JSON list or object
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        value = [value]
    if isinstance(value, list):
        value = dict.fromkeys(map(str, value), 1)
    if isinstance(value, dict):  # a Parquet column of structs has every key in every row
        value = {id: grade for id, grade in value.items() if grade is not None}
    if not isinstance(value, dict) or not (value or row[label] == {}) or not all(str(id).strip() for id in value):
        raise DataError(where, f"key {label!r} is {shown(row[label])}", expected="a document id, a list of them, or {id: grade}")
    for grade in value.values():
        if not isinstance(grade, int) or isinstance(grade, bool) or grade < 0:
            raise DataError(where, f"grade {shown(grade)}", expected="a whole number, 0 or more")
    return {str(id): grade for id, grade in value.items()}


def _known_document(id: str, corpus: Mapping[str, Document], where: str, kind: str) -> None:
    if id not in corpus:
        raise DataError(
            where,
            f"{kind} {shown(id)} is not among the {len(corpus):,} documents{did_you_mean(id, corpus)}",
            fix="correct it, or add the document",
        )


def _fields(row: Row, record: RecordType) -> Row:
    """Return a record's own fields: a row's id, part and origin are ours, unless the record type has such fields too."""
    return {key: value for key, value in row.items() if key in record.fields or key not in ("id", "_id", "part", "generated")}


def _metadata(row: Row, taken: Sequence[str]) -> dict[str, Any]:
    """Return the other keys of a row; a ``metadata`` object is opened."""
    rest = {key: value for key, value in row.items() if key not in taken and key != "metadata"}
    nested = row.get("metadata")
    if isinstance(nested, dict):
        return {**rest, **nested}
    return rest if nested is None else {**rest, "metadata": nested}


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
    for path in sorted((folder / "qrels").glob("*.tsv")):
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
