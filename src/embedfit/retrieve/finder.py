"""Texts in, hits out: the documents of a data set, to be searched one text at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from embedfit.data.dataset import Dataset, Document, Query, unchecked
from embedfit.data.texts import Contents
from embedfit.errors import ConfigError, DataError
from embedfit.retrieve.run import Retriever, Run
from embedfit.template import DOCUMENT_TEMPLATE, Template


@dataclass(frozen=True)
class Hit:
    """A document that was found.

    Attributes:
        id: Document id.
        score: Score of the retriever, larger is better; for vectors, the cosine similarity to the query.
        text: Text of the document under the template.
        metadata: Other fields of the document, the title included.
    """

    id: str
    score: float
    text: str
    metadata: dict[str, Any]


class Finder:
    """A retriever over the documents of one data set.

    Args:
        retriever: Retriever that ranks the documents.
        dataset: Data set whose corpus is searched; queries and judgements are ignored.
        template: Template of the hits' texts.
    """

    def __init__(self, retriever: Retriever, dataset: Dataset, template: str = DOCUMENT_TEMPLATE) -> None:
        self.retriever, self.name = prepared(retriever, dataset), retriever.name
        self._corpus, self._template = dataset.corpus, Template(template)

    def find(self, text: str, k: int = 10) -> list[Hit]:
        """Return up to k documents for a text, best first; equal scores in order of document id.

        Args:
            text: Query.
            k: Number of documents, at least 1.

        Raises:
            ConfigError: ``k`` is under 1.
            DataError: The query is not a text.
        """
        return self.find_many([text], k)[0]

    def find_many(self, texts: Iterable[str], k: int = 10) -> list[list[Hit]]:
        """Return up to k documents for each text, as `find` does. Many texts at once take less time than one by one.

        Args:
            texts: Queries.
            k: Number of documents for each, at least 1.

        Raises:
            ConfigError: ``k`` is under 1.
            DataError: A query is not a text.
        """
        if k < 1:
            raise ConfigError(f"k is {k}; expected the number of documents to find, at least 1")
        if isinstance(texts, str):
            raise DataError("the queries", "are one text", expected="several texts", fix="find() takes one")
        queries = {}
        for number, text in enumerate(texts, start=1):
            if not isinstance(text, str):
                raise DataError(f"query {number}", f"is of type {type(text).__name__}", expected="a text")
            id = str(number)
            while id in self._corpus:  # a query with a document's id may be taken for that document
                id = f"_{id}"
            queries[id] = Query(id, text)
        if not queries:
            return []
        asked = Dataset(queries, {}, {})  # checks the texts; the documents were checked before
        run = self.retriever.search(unchecked(Contents(asked.queries, self._corpus, {})), k)
        return [self._hits(run, row) for row in range(len(queries))]

    def _hits(self, run: Run, row: int) -> list[Hit]:
        documents = [self._corpus[id] for id in run.documents_at(row)]
        scores = run.scores[row].tolist()  # empty places come last
        return [self._hit(document, score) for document, score in zip(documents, scores[: len(documents)], strict=True)]

    def _hit(self, document: Document, score: float) -> Hit:
        title = {"title": document.title} if document.title else {}
        return Hit(document.id, score, self._template.render(document.fields), {**title, **document.metadata})


class BaseRetriever:
    """Base class of the retrievers. A subclass defines a name and ``search``.

    Attributes:
        name: Name for tables.
        template: Template of the documents' texts.
    """

    name: str
    template: str = DOCUMENT_TEMPLATE

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set."""
        raise NotImplementedError

    def prepared(self, dataset: Dataset) -> Retriever:
        """Return a retriever that ranks alike and has read the documents of a data set once and for all; by default itself."""
        return self

    def over(self, dataset: Dataset) -> Finder:
        """Return a `Finder` for the documents of a data set, which are read (encoded, indexed) once, now.

        Args:
            dataset: Data set whose corpus is searched.
        """
        return Finder(self, dataset, self.template)


def prepared(retriever: Retriever, dataset: Dataset) -> Retriever:
    """Return a retriever that has read the documents of a data set, if it is of a kind that can: see `BaseRetriever`."""
    return retriever.prepared(dataset) if isinstance(retriever, BaseRetriever) else retriever
