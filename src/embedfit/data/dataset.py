"""A data set in memory: from files, lists, frames, records or dicts."""

from __future__ import annotations

import hashlib
import html
import itertools
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, Unpack, cast

from embedfit.data.columns import Columns, FurtherColumns
from embedfit.data.library import check_known
from embedfit.data.problems import report
from embedfit.data.texts import PARTS, Contents, Document, Qrels, Query, Row, normalised
from embedfit.errors import DataError, shown
from embedfit.files import json_bytes
from embedfit.template import DOCUMENT_TEMPLATE, Template

if TYPE_CHECKING:
    import datasets
    import pandas as pd
    from pydantic import BaseModel

    from embedfit.data.memory import Source
    from embedfit.data.records import RecordType

__all__ = ["PARTS", "Dataset", "Document", "Qrels", "Query", "Row", "finished", "normalised", "text_key", "unchecked"]

_SHOWN_ROWS = 5
"""Queries that a notebook shows."""


@dataclass(frozen=True, init=False, repr=False)
class Dataset:
    """Queries, the corpus they search, and the relevant documents of each query.

    Attributes:
        queries: Queries by id. A query without qrels is kept, but is not used for tuning or scoring.
        corpus: Documents by id.
        qrels: Query id -> {document id: grade}. Grade 0 means not relevant.
        parts: Official parts, if the data has any: ``train``, ``dev``, ``test`` -> query ids.
        merged: Ids of the queries that were merged from several rows with the same text, no id, and different answers.
    """

    queries: dict[str, Query]
    corpus: dict[str, Document]
    qrels: Qrels
    parts: dict[str, tuple[str, ...]]
    merged: tuple[str, ...] = field(compare=False)

    def __init__(
        self,
        queries: Mapping[str, Query | str],
        corpus: Mapping[str, Document | str],
        qrels: Mapping[str, Mapping[str, int]],
        parts: Mapping[str, tuple[str, ...]] | None = None,
        merged: tuple[str, ...] = (),
    ) -> None:
        """Check and keep the given dicts.

        Args:
            queries: Query id -> query, or its text.
            corpus: Document id -> document, or its text.
            qrels: Query id -> {document id: grade}, with whole grades of 0 or more.
            parts: ``train``, ``dev``, ``test`` -> query ids.
            merged: Ids of merged queries.

        Raises:
            DataError: A text is empty, an id is unknown or differs from its key, or a grade is not a whole number of 0 or more.
        """
        contents = Contents(_by_id(queries, Query), _by_id(corpus, Document), _as_dicts(qrels), dict(parts or {}), tuple(merged))
        _check_ids(contents)
        _keep(self, contents)

    @classmethod
    def from_pairs(cls, texts: Iterable[Any], labels: Iterable[Any], *, problems: list[DataError] | None = None) -> Dataset:
        """Make a data set from texts and their labels. Each distinct label becomes a document.

        Args:
            texts: Query texts: a list, a Series, an array.
            labels: Labels, as many as texts. A label is a text, a number, a list of labels, or {label: grade}.
            problems: List that receives the errors of all bad rows. By default the first error is raised.

        Raises:
            DataError: A row cannot be used, or there is not one label for each text. The message names the row, from 0.
        """
        from embedfit.data.memory import pair_rows

        columns = Columns("text", "label", grade="")
        return _from_rows(pair_rows(texts, labels), None, columns, "texts and labels", problems)

    @classmethod
    def from_frame(
        cls,
        frame: pd.DataFrame,
        documents: Source | None = None,
        *,
        query: str | None = None,
        label: str | None = None,
        grade: str | None = None,
        separator: str | None = None,
        record: RecordType | str | type[BaseModel] | None = None,
        template: str | None = None,
        problems: list[DataError] | None = None,
        **columns: Unpack[FurtherColumns],
    ) -> Dataset:
        """Make a data set from a DataFrame of labelled queries.

        A column ``id`` names the query, a column ``part`` its part (train, dev or test), and other columns are metadata. Missing
        cells are left out; without a label, a query is kept and has no judgements. Rows are merged as `load` merges them.

        Args:
            frame: DataFrame with one row for each query, or for each query and label.
            documents: DataFrame of documents with the columns id, text and optionally title; other columns are metadata. Also
                records, or the path of a file. By default each distinct label becomes a document.
            query: Column of the query text. By default one with a common name, as in `load`.
            label: Column of the labels. By default the label of the record type, or a column with a common name.
            grade: Column of the label's grade. By default ``grade``, ``relevance`` or a similar name, if there is one; an empty
                string for none.
            separator: Separator of several labels in one cell. By default a text is one label.
            record: Record type of the rows, by name or as a Pydantic class. Its template gives the query text.
            template: Query text of a record, with field names in braces. By default the record type's own.
            problems: List that receives the errors of all bad rows. By default the first error is raised.
            columns: Further columns by name, as in `load`: id, part, document_id, document_title, document_text.

        Raises:
            DataError: A row cannot be used. The message names it by its index label, or by its position where labels repeat.
            ConfigError: The separator is empty, or the record type or its template cannot be used.
        """
        named = Columns(query or "", label or "", grade, separator, **columns)
        return _from_rows(frame, documents, named, "frame", problems, record, template)

    @classmethod
    def from_records(
        cls,
        records: Iterable[Any],
        documents: Source | None = None,
        *,
        query: str | None = None,
        label: str | None = None,
        grade: str | None = None,
        separator: str | None = None,
        record: RecordType | str | type[BaseModel] | None = None,
        template: str | None = None,
        problems: list[DataError] | None = None,
        **columns: Unpack[FurtherColumns],
    ) -> Dataset:
        """Make a data set from dicts, dataclasses or Pydantic models, as `load` makes one from the lines of a JSONL file.

        Args:
            records: Records of labelled queries.
            documents: Records of documents with the keys id, text and optionally title; other keys are metadata. Also a
                DataFrame, or the path of a file. By default each distinct label becomes a document.
            query: Key of the query text. By default one with a common name, as in `load`.
            label: Key of the labels. By default the label of the record type, or a key with a common name.
            grade: Key of the label's grade. By default ``grade``, ``relevance`` or a similar name, if there is one; an empty string
                for none.
            separator: Separator of several labels in one text. By default a text is one label.
            record: Record type of the rows, by name or as a Pydantic class. Its template gives the query text.
            template: Query text of a record, with field names in braces. By default the record type's own.
            problems: List that receives the errors of all bad rows. By default the first error is raised.
            columns: Further keys by name, as in `load`: id, part, document_id, document_title, document_text.

        Raises:
            DataError: A record cannot be used. The message names its position, from 0.
            ConfigError: The separator is empty, or the record type or its template cannot be used.
        """
        named = Columns(query or "", label or "", grade, separator, **columns)
        return _from_rows(records, documents, named, "records", problems, record, template)

    @classmethod
    def from_hf(
        cls,
        dataset: datasets.Dataset | Mapping[str, Any],
        documents: Source | None = None,
        *,
        query: str | None = None,
        label: str | None = None,
        grade: str | None = None,
        separator: str | None = None,
        record: RecordType | str | type[BaseModel] | None = None,
        template: str | None = None,
        problems: list[DataError] | None = None,
        **columns: Unpack[FurtherColumns],
    ) -> Dataset:
        """Make a data set from one split of a Hugging Face data set. Class numbers become class names.

        Args:
            dataset: Rows of labelled queries; or {"corpus", "queries", "qrels" (or "default"): rows or splits}, as MTEB's sets have them.
            documents: Rows of documents with the columns id, text and optionally title; other columns are metadata. Also a
                DataFrame, records, or the path of a file. By default each distinct label becomes a document.
            query: Column of the query text. By default one with a common name, as in `load`.
            label: Column of the labels. By default the label of the record type, or a column with a common name.
            grade: Column of the label's grade. By default ``grade``, ``relevance`` or a similar name, if there is one; an empty
                string for none.
            separator: Separator of several labels in one cell. By default a text is one label.
            record: Record type of the rows, by name or as a Pydantic class. Its template gives the query text.
            template: Query text of a record, with field names in braces. By default the record type's own.
            problems: List that receives the errors of all bad rows. By default the first error is raised.
            columns: Further columns by name, as in `load`: id, part, document_id, document_title, document_text.

        Raises:
            DataError: A row cannot be used, or the data set has several splits. The message names the row, from 0.
            ConfigError: The separator is empty, or the record type or its template cannot be used.
        """
        named = Columns(query or "", label or "", grade, separator, **columns)
        return _from_rows(dataset, documents, named, "dataset", problems, record, template)

    @classmethod
    def from_dicts(
        cls,
        queries: Mapping[Any, Any],
        corpus: Mapping[Any, Any],
        qrels: Mapping[Any, Any],
        *,
        problems: list[DataError] | None = None,
    ) -> Dataset:
        """Make a data set from BEIR's three dicts.

        Args:
            queries: Query id -> text, or a dict with ``text`` and metadata.
            corpus: Document id -> text, or a dict with ``text``, optional ``title`` and metadata.
            qrels: Query id -> {document id: grade}, or a list of relevant document ids.
            problems: List that receives the errors of all bad entries. By default the first error is raised.

        Raises:
            DataError: An entry cannot be used, or names an unknown id.
        """
        from embedfit.data.memory import beir_contents

        errors: list[DataError] = []
        contents = beir_contents(queries, corpus, qrels, errors)
        return finished(contents, "qrels", errors, problems, hint=_HINT)

    @property
    def judged(self) -> tuple[str, ...]:
        """Ids of the queries with at least one relevant document, in their order."""
        qrels = self.qrels
        return tuple(id for id in self.queries if (grades := qrels.get(id)) and max(grades.values()) > 0)

    def relevant(self, query_id: str) -> dict[str, int]:
        """Return the relevant documents of a query with their grades, all above 0."""
        return {id: grade for id, grade in self.qrels.get(query_id, {}).items() if grade > 0}

    def select(self, query_ids: Iterable[str]) -> Dataset:
        """Return a data set with these queries only, on the same corpus."""
        ids = list(query_ids)
        qrels = {id: self.qrels[id] for id in ids if id in self.qrels}
        return unchecked(Contents({id: self.queries[id] for id in ids}, self.corpus, qrels))

    def query_texts(self) -> list[str]:
        """Return the text of every query, in order."""
        return [query.text for query in self.queries.values()]

    def document_texts(self, template: str = DOCUMENT_TEMPLATE) -> list[str]:
        """Return the text of every document under a template over its fields, in order.

        Raises:
            ConfigError: The template names a field that no document has.
            DataError: A document is empty under the template.
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
            sha.update(json_bytes([query.id, query.text, dict(query.metadata)]))
        for document in self.corpus.values():
            sha.update(json_bytes([document.id, document.text, document.title, dict(document.metadata)]))
        sha.update(json_bytes([self.qrels, self.parts]))
        return sha.hexdigest()

    def to_frame(self) -> pd.DataFrame:
        """Return one row for each judged pair, with the columns query_id, query, document_id and grade."""
        import pandas as pd

        rows = [(id, self.queries[id].text, document, grade) for id, grades in self.qrels.items() for document, grade in grades.items()]
        return pd.DataFrame(rows, columns=["query_id", "query", "document_id", "grade"])

    def __repr__(self) -> str:
        counts = [count for id in self.queries if (count := len(self.relevant(id)))]
        answers = f"{sum(counts) / len(counts):.1f} answers a query" if counts else "no answers"
        queries, documents = _counted(len(self.queries), "query", "queries"), _counted(len(self.corpus), "document", "documents")
        return f"Dataset({queries}, {documents}, {answers})"

    def _repr_html_(self) -> str:
        rows = []
        for query in itertools.islice(self.queries.values(), _SHOWN_ROWS):
            cells = (query.id, _short(query.text), _short(", ".join(self.relevant(query.id))))
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
        head = "<tr><th>id</th><th>query</th><th>answers</th></tr>"
        return f"<p>{html.escape(repr(self))}</p><table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def unchecked(contents: Contents) -> Dataset:
    """Return a data set of contents that a reader, or another data set, has checked already."""
    dataset = object.__new__(Dataset)
    _keep(dataset, contents)
    return dataset


def finished(contents: Contents, source: str, errors: list[DataError], problems: list[DataError] | None, *, hint: str) -> Dataset:
    """Return the data set of contents that were read, and report the errors.

    Args:
        contents: Contents without the bad rows.
        source: Name of the source, for messages.
        errors: Errors of the bad rows.
        problems: List that receives the errors, or None to raise the first.
        hint: Advice on how to see all errors.

    Raises:
        DataError: There are errors and ``problems`` is None, or no query has a relevant document.
    """
    report(errors, problems, hint=hint)
    dataset = unchecked(contents)
    if not dataset.judged and not errors:
        raise DataError(source, "has no query with a relevant document", expected="at least one")
    return dataset


_HINT = "problems=[] takes them all"


def _from_rows(
    source: Source,
    documents: Source | None,
    columns: Columns,
    name: str,
    problems: list[DataError] | None,
    record: RecordType | str | type[BaseModel] | None = None,
    template: str | None = None,
) -> Dataset:
    from embedfit.data.memory import table_contents

    errors: list[DataError] = []
    contents = table_contents(source, documents, columns, name, errors, record=record, template=template)
    return finished(contents, name, errors, problems, hint=_HINT)


def _keep(dataset: Dataset, contents: Contents) -> None:
    for name, value in contents._asdict().items():
        object.__setattr__(dataset, name, value)


_T = TypeVar("_T", Query, Document)


def _by_id(given: Mapping[str, _T | str], kind: type[_T]) -> dict[str, _T]:
    """Return queries or documents by id, with plain texts wrapped.

    Raises:
        DataError: A text is empty, or an id is not the key.
    """
    name = kind.__name__.lower()
    texts = False
    for id, value in given.items():
        text = value
        if isinstance(value, kind):
            text = value.text
            if value.id != id:
                raise DataError(f"{name} {id!r}", f"has the id {value.id!r}", expected="the id that is its key")
            if text == "" and isinstance(value, Document):
                text = value.title
        else:
            texts = True
        if not isinstance(text, str) or not text or text.isspace():
            raise DataError(f"{name} {shown(id)}", f"is {shown(text)}", expected="a text that is not empty")
        if not isinstance(id, str) or not id:
            raise DataError(f"{name} {shown(id)}", f"has the id {shown(id)}", expected="a text that is not empty as id")
    if texts:
        return {id: kind(id, value) if isinstance(value, str) else value for id, value in given.items()}
    return cast(dict[str, _T], given if isinstance(given, dict) else dict(given))


def _as_dicts(qrels: Mapping[str, Mapping[str, int]]) -> Qrels:
    """Return the qrels with Python's own dicts and numbers.

    Raises:
        DataError: A grade is not a whole number of 0 or more.
    """
    if isinstance(qrels, dict) and all(
        type(grades) is dict and all(type(grade) is int and grade >= 0 for grade in grades.values()) for grades in qrels.values()
    ):
        return qrels
    plain: Qrels = {}
    for id, grades in qrels.items():
        if not isinstance(grades, Mapping):
            raise DataError(f"qrels of {shown(id)}", f"is {shown(grades)}", expected="{document id: grade}")
        plain[id] = {}
        for document, grade in grades.items():
            try:
                plain[id][document] = operator.index(grade)
            except TypeError:
                plain[id][document] = -1
            if isinstance(grade, bool) or plain[id][document] < 0:
                problem = f"grade of {shown(document)} is {shown(grade)}"
                raise DataError(f"qrels of {shown(id)}", problem, expected="a whole number, 0 or more")
    return plain


def _check_ids(contents: Contents) -> None:
    """Raise a DataError if the qrels or the parts name an unknown id."""
    queries, corpus, qrels, parts, _ = contents
    for id in qrels.keys() - queries.keys():
        raise DataError(f"qrels of {shown(id)}", f"is not among the {len(queries):,} queries", fix="remove the entry or add the query")
    for id, grades in qrels.items():
        if not grades.keys() <= corpus.keys():
            unknown = next(document for document in grades if document not in corpus)
            check_known(unknown, corpus, f"qrels of {id!r}", "document")
    for part, ids in parts.items():
        if part not in PARTS:
            raise DataError("parts", f"has {shown(part)}", expected="train, dev or test")
        for id in ids:
            if id not in queries:
                raise DataError(f"part {part}", f"query {shown(id)} is not among the {len(queries):,} queries")


def _counted(count: int, singular: str, plural: str) -> str:
    return f"{count:,} {singular if count == 1 else plural}"


def _short(text: str, limit: int = 100) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def text_key(text: str) -> str:
    """Return a short hash of a normalised text. A tuned model keeps these hashes of its training queries."""
    return hashlib.blake2b(normalised(text).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
