"""Two models on the same queries: how large the difference is, and whether it could be chance.

Intervals are paired percentile bootstrap intervals (Efron and Tibshirani 1993, chapter 13): queries are drawn with
replacement, and each draw is one mean difference. The p-value is that of the paired randomisation test (Smucker,
Allan and Carterette 2007), where each query's difference changes its sign at random.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.errors import EmbedfitError
from embedfit.score import Scores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Verdict: TypeAlias = Literal["better", "worse", "no difference shown"]
DRAWS = 10_000


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same queries.

    Attributes:
        metric: Like ``recall@5``.
        base: Mean of the first model.
        tuned: Mean of the second.
        difference: ``tuned - base``.
        low: Lower end of the difference's 95% interval.
        high: Upper end.
        p: Two-sided p-value of the paired randomisation test.
        wins: Queries on which the second model is better.
        ties: Queries on which both are equal.
        losses: Queries on which it is worse.
    """

    metric: str
    base: float
    tuned: float
    difference: float
    low: float
    high: float
    p: float
    wins: int
    ties: int
    losses: int

    @property
    def verdict(self) -> Verdict:
        """Better or worse only if the interval leaves zero out, and the p-value is under 0.05.

        The second matters with a handful of queries, where a bootstrap of equal gaps has no width at all.
        """
        if self.p < 0.05 and self.low > 0:
            return "better"
        return "worse" if self.p < 0.05 and self.high < 0 else "no difference shown"


@dataclass(frozen=True)
class Comparison:
    """Two models on the same queries.

    Attributes:
        base: Scores of the first.
        tuned: Scores of the second.
        differences: One per metric and k.
        metric: The one that the verdict is about.
        held_out: Whether it is known that no query was trained on.
    """

    base: Scores
    tuned: Scores
    differences: tuple[Difference, ...]
    metric: str
    held_out: bool = False

    def __getitem__(self, metric: str) -> Difference:
        return next(difference for difference in self.differences if difference.metric == metric)

    @property
    def verdict(self) -> Verdict:
        """Of the main metric."""
        return self[self.metric].verdict

    @property
    def sentence(self) -> str:
        """The verdict in one sentence, with its evidence."""
        found = self[self.metric]
        said = {
            "better": "Better: {metric} rose from {base:.3f} to {tuned:.3f}",
            "worse": "Worse: {metric} fell from {base:.3f} to {tuned:.3f}",
            "no difference shown": "No difference shown: {metric} is {base:.3f} before and {tuned:.3f} after",
        }[found.verdict].format(metric=metric_label(found.metric), base=found.base, tuned=found.tuned)
        return (
            f"{said} ({found.difference:+.3f}, 95% interval {found.low:+.3f} to {found.high:+.3f}) on "
            f"{self.queries}: {found.wins:,} better, {found.ties:,} the same, {found.losses:,} worse."
        )

    @property
    def queries(self) -> str:
        """How many queries, and whether they were held out."""
        return f"{len(self.base.query_ids):,}{' held-out' if self.held_out else ''} queries"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the per-query values, as comparison.json holds it."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "metric": self.metric,
            "base": self.base.name,
            "tuned": self.tuned.name,
            "queries": len(self.base.query_ids),
            "interval": f"95%, paired percentile bootstrap, {DRAWS:,} draws of queries",
            "differences": [{**vars(difference), "verdict": difference.verdict} for difference in self.differences],
        }

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric and k, with the columns of `Difference`."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["differences"])

    def per_query(self) -> pd.DataFrame:
        """Return one row per query: rank of the first relevant document and every metric, for both models."""
        import pandas as pd

        columns: dict[str, Any] = {
            "query_id": list(self.base.query_ids),
            "base_rank": self.base.ranks,
            "tuned_rank": self.tuned.ranks,
        }
        for name in self.base.values:
            columns[f"base_{name}"], columns[f"tuned_{name}"] = self.base.values[name], self.tuned.values[name]
        return pd.DataFrame(columns)

    def plot(self) -> Figure:
        """Return a bar chart of recall at each k, base beside tuned; the whisker is the 95% interval of the difference."""
        from matplotlib.figure import Figure

        recalls = [found for found in self.differences if found.metric.startswith("recall@")]
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        places = np.arange(len(recalls))
        base, tuned = [found.base for found in recalls], [found.tuned for found in recalls]
        # Where every gap is the same, rounding may put an end of the interval on the other side of the difference.
        whiskers = [
            [max(0.0, found.difference - found.low) for found in recalls],
            [max(0.0, found.high - found.difference) for found in recalls],
        ]
        axes.bar(places - 0.2, base, 0.38, label=self.base.name, color="#9aa5b1")
        axes.bar(places + 0.2, tuned, 0.38, label=self.tuned.name, color="#0f766e", yerr=whiskers, ecolor="#134e4a", capsize=3)
        for place, before, after in zip(places, base, tuned, strict=True):
            axes.text(place - 0.2, before + 0.01, f"{before:.2f}", ha="center", va="bottom", fontsize=9)
            axes.text(place + 0.2, after / 2, f"{after:.2f}", ha="center", va="center", fontsize=9, color="white")
        axes.set_xticks(places, [found.metric for found in recalls])
        axes.set_ylim(0, 1.05)
        axes.set_title(f"{self.queries}; whisker: 95% interval of the difference", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, frameon=False)
        return figure

    def _repr_html_(self) -> str:
        columns = ["metric", "base", "tuned", "difference", "low", "high", "wins", "ties", "losses"]
        return f"<p>{self.sentence}</p>{self.to_frame()[columns].to_html(index=False, float_format='{:.3f}'.format)}"


def compare_scores(base: Scores, tuned: Scores, *, metric: str = "mrr@10", seed: int = 0, held_out: bool = False) -> Comparison:
    """Compare two models query by query.

    Args:
        base: Scores of the first model.
        tuned: Scores of the second, on the same queries with the same metrics.
        metric: The one that the verdict is about.
        seed: Of the bootstrap and the randomisation test.
        held_out: Whether no query was trained on, which the sentence then says.

    Raises:
        EmbedfitError: The queries or the metrics differ, or ``metric`` is not among them.
    """
    if base.query_ids != tuned.query_ids or base.values.keys() != tuned.values.keys():
        raise EmbedfitError("only scores of the same queries with the same metrics can be compared")
    names = list(base.values)
    if metric not in names:
        raise EmbedfitError(f"metric {metric!r} was not measured; expected one of {', '.join(names)}")
    gaps = np.stack([tuned.values[name] - base.values[name] for name in names], axis=1)
    draws = bootstrap_means(gaps, np.random.default_rng([seed, 1]))
    flips = randomised_means(gaps, np.random.default_rng([seed, 2]))
    low, high = np.quantile(draws, [0.025, 0.975], axis=0)
    observed = gaps.mean(axis=0)
    # One is added on both sides: the observed signs are one of the arrangements (Phipson and Smyth 2010).
    p = (1 + (np.abs(flips) >= np.abs(observed) - 1e-12).sum(axis=0)) / (1 + DRAWS)
    return Comparison(
        base,
        tuned,
        tuple(
            Difference(
                metric=name,
                base=base.mean(name),
                tuned=tuned.mean(name),
                difference=float(observed[column]),
                low=float(low[column]),
                high=float(high[column]),
                p=float(p[column]),
                wins=int((gaps[:, column] > 1e-12).sum()),
                ties=int((np.abs(gaps[:, column]) <= 1e-12).sum()),
                losses=int((gaps[:, column] < -1e-12).sum()),
            )
            for column, name in enumerate(names)
        ),
        metric,
        held_out,
    )


def bootstrap_means(values: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the mean of each column over `DRAWS` draws of rows with replacement; shape (DRAWS, columns).

    All columns share the draws, as they share the queries.
    """
    n = len(values)
    means = np.empty((DRAWS, values.shape[1]))
    chunk = max(1, 4_000_000 // n)
    for start in range(0, DRAWS, chunk):
        size = min(chunk, DRAWS - start)
        # How often each row is drawn is all that matters, and turns the sums into one matrix product.
        drawn = rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means[start : start + size] = counts @ values / n
    return means


def randomised_means(values: npt.NDArray[np.float64], rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """Return the mean of each column over `DRAWS` random choices of each row's sign; shape (DRAWS, columns)."""
    n = len(values)
    means = np.empty((DRAWS, values.shape[1]))
    chunk = max(1, 4_000_000 // n)
    for start in range(0, DRAWS, chunk):
        size = min(chunk, DRAWS - start)
        signs = rng.integers(2, size=(size, n), dtype=np.int8) * 2.0 - 1.0
        means[start : start + size] = signs @ values / n
    return means


def metric_label(name: str) -> str:
    """Return a metric's name as people write it: ``MRR@10``, ``nDCG@10``, ``recall@1``."""
    metric, _, k = name.partition("@")
    return f"{ {'mrr': 'MRR', 'ndcg': 'nDCG', 'map': 'MAP'}.get(metric, metric) }@{k}".replace(" ", "")
