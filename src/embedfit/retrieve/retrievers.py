"""Three ways to rank: by vectors, by words, by both."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.retrieve.exact import best_of, top_k
from embedfit.retrieve.run import DEPTH, NOTHING, Ranked, Retriever, Run, named, run_of, sorted_corpus
from embedfit.template import DOCUMENT_TEMPLATE
from embedfit.words import search_words


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
