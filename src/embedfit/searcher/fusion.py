"""Fusion: a few weights turn the scores of the views into one score, which is a log-probability up to a constant.

A document's score is a weighted sum of its views' scores, and the probability that it is right is the softmax over the candidates:
McFadden's conditional logit (1974). The weights differ by what is known of a document, its state:

cold  no example: its text alone counts
new   examples, but no class in the linear models: it was labelled after they were fitted
warm  all views

A new or cold document has a constant beside its weights, so that it competes fairly with documents of which more is known. For a cold
one, two more weights tell whether a query is like the labelled ones: its similarity to the nearest example of any document, and the
log-probability of the likeliest class. To learn all this, some documents are made new or cold while the weights are fitted. Last,
the constants are raised until such documents are found as often as by their own vectors alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize

from embedfit.searcher.views import BASE, CLASSES, DOCUMENTS, EXAMPLES, LINEAR, TERMS, VIEWS, WORDS, Array

State: TypeAlias = Literal["warm", "new", "cold"]
STATES: tuple[State, ...] = get_args(State)
_READ: dict[State, tuple[str, ...]] = {"warm": VIEWS, "new": (DOCUMENTS, WORDS, EXAMPLES), "cold": (DOCUMENTS, WORDS)}
"""Views that count in each state."""
NEAREST, LIKELIEST = "nearest", "likeliest"
"""What is asked of a query itself before a cold document is its answer: the score of its nearest example, and of its likeliest class."""
_USUAL = {DOCUMENTS: 8.0, EXAMPLES: 8.0, WORDS: 0.1, CLASSES: 0.4, TERMS: 0.4, BASE: 0.4}
"""Weights that the fit starts from and is drawn to: between those of several label sets."""
_USUAL_COLD = 20.0
"""The documents' weight where nothing else is known."""
_PULL = 2.0
"""Strength of that pull, in queries for each weight at one standard deviation of its scores."""
_CONSTANTS_SPREAD = 0.05
"""Its variance for the constants, which are drawn to 0."""
_MADE_COLD, _MADE_NEW = 0.15, 0.15
"""Shares of the documents that are made cold and new for the fit."""
_MOST_QUERIES = 3000
"""Queries that the weights are fitted on: a dozen numbers need no more."""
_FOLDS = 5
"""Folds for scoring queries by weights that were fitted without them."""


@dataclass(frozen=True)
class Evidence:
    """What the views say about some queries, none of which their examples and linear models were fitted on.

    n queries with m candidates each; a row with fewer candidates ends with empty places.

    Attributes:
        query_ids: Query ids.
        candidates: Positions of documents, -1 for an empty place; shape (n, m).
        scores: View -> scores, NaN where the view knows nothing; shape (n, m).
        few: Scores of the examples view if each document had a few examples; shape (n, m).
        relevant: Whether each candidate is right; shape (n, m).
        scales: Scale -> scores of the examples view, and its scores with few examples, at that scale.
    """

    query_ids: tuple[str, ...]
    candidates: npt.NDArray[np.int64]
    scores: dict[str, Array]
    few: Array
    relevant: npt.NDArray[np.bool_]
    scales: dict[float, tuple[Array, Array]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.query_ids)

    def take(self, rows: npt.NDArray[Any]) -> Evidence:
        """Return the evidence on some of the queries.

        Args:
            rows: Their positions, or a mask.
        """
        scores = {name: values[rows] for name, values in self.scores.items()}
        ids = tuple(np.array(self.query_ids, dtype=object)[rows])
        scales = {scale: (values[rows], few[rows]) for scale, (values, few) in self.scales.items()}
        return Evidence(ids, self.candidates[rows], scores, self.few[rows], self.relevant[rows], scales)

    def with_scale(self, scale: float) -> Evidence:
        """Return the evidence with the examples view at one of the scales."""
        values, few = self.scales[scale]
        return replace(self, scores={**self.scores, EXAMPLES: values}, few=few)

    @staticmethod
    def joined(parts: Sequence[Evidence]) -> Evidence:
        """Return the evidence of several parts, for example of folds. Their candidates may differ in number.

        A view that one part lacks, because its few queries do not suit it, is left out.
        """
        width = max(part.candidates.shape[1] for part in parts)
        names = [name for name in parts[0].scores if all(name in part.scores for part in parts)]

        def wide(values: npt.NDArray[Any], fill: Any) -> npt.NDArray[Any]:
            padding = np.full((len(values), width - values.shape[1]), fill, values.dtype)
            return np.concatenate([values, padding], axis=1)

        return Evidence(
            tuple(id for part in parts for id in part.query_ids),
            np.concatenate([wide(part.candidates, -1) for part in parts]),
            {name: np.concatenate([wide(part.scores[name], np.nan) for part in parts]) for name in names},
            np.concatenate([wide(part.few, np.nan) for part in parts]),
            np.concatenate([wide(part.relevant, False) for part in parts]),
            {scale: _both([part.scales[scale] for part in parts], wide) for scale in parts[0].scales if EXAMPLES in names},
        )


def _both(pairs: Sequence[tuple[Array, Array]], wide: Callable[[Array, Any], Array]) -> tuple[Array, Array]:
    first, second = (np.concatenate([wide(values, np.nan) for values in column]) for column in zip(*pairs, strict=True))
    return first, second


@dataclass(frozen=True)
class Fusion:
    """Weights of the views in each state.

    Attributes:
        weights: State -> {view: weight}; a view that does not count is missing.
        constants: State -> constant; 0 if warm.
    """

    weights: dict[State, dict[str, float]]
    constants: dict[State, float] = field(default_factory=dict)

    @property
    def views(self) -> tuple[str, ...]:
        """The views that count."""
        return tuple(view for view in VIEWS if any(view in weights for weights in self.weights.values()))

    def scores(self, views: Mapping[str, Array], empty: npt.NDArray[np.bool_] | None = None) -> Array:
        """Return the fused scores; shape (n, m), as each view's.

        Args:
            views: View -> scores, NaN where the view knows nothing.
            empty: Mask of empty places, whose score is -inf.
        """
        state = states(views, self.views)
        filled = _filled(views, self.views)
        fused = np.zeros(state.shape, np.float32)
        for number, name in enumerate(STATES):
            if name in self.weights:
                sums: Any = np.float32(self.constants.get(name, 0.0))
                for view, weight in self.weights[name].items():
                    sums = sums + np.float32(weight) * filled[view]
                fused = np.where(state == number, sums, fused)
        return fused if empty is None else np.where(empty, np.float32(-np.inf), fused)

    def to_dict(self) -> dict[str, Any]:
        """Return weights and constants for JSON."""
        return {"weights": self.weights, "constants": self.constants}

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any]) -> Fusion:
        """Return the fusion that `to_dict` described."""
        return cls(payload["weights"], payload["constants"])


def states(views: Mapping[str, Array], names: Sequence[str]) -> npt.NDArray[np.int8]:
    """Return the number of each document's state, in the order of `STATES`; shape (n, m)."""
    known = {name: ~np.isnan(views[name]) for name in names}
    anything = known[DOCUMENTS]
    has_examples = known.get(EXAMPLES, anything)
    has_class = np.logical_and.reduce([known.get(view, anything) for view in LINEAR])
    if EXAMPLES not in names and not set(LINEAR).isdisjoint(names):
        has_examples = has_class
    return np.where(has_examples & has_class, 0, np.where(has_examples, 1, 2)).astype(np.int8)


def renormalised(view: str, scores: Array) -> Array:
    """Return log-probabilities as such among the classes that are known; other scores as they are."""
    if view not in LINEAR:
        return scores
    filled = np.where(np.isnan(scores), -np.inf, scores)
    best = filled.max(axis=1, keepdims=True, initial=-np.inf)
    best = np.where(np.isfinite(best), best, 0)
    sums = np.exp(filled - best).sum(axis=1, keepdims=True)
    return np.asarray(scores - np.where(sums > 0, np.log(np.maximum(sums, np.finfo(np.float32).tiny)) + best, 0), np.float32)


def fit_fusion(evidence: Evidence, views: Sequence[str] = VIEWS, *, seed: int = 0) -> Fusion:
    """Fit the weights by maximum likelihood, drawn to usual weights if there are few queries.

    Queries without a right answer among their candidates are left out. No weight is negative. A view other than documents and
    examples is dropped where the likelihood does not pay for its weights, by Akaike's criterion (1974).

    Args:
        evidence: Queries that the views were not fitted on.
        views: Views to fuse; those that the evidence lacks are left out.
        seed: Seed of the documents that are made new or cold.
    """
    return _best_fusion(_usable(evidence, seed), views, seed)[0]


def usual_fusion(views: Sequence[str]) -> Fusion:
    """Return the weights to use where there is no query to learn them from."""
    columns = _columns(views)
    return _fusion_of(columns, np.array([_usual(state, view) for state, view in columns]))


def choose_scale(evidence: Evidence, *, seed: int = 0) -> float:
    """Return the scale of the soft maximum over a document's examples that predicts the answers best beside the documents."""
    evidence = _usable(evidence, seed)
    losses = {}
    for scale in evidence.scales:
        at_scale = evidence.with_scale(scale)
        losses[scale] = _best_fusion(at_scale, (DOCUMENTS, EXAMPLES), seed)[1]
    return min(losses, key=lambda scale: losses[scale])


def _best_fusion(evidence: Evidence, views: Sequence[str], seed: int) -> tuple[Fusion, float]:
    """Return the fusion of the views that pay for themselves, and its loss in nats for each query."""
    chosen = tuple(view for view in VIEWS if view in views and view in evidence.scores)
    if not len(evidence):
        return usual_fusion(chosen), 0.0
    poorer = _poorer(evidence, np.random.default_rng(seed))
    fusion, loss = _fitted(evidence, poorer, chosen)
    for view in (BASE, WORDS, CLASSES, TERMS):  # the dearest first
        if view in chosen:
            others = tuple(other for other in chosen if other != view)
            without, without_loss = _fitted(evidence, poorer, others)
            if (without_loss - loss) * len(evidence) <= len(_columns(chosen)) - len(_columns(others)):
                chosen, fusion, loss = others, without, without_loss
    return _lifted(fusion, evidence, poorer), loss


def _lifted(fusion: Fusion, evidence: Evidence, poorer: Mapping[str, Array]) -> Fusion:
    """Return the fusion with constants so high that cold and new documents come first as often as by their own vectors alone.

    Both are counted among the queries whose right answer was made cold or new.

    Args:
        fusion: Weights.
        evidence: Queries, each with a right answer.
        poorer: The views' scores with these documents made cold or new.
    """
    views, empty = [view for view in VIEWS if view in poorer], evidence.candidates < 0
    state = states(poorer, views)
    for number, name in enumerate(STATES[1:], start=1):
        fused = fusion.scores(poorer, empty)
        mine = (state == number) & ~empty
        right = np.where(evidence.relevant & mine, fused, -np.inf).max(axis=1)
        documents = np.where(empty, -np.inf, poorer[DOCUMENTS])
        first = evidence.relevant & mine & (documents == documents.max(axis=1, keepdims=True))
        others = np.where(mine, -np.inf, fused).max(axis=1)
        best = np.isfinite(right) & (right >= np.where(mine, fused, -np.inf).max(axis=1))  # as high as any that is lifted with it
        lifts = np.sort((others - right)[best])
        wanted = min(int(first.any(axis=1).sum()), len(lifts))
        lift = float(lifts[wanted - 1]) if wanted else 0.0
        if 0 < lift < np.inf:
            fusion = replace(fusion, constants={**fusion.constants, name: fusion.constants.get(name, 0.0) + lift + 1e-3})
    return fusion


def folds_of(groups: npt.NDArray[np.int64], seed: int, count: int = _FOLDS) -> npt.NDArray[np.int64]:
    """Return the number of a random fold for each query; queries of one group are in one fold."""
    unique, number = np.unique(groups, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(unique))
    folds: npt.NDArray[np.int64] = (order % min(count, max(1, len(unique))))[number]
    return folds


def _filled(scores: Mapping[str, Array], views: Sequence[str]) -> dict[str, Array]:
    """Return what the weights are multiplied with: the views' scores, 0 where nothing is known, and `NEAREST` and `LIKELIEST`."""
    scores = {view: renormalised(view, scores[view]) for view in views}
    filled = {view: np.nan_to_num(values) for view, values in scores.items()}
    linear = [view for view in LINEAR if view in scores]
    likeliest = np.mean([_best(scores[view]) for view in linear], axis=0) if linear else np.zeros((len(scores[DOCUMENTS]), 1))
    nearest = _best(scores[EXAMPLES]) if EXAMPLES in scores else np.zeros_like(likeliest)
    return {**filled, NEAREST: nearest.astype(np.float32), LIKELIEST: likeliest.astype(np.float32)}


def _best(scores: Array) -> Array:
    """Return the largest known score of each row, 0 for none; shape (n, 1)."""
    best = np.where(np.isnan(scores), -np.inf, scores).max(axis=1, keepdims=True, initial=-np.inf)
    return np.where(np.isfinite(best), best, 0)


def _usable(evidence: Evidence, seed: int) -> Evidence:
    """Return the queries with a right answer among their candidates, at most `_MOST_QUERIES`."""
    rows = np.flatnonzero(evidence.relevant.any(axis=1))
    if len(rows) > _MOST_QUERIES:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MOST_QUERIES, replace=False))
    return evidence.take(rows)


def _poorer(evidence: Evidence, rng: np.random.Generator) -> dict[str, Array]:
    """Return the views' scores if some documents had few examples and no class, and others nothing but their text."""
    documents = int(evidence.candidates.max()) + 1
    draw = rng.random(documents + 1)[evidence.candidates]  # one draw for each document, the same for all queries
    is_cold, is_new = draw < _MADE_COLD, (draw >= _MADE_COLD) & (draw < _MADE_COLD + _MADE_NEW)
    scores = dict(evidence.scores)
    if EXAMPLES in scores:
        scores[EXAMPLES] = np.where(is_cold, np.nan, np.where(is_new, evidence.few, scores[EXAMPLES]))
    for view in LINEAR:
        if view in scores:
            scores[view] = np.where(is_cold | is_new, np.nan, scores[view])
    return scores


def _columns(views: Sequence[str]) -> list[tuple[State, str]]:
    """Return (state, view) for each parameter; an empty view stands for the state's constant."""
    columns: list[tuple[State, str]] = []
    for state in STATES:
        columns += [(state, view) for view in views if view in _READ[state]]
        columns += [(state, name) for name in (NEAREST, LIKELIEST)] if state == "cold" else []
        columns += [(state, "")] * (state != "warm")
    return columns


def _design(scores: Mapping[str, Array], views: Sequence[str], evidence: Evidence) -> Array:
    """Return what each parameter is multiplied with; shape (n, m, parameters)."""
    state = states(scores, views)
    columns = _columns(views)
    design = np.zeros((*evidence.candidates.shape, len(columns)), np.float32)
    filled = _filled(scores, views)
    for place, (name, view) in enumerate(columns):
        design[..., place] = np.where(state == STATES.index(name), filled[view] if view else 1, 0)
    return design


def _fitted(evidence: Evidence, poorer: Mapping[str, Array], views: Sequence[str]) -> tuple[Fusion, float]:
    """Return the most likely weights, and their loss.

    Args:
        evidence: Queries, each with a right answer.
        poorer: The views' scores if less were known of some documents; these count as much as the evidence itself.
        views: Views to fuse.
    """
    columns = _columns(views)
    usual = np.array([_usual(state, view) for state, view in columns])
    design = np.concatenate([_design(evidence.scores, views, evidence), _design(poorer, views, evidence)])
    relevant, empty = np.tile(evidence.relevant, (2, 1)), np.tile(evidence.candidates < 0, (2, 1))
    spreads = {view: _spread(renormalised(view, evidence.scores[view])) for view in views}
    pulls = np.array([spreads[view] ** 2 if view in spreads else _CONSTANTS_SPREAD for _, view in columns]) * _PULL / len(evidence)

    def loss(parameters: npt.NDArray[np.float64]) -> tuple[float, npt.NDArray[np.float64]]:
        logits = np.where(empty, -np.inf, design @ parameters.astype(np.float32)).astype(np.float64)
        right = np.where(relevant, logits, -np.inf)
        (of_right, share_of_right), (of_all, share_of_all) = _soft_maximum(right), _soft_maximum(logits)
        likelihood = of_right - of_all
        slope = (share_of_all - share_of_right).astype(np.float32)
        moved = parameters - usual
        gradient = np.tensordot(slope, design, axes=([0, 1], [0, 1])) / len(design) + 2 * pulls * moved
        return float(-likelihood.mean() + (pulls * moved**2).sum()), gradient.astype(np.float64)

    bounds = [(0, None) if view in views else (None, None) for _, view in columns]
    best = minimize(loss, usual, jac=True, method="L-BFGS-B", bounds=bounds)
    return _fusion_of(columns, best.x), float(best.fun)


def _soft_maximum(logits: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return log sum exp and softmax of each row. scipy computes each of the two by itself, in four times the time."""
    highest = logits.max(axis=1, keepdims=True)
    shares = np.exp(logits - highest)
    total = shares.sum(axis=1, keepdims=True)
    return (highest + np.log(total))[:, 0], shares / total


def _fusion_of(columns: Sequence[tuple[State, str]], parameters: npt.NDArray[np.float64]) -> Fusion:
    weights: dict[State, dict[str, float]] = {state: {} for state in STATES}
    constants: dict[State, float] = {"warm": 0.0}
    for (state, view), value in zip(columns, parameters.tolist(), strict=True):
        if view:
            weights[state][view] = value
        else:
            constants[state] = value
    return Fusion(weights, constants)


def _usual(state: State, view: str) -> float:
    if view not in _USUAL:
        return 0.0
    return _USUAL_COLD if state == "cold" and view == DOCUMENTS else _USUAL[view]


def _spread(scores: Array) -> float:
    """Return the standard deviation of a view's known scores within a query, as the root of the mean variance."""
    with np.errstate(all="ignore"):
        known = ~np.isnan(scores)
        counts = np.maximum(known.sum(axis=1), 1)
        means = np.nansum(scores, axis=1) / counts
        variances = np.nansum((scores - means[:, None]) ** 2, axis=1) / counts
    return float(np.sqrt(variances.mean())) if len(scores) else 1.0
