"""From scores of candidate documents to the probability that each one is right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import expit, log_expit, log_softmax, logsumexp

from embedfit.errors import DataError
from embedfit.evaluation.score import Groups
from embedfit.evaluation.statistics import Floats, renumbered

Bools: TypeAlias = npt.NDArray[np.bool_]
VERSION = 1
"""Version of the saved form."""
_FEATURES = 4
_LARGEST = 15.0
"""Bound of log-odds and of gaps between log-probabilities."""
_RANKS = 10
"""Number of best candidates whose correctness the fit looks at."""
_TEMPERATURE_SPREAD = 0.5
"""Standard deviation of the prior of the log temperature."""
_SPREADS = np.array([1.5, 0.5, 0.5, 0.5, 0.5])
"""Standard deviations of the priors of a correction: its constant, then its features."""


@dataclass(frozen=True)
class Calibrator:
    """Map from the scores of a query's candidates to the probability that each one is right.

    Scores s become a softmax with a temperature T. Then a correction is added to the log-odds of each candidate c:

        q = softmax(s / T)
        logit p(c) = logit q(c) + w0 + sum_i w_i x_i

    It is Platt scaling (Platt 1999) on top of temperature scaling (Guo et al. 2017, "On calibration of modern neural networks",
    section 4.2). The features x describe the query: log-odds of the best candidate, gap between the log-probabilities of the
    best two, entropy of q, and the level logsumexp(s), which is low where no candidate fits (the energy score of Liu et al. 2020,
    "Energy-based out-of-distribution detection"). They are standardised, and bounded by the values that the fit has seen. The best
    candidate has weights of its own. Candidates keep the order of their scores.

    Normal priors pull T to 1 and all weights to 0. With few queries the result is close to the softmax of the scores.

    Attributes:
        temperature: T, above 0.
        centre: Mean of each feature, shape (4,).
        spread: Standard deviation of each feature, shape (4,).
        low: Smallest value of each standardised feature, shape (4,).
        high: Largest value of each standardised feature, shape (4,).
        best: Weights w for the best candidate, shape (5,).
        rest: Weights w for all other candidates, shape (5,).
        queries: Number of queries that it was fitted on.
    """

    temperature: float
    centre: tuple[float, ...]
    spread: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    best: tuple[float, ...]
    rest: tuple[float, ...]
    queries: int

    @classmethod
    def fit(cls, scores: npt.ArrayLike, relevant: npt.ArrayLike, groups: Groups | None = None) -> Calibrator:
        """Fit the map to queries whose right answers are known.

        Fit it to scores of queries that the scoring model was not trained on (out-of-fold scores). A query without an answer
        counts as one for which every candidate is wrong.

        Args:
            scores: Log-scores, shape (queries, candidates); -inf where there is no candidate.
            relevant: Whether a candidate is right, shape (queries, candidates).
            groups: Group number of each query, shape (queries,). Queries of one group count as one piece of evidence; by default
                each query is a group of its own.

        Raises:
            DataError: The arrays do not fit together, a score is NaN or +inf, or no query has a candidate.
        """
        scores, relevant = checked(scores, relevant)
        weight = effective_size(groups, len(scores)) / len(scores)
        searched = np.isfinite(scores).any(axis=1)
        if not searched.any():
            raise DataError("scores", "no query has a candidate", expected="at least one finite score")
        scores, relevant = scores[searched], relevant[searched]
        temperature = _temperature(scores, relevant, weight)
        features = _features(scores, temperature)
        centre, spread = features.mean(axis=0), features.std(axis=0)
        spread = np.where(spread > 1e-9, spread, 1.0)
        standardised = (features - centre) / spread
        order = np.argsort(-scores, axis=1, kind="stable")[:, :_RANKS]
        odds = np.take_along_axis(_log_odds(scores, temperature), order, axis=1)
        right = np.take_along_axis(relevant, order, axis=1)
        real = np.isfinite(np.take_along_axis(scores, order, axis=1))
        design = np.broadcast_to(_with_constant(standardised)[:, None], (*order.shape, _FEATURES + 1))
        weights = [
            _correction(design[:, ranks][real[:, ranks]], odds[:, ranks][real[:, ranks]], right[:, ranks][real[:, ranks]], weight)
            for ranks in (slice(0, 1), slice(1, None))
        ]
        ends = standardised.min(axis=0), standardised.max(axis=0)
        centre, spread, low, high, best, rest = (tuple(values.tolist()) for values in (centre, spread, *ends, *weights))
        return cls(temperature, centre, spread, low, high, best, rest, len(scores))

    def probabilities(self, scores: npt.ArrayLike) -> Floats:
        """Return the probability that each candidate is right, shape (queries, candidates).

        The probabilities of one query need not sum to 1: no candidate may be right, or several. Places without a candidate get 0.

        Args:
            scores: Log-scores, shape (queries, candidates); -inf where there is no candidate.

        Raises:
            DataError: The array is not two-dimensional, or a score is NaN or +inf.
        """
        scores = checked_scores(scores)
        if not scores.size:
            return np.zeros(scores.shape)
        features = (_features(scores, self.temperature) - np.array(self.centre)) / np.array(self.spread)
        design = _with_constant(np.clip(features, self.low, self.high))
        odds = _log_odds(scores, self.temperature)
        top = np.arange(len(scores)), scores.argmax(axis=1)
        best = expit(odds[top] + design @ np.array(self.best))
        probabilities: Floats = np.minimum(expit(odds + (design @ np.array(self.rest))[:, None]), best[:, None])
        probabilities[top] = best
        probabilities[~np.isfinite(scores)] = 0.0
        return probabilities

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, with a version."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any]) -> Calibrator:
        """Return the calibrator that `to_dict` wrote.

        Raises:
            DataError: Another version wrote the dict, or a value is missing.
        """
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in saved(payload, cls).items()}
        return cls(**fields)


def out_of_fold(scores: npt.ArrayLike, relevant: npt.ArrayLike, groups: Groups | None = None, *, folds: int = 5, seed: int = 0) -> Floats:
    """Return probabilities of queries by calibrators that did not see them, shape (queries, candidates).

    Groups stay together. Use these probabilities, not those of a calibrator fitted on the same queries, to measure calibration
    and to choose a threshold.

    Args:
        scores: Log-scores, shape (queries, candidates); -inf where there is no candidate.
        relevant: Whether a candidate is right, shape (queries, candidates).
        groups: Group number of each query, shape (queries,); by default each query is a group of its own.
        folds: Number of folds, at least 2; fewer where there are fewer groups.
        seed: Seed of the folds.

    Raises:
        DataError: The arrays do not fit together, a score is NaN or +inf, or there are fewer than two groups.
    """
    scores, relevant = checked(scores, relevant)
    number = numbered(groups, len(scores))
    count = int(number.max()) + 1
    if count < 2:
        raise DataError("calibration", "all queries belong to one group", expected="at least two groups of queries")
    fold = np.random.default_rng(seed).permutation(count)[number] % min(folds, count)
    probabilities = np.empty(scores.shape)
    for place in range(min(folds, count)):
        held = fold == place
        calibrator = Calibrator.fit(scores[~held], relevant[~held], None if groups is None else groups[~held])
        probabilities[held] = calibrator.probabilities(scores[held])
    return probabilities


def best_answers(probabilities: Floats, relevant: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Return the largest probability of each query, and whether that candidate is right; each of shape (queries,)."""
    top = np.arange(len(probabilities)), probabilities.argmax(axis=1)
    return probabilities[top], np.asarray(relevant, bool)[top] & (probabilities[top] > 0)


def effective_size(groups: Groups | None, queries: int) -> float:
    """Return the number of independent queries, if those of a group agree: queries / mean group size over queries."""
    if groups is None:
        return float(queries)
    sizes = np.bincount(numbered(groups, queries))
    return float(queries**2 / (sizes.astype(float) ** 2).sum())


def numbered(groups: Groups | None, queries: int) -> Groups:
    """Return group numbers from 0, in order of first appearance, shape (queries,).

    Raises:
        DataError: There is not one group number for each query.
    """
    if groups is None:
        return np.arange(queries)
    if np.shape(groups) != (queries,):
        raise DataError("groups", f"shape {np.shape(groups)}", expected=f"({queries},), one group number for each query")
    return renumbered(np.asarray(groups))


def checked_scores(scores: npt.ArrayLike) -> Floats:
    """Return scores as a matrix of floats.

    Raises:
        DataError: The array is not two-dimensional, or a score is NaN or +inf.
    """
    matrix = np.asarray(scores, np.float64)
    if matrix.ndim != 2:
        raise DataError("scores", f"shape {matrix.shape}", expected="a matrix of queries and candidates")
    if bad := int((np.isnan(matrix) | (matrix == np.inf)).sum()):
        raise DataError("scores", f"{bad} of {matrix.size} are NaN or +inf", expected="finite scores, and -inf where there is no candidate")
    return matrix


def checked(scores: npt.ArrayLike, relevant: npt.ArrayLike) -> tuple[Floats, Bools]:
    """Return scores and relevance as matrices; an empty place is never right.

    Raises:
        DataError: The arrays do not fit together, a score is NaN or +inf, or there is no query.
    """
    matrix, right = checked_scores(scores), np.asarray(relevant, bool)
    if matrix.shape != right.shape:
        raise DataError("scores", f"shape {matrix.shape}, but relevance has {right.shape}", expected="one shape")
    if not matrix.size:
        raise DataError("scores", f"shape {matrix.shape}", expected="at least one query and one candidate")
    return matrix, right & np.isfinite(matrix)


def saved(payload: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Return the fields of a saved dataclass.

    Raises:
        DataError: Another version wrote the dict, or a field is missing.
    """
    name = kind.__name__
    if payload.get("version") != VERSION:
        raise DataError(name, f"version {payload.get('version')!r}", expected=f"version {VERSION}", fix="calibrate again")
    fields = kind.__dataclass_fields__  # type: ignore[attr-defined]
    if missing := [field for field in fields if field not in payload]:
        raise DataError(name, f"no {', '.join(missing)}", expected="what to_dict wrote", fix="calibrate again")
    return {field: payload[field] for field in fields}


def _log_odds(scores: Floats, temperature: float) -> Floats:
    """Return the log-odds of each candidate under the softmax; log q - log(1 - q) without loss where q is near 1."""
    scaled = np.where(np.isfinite(scores), scores / temperature, -np.inf)
    scaled = scaled - np.maximum(scaled.max(axis=1, keepdims=True), -1e300)
    powers = np.exp(scaled)
    others = powers.sum(axis=1, keepdims=True) - powers
    top = np.arange(len(scores)), scores.argmax(axis=1)
    powers[top] = 0.0
    others[top] = powers.sum(axis=1)  # a difference would lose it
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.where(np.isfinite(scores), scaled - np.log(others), -np.inf)
    return np.clip(odds, -_LARGEST, _LARGEST)


def _features(scores: Floats, temperature: float) -> Floats:
    """Return what the correction knows about each query, shape (queries, 4)."""
    floor = np.where(np.isfinite(scores), scores, -1e9)
    shares = log_softmax(floor / temperature, axis=1)
    if shares.shape[1] > 1:
        second, first = np.partition(shares, -2, axis=1)[:, -2:].T
    else:
        first, second = shares[:, 0], np.full(len(shares), -np.inf)
    entropy = -(np.exp(shares) * shares).sum(axis=1)
    odds = _log_odds(scores, temperature).max(axis=1)
    return np.stack([odds, np.minimum(first - second, _LARGEST), entropy, logsumexp(floor, axis=1)], axis=1)


def _with_constant(features: Floats) -> Floats:
    return np.concatenate([np.ones((len(features), 1)), features], axis=1)


def _temperature(scores: Floats, relevant: npt.NDArray[np.bool_], weight: float) -> float:
    """Return the temperature with the largest posterior for queries with a right candidate.

    The likelihood of a query is the share of its right candidates under the softmax.
    """
    answered = relevant.any(axis=1)
    scores, relevant = scores[answered], relevant[answered]
    below_top = scores - scores.max(axis=1, initial=-np.inf, keepdims=True)
    best = np.where(relevant, below_top, -np.inf).max(axis=1, initial=-np.inf, keepdims=True)
    below_best = np.where(relevant, below_top - best, -np.inf)

    def loss(log: float) -> float:
        inverse = np.exp(-log)
        right, every = np.exp(below_best * inverse).sum(axis=1), np.exp(below_top * inverse).sum(axis=1)
        likelihood = (np.log(right) - np.log(every)).sum() + best.sum() * inverse
        return float((log / _TEMPERATURE_SPREAD) ** 2 / 2 - weight * likelihood)

    middle, reach = 0.0, 3.0
    for _ in range(6):  # a finer and finer grid around the best place: from steps of 0.75 to steps of 0.0007
        grid = np.linspace(middle - reach, middle + reach, 9)
        middle, reach = float(grid[int(np.argmin([loss(log) for log in grid]))]), reach / 4
    return float(np.exp(middle))


def _correction(design: Floats, odds: Floats, right: npt.NDArray[np.bool_], weight: float) -> Floats:
    """Return the weights of a logistic regression with an offset and normal priors, by Newton's method.

    Args:
        design: Constant and features of each candidate, shape (candidates, 5).
        odds: Log-odds before the correction, shape (candidates,).
        right: Whether each candidate is right, shape (candidates,).
        weight: Weight of a candidate in the likelihood, above 0 and at most 1.
    """
    weights, prior = np.zeros(design.shape[1]), 1 / _SPREADS**2

    def loss(weights: Floats) -> float:
        logits = odds + design @ weights
        return float(prior @ weights**2 / 2 - weight * (log_expit(np.where(right, logits, -logits))).sum())

    for _ in range(50):
        share = expit(odds + design @ weights)
        gradient = prior * weights - weight * design.T @ (right - share)
        curvature = np.diag(prior) + weight * (design * (share * (1 - share))[:, None]).T @ design
        step, size, before = np.linalg.solve(curvature, gradient), 1.0, loss(weights)
        while loss(weights - size * step) > before and size > 1e-6:
            size /= 2
        weights = weights - size * step
        if np.abs(size * step).max() < 1e-9:
            break
    return weights
