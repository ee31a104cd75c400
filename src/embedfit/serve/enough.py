"""When enough is labelled: the learning curve so far, its forecast, and the share of the items that would need no person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import unchecked
from embedfit.data.texts import Contents, Query
from embedfit.encode.encoder import Kind, Vectors
from embedfit.evaluation.calibration import Calibrator, best_answers, out_of_fold
from embedfit.evaluation.threshold import Threshold, choose_threshold
from embedfit.searcher.fusion import Evidence
from embedfit.searcher.gather import Views
from embedfit.searcher.learn import Learnt, cross_fitted
from embedfit.searcher.parts import Parts
from embedfit.searcher.views import CLASSES, DOCUMENTS, EXAMPLES, TERMS, WORDS, Array, Asked, WordsView
from embedfit.serve.searching import with_labels
from embedfit.studies.forecast import Curve, fit_curve

FIRST = 20
"""Number of labels from which weights are learnt."""
_LEAST = 12
"""Fewest labelled random items to measure on."""
_STEP = 1.5
"""Each measurement waits until so many times the labels of the one before are there."""
_SIZES = (0.0, 0.125, 0.25, 0.5, 1.0)
"""Shares of the labels at which the curve is measured."""
_FOLDS = 5
_VIEWS = (DOCUMENTS, EXAMPLES, WORDS, CLASSES, TERMS)
_MORE = 100
"""Number of further labels to forecast for."""
_LITTLE = 0.01
"""Gain by `_MORE` labels under which more of them bring little."""


@dataclass(frozen=True)
class Labelled:
    """Labelled items, in the order in which they were labelled.

    Attributes:
        asked: Their texts and vectors.
        documents: Position of the right document of each; -1 for none of the documents. Shape (n,).
        random: Whether each was drawn at random, not for what it teaches. Shape (n,).
    """

    asked: Asked
    documents: npt.NDArray[np.int64]
    random: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Outlook:
    """What the labels so far are worth.

    Attributes:
        labels: Number of labels.
        curve: Share of the items whose first answer is right, by number of labels, and its forecast.
        threshold: Probability from which an answer needs no person, and the share of such answers.
    """

    labels: int
    curve: Curve
    threshold: Threshold

    @property
    def is_enough(self) -> bool:
        """Whether more labels of this kind bring little: the forecast for a hundred more is under one point."""
        return bool(self.curve.forecasts) and self.curve.forecasts[0].gain < _LITTLE

    @property
    def sentences(self) -> list[str]:
        """What a person should know, one sentence each."""
        now = self.curve.points[-1]
        lines = [f"First answer right: {now.value:.0%} ({now.low:.0%} to {now.high:.0%}), on {self.curve.queries} random items."]
        if self.curve.forecasts:
            then = self.curve.forecasts[0]
            text = f"With {then.more} more labels: about {then.value:.0%} ({then.low:.0%} to {then.high:.0%})."
            lines.append(f"{text} More labels bring little: enough is labelled." if self.is_enough else text)
        else:
            lines.append("It is too early for a forecast.")
        precision = self.threshold.precision
        if self.threshold.value is None:
            lines.append(f"Without a person, at {precision:.0%} precision: none yet.")
        else:
            lines.append(f"Without a person, at {precision:.0%} precision: {self.threshold.coverage:.0%} of the items.")
        return lines

    @property
    def line(self) -> str:
        """The curve as points of a drawing that is 100 wide and 100 high."""
        most = max(1, self.curve.points[-1].pairs)
        return " ".join(f"{100 * point.pairs / most:.1f},{100 - 100 * point.value:.1f}" for point in self.curve.points)


@dataclass(frozen=True)
class Progress:
    """What was learnt from the labels so far.

    Attributes:
        parts: Searcher with the labels as examples, and with weights and a calibration learnt from them.
        outlook: What the labels are worth; None if too few random items are labelled.
    """

    parts: Parts
    outlook: Outlook | None


def next_size(size: int) -> int:
    """Return the number of labels at which to measure again after a measurement at ``size``."""
    return max(size + 1, round(_STEP * size))


def learn(parts: Parts, labelled: Labelled, *, precision: float = 0.95, seed: int = 0) -> Progress:
    """Learn from labels, and measure by cross-validation what they are worth.

    A searcher with a calibration, which is a run's, keeps its weights. For another one they are learnt, with those of the linear models
    where labels repeat. Only items that were drawn at random are counted, since those that were chosen for what they teach are harder
    than others. Each is scored by examples and weights of other items alone. The curve's smaller numbers are the labels that were made
    first. An item without a right document counts as wrong.

    Args:
        parts: Searcher without the labels.
        labelled: Labelled items, at least one.
        precision: Promised share of right answers among those that need no person.
        seed: Seed of the folds and draws.
    """
    if parts.calibrator is None and WORDS not in parts.views.views:  # they are the same for all labels
        words = WordsView(parts.corpus.texts)
        parts = replace(parts, views=replace(parts.views, views={**parts.views.views, WORDS: words}))
    n, test = len(labelled.documents), np.flatnonzero(labelled.random)
    pairs: list[int] = []
    rights: list[npt.NDArray[np.bool_]] = []
    for share in _SIZES if len(test) >= _LEAST else (1.0,):
        size = round(share * n)
        if size in pairs:
            continue
        measured = _Measured.of(parts, labelled, size, seed)
        pairs.append(size)
        rights.append(measured.right[test])
    outlook = None
    if len(test) >= _LEAST:
        curve = fit_curve(pairs, np.stack(rights, axis=1).astype(float), metric="recall@1", more=(_MORE,), seed=seed)
        relevant = measured.evidence.relevant[test]
        probability, correct = best_answers(out_of_fold(measured.scores[test], relevant, seed=seed), relevant)
        outlook = Outlook(n, curve, choose_threshold(probability, correct, precision=precision, seed=seed))
    return Progress(measured.parts(parts, labelled), outlook)


@dataclass(frozen=True)
class _Measured:
    """All labelled items, scored by the first labels without each item's own.

    Attributes:
        evidence: Evidence on each item, in their order.
        scores: Fused scores of the candidates; shape (n, m).
        size: Number of labels.
        learnt: Weights from these labels.
    """

    evidence: Evidence
    scores: Array
    size: int
    learnt: Learnt

    @classmethod
    def of(cls, parts: Parts, labelled: Labelled, size: int, seed: int) -> _Measured:
        n = len(labelled.documents)
        known = np.arange(size)
        fold = np.append(np.random.default_rng(seed).permutation(size) % _FOLDS, np.full(n - size, -1))
        found, order = [], []
        for number in np.unique(fold):  # those beyond the first labels are asked with all of these
            rows = np.flatnonzero(fold == number)
            found.append(_evidence(parts, labelled, known[fold[:size] != number], rows))
            order.append(rows)
        names = set.intersection(*(set(some.scores) for some in found))
        joined = Evidence.joined([replace(some, scores={name: some.scores[name] for name in names}) for some in found])
        evidence = joined.take(np.argsort(np.concatenate(order)))
        empty = evidence.candidates < 0
        learnt = Learnt(parts.fusion, parts.views.scale)
        if parts.calibrator is not None or size < FIRST:
            return cls(evidence, parts.fusion.scores(evidence.scores, empty), size, learnt)
        mine, others = evidence.take(known), evidence.take(np.arange(size, n))
        learnt = Learnt.of(mine, _VIEWS, seed=seed)
        scores = np.concatenate([cross_fitted(mine, known, _VIEWS, seed=seed), learnt.scores(others)])
        return cls(evidence, scores, size, learnt)

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether each item's best document is right; shape (n,)."""
        best: npt.NDArray[np.bool_] = self.evidence.relevant[np.arange(len(self.scores)), self.scores.argmax(axis=1)]
        return best

    def parts(self, parts: Parts, labelled: Labelled) -> Parts:
        """Return a searcher with the labels, the weights and, if they were learnt, a calibration."""
        known = np.arange(self.size)
        if parts.calibrator is not None or self.size < FIRST:
            return _with(parts, labelled, known)
        calibrator = Calibrator.fit(self.scores[: self.size], self.evidence.relevant[: self.size])
        parts = replace(parts, fusion=self.learnt.fusion, views=replace(parts.views, scale=self.learnt.scale))
        return replace(_with(parts, labelled, known), calibrator=calibrator)


class _Known:
    """Vectors that are there already, as an encoder."""

    name = fingerprint = "known"

    def __init__(self, texts: Sequence[str], vectors: Vectors) -> None:
        self._row = {text: row for row, text in enumerate(texts)}
        self._vectors = vectors

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return the vector of each text."""
        rows: Vectors = self._vectors[[self._row[text] for text in texts]]
        return rows


def _with(parts: Parts, labelled: Labelled, known: npt.NDArray[np.int64]) -> Parts:
    """Return a searcher with some labels as examples, and the views that these allow."""
    asked = labelled.asked
    known = known[labelled.documents[known] >= 0]
    keys = {f"item {number}": (asked.texts[number], int(labelled.documents[number])) for number in known}
    examples = with_labels(parts.examples, keys, asked.vectors[known])
    some = parts.with_examples(examples)
    if parts.calibrator is not None:
        return some
    of_documents = {name: view for name, view in parts.views.views.items() if name in (DOCUMENTS, WORDS)}
    given = {**of_documents, EXAMPLES: some.views.views[EXAMPLES]}
    return replace(some, views=Views.fit(parts.corpus, examples, _VIEWS, scale=parts.views.scale, given=given))


def _evidence(parts: Parts, labelled: Labelled, known: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> Evidence:
    """Return what the views say about some items, with the labels of others."""
    asked, ids = labelled.asked, parts.corpus.ids
    queries = {f"{row}": Query(f"{row}", asked.texts[row]) for row in rows}
    qrels = {f"{row}": {ids[place]: 1} for row in rows if (place := int(labelled.documents[row])) >= 0}
    data = unchecked(Contents(queries, dict(parts.documents), qrels))
    base = None if asked.base is None else _Known(asked.texts, asked.base)
    return _with(parts, labelled, known).views.gather(data, _Known(asked.texts, asked.vectors), ids, base)
