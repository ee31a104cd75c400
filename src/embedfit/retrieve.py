"""Which documents answer which query best: exact, in bounded memory, the same on every run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.data import DOCUMENT_TEMPLATE, Dataset
from embedfit.duplicates import queries_that_are_documents
from embedfit.encode import Encoder, Vectors
from embedfit.errors import ModelError
from embedfit.words import search_words

if TYPE_CHECKING:
    import pandas as pd

Ranked: TypeAlias = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Positions and scores, each of shape (n, k), best first."""
DEPTH = 100
"""How far down a ranking the right answer is looked for."""
NOTHING = np.float32(-1)
"""The score of an empty place: no cosine and no sum of weights is less."""
_DOCUMENTS, _QUERIES = 2048, 1024
"""How many are multiplied at a time: large enough for BLAS, and the products stay in the processor's cache."""
_CHUNK = 64
"""Documents of which only the best is looked at first."""
_SPARE = 2**17
"""Candidates that are held beyond twice the result."""
_PAIRS = 1024
"""Of a query and a candidate that are scored again at a time."""


@dataclass(frozen=True)
class Run:
    """For each query, the best documents in order.

    Attributes:
        query_ids: n of them.
        document_ids: The whole corpus, sorted. If there are empty places, a last id ``""`` stands for them.
        ranked: Positions in `document_ids`, best first; shape (n, k). Equal scores stand in order of document id. Where fewer than k
            documents were found, the places left over are empty.
        scores: The similarities; shape (n, k); `NOTHING` at an empty place.
    """

    query_ids: tuple[str, ...]
    document_ids: tuple[str, ...]
    ranked: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]

    def documents(self, query_id: str) -> list[str]:
        """Return the ids of the documents found for a query, best first."""
        return self.documents_at(self.query_ids.index(query_id))

    def documents_at(self, row: int, k: int | None = None) -> list[str]:
        """Return the ids of the documents in the first k places of a row (all if None), best first, without empty places."""
        return [id for id in (self.document_ids[position] for position in self.ranked[row, :k]) if id]

    def to_frame(self) -> pd.DataFrame:
        """Return one row per query and document found: query id, rank (from 1), document id, score."""
        import pandas as pd

        n, k = self.ranked.shape
        frame = pd.DataFrame(
            {
                "query_id": np.repeat(np.array(self.query_ids, dtype=object), k),
                "rank": np.tile(np.arange(1, k + 1), n),
                "document_id": np.array(self.document_ids, dtype=object)[self.ranked.ravel()],
                "score": self.scores.ravel(),
            }
        )
        return frame[frame.document_id != ""].reset_index(drop=True)

    @property
    def empty(self) -> npt.NDArray[np.bool_]:
        """Which places are empty; shape (n, k)."""
        if self.document_ids[-1:] != ("",):
            return np.zeros(self.ranked.shape, bool)
        return np.asarray(self.ranked == len(self.document_ids) - 1)


def joined(runs: Sequence[Run]) -> Run:
    """Return the Runs of different queries on one corpus as one, for example out of fold."""
    return Run(
        tuple(id for run in runs for id in run.query_ids),
        max((run.document_ids for run in runs), key=len),  # some may have empty places, others none
        np.concatenate([run.ranked for run in runs]),
        np.concatenate([run.scores for run in runs]),
    )


def named(document_ids: tuple[str, ...], ranked: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """Return a corpus' ids, with one for the empty places if there are any; at these stands the number of documents."""
    return (*document_ids, "") if (ranked == len(document_ids)).any() else document_ids


def run_of(dataset: Dataset, document_ids: tuple[str, ...], search: Callable[[int], Ranked], k: int) -> Run:
    """Return what is found for the queries of a data set, but for a query that is itself a document: it does not find itself.

    Every retriever makes its Run here. See `queries_that_are_documents`.

    Args:
        dataset: With the queries, in the order of the rows that are found.
        document_ids: What the positions that are found stand for.
        search: From how many to the best so many of each query: positions and scores, each of shape (n, so many). Empty places come
            last, with the number of documents as the position and the score `NOTHING`.
        k: How many to return of each query.
    """
    own = own_positions(dataset, document_ids)
    ranked, scores = without_own(search(k + bool((own >= 0).any())), own, k, len(document_ids))
    return Run(tuple(dataset.queries), named(document_ids, ranked), ranked, scores)


def own_positions(dataset: Dataset, document_ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return which document each query is itself, as a position in some ids; -1 where it is none of them."""
    are_documents = queries_that_are_documents(dataset)
    if not are_documents:
        return np.full(len(dataset.queries), -1, np.int64)
    position = {id: place for place, id in enumerate(document_ids) if id in are_documents}
    return np.array([position.get(id, -1) for id in dataset.queries], np.int64)


def without_own(ranked: Ranked, own: npt.NDArray[np.int64], k: int, count: int) -> Ranked:
    """Return the k best of each row without the document that the query itself is; a row that has no other ends with an empty place.

    Args:
        ranked: The k + 1 best of each, or the whole corpus; just k will do where no query is a document.
        own: What `own_positions` returns for the rows.
        k: How many to keep.
        count: Of the documents, which is the position of an empty place.
    """
    positions, scores = ranked
    if not (own >= 0).any():
        return positions[:, :k], scores[:, :k]
    is_own = positions == own[:, None]
    width = min(k, positions.shape[1] - int(is_own.any(axis=1).all()))  # no column is empty in all rows
    others = np.argsort(is_own, axis=1, kind="stable")[:, :width]
    positions, scores = np.where(is_own, count, positions), np.where(is_own, NOTHING, scores)
    return np.take_along_axis(positions, others, axis=1), np.take_along_axis(scores, others, axis=1)


class Retriever(Protocol):
    """Anything that ranks the corpus of a data set for its queries."""

    name: str

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        ...


class DenseRetriever:
    """Cosine similarity of vectors, against every document.

    Args:
        encoder: Turns both queries and documents into vectors.
        template: What a document says.
        search: (queries, documents, k) -> what `top_k` returns, which it is by default.
    """

    def __init__(
        self, encoder: Encoder, template: str = DOCUMENT_TEMPLATE, search: Callable[[Vectors, Vectors, int], Ranked] | None = None
    ) -> None:
        self.encoder, self.template, self.name = encoder, template, encoder.name
        self._top_k = search or top_k

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        texts = dataset.document_texts(self.template)
        order, document_ids = sorted_corpus(dataset)
        # Sorted before they are encoded: sorting the vectors would need them twice.
        documents = self.encoder.encode([texts[position] for position in order], "document")
        queries = self.encoder.encode(dataset.query_texts(), "query")
        return run_of(dataset, document_ids, lambda depth: self._top_k(queries, documents, depth), k)


class BM25Retriever:
    """Words in common, weighted by rarity (Robertson and Zaragoza 2009), by the library bm25s; words are `search_words`.

    Args:
        template: What a document says.
    """

    name = "BM25"

    def __init__(self, template: str = DOCUMENT_TEMPLATE) -> None:
        self.template = template

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set, of those that have a word of it."""
        import bm25s

        order, document_ids = sorted_corpus(dataset)
        texts = dataset.document_texts(self.template)
        index = bm25s.BM25()
        words_of_documents = _words([texts[position] for position in order], single=True)
        vocabulary: set[str] = set()
        if any(words_of_documents):  # signs alone, such as "?", are no words, and the library takes no corpus without any
            index.index(words_of_documents, show_progress=False)
            vocabulary = set(index.vocab_dict)

        def best(depth: int) -> Ranked:
            depth = min(depth, len(texts))
            ranked, found = np.empty((len(dataset.queries), depth), np.int64), np.empty((len(dataset.queries), depth), np.float32)
            for row, words in enumerate(_words(dataset.query_texts())):
                known = [word for word in words if word in vocabulary]
                scores = index.get_scores(known) if known else np.zeros(len(texts), np.float32)
                ranked[row], found[row] = (best[0] for best in best_of(scores[None].astype(np.float32), depth))
            nothing = found <= 0  # such documents would stand in order of their ids
            return np.where(nothing, len(texts), ranked), np.where(nothing, NOTHING, found)

        return run_of(dataset, document_ids, best, k)


class FusedRetriever:
    """Several retrievers as one, by reciprocal rank fusion (Cormack, Clarke and Büttcher 2009).

    A document's score is the sum, over the retrievers that found it, of 1 / (60 + its rank).

    Args:
        retrievers: At least two.
        depth: How far down each one's ranking counts.
    """

    def __init__(self, *retrievers: Retriever, depth: int = DEPTH) -> None:
        self.retrievers, self.depth = retrievers, depth
        self.name = " + ".join(retriever.name for retriever in retrievers)

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        runs = [retriever.search(dataset, max(k, self.depth)) for retriever in self.retrievers]
        found_by = [~run.empty for run in runs]
        document_ids = tuple(id for id in runs[0].document_ids if id)
        fused = []
        for place in range(len(runs[0].query_ids)):
            rows = [run.ranked[place][is_found[place]] for run, is_found in zip(runs, found_by, strict=True)]
            # Only what was found by one of them can be among the best; the corpus may be large.
            found = np.unique(np.concatenate(rows))
            sums = np.zeros(len(found), np.float64)
            for row in rows:
                sums[np.searchsorted(found, row)] += 1 / (60 + np.arange(1, len(row) + 1))
            best, best_scores = best_of(sums.astype(np.float32)[None], k)
            fused.append((found[best[0]], best_scores[0]))
        ranked = np.full((len(fused), max((len(row) for row, _ in fused), default=0) or 1), len(document_ids), np.int64)
        scores = np.full(ranked.shape, NOTHING, np.float32)
        for place, (row, row_scores) in enumerate(fused):
            ranked[place, : len(row)], scores[place, : len(row)] = row, row_scores
        return Run(runs[0].query_ids, named(document_ids, ranked), ranked, scores)


def _words(texts: Sequence[str], *, single: bool = False) -> list[list[str]]:
    """Return the words of each text (see `search_words`) without the commonest English ones, unless it has no others."""
    from bm25s.stopwords import STOPWORDS_EN

    common = frozenset(STOPWORDS_EN)
    words = [search_words(text, single=single) for text in texts]
    return [[word for word in some if word not in common] or some for some in words]


def top_k(queries: Vectors, documents: Vectors, k: int) -> Ranked:
    """Return the k nearest documents of each query by inner product, exactly.

    Documents are read once, in blocks: they may be a `numpy.memmap` larger than memory. What is kept beside them is two
    blocks, and about as much as the result. A score is the inner product in float64, rounded to float32, so it depends on
    neither blocks nor threads, and equal vectors have equal scores.

    Args:
        queries: Shape (n, dimensions), float32.
        documents: Shape (m, dimensions), float32.
        k: At most m are returned.

    Returns:
        Positions and scores, each of shape (n, min(k, m)), best first; equal scores in order of position.

    Raises:
        ModelError: A vector is not finite.
    """
    k = min(k, len(documents))
    positions, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
    if not scores.size:
        return positions, scores
    tops = range(0, len(queries), _QUERIES)
    searches = [_Search(queries[top : top + _QUERIES], documents, k) for top in tops]
    space = np.empty(_DOCUMENTS * min(_QUERIES, len(queries)), np.float32)
    for first in range(0, len(documents), _DOCUMENTS):
        block = np.ascontiguousarray(documents[first : first + _DOCUMENTS])
        longest = float(_lengths(block).max())
        for search in searches:
            search.see(block, first, longest, space)
    for top, search in zip(tops, searches, strict=True):
        positions[top : top + _QUERIES], scores[top : top + _QUERIES] = search.result()
    return positions, scores


class _Search:
    """The k best documents of some queries, among those seen so far.

    A block's products are in float32, where the order of summation, which is BLAS' own affair, changes the last bits. So
    a document stays a candidate while its product is no further below the k-th best than both could be off, and what is
    left at the end is scored again in float64.

    Args:
        queries: Shape (n, dimensions).
        documents: All of them, shape (m, dimensions).
        k: At least 1, at most m.
    """

    def __init__(self, queries: Vectors, documents: Vectors, k: int) -> None:
        self.queries, self.documents, self.k = queries, documents, k
        # |computed - exact| is at most (d u / (1 - d u)) |query| |document|, for any order of summation (Higham 2002,
        # section 3.1, and Cauchy-Schwarz), u = 2^-24. Two products may be off, and the factor of 4 also covers the rounding here.
        self._error = 4 * (queries.shape[1] + 2) * 2.0**-24 * _lengths(queries)
        self._longest = 0.0
        self._kth = np.full(len(queries), -np.inf)
        self._parts: list[_Pairs] = []
        self._held = 0

    def see(self, block: Vectors, first: int, longest: float, space: npt.NDArray[np.float32]) -> None:
        """Look at the next documents.

        Args:
            block: Shape (b, dimensions).
            first: Position of the first of them.
            longest: The largest length among them.
            space: At least b (rounded up to whole chunks) times n numbers, to work in.
        """
        self._longest = max(self._longest, longest)
        n, padded = len(self.queries), -(-len(block) // _CHUNK) * _CHUNK
        products = space[: padded * n].reshape(padded, n)
        np.matmul(block, self.queries.T, out=products[: len(block)])
        products[len(block) :] = -np.inf
        if first == 0 and len(block) >= self.k:
            self._kth = np.partition(products, padded - self.k, axis=0)[padded - self.k].astype(np.float64)
        # After the first blocks almost nothing is above the least: look at the largest product of each chunk of
        # documents first, which is as fast as memory is.
        least = self._least()
        chunks = products.reshape(-1, _CHUNK, n)
        chunk, query = np.nonzero(chunks.max(axis=1) > least)
        values = chunks[chunk, :, query]
        hit, offset = np.nonzero(values > least[query, None])
        self._hold(_Pairs(query[hit], first + chunk[hit] * _CHUNK + offset, values[hit, offset]))

    def result(self) -> Ranked:
        """Return positions and scores of the best, each of shape (n, k)."""
        best = self._best(self._pairs())
        return best.positions.reshape(-1, self.k), best.scores.reshape(-1, self.k)

    def _least(self) -> npt.NDArray[np.float32]:
        """Return what a product must be above, so that the document could still be among the best."""
        lower = self._kth - self._error * self._longest
        with np.errstate(over="ignore"):
            least: npt.NDArray[np.float32] = np.nextafter(lower.astype(np.float32), np.float32(-np.inf))
        return least

    def _hold(self, pairs: _Pairs) -> None:
        self._parts.append(pairs)
        self._held += len(pairs.scores)
        most = 2 * self.k * len(self.queries) + _SPARE
        if self._held <= most:
            return
        pairs = self._pairs()
        pairs = pairs.take(np.argsort((pairs.queries << 33) - _ordered(pairs.scores)))
        first, count = _groups(pairs.queries, len(self.queries))
        enough = count >= self.k
        self._kth[enough] = pairs.scores[first[enough] + self.k - 1]
        pairs = pairs.take(pairs.scores > self._least()[pairs.queries])
        if len(pairs.scores) > most - _SPARE // 2:  # many are equal, or nearly: tell them apart now
            pairs = self._best(pairs)
        self._parts, self._held = [pairs], len(pairs.scores)

    def _pairs(self) -> _Pairs:
        return _Pairs(*(np.concatenate(column) for column in zip(*self._parts, strict=True)))

    def _best(self, pairs: _Pairs) -> _Pairs:
        """Return the k best of each query (or all, if they are fewer) by their scores in float64, best first."""
        scores = np.empty(len(pairs.scores), np.float32)
        for start in range(0, len(scores), _PAIRS):
            rows = slice(start, start + _PAIRS)
            left, right = self.queries[pairs.queries[rows]], self.documents[pairs.positions[rows]]
            scores[rows] = np.einsum("ij,ij->i", left.astype(np.float64), right.astype(np.float64))
        order = np.lexsort((pairs.positions, -scores, pairs.queries))
        pairs = _Pairs(pairs.queries[order], pairs.positions[order], scores[order])
        first, _ = _groups(pairs.queries, len(self.queries))
        return pairs.take(np.arange(len(order)) - first[pairs.queries] < self.k)


class _Pairs(NamedTuple):
    """Queries and documents that may belong together, all of shape (pairs,)."""

    queries: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]

    def take(self, which: npt.NDArray[np.int64] | npt.NDArray[np.bool_]) -> _Pairs:
        return _Pairs(self.queries[which], self.positions[which], self.scores[which])


def _groups(sorted_numbers: npt.NDArray[np.int64], n: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return where each of the numbers below n begins, and how often it stands there."""
    count = np.bincount(sorted_numbers, minlength=n)
    return np.cumsum(count) - count, count


def _lengths(vectors: Vectors) -> npt.NDArray[np.float64]:
    """Return the length of each vector, at least nearly.

    Raises:
        ModelError: One is not finite.
    """
    squares = np.einsum("ij,ij->i", vectors, vectors).astype(np.float64)
    if not np.isfinite(squares).all():  # they may only be too large for float32
        squares = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    if not np.isfinite(squares).all():
        raise ModelError("some vectors are not finite; fix: encode them again, or with another model")
    lengths: npt.NDArray[np.float64] = np.sqrt(squares)
    return lengths


def best_pairs(positions: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], k: int) -> Ranked:
    """Return the k best of several lists that stand beside each other: shape (n, all of them), equal scores in order of position."""
    order = np.lexsort((positions, -scores), axis=1)[:, :k]
    return np.take_along_axis(positions, order, axis=1), np.take_along_axis(scores, order, axis=1)


def best_of(scores: npt.NDArray[np.float32], k: int) -> Ranked:
    """Return the positions and scores of the k best of each row, best first; equal scores in order of position.

    Args:
        scores: Shape (n, m).
        k: At most m are returned.
    """
    return _unpacked(_best(_keys(scores, 0), k))


def _keys(scores: npt.NDArray[np.float32], first: int) -> npt.NDArray[np.int64]:
    """Pack (score, position) into whole numbers that sort as the pair does, so that no two are equal.

    A float's bits sort as the float does once those of negative numbers are turned round; the position, counted
    down, goes below them, and the earlier of two equal scores is the larger number.
    """
    positions = np.arange(first, first + scores.shape[1], dtype=np.int64)
    keys: npt.NDArray[np.int64] = (_ordered(scores) << 32) | (0xFFFFFFFF - positions)
    return keys


def _ordered(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return whole numbers that are in the same order."""
    bits = scores.view(np.int32).astype(np.int64)
    ordered: npt.NDArray[np.int64] = np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    return ordered


def _unpacked(keys: npt.NDArray[np.int64]) -> Ranked:
    ordered = keys >> 32
    bits = np.where(ordered >= 0, ordered, -ordered | -0x80000000)
    return 0xFFFFFFFF - (keys & 0xFFFFFFFF), bits.astype(np.int32).view(np.float32)


def _best(keys: npt.NDArray[np.int64], k: int) -> npt.NDArray[np.int64]:
    """Return the k largest of each row, largest first."""
    if keys.shape[1] > k:
        keys = np.partition(keys, -k, axis=1)[:, -k:]
    best: npt.NDArray[np.int64] = np.sort(keys, axis=1)[:, ::-1]
    return best


def sorted_corpus(dataset: Dataset) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Return the corpus' positions in order of document id, and the ids: ties must not depend on a file's order."""
    ids = list(dataset.corpus)
    order = sorted(range(len(ids)), key=ids.__getitem__)
    return np.array(order, np.int64), tuple(ids[position] for position in order)
