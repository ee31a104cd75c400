"""From labelled queries to views, and from views to evidence on other queries."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.retrieve.run import own_positions, sorted_corpus
from embedfit.searcher.fusion import Evidence
from embedfit.searcher.views import (
    BASE,
    CLASSES,
    DOCUMENTS,
    EXAMPLES,
    LINEAR,
    TERMS,
    VIEWS,
    WORDS,
    Array,
    Asked,
    ClassesView,
    DocumentsView,
    ExamplesView,
    TermsView,
    View,
    WordsView,
)

SCALES = (5.0, 15.0, 40.0)
"""Scales of the soft maximum over a document's examples that are tried: near their mean, between, near the nearest one."""
SCALE = 15.0
"""The scale before one is chosen."""
FEW_DOCUMENTS = 1000
"""Up to so many documents, all are candidates."""
DEPTH = 100
"""Candidates that each view adds beyond that."""
_BLOCK = 32 * 2**20
"""Scores of one view held at a time."""
_MOST_CLASSES, _REPEATED = 2000, 2
"""Most classes of the linear models, and labelled queries that a class needs on average."""


@dataclass(frozen=True)
class Corpus:
    """Documents in order of id.

    Attributes:
        ids: Sorted document ids.
        texts: Text of each document under the template.
        vectors: Vector of each; shape (documents, dimensions).
    """

    ids: tuple[str, ...]
    texts: tuple[str, ...]
    vectors: Vectors

    @classmethod
    def of(cls, dataset: Dataset, encoder: Encoder, template: str) -> Corpus:
        """Encode the documents of a data set."""
        order, ids = sorted_corpus(dataset)
        rendered = dataset.document_texts(template)
        texts = tuple(rendered[position] for position in order)
        return cls(ids, texts, encoder.encode(texts, "document"))


@dataclass(frozen=True)
class Examples:
    """Labelled queries. Queries without a right answer are none.

    Attributes:
        query_ids: Query ids.
        texts: Text of each.
        vectors: Vector of each; shape (examples, dimensions).
        owners: Position of a document for each pair of an example and a document that answers it.
        members: Position of the example of each pair.
        base: Vectors by the model before it was tuned, shape (examples, dimensions); None if no view reads them.
    """

    query_ids: tuple[str, ...]
    texts: tuple[str, ...]
    vectors: Vectors
    owners: npt.NDArray[np.int64]
    members: npt.NDArray[np.int64]
    base: Vectors | None = None

    @classmethod
    def of(cls, dataset: Dataset, encoder: Encoder, document_ids: Sequence[str], base: Encoder | None = None) -> Examples:
        """Encode the judged queries of a data set, also by the model before it was tuned if it is given."""
        position = {id: place for place, id in enumerate(document_ids)}
        answered = [id for id in dataset.judged if any(document in position for document in dataset.relevant(id))]
        texts = tuple(dataset.queries[id].text for id in answered)
        pairs = [
            (member, position[document]) for member, id in enumerate(answered) for document in dataset.relevant(id) if document in position
        ]
        members, owners = np.array(pairs, np.int64).reshape(-1, 2).T
        by_base = base.encode(texts, "query") if base else None
        return cls(tuple(answered), texts, encoder.encode(texts, "query"), owners, members, by_base)


@dataclass(frozen=True)
class Views:
    """All views of one corpus.

    Attributes:
        views: View by name; those that do not suit the data are missing.
        count: Number of documents.
        scale: Scale of the soft maximum over a document's examples.
    """

    views: dict[str, View]
    count: int
    scale: float = SCALE

    @classmethod
    def fit(
        cls,
        corpus: Corpus,
        examples: Examples,
        names: Iterable[str] = VIEWS,
        *,
        scale: float = SCALE,
        given: Mapping[str, View] | None = None,
    ) -> Views:
        """Build the views, and fit the linear models if labels repeat.

        Args:
            corpus: Documents.
            examples: Labelled queries.
            names: Views to build.
            scale: Scale of the soft maximum over a document's examples.
            given: Views that exist already.
        """
        views: dict[str, View] = {DOCUMENTS: DocumentsView(corpus.vectors), **(given or {})}
        names, count = set(names) - set(views), len(corpus.ids)
        if EXAMPLES in names and len(examples.owners):
            views[EXAMPLES] = ExamplesView(examples.vectors, examples.owners, examples.members, count, scale)
        if WORDS in names:
            views[WORDS] = WordsView(corpus.texts)
        if names & set(LINEAR) and labels_repeat(examples.owners.tolist()):
            if CLASSES in names:
                views[CLASSES] = ClassesView.fit(examples.vectors[examples.members], examples.owners, count)
            if TERMS in names:
                terms = TermsView.fit([examples.texts[member] for member in examples.members], examples.owners, count)
                if terms:
                    views[TERMS] = terms
            if BASE in names and examples.base is not None:
                views[BASE] = ClassesView.fit(examples.base[examples.members], examples.owners, count, base=True)
        return cls(views, count, scale)

    @property
    def height(self) -> int:
        """The number of queries that are scored at a time, for bounded memory."""
        examples = self.views.get(EXAMPLES)
        pairs = len(examples.members) if isinstance(examples, ExamplesView) else 0
        return max(1, _BLOCK // max(1, self.count, pairs))

    def scores(self, asked: Asked, names: Iterable[str] | None = None, cosines: Array | None = None) -> dict[str, Array]:
        """Return each view's scores of all documents; shape (n, documents).

        Args:
            asked: Queries.
            names: Views to ask; by default all.
            cosines: Cosine of each query and example, if they are known already; shape (n, examples).
        """
        views = {name: view for name, view in self.views.items() if names is None or name in names}
        return {
            name: view.scores_of(cosines) if cosines is not None and isinstance(view, ExamplesView) else view.scores(asked)
            for name, view in views.items()
        }

    def candidates(self, scores: dict[str, Array], own: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the positions of the candidates: all of few documents, else the best of each view; shape (n, m), -1 for an empty place.

        Args:
            scores: Scores of all documents by each view.
            own: Position of the document that each query is itself, -1 for none: it is no candidate.
        """
        n = len(own)
        if self.count <= FEW_DOCUMENTS:
            places = np.tile(np.arange(self.count), (n, 1))
            return np.where(places == own[:, None], -1, places)
        tops = [_tops(values) for values in scores.values()]
        rows = [np.setdiff1d(np.unique(np.concatenate([top[row] for top in tops])), [-1, own[row]]) for row in range(n)]
        candidates = np.full((n, max(map(len, rows), default=0) or 1), -1, np.int64)
        for row, places in enumerate(rows):
            candidates[row, : len(places)] = places
        return candidates

    def gather(
        self, dataset: Dataset, encoder: Encoder, document_ids: Sequence[str], base: Encoder | None = None, *, seed: int = 0
    ) -> Evidence:
        """Return what the views say about the queries of a data set, in blocks of bounded memory.

        Args:
            dataset: Data set whose queries are asked; a query that is itself a document does not find itself.
            encoder: Encoder of the queries.
            document_ids: Sorted ids of the documents.
            base: Model before it was tuned; None if no view reads its vectors.
            seed: Seed of the few examples that a new document is assumed to have.
        """
        texts = dataset.query_texts()
        asked = Asked(texts, encoder.encode(texts, "query"), base.encode(texts, "query") if base else None)
        own = own_positions(dataset, document_ids)
        position = {id: place for place, id in enumerate(document_ids)}
        relevant = [{position[document] for document in dataset.relevant(id) if document in position} for id in dataset.queries]
        examples = self.views.get(EXAMPLES)
        pairs: dict[float, tuple[ExamplesView, ExamplesView]] = {}
        if isinstance(examples, ExamplesView):
            few = examples.few(np.random.default_rng(seed))
            pairs = {scale: (examples.at(scale), few.at(scale)) for scale in SCALES}
        height = self.height
        query_ids, tops = tuple(dataset.queries), range(0, max(1, len(texts)), height)
        return Evidence.joined([self._block(asked, query_ids, own, relevant, pairs, slice(top, top + height)) for top in tops])

    def _block(
        self,
        asked: Asked,
        query_ids: tuple[str, ...],
        own: npt.NDArray[np.int64],
        relevant: Sequence[set[int]],
        pairs: Mapping[float, tuple[ExamplesView, ExamplesView]],
        rows: slice,
    ) -> Evidence:
        some = asked[rows]
        scores = self.scores(some)
        candidates = self.candidates(scores, own[rows])
        scales = {
            scale: (taken_at(examples.scores(some), candidates), taken_at(few.scores(some), candidates))
            for scale, (examples, few) in pairs.items()
        }
        is_relevant = np.array([np.isin(places, list(right)) for places, right in zip(candidates, relevant[rows], strict=True)])
        taken = {name: taken_at(values, candidates) for name, values in scores.items()}
        nothing = np.full(candidates.shape, np.nan, np.float32)
        few = scales[self.scale][1] if scales else nothing
        return Evidence(query_ids[rows], candidates, taken, few, is_relevant.reshape(candidates.shape), scales)


def taken_at(scores: Array, candidates: npt.NDArray[np.int64]) -> Array:
    """Return the scores of the candidates, NaN at empty places."""
    taken: Array = np.where(candidates < 0, np.float32(np.nan), np.take_along_axis(scores, np.maximum(candidates, 0), axis=1))
    return taken


def _tops(scores: Array) -> npt.NDArray[np.int64]:
    """Return the positions of the `DEPTH` best documents of each row, -1 for those with nothing known or no word in common."""
    filled = np.nan_to_num(scores, nan=-np.inf)
    tops = np.argpartition(filled, -DEPTH, axis=1)[:, -DEPTH:]
    values = np.take_along_axis(filled, tops, axis=1)
    return np.where(np.isfinite(values) & (values != 0), tops, -1)


def labels_repeat(labels: Collection[int] | Collection[str]) -> bool:
    """Return whether a linear model has something to learn: few classes, and several labelled queries for most of them.

    Args:
        labels: Label of each pair of a labelled query and a document that answers it.
    """
    classes = len(set(labels))
    return 1 < classes <= _MOST_CLASSES and len(labels) >= _REPEATED * classes
