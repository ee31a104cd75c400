"""The searcher behind a server: a run's, or one over documents that nobody has labelled yet."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from embedfit.data.dataset import Dataset, Document
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.errors import DataError, did_you_mean
from embedfit.searcher.fusion import NEAREST as NEAREST_EXAMPLE
from embedfit.searcher.fusion import Fusion
from embedfit.searcher.gather import Corpus, Examples, Views
from embedfit.searcher.parts import Parts
from embedfit.searcher.saving import searcher_digest
from embedfit.searcher.searcher import Query, Searcher, SearchHit
from embedfit.searcher.views import DOCUMENTS, EXAMPLES, Asked
from embedfit.serve.feedback import key_of
from embedfit.store.base import Filters
from embedfit.template import Template

FEEDBACK = "feedback:"
"""Begins the keys of examples that come from feedback, which are no query's id."""
_WITH_EXAMPLES = {DOCUMENTS: 20.0, EXAMPLES: 15.0}
_UNTRAINED = Fusion({"warm": _WITH_EXAMPLES, "new": _WITH_EXAMPLES, "cold": {DOCUMENTS: 20.0, NEAREST_EXAMPLE: 13.0}})
"""Weights before there is anything to fit them on. A document without examples counts as if it had one that is a little less like the
query than the nearest example of any other: else whatever was picked once would come first for everything (docs/decisions.md)."""
_NEAREST = 40.0
"""Scale of the soft maximum over a document's examples: near the nearest one."""


class Wanted(NamedTuple):
    """A search.

    Attributes:
        text: Text of the query.
        k: Number of hits.
        filters: Metadata that a document must have.
    """

    text: str
    k: int
    filters: Filters


class Served:
    """A searcher with what a server needs to know of it.

    Args:
        searcher: Searcher.
        name: Name of the model for clients.
        fingerprint: Identity of all that changes the answers, but the feedback.
    """

    def __init__(self, searcher: Searcher, name: str, fingerprint: str) -> None:
        self.searcher, self.name, self.fingerprint = searcher, name, fingerprint
        # Each change replaces the parts. The view of examples is there from the start, since the weights may name it.
        searcher.parts = searcher.parts.with_examples(searcher.parts.examples)
        examples = searcher.parts.examples
        # A pick that the run was trained on is no second example.
        self._titles: list[tuple[str, str, str]] = []
        self._own = {(key_of(examples.texts[member]), owner) for member, owner in zip(examples.members, examples.owners, strict=True)}

    @classmethod
    def load(cls, folder: str | Path, form: str | None = None) -> Served:
        """Return the searcher of a run directory, or of a searcher's own folder.

        Args:
            folder: Run directory, or folder of a searcher.
            form: Form of the model to run, such as ``onnx-int8``; by default the model itself.

        Raises:
            DataError: The folder does not exist or holds no searcher, a file is missing or damaged, or the run has no such form.
            ModelError: The model is missing, or is another one than the searcher was made with.
        """
        folder = Path(folder)
        if not folder.is_dir():
            siblings = [path.name for path in folder.parent.glob("*") if path.is_dir()]
            raise DataError(str(folder), f"does not exist{did_you_mean(folder.name, siblings)}", expected="a run directory")
        place = folder if (folder / "searcher.json").exists() else folder / "searcher"
        if not place.is_dir():
            fix = "run 'embedfit run' again (a tuned reranker has none)"
            raise DataError(str(folder), "has no searcher", expected="a finished run directory", fix=fix)
        return cls(Searcher.load(place, form), folder.resolve().name, searcher_digest(place, form))

    @classmethod
    def untrained(cls, encoder: Encoder, dataset: Dataset, template: str, name: str = "") -> Served:
        """Return a searcher over documents, without labels so far.

        Args:
            encoder: Encoder of queries and documents.
            dataset: Data set with the documents; its queries are ignored.
            template: Template of a document's text.
            name: Name of the model for clients; by default the encoder's.

        Raises:
            ConfigError: The template names an unknown field.
            DataError: A document has no text under the template.
        """
        corpus = Corpus.of(dataset, CachedEncoder(encoder), template) if dataset.corpus else Corpus((), (), np.zeros((0, 1), np.float32))
        nothing = np.zeros(0, np.int64)
        examples = Examples((), (), corpus.vectors[:0], nothing, nothing)
        views = Views.fit(corpus, examples, (DOCUMENTS,), scale=_NEAREST)
        parts = Parts(encoder, dataset.corpus, corpus, examples, views, _UNTRAINED, template)
        return cls(Searcher(parts), name or encoder.name, encoder.fingerprint)

    @property
    def encoder(self) -> Encoder:
        """Encoder of queries and documents."""
        return self.searcher.parts.encoder

    @property
    def documents(self) -> Mapping[str, Document]:
        """Document id -> document."""
        return self.searcher.parts.documents

    @property
    def texts(self) -> Mapping[str, str]:
        """Document id -> text under the template."""
        corpus = self.searcher.parts.corpus
        return dict(zip(corpus.ids, corpus.texts, strict=True))

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of a record; none if queries are texts."""
        template = self.searcher.parts.query_template
        return template.fields if template else ()

    @property
    def threshold(self) -> float | None:
        """Probability from which an answer needs no person; None if there is none."""
        threshold = self.searcher.parts.threshold
        return threshold.value if threshold else None

    def text_of(self, query: Query, where: str) -> str:
        """Return the text of a query, under the query template if it is a record.

        Raises:
            DataError: The record has none of the fields, or the queries are no records.
        """
        return query if isinstance(query, str) else self.searcher.text_of(query, where)

    def search(self, asked: Asked, k: int, allowed: Collection[str] | None = None) -> Sequence[Sequence[SearchHit]]:
        """Return up to k hits for each query, best first, among the allowed document ids."""
        if not self.documents or (allowed is not None and not allowed):
            return [[] for _ in asked.texts]
        return self.searcher.search_encoded(asked, k, allowed=allowed)

    def answer(self, asked: Sequence[Wanted]) -> list[Sequence[SearchHit]]:
        """Return the hits of each search, best first. Searches without a filter are encoded together."""
        results: list[Sequence[SearchHit]] = [()] * len(asked)
        free = [place for place, wanted in enumerate(asked) if not wanted.filters]
        if free:
            most = max(asked[place].k for place in free)
            encoded = self.searcher.encode([asked[place].text for place in free])
            for place, hits in zip(free, self.search(encoded, most), strict=True):
                results[place] = hits
        for place, wanted in enumerate(asked):
            if wanted.filters:
                [results[place]] = self.search(self.searcher.encode([wanted.text]), wanted.k, self._allowed(wanted.filters))
        return results

    def find_titles(self, words: str, most: int = 50) -> list[tuple[str, str]]:
        """Return (id, text) of the documents whose id or text has all words, those that begin with them first."""
        self._titles = self._titles or folded(self.texts)
        return titles_with(self._titles, words, most)

    def _allowed(self, filters: Filters) -> set[str]:
        return {id for id, document in self.documents.items() if all(_matches(document, key, value) for key, value in filters.items())}

    def learn(self, changes: Sequence[tuple[str, str, str | None]]) -> None:
        """Add and take back many examples at once. They count from the next search on.

        Args:
            changes: (key, text, document id) for an example, or (key, "", None) for one that was taken back; the last one of a key counts.
        """
        place_of = {id: place for place, id in enumerate(self.searcher.parts.corpus.ids)}
        latest = {key: (text, document) for key, text, document in changes}
        added = {FEEDBACK + key: (text, place_of[id]) for key, (text, id) in latest.items() if id in place_of}
        added = {key: (text, place) for key, (text, place) in added.items() if (key_of(text), place) not in self._own}
        gone = {FEEDBACK + key for key in latest}
        examples = self.searcher.parts.examples
        if not added and not gone & set(examples.query_ids):
            return
        texts = [text for text, _ in added.values()]
        vectors = self.encoder.encode(texts, "query") if texts else examples.vectors[:0]
        self.searcher.parts = self.searcher.parts.with_examples(with_labels(examples, added, vectors, gone))

    def relearn(self, learnt: Parts) -> None:
        """Take over the weights, views and calibration of other parts, over the examples that there are now."""
        parts = self.searcher.parts
        changed = replace(parts, fusion=learnt.fusion, views=learnt.views, calibrator=learnt.calibrator)
        self.searcher.parts = changed.with_examples(parts.examples)

    def without_feedback(self) -> Parts:
        """Return the searcher's parts without what it learned from feedback."""
        parts = self.searcher.parts
        gone = {id for id in parts.examples.query_ids if id.startswith(FEEDBACK)}
        return parts.with_examples(with_labels(parts.examples, {}, parts.examples.vectors[:0], gone))


def with_labels(examples: Examples, added: Mapping[str, tuple[str, int]], vectors: Vectors, gone: Collection[str] = ()) -> Examples:
    """Return examples with some more, and without others.

    Args:
        examples: Examples so far.
        added: Key -> text, and position of the right document.
        vectors: Vector of each added text; shape (added, dimensions).
        gone: Keys of the examples to leave out.
    """
    kept = np.array([id not in gone for id in examples.query_ids], bool)
    pairs = kept[examples.members]
    number = np.cumsum(kept, dtype=np.int64) - 1
    old = np.flatnonzero(kept).tolist()
    texts, owners = [text for text, _ in added.values()], [place for _, place in added.values()]
    return replace(
        examples,
        query_ids=(*(examples.query_ids[place] for place in old), *added),
        texts=(*(examples.texts[place] for place in old), *texts),
        vectors=np.concatenate([examples.vectors[kept].reshape(-1, vectors.shape[1]), vectors]).astype(np.float32),
        owners=np.append(examples.owners[pairs], np.array(owners, np.int64)),
        members=np.append(number[examples.members[pairs]], np.arange(len(old), len(old) + len(added))),
        base=None,
    )


def folded(texts: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (folded id and text, text, id) for each document."""
    return [(f"{id} {text}".casefold(), text, id) for id, text in texts.items()]


def titles_with(titles: Sequence[tuple[str, str, str]], words: str, most: int) -> list[tuple[str, str]]:
    """Return (id, text) of the documents whose id or text has all words, those that begin with them first."""
    parts = words.casefold().split()
    hits = [(not text.startswith(tuple(parts[:1])), id, shown) for text, shown, id in titles if all(part in text for part in parts)]
    return [(id, shown) for _, id, shown in sorted(hits)[:most]] if parts else []


def plain(value: Any) -> str:
    """Return a value of a filter, or of a document's metadata, as text."""
    return str(value).casefold() if isinstance(value, bool) else str(value)


def _matches(document: Document, key: str, value: str) -> bool:
    field = document.fields.get(key)
    return any(plain(item) == value for item in (field if isinstance(field, (list, tuple)) else [field]) if item is not None)


def asked_of(served: Served, texts: Sequence[str]) -> Asked:
    """Return texts as queries with their vectors, which are kept in the embedding cache."""
    parts = served.searcher.parts
    base = CachedEncoder(parts.base).encode(texts, "query") if parts.base else None
    return Asked(texts, CachedEncoder(parts.encoder).encode(texts, "query"), base)


def template_of(text: str, documents: Mapping[str, Document]) -> str:
    """Return a document template, checked against the fields of the documents.

    Raises:
        ConfigError: The template is malformed, or names an unknown field.
    """
    Template(text).check({name for document in documents.values() for name in document.fields} | {"title", "text", "id"})
    return text
