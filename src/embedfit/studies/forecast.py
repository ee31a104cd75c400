"""A curve fitted to scores over numbers of labelled pairs, and its forecast for more of them.

Two forms of curve are fitted, and forecasts are drawn from both, since no single form suits all data:

    score(n) = top - (top - start) left(n),        0 <= start <= top <= 1

    left(n) = (1 + n / scale)^-steepness          the inverse power law (Cortes et al. 1993; Hestness et al. 2017)
    left(n) = 1 / (1 + (n / scale)^steepness)     the Morgan-Mercer-Flodin curve, which may rise slowly at first

Both start at the untrained model's score and end like n^-steepness. They are among the forms that extrapolate learning curves
best (Mohr, Viering, Loog and van Rijn 2022, LCDB). docs/decisions.md has the figures behind the choices in this file, and the
errors of the forecasts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.evaluation.charts import new_chart
from embedfit.evaluation.score import Groups
from embedfit.evaluation.statistics import bootstrap_means
from embedfit.metrics import metric_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Floats: TypeAlias = npt.NDArray[np.float64]
MORE = (100, 300, 1000)
"""Numbers of further pairs to forecast for."""
LEAST_PAIRS, _LEAST_POINTS = 8, 4
"""Fewest pairs to train on, and fewest points to forecast from."""
_DRAWS = 1000
"""Draws of queries, each with a fitted curve of its own."""
_NOISE, _NOISE_WORTH = 0.008, 3
"""Prior of the noise of a training: its standard deviation, and its weight in points. Another seed or another draw of training
queries moves MRR by about this much (docs/decisions.md, how the defaults of tuning were chosen)."""
_WORST_FIT = 0.03
"""Largest root-mean-square distance of the points from the best curve; beyond it, the points do not follow a curve."""


@dataclass(frozen=True)
class Point:
    """The score at one number of pairs.

    Attributes:
        pairs: Number of training queries with their right documents.
        value: Mean of the metric.
        low: Lower end of the 95% interval.
        high: Upper end of the 95% interval.
    """

    pairs: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast(Point):
    """The forecast score at a larger number of pairs.

    Attributes:
        more: Number of pairs beyond the present ones.
        gain: Forecast score minus the score of the model trained on the present pairs.
        gain_low: Lower end of the gain's 95% interval, which is narrower than the score's, as the queries are the same. It may be
            below zero, because training is noisy.
        gain_high: Upper end of the gain's 95% interval.
    """

    more: int
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class Curve:
    """A learning curve.

    Attributes:
        metric: Metric, such as ``mrr@10``.
        queries: Number of queries that each point is a mean over.
        points: Measured points; the first is the untrained model, at 0 pairs. Their intervals cover the draw of queries alone.
        fitted: Points on the fitted curve, for drawing; empty without a forecast.
        forecasts: Forecasts for more pairs; empty if none is possible. Their intervals cover the draw of queries, the noise of
            training and the uncertainty of the fit.
        problem: Reason why there is no forecast; empty if there is one.
        folder: Run directory; None before it is written.
    """

    metric: str
    queries: int
    points: tuple[Point, ...]
    fitted: tuple[Point, ...] = ()
    forecasts: tuple[Forecast, ...] = ()
    problem: str = ""
    folder: Path | None = field(default=None, compare=False)

    @property
    def sentence(self) -> str:
        """The middle forecast in one sentence, or the reason why there is none."""
        now, label = self.points[-1], metric_label(self.metric)
        if not self.forecasts:
            return f"No forecast: {self.problem}. {label} is {now.value:.3f} with {now.pairs:,} labelled pairs."
        then = self.forecasts[len(self.forecasts) // 2]
        return (
            f"With {then.more:,} more labelled pairs, {label} would be about {then.value:.2f} ({then.low:.2f} to {then.high:.2f}), "
            f"{then.gain:.2f} more ({then.gain_low:.2f} to {then.gain_high:.2f}) than with the {now.pairs:,} there are."
        )

    @property
    def report(self) -> Path | None:
        """The HTML report in the run directory."""
        return self.folder and self.folder / "report.html"

    def to_dict(self) -> dict[str, Any]:
        """Return everything in the form of curve.json."""
        return {
            "sentence": self.sentence,
            "metric": self.metric,
            "queries": self.queries,
            "interval": "95%, percentile bootstrap over queries; forecasts: with the noise of training and the fit's own uncertainty",
            "points": [vars(point) for point in self.points],
            "fitted": [vars(point) for point in self.fitted],
            "forecasts": [vars(forecast) for forecast in self.forecasts],
            "problem": self.problem,
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per point: kind (measured or forecast), metric, pairs, value, low, high."""
        import pandas as pd

        rows = [("measured", self.metric, point.pairs, point.value, point.low, point.high) for point in self.points]
        rows += [("forecast", self.metric, point.pairs, point.value, point.low, point.high) for point in self.forecasts]
        return pd.DataFrame(rows, columns=["kind", "metric", "pairs", "value", "low", "high"])

    def plot(self) -> Figure:
        """Return a chart of the measured points, the fitted curve with its 95% band, and the forecasts."""
        figure = new_chart(7, 4)
        axes = figure.subplots()
        if self.fitted:
            pairs = [point.pairs for point in self.fitted]
            axes.fill_between(
                pairs, [point.low for point in self.fitted], [point.high for point in self.fitted], color="#0f766e", alpha=0.15, linewidth=0
            )
            axes.plot(pairs, [point.value for point in self.fitted], color="#0f766e", label="fitted, with its 95% interval")
        _draw(axes, self.points, "o", "#134e4a", "measured, with the 95% interval of the queries")
        if self.forecasts:
            axes.axvline(self.points[-1].pairs, color="#9aa5b1", linewidth=1, linestyle=":")
            _draw(axes, self.forecasts, "D", "#b45309", "forecast, with its 95% interval")
            for forecast in self.forecasts:
                place = (forecast.pairs, forecast.low)
                axes.annotate(f"{forecast.value:.2f}", place, (0, -4), textcoords="offset points", ha="center", va="top", fontsize=9)
        axes.set_xlabel("labelled pairs to train on")
        axes.set_ylabel(metric_label(self.metric))
        axes.set_title(f"{self.queries:,} held-out queries", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False, fontsize=9)
        return figure

    def _repr_html_(self) -> str:
        return f"<p>{self.sentence}</p>{self.to_frame().to_html(index=False, float_format='{:.3f}'.format)}"


def fit_curve(
    pairs: Sequence[int],
    values: Floats,
    *,
    metric: str = "mrr@10",
    more: Sequence[int] = MORE,
    groups: Groups | None = None,
    seed: int = 0,
) -> Curve:
    """Fit a curve to scores, and forecast.

    Queries are drawn with replacement, with one draw for all points, since the points share the queries. For each draw one
    curve is drawn from those on a grid. Its probability falls with the residual sum of squares, as under normal noise of unknown
    size with ``top`` and ``start`` at their best values (Gelman et al., Bayesian Data Analysis, 3rd ed., section 14.2). The best
    curve alone would hide how little a handful of points determine. A forecast includes the noise of one training.

    Args:
        pairs: Number of training pairs of each point, in increasing order.
        values: Metric of each query at each point, shape (queries, points).
        metric: Name of the metric.
        more: Numbers of further pairs to forecast for.
        groups: Group number of each query, shape (queries,); near duplicates share a group and are drawn together. By default
            each query is a group.
        seed: Seed of the draws.
    """
    rng = np.random.default_rng([seed, 3])
    draws = bootstrap_means(values, rng, groups)
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    means = values.mean(axis=0)
    points = tuple(map(Point, pairs, means.tolist(), low.tolist(), high.tolist()))
    problem = _problem(points, np.quantile(draws[:, -1] - draws[:, 0], 0.025))
    curves = _Curves(pairs)
    if not problem:
        off = float(np.sqrt(curves.fit(means[None]).squares.min() / curves.weights.sum()))
        problem = f"the points follow no learning curve (they are {off:.3f} off on average)" if off > _WORST_FIT else ""
    if problem:
        return Curve(metric, len(values), points, problem=problem)
    draws = draws[:_DRAWS]
    drawn = curves.fit(draws).draw(rng)
    last = pairs[-1]
    at = np.unique(np.linspace(0, last + max(more, default=0), 101).astype(int))
    forecasts = []
    for further in sorted(more):
        then = drawn(np.array([last + further]))
        forecasts.append(Forecast(last + further, *_interval(then)[0], further, *_interval(then - draws[:, -1])[0]))
    fitted = tuple(Point(int(n), *interval) for n, interval in zip(at, _interval(drawn(at)), strict=True))
    return Curve(metric, len(values), points, fitted, tuple(forecasts))


def _problem(points: Sequence[Point], rise: float) -> str:
    """Return the reason why the points allow no forecast, or an empty string."""
    if len(points) < _LEAST_POINTS:
        return f"{len(points)} points are too few; expected at least {_LEAST_POINTS}"
    if rise <= 0:
        return f"training on {points[-1].pairs:,} pairs shows no gain over the untrained model yet"
    return ""


class _Curves:
    """All curves of both forms with ``scale`` and ``steepness`` on a grid.

    For a given scale and steepness the score is linear in ``start`` and ``top``, so least squares gives their best values
    directly. There is no search that could fail to converge.

    Args:
        pairs: Number of training pairs of each point.
    """

    def __init__(self, pairs: Sequence[int]) -> None:
        least, most = min((n for n in pairs if n > 0), default=1), max(pairs)
        power = np.meshgrid(np.geomspace(1, 10 * most, 40), np.geomspace(0.05, 2, 20))
        slow = np.meshgrid(np.geomspace(max(1, least / 4), 30 * most, 40), np.linspace(0.3, 2, 20))
        self._scale = np.concatenate([power[0].ravel(), slow[0].ravel()])
        self._steepness = np.concatenate([power[1].ravel(), slow[1].ravel()])
        self._is_power = np.arange(len(self._scale)) < power[0].size
        self.left_at_points = self.left(np.array(pairs))
        # The noise of a training comes from its pairs, with a variance that falls as 1 / n; and a forecast depends most on the last points.
        self.weights = np.maximum(np.array(pairs), least) / most

    def left(self, pairs: npt.NDArray[np.int64], chosen: Any = slice(None)) -> Floats:
        """Return the remaining share of the way from start to top, shape (numbers of pairs, curves)."""
        ratio, steepness = pairs[:, None] / self._scale[chosen], self._steepness[chosen]
        left: Floats = np.where(self._is_power[chosen], (1 + ratio) ** -steepness, 1 / (1 + ratio**steepness))
        return left

    def fit(self, means: Floats) -> _Fits:
        """Return the best start and top of every curve by weighted least squares, for each row of means of the points."""
        left, done = self.left_at_points, 1 - self.left_at_points
        weighted_left, weighted_done = left * self.weights[:, None], done * self.weights[:, None]
        ll, ld, dd = (left * weighted_left).sum(axis=0), (left * weighted_done).sum(axis=0), (done * weighted_done).sum(axis=0)
        determinant = np.maximum(ll * dd - ld * ld, 1e-12)
        by_left, by_done = means @ weighted_left, means @ weighted_done
        top = (ll * by_done - ld * by_left) / determinant
        start = (dd * by_left - ld * by_done) / determinant
        # No score is above 1. Where the points fall, the nearest curve that does not fall is flat.
        start = np.where(top > 1, (by_left - ld) / ll, start)
        top = np.minimum(top, 1)
        flat = np.broadcast_to((means @ self.weights / self.weights.sum())[:, None], top.shape)
        falls = top < start
        start, top = np.where(falls, flat, start), np.where(falls, flat, top)
        squares = np.zeros(top.shape)
        for point, (share, weight) in enumerate(zip(left, self.weights, strict=True)):
            squares += weight * (means[:, point, None] - top + (top - start) * share) ** 2
        return _Fits(self, start, top, squares)


@dataclass(frozen=True)
class _Fits:
    """Curves fitted to rows of points.

    Attributes:
        curves: Curves on the grid.
        start: Best score at 0 pairs, shape (rows, curves).
        top: Best limit of the score, shape (rows, curves).
        squares: Weighted residual sum of squares, shape (rows, curves).
    """

    curves: _Curves
    start: Floats
    top: Floats
    squares: Floats

    def draw(self, rng: np.random.Generator) -> Callable[[npt.NDArray[np.int64]], Floats]:
        """Draw one curve per row. Returns a function from numbers of pairs to scores of shape (numbers, rows)."""
        worth = _NOISE_WORTH + len(self.curves.left_at_points)
        squares = _NOISE_WORTH * _NOISE**2 + self.squares  # at the largest number of pairs, whose weight is 1
        weights = squares ** (-worth / 2)
        weights = (weights / weights.max(axis=1, keepdims=True)).cumsum(axis=1)
        rows = np.arange(len(weights))
        chosen = (weights > rng.random(len(weights))[:, None] * weights[:, -1:]).argmax(axis=1)
        start, top = self.start[rows, chosen], self.top[rows, chosen]
        # The noise of the forecast training, as large as that of the measured ones. One draw per row, so that a forecast
        # never falls with more pairs.
        noise = rng.standard_normal(len(rows)) * np.sqrt(squares[rows, chosen] / rng.chisquare(worth, len(rows)))
        return lambda pairs: np.minimum(top - (top - start) * self.curves.left(pairs, chosen) + noise, 1)


def _interval(drawn: Floats) -> list[tuple[float, float, float]]:
    """Return the median and the 95% interval of each row."""
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975], axis=1)
    return list(zip(middle.tolist(), low.tolist(), high.tolist(), strict=True))


def _draw(axes: Any, points: Sequence[Point], marker: str, color: str, label: str) -> None:
    whiskers = [[max(0.0, point.value - point.low) for point in points], [max(0.0, point.high - point.value) for point in points]]
    axes.errorbar(
        [point.pairs for point in points],
        [point.value for point in points],
        yerr=whiskers,
        fmt=marker,
        color=color,
        markersize=5,
        capsize=3,
        linewidth=1.2,
        label=label,
    )
