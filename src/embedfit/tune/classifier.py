"""Plain classifiers as retrievers. If labels repeat, a text can be assigned to one of them without any embedding.

A classifier ranks the labels: the documents that are right for training queries. All other documents come after them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder
from embedfit.errors import DataError
from embedfit.retrieve.exact import best_of
from embedfit.retrieve.finder import BaseRetriever
from embedfit.retrieve.run import Run, run_of, sorted_corpus
from embedfit.words import search_words

if TYPE_CHECKING:
    import numpy.typing as npt

_REPEATED = 2
"""Training queries that a label needs on average for a classifier to make sense."""
_MOST_LABELS = 5000
"""Most labels; each takes a linear model of its own."""


def labels_repeat(train: Dataset) -> bool:
    """Return whether a classifier has something to learn: few labels, and several queries for most of them."""
    labels = [label for id in train.judged for label in train.relevant(id)]
    return 1 < len(set(labels)) <= _MOST_LABELS and len(labels) >= _REPEATED * len(set(labels))


class WordsClassifier(BaseRetriever):
    """TF-IDF of words and of pieces of words, and a linear support vector machine, from scikit-learn.

    It uses no document text and no vectors. Word pairs (Wang and Manning 2012) and pieces of 2 to 5 characters are the usual
    strong baseline for short texts.

    Args:
        train: Training queries.

    Raises:
        DataError: The training queries have fewer than two labels.
    """

    name = "TF-IDF classifier"

    def __init__(self, train: Dataset) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline, make_union
        from sklearn.svm import LinearSVC

        texts, labels = _pairs(train)
        self._model = make_pipeline(
            make_union(
                TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, tokenizer=search_words, token_pattern=None, lowercase=False),
                TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True),
            ),
            LinearSVC(),
        )
        self._model.fit(texts, labels)

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query."""
        return _ranked(dataset, k, self._model.decision_function(dataset.query_texts()), self._model.classes_)


class VectorsClassifier(BaseRetriever):
    """Logistic regression on an encoder's query vectors, from scikit-learn.

    Args:
        encoder: Encoder whose vectors are the features; it is not changed.
        train: Training queries.

    Raises:
        DataError: The training queries have fewer than two labels.
    """

    def __init__(self, encoder: Encoder, train: Dataset) -> None:
        from sklearn.linear_model import LogisticRegression

        self.name = f"{encoder.name}, logistic regression"
        self._encoder = encoder
        texts, labels = _pairs(train)
        # The coordinates of unit vectors are small: with the library's C = 1 the penalty would outweigh the data.
        self._model = LogisticRegression(C=_C, max_iter=1000)
        self._model.fit(encoder.encode(texts, "query"), labels)

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query."""
        scores = self._model.decision_function(self._encoder.encode(dataset.query_texts(), "query"))
        return _ranked(dataset, k, scores, self._model.classes_)


_C = 30.0
"""Inverse strength of the penalty (docs/decisions.md)."""


def _pairs(train: Dataset) -> tuple[list[str], list[str]]:
    """Return (text, label) for each relevant pair."""
    pairs = [(train.queries[id].text, label) for id in train.judged for label in train.relevant(id)]
    if len({label for _, label in pairs}) < 2:
        raise DataError("data", "has one label in its training queries", expected="two or more, for a classifier")
    return [text for text, _ in pairs], [label for _, label in pairs]


def _ranked(dataset: Dataset, k: int, decisions: npt.NDArray[Any], classes: Any) -> Run:
    """Return the Run of decision values, whose shape is (queries, classes), or (queries,) for two classes."""
    if decisions.ndim == 1:
        decisions = np.stack([-decisions, decisions], axis=1)
    _, document_ids = sorted_corpus(dataset)
    position = {id: index for index, id in enumerate(document_ids)}
    scores = np.full((len(decisions), len(document_ids)), float(decisions.min()) - 1, np.float32)
    scores[:, [position[label] for label in classes]] = decisions
    return run_of(dataset, document_ids, lambda depth: best_of(scores, depth), k)
