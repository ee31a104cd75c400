"""The searcher: an encoder, documents, labelled examples, and what was learnt about how far to trust each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Dataset, Document
from embedfit.encode.encoder import Encoder
from embedfit.errors import ConfigError, DataError, did_you_mean, shown
from embedfit.retrieve.exact import best_of
from embedfit.retrieve.run import NOTHING, Run, named, own_positions
from embedfit.searcher.fusion import Fusion
from embedfit.searcher.gather import Corpus, Examples, Views, taken_at
from embedfit.searcher.views import DOCUMENTS, EXAMPLES, Array, Asked, ClassesView, DocumentsView, ExamplesView, TermsView, WordsView
from embedfit.template import Template

if TYPE_CHECKING:
    from embedfit.evaluation.calibration import Calibrator

Query: TypeAlias = str | Mapping[str, Any]
"""A text, or the fields of a record that the query template renders."""
_BLOCK = 32 * 2**20
"""Scores of one view held at a time."""


@dataclass(frozen=True)
class Reason:
    """What speaks for a hit.

    Attributes:
        kind: ``example`` for the nearest labelled query, ``document`` for the document's own text, ``words`` for words of the query.
        text: The example, the document's text, or the words; empty if examples are kept without their texts.
        score: Cosine similarity to the query; None for words.
    """

    kind: Literal["example", "document", "words"]
    text: str
    score: float | None


@dataclass(frozen=True)
class SearchHit:
    """A document that was found.

    Attributes:
        id: Document id.
        text: Text of the document under the template.
        score: Fused score, larger is better: a log-probability up to a constant of the query.
        probability: Probability that the document is right; None without a calibration.
        because: What speaks for it, the strongest first.
        metadata: Other fields of the document, the title included.
    """

    id: str
    text: str
    score: float
    probability: float | None
    because: tuple[Reason, ...]
    metadata: dict[str, Any]


class Searcher:
    """Searches documents by all views at once.

    Args:
        encoder: Encoder of queries and documents.
        documents: Documents by id.
        corpus: Ids, texts and vectors of the same documents.
        examples: Labelled queries.
        views: Views of these documents and examples.
        fusion: Weights of the views.
        template: Document template.
        base: Model before it was tuned, if a view reads its vectors.
        query_template: Template that renders a record as a query; None if queries are texts.
        calibrator: Turns fused scores into probabilities; None for none.
        threshold: Probability from which an answer needs no person; None if none was chosen.
        promise: The threshold in words.
        abstain: Probability of the best hit under which no answer is right more often than not; None for none.
    """

    def __init__(
        self,
        encoder: Encoder,
        documents: Mapping[str, Document],
        corpus: Corpus,
        examples: Examples,
        views: Views,
        fusion: Fusion,
        *,
        template: str,
        base: Encoder | None = None,
        query_template: Template | None = None,
        calibrator: Calibrator | None = None,
        threshold: float | None = None,
        promise: str = "",
        abstain: float | None = None,
    ) -> None:
        self.encoder, self.base, self.documents = encoder, base, dict(documents)
        self.template, self.query_template = template, query_template
        self.corpus, self.examples, self.views, self.fusion = corpus, examples, views, fusion
        self.calibrator, self.threshold, self.promise, self.abstain = calibrator, threshold, promise, abstain
        self.name = f"{encoder.name}, searcher"
        self._position = {id: place for place, id in enumerate(corpus.ids)}
        self._metadata = [{**({"title": document.title} if document.title else {}), **document.metadata} for document in self._in_order()]

    def __repr__(self) -> str:
        return f"Searcher({self.encoder.name!r}, {len(self.corpus.ids):,} documents, {len(self.examples.query_ids):,} examples)"

    def search(self, query: Query, k: int = 5, *, allowed: Collection[str] | None = None) -> list[SearchHit]:
        """Return up to k documents for a query, best first.

        Args:
            query: A text, or the fields of a record.
            k: Number of documents, at least 1.
            allowed: Ids of the documents that may be found; by default all. Probabilities are still shares of all documents.

        Raises:
            ConfigError: ``k`` is under 1.
            DataError: The query is not a text or a record, or an allowed id is unknown.
        """
        return self.search_many([query], k, allowed=allowed)[0]

    def search_many(self, queries: Sequence[Query], k: int = 5, *, allowed: Collection[str] | None = None) -> list[list[SearchHit]]:
        """Return up to k documents for each query, as `search` does. Many queries at once take less time than one by one."""
        texts = [self.text_of(query, f"query {number}") for number, query in enumerate(queries, start=1)]
        return self.search_encoded(self.encode(texts), k, allowed=allowed) if texts else []

    def encode(self, texts: Sequence[str]) -> Asked:
        """Return query texts with the vectors that `search_encoded` needs."""
        return Asked(texts, self.encoder.encode(texts, "query"), self.base.encode(texts, "query") if self.base else None)

    def search_encoded(self, asked: Asked, k: int = 5, *, allowed: Collection[str] | None = None) -> list[list[SearchHit]]:
        """Return up to k documents for each query that `encode` has read.

        Args:
            asked: Queries.
            k: Number of documents, at least 1.
            allowed: Ids of the documents that may be found; by default all.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; expected the number of documents to find, at least 1")
        mask = None if allowed is None else self._mask(allowed)
        candidates, fused = self._fused(asked, np.full(len(asked.texts), -1, np.int64))
        chances = self.calibrator.probabilities(fused) if self.calibrator else None
        hits = []
        for row in range(len(asked.texts)):
            places = candidates[row]
            usable = (places >= 0) & (True if mask is None else mask[np.maximum(places, 0)])
            order = np.lexsort((places, -fused[row], ~usable))[: min(k, int(usable.sum()))]
            hits.append(
                [
                    self._hit(asked, row, int(places[column]), float(fused[row, column]), None if chances is None else float(chances[row, column]))
                    for column in order
                ]
            )
        return hits

    def rank(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set. A query that is itself a document does not find itself.

        Raises:
            DataError: The data set has a document that the searcher lacks, or lacks one that it has.
        """
        if set(dataset.corpus) != set(self.corpus.ids):
            raise DataError("data", "has other documents than the searcher", fix="search the same documents, or build the searcher again")
        asked, own = self.encode(dataset.query_texts()), own_positions(dataset, self.corpus.ids)
        height = max(1, _BLOCK // max(1, self.views.count))
        blocks = []
        for top in range(0, len(asked.texts), height):
            rows = slice(top, top + height)
            blocks.append(self._fused(asked[rows], own[rows]))
        return ranked(tuple(dataset.queries), self.corpus.ids, blocks, k)

    def text_of(self, query: Query, where: str = "query") -> str:
        """Return the text that a query is searched as.

        Raises:
            DataError: It is neither a text nor a record, is empty, or lacks a field.
        """
        if isinstance(query, Mapping):
            if self.query_template is None:
                raise DataError(where, "is a record", expected="a text", fix="this searcher was made of texts")
            missing = [name for name in self.query_template.fields if name not in query]
            if len(missing) == len(self.query_template.fields):
                known = ", ".join(self.query_template.fields)
                raise DataError(where, f"has none of the fields {known}", expected="a record of these fields")
            query = self.query_template.render(query)
        if not isinstance(query, str) or not query.strip():
            raise DataError(where, f"is {shown(query)}", expected="a text that is not empty")
        return query

    def add(self, query: Query, document_id: str, *, key: str = "") -> str:
        """Add a labelled example. It counts from the next search on.

        Args:
            query: A text, or the fields of a record.
            document_id: Id of the document that answers it.
            key: Id of the example, by which it can be taken back; by default a new one. An example with this key is replaced.

        Returns:
            The key.

        Raises:
            DataError: The query or the document is unknown or wrong.
        """
        text = self.text_of(query)
        return self.add_vector(text, self.encoder.encode([text], "query")[0], document_id, key=key)

    def add_vector(self, text: str, vector: npt.NDArray[np.float32], document_id: str, *, key: str = "") -> str:
        """Add a labelled example whose vector is known, as `add` does."""
        if document_id not in self._position:
            raise DataError("example", f"names the document {shown(document_id)}", expected=f"a known id{did_you_mean(document_id, self._position)}")
        if key in self.examples.query_ids:
            self.remove(key)
        held = self.examples
        key = key or _new_key(held.query_ids)
        self.examples = Examples(
            (*held.query_ids, key),
            (*held.texts, text),
            np.concatenate([held.vectors.reshape(-1, len(vector)), vector[None]]).astype(np.float32),
            np.append(held.owners, self._position[document_id]),
            np.append(held.members, len(held.query_ids)),
        )
        self._renew_examples()
        return key

    def remove(self, key: str) -> None:
        """Take an example back. The linear models and weights stay as they were fitted.

        Raises:
            DataError: There is no such example.
        """
        if key not in self.examples.query_ids:
            raise DataError("example", f"{shown(key)} is unknown", expected="the key of an example")
        place, held = self.examples.query_ids.index(key), self.examples
        kept = held.members != place
        self.examples = Examples(
            (*held.query_ids[:place], *held.query_ids[place + 1 :]),
            (*held.texts[:place], *held.texts[place + 1 :]),
            np.delete(held.vectors, place, axis=0),
            held.owners[kept],
            held.members[kept] - (held.members[kept] > place),
        )
        self._renew_examples()

    def add_document(self, document: Document) -> None:
        """Add a document, or replace one with the same id. It can be found from the next search on.

        Raises:
            DataError: The document's text is empty under the template.
        """
        text = Template(self.template).render(document.fields)
        if not text:
            raise DataError(f"document {shown(document.id)}", "has no text under the template", expected="a text that is not empty")
        vector = self.encoder.encode([text], "document")
        self.documents[document.id] = document
        held, place = self.corpus, self._position.get(document.id, len(self.corpus.ids))
        vectors = np.concatenate([held.vectors[:place], vector, held.vectors[place + 1 :]])
        self.corpus = Corpus(
            (*held.ids[:place], document.id, *held.ids[place + 1 :]), (*held.texts[:place], text, *held.texts[place + 1 :]), vectors
        )
        metadata = {**({"title": document.title} if document.title else {}), **document.metadata}
        self._metadata[place : place + 1] = [metadata]
        self._position[document.id] = place
        views = {**self.views.views, DOCUMENTS: DocumentsView(vectors)}
        for name, view in self.views.views.items():
            if isinstance(view, WordsView):
                views[name] = WordsView(self.corpus.texts)
            elif isinstance(view, ClassesView | TermsView):
                view.count = len(self.corpus.ids)
        self.views = Views(views, len(self.corpus.ids), self.views.scale)
        self._renew_examples()

    def without_texts(self) -> Searcher:
        """Return the searcher without the examples' texts: their vectors alone are kept."""
        examples = replace(self.examples, texts=("",) * len(self.examples.texts))
        return Searcher(
            self.encoder,
            self.documents,
            self.corpus,
            examples,
            self.views,
            self.fusion,
            template=self.template,
            base=self.base,
            query_template=self.query_template,
            calibrator=self.calibrator,
            threshold=self.threshold,
            promise=self.promise,
            abstain=self.abstain,
        )

    def _renew_examples(self) -> None:
        view = ExamplesView(self.examples.vectors, self.examples.owners, self.examples.members, len(self.corpus.ids), self.views.scale)
        self.views = Views({**self.views.views, EXAMPLES: view}, len(self.corpus.ids), self.views.scale)

    def _fused(self, asked: Asked, own: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], Array]:
        """Return candidates and fused scores, -inf at empty places; each of shape (n, m)."""
        scores = self.views.scores(asked, self.fusion.views)
        candidates = self.views.candidates(scores, own)
        if candidates.shape[1] != self.views.count:
            scores = {name: taken_at(values, candidates) for name, values in scores.items()}
        return candidates, self.fusion.scores(scores, candidates < 0)

    def _mask(self, allowed: Collection[str]) -> npt.NDArray[np.bool_]:
        mask = np.zeros(len(self.corpus.ids), bool)
        for id in allowed:
            if id not in self._position:
                raise DataError("filter", f"names the document {shown(id)}", expected=f"a known id{did_you_mean(id, self._position)}")
            mask[self._position[id]] = True
        return mask

    def _hit(self, asked: Asked, row: int, place: int, score: float, probability: float | None) -> SearchHit:
        reasons = self._reasons(asked, row, place)
        return SearchHit(self.corpus.ids[place], self.corpus.texts[place], score, probability, reasons, self._metadata[place])

    def _reasons(self, asked: Asked, row: int, place: int) -> tuple[Reason, ...]:
        reasons = [Reason("document", self.corpus.texts[place], float(self.corpus.vectors[place] @ asked.vectors[row]))]
        examples, terms = self.views.views.get(EXAMPLES), next((view for view in self.views.views.values() if isinstance(view, TermsView)), None)
        if isinstance(examples, ExamplesView) and (nearest := examples.nearest(asked.vectors[row], place)):
            reasons.insert(0, Reason("example", self.examples.texts[nearest[0]], nearest[1]))
        if terms and (words := terms.strongest(asked.texts[row], place)):
            reasons.append(Reason("words", ", ".join(words), None))
        return tuple(reasons)

    def _in_order(self) -> list[Document]:
        return [self.documents[id] for id in self.corpus.ids]


def ranked(query_ids: tuple[str, ...], document_ids: tuple[str, ...], blocks: Sequence[tuple[npt.NDArray[np.int64], Array]], k: int) -> Run:
    """Return the Run of candidates with their fused scores.

    Args:
        query_ids: Query ids, in the order of the blocks' rows.
        document_ids: Document ids, in the order of the candidates' positions.
        blocks: Candidates (-1 for an empty place) and fused scores, each of shape (n, m).
        k: Number of documents for each query.
    """
    width = min(k, max((candidates.shape[1] for candidates, _ in blocks), default=0) or 1)
    positions = np.full((len(query_ids), width), len(document_ids), np.int64)
    scores = np.full(positions.shape, NOTHING, np.float32)
    top = 0
    for candidates, fused in blocks:
        rows = slice(top, top + len(candidates))
        columns, best = best_of(np.where(candidates < 0, np.float32(-np.finfo(np.float32).max), fused), width)
        found = np.take_along_axis(candidates, columns, axis=1)
        positions[rows, : found.shape[1]] = np.where(found < 0, len(document_ids), found)
        scores[rows, : found.shape[1]] = np.where(found < 0, NOTHING, best)
        top += len(candidates)
    order = tuple(sorted(document_ids))
    if order != document_ids:
        moved = np.append(np.argsort(np.argsort(np.array(document_ids, dtype=object))), len(document_ids))
        positions = moved[positions]
    return Run(query_ids, named(order, positions), positions, scores)


def _new_key(known: Collection[str]) -> str:
    import secrets

    while (key := f"added-{secrets.token_hex(8)}") in known:
        pass
    return key
