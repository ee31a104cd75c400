"""Three ways to rank: by vectors, by words, and by both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.errors import DataError
from embedfit.retrieve.exact import best_of, top_k
from embedfit.retrieve.finder import BaseRetriever, prepared
from embedfit.retrieve.run import DEPTH, NOTHING, Ranked, Retriever, Run, named, run_of, sorted_corpus
from embedfit.template import DOCUMENT_TEMPLATE
from embedfit.words import search_words

TopK: TypeAlias = Callable[[Vectors, Vectors, int], Ranked]
"""(query vectors, document vectors, k) -> what `top_k` returns."""


class VectorIndex(BaseRetriever):
    """Cosine similarity to document vectors at hand.

    Args:
        encoder: Encoder of the queries.
        vectors: One unit vector per document, in order of document id; shape (documents, dimensions).
        document_ids: Sorted document ids.
        name: Name for tables.
        search: Exact search; by default `top_k`.
    """

    def __init__(self, encoder: Encoder, vectors: Vectors, document_ids: tuple[str, ...], name: str, search: TopK = top_k) -> None:
        self.encoder, self.vectors, self.document_ids, self.name = encoder, vectors, document_ids, name
        self._top_k = search

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set.

        Raises:
            DataError: The data set has another corpus than the index.
        """
        check_corpus(self.document_ids, dataset)
        queries = self.encoder.encode(dataset.query_texts(), "query")
        return run_of(dataset, self.document_ids, lambda depth: self._top_k(queries, self.vectors, depth), k)


class DenseRetriever(BaseRetriever):
    """Cosine similarity of vectors, against every document.

    Args:
        encoder: Encoder of queries and documents.
        template: Template of the documents' texts.
        search: Exact search; by default `top_k`.
    """

    def __init__(self, encoder: Encoder, template: str = DOCUMENT_TEMPLATE, search: TopK | None = None) -> None:
        self.encoder, self.template, self.name = encoder, template, encoder.name
        self._top_k = search or top_k

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        return self.prepared(dataset).search(dataset, k)

    def prepared(self, dataset: Dataset) -> VectorIndex:
        """Return the index of the documents' vectors."""
        texts = dataset.document_texts(self.template)
        order, document_ids = sorted_corpus(dataset)
        # Sorted before they are encoded: sorting the vectors would need them twice.
        documents = self.encoder.encode([texts[position] for position in order], "document")
        return VectorIndex(self.encoder, documents, document_ids, self.name, self._top_k)


class BM25Retriever(BaseRetriever):
    """Words in common, weighted by rarity (Robertson and Zaragoza 2009), by the library bm25s; words are `search_words`.

    Args:
        template: Template of the documents' texts.
    """

    name = "BM25"

    def __init__(self, template: str = DOCUMENT_TEMPLATE) -> None:
        self.template = template

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set, among those that share a word with it."""
        return self.prepared(dataset).search(dataset, k)

    def prepared(self, dataset: Dataset) -> _WordIndex:
        """Return the index of the documents' words."""
        return _WordIndex(dataset, self.template)


class _WordIndex(BaseRetriever):
    """The words of the documents of a data set, indexed."""

    name = "BM25"

    def __init__(self, dataset: Dataset, template: str) -> None:
        import bm25s

        self.template = template
        order, self.document_ids = sorted_corpus(dataset)
        texts = dataset.document_texts(template)
        self._index = bm25s.BM25()
        words = index_words([texts[position] for position in order], single=True)
        self._vocabulary: set[str] = set()
        if any(words):  # signs such as "?" are no words, and the library refuses a corpus without words
            self._index.index(words, show_progress=False)
            self._vocabulary = set(self._index.vocab_dict)

    def search(self, dataset: Dataset, k: int) -> Run:
        check_corpus(self.document_ids, dataset)
        return run_of(dataset, self.document_ids, lambda depth: self._best(dataset.query_texts(), depth), k)

    def _best(self, queries: Sequence[str], depth: int) -> Ranked:
        count = len(self.document_ids)
        ranked = np.empty((len(queries), min(depth, count)), np.int64)
        scores = np.empty(ranked.shape, np.float32)
        for row, words in enumerate(index_words(queries)):
            known = [word for word in words if word in self._vocabulary]
            of_documents = self._index.get_scores(known) if known else np.zeros(count, np.float32)
            ranked[row], scores[row] = (best[0] for best in best_of(of_documents[None].astype(np.float32), depth))
        nothing = scores <= 0  # without it, such documents would be ranked by id
        return np.where(nothing, count, ranked), np.where(nothing, NOTHING, scores)


class FusedRetriever(BaseRetriever):
    """Several retrievers as one, by reciprocal rank fusion (Cormack, Clarke and Büttcher 2009).

    A document's score is the sum, over the retrievers that found it, of 1 / (60 + its rank).

    Args:
        retrievers: Two or more retrievers. The texts of hits are under the template of the first that has one.
        depth: Number of documents of each ranking that count.
    """

    def __init__(self, *retrievers: Retriever, depth: int = DEPTH) -> None:
        self.retrievers, self.depth = retrievers, depth
        self.name = " + ".join(retriever.name for retriever in retrievers)
        self.template = next((retriever.template for retriever in retrievers if isinstance(retriever, BaseRetriever)), DOCUMENT_TEMPLATE)

    def prepared(self, dataset: Dataset) -> FusedRetriever:
        """Return the fusion of the retrievers, each prepared."""
        return FusedRetriever(*(prepared(retriever, dataset) for retriever in self.retrievers), depth=self.depth)

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        runs = [retriever.search(dataset, max(k, self.depth)) for retriever in self.retrievers]
        found_by = [~run.empty for run in runs]
        document_ids = tuple(id for id in runs[0].document_ids if id)
        fused = []
        for place in range(len(runs[0].query_ids)):
            rows = [run.ranked[place][is_found[place]] for run, is_found in zip(runs, found_by, strict=True)]
            # Only documents that a retriever found can be among the best; the corpus may be large.
            candidates = np.unique(np.concatenate(rows))
            sums = np.zeros(len(candidates), np.float64)
            for row in rows:
                sums[np.searchsorted(candidates, row)] += 1 / (60 + np.arange(1, len(row) + 1))
            best, best_scores = best_of(sums.astype(np.float32)[None], k)
            fused.append((candidates[best[0]], best_scores[0]))
        ranked = np.full((len(fused), max((len(row) for row, _ in fused), default=0) or 1), len(document_ids), np.int64)
        scores = np.full(ranked.shape, NOTHING, np.float32)
        for place, (row, row_scores) in enumerate(fused):
            ranked[place, : len(row)], scores[place, : len(row)] = row, row_scores
        return Run(runs[0].query_ids, named(document_ids, ranked), ranked, scores)


def check_corpus(document_ids: Sequence[str], dataset: Dataset) -> None:
    """Check that a data set has the documents of an index.

    Raises:
        DataError: The data set has other document ids.
    """
    if len(document_ids) != len(dataset.corpus) or not all(id in dataset.corpus for id in document_ids):
        raise DataError("data", "has another corpus than the index", fix="search the same documents, or build the index again")


def index_words(texts: Sequence[str], *, single: bool = False) -> list[list[str]]:
    """Return the words of each text (see `search_words`); the commonest English words only if the text has no other words."""
    from bm25s.stopwords import STOPWORDS_EN

    common = frozenset(STOPWORDS_EN)
    words = [search_words(text, single=single) for text in texts]
    return [[word for word in some if word not in common] or some for some in words]
