"""Read a data set from files, from a BEIR folder, or from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from embedfit.data.beir import read_beir
from embedfit.data.cells import Columns
from embedfit.data.dataset import Dataset, finished
from embedfit.data.documents import documents_of
from embedfit.data.formats import read_rows, with_last_error
from embedfit.data.records import RecordType, record_type
from embedfit.data.rows import contents_of
from embedfit.errors import ConfigError, DataError


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

    Rows with the same id are one query with several answers. Without ids, rows with the same text and metadata are one query.

    Args:
        source: A BEIR folder; a file of labelled queries (JSONL, JSON, CSV, TSV, Parquet); or ``hub:owner/name`` for a data set
            on the Hugging Face Hub. ``hub:owner/name:split`` selects another split than ``train``.
        documents: A file of documents. Rows have an id, a text, an optional title and optional metadata, or the shape of
            categories.json (category, sample_transactions, departments). By default each distinct label becomes a document
            whose text is the label.
        query: Column of the query text.
        label: Column of the relevant document ids: one id, a list, or {id: grade}. ``{}`` marks a query without judgements.
            By default ``expected``, or the label of the record type.
        grade: Column of the label's grade. By default ``grade``, ``relevance``, ``score`` or a similar name (`GRADE_COLUMNS`), if
            there is one. An empty string means that there is none.
        separator: Separator of several labels in one cell, such as ``;``. By default a cell of text is one label.
        record: Record type of the rows, or its name. Its template gives the query text.
        problems: List that receives the errors of all bad rows. By default the first error is raised.

    Raises:
        DataError: A row cannot be used, or no query has a relevant document.
        ConfigError: The separator is empty, or an argument does not apply to a BEIR folder.
        OfflineError: A data set on the Hub is named and there is no network.
    """
    errors: list[DataError] = []
    if separator == "":
        raise ConfigError("the separator is empty; expected what stands between two labels, such as ';'")
    if isinstance(record, str):
        record = record_type(record, label=label)
    if not str(source).startswith("hub:") and Path(source).is_dir():
        given = {"documents": documents, "label": label, "grade": grade, "separator": separator, "record": record}
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{source} is a folder, which has documents and judgements of its own; fix: leave {name!r} out")
        contents = read_beir(Path(source), errors)
    else:
        corpus = documents_of(read_rows(documents), errors) if documents else None
        columns = Columns(query, label or (record.label if record else "expected"), grade, separator)
        contents = contents_of(with_last_error(read_rows(source)), corpus, columns, record, str(source), errors)
    return finished(contents, str(source), errors, problems, hint="'embedfit check' lists them")
