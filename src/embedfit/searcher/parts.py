"""Everything that a searcher is made of. A change makes new parts, so that a search under way is not disturbed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Document
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.searcher.fusion import Fusion
from embedfit.searcher.gather import Corpus, Examples, Views
from embedfit.searcher.views import DOCUMENTS, EXAMPLES, ClassesView, DocumentsView, ExamplesView, TermsView, WordsView
from embedfit.template import Template

if TYPE_CHECKING:
    from embedfit.evaluation.calibration import Calibrator
    from embedfit.evaluation.conformal import ConformalSets
    from embedfit.evaluation.threshold import Threshold


@dataclass(frozen=True)
class Parts:
    """The parts of a searcher.

    Attributes:
        encoder: Encoder of queries and documents.
        documents: Documents by id.
        corpus: Ids, texts and vectors of the same documents.
        examples: Labelled queries.
        views: Views of these documents and examples.
        fusion: Weights of the views.
        template: Document template.
        base: Model before it was tuned; None if no view reads its vectors.
        query_template: Template that renders a record as a query; None if queries are texts.
        calibrator: Turns fused scores into probabilities; None for none.
        threshold: Probability from which an answer needs no person, and what it promises; None if none was chosen.
        sets: Number of hits that hold a right one; None for none.
    """

    encoder: Encoder
    documents: Mapping[str, Document]
    corpus: Corpus
    examples: Examples
    views: Views
    fusion: Fusion
    template: str
    base: Encoder | None = None
    query_template: Template | None = None
    calibrator: Calibrator | None = None
    threshold: Threshold | None = None
    sets: ConformalSets | None = None

    def with_examples(self, examples: Examples) -> Parts:
        """Return parts with other examples. The linear models, weights and calibration stay."""
        count, scale = len(self.corpus.ids), self.views.scale
        view = ExamplesView(examples.vectors, examples.owners, examples.members, count, scale)
        return replace(self, examples=examples, views=Views({**self.views.views, EXAMPLES: view}, count, scale))

    def with_document(self, document: Document, vector: Vectors) -> Parts:
        """Return parts with one more document, or with another in place of the one with the same id.

        Args:
            document: Document.
            vector: Its vector; shape (1, dimensions).
        """
        ids, texts, vectors = self.corpus.ids, self.corpus.texts, self.corpus.vectors
        place = ids.index(document.id) if document.id in self.documents else len(ids)
        corpus = Corpus(
            (*ids[:place], document.id, *ids[place + 1 :]),
            (*texts[:place], Template(self.template).render(document.fields), *texts[place + 1 :]),
            np.concatenate([vectors[:place], vector, vectors[place + 1 :]]),
        )
        count, views = len(corpus.ids), dict(self.views.views)
        for name, view in self.views.views.items():
            if name == DOCUMENTS:
                views[name] = DocumentsView(corpus.vectors)
            elif isinstance(view, WordsView):
                views[name] = WordsView(corpus.texts)
            elif isinstance(view, ClassesView | TermsView | ExamplesView):
                views[name] = view.over(count)
        documents = {**self.documents, document.id: document}
        return replace(self, documents=documents, corpus=corpus, views=Views(views, count, self.views.scale))


def with_example(examples: Examples, key: str, text: str, vector: npt.NDArray[np.float32], document: int) -> Examples:
    """Return the examples and one more.

    Args:
        examples: Examples so far.
        key: Key of the new one.
        text: Its text.
        vector: Its vector; shape (dimensions,).
        document: Position of the document that answers it.
    """
    return replace(
        examples,
        query_ids=(*examples.query_ids, key),
        texts=(*examples.texts, text),
        vectors=np.concatenate([examples.vectors.reshape(-1, len(vector)), vector[None]]).astype(np.float32),
        owners=np.append(examples.owners, document),
        members=np.append(examples.members, len(examples.query_ids)),
        base=None,
    )


def without_example(examples: Examples, key: str) -> Examples:
    """Return the examples without the one of a key."""
    place = examples.query_ids.index(key)
    kept = examples.members != place
    return replace(
        examples,
        query_ids=_without(examples.query_ids, place),
        texts=_without(examples.texts, place),
        vectors=np.delete(examples.vectors, place, axis=0),
        owners=examples.owners[kept],
        members=examples.members[kept] - (examples.members[kept] > place),
        base=None,
    )


def _without(values: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    return (*values[:place], *values[place + 1 :])
