"""The searcher's views over a store: vectors stay in the store, and what was learnt from them is in memory.

Candidates come from the store's nearest documents and nearest examples, and from the other views. They are scored as
`embedfit.searcher.searcher.Searcher` scores them. Of the examples that a search did not fetch, only the number and the sum of their
vectors are known, for each document. They add

    r exp(s (m - 1))     r: their number, m: their mean cosine to the query, s: the scale

to the document's soft maximum. That is exact for one example and a lower bound for more (Jensen's inequality). If all examples are
fetched, nothing is estimated. Up to `FEW_DOCUMENTS` documents, all are candidates, and their vectors are in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from embedfit.encode.encoder import Vectors
from embedfit.searcher.gather import DEPTH, FEW_DOCUMENTS, Views, taken_at
from embedfit.searcher.parts import Parts
from embedfit.searcher.views import DOCUMENTS, EXAMPLES, TERMS, WORDS, Array, Asked, ClassesView, TermsView, View, WordsView
from embedfit.store.base import EXAMPLES as BESIDE
from embedfit.store.base import Filters, Neighbours, Store, changed, emptied
from embedfit.store.changes import Change
from embedfit.store.values import matches

NEIGHBOURS = 400
"""Examples that a search fetches from the store."""
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Held:
    """What is in memory of a version.

    Attributes:
        parts: Searcher that the version was made from, without the vectors of examples, and without those of documents if they are many.
        sums: Sum of the vectors of each document's examples; shape (documents with examples, dimensions).
        row_of: Row in `sums` of each document, -1 for none; shape (documents,).
        counts: Number of examples of each document; shape (documents,).
        starts: Where each example's documents begin in `owners`; shape (examples + 1,).
        owners: Positions of the documents of each example, one after another.
    """

    parts: Parts
    sums: Vectors
    row_of: Positions
    counts: Positions
    starts: Positions
    owners: Positions

    @classmethod
    def of(cls, parts: Parts) -> Held:
        """Return what is kept of a searcher's parts."""
        count, examples = len(parts.corpus.ids), parts.examples
        known, row = np.unique(examples.owners, return_inverse=True)
        sums = np.zeros((len(known), parts.corpus.vectors.shape[1]), np.float32)
        order = np.argsort(examples.owners, kind="stable")
        if len(order):
            sums = np.add.reduceat(examples.vectors[examples.members[order]], np.searchsorted(row[order], np.arange(len(known))), axis=0)
        row_of = np.full(count, -1, np.int64)
        row_of[known] = np.arange(len(known))
        by_example = np.argsort(examples.members, kind="stable")
        starts = np.searchsorted(examples.members[by_example], np.arange(len(examples.query_ids) + 1))
        vectors = parts.corpus.vectors[: count if count <= FEW_DOCUMENTS else 0]
        views = {name: view for name, view in parts.views.views.items() if name not in (DOCUMENTS, EXAMPLES)}
        light = replace(
            parts,
            documents={},
            corpus=replace(parts.corpus, vectors=vectors),
            examples=replace(examples, vectors=examples.vectors[:0], base=None),
            views=Views(views, count, parts.views.scale),
        )
        return cls(light, sums, row_of, np.bincount(examples.owners, minlength=count), starts, examples.owners[by_example])

    @cached_property
    def place_of(self) -> dict[str, int]:
        """Document id -> position."""
        return {id: place for place, id in enumerate(self.parts.corpus.ids)}

    @cached_property
    def example_of(self) -> dict[str, int]:
        """Key of an example -> its position."""
        return {key: place for place, key in enumerate(self.parts.examples.query_ids)}


@dataclass(frozen=True)
class Scored:
    """Candidates of some queries, and what speaks for them.

    n queries with m candidates each; a row with fewer ends with empty places.

    Attributes:
        candidates: Positions of documents, -1 for an empty place; shape (n, m).
        fused: Fused scores, -inf at empty places; shape (n, m).
        cosines: Cosine of each candidate's own vector, NaN at empty places; shape (n, m).
        usable: Whether a candidate passes the filters; shape (n, m).
        fetched: For each query, the keys of the nearest examples with their cosines.
    """

    candidates: Positions
    fused: Array
    cosines: Array
    usable: npt.NDArray[np.bool_]
    fetched: list[Neighbours]


class Scorer:
    """Scores queries by a version and its changes.

    Args:
        store: Store that holds the version.
        version: Name of the version.
        held: What is in memory of it.
        changes: Latest change of each key.
        neighbours: Number of examples to fetch for a query.
    """

    def __init__(self, store: Store, version: str, held: Held, changes: Sequence[Change], neighbours: int = NEIGHBOURS) -> None:
        self.store, self.version, self.held, self.neighbours = store, version, held, neighbours
        documents = {change.key: change for change in changes if change.what == "document" and not change.gone}
        ids = held.parts.corpus.ids
        self.ids = (*ids, *(id for id in documents if id not in held.place_of))
        self.place_of = {**held.place_of, **{id: place for place, id in enumerate(self.ids[len(ids) :], start=len(ids))}}
        self.documents = {self.place_of[id]: change for id, change in documents.items()}
        self._few = len(self.ids) <= FEW_DOCUMENTS
        self._places, self._vectors = self._in_memory()
        self._views = self._other_views()
        examples = [change for change in changes if change.what == "example"]
        self._replaced = {change.key for change in examples if change.key in held.example_of}
        self._out = self._taken_out()
        added = [change for change in examples if not change.gone and change.document in self.place_of]
        vectors = np.array([change.vector for change in added], np.float32).reshape(-1, held.sums.shape[1])
        owners = np.array([self.place_of[change.document] for change in added], np.int64)
        self._added = _Pairs(owners, vectors, tuple(change.text for change in added))
        self.examples = {change.key: change for change in added}
        self._counts = np.append(held.counts, np.zeros(len(self.ids) - len(ids), np.int64))
        self._counts += self._added.count(len(self.ids)) - self._out.count(len(self.ids))

    def scored(self, asked: Asked, own: Positions, filters: Filters | None = None, depth: int = DEPTH) -> Scored:
        """Return the candidates of some queries with their scores.

        Args:
            asked: Queries.
            own: Position of the document that each query is itself, -1 for none: it is no candidate.
            filters: Metadata that a hit must have.
            depth: Number of documents to fetch at least, if they are not in memory.
        """
        held, names = self.held, self.held.parts.fusion.views
        fetched = self._nearest_examples(asked.vectors) if EXAMPLES in names else [[] for _ in asked.texts]
        scores = {name: view.scores(asked) for name, view in self._views.items() if name in names}
        scores[DOCUMENTS] = self._cosines(asked, max(depth, DEPTH), {})
        if EXAMPLES in names:
            rows = zip(asked.vectors, fetched, strict=True)
            scores[EXAMPLES] = np.stack([self._soft_maxima(vector, row, None) for vector, row in rows])
        allowed = self._allowed(asked, filters, depth) if filters else None
        candidates = Views({}, len(self.ids)).candidates(scores, own)
        if allowed is not None and not self._few:
            candidates = _with_more(candidates, allowed, own)
        taken = {name: taken_at(values, candidates) for name, values in scores.items()} if not self._few else scores
        if not self._few:
            self._complete(taken, asked, candidates, fetched)
        usable = candidates >= 0
        if allowed is not None:
            usable &= self._passing(candidates, allowed, filters or {})
        fused = held.parts.fusion.scores(taken, candidates < 0)
        return Scored(candidates, fused, taken[DOCUMENTS], usable, fetched)

    def nearest_example(self, fetched: Neighbours, vector: npt.NDArray[np.float32], place: int) -> tuple[str, float] | None:
        """Return the text of the example of a document that is nearest to a query, and its cosine; None if none was fetched.

        Args:
            fetched: Keys of the query's nearest examples with their cosines.
            vector: Vector of the query; shape (dimensions,).
            place: Position of the document.
        """
        texts = self.held.parts.examples.texts
        examples = [
            (cosine, texts[self.held.example_of[key]])
            for key, cosine in fetched
            if key not in self._replaced and place in self._owners_of(key)
        ]
        of_document = np.flatnonzero(self._added.owners == place)
        cosines = self._added.vectors[of_document] @ vector if len(of_document) else ()
        examples += [(float(cosine), self._added.texts[row]) for cosine, row in zip(cosines, of_document, strict=True)]
        if not examples:
            return None
        cosine, text = max(examples, key=lambda example: example[0])
        return text, cosine

    def strongest_words(self, text: str, places: Sequence[int]) -> Sequence[Sequence[str]]:
        """Return, for each of some documents, the words of a query that speak most for it."""
        terms = self._views.get(TERMS)
        return terms.strongest(text, places) if isinstance(terms, TermsView) else [()] * len(places)

    def _owners_of(self, key: str) -> Positions:
        """Return the positions of the documents of an example of the version; none if it has no such example."""
        place = self.held.example_of.get(key)
        return self.held.owners[:0] if place is None else self.held.owners[self.held.starts[place] : self.held.starts[place + 1]]

    def _taken_out(self) -> _Pairs:
        """Return the examples of the version that were taken back or replaced."""
        vectors = self.store.vectors(self.version + BESIDE, sorted(self._replaced)) if self._replaced else {}
        if len(vectors) < len(self._replaced):
            raise changed(self.store, self.version)
        pairs = [(int(owner), vector) for key, vector in vectors.items() for owner in self._owners_of(key)]
        matrix = np.array([vector for _, vector in pairs], np.float32).reshape(-1, self.held.sums.shape[1])
        return _Pairs(np.array([owner for owner, _ in pairs], np.int64), matrix, ())

    def _in_memory(self) -> tuple[Positions, Vectors]:
        """Return the positions and vectors of the documents that need no store: all of few, else those that were added."""
        base = self.held.parts.corpus.vectors
        added = np.array(sorted(self.documents), np.int64)
        vectors = np.array([self.documents[place].vector for place in added], np.float32).reshape(-1, base.shape[1])
        if not self._few:
            return added, vectors
        everything = np.concatenate([base, np.zeros((len(self.ids) - len(base), base.shape[1]), np.float32)])
        everything[added] = vectors
        return np.arange(len(self.ids)), everything

    def _other_views(self) -> dict[str, View]:
        """Return the views that read no vectors of the store, over the documents with those that were added."""
        views = dict(self.held.parts.views.views)
        if self.documents:
            texts = [*self.held.parts.corpus.texts, *[""] * (len(self.ids) - len(self.held.parts.corpus.texts))]
            for place, change in self.documents.items():
                texts[place] = change.text
            for name, view in views.items():
                if name == WORDS:
                    views[name] = WordsView(texts)
                elif isinstance(view, ClassesView | TermsView):
                    views[name] = view.over(len(self.ids))
        return views

    def _nearest_examples(self, vectors: Vectors) -> list[Neighbours]:
        count = min(self.neighbours, len(self.held.example_of))
        if not count:
            return [[] for _ in vectors]
        fetched = self.store.nearest(self.version + BESIDE, vectors, count, {})
        if not all(fetched):
            raise emptied(self.store, self.version + BESIDE)
        if any(key not in self.held.example_of for row in fetched for key, _ in row):
            raise changed(self.store, self.version)
        return fetched

    def _cosines(self, asked: Asked, depth: int, filters: Filters) -> Array:
        """Return the cosines of documents, NaN for those that are neither in memory nor among the nearest; shape (n, documents)."""
        if self._few and not filters:
            cosines: Array = asked.vectors @ self._vectors.T
            return cosines
        scores = np.full((len(asked.texts), len(self.ids)), np.nan, np.float32)
        base = self.held.place_of
        for row, neighbours in enumerate(self.store.nearest(self.version, asked.vectors, min(depth, len(base)), filters)):
            if not neighbours and not filters:
                raise emptied(self.store, self.version)
            if any(id not in base for id, _ in neighbours):
                raise changed(self.store, self.version)
            scores[row, [base[id] for id, _ in neighbours]] = [cosine for _, cosine in neighbours]
        if len(self._places) and not filters:
            scores[:, self._places] = asked.vectors @ self._vectors.T
        return scores

    def _soft_maxima(self, vector: npt.NDArray[np.float32], fetched: Neighbours, wanted: Positions | None) -> Array:
        """Return the soft maximum over each document's examples, NaN without examples; shape (documents,).

        Args:
            vector: Vector of the query; shape (dimensions,).
            fetched: Keys of its nearest examples with their cosines.
            wanted: Documents whose scores are needed; None for all of few, else for those of the fetched examples.
        """
        held, scale, count = self.held, self.held.parts.views.scale, len(self.ids)
        places = np.array([held.example_of[key] for key, _ in fetched if key not in self._replaced], np.int64)
        sizes = held.starts[places + 1] - held.starts[places]
        cosines = np.repeat(np.array([cosine for key, cosine in fetched if key not in self._replaced]), sizes)
        owners = held.owners[np.repeat(held.starts[places] - np.cumsum(sizes) + sizes, sizes) + np.arange(sizes.sum())]
        added, out = self._added, self._out
        of_added, of_out = added.vectors @ vector, out.vectors @ vector

        def totals(of_fetched: npt.NDArray[np.float64], of_others: Array, others: Positions) -> npt.NDArray[np.float64]:
            return np.asarray(np.bincount(owners, of_fetched, count) + np.bincount(others, of_others, count), np.float64)

        sums = totals(np.exp(scale * (cosines - 1)), np.exp(scale * (of_added - 1)), added.owners)
        if wanted is None:
            wanted = np.arange(count) if self._few else np.flatnonzero(sums)
        wanted = wanted[self._counts[wanted] > 0]
        fetched_of = np.bincount(owners, minlength=count) + added.count(count)
        left = (self._counts - fetched_of)[wanted]
        if left.any():
            rows = np.append(held.row_of, np.full(count - len(held.row_of), -1))[wanted]
            means = held.sums[rows] @ vector * (rows >= 0) - totals(cosines, of_out, out.owners)[wanted]
            sums[wanted] += left * np.exp(scale * (np.minimum(means / np.maximum(left, 1), 1) - 1))
        scores = np.full(count, np.nan, np.float32)
        scores[wanted] = np.log(np.maximum(sums[wanted] / self._counts[wanted], np.finfo(np.float32).tiny)) / scale + 1
        return scores

    def _complete(self, taken: Mapping[str, Array], asked: Asked, candidates: Positions, fetched: Sequence[Neighbours]) -> None:
        """Fill in the cosines and soft maxima of candidates that came from another view."""
        missing = np.isnan(taken[DOCUMENTS]) & (candidates >= 0)
        ids = [self.ids[place] for place in np.unique(candidates[missing])]
        vectors = self.store.vectors(self.version, ids)
        if len(vectors) < len(ids):
            raise changed(self.store, self.version)
        for row, column in zip(*np.nonzero(missing), strict=True):
            taken[DOCUMENTS][row, column] = asked.vectors[row] @ vectors[self.ids[candidates[row, column]]]
        if EXAMPLES in taken:
            for row, places in enumerate(candidates):
                inside = places >= 0
                scores = self._soft_maxima(asked.vectors[row], fetched[row], np.unique(places[inside]))
                taken[EXAMPLES][row, inside] = scores[places[inside]]

    def _allowed(self, asked: Asked, filters: Filters, depth: int) -> list[set[int]]:
        """Return, for each query, the positions of the nearest documents that pass the filters: all of few."""
        depth = len(self.held.place_of) if self._few else max(depth, DEPTH)
        near = self._cosines(asked, depth, filters)
        added = {place for place, change in self.documents.items() if matches(change.shown, filters)}
        return [set(np.flatnonzero(~np.isnan(row)).tolist()) - self.documents.keys() | added for row in near]

    def _passing(self, candidates: Positions, allowed: Sequence[set[int]], filters: Filters) -> npt.NDArray[np.bool_]:
        """Return which candidates pass the filters; shape (n, m). Of many documents, those that are not known to are looked up."""
        passing = [set(row) for row in allowed]
        if not self._few:
            unknown = {int(place) for place in np.unique(candidates) if place >= 0} - set().union(*allowed) - self.documents.keys()
            entries = self.store.entries(self.version, [self.ids[place] for place in sorted(unknown)])
            more = {self.place_of[id] for id, entry in entries.items() if matches(entry.metadata, filters)}
            passing = [row | more for row in passing]
        return np.array([np.isin(places, list(row)) for places, row in zip(candidates, passing, strict=True)])


@dataclass(frozen=True)
class _Pairs:
    """Examples outside of the version's collection, each with a document that it speaks for.

    Attributes:
        owners: Positions of the documents.
        vectors: Vectors of the examples.
        texts: Their texts.
    """

    owners: Positions
    vectors: Vectors
    texts: tuple[str, ...]

    def count(self, documents: int) -> Positions:
        """Return the number of examples of each document."""
        return np.bincount(self.owners, minlength=documents)


def _with_more(candidates: Positions, more: Sequence[set[int]], own: Positions) -> Positions:
    """Return the candidates and further ones, -1 for empty places."""
    rows = [sorted({*places.tolist(), *extra} - {-1, itself}) for places, extra, itself in zip(candidates, more, own.tolist(), strict=True)]
    wide = np.full((len(rows), max(map(len, rows)) or 1), -1, np.int64)
    for row, places in enumerate(rows):
        wide[row, : len(places)] = places
    return wide
