"""Queries, documents and judgements."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from embedfit.errors import DataError
from embedfit.files import json_bytes
from embedfit.template import DOCUMENT_TEMPLATE, Template

if TYPE_CHECKING:
    import pandas as pd

Row: TypeAlias = dict[str, Any]
Qrels: TypeAlias = dict[str, dict[str, int]]
"""Query id -> {document id: grade}; a grade of 0 means judged and not relevant."""
PARTS = ("train", "dev", "test")


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
            sha.update(json_bytes([query.id, query.text, dict(query.metadata)]))
        for document in self.corpus.values():
            sha.update(json_bytes([document.id, document.text, document.title, dict(document.metadata)]))
        sha.update(json_bytes([self.qrels, self.parts]))
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
