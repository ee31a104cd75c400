"""Views: each scores all documents for a query from one kind of evidence.

documents  the document's own vector
examples   the vectors of the labelled queries that a document answers
words      BM25 on the document's text
classes    a linear model on the query's vector, with a class for each document that is a label
base       the same on the vector of the model before it was tuned
terms      the same on the query's words and pieces of words

A score is NaN where a view knows nothing of a document. Documents and examples are updated at any time; the linear models stay as
they were fitted.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.encode.encoder import Vectors
from embedfit.retrieve.retrievers import index_words
from embedfit.words import search_words

if TYPE_CHECKING:
    import bm25s
    from sklearn.feature_extraction.text import TfidfVectorizer

Array: TypeAlias = npt.NDArray[np.float32]
DOCUMENTS, EXAMPLES, WORDS, CLASSES, TERMS, BASE = "documents", "examples", "words", "classes", "terms", "base"
VIEWS = (DOCUMENTS, EXAMPLES, WORDS, CLASSES, TERMS, BASE)
"""Names of all views, in the order of their price."""
LINEAR = (CLASSES, TERMS, BASE)
"""Views that are linear models: log-probabilities of classes."""
FEW = 3
"""Examples that a new label is assumed to have when the weights are fitted."""
_CLASSES_PENALTY, _TERMS_PENALTY = 30.0, 100.0
"""C of the logistic regressions: the coordinates of unit vectors are small (docs/decisions.md)."""


@dataclass(frozen=True)
class Asked:
    """Queries as the views read them.

    Attributes:
        texts: Their texts; n of them.
        vectors: Their vectors; shape (n, dimensions).
        base: Their vectors by the model before it was tuned, shape (n, dimensions); None if no view reads them.
    """

    texts: Sequence[str]
    vectors: Vectors
    base: Vectors | None = None

    def __getitem__(self, rows: slice) -> Asked:
        """Return some of the queries, given as a slice."""
        return Asked(self.texts[rows], self.vectors[rows], None if self.base is None else self.base[rows])


class View(Protocol):
    """One kind of evidence."""

    def scores(self, asked: Asked) -> Array:
        """Return the score of every document for every query, NaN where nothing is known; shape (n, documents)."""
        ...


class DocumentsView:
    """Cosine similarity to the documents.

    Args:
        vectors: Document vectors; shape (documents, dimensions).
    """

    def __init__(self, vectors: Vectors) -> None:
        self.vectors = vectors

    def scores(self, asked: Asked) -> Array:
        """Return the cosines."""
        products: Array = asked.vectors @ self.vectors.T
        return products


class ExamplesView:
    """Similarity to the labelled queries of each document.

    With e the examples of a document, and s a scale, its score is log mean exp(s q.e) / s, a soft maximum: the mean for a small
    scale, the nearest example for a large one.

    Args:
        vectors: Example vectors; shape (examples, dimensions).
        owners: Position of a document for each pair of an example and a document that answers it.
        members: Position of the example of each pair.
        count: Number of documents.
        scale: Scale s.
    """

    def __init__(self, vectors: Vectors, owners: npt.NDArray[np.int64], members: npt.NDArray[np.int64], count: int, scale: float) -> None:
        order = np.argsort(owners, kind="stable")
        self.vectors, self.count, self.scale = vectors, count, scale
        self.owners, self.members = owners[order], members[order]
        self.known, self._starts, self._sizes = np.unique(self.owners, return_index=True, return_counts=True)
        self._in_order = np.array_equal(self.members, np.arange(len(vectors)))

    def scores(self, asked: Asked) -> Array:
        """Return the soft maxima."""
        return self.scores_of(self.cosines(asked))

    def cosines(self, asked: Asked) -> Array:
        """Return the cosine of each query and example; shape (n, examples)."""
        products: Array = asked.vectors @ self.vectors.T
        return products

    def scores_of(self, cosines: Array) -> Array:
        """Return the soft maxima of `cosines`."""
        scores = np.full((len(cosines), self.count), np.nan, np.float32)
        if len(self.known):
            powers = np.exp(self.scale * (cosines - 1))  # cosines are at most 1: no overflow
            pairs = powers if self._in_order else powers[:, self.members]
            sums = np.add.reduceat(pairs, self._starts, axis=1)
            scores[:, self.known] = np.log(np.maximum(sums / self._sizes, np.finfo(np.float32).tiny)) / self.scale + 1
        return scores

    def over(self, count: int) -> ExamplesView:
        """Return the view over more documents, of which it knows nothing."""
        view = copy.copy(self)
        view.count = count
        return view

    def at(self, scale: float) -> ExamplesView:
        """Return the view at another scale."""
        view = copy.copy(self)
        view.scale = scale
        return view

    def few(self, rng: np.random.Generator) -> ExamplesView:
        """Return the view with at most `FEW` random examples of each document."""
        order = np.lexsort((rng.random(len(self.owners)), self.owners))
        rank = np.arange(len(order)) - np.repeat(self._starts, self._sizes)
        kept = order[rank < FEW]
        return ExamplesView(self.vectors, self.owners[kept], self.members[kept], self.count, self.scale)

    def nearest(self, cosines: Array, document: int) -> tuple[int, float] | None:
        """Return the position of the example of a document that is nearest to a query, and its cosine; None if it has none.

        Args:
            cosines: Cosine of the query and each example; shape (examples,).
            document: Position of the document.
        """
        first, last = np.searchsorted(self.owners, (document, document + 1))
        members = self.members[first:last]
        if not len(members):
            return None
        best = int(members[cosines[members].argmax()])
        return best, float(cosines[best])


class WordsView:
    """BM25 on the documents' texts. A document without a word of the query has score 0.

    Args:
        texts: Text of each document.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        import bm25s

        self.count = len(texts)
        words = index_words(texts, single=True)
        self._index: bm25s.BM25 | None = None
        self._known: set[str] = set()
        if any(words):
            self._index = bm25s.BM25()
            self._index.index(words, show_progress=False)
            self._known = set(self._index.vocab_dict)

    def scores(self, asked: Asked) -> Array:
        """Return the BM25 scores."""
        scores = np.zeros((len(asked.texts), self.count), np.float32)
        for row, words in enumerate(index_words(asked.texts)):
            words = [word for word in words if word in self._known]
            if self._index and words:
                scores[row] = self._index.get_scores(words)
        return scores


class ClassesView:
    """Logistic regression on the query's vector: log-probabilities of the classes.

    The vector is of the searcher's model or, for the view `BASE`, of the model before it was tuned.

    Args:
        weights: One row for each class; shape (classes, dimensions).
        biases: One for each class.
        classes: Position of the document of each class.
        count: Number of documents.
        base: Whether the vectors are of the model before it was tuned.
    """

    def __init__(self, weights: Array, biases: Array, classes: npt.NDArray[np.int64], count: int, *, base: bool = False) -> None:
        self.weights, self.biases, self.classes, self.count, self.base = weights, biases, classes, count, base

    @classmethod
    def fit(cls, vectors: Vectors, labels: npt.NDArray[np.int64], count: int, *, base: bool = False) -> ClassesView:
        """Fit the model by scikit-learn.

        Args:
            vectors: Query vectors; shape (n, dimensions).
            labels: Position of the answer of each.
            count: Number of documents.
            base: Whether the vectors are of the model before it was tuned.
        """
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=_CLASSES_PENALTY, max_iter=300).fit(vectors, labels)
        weights, biases = _two_rows(model)
        return cls(weights, biases, model.classes_, count, base=base)

    def scores(self, asked: Asked) -> Array:
        """Return the log-probabilities."""
        vectors = asked.base if self.base else asked.vectors
        assert vectors is not None
        return spread(_log_shares(vectors @ self.weights.T + self.biases), self.classes, self.count)

    def over(self, count: int) -> ClassesView:
        """Return the view over more documents, of which it knows nothing."""
        view = copy.copy(self)
        view.count = count
        return view


class TermsView:
    """Logistic regression on TF-IDF of words, word pairs, and pieces of words of 2 to 5 characters: log-probabilities of the classes.

    Args:
        vocabularies: Term -> column, of words and of pieces.
        rarities: Inverse document frequency of each term, of words and of pieces.
        weights: One row for each class; shape (classes, terms).
        biases: One for each class.
        classes: Position of the document of each class.
        count: Number of documents.
    """

    def __init__(
        self,
        vocabularies: Sequence[Mapping[str, int]],
        rarities: Sequence[npt.NDArray[Any]],
        weights: Array,
        biases: Array,
        classes: npt.NDArray[np.int64],
        count: int,
    ) -> None:
        self.weights, self.biases, self.classes, self.count = weights, biases, classes, count
        self.vocabularies, self.rarities = vocabularies, rarities
        self._counters = [
            _Counter(make(None), vocabulary, rarity, by_word=make is _piece_counter)
            for make, vocabulary, rarity in zip((_word_counter, _piece_counter), vocabularies, rarities, strict=True)
        ]
        self._words = [word for word, _ in sorted(vocabularies[0].items(), key=lambda item: item[1])]
        self._columns = np.ascontiguousarray(weights.T)  # a query has few terms: whole rows are read

    @classmethod
    def fit(cls, texts: Sequence[str], labels: npt.NDArray[np.int64], count: int) -> TermsView | None:
        """Fit the model by scikit-learn; None if the texts have no terms, or too many for a model in memory.

        Args:
            texts: Query texts.
            labels: Position of the answer of each.
            count: Number of documents.
        """
        from scipy.sparse import hstack
        from sklearn.linear_model import LogisticRegression

        counters = [_word_counter(None), _piece_counter(None)]
        try:
            counts = hstack([counter.fit_transform(texts) for counter in counters], format="csr")
        except ValueError:  # an empty vocabulary
            return None
        if counts.shape[1] * len(np.unique(labels)) > _MOST_WEIGHTS:
            return None
        model = LogisticRegression(C=_TERMS_PENALTY, max_iter=200, tol=1e-3).fit(counts, labels)
        weights, biases = _two_rows(model)
        vocabularies = [{term: int(column) for term, column in counter.vocabulary_.items()} for counter in counters]
        return cls(vocabularies, [counter.idf_ for counter in counters], weights, biases, model.classes_, count)

    def scores(self, asked: Asked) -> Array:
        """Return the log-probabilities."""
        logits = np.tile(self.biases, (len(asked.texts), 1))
        first = 0
        for counter in self._counters:
            for row, text in enumerate(asked.texts):
                columns, weights = counter.weights(text)
                logits[row] += weights @ self._columns[first + columns]
            first += len(counter)
        return spread(_log_shares(logits), self.classes, self.count)

    def over(self, count: int) -> TermsView:
        """Return the view over more documents, of which it knows nothing."""
        view = copy.copy(self)
        view.count = count
        return view

    def strongest(self, text: str, documents: Sequence[int], count: int = 3) -> list[list[str]]:
        """Return, for each of some documents, the words of a text that speak most for it; none if it is no class."""
        from bm25s.stopwords import STOPWORDS_EN

        common = frozenset(STOPWORDS_EN)
        columns, weights = self._counters[0].weights(text)
        words = [self._words[column] for column in columns.tolist()]
        told = [row for row, word in enumerate(words) if not common.issuperset(word.split())]
        words, logits = [words[row] for row in told], self._columns[columns[told]]
        parts = weights[told, None] * (logits - logits.mean(axis=1, keepdims=True))
        strongest = []
        for document in documents:
            places = np.flatnonzero(self.classes == document)
            speaks = parts[:, places[0]] if len(places) else np.zeros(len(words))
            strongest.append([words[row] for row in np.argsort(-speaks, kind="stable")[:count].tolist() if speaks[row] > 0])
        return strongest


class _Counter:
    """TF-IDF of single texts, as scikit-learn's vectorizer gives it in many times the time.

    Args:
        vectorizer: Vectorizer, of which the analyzer is used.
        vocabulary: Term -> column.
        rarity: Inverse document frequency of each term.
        by_word: Whether no term goes beyond a word between spaces. The terms of a word are then looked up once.
    """

    def __init__(
        self, vectorizer: TfidfVectorizer, vocabulary: Mapping[str, int], rarity: npt.NDArray[Any], *, by_word: bool = False
    ) -> None:
        self._analyze, self._vocabulary, self._rarity = vectorizer.build_analyzer(), vocabulary, np.asarray(rarity, np.float32)
        self._by_word, self._known = by_word, dict[str, npt.NDArray[np.int64]]()

    def __len__(self) -> int:
        return len(self._vocabulary)

    def weights(self, text: str) -> tuple[npt.NDArray[np.int64], Array]:
        """Return the columns of the terms of a text, in order, and the weight of each; the weights have unit length."""
        places = np.concatenate([self._of_word(word) for word in text.lower().split()] or [_NONE]) if self._by_word else self._places(text)
        columns, numbers = np.unique(places, return_counts=True)
        weights: Array = (np.log(numbers.astype(np.float32)) + 1) * self._rarity[columns]
        return columns, weights / np.maximum(np.linalg.norm(weights), np.finfo(np.float32).tiny)

    def _of_word(self, word: str) -> npt.NDArray[np.int64]:
        places = self._known.get(word)
        if places is None:
            places = self._places(word)
            if len(word) <= _LONGEST_KEPT:
                if len(self._known) >= _MOST_KEPT:
                    self._known = {}
                self._known[word] = places
        return places

    def _places(self, text: str) -> npt.NDArray[np.int64]:
        """Return the column of each known term of a text."""
        terms = self._analyze(text)
        places = np.fromiter(map(self._vocabulary.get, terms, repeat(-1)), np.int64, len(terms))
        return places[places >= 0]


_NONE = np.zeros(0, np.int64)
_MOST_KEPT, _LONGEST_KEPT = 20_000, 30
"""Words whose terms are kept, and their maximum length: up to 20 MB."""
_MOST_WEIGHTS = 100_000_000
"""Most weights of the linear model on terms: 400 MB."""


def spread(scores: npt.NDArray[Any], classes: npt.NDArray[np.int64], count: int) -> Array:
    """Return scores of classes as scores of all documents, NaN for those that are no class; shape (n, count)."""
    spread = np.full((len(scores), count), np.nan, np.float32)
    spread[:, classes] = scores
    return spread


def _log_shares(logits: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the logarithm of the softmax of each row."""
    logits = logits - logits.max(axis=1, keepdims=True)
    shares: npt.NDArray[Any] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return shares


def _two_rows(model: Any) -> tuple[Array, Array]:
    """Return weights and biases of a scikit-learn model with a row for each class, also if there are only two."""
    weights: Array = np.asarray(model.coef_, np.float32)
    biases: Array = np.asarray(model.intercept_, np.float32)
    if len(weights) == 1:
        weights, biases = np.concatenate([-weights, weights]), np.concatenate([-biases, biases])
        return weights * np.float32(0.5), biases * np.float32(0.5)
    return weights, biases


def _word_counter(vocabulary: Mapping[str, int] | None) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        ngram_range=(1, 2),
        sublinear_tf=True,
        tokenizer=search_words,
        token_pattern=None,
        lowercase=False,
        vocabulary=vocabulary,
        dtype=np.float32,
    )


def _piece_counter(vocabulary: Mapping[str, int] | None) -> TfidfVectorizer:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, vocabulary=vocabulary, dtype=np.float32)
