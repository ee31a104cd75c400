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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.errors import EmbedfitError
from embedfit.score import Groups, Scores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Floats: TypeAlias = npt.NDArray[np.float64]
Verdict: TypeAlias = Literal["better", "worse", "no difference shown"]
DRAWS = 10_000
_Z_POWER = 0.8416212335729143  # 0.8 of a normal distribution lies below
_ROUNDING = 1e-12  # a smaller gap is one of rounding


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
    groups = _check_scores((base, *runs), metric)
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
            wins=int((averaged[:, column] > _ROUNDING).sum()),
            ties=int((np.abs(averaged[:, column]) <= _ROUNDING).sum()),
            losses=int((averaged[:, column] < -_ROUNDING).sum()),
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


def compare_many(scores: Sequence[Scores], *, base: Scores | None = None, metric: str = "mrr@10", seed: int = 0) -> list[Difference]:
    """Compare several models on one metric, each with the one before it, or all with ``base``.

    The p-values, and with them the verdicts, are adjusted for the number of comparisons by Holm's method, so that the
    chance of any false "better" or "worse" among them is at most 5%. The intervals are not: each is a 95% interval of its own.

    Args:
        scores: On the same queries.
        base: What all are compared with; None compares each with the one before.
        metric: The one to compare.
        seed: Of the draws.

    Returns:
        One Difference for each of ``scores``, but for the first where there is no ``base``.

    Raises:
        EmbedfitError: As `compare_scores`.
    """
    pairs = [(base, one) for one in scores] if base else list(pairwise(scores))
    found = [compare_scores(_only(first, metric), _only(second, metric), metric=metric, seed=seed)[metric] for first, second in pairs]
    adjusted = holm([difference.p for difference in found])
    return [replace(difference, p=p) for difference, p in zip(found, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for how many they are (Holm 1979, "A simple sequentially rejective multiple test procedure").

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may be smaller than the one before it, or
    over 1. Those under 0.05 hold together: the chance of one false among them is at most 5%, however they depend on
    each other.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for step, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - step) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def not_worse(best: Scores, other: Scores, *, metric: str = "mrr@10", seed: int = 0) -> bool:
    """Return whether another model is not shown to be worse: the interval of ``best - other`` is not all above zero.

    Both models must be named before anything is measured. Where the best of several is picked by these very scores, ask
    `may_be_best`. With few queries a model is easily not worse; the interval's width, or `Difference.detectable`, says how
    much it means.

    Raises:
        EmbedfitError: As `compare_scores`.
    """
    return compare_scores(_only(other, metric), _only(best, metric), metric=metric, seed=seed)[metric].low <= 0


def may_be_best(scores: Sequence[Scores], *, metric: str = "mrr@10", seed: int = 0) -> list[bool]:
    """Return, for each of several models, whether it is not shown to be worse than any of the others.

    A model that is truly as good as every other is called worse in at most 2.5% of cases, however many there are and
    whichever happens to lead: all comparisons with one model share their draws, and hold at once (multiple comparisons with
    the best, Hsu 1981, "Simultaneous confidence intervals for all distances from the best"). Whoever takes the first that
    may be best, in an order given beforehand, therefore passes over a simpler one that is truly as good in at most 2.5% of cases.

    Args:
        scores: Of at least one model, on the same queries.
        metric: The one to compare.
        seed: Of the draws.

    Raises:
        EmbedfitError: As `compare_scores`.
    """
    if len(scores) < 2:
        return [True] * len(scores)
    chosen = [_only(one, metric) for one in scores]
    groups = _check_scores(chosen, metric)
    values = np.stack([one.values[metric] for one in chosen], axis=1)
    means = values.mean(axis=0)
    drawn = [extended_means(values, np.random.default_rng([seed, 1]), groups)]
    if _unequal(groups):
        drawn.append(half_means(values, np.random.default_rng([seed, 4]), groups))
    flipped = randomised_means(values, np.random.default_rng([seed, 2]), groups)
    as_good = []
    for place in range(len(chosen)):
        others = np.delete(np.arange(len(chosen)), place)
        p_values = [_smallest_p(flipped[:, [place]] - flipped[:, others], means[place] - means[others])]
        for lows, highs in drawn:
            # Means are linear in the values, so what was drawn for the models is drawn for their gaps, but for the group that is added.
            middles, added = (lows + highs) / 2, (highs - lows)[:, :1] / 2
            p_values.append(_smallest_p(middles[:, others] - middles[:, [place]] - added, np.zeros(len(others))))
        as_good.append(max(p_values) >= 0.025)
    return as_good


def _smallest_p(draws: Floats, limits: Floats) -> float:
    """Return how often the smallest of the columns' p-values is as small as the one seen.

    This is the p-value of all columns at once, by what they share (Westfall and Young 1993, "Resampling-based multiple
    testing", section 2.3; for intervals: Beran 1988, "Balanced simultaneous confidence sets").

    Args:
        draws: Shape (draws, columns); a column's p-value is the share of its draws that are at most its limit.
        limits: Shape (columns,).
    """
    ordered = np.sort(draws, axis=0)
    count = len(draws)
    smallest = np.full(count, count)
    seen = count
    for column, limit in enumerate(limits + _ROUNDING):
        smallest = np.minimum(smallest, np.searchsorted(ordered[:, column], draws[:, column] + _ROUNDING, side="right"))
        seen = min(seen, int(np.searchsorted(ordered[:, column], limit, side="right")))
    return (1 + int((smallest <= seen).sum())) / (1 + count)


@dataclass(frozen=True)
class Evidence:
    """What gaps between two models say; each attribute is an array with one value for each column of gaps.

    Attributes:
        difference: Mean gap.
        low: Lower end of its 95% interval.
        high: Upper end.
        p: Two-sided p-value.
        query_error: Standard error of the mean gap from the draw of queries.
        detectable: The smallest true difference that is shown in 80% of cases.
    """

    difference: Floats
    low: Floats
    high: Floats
    p: Floats
    query_error: Floats
    detectable: Floats


def evidence(gaps: Floats, *, groups: Groups | None = None, seed: int = 0) -> Evidence:
    """Return what gaps between two models say about their mean.

    With several seeds, each draw is the mean of drawn queries, averaged over seeds, plus a draw of how far the mean of so
    few seeds may be off: the standard error of the seeds' means times Student's t with one degree of freedom fewer than
    there are seeds. Drawing the seeds themselves with replacement, even stretched by sqrt(S / (S - 1)), has tails far too
    light for two to five seeds (benchmarks/verdict.py). The sum of an error of queries and a Student's t is Behrens' and
    Fisher's; it errs on the wide side (Robinson 1976, "Properties of Student's t and of the Behrens-Fisher solution").

    Args:
        gaps: Between -1 and 1; shape (seeds, queries, columns). All columns share the draws, as they share the queries.
        groups: Number of each query's group, shape (queries,). By default each query stands alone.
        seed: Of the draws.
    """
    seeds = len(gaps)
    averaged = gaps.mean(axis=0)
    difference = averaged.mean(axis=0)
    nothing = np.zeros_like(difference)
    query_error = _standard_error(averaged, groups)
    seed_error = gaps.mean(axis=1).std(axis=0, ddof=1) / np.sqrt(seeds) if seeds > 1 else nothing
    noise = np.random.default_rng([seed, 3]).standard_t(seeds - 1, (DRAWS, 1)) * seed_error if seeds > 1 else 0.0
    lows, highs = extended_means(averaged, np.random.default_rng([seed, 1]), groups)
    lows, highs = lows + noise, highs + noise
    low, high = np.quantile(lows, 0.025, axis=0), np.quantile(highs, 0.975, axis=0)
    if _unequal(groups):
        half_lows, half_highs = half_means(averaged, np.random.default_rng([seed, 4]), groups)
        low = np.minimum(low, np.quantile(half_lows + noise, 0.025, axis=0))
        high = np.maximum(high, np.quantile(half_highs + noise, 0.975, axis=0))
    low, high = np.clip(low, -1, 1), np.clip(high, -1, 1)
    randomised = randomised_means(averaged, np.random.default_rng([seed, 2]), groups) + noise
    # One is added on both sides: what was seen is one of the arrangements (Phipson and Smyth 2010).
    of_test = (1 + (np.abs(randomised) >= np.abs(difference) - _ROUNDING).sum(axis=0)) / (1 + DRAWS)
    of_interval = 2 * (1 + np.minimum((lows <= 0).sum(axis=0), (highs >= 0).sum(axis=0))) / (1 + DRAWS)
    p = np.minimum(1, np.maximum(of_test, of_interval))
    detectable = np.minimum(1, (high - low) / 2 + _Z_POWER * np.hypot(query_error, seed_error))
    return Evidence(difference, low, high, p, query_error, detectable)


def group_sums(values: Floats, groups: Groups | None) -> tuple[Floats, Floats]:
    """Return the sum of each group's rows, shape (groups, columns), and each group's size, shape (groups,).

    Args:
        values: Shape (n, columns).
        groups: Number of each row's group, shape (n,); None where each row is a group of its own.
    """
    if groups is None:
        return values, np.ones(len(values))
    _, number, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, number, values)
    return sums, sizes.astype(np.float64)


def _unequal(groups: Groups | None) -> bool:
    return groups is not None and len(set(np.unique(groups, return_counts=True)[1].tolist())) > 1


def _standard_error(values: Floats, groups: Groups | None) -> Floats:
    """Return the standard error of each column's mean, from the draw of groups (the linearised error of a ratio of sums)."""
    sums, sizes = group_sums(values, groups)
    count = len(sizes)
    if count < 2:
        return np.zeros(values.shape[1])
    residuals = sums - sizes[:, None] * values.mean(axis=0)
    error: Floats = np.sqrt(count / (count - 1) * (residuals**2).sum(axis=0)) / len(values)
    return error


def _blocks(count: int) -> Iterator[slice]:
    """Yield the draws in blocks, so that the weights of ``count`` groups take bounded memory."""
    size = max(1, 4_000_000 // count)
    for start in range(0, DRAWS, size):
        yield slice(start, min(start + size, DRAWS))


def extended_means(values: Floats, rng: np.random.Generator, groups: Groups | None = None) -> tuple[Floats, Floats]:
    """Return the mean of each column over `DRAWS` random weights of groups and of one more group, all -1 or all 1.

    The weights of n + 1 groups are uniform over all that are positive and sum to one (Dirichlet's distribution). The size of
    the group that is added is the mean size over queries, not over groups: what a large group would have changed, had it come
    out otherwise, is not to be ruled out by many small ones. A group of mean size, or of root mean square size, gave false
    verdicts of up to 11% and 9% (benchmarks/verdict.py).

    Args:
        values: Between -1 and 1; shape (n, columns).
        rng: Of the weights, which all columns share.
        groups: Number of each row's group, shape (n,); None where each row is a group of its own.

    Returns:
        With the group of -1, and with the group of 1; each of shape (DRAWS, columns).
    """
    sums, sizes = group_sums(values, groups)
    added = (sizes**2).sum() / sizes.sum()
    means, extra = np.empty((DRAWS, values.shape[1])), np.empty((DRAWS, 1))
    for block in _blocks(len(sizes)):
        weights = rng.standard_exponential((block.stop - block.start, len(sizes) + 1))
        unseen = weights[:, -1:] * added
        total = weights[:, :-1] @ sizes[:, None] + unseen
        means[block], extra[block] = weights[:, :-1] @ sums / total, unseen / total
    return means - extra, means + extra


def half_means(values: Floats, rng: np.random.Generator, groups: Groups | None = None) -> tuple[Floats, Floats]:
    """Return the mean of each column over `DRAWS` random sets of groups, in each of which a group stands with a chance of 1/2.

    If groups' gaps are symmetric about the true mean, of any spread and size, it lies between two of these means as often as
    their ranks say (Hartigan 1969). It is the interval that the randomisation test leaves, shift by shift.

    Args:
        values: Between -1 and 1; shape (n, columns).
        rng: Of the sets, which all columns share.
        groups: Number of each row's group, shape (n,); None where each row is a group of its own.

    Returns:
        With -1 for a set without any group, and with 1; each of shape (DRAWS, columns).
    """
    sums, sizes = group_sums(values, groups)
    lows, highs = np.empty((DRAWS, values.shape[1])), np.empty((DRAWS, values.shape[1]))
    for block in _blocks(len(sizes)):
        chosen = rng.integers(2, size=(block.stop - block.start, len(sizes)), dtype=np.int8).astype(np.float64)
        total = chosen @ sizes[:, None]
        means = chosen @ sums / np.maximum(total, 1)
        lows[block], highs[block] = np.where(total, means, -1), np.where(total, means, 1)
    return lows, highs


def bootstrap_means(values: Floats, rng: np.random.Generator, groups: Groups | None = None) -> Floats:
    """Return the mean of each column over `DRAWS` draws of groups with replacement; shape (DRAWS, columns).

    All columns share the draws, as they share the queries.

    Args:
        values: Shape (n, columns).
        rng: Of the draws.
        groups: Number of each row's group, shape (n,); None where each row is a group of its own.
    """
    sums, sizes = group_sums(values, groups)
    n = len(sizes)
    means = np.empty((DRAWS, values.shape[1]))
    for block in _blocks(n):
        size = block.stop - block.start
        # How often each group is drawn is all that matters, and turns the sums into one matrix product.
        drawn = rng.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)
        means[block] = counts @ sums / (counts @ sizes[:, None])
    return means


def randomised_means(values: Floats, rng: np.random.Generator, groups: Groups | None = None) -> Floats:
    """Return the mean of each column over `DRAWS` random choices of each group's sign; shape (DRAWS, columns).

    Args:
        values: Shape (n, columns).
        rng: Of the signs, which all columns share.
        groups: Number of each row's group, shape (n,); None where each row is a group of its own.
    """
    sums, _ = group_sums(values, groups)
    means = np.empty((DRAWS, values.shape[1]))
    for block in _blocks(len(sums)):
        signs = rng.integers(2, size=(block.stop - block.start, len(sums)), dtype=np.int8) * 2.0 - 1.0
        means[block] = signs @ sums / len(values)
    return means


def _check_scores(scores: Sequence[Scores], metric: str) -> Groups | None:
    """Refuse scores that cannot be compared. Returns the number of each query's group, if any of them knows it."""
    first = scores[0]
    if len(scores) < 2:
        raise EmbedfitError("there are no scores to compare with; expected those of one seed or more")
    for other in scores[1:]:
        if first.query_ids != other.query_ids or first.values.keys() != other.values.keys():
            raise EmbedfitError("only scores of the same queries with the same metrics can be compared")
    if metric not in first.values:
        raise EmbedfitError(f"metric {metric!r} was not measured; expected one of {', '.join(first.values)}")
    for one in scores:
        for name, values in one.values.items():
            if not np.all((values >= -_ROUNDING) & (values <= 1 + _ROUNDING)):  # the interval rests on this
                raise EmbedfitError(f"{name} of {one.name or 'a model'} has a value that is not between 0 and 1")
    known = [_renumbered(one.groups) for one in scores if one.groups is not None]
    if any(not np.array_equal(groups, known[0]) for groups in known) or (known and len(known[0]) != len(first.query_ids)):
        raise EmbedfitError("the scores put the same queries into different groups; fix: score both with the same groups")
    return known[0] if known else None


def _renumbered(groups: Groups) -> Groups:
    """Return the same groups, numbered in the order in which they first appear."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    renumbered: Groups = np.argsort(np.argsort(first))[number]
    return renumbered


def _grouped(scores: Scores, groups: Groups | None) -> Scores:
    return scores if groups is None else replace(scores, groups=groups)


def _mean_over_seeds(runs: Sequence[Scores]) -> Scores:
    values = {name: np.mean([run.values[name] for run in runs], axis=0) for name in runs[0].values}
    ranks = np.stack([run.ranks for run in runs])
    missing = np.iinfo(ranks.dtype).max  # not found is the worst rank, though it is written as 0
    middle = np.sort(np.where(ranks == 0, missing, ranks), axis=0)[len(runs) // 2]
    return Scores(runs[0].name, runs[0].query_ids, values, np.where(middle == missing, 0, middle))


def _only(scores: Scores, metric: str) -> Scores:
    """Return the scores with one metric, which is all that is then drawn for."""
    return replace(scores, values={name: values for name, values in scores.values.items() if name == metric} or scores.values)


def metric_label(name: str) -> str:
    """Return a metric's name as people write it: ``MRR@10``, ``nDCG@10``, ``recall@1``."""
    metric, _, k = name.partition("@")
    return f"{ {'mrr': 'MRR', 'ndcg': 'nDCG', 'map': 'MAP'}.get(metric, metric) }@{k}".replace(" ", "")
