"""The searcher that a server needs, and one made of a finished run."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from embedfit.data.dataset import Dataset
from embedfit.data.records import RecordType, record_type
from embedfit.data.texts import Document
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.errors import DataError
from embedfit.retrieve.run import sorted_corpus
from embedfit.template import Template

Query: TypeAlias = str | Mapping[str, Any]
"""A text, or the fields of a record."""


class Hit(Protocol):
    """A document that answers a query."""

    @property
    def id(self) -> str:
        """Document id."""
        ...

    @property
    def text(self) -> str:
        """Text of the document."""
        ...

    @property
    def score(self) -> float:
        """Score, larger is better."""
        ...

    @property
    def probability(self) -> float | None:
        """Probability that the document is right, from 0 to 1; None without a calibration."""
        ...

    @property
    def because(self) -> Sequence[Mapping[str, Any]]:
        """Evidence: {"kind": "example", "words" or "document", "text", "score"}."""
        ...


class Searcher(Protocol):
    """What the server serves.

    Attributes:
        threshold: Probability over which an answer needs no person; None if there is none.
        abstention: Probability under which there is no answer; None if the searcher always answers.
    """

    threshold: float | None
    abstention: float | None

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    @property
    def fingerprint(self) -> str:
        """Identity of all that changes the answers."""
        ...

    @property
    def encoder(self) -> Encoder:
        """Encoder of queries and documents."""
        ...

    @property
    def documents(self) -> Mapping[str, Document]:
        """Document id -> document."""
        ...

    @property
    def record(self) -> RecordType | None:
        """Record type of the queries; None if they are texts."""
        ...

    def text_of(self, query: Query) -> str:
        """Return the text of a query, under the query template if it is a record."""
        ...

    def document_text(self, document: Document) -> str:
        """Return the text of a document under the document template."""
        ...

    def search(self, queries: Sequence[Query], k: int = 5, allowed: Collection[str] | None = None) -> Sequence[Sequence[Hit]]:
        """Return up to k hits for each query, best first, among the allowed document ids."""
        ...

    def rank(self, vectors: Vectors, texts: Sequence[str], k: int = 5) -> Sequence[Sequence[Hit]]:
        """Return up to k hits for each query, whose vector and text are given."""
        ...

    def add(self, text: str, document_id: str, key: str) -> None:
        """Add a labelled example, which counts from the next search on. One with the same key is replaced."""
        ...

    def remove(self, key: str) -> None:
        """Remove an example, if it is there."""
        ...


@dataclass(frozen=True)
class RunHit:
    """A hit of a `RunSearcher`: see `Hit`."""

    id: str
    text: str
    score: float
    probability: float | None = None
    because: list[dict[str, Any]] = field(default_factory=list)


class RunSearcher:
    """Cosine similarity to each document, or to an example of it that is nearer.

    Args:
        name: Name of the model.
        encoder: Encoder of queries and documents.
        dataset: Data set with the documents.
        template: Template of a document's text.
        record: Record type of the queries; None if they are texts.
    """

    threshold: float | None = None
    abstention: float | None = None

    def __init__(self, name: str, encoder: Encoder, dataset: Dataset, template: str, record: RecordType | None = None) -> None:
        self.name, self.encoder, self.documents, self.template = name, encoder, dataset.corpus, Template(template)
        self.record, self.fingerprint = record, encoder.fingerprint
        _, self._ids = sorted_corpus(dataset)
        self._texts = [self.template.render(dataset.corpus[id].fields) for id in self._ids]
        self._vectors = CachedEncoder(encoder).encode(self._texts, "document")
        self._row_of = {id: row for row, id in enumerate(self._ids)}
        self._examples: dict[str, tuple[str, str, Vectors]] = {}
        self._lock = threading.Lock()

    @classmethod
    def load(cls, folder: str | Path) -> RunSearcher:
        """Return the searcher of a finished run.

        Raises:
            EmbedfitError: The folder is not a finished run directory, or its data or model is missing.
        """
        from embedfit.config import Config
        from embedfit.pipeline.parts import read
        from embedfit.pipeline.result import read_result

        result = read_result(folder)
        config = Config.model_validate(result.manifest["config"])
        data = config.data
        record = record_type(data.record, template=data.query_template, label=data.label) if data.record else None
        return cls(result.folder.name, result.encoder, read(data), data.document_template, record)

    def text_of(self, query: Query) -> str:
        """Return the text of a query, under the query template if it is a record.

        Raises:
            DataError: The record has other fields than the template, or the queries are not records.
        """
        if isinstance(query, str):
            return query
        if self.record is None:
            raise DataError("query", "is a record", expected="a text, as the model was trained on texts")
        return self.record.text({self.record.label: "?", **query}, "query")

    def document_text(self, document: Document) -> str:
        """Return the text of a document under the document template."""
        return self.template.render(document.fields)

    def search(self, queries: Sequence[Query], k: int = 5, allowed: Collection[str] | None = None) -> list[list[RunHit]]:
        """Return up to k hits for each query, best first, among the allowed document ids."""
        texts = [self.text_of(query) for query in queries]
        return self._ranked(self.encoder.encode(texts, "query"), k, allowed)

    def rank(self, vectors: Vectors, texts: Sequence[str], k: int = 5) -> list[list[RunHit]]:
        """Return up to k hits for each query vector."""
        return self._ranked(vectors, k, None)

    def add(self, text: str, document_id: str, key: str) -> None:
        """Add a labelled example."""
        vector = self.encoder.encode([text], "query")
        with self._lock:
            self._examples[key] = (text, document_id, vector)

    def remove(self, key: str) -> None:
        """Remove an example."""
        with self._lock:
            self._examples.pop(key, None)

    def _ranked(self, vectors: Vectors, k: int, allowed: Collection[str] | None) -> list[list[RunHit]]:
        if not self._ids:
            return [[] for _ in vectors]
        scores = vectors @ self._vectors.T
        with self._lock:
            examples = [example for example in self._examples.values() if example[1] in self._row_of]
        nearest: list[dict[int, dict[str, Any]]] = [{} for _ in vectors]
        for text, id, vector in examples:
            column = self._row_of[id]
            for row, score in enumerate((vectors @ vector[0]).tolist()):
                if score > scores[row, column]:
                    scores[row, column] = score
                    nearest[row][column] = {"kind": "example", "text": text, "score": score}
        columns = None if allowed is None else [self._row_of[id] for id in sorted(set(allowed) & self._row_of.keys())]
        hits = []
        for row in range(len(vectors)):
            order = np.argsort(-scores[row], kind="stable") if columns is None else sorted(columns, key=lambda at: -scores[row, at])
            hits.append(
                [
                    RunHit(
                        self._ids[column],
                        self._texts[column],
                        float(scores[row, column]),
                        None,
                        [because] if (because := nearest[row].get(column)) else [],
                    )
                    for column in map(int, order[:k])
                ]
            )
        return hits
