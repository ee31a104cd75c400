"""Documents by id, and the check of labels against them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.cells import read_id, read_text, read_title
from embedfit.data.columns import ANY_COLUMNS, Columns, document_columns
from embedfit.data.folders import Cutting, read_folder
from embedfit.data.formats.opening import open_rows, with_last_error, without_errors
from embedfit.data.formats.source import NO_OPTIONS, Options, Rows
from embedfit.data.records import RecordType
from embedfit.data.texts import Document, Row
from embedfit.errors import DataError, shown


def read_documents(
    path: str | Path, columns: Columns = ANY_COLUMNS, options: Options = NO_OPTIONS, cutting: Cutting | None = None
) -> dict[str, Document]:
    """Read a file of documents in the formats that `load` takes, or the passages of a folder.

    Args:
        path: Path of the file or folder.
        columns: Names of the columns of a file.
        options: Encoding, delimiter and sheet of a file.
        cutting: How the files of a folder are cut into passages.

    Raises:
        DataError: A row or a file cannot be used.
    """
    errors: list[DataError] = []
    is_folder = Path(path).is_dir()
    corpus = (
        read_folder(path, cutting or Cutting(), errors).documents if is_folder else documents_of(open_rows(path, options), errors, columns)
    )
    if errors:
        raise errors[0]
    return corpus


def documents_of(table: Rows, errors: list[DataError], columns: Columns = ANY_COLUMNS) -> dict[str, Document]:
    """Return the documents in some rows, by id.

    Args:
        table: A row for each document.
        errors: List that receives the errors of bad rows.
        columns: Names of the columns.
    """
    corpus: dict[str, Document] = {}
    rows = list(without_errors(with_last_error(table.rows), errors))
    before, columns = columns, document_columns([row for _, row in rows[:_SAMPLE]], columns)
    taken = {"document_id": columns.document_id, "document_title": columns.document_title, "document_text": columns.document_text}
    usual = {"document_id": ("id", "_id", ""), "document_title": ("title", ""), "document_text": ("text", "")}
    if any(name not in usual[role] and not getattr(before, role) for role, name in taken.items()):
        console.note(f"{table.source}: " + ", ".join(f"{role} = column {name!r}" for role, name in taken.items() if name))
    for where, row in rows:
        try:
            if columns.document_text not in row and "category" in row:
                # The shape of categories.json: the name is both the id and the text.
                text = read_text(row, "category", where)
                document = Document(text, text, "", row)
            else:
                document = _document(row, columns, where)
            if document.id in corpus:
                raise DataError(where, f"document id {document.id!r} occurs here a second time", expected="unique ids")
        except DataError as error:
            errors.append(error)
            continue
        corpus[document.id] = document
    return corpus


_SAMPLE = 1_000
"""Number of rows by which columns are recognised."""


def _document(row: Row, columns: Columns, where: str) -> Document:
    """Return the document in a row.

    Raises:
        DataError: A cell cannot be used.
    """
    title = read_title(row, where, columns.document_title)
    # Some public data sets have documents with a title only.
    empty = row.get(columns.document_text) in ("", None)
    text = "" if title and empty and columns.document_text in (*row, *columns.given) else read_text(row, columns.document_text, where)
    id = read_id(row, where, columns.document_id)
    if not id:
        raise DataError(where, f"key {columns.document_id!r} is missing", expected="an id for each document")
    taken = ("id", "_id", columns.document_id, columns.document_text, columns.document_title)
    return Document(id, text, title, metadata_of(row, taken, where))


def fields(row: Row, record: RecordType, grade: str) -> Row:
    """Return the fields of a record, without the id, part, origin and grade of the row unless the record type has such fields."""
    ours = ("id", "_id", "part", "generated", grade)
    return {key: value for key, value in row.items() if key in record.fields or key not in ours}


def metadata_of(row: Row, taken: Sequence[str], where: str) -> dict[str, Any]:
    """Return the keys of a row that are not taken, with the contents of a ``metadata`` object.

    Raises:
        DataError: The row and its ``metadata`` have a key with different values.
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
