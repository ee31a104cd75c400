"""The result of comparing two models: differences, verdicts, and the sentences that report them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from embedfit.errors import EmbedfitError
from embedfit.evaluation.charts import new_chart
from embedfit.evaluation.score import Scores
from embedfit.evaluation.statistics import DRAWS
from embedfit.metrics import metric_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Verdict: TypeAlias = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Difference:
    """The difference between two models in one metric, on the same queries.

    Attributes:
        metric: Name of the metric, such as ``recall@5``.
        base: Mean of the first model, between 0 and 1.
        tuned: Mean of the second model, between 0 and 1.
        difference: ``tuned - base``, between -1 and 1.
        low: Lower end of the 95% interval of the difference.
        high: Upper end of the 95% interval of the difference.
        p: Two-sided p-value: the larger of the randomisation test's and the interval's. `compare_many` adjusts it for the
            number of comparisons.
        wins: Number of queries on which the second model is better.
        ties: Number of queries on which both models are equal.
        losses: Number of queries on which the second model is worse.
        detectable: Smallest true difference that would be shown in 80% of samples of this size: half the width of the
            interval plus 0.84 standard errors. With many queries this is the usual (z_0.975 + z_0.8) standard errors
            (Bloom 1995, "Minimum detectable effects"). It stays above zero where all gaps are equal, since the interval does.
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
    detectable: float

    @property
    def verdict(self) -> Verdict:
        """Better or worse if the interval excludes zero and p is under 0.05; otherwise no difference is shown."""
        if self.p < 0.05 and self.low > 0:
            return "better"
        return "worse" if self.p < 0.05 and self.high < 0 else "no difference shown"


@dataclass(frozen=True)
class Seeds:
    """The variation over training seeds, beside the variation over queries.

    Attributes:
        count: Number of trainings, each with its own seed.
        means: Metric -> mean over queries, one value per seed.
        spread: Metric -> standard deviation of the seeds' means.
        query_error: Metric -> standard error of the mean difference due to the sample of queries.
    """

    count: int
    means: Mapping[str, tuple[float, ...]]
    spread: Mapping[str, float]
    query_error: Mapping[str, float]


@dataclass(frozen=True)
class Stratum:
    """The comparison on part of the test queries: those with an answer seen in training, or those with new answers only.

    Attributes:
        seen: True for queries of which training saw at least one right answer; False for queries with new answers only.
        queries: Number of queries.
        groups: Number of groups of dependent queries; equal to the number of queries where each stands alone.
        differences: One Difference per metric and k. The p-values, and so the verdicts, are adjusted for the two strata by
            Holm's method; each interval is an unadjusted 95% interval.
    """

    seen: bool
    queries: int
    groups: int
    differences: tuple[Difference, ...]

    def __getitem__(self, metric: str) -> Difference:
        return next(difference for difference in self.differences if difference.metric == metric)

    @property
    def label(self) -> str:
        """Name of the stratum with its number of queries."""
        name = "answers seen in training" if self.seen else "new answers"
        return f"{name} ({counted_queries(self.queries, self.groups)})"

    def sentence(self, metric: str) -> str:
        """Return the verdict on one metric with its evidence."""
        row = self[metric]
        evidence = f"{row.difference:+.3f}, 95% interval {row.low:+.3f} to {row.high:+.3f}"
        if row.verdict == "no difference shown":
            evidence += f"; a difference under about {row.detectable:.2g} could not have been detected reliably"
        return f"{self.label.capitalize()}: {row.verdict}, {row.base:.3f} before and {row.tuned:.3f} after ({evidence})."


@dataclass(frozen=True)
class Comparison:
    """The comparison of two models on the same queries.

    Attributes:
        base: Scores of the first model.
        tuned: Scores of the second model; with several seeds, each query's mean over seeds and its median rank.
        differences: One Difference per metric and k.
        metric: Name of the metric that the verdict is about.
        held_out: Whether none of the queries was used in training.
        seeds: Variation over seeds; None for a single training.
        seen: One boolean per query: whether training saw one of its right answers. None if unknown.
        strata: Queries with an answer seen in training, then queries with new answers only; empty unless both kinds occur.
    """

    base: Scores
    tuned: Scores
    differences: tuple[Difference, ...]
    metric: str
    held_out: bool = False
    seeds: Seeds | None = None
    seen: tuple[bool, ...] | None = None
    strata: tuple[Stratum, ...] = ()

    def __getitem__(self, metric: str) -> Difference:
        return next(difference for difference in self.differences if difference.metric == metric)

    @property
    def verdict(self) -> Verdict:
        """Verdict on the main metric."""
        return self[self.metric].verdict

    @property
    def sentence(self) -> str:
        """The verdict with its evidence, as text."""
        row = self[self.metric]
        finding = {
            "better": "Better: {metric} rose from {base:.3f} to {tuned:.3f}",
            "worse": "Worse: {metric} fell from {base:.3f} to {tuned:.3f}",
            "no difference shown": "No difference shown: {metric} is {base:.3f} before and {tuned:.3f} after",
        }[row.verdict].format(metric=metric_label(row.metric), base=row.base, tuned=row.tuned)
        sentences = [
            f"{finding} ({row.difference:+.3f}, 95% interval {row.low:+.3f} to {row.high:+.3f}) on {self.queries}"
            f"{f', mean of {self.seeds.count} seeds' if self.seeds else ''}: "
            f"{row.wins:,} better, {row.ties:,} the same, {row.losses:,} worse."
        ]
        if self.seeds:
            spread, error = self.seeds.spread[self.metric], self.seeds.query_error[self.metric]
            sentences.append(f"Standard deviation over seeds {spread:.3f}, standard error over queries {error:.3f}.")
        if row.verdict == "no difference shown":
            queries = counted_queries(len(self.base.query_ids), self.groups)
            sentences.append(f"A difference under about {row.detectable:.2g} could not have been detected reliably on {queries}.")
        return " ".join([*sentences, *(stratum.sentence(self.metric) for stratum in self.strata)])

    def query_ids(self, *, seen: bool) -> tuple[str, ...]:
        """Return the ids of the queries with an answer seen in training, or of those with new answers only."""
        return tuple(id for id, value in zip(self.base.query_ids, self.seen or (), strict=self.seen is not None) if value == seen)

    @property
    def queries(self) -> str:
        """Number of queries in words, with the number of groups where queries depend on each other."""
        return counted_queries(len(self.base.query_ids), self.groups, "held-out " if self.held_out else "")

    @property
    def groups(self) -> int:
        """Number of groups of dependent queries; equal to the number of queries where each stands alone."""
        return len(self.base.query_ids) if self.base.groups is None else len(np.unique(self.base.groups))

    def to_dict(self) -> dict[str, Any]:
        """Return everything except the per-query values, in the layout of comparison.json; `from_dict` reads it back."""
        unit = "groups of queries" if self.groups < len(self.base.query_ids) else "queries"
        unit += " and seeds" if self.seeds else ""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "metric": self.metric,
            "base": self.base.name,
            "tuned": self.tuned.name,
            "queries": len(self.base.query_ids),
            "groups": self.groups,
            "held_out": self.held_out,
            "interval": f"95%, paired Bayesian bootstrap with one more query at the worst gap (Gaffke's bound), {DRAWS:,} draws of {unit}",
            "differences": _rows_of(self.differences),
            "seeds": asdict(self.seeds) if self.seeds else None,
            "strata": [
                {
                    "answers": "seen" if stratum.seen else "new",
                    "queries": stratum.queries,
                    "groups": stratum.groups,
                    "verdict": stratum[self.metric].verdict,
                    "differences": _rows_of(stratum.differences),
                }
                for stratum in self.strata
            ],
        }

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any], base: Scores, tuned: Scores, seen: Sequence[bool] | None = None) -> Comparison:
        """Return the comparison that `to_dict` was called on.

        Args:
            payload: Result of `to_dict`.
            base: Scores of the first model.
            tuned: Scores of the second model.
            seen: One boolean per query: whether training saw one of its right answers. None if unknown.

        Raises:
            EmbedfitError: A key is missing, for example in a file written by another version.
        """
        try:
            strata = tuple(
                Stratum(row["answers"] == "seen", row["queries"], row["groups"], _differences_of(row["differences"]))
                for row in (payload.get("strata", ()) if seen is not None else ())  # earlier versions wrote none
            )
            seeds = payload["seeds"]
            if seeds:
                means = {metric: tuple(values) for metric, values in seeds["means"].items()}
                seeds = Seeds(seeds["count"], means, seeds["spread"], seeds["query_error"])
            return cls(
                base,
                tuned,
                _differences_of(payload["differences"]),
                payload["metric"],
                payload["held_out"],
                seeds,
                None if seen is None else tuple(map(bool, seen)),
                strata,
            )
        except KeyError as error:
            raise EmbedfitError(
                f"the comparison has no key {error}: another version of embedfit wrote it; fix: run the comparison again"
            ) from None

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric and k, with the columns of `Difference`."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["differences"])

    def per_query(self) -> pd.DataFrame:
        """Return one row per query, with both models' rank of the first relevant document and all their metrics.

        The columns ``group`` and ``seen`` (whether training saw one of the query's right answers) are present where known.
        """
        import pandas as pd

        columns: dict[str, Any] = {
            "query_id": list(self.base.query_ids),
            "base_rank": self.base.ranks,
            "tuned_rank": self.tuned.ranks,
            **({} if self.seen is None else {"seen": list(self.seen)}),
        }
        if self.base.groups is not None:
            columns["group"] = self.base.groups
        for name in self.base.values:
            columns[f"base_{name}"], columns[f"tuned_{name}"] = self.base.values[name], self.tuned.values[name]
        return pd.DataFrame(columns)

    def plot(self) -> Figure:
        """Return a bar chart of recall at each k, base beside tuned; whiskers show the 95% interval of the difference."""
        return _chart(self)

    def __repr__(self) -> str:
        return f"Comparison({self.sentence!r})"

    def _repr_html_(self) -> str:
        columns = ["metric", "base", "tuned", "difference", "low", "high", "wins", "ties", "losses"]
        return f"<p>{self.sentence}</p>{self.to_frame()[columns].to_html(index=False, float_format='{:.3f}'.format)}"


def counted_queries(queries: int, groups: int, kind: str = "") -> str:
    """Return a number of queries in words, with the number of groups where some queries depend on each other."""
    words = f"{queries:,} {kind}{'query' if queries == 1 else 'queries'}"
    return words if groups == queries else f"{words} in {groups:,} {'group' if groups == 1 else 'groups'}"


def _rows_of(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    return [{**vars(difference), "verdict": difference.verdict} for difference in differences]


def _differences_of(rows: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    names = [field.name for field in fields(Difference)]
    return tuple(Difference(**{name: row[name] for name in names}) for row in rows)


_BASE, _TUNED, _WHISKER = "#9aa5b1", "#0f766e", "#134e4a"


def _chart(comparison: Comparison) -> Figure:
    """Return a bar chart of recall at each k, base beside tuned; whiskers show the 95% interval of the difference."""
    recalls = [row for row in comparison.differences if row.metric.startswith("recall@")]
    figure = new_chart(7, 4)
    axes = figure.subplots()
    places = np.arange(len(recalls))
    base, tuned = [row.base for row in recalls], [row.tuned for row in recalls]
    # Where all gaps are equal, rounding may put an end of the interval on the wrong side of the difference.
    whiskers = [
        [max(0.0, row.difference - row.low) for row in recalls],
        [max(0.0, row.high - row.difference) for row in recalls],
    ]
    axes.bar(places - 0.2, base, 0.38, label=_short_name(comparison.base.name), color=_BASE)
    axes.bar(places + 0.2, tuned, 0.38, label=_short_name(comparison.tuned.name), color=_TUNED, yerr=whiskers, ecolor=_WHISKER, capsize=3)
    for place, before, after in zip(places, base, tuned, strict=True):
        axes.text(place - 0.2, before + 0.01, f"{before:.2f}", ha="center", va="bottom", fontsize=9)
        axes.text(place + 0.2, after / 2, f"{after:.2f}", ha="center", va="center", fontsize=9, color="white")
    if comparison.seeds:
        means = np.array([comparison.seeds.means[row.metric] for row in recalls])
        axes.plot(np.repeat(places - 0.05, comparison.seeds.count), means.ravel(), ".", color=_WHISKER, markersize=4, label="one seed")
    axes.set_xticks(places, [row.metric for row in recalls])
    axes.set_ylim(0, 1.05)
    axes.set_title(f"{comparison.queries}; whisker: 95% interval of the difference", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False)
    return figure


def _short_name(name: str) -> str:
    """Return a model's name cut to the 40 characters that a legend has room for."""
    return name if len(name) <= 40 else f"{name[:18]}...{name[-19:]}"
