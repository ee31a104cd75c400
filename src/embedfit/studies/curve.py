"""How much data is enough: the score against the number of labelled pairs, and what more labels would bring.

Two forms of curve are fitted, and what is forecast is drawn from both, since no single form is right everywhere:

    score(n) = top - (top - start) left(n),        0 <= start <= top <= 1

    left(n) = (1 + n / scale)^-steepness          the inverse power law (Cortes et al. 1993; Hestness et al. 2017)
    left(n) = 1 / (1 + (n / scale)^steepness)     the Morgan-Mercer-Flodin curve, which may rise slowly first

Both begin at the untrained model's score and end like n^-steepness. They are among the forms that extrapolate learning curves
best (Mohr, Viering, Loog and van Rijn 2022, LCDB). docs/decisions.md has the figures behind the choices here, and how far off the
forecasts were.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit import console
from embedfit.data.dataset import Dataset
from embedfit.data.split import Split, group_numbers
from embedfit.errors import ConfigError, DataError, StorageError
from embedfit.evaluation.charts import new_chart
from embedfit.evaluation.score import Groups, PerQuery, score_run
from embedfit.evaluation.statistics import bootstrap_means
from embedfit.files import digest, writing
from embedfit.metrics import check_metric, metric_label
from embedfit.retrieve.run import Run, joined, named

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

TrainAndSearch: TypeAlias = Callable[[Dataset, Dataset, Path], Run]
"""Trains on the first data set, with a folder to work in, and returns what it finds for the queries of the second."""
Floats: TypeAlias = npt.NDArray[np.float64]
MORE = (100, 300, 1000)
"""The numbers of further pairs that are asked about."""
_PARTS = (16, 8, 4, 2, 1)
"""A model is trained on one sixteenth of the training queries, on one eighth, and so on."""
_LEAST_PAIRS, _LEAST_POINTS = 8, 4
"""Fewer pairs are not trained on; from fewer points nothing is forecast."""
_DRAWS = 1000
"""Draws of queries that a curve is fitted to."""
_NOISE, _NOISE_WORTH = 0.008, 3
"""What is taken to be known of the noise of a training before seeing the points: its standard deviation, and how many points that is
worth. Another seed or another draw of training queries moves MRR by about this much (docs/decisions.md, how the defaults of
tuning were chosen)."""
_WORST_FIT = 0.03
"""Points that are farther than this from the best curve, by root mean square, are none of this form."""


@dataclass(frozen=True)
class Point:
    """The score with so many pairs.

    Attributes:
        pairs: Training queries with their right documents.
        value: The mean of the metric.
        low: Lower end of the 95% interval.
        high: Upper end.
    """

    pairs: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Forecast(Point):
    """The score that more pairs would give.

    Attributes:
        more: Pairs beyond those there are.
        gain: The score less that of the model trained on the pairs there are.
        gain_low: Lower end of its 95% interval; narrower than the score's, as the queries are the same. It may be below zero: a
            training is not without noise.
        gain_high: Upper end.
    """

    more: int
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class Curve:
    """A learning curve.

    Attributes:
        metric: Like ``mrr@10``.
        queries: How many the points are means over.
        points: Measured; the first is the untrained model, at 0 pairs. Their intervals are of the queries alone.
        fitted: The fitted curve, for drawing; empty if there is none.
        forecasts: For more pairs; empty if nothing can be said. Their intervals are of the queries, the noise of training,
            and what so few points leave open about the curve.
        problem: Why nothing can be said.
    """

    metric: str
    queries: int
    points: tuple[Point, ...]
    fitted: tuple[Point, ...] = ()
    forecasts: tuple[Forecast, ...] = ()
    problem: str = ""

    @property
    def sentence(self) -> str:
        """What the middle one of the forecasts says, or why there is none."""
        now, label = self.points[-1], metric_label(self.metric)
        if not self.forecasts:
            return f"No forecast: {self.problem}. {label} is {now.value:.3f} with {now.pairs:,} labelled pairs."
        then = self.forecasts[len(self.forecasts) // 2]
        return (
            f"With {then.more:,} more labelled pairs, {label} would be about {then.value:.2f} ({then.low:.2f} to {then.high:.2f}), "
            f"{then.gain:.2f} more ({then.gain_low:.2f} to {then.gain_high:.2f}) than with the {now.pairs:,} there are."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything, as curve.json holds it."""
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
        """Return a chart: the measured points, the fitted curve with its 95% band, and the forecasts."""
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


def learning_curve(
    dataset: Dataset,
    splits: Sequence[Split],
    train_and_search: TrainAndSearch,
    folder: str | Path,
    *,
    base: Run,
    metric: str = "mrr@10",
    sizes: Sequence[int] | None = None,
    more: Sequence[int] = MORE,
    identity: str = "",
    group_by: str | None = None,
    seed: int = 0,
) -> Curve:
    """Train on more and more of the training queries, measure each model on the same test queries, and forecast.

    What each model finds is kept in the folder, so that the same call after a crash goes on where it was; the model is not.

    Args:
        dataset: Holds every query.
        splits: One, or folds, whose test parts are then scored together; each trains on subsets of its own train part.
        train_and_search: The way of training. If it resumes in the folder it is given, so does the curve.
        folder: Where the points are kept.
        base: What the untrained model finds for the test queries: the curve's point at 0.
        metric: What the curve is about.
        sizes: Numbers of training queries. By default a sixteenth of what the smallest train part has, an eighth, a quarter, a half and
            all.
        more: The numbers of further pairs to forecast for.
        group_by: A metadata field; queries with the same value are drawn together, as near duplicates are.
        identity: A text that changes whenever what ``train_and_search`` gives could: its name and settings.
        seed: Of the subsets and the bootstrap.

    Raises:
        ConfigError: A size that there are not enough queries for, or an unknown metric.
        DataError: There are too few training queries for a curve.
        StorageError: The folder holds another curve, or cannot be written.
    """
    folder = Path(folder)
    depth = metric.partition("@")[2]
    k = int(depth) if depth.isdecimal() else 10
    check_metric(metric, [k])
    most = min(len(split.train) for split in splits)
    sizes = sorted({most // part for part in _PARTS if most // part >= _LEAST_PAIRS} if sizes is None else set(sizes))
    if not sizes:
        raise DataError("data", f"has {most} training queries", expected=f"at least {_LEAST_PAIRS} for a learning curve")
    if sizes[0] < 1 or sizes[-1] > most:
        raise ConfigError(f"sizes are {sizes}; expected numbers from 1 to {most}, the training queries there are")
    ordered = [nested_order(dataset, split.train, seed + number) for number, split in enumerate(splits)]
    runs = [base]
    for size in sizes:
        parts = []
        for number, split in enumerate(splits):
            console.note(f"training on {size:,} queries" + (f", fold {number + 1} of {len(splits)}" if len(splits) > 1 else ""))
            train, test = dataset.select(ordered[number][:size]), dataset.select(split.test)
            parts.append(_kept(train, test, train_and_search, folder, f"{size}-{number}", identity))
        runs.append(joined(parts))
    query_ids = [id for split in splits for id in split.test]
    values = [_values(run, dataset, metric, k, query_ids) for run in runs]
    numbers = group_numbers(dataset, group_by)
    groups = np.array([numbers[id] for id in query_ids])
    return fit_curve([0, *sizes], np.stack(values, axis=1), metric=metric, more=more, groups=groups, seed=seed)


def nested_order(dataset: Dataset, ids: Sequence[str], seed: int = 0) -> tuple[str, ...]:
    """Return queries in an order of which every beginning covers the labels as evenly as it can.

    First one query of each label, the labels in random order, then so that each label's share of the beginning is its share
    of the whole: the j-th of a label's m queries (from 0) stands at j / m. This is Adams' divisor method of apportionment
    (Balinski and Young, Fair Representation, 2nd ed. 2001), which never takes back a seat when there are more.
    """
    rng = random.Random(seed)
    by_label: dict[str, list[str]] = {}
    for id in ids:
        by_label.setdefault(min(dataset.relevant(id)), []).append(id)
    place: dict[str, tuple[float, float]] = {}
    for members in by_label.values():
        rng.shuffle(members)
        for number, id in enumerate(members):
            place[id] = (number / len(members), rng.random())
    return tuple(sorted(place, key=place.__getitem__))


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

    Queries are drawn with replacement, the same draw for all points, since they share the queries. For each draw one curve
    is drawn from those that fit its points, with a probability that falls with the squares left over: that of a normal noise
    of unknown size, with ``top`` and ``start`` at their best values (Gelman et al., Bayesian Data Analysis, 3rd ed., section
    14.2). The best curve alone would hide that a handful of points leave much open. A forecast has the noise of a training too.

    Args:
        pairs: How many each point was trained on, rising.
        values: The metric for each query and point; shape (queries, points).
        metric: Its name.
        more: The numbers of further pairs to forecast for.
        groups: Number of each query's group, shape (queries,): near duplicates are drawn together. By default each stands alone.
        seed: Of the draws.
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
    some = draws[:_DRAWS]
    drawn = curves.fit(some).draw(rng)
    last = pairs[-1]
    at = np.unique(np.linspace(0, last + max(more, default=0), 101).astype(int))
    forecasts = []
    for further in sorted(more):
        then = drawn(np.array([last + further]))
        forecasts.append(Forecast(last + further, *_interval(then)[0], further, *_interval(then - some[:, -1])[0]))
    fitted = tuple(Point(int(n), *found) for n, found in zip(at, _interval(drawn(at)), strict=True))
    return Curve(metric, len(values), points, fitted, tuple(forecasts))


def _problem(points: Sequence[Point], rise: float) -> str:
    """Return why nothing can be forecast from some points, or an empty text."""
    if len(points) < _LEAST_POINTS:
        return f"{len(points)} points are too few; expected at least {_LEAST_POINTS}"
    if rise <= 0:
        return f"training on {points[-1].pairs:,} pairs shows no gain over the untrained model yet"
    return ""


class _Curves:
    """All curves of both forms with a ``scale`` and a ``steepness`` on a grid.

    With these two given, the curve is a straight line between ``start`` and ``top``, whose best values are those of least
    squares; so nothing has to be searched for, and nothing can fail to converge.
    """

    def __init__(self, pairs: Sequence[int]) -> None:
        least, most = min((n for n in pairs if n > 0), default=1), max(pairs)
        power = np.meshgrid(np.geomspace(1, 10 * most, 40), np.geomspace(0.05, 2, 20))
        slow = np.meshgrid(np.geomspace(max(1, least / 4), 30 * most, 40), np.linspace(0.3, 2, 20))
        self._scale = np.concatenate([power[0].ravel(), slow[0].ravel()])
        self._steepness = np.concatenate([power[1].ravel(), slow[1].ravel()])
        self._is_power = np.arange(len(self._scale)) < power[0].size
        self.left_at_points = self.left(np.array(pairs))
        # A training's noise is that of its pairs, with a variance that falls as 1 / n; and near points say more of what is next.
        self.weights = np.maximum(np.array(pairs), least) / most

    def left(self, pairs: npt.NDArray[np.int64], chosen: Any = slice(None)) -> Floats:
        """Return the share of the way from start to top that is left; shape (numbers of pairs, curves)."""
        ratio, steepness = pairs[:, None] / self._scale[chosen], self._steepness[chosen]
        found: Floats = np.where(self._is_power[chosen], (1 + ratio) ** -steepness, 1 / (1 + ratio**steepness))
        return found

    def fit(self, means: Floats) -> _Fits:
        """Return the best start and top of every curve by weighted least squares, for each row of points' means."""
        left, come = self.left_at_points, 1 - self.left_at_points
        weighted_left, weighted_come = left * self.weights[:, None], come * self.weights[:, None]
        ll, lc, cc = (left * weighted_left).sum(axis=0), (left * weighted_come).sum(axis=0), (come * weighted_come).sum(axis=0)
        determinant = np.maximum(ll * cc - lc * lc, 1e-12)
        by_left, by_come = means @ weighted_left, means @ weighted_come
        top = (ll * by_come - lc * by_left) / determinant
        start = (cc * by_left - lc * by_come) / determinant
        # No score is above 1; and where the points fall, the nearest curve that does not is flat.
        start = np.where(top > 1, (by_left - lc) / ll, start)
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
    """The curves fitted to rows of points; each array has the shape (rows, curves)."""

    curves: _Curves
    start: Floats
    top: Floats
    squares: Floats

    def draw(self, rng: np.random.Generator) -> Callable[[npt.NDArray[np.int64]], Floats]:
        """Draw one curve for each row. Returns a function from numbers of pairs to scores of shape (numbers, rows)."""
        worth = _NOISE_WORTH + len(self.curves.left_at_points)
        squares = _NOISE_WORTH * _NOISE**2 + self.squares  # at the largest number of pairs, whose weight is 1
        weights = squares ** (-worth / 2)
        weights = (weights / weights.max(axis=1, keepdims=True)).cumsum(axis=1)
        rows = np.arange(len(weights))
        chosen = (weights > rng.random(len(weights))[:, None] * weights[:, -1:]).argmax(axis=1)
        start, top = self.start[rows, chosen], self.top[rows, chosen]
        # Of the training that is forecast: a training is as far off the curve as those before it were. One for each row, so
        # that more pairs are never forecast less.
        noise = rng.standard_normal(len(rows)) * np.sqrt(squares[rows, chosen] / rng.chisquare(worth, len(rows)))
        return lambda pairs: np.minimum(top - (top - start) * self.curves.left(pairs, chosen) + noise, 1)


def _interval(drawn: Floats) -> list[tuple[float, float, float]]:
    """Return the median and the 95% interval of each row."""
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975], axis=1)
    return list(zip(middle.tolist(), low.tolist(), high.tolist(), strict=True))


def _kept(train: Dataset, test: Dataset, train_and_search: TrainAndSearch, folder: Path, name: str, identity: str) -> Run:
    """Return what a model trained on a subset finds: as kept on disk, or else by training it."""
    path = folder / f"{name}.npz"
    document_ids = tuple(sorted(test.corpus))
    mine = digest([identity, train.digest(), test.digest()])
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["identity"]) != mine:
                raise StorageError(f"{folder}: holds a curve of other data or another training; fix: give another folder, or remove it")
            return Run(tuple(test.queries), named(document_ids, kept["ranked"]), kept["ranked"], kept["scores"])
    work = folder / ".embedfit-work" / name  # removed in the end, so it has a name that nobody else uses
    work.mkdir(parents=True, exist_ok=True)
    run = train_and_search(train, test, work)
    if run.query_ids != tuple(test.queries) or run.document_ids != named(document_ids, run.ranked):
        raise ConfigError("train_and_search must return a Run of the test queries, in their order, on the whole corpus")
    with writing(path) as file:
        np.savez(file, identity=mine, ranked=run.ranked, scores=run.scores)
    shutil.rmtree(work, ignore_errors=True)  # a model for each point would fill the disk
    return run


def _values(run: Run, dataset: Dataset, metric: str, k: int, query_ids: Sequence[str]) -> PerQuery:
    """Return the metric of each of some queries."""
    scores = score_run(run, dataset.qrels, ks=[k])
    place = {id: row for row, id in enumerate(scores.query_ids)}
    missing = [id for id in query_ids if id not in place]
    if missing:
        raise ConfigError(f"base has no ranking for query {missing[0]!r}; expected all test queries")
    found: PerQuery = scores.values[metric][[place[id] for id in query_ids]]
    return found


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
