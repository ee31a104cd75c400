"""The parts of a data set: queries, documents and grades."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

Row: TypeAlias = dict[str, Any]
Qrels: TypeAlias = dict[str, dict[str, int]]
"""Query id -> {document id: grade}. Grade 0 means judged and not relevant."""
TEACHER_SCORES = "teacher_scores"
"""Metadata field of a query with a teacher's scores: {document id: number}."""
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


@dataclass(frozen=True, slots=True)
class Pair:
    """A labelled query, as one row gives it.

    Attributes:
        where: Place of the row, for messages.
        number: Number of the row, from 1, which makes the id of a query without one.
        text: Text of the query.
        grades: Document id -> grade. Empty if no document is right; None if the row does not say.
        id: Id of the query; empty if the row has none.
        part: ``train``, ``dev``, ``test``, or an empty string.
        metadata: Other columns of the row.
        cell: Text of the label cell if it holds a single label, else an empty string.
        scores: Document id -> score by a teacher, if the row has scores.
    """

    where: str
    number: int
    text: str
    grades: dict[str, int] | None
    id: str = ""
    part: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    cell: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


def normalised(text: str) -> str:
    """Return a text for comparison, with compatible characters, case and white space folded."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
