"""A searcher over a model that was not tuned on the labelled queries. Its weights are learnt out of fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Dataset
from embedfit.data.split import group_numbers
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder
from embedfit.encode.named import encoder_of
from embedfit.errors import DataError
from embedfit.evaluation.calibrate import Assessed
from embedfit.retrieve.finder import BaseRetriever
from embedfit.retrieve.run import Run
from embedfit.searcher.fusion import STATES, Evidence, Fusion, State, folds_of, usual_fusion
from embedfit.searcher.gather import SCALE, Corpus, Examples, Views
from embedfit.searcher.learn import Learnt, assess, cross_fitted
from embedfit.searcher.parts import Parts
from embedfit.searcher.searcher import Searcher
from embedfit.searcher.views import BASE, DOCUMENTS, LINEAR, VIEWS, WORDS
from embedfit.sections import ModelConfig
from embedfit.template import DOCUMENT_TEMPLATE, Template

_LAST = -1e4
"""Constant of documents of which a single view knows nothing: they come last."""


def fit_searcher(
    dataset: Dataset,
    model: Encoder | str | Path,
    *,
    template: str = DOCUMENT_TEMPLATE,
    views: Sequence[str] = VIEWS,
    query_template: Template | None = None,
    precision: float = 0.95,
    coverage: float = 0.95,
    trusted: bool = True,
    group_by: str | None = None,
    seed: int = 0,
) -> Searcher:
    """Build a searcher over a model as it is. Nothing is trained but the views' linear models and weights, which takes seconds.

    Weights and probabilities are learnt in five folds: each query is scored by views that do not know it. The model must not have
    been tuned on these queries; for a tuned one take ``embedfit.run``, which trains a model for each fold.

    Args:
        dataset: Documents and labelled queries.
        model: Encoder, or the name or folder of a model.
        template: Document template.
        views: Names of the views to fuse. A single one ranks alone.
        query_template: Template that renders a record as a query; None if queries are texts.
        precision: Promised share of right answers above the threshold of answers that need no person.
        coverage: Probability that the hits of a conformal set hold a right one.
        trusted: Whether to learn probabilities.
        group_by: Metadata field; queries with the same value are in one fold, as near duplicates always are.
        seed: Seed of the folds.

    Raises:
        DataError: A document has no text under the template, or the only view does not suit the data.
    """
    encoder = model if isinstance(model, CachedEncoder) else CachedEncoder(_encoder(model))
    known = dataset.select(dataset.judged)
    corpus = Corpus.of(dataset, encoder, template)
    examples = Examples.of(known, encoder, corpus.ids)
    names = tuple(view for view in views if view != BASE)
    learnt = Learnt(alone(names[0])) if len(names) == 1 else Learnt(usual_fusion([view for view in names if view in (DOCUMENTS, WORDS)]))
    assessed = None
    if known.queries and (trusted or len(names) > 1):
        numbers = group_numbers(known, group_by)
        evidence = _out_of_fold(known, encoder, corpus, names, np.array([numbers[id] for id in known.queries]), seed)
        groups = np.array([numbers[id] for id in evidence.query_ids])
        if len(names) > 1:
            learnt, scores = Learnt.of(evidence, names, seed=seed), cross_fitted(evidence, groups, names, seed=seed)
        elif names[0] in evidence.scores:
            scores = learnt.scores(evidence)
        else:  # too few queries in one of the folds
            trusted = False
        if trusted:
            answerable = [bool(dataset.relevant(id)) for id in evidence.query_ids]
            assessed = assess(evidence, scores, groups, answerable, precision=precision, coverage=coverage, seed=seed)
    fitted = Views.fit(corpus, examples, names, scale=learnt.scale)
    if len(names) == 1 and names[0] not in fitted.views:
        raise DataError(
            "data", f"has too few queries for each label, or too many labels, for the view {names[0]!r}", expected="labels that repeat"
        )
    return assembled(dataset, encoder, corpus, examples, fitted, learnt, assessed, template, query_template=query_template)


def assembled(
    dataset: Dataset,
    encoder: Encoder,
    corpus: Corpus,
    examples: Examples,
    views: Views,
    learnt: Learnt,
    assessed: Assessed | None,
    template: str,
    *,
    base: Encoder | None = None,
    query_template: Template | None = None,
) -> Searcher:
    """Return the searcher of its parts, without the views that do not count.

    Args:
        dataset: Documents.
        encoder: Encoder of queries and documents.
        corpus: Ids, texts and vectors of the documents.
        examples: Labelled queries.
        views: Views of these.
        learnt: Weights of the views.
        assessed: How far answers can be trusted; None if not known.
        template: Document template.
        base: Model before it was tuned; None if no view reads its vectors.
        query_template: Template that renders a record as a query; None if queries are texts.
    """
    used = {name: view for name, view in views.views.items() if name in (*learnt.fusion.views, DOCUMENTS)}
    trust = assessed.trust if assessed else None
    return Searcher(
        Parts(
            encoder,
            dataset.corpus,
            corpus,
            examples,
            Views(used, views.count, views.scale),
            learnt.fusion,
            template,
            base=base if BASE in used else None,
            query_template=query_template,
            calibrator=trust.calibrator if trust else None,
            threshold=trust.threshold if trust else None,
            sets=trust.sets if trust else None,
        )
    )


def alone(view: str) -> Fusion:
    """Return the fusion that ranks by a single view. Documents that a linear model does not know come last."""
    weights = {DOCUMENTS: 0.0, view: 1.0}
    if view in (DOCUMENTS, WORDS):
        return Fusion({state: dict(weights) for state in STATES})
    unknown: tuple[State, ...] = ("new", "cold") if view in LINEAR else ("cold",)
    return Fusion({state: {DOCUMENTS: 0.0} if state in unknown else dict(weights) for state in STATES}, dict.fromkeys(unknown, _LAST))


class SearcherRetriever(BaseRetriever):
    """A searcher as a retriever that is measured.

    Args:
        searcher: Searcher over the documents of the data set that is searched.
        name: Name for tables.
    """

    def __init__(self, searcher: Searcher, name: str) -> None:
        self.searcher, self.name, self.template = searcher, name, searcher.parts.template

    def search(self, dataset: Dataset, k: int) -> Run:
        """Return the k best documents for each query of a data set.

        Raises:
            DataError: The data set has other documents than the searcher.
        """
        return self.searcher.rank(dataset, k)


def _encoder(model: Encoder | str | Path) -> Encoder:
    return encoder_of(ModelConfig(name=str(model))) if isinstance(model, str | Path) else model


def _out_of_fold(
    known: Dataset, encoder: Encoder, corpus: Corpus, names: Sequence[str], groups: npt.NDArray[np.int64], seed: int
) -> Evidence:
    """Return what the views say about each query if they do not know it and its group."""
    ids, folds = np.array(list(known.queries), dtype=object), folds_of(groups, seed)
    parts = []
    for fold in np.unique(folds):
        examples = Examples.of(known.select(ids[folds != fold]), encoder, corpus.ids)
        views = Views.fit(corpus, examples, names, scale=SCALE)
        parts.append(views.gather(known.select(ids[folds == fold]), encoder, corpus.ids))
    return Evidence.joined(parts)
