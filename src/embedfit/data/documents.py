"""Documents by id, and the check of labels against them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embedfit.data.cells import read_id, read_text, read_title, without_point
from embedfit.data.formats import read_rows, without_errors
from embedfit.data.records import RecordType
from embedfit.data.texts import Document, Row
from embedfit.errors import DataError, did_you_mean, shown


def read_documents(path: str | Path) -> dict[str, Document]:
    """Read a file of documents, in the formats that `load` takes.

    Raises:
        DataError: A row cannot be used.
    """
    errors: list[DataError] = []
    corpus = documents_of(read_rows(path), errors)
    if errors:
        raise errors[0]
    return corpus


def documents_of(rows: Iterator[tuple[str, Any]], errors: list[DataError]) -> dict[str, Document]:
    """Return the documents in some rows, by id.

    Args:
        rows: (place, row) or (place, error) for each document.
        errors: List that receives the errors of bad rows.
    """
    corpus: dict[str, Document] = {}
    for where, row in without_errors(rows, errors):
        try:
            if "text" not in row and "category" in row:
                # The shape of categories.json: the name is both the id and the text.
                text = read_text(row, "category", where)
                document = Document(text, text, "", row)
            else:
                title = read_title(row, where)
                # Some public data sets have documents with a title only.
                text = "" if title and row.get("text") == "" else read_text(row, "text", where)
                id = read_id(row, where)
                if not id:
                    raise DataError(where, "key 'id' is missing", expected="an id for each document")
                document = Document(id, text, title, metadata_of(row, _DOCUMENT_KEYS, where))
            if document.id in corpus:
                raise DataError(where, f"document id {document.id!r} occurs here a second time", expected="unique ids")
        except DataError as error:
            errors.append(error)
            continue
        corpus[document.id] = document
    return corpus


_DOCUMENT_KEYS = ("id", "_id", "text", "title")
HINTS = 20
"""Number of unknown documents for which the nearest known id is looked up, which is slow."""


def check_known(id: str, corpus: Mapping[str, Document], where: str, kind: str, *, hint: bool = True) -> None:
    """Raise a DataError if there is no document with this id."""
    if id not in corpus:
        whole = without_point(id)
        near = (f"; did you mean {whole!r}?" if whole in corpus else did_you_mean(id, corpus)) if hint else ""
        raise DataError(
            where,
            f"{kind} {shown(id)} is not among the {len(corpus):,} documents{near}",
            fix="correct it, or add the document",
        )


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
