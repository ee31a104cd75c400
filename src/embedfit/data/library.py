"""Documents by id and by text, where labels are texts."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from embedfit.data.cells import without_point
from embedfit.data.texts import Document, normalised
from embedfit.errors import DataError, did_you_mean, shown

LONG_NAME = 80
"""Maximum length of a label that is its own id, in characters. A longer one is a passage."""
_BEGINNING, _DIGITS = 40, 10
"""Characters of a passage's id: the beginning of the text, and the digits of its hash."""
_WINDOW = 8
"""Words by which a passage is found within a longer document."""


HINTS = 20
"""Number of unknown documents for which the nearest known id is looked up, which is slow."""


def check_known(id: str, corpus: Mapping[str, Document], where: str, kind: str, *, hint: bool = True) -> None:
    """Raise a DataError if there is no document with this id."""
    if id not in corpus:
        section, _, digest = id.rpartition(":")
        file = section.partition("#")[0]
        if file in corpus and _DIGEST.fullmatch(digest):
            raise _changed_passage(id, section, file, corpus, where, kind, hint=hint)
        whole = without_point(id)
        near = (f"; did you mean {whole!r}?" if whole in corpus else did_you_mean(id, corpus)) if hint else ""
        raise DataError(
            where,
            f"{kind} {shown(id)} is not among the {len(corpus):,} documents{near}",
            fix="correct it, or add the document",
        )


_DIGEST = re.compile(r"[0-9a-f]{6}(-\d+)?")
"""End of a passage's id: a hash of its text, and a number if another passage has the same."""


def _changed_passage(id: str, section: str, file: str, corpus: Mapping[str, Document], where: str, kind: str, *, hint: bool) -> DataError:
    """Return the error for the passage of a file that is there, but has no passage with this text."""
    inside = [name for name in corpus if name.startswith((f"{file}#", f"{file}:")) and _DIGEST.fullmatch(name.rpartition(":")[2])]

    def alike(name: str) -> tuple[int, int]:
        common = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(name, f"{section}:", strict=False))
        return sum(1 for _ in common), -len(name)

    nearest = max(inside, key=alike, default="") if hint else ""
    near = f"; the nearest passage there is {nearest!r}" if nearest else ""
    outlasts = section if section in corpus else file
    fix = f"name it, or name {outlasts!r}, which outlasts edits of the text" if nearest else f"name {outlasts!r}, which outlasts edits"
    return DataError(where, f"{kind} {shown(id)} is a passage whose text is not in {file} any more{near}", fix=fix)


class Library:
    """Documents that labels name.

    Attributes:
        documents: Documents by id: those given apart, and those that rows brought along.
        given: Whether documents were given apart.
        matched: Number of labels that were found by their text.
        added: Number of passages that were none of the given documents, and became documents.
    """

    def __init__(self, corpus: Mapping[str, Document] | None) -> None:
        self.documents: dict[str, Document] = {} if corpus is None else dict(corpus)
        self.given = corpus is not None
        self.matched = 0
        self.added = 0
        self._names: dict[str, str] = {}
        self._held: dict[str, str] = {}
        self._by_text: dict[str, str] | None = None

    def id_of(self, text: str) -> str:
        """Return the id of a label: the document that says the same, else the label itself if it is short, else a new id.

        Args:
            text: Label, without surrounding white space.
        """
        if text in self.documents:
            return self.documents[text].id  # one string for all labels
        known = self._ids_by_text().get(self._key(text), "") if self.given else ""
        if known:
            self.matched += 1
            return known
        return self._names.setdefault(text, text) if self.given or is_name(text) else self.add(text)

    def add(self, text: str, *, id: str = "", title: str = "", metadata: Mapping[str, Any] | None = None, where: str = "") -> str:
        """Return the id of a document that a row brings along.

        Args:
            text: Text of the document.
            id: Its id. By default the id of a known document with this text, or one made from the text.
            title: Its title.
            metadata: Its further fields.
            where: Place of the row, for messages.

        Raises:
            DataError: The id belongs to a document with another text.
        """
        if not id:
            known = self._held.get(text) or self._ids_by_text().get(self._key(text), "")
            if known:
                self.matched += self.given
                return known
            id = text if is_name(text) else passage_id(text)
        self.added += self.given and id not in self.documents
        document = Document(id, text, title, metadata or {})
        before = self.documents.setdefault(id, document)
        if normalised(before.text) != normalised(text) and text:
            problem = f"document {shown(id)} says {shown(text)} here and {shown(before.text)} elsewhere"
            raise DataError(where or f"document {shown(id)}", problem, expected="one text for each document id")
        if self._by_text is not None:
            self._by_text.setdefault(self._key(text), id)
        return id

    def _key(self, text: str) -> str:
        """Return what two texts of the same document have in common: documents that were given may be written a little differently."""
        return normalised(text) if self.given else text

    def _ids_by_text(self) -> dict[str, str]:
        if self._by_text is None:
            self._by_text = {}
            for id, document in self.documents.items():
                for text in (document.text, f"{document.title} {document.text}", document.title) if self.given else (document.text,):
                    if text.strip():
                        self._by_text.setdefault(self._key(text), id)
        return self._by_text

    def look_for(self, passages: Iterable[str]) -> None:
        """Find the given documents that hold passages, for the passages that are no document themselves and lie in one document alone.

        A passage is looked up by its first words, so the search takes one pass over the documents.
        """
        known = self._ids_by_text()
        wanted: dict[str, list[str]] = {}
        for passage in passages:
            words = normalised(passage).split()
            if len(words) >= _WINDOW and normalised(passage) not in known:
                wanted.setdefault(" ".join(words[:_WINDOW]), []).append(passage)
        holders: dict[str, set[str]] = {}
        for id, document in self.documents.items() if wanted else ():
            text = normalised(f"{document.title} {document.text}")
            words = text.split()
            for place in range(len(words) - _WINDOW + 1):
                for passage in wanted.get(" ".join(words[place : place + _WINDOW]), ()):
                    if normalised(passage) in text:
                        holders.setdefault(passage, set()).add(id)
        self._held = {passage: next(iter(ids)) for passage, ids in holders.items() if len(ids) == 1}


def is_name(label: str) -> bool:
    """Return whether a label is short enough to be its own id."""
    return len(label) <= LONG_NAME


def passage_id(text: str) -> str:
    """Return a short id of a passage, the same wherever it stands: its first words, and a hash of the whole."""
    beginning = " ".join(re.sub(r"[^\w]+", " ", text).split())[:_BEGINNING].strip()
    digest = hashlib.sha256(" ".join(text.split()).encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
    return f"{beginning} {digest}".strip()
