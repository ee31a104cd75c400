"""Documents and labelled examples as the entries of a store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from embedfit.data.dataset import Dataset, Document
from embedfit.files import digest
from embedfit.searcher.parts import Parts
from embedfit.store.base import Entry


def entries_of(dataset: Dataset, template: str) -> list[Entry]:
    """Return the documents of a data set as entries of a store."""
    texts = dataset.document_texts(template)
    return [entry_of(document, text) for document, text in zip(dataset.corpus.values(), texts, strict=True)]


def entry_of(document: Document, text: str) -> Entry:
    """Return a document as an entry.

    Args:
        document: Document.
        text: Its text under the template.
    """
    return Entry(document.id, text, _plain({**({"title": document.title} if document.title else {}), **document.metadata}))


def fields_of(document: Document) -> dict[str, Any]:
    """Return title, text and metadata of a document as JSON values."""
    return _plain({"title": document.title, "text": document.text, "metadata": dict(document.metadata)})


def examples_of(parts: Parts) -> list[Entry]:
    """Return the labelled examples of a searcher as entries: the metadata has their document ids, and where they came from."""
    examples, ids = parts.examples, parts.corpus.ids
    documents: list[list[str]] = [[] for _ in examples.query_ids]
    for member, owner in zip(examples.members.tolist(), examples.owners.tolist(), strict=True):
        documents[member].append(ids[owner])
    rows = zip(examples.query_ids, examples.texts, documents, strict=True)
    return [Entry(key, text, {"documents": answers, "source": source_of(key)}) for key, text, answers in rows]


def source_of(key: str) -> str:
    """Return where an example came from by its key: ``feedback``, ``person``, or else ``train``."""
    prefixes = {"feedback:": "feedback", "added-": "person"}
    return next((source for prefix, source in prefixes.items() if key.startswith(prefix)), "train")


def documents_digest(entries: Sequence[Entry]) -> str:
    """Return the SHA-256 of entries in any order, in hexadecimal."""
    return digest([vars(entry) for entry in sorted(entries, key=lambda entry: entry.id)])


def _plain(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata as JSON values: dates become text, NaN becomes null."""
    plain: dict[str, Any] = json.loads(json.dumps(metadata, default=_as_json), parse_constant=lambda _: None)
    return plain


def _as_json(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)
