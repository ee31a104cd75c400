"""Read a data set from files, from a BEIR folder, or from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.apart import contents_apart, queries_of
from embedfit.data.columns import Columns
from embedfit.data.dataset import Dataset, finished
from embedfit.data.documents import documents_of
from embedfit.data.folders import Cutting, Folder, read_folder
from embedfit.data.formats.opening import open_rows, with_last_error
from embedfit.data.formats.source import Options
from embedfit.data.judgements import judgements_of, stem_of
from embedfit.data.layouts import contents_of_folder, documents_beside, rows_of_folder, stands_apart
from embedfit.data.memory import contents_of_sections
from embedfit.data.records import RecordType, record_type
from embedfit.data.rows import contents_of
from embedfit.data.texts import Document
from embedfit.errors import ConfigError, DataError

_HINT = "'embedfit check' lists them"


def load(
    source: str | Path,
    documents: str | Path | None = None,
    qrels: str | Path | None = None,
    *,
    query: str | None = None,
    label: str | None = None,
    grade: str | None = None,
    separator: str | None = None,
    id: str | None = None,
    part: str | None = None,
    document_id: str | None = None,
    document_title: str | None = None,
    document_text: str | None = None,
    encoding: str | None = None,
    delimiter: str | None = None,
    sheet: str | None = None,
    record: RecordType | str | None = None,
    cutting: Cutting | None = None,
    problems: list[DataError] | None = None,
) -> Dataset:
    """Read a data set.

    Rows with the same id are one query with several answers. Without ids, rows with the same text and metadata are one query.
    Columns that are not named are looked for by common names, and a note says which were taken.

    Args:
        source: A file of labelled queries (JSONL, JSON, CSV, TSV, Excel, OpenDocument, Parquet, Arrow, also compressed); a folder such
            as BEIR's, or of tables such as train.jsonl and test.jsonl; or ``hub:owner/name`` for a data set on the Hugging Face Hub.
            ``hub:owner/name:split`` selects another split than ``train``.
        documents: A file of documents, or a folder of Markdown, HTML, text and PDF files. Rows have an id, a text, an optional
            title and optional metadata, or the shape of categories.json (category, sample_transactions, departments). By default
            each distinct label becomes a document whose text is the label.
        qrels: A file of judgements, where they stand apart: TREC's or BEIR's qrels, or a table of query ids, document ids and grades.
            Then the queries have ids and no labels, and the documents must be given.
        query: Column of the query text.
        label: Column of the relevant documents: one id or text, a list, or {id: grade}. ``[]`` says that no document is right; null,
            an empty cell and ``{}`` leave a query without judgements. By default the label of the record type, if there is one.
        grade: Column of the label's grade. An empty string means that there is none.
        separator: Separator of several labels in one cell, such as ``;``. By default a cell of text is one label.
        id: Column of the query's id.
        part: Column of the part: train, dev (also validation) or test.
        document_id: Column of a document's id.
        document_title: Column of a document's title.
        document_text: Column of a document's text. Where the documents have no file of their own, the rows bring them along.
        encoding: Encoding of text files that are not UTF-8, such as ``cp1252``.
        delimiter: Sign between the cells of a CSV file. By default the one that its header shows.
        sheet: Sheet of a workbook. By default the first one with rows.
        record: Record type of the rows, or its name. Its template gives the query text.
        cutting: How the files of a folder are cut into passages. A label may then name a passage, a section or a file.
        problems: List that receives the errors of all bad rows. By default the first error is raised.

    Raises:
        DataError: A row cannot be used, or no query has a relevant document.
        ConfigError: The separator is empty, the encoding is unknown, or an argument does not apply to a BEIR folder.
        OfflineError: A data set on the Hub is named and there is no network.
    """
    errors: list[DataError] = []
    if separator == "":
        raise ConfigError("the separator is empty; expected what stands between two labels, such as ';'")
    if isinstance(record, str):
        record = record_type(record, label=label)
    names = {"query": query, "label": label, "id": id, "part": part}
    names |= {"document_id": document_id, "document_title": document_title, "document_text": document_text}
    columns = Columns(grade=grade, separator=separator).named(names)
    options = Options(encoding or "", delimiter or "", sheet or "", columns.given)
    given = {"label": label, "grade": grade, "separator": separator, "record": record, "part": part}
    folder = not str(source).startswith("hub:") and Path(source).is_dir()
    if folder and stands_apart(Path(source)):
        _refuse(source, "is a folder, which has documents and judgements of its own", {"documents": documents, "qrels": qrels, **given})
        contents = contents_of_folder(Path(source), options, columns, errors)
        return finished(contents, str(source), errors, problems, hint=_HINT)
    table = rows_of_folder(Path(source), options) if folder else open_rows(source, options)
    beside = documents_beside(Path(source)) if folder and documents is None else None
    if beside:
        console.note(f"{source}: the documents are in {beside.name}")
        documents = beside
    if table.sections:
        _refuse(source, "has documents and judgements of its own", {"documents": documents, "qrels": qrels, **given})
        return finished(contents_of_sections(table, errors), str(source), errors, problems, hint=_HINT)
    handbook, corpus = _documents(documents, columns, options, cutting, errors)
    if qrels is not None:
        _refuse(source, "has its labels in qrels", given)
        if corpus is None:
            raise ConfigError("qrels needs documents; fix: give both")
        queries = queries_of(table, errors, columns)
        judgements = [(stem_of(Path(qrels)), judgements_of(Path(qrels), queries, options))]
        contents = contents_apart(queries, corpus, judgements, str(qrels), errors, queries_in=Path(source).name)
    else:
        table.rows = with_last_error(table.rows)
        contents = contents_of(table, corpus, columns, record, errors)
    if handbook:
        contents = handbook.resolved(contents, str(source))
    return finished(contents, str(source), errors, problems, hint=_HINT)


def _refuse(source: str | Path, reason: str, given: Mapping[str, Any]) -> None:
    """Raise a ConfigError for the first argument that is given and does not apply."""
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"{source} {reason}; fix: leave {name!r} out")


def _documents(
    documents: str | Path | None, columns: Columns, options: Options, cutting: Cutting | None, errors: list[DataError]
) -> tuple[Folder | None, dict[str, Document] | None]:
    """Return the folder of documents, if they are in one, and the documents that labels may name, if they are given."""
    if documents and Path(str(documents)).is_dir():
        folder = read_folder(str(documents), cutting or Cutting(encoding=options.encoding), errors)
        return folder, folder.labels
    return None, documents_of(open_rows(documents, options), errors, columns) if documents else None
