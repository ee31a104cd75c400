"""Two models on the same queries: how large the difference is, and whether it could be chance.

A query's gap is the second model's metric minus the first's. Three things are said of the mean gap:

- **Interval**: the percentiles of a Bayesian bootstrap of the gaps (Rubin 1981), to which one query is added that was
  never seen: at the worst gap possible (-1) for the lower end, at the best (+1) for the upper. This is Gaffke's bound
  (Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative variable";
  Learned-Miller and Thomas 2020, "A new confidence interval for the mean of a bounded random variable"). For gaps of -1
  and 1 alone it is Clopper and Pearson's exact interval; for other shapes its coverage is a conjecture without a known
  counterexample. The plain bootstrap takes a loss that no query happened to show for impossible, and says "better" far
  too often where losses are rare and large (benchmarks/verdict.py).
- **p-value**: of the paired randomisation test, where each query's gap changes its sign at random (Smucker, Allan and
  Carterette 2007), or the interval's own where that is larger: the test takes gaps for symmetric, the interval does not.
- **What could have been seen**: the smallest true difference that such queries show in four cases of five.

With several seeds of one training, all three cover both sources of chance, queries and seeds (Bouthillier et al. 2021,
"Accounting for variance in machine learning benchmarks"): see `evidence`.

Queries that belong together, such as near duplicates, are no independent evidence. Where `Scores.groups` names them, the
group is what is drawn, weighed and flipped, and the mean is the ratio of the groups' sums of gaps to their sizes. The added
query becomes an added group, whose size is that of the group in which a query drawn at random stands. Where groups differ in
size, the interval also covers the means of random halves of the groups (Hartigan 1969, "Using subsample values as typical
values"), which a few large groups do not make too narrow.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from embedfit.errors import EmbedfitError
from embedfit.evaluation.score import Groups, Scores
from embedfit.evaluation.statistics import DRAWS, ROUNDING, check_scores, evidence, holm
from embedfit.metrics import metric_label

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Verdict: TypeAlias = Literal["better", "worse", "no difference shown"]


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
        p: Two-sided p-value: of the paired randomisation test, or of the interval where that is larger. Adjusted for the
            number of comparisons where `compare_many` made it.
        wins: Queries on which the second model is better.
        ties: Queries on which both are equal.
        losses: Queries on which it is worse.
        detectable: The smallest true difference that such queries would show in 80% of cases: half the interval and 0.84
            standard errors. With many queries this is the usual (z_0.975 + z_0.8) standard errors (Bloom 1995, "Minimum
            detectable effects"); with few the interval is wider than normal theory has it. Where every gap is the same
            it is the interval's alone, and still not zero: a few equal gaps do not rule out another.
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
        """Better or worse only if the interval leaves zero out, and the p-value is under 0.05."""
        if self.p < 0.05 and self.low > 0:
            return "better"
        return "worse" if self.p < 0.05 and self.high < 0 else "no difference shown"


@dataclass(frozen=True)
class Seeds:
    """How far the second model's means depend on the seed that it was trained with, and how far on the queries.

    Attributes:
        count: Of trainings with different seeds.
        means: Metric -> the mean over queries for each seed.
        spread: Metric -> standard deviation of these means.
        query_error: Metric -> standard error of the difference from the draw of queries.
    """

    count: int
    means: Mapping[str, tuple[float, ...]]
    spread: Mapping[str, float]
    query_error: Mapping[str, float]


@dataclass(frozen=True)
class Stratum:
    """A part of the test queries, compared by itself: those with an answer seen in training, or those with new answers alone.

    Attributes:
        seen: Which of the two: True where training saw at least one right answer of each query.
        queries: Number of queries.
        groups: Number of groups of queries that belong together; as many as queries where each stands alone.
        differences: One per metric and k. The p-values, and with them the verdicts, are adjusted for the two strata by
            Holm's method; each interval is a 95% interval of its own.
    """

    seen: bool
    queries: int
    groups: int
    differences: tuple[Difference, ...]

    def __getitem__(self, metric: str) -> Difference:
        return next(difference for difference in self.differences if difference.metric == metric)

    @property
    def label(self) -> str:
        """The stratum in words, with its number of queries."""
        queries = _counted(self.queries, self.groups)
        return f"{'answers seen in training' if self.seen else 'new answers'} ({queries})"

    def sentence(self, metric: str) -> str:
        """Return the stratum's verdict on a metric, with its evidence."""
        row = self[metric]
        values = f"{row.base:.3f} before and {row.tuned:.3f} after"
        sentence = (
            f"{self.label.capitalize()}: {row.verdict}, {values} ({row.difference:+.3f}, 95% interval {row.low:+.3f} to {row.high:+.3f})."
        )
        if row.verdict == "no difference shown":
            sentence = f"{sentence[:-2]}; a difference under about {row.detectable:.2g} could not have been seen reliably)."
        return sentence


@dataclass(frozen=True)
class Comparison:
    """Two models on the same queries.

    Attributes:
        base: Scores of the first.
        tuned: Scores of the second; with several seeds their means per query, and the median rank.
        differences: One per metric and k.
        metric: The one that the verdict is about.
        held_out: Whether it is known that no query was trained on.
        seeds: What each seed came to; None where there is one alone.
        seen: For each query, whether training saw one of its right answers; None where that is not known.
        strata: The queries with an answer seen in training, then those with new answers alone; empty unless there are both.
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
        sentence = (
            f"{said} ({found.difference:+.3f}, 95% interval {found.low:+.3f} to {found.high:+.3f}) on {self.queries}"
            f"{f', mean of {self.seeds.count} seeds' if self.seeds else ''}: "
            f"{found.wins:,} better, {found.ties:,} the same, {found.losses:,} worse."
        )
        if self.seeds:
            sentence += f" Spread of seeds {self.seeds.spread[self.metric]:.3f}, of queries {self.seeds.query_error[self.metric]:.3f}."
        if found.verdict == "no difference shown":
            queries = _counted(len(self.base.query_ids), self.groups)
            sentence += f" A difference under about {found.detectable:.2g} could not have been seen reliably on {queries}."
        return " ".join([sentence, *(stratum.sentence(self.metric) for stratum in self.strata)])

    def query_ids(self, *, seen: bool) -> tuple[str, ...]:
        """Return the ids of the queries that have an answer seen in training, or of those that have none."""
        return tuple(id for id, value in zip(self.base.query_ids, self.seen or (), strict=self.seen is not None) if value == seen)

    @property
    def queries(self) -> str:
        """How many queries, whether they were held out, and in how many groups where some belong together."""
        return _counted(len(self.base.query_ids), self.groups, "held-out " if self.held_out else "")

    @property
    def groups(self) -> int:
        """Number of groups of queries that belong together; the number of queries where each stands alone."""
        return len(self.base.query_ids) if self.base.groups is None else len(np.unique(self.base.groups))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the per-query values, as comparison.json holds it; `from_dict` reads it back."""
        drawn = "groups of queries" if self.groups < len(self.base.query_ids) else "queries"
        drawn += " and seeds" if self.seeds else ""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "metric": self.metric,
            "base": self.base.name,
            "tuned": self.tuned.name,
            "queries": len(self.base.query_ids),
            "groups": self.groups,
            "held_out": self.held_out,
            "interval": f"95%, paired Bayesian bootstrap with one more query at the worst gap (Gaffke's bound), {DRAWS:,} draws of {drawn}",
            "differences": _dicts(self.differences),
            "seeds": asdict(self.seeds) if self.seeds else None,
            "strata": [
                {
                    "answers": "seen" if stratum.seen else "new",
                    "queries": stratum.queries,
                    "groups": stratum.groups,
                    "verdict": stratum[self.metric].verdict,
                    "differences": _dicts(stratum.differences),
                }
                for stratum in self.strata
            ],
        }

    @classmethod
    def from_dict(cls, said: Mapping[str, Any], base: Scores, tuned: Scores, seen: Sequence[bool] | None = None) -> Comparison:
        """Return the comparison that `to_dict` was called on, from what it said and what it kept of each query.

        Args:
            said: From `to_dict`.
            base: Scores of the first model.
            tuned: Scores of the second.
            seen: Whether training saw an answer, for each query; None where that is not known.

        Raises:
            EmbedfitError: Something is missing, as in what another version wrote.
        """
        try:
            differences = _differences(said["differences"])
            strata = tuple(
                Stratum(row["answers"] == "seen", row["queries"], row["groups"], _differences(row["differences"]))
                for row in (said.get("strata", ()) if seen is not None else ())  # earlier versions wrote none
            )
            seeds = said["seeds"]
            if seeds:
                means = {metric: tuple(values) for metric, values in seeds["means"].items()}
                seeds = Seeds(seeds["count"], means, seeds["spread"], seeds["query_error"])
            known = None if seen is None else tuple(map(bool, seen))
            return cls(base, tuned, differences, said["metric"], said["held_out"], seeds, known, strata)
        except KeyError as error:
            raise EmbedfitError(f"the comparison says no {error}; fix: make it again, another version of embedfit wrote it") from None

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric and k, with the columns of `Difference`."""
        import pandas as pd

        return pd.DataFrame(self.to_dict()["differences"])

    def per_query(self) -> pd.DataFrame:
        """Return one row per query: its group if known, rank of the first relevant document and every metric, for both models.

        Where it is known, ``seen`` says whether training saw one of the query's right answers.
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
        """Return a bar chart of recall at each k, base beside tuned; the whisker is the 95% interval of the difference."""
        recalls = [found for found in self.differences if found.metric.startswith("recall@")]
        figure = new_chart(7, 4)
        axes = figure.subplots()
        places = np.arange(len(recalls))
        base, tuned = [found.base for found in recalls], [found.tuned for found in recalls]
        # Where every gap is the same, rounding may put an end of the interval on the other side of the difference.
        whiskers = [
            [max(0.0, found.difference - found.low) for found in recalls],
            [max(0.0, found.high - found.difference) for found in recalls],
        ]
        axes.bar(places - 0.2, base, 0.38, label=_short(self.base.name), color="#9aa5b1")
        axes.bar(places + 0.2, tuned, 0.38, label=_short(self.tuned.name), color="#0f766e", yerr=whiskers, ecolor="#134e4a", capsize=3)
        for place, before, after in zip(places, base, tuned, strict=True):
            axes.text(place - 0.2, before + 0.01, f"{before:.2f}", ha="center", va="bottom", fontsize=9)
            axes.text(place + 0.2, after / 2, f"{after:.2f}", ha="center", va="center", fontsize=9, color="white")
        if self.seeds:
            each = np.array([self.seeds.means[found.metric] for found in recalls])
            axes.plot(np.repeat(places - 0.05, self.seeds.count), each.ravel(), ".", color="#134e4a", markersize=4, label="one seed")
        axes.set_xticks(places, [found.metric for found in recalls])
        axes.set_ylim(0, 1.05)
        axes.set_title(f"{self.queries}; whisker: 95% interval of the difference", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False)
        return figure

    def __repr__(self) -> str:
        return f"Comparison({self.sentence!r})"

    def _repr_html_(self) -> str:
        columns = ["metric", "base", "tuned", "difference", "low", "high", "wins", "ties", "losses"]
        return f"<p>{self.sentence}</p>{self.to_frame()[columns].to_html(index=False, float_format='{:.3f}'.format)}"


def _counted(queries: int, groups: int, kind: str = "") -> str:
    """Return a number of queries in words, and of groups if some queries belong together."""
    words = f"{queries:,} {kind}{'query' if queries == 1 else 'queries'}"
    return words if groups == queries else f"{words} in {groups:,} {'group' if groups == 1 else 'groups'}"


def new_chart(width: float, height: float) -> Figure:
    """Return an empty figure of so many inches, which a notebook shows; matplotlib's own it shows only if pyplot was imported."""
    from matplotlib.figure import Figure

    class Chart(Figure):
        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=100)
            return picture.getvalue()

    return Chart(figsize=(width, height), layout="constrained")


def _short(name: str) -> str:
    """Return a model's name as a chart has room for it."""
    return name if len(name) <= 40 else f"{name[:18]}...{name[-19:]}"


def compare_scores(
    base: Scores,
    tuned: Scores | Sequence[Scores],
    *,
    metric: str = "mrr@10",
    seed: int = 0,
    held_out: bool = False,
    seen: Sequence[bool] | None = None,
) -> Comparison:
    """Compare two models query by query.

    Args:
        base: Scores of the first model. Its groups of queries, or those of ``tuned``, are what chance draws.
        tuned: Scores of the second, on the same queries with the same metrics; or several, of the same training with
            different seeds. Then all figures are of each query's mean over seeds, so wins and losses too, the interval and
            p-value cover the choice of seeds as well, and a query's rank is the median, of two middle ones the worse: it
            is 1 only if more than half of the seeds put the right answer first.
        metric: The one that the verdict is about.
        seed: Of the draws.
        held_out: Whether no query was trained on, which the sentence then says.
        seen: For each query, whether one of its right answers was also that of a training query (`embedfit.split.answers_seen`).
            Where some were and some were not, each of the two strata is compared by itself too.

    Raises:
        EmbedfitError: The queries or the metrics differ, a value is not between 0 and 1, ``metric`` is not measured, or ``seen``
            is of another length.
    """
    runs = (tuned,) if isinstance(tuned, Scores) else tuple(tuned)
    groups = check_scores((base, *runs), metric)
    names = list(base.values)
    gaps = np.stack([np.stack([run.values[name] - base.values[name] for name in names], axis=1) for run in runs])
    found = evidence(gaps, groups=groups, seed=seed)
    mean = runs[0] if len(runs) == 1 else _mean_over_seeds(runs)
    averaged = gaps.mean(axis=0)
    differences = tuple(
        Difference(
            metric=name,
            base=base.mean(name),
            tuned=mean.mean(name),
            difference=float(found.difference[column]),
            low=float(found.low[column]),
            high=float(found.high[column]),
            p=float(found.p[column]),
            wins=int((averaged[:, column] > ROUNDING).sum()),
            ties=int((np.abs(averaged[:, column]) <= ROUNDING).sum()),
            losses=int((averaged[:, column] < -ROUNDING).sum()),
            detectable=float(found.detectable[column]),
        )
        for column, name in enumerate(names)
    )
    seeds = None
    if len(runs) > 1:
        means = {name: tuple(run.mean(name) for run in runs) for name in names}
        spread = {name: float(np.std(values, ddof=1)) for name, values in means.items()}
        seeds = Seeds(len(runs), means, spread, dict(zip(names, found.query_error.tolist(), strict=True)))
    known = None if seen is None else tuple(map(bool, seen))
    base = _grouped(base, groups)
    strata = () if known is None else _strata(base, runs, known, metric=metric, seed=seed, held_out=held_out)
    return Comparison(base, _grouped(mean, groups), differences, metric, held_out, seeds, known, strata)


def _strata(base: Scores, runs: Sequence[Scores], seen: Sequence[bool], **settings: Any) -> tuple[Stratum, ...]:
    """Return the comparison of the queries with a seen answer, and of the others; nothing if all are of one kind."""
    if len(seen) != len(base.query_ids):
        raise EmbedfitError(f"whether an answer was seen is said of {len(seen):,} queries; expected {len(base.query_ids):,}")
    if len(set(seen)) < 2:
        return ()
    parts = []
    for wanted in (True, False):
        ids = [id for id, value in zip(base.query_ids, seen, strict=True) if value == wanted]
        parts.append(compare_scores(base.select(ids), [run.select(ids) for run in runs], **settings))
    adjusted = [holm([first.p, second.p]) for first, second in zip(parts[0].differences, parts[1].differences, strict=True)]
    return tuple(
        Stratum(
            number == 0,
            len(part.base.query_ids),
            part.groups,
            tuple(replace(difference, p=p[number]) for difference, p in zip(part.differences, adjusted, strict=True)),
        )
        for number, part in enumerate(parts)
    )


def _dicts(differences: Sequence[Difference]) -> list[dict[str, Any]]:
    return [{**vars(difference), "verdict": difference.verdict} for difference in differences]


def _differences(rows: Sequence[Mapping[str, Any]]) -> tuple[Difference, ...]:
    names = [field.name for field in fields(Difference)]
    return tuple(Difference(**{name: row[name] for name in names}) for row in rows)


def _grouped(scores: Scores, groups: Groups | None) -> Scores:
    return scores if groups is None else replace(scores, groups=groups)


def _mean_over_seeds(runs: Sequence[Scores]) -> Scores:
    values = {name: np.mean([run.values[name] for run in runs], axis=0) for name in runs[0].values}
    ranks = np.stack([run.ranks for run in runs])
    missing = np.iinfo(ranks.dtype).max  # not found is the worst rank, though it is written as 0
    middle = np.sort(np.where(ranks == 0, missing, ranks), axis=0)[len(runs) // 2]
    return Scores(runs[0].name, runs[0].query_ids, values, np.where(middle == missing, 0, middle))
