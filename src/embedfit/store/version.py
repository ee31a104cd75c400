"""One version of an index: documents alone, or a searcher with what it was taught since. A Retriever, also for single searches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from embedfit.data.dataset import Dataset, Document
from embedfit.encode.encoder import Encoder
from embedfit.errors import ConfigError, DataError, ModelError, StorageError, did_you_mean, shown
from embedfit.retrieve.retrievers import DenseRetriever
from embedfit.retrieve.run import NOTHING, Ranked, Retriever, Run, own_positions, run_of, sorted_corpus
from embedfit.searcher.parts import Parts
from embedfit.searcher.searcher import Query, Reason, Searcher, SearchHit, ranked
from embedfit.searcher.views import EXAMPLES, Asked
from embedfit.store.base import Entry, Filters, Neighbours, Stamp, Store, changed, check_entries, emptied, is_encodable
from embedfit.store.changes import Change, Changes
from embedfit.store.entries import documents_digest, entries_of, fields_of
from embedfit.store.opening import open_searcher
from embedfit.store.stored import NEIGHBOURS, Held, Scored, Scorer
from embedfit.template import Template

_BLOCK = 2**22
"""Scores of all documents that are held at a time, while many queries are searched."""


def run_of_neighbours(dataset: Dataset, nearest: Callable[[int], Sequence[Neighbours]], k: int) -> Run:
    """Return the Run of what a store found for each query of a data set. It may have found fewer documents than were asked for.

    Args:
        dataset: Data set with the queries and the documents.
        nearest: Function from a number of documents to the hits of each query, best first, as (document id, score).
        k: Number of documents for each query.
    """
    _, ids = sorted_corpus(dataset)
    position = {id: place for place, id in enumerate(ids)}

    def ranked_to(depth: int) -> Ranked:
        places = np.full((len(dataset.queries), min(depth, len(ids))), len(ids), np.int64)
        scores = np.full(places.shape, NOTHING, np.float32)
        for row, neighbours in enumerate(nearest(places.shape[1])):
            places[row, : len(neighbours)] = [position[id] for id, _ in neighbours]
            scores[row, : len(neighbours)] = [score for _, score in neighbours]
        return places, scores

    return run_of(dataset, ids, ranked_to, k)


def hit_of(entry: Entry, score: float) -> SearchHit:
    """Return the hit of a document that was found by its vector."""
    return SearchHit(entry.id, entry.text, score, None, (Reason("document", entry.text, score),), entry.metadata)


class Version:
    """One version of documents alone, as a Retriever and for single searches.

    Args:
        store: Store that holds the version.
        collection: Name of the version.
        encoder: Encoder of queries, the same that encoded the documents.
    """

    def __init__(self, store: Store, collection: str, encoder: Encoder) -> None:
        self.store, self.collection, self.encoder = store, collection, encoder
        self.stamp = store.stamp(collection)
        self.name = f"{encoder.name} in {store.where}"

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return up to k documents for each query of a data set.

        Raises:
            StorageError: The documents of the collection differ from those of the data set.
        """
        check_documents(self.store, self.collection, self.stamp, dataset)
        vectors = self.encoder.encode(dataset.query_texts(), "query")

        def nearest(depth: int) -> list[Neighbours]:
            found = self.store.nearest(self.collection, vectors, depth, {})
            if not all(id in dataset.corpus for row in found for id, _ in row):
                raise changed(self.store, self.collection)
            return found

        return run_of_neighbours(dataset, nearest, k)

    def exact(self, parts: Parts | None = None) -> Retriever:
        """Return exact search in the same documents; parts of a searcher are ignored."""
        return DenseRetriever(self.encoder, self.stamp.template)

    def find(self, query: Query, k: int = 10, filters: Filters | None = None) -> list[SearchHit]:
        """Return up to k documents for a query, best first; a score is the cosine similarity.

        Args:
            query: Query text.
            k: Maximum number of documents.
            filters: Metadata that a document must have; see `embedfit.store.base.Filters`.

        Raises:
            DataError: The query is no text, or contains a lone surrogate.
            StorageError: The store cannot be reached, or something else changed the collection.
        """
        text, filters = text_of(query), filters or {}
        vectors = self.encoder.encode([text], "query")
        check_width(self.store, self.stamp, vectors, self.encoder)
        if not can_match(self.store, filters):
            return []
        [neighbours] = self.store.nearest(self.collection, vectors, min(k, self.stamp.documents), filters)
        if not neighbours and not filters:
            raise emptied(self.store, self.collection)
        entries = self.store.entries(self.collection, [id for id, _ in neighbours])
        if any(id not in entries for id, _ in neighbours):
            raise changed(self.store, self.collection)
        return [hit_of(entries[id], float(score)) for id, score in neighbours]


class SearcherVersion:
    """One version of a searcher, with what it was taught since: as a Retriever and for single searches.

    Args:
        store: Store that holds the version.
        collection: Name of the version.
        parts: Searcher that the version was made from.
        neighbours: Number of examples that a search fetches.
    """

    def __init__(self, store: Store, collection: str, parts: Parts, neighbours: int = NEIGHBOURS) -> None:
        self.store, self.collection, self.neighbours = store, collection, neighbours
        self.stamp = store.stamp(collection)
        self.encoder: Encoder = parts.encoder
        self.name = f"{parts.encoder.name}, searcher in {store.where}"
        self._held = Held.of(parts)
        self._searcher = Searcher(self._held.parts)
        self.changes = Changes(store, collection)
        self._scorer: tuple[frozenset[str], Scorer] | None = None

    @property
    def parts(self) -> Parts:
        """Searcher that the version was made from, without what the store holds."""
        return self._held.parts

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the version's documents, without those that were added since."""
        return self._held.parts.corpus.ids

    @property
    def scorer(self) -> Scorer:
        """What scores queries, with all changes up to now."""
        self.changes.refresh()
        rows = self.changes.rows
        if self._scorer is None or self._scorer[0] != rows:
            self._scorer = rows, Scorer(self.store, self.collection, self._held, list(self.changes), self.neighbours)
        return self._scorer[1]

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return up to k documents for each query of a data set. Documents that were added since can be among them.

        Raises:
            StorageError: The documents of the version differ from those of the data set.
        """
        check_documents(self.store, self.collection, self.stamp, dataset)
        scorer, asked = self.scorer, self._searcher.encode(dataset.query_texts())
        own = own_positions(dataset, scorer.ids)
        height = max(1, _BLOCK // max(1, len(scorer.ids)))
        blocks = [scorer.scored(asked[top : top + height], own[top : top + height], depth=k) for top in range(0, len(own), height)]
        return ranked(tuple(dataset.queries), scorer.ids, [(block.candidates, block.fused) for block in blocks], k)

    def exact(self, parts: Parts | None = None) -> ExactSearcher:
        """Return the searcher in memory that this version should answer as, what it was taught included.

        Args:
            parts: Searcher that the version was made from; by default it is opened again.
        """
        self.changes.refresh()
        return ExactSearcher(parts or open_searcher(self.stamp, self.store.where), list(self.changes))

    def find(self, query: Query, k: int = 10, filters: Filters | None = None) -> list[SearchHit]:
        """Return up to k documents for a query, best first, as `embedfit.searcher.searcher.Searcher.search` does.

        Args:
            query: A text, or the fields of a record.
            k: Maximum number of documents.
            filters: Metadata that a document must have; see `embedfit.store.base.Filters`. Probabilities are still shares of all documents.

        Raises:
            DataError: The query is no text or record, or contains a lone surrogate.
            StorageError: The store cannot be reached, or something else changed the collection.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; expected the number of documents to find, at least 1")
        text = self._searcher.text_of(query)
        check_query(text)
        asked = self._searcher.encode([text])
        check_width(self.store, self.stamp, asked.vectors, self.encoder)
        if not can_match(self.store, filters or {}):
            return []
        scorer = self.scorer
        scored = scorer.scored(asked, np.full(1, -1), filters, k)
        return self._hits(scorer, scored, asked, k)

    def _hits(self, scorer: Scorer, scored: Scored, asked: Asked, k: int) -> list[SearchHit]:
        [places], [fused], [usable] = scored.candidates, scored.fused, scored.usable
        best = np.lexsort((places, -fused, ~usable))[: min(k, int(usable.sum()))]
        calibrator = self._held.parts.calibrator
        chances = calibrator.probabilities(scored.fused)[0] if calibrator else None
        ids = [scorer.ids[places[column]] for column in best]
        stored = [id for id in ids if scorer.place_of[id] not in scorer.documents]
        entries = self.store.entries(self.collection, stored)
        if len(entries) < len(stored):
            raise changed(self.store, self.collection)
        hits = []
        words = scorer.strongest_words(asked.texts[0], [int(places[column]) for column in best])
        for column, id, strongest in zip(best.tolist(), ids, words, strict=True):
            change = scorer.documents.get(int(places[column]))
            entry = Entry(id, change.text, change.shown) if change else entries[id]
            chance = None if chances is None else float(chances[column])
            reasons = self._reasons(scorer, scored, asked, column, entry, strongest)
            hits.append(SearchHit(id, entry.text, float(fused[column]), chance, reasons, entry.metadata))
        return hits

    def _reasons(self, scorer: Scorer, scored: Scored, asked: Asked, column: int, entry: Entry, words: Sequence[str]) -> tuple[Reason, ...]:
        place = int(scored.candidates[0, column])
        reasons = [Reason("document", entry.text, float(scored.cosines[0, column]))]
        if nearest := scorer.nearest_example(scored.fetched[0], asked.vectors[0], place):
            reasons.insert(0, Reason("example", *nearest))
        if words:
            reasons.append(Reason("words", ", ".join(words), None))
        return tuple(reasons)

    def example(self, query: Query, document_id: str, key: str, source: str) -> Change:
        """Return a labelled example as a change to write.

        Raises:
            ConfigError: The searcher does not search by examples.
            DataError: The query is no text or record, or the document is unknown.
        """
        if EXAMPLES not in self._held.parts.fusion.views:
            raise ConfigError(f"{self.store.where}: its searcher does not search by examples; fix: searcher.views, and run again")
        place_of = self.scorer.place_of
        if document_id not in place_of:
            raise DataError(
                "example", f"names the document {shown(document_id)}", expected=f"a known id{did_you_mean(document_id, place_of)}"
            )
        text = self._searcher.text_of(query)
        check_entries([Entry(key, text, {"source": source})], self.store, "example")
        return Change("example", key, self.encoder.encode([text], "query")[0], text, document_id, source)

    def document(self, document: Document) -> Change:
        """Return a document as a change to write.

        Raises:
            DataError: The document has no text, or none under the template, or the store cannot keep it.
        """
        Dataset({}, {document.id: document}, {})  # checks it
        text = Template(self.stamp.template).render(document.fields)
        if not text:
            raise DataError(f"document {shown(document.id)}", "has no text under the template", expected="a text that is not empty")
        fields = fields_of(document)
        check_entries([Entry(document.id, text, fields)], self.store)
        return Change("document", document.id, self.encoder.encode([text], "document")[0], text, fields=fields)

    def has_example(self, key: str) -> bool:
        """Return whether there is an example of this key now."""
        row = {change.key: change for change in self.changes if change.what == "example"}.get(key)
        return not row.gone if row else key in self._held.example_of


class ExactSearcher:
    """A searcher in memory that was taught the same as a version, as a Retriever.

    Args:
        parts: Searcher that the version was made from.
        changes: Latest change of each key.
    """

    def __init__(self, parts: Parts, changes: Sequence[Change]) -> None:
        self.added = {change.key: change.added for change in changes if change.what == "document" and not change.gone}
        for change in changes:
            if change.key in self.added and change.what == "document":
                parts = parts.with_document(change.added, change.vector[None])
        self.searcher = Searcher(parts)
        self.name = self.searcher.name
        for change in changes:
            if change.what == "example":
                if change.key in self.searcher.parts.examples.query_ids:
                    self.searcher.remove(change.key)
                if not change.gone and change.document in parts.documents:
                    self.searcher.add_vector(change.text, change.vector, change.document, key=change.key)

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set. Documents that were added can be among them."""
        if self.added:
            dataset = Dataset(dataset.queries, {**dataset.corpus, **self.added}, dataset.qrels)
        return self.searcher.rank(dataset, k)


def check_documents(store: Store, collection: str, stamp: Stamp, dataset: Dataset) -> None:
    """Check that a version holds the documents of a data set.

    Raises:
        StorageError: It holds others.
    """
    if documents_digest(entries_of(dataset, stamp.template)) != stamp.digest:
        raise StorageError(f"{store.where}: {collection} holds other documents than the data set; fix: run 'embedfit index'")


def text_of(query: Query) -> str:
    """Return a query of an index of documents alone, which must be a text that can be encoded.

    Raises:
        DataError: It is a record, or contains a lone surrogate.
    """
    if not isinstance(query, str):
        raise DataError("the query", "is a record", expected="a text", fix="index the searcher of a run that was made of records")
    check_query(query)
    return query


def check_query(text: str) -> None:
    """Check that a query can be encoded.

    Raises:
        DataError: It contains a lone surrogate.
    """
    if not is_encodable(text):
        raise DataError("the query", "contains half of a character (a lone surrogate)", fix="correct the text")


def check_width(store: Store, stamp: Stamp, vectors: Any, encoder: Encoder) -> None:
    """Check that the vectors of queries have the dimension of the index.

    Raises:
        ModelError: They have another.
    """
    if vectors.shape[1] != stamp.dimension:
        raise ModelError(
            f"{store.where}: {encoder.name!r} gave {vectors.shape[1]} dimensions, and the index {store.index!r} has {stamp.dimension}; "
            f"fix: --model {stamp.opens or stamp.encoder}, or run 'embedfit index' again"
        )


def can_match(store: Store, filters: Filters) -> bool:
    """Return whether the store can hold a document with such metadata."""
    return all(is_encodable(text) and (store.takes_nul or "\0" not in text) for pair in filters.items() for text in pair)
