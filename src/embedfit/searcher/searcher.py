"""The searcher: an encoder, documents, labelled examples, and what was learnt about how far to trust each."""

from __future__ import annotations

import difflib
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.data.cells import spelling
from embedfit.data.dataset import Dataset, Document
from embedfit.errors import ConfigError, DataError, did_you_mean, shown
from embedfit.retrieve.exact import best_of
from embedfit.retrieve.run import NOTHING, Run, named, own_positions
from embedfit.searcher.gather import taken_at
from embedfit.searcher.parts import Parts, with_example, without_example
from embedfit.searcher.saving import read_parts, write_parts
from embedfit.searcher.views import EXAMPLES, TERMS, Array, Asked, ExamplesView, TermsView
from embedfit.template import Template

Query: TypeAlias = str | Mapping[str, Any]
"""A text, or the fields of a record that the query template renders."""
_TYPO = 0.8
"""Similarity of two names from which one is taken for a misspelling of the other."""


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
        parts: Everything that it is made of.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.name = f"{parts.encoder.name}, searcher"
        self._position = {id: place for place, id in enumerate(parts.corpus.ids)}

    @classmethod
    def load(cls, folder: str | Path, form: str | None = None) -> Searcher:
        """Read a searcher from its folder, such as ``runs/<run>/searcher``.

        Args:
            folder: Folder of the searcher.
            form: Form of the model that encodes queries, such as ``onnx-int8``, which ``embedfit export`` made; by default the
                model itself.

        Raises:
            DataError: The folder is no searcher, a file in it is missing or damaged, or its run has no such form.
            ModelError: The model is missing, or is another one than the searcher was made with.
        """
        return cls(read_parts(Path(folder), form))

    def save(self, folder: str | Path) -> Path:
        """Write the searcher into a folder, which is replaced as a whole.

        Raises:
            StorageError: The folder cannot be written, or holds something else than a searcher.
            ModelError: The encoder is neither a folder, nor an adapter's file, nor behind an API.
        """
        return write_parts(self.parts, Path(folder))

    def __repr__(self) -> str:
        documents, examples = len(self.parts.corpus.ids), len(self.parts.examples.query_ids)
        return f"Searcher({self.parts.encoder.name!r}, {documents:,} documents, {examples:,} examples)"

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
        return Asked(texts, self.parts.encoder.encode(texts, "query"), self.parts.base.encode(texts, "query") if self.parts.base else None)

    def search_encoded(self, asked: Asked, k: int = 5, *, allowed: Collection[str] | None = None) -> list[list[SearchHit]]:
        """Return up to k documents for each query that `encode` has read.

        Args:
            asked: Queries.
            k: Number of documents, at least 1.
            allowed: Ids of the documents that may be found; by default all.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; expected the number of documents to find, at least 1")
        parts = self.parts
        mask = np.ones(len(parts.corpus.ids) + 1, bool)
        if allowed is not None:
            mask[:] = False
            mask[[self._place_of(id, "filter") for id in allowed]] = True
        mask[-1] = False  # an empty place
        examples = parts.views.views.get(EXAMPLES)
        cosines = examples.cosines(asked) if isinstance(examples, ExamplesView) else None  # they are ranked by, and shown
        candidates, fused = self._fused(parts, asked, np.full(len(asked.texts), -1, np.int64), cosines)
        chances = parts.calibrator.probabilities(fused) if parts.calibrator else None
        hits: list[list[SearchHit]] = []
        for row, places in enumerate(candidates):
            usable = mask[places]
            best = np.lexsort((places, -fused[row], ~usable))[: min(k, int(usable.sum()))].tolist()
            probabilities = [None if chances is None else float(chances[row, column]) for column in best]
            words = _strongest(parts, asked.texts[row], [int(places[column]) for column in best])
            near = None if cosines is None else cosines[row]
            hits.append([])
            for column, chance, strongest in zip(best, probabilities, words, strict=True):
                reasons = _reasons(parts, asked.vectors[row], near, int(places[column]), strongest)
                hits[-1].append(_hit(parts, int(places[column]), float(fused[row, column]), chance, reasons))
        return hits

    def margins(self, asked: Asked) -> Array:
        """Return how far the best document of each query is above the second, in probability or, without a calibration, in score.

        Args:
            asked: Queries.

        Returns:
            Margins, shape (n,); 1 where there are no two documents.
        """
        margins = np.ones(len(asked.texts), np.float32)
        if len(self.parts.corpus.ids) < 2:
            return margins
        _, values = self._fused(self.parts, asked, np.full(len(asked.texts), -1, np.int64))
        if self.parts.calibrator:
            values = self.parts.calibrator.probabilities(values).astype(np.float32)
        best = np.partition(values, (-2, -1), axis=1)[:, -2:] if values.shape[1] > 1 else np.full((len(values), 2), -np.inf)
        known = np.isfinite(best).all(axis=1)
        margins[known] = (best[:, 1] - best[:, 0])[known]
        return margins

    def rank(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set. A query that is itself a document does not find itself.

        Raises:
            DataError: The data set has a document that the searcher lacks, or lacks one that it has.
        """
        return self.rank_with_chances(dataset, k)[0]

    def rank_with_chances(self, dataset: Dataset, k: int) -> tuple[Run, npt.NDArray[np.float64] | None]:
        """Return the Run of `rank`, and the probability that each query's best document is right.

        Returns:
            The Run; and the probabilities, of shape (queries,), or None without a calibration.
        """
        calibrator = self.parts.calibrator
        if set(dataset.corpus) != set(self.parts.corpus.ids):
            raise DataError("data", "has other documents than the searcher", fix="search the same documents, or build the searcher again")
        asked, own = self.encode(dataset.query_texts()), own_positions(dataset, self.parts.corpus.ids)
        height = self.parts.views.height
        blocks, chances = [], [np.empty(0)]
        for top in range(0, len(asked.texts), height):
            rows = slice(top, top + height)
            blocks.append(self._fused(self.parts, asked[rows], own[rows]))
            if calibrator:
                chances.append(calibrator.probabilities(blocks[-1][1]).max(axis=1))
        return ranked(tuple(dataset.queries), self.parts.corpus.ids, blocks, k), np.concatenate(chances) if calibrator else None

    def text_of(self, query: Query, where: str = "query") -> str:
        """Return the text that a query is searched as.

        Raises:
            DataError: It is neither a text nor a record, is empty, or has a field with nearly the name of one that it lacks.
        """
        if isinstance(query, Mapping):
            if self.parts.query_template is None:
                raise DataError(where, "is a record", expected="a text", fix="this searcher was made of texts")
            missing = [name for name in self.parts.query_template.fields if name not in query]
            known = ", ".join(self.parts.query_template.fields)
            if len(missing) == len(self.parts.query_template.fields):
                raise DataError(where, f"has none of the fields {known}", expected="a record of these fields")
            others = {spelling(name): name for name in query if name not in self.parts.query_template.fields}
            for name in missing if others else ():
                if near := difflib.get_close_matches(spelling(name), others, n=1, cutoff=_TYPO):
                    expected = f"a record of the fields {known}"
                    raise DataError(where, f"has no field {name!r}, but {others[near[0]]!r}", expected=expected, fix="rename it")
            query = self.parts.query_template.render(query)
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
        return self.add_vector(text, self.parts.encoder.encode([text], "query")[0], document_id, key=key)

    def add_vector(self, text: str, vector: npt.NDArray[np.float32], document_id: str, *, key: str = "") -> str:
        """Add a labelled example whose vector is known, as `add` does."""
        place = self._place_of(document_id, "example")
        examples = self.parts.examples
        if key in examples.query_ids:
            examples = without_example(examples, key)
        key = key or f"added-{secrets.token_hex(8)}"
        self.parts = self.parts.with_examples(with_example(examples, key, text, vector, place))
        return key

    def remove(self, key: str) -> None:
        """Take an example back. The linear models and weights stay as they were fitted.

        Raises:
            DataError: There is no such example.
        """
        if key not in self.parts.examples.query_ids:
            raise DataError("example", f"{shown(key)} is unknown", expected="the key of an example")
        self.parts = self.parts.with_examples(without_example(self.parts.examples, key))

    def add_document(self, document: Document) -> None:
        """Add a document, or replace the one with the same id. It can be found from the next search on.

        Raises:
            DataError: The document has no text under the template.
        """
        text = Template(self.parts.template).render(document.fields)
        if not text:
            raise DataError(f"document {shown(document.id)}", "has no text under the template", expected="a text that is not empty")
        self.parts = self.parts.with_document(document, self.parts.encoder.encode([text], "document"))
        self._position = {id: place for place, id in enumerate(self.parts.corpus.ids)}

    def without_texts(self) -> Searcher:
        """Return the searcher without the examples' texts: their vectors alone are kept."""
        examples = self.parts.examples
        return Searcher(replace(self.parts, examples=replace(examples, texts=("",) * len(examples.texts))))

    def _fused(
        self, parts: Parts, asked: Asked, own: npt.NDArray[np.int64], cosines: Array | None = None
    ) -> tuple[npt.NDArray[np.int64], Array]:
        """Return candidates and fused scores, -inf at empty places; each of shape (n, m)."""
        scores = parts.views.scores(asked, parts.fusion.views, cosines)
        candidates = parts.views.candidates(scores, own)
        if candidates.shape[1] != parts.views.count:
            scores = {name: taken_at(values, candidates) for name, values in scores.items()}
        return candidates, parts.fusion.scores(scores, candidates < 0)

    def _place_of(self, document_id: str, where: str) -> int:
        if document_id not in self._position:
            hint = did_you_mean(document_id, self._position)
            raise DataError(where, f"names the document {shown(document_id)}", expected=f"a known id{hint}")
        return self._position[document_id]


def _hit(parts: Parts, place: int, score: float, probability: float | None, because: tuple[Reason, ...]) -> SearchHit:
    document = parts.documents[parts.corpus.ids[place]]
    metadata = {**({"title": document.title} if document.title else {}), **document.metadata}
    return SearchHit(document.id, parts.corpus.texts[place], score, probability, because, metadata)


def _reasons(parts: Parts, vector: npt.NDArray[np.float32], cosines: Array | None, place: int, words: Sequence[str]) -> tuple[Reason, ...]:
    """Return what speaks for a document.

    Args:
        parts: The searcher's parts.
        vector: Vector of the query; shape (dimensions,).
        cosines: Cosine of the query and each example, shape (examples,); None without examples.
        place: Position of the document.
        words: Words of the query that speak for it.
    """
    reasons = [Reason("document", parts.corpus.texts[place], float(parts.corpus.vectors[place] @ vector))]
    examples = parts.views.views.get(EXAMPLES)
    if cosines is not None and isinstance(examples, ExamplesView) and (nearest := examples.nearest(cosines, place)):
        reasons.insert(0, Reason("example", parts.examples.texts[nearest[0]], nearest[1]))
    if words:
        reasons.append(Reason("words", ", ".join(words), None))
    return tuple(reasons)


def _strongest(parts: Parts, text: str, places: Sequence[int]) -> Sequence[Sequence[str]]:
    """Return, for each document, the words of a query that speak most for it."""
    terms = parts.views.views.get(TERMS)
    return terms.strongest(text, places) if isinstance(terms, TermsView) else [()] * len(places)


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
    filled = max(1, int((positions < len(document_ids)).sum(axis=1).max(initial=0)))
    positions, scores = positions[:, :filled], scores[:, :filled]
    order = tuple(sorted(document_ids))
    if order != document_ids:
        moved = np.append(np.argsort(np.argsort(np.array(document_ids, dtype=object))), len(document_ids))
        positions = moved[positions]
    return Run(query_ids, named(order, positions), positions, scores)
