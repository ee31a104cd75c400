"""The parts of a data set: queries, documents and grades."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

Row: TypeAlias = dict[str, Any]
Qrels: TypeAlias = dict[str, dict[str, int]]
"""Query id -> {document id: grade}. Grade 0 means judged and not relevant."""
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
        """The fields that a document template may name: the metadata, plus id, title and text."""
        return {**self.metadata, "id": self.id, "title": self.title, "text": self.text}


class Contents(NamedTuple):
    """The fields of a `Dataset`, as the readers return them."""

    queries: dict[str, Query]
    corpus: dict[str, Document]
    qrels: Qrels
    parts: dict[str, tuple[str, ...]] = {}  # noqa: RUF012 - never changed
    merged: tuple[str, ...] = ()
