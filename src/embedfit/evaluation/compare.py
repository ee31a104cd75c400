"""Compares two models on the same queries: how large the difference is, and whether chance could explain it.

The gap of a query is the second model's metric minus the first model's. Three things are reported about the mean gap:

- **Interval**: percentiles of a Bayesian bootstrap of the gaps (Rubin 1981, "The Bayesian bootstrap"), extended by one
  unobserved query with the worst possible gap (-1) for the lower end and the best possible (+1) for the upper end. This is
  Gaffke's bound (Gaffke 2005, "Three test statistics for a nonparametric one-sided hypothesis on the mean of a nonnegative
  variable"; Learned-Miller and Thomas 2020, "A new confidence interval for the mean of a bounded random variable"). For
  gaps of -1 and 1 only, it is the exact interval of Clopper and Pearson (1934). For other distributions its coverage is a
  conjecture without a known counterexample. The plain bootstrap treats a loss that no sampled query shows as impossible.
  Its false "better" rate is far too high where losses are rare and large (benchmarks/verdict.py).
- **p-value**: the larger of two. One is that of the paired randomisation test, which flips the sign of each query's gap at
  random (Smucker, Allan and Carterette 2007, "A comparison of statistical significance tests for information retrieval
  evaluation"). The other belongs to the interval. The test assumes symmetric gaps; the interval does not.
- **Detectable difference**: the smallest true difference that such a sample of queries shows in 80% of cases.

With several training seeds, all three cover both sources of variation, queries and seeds (Bouthillier et al. 2021,
"Accounting for variance in machine learning benchmarks"); see `evidence`.

Dependent queries, such as near duplicates, are not independent evidence. Where `Scores.groups` assigns queries to groups, the
group is the unit of resampling, weighting and sign flipping. The mean is then a ratio: the sum of all gaps over the number of
queries. The unobserved query becomes an unobserved group, as large as the group of a randomly drawn query on average. Where
groups differ in size, the interval also covers the means of random half-samples of groups (Hartigan 1969, "Using subsample
values as typical values"), because the bootstrap is too narrow when a few large groups dominate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from embedfit.errors import EmbedfitError
from embedfit.evaluation.comparison import Comparison, Difference, Seeds, Stratum
from embedfit.evaluation.score import Groups, PerQuery, Scores
from embedfit.evaluation.statistics import ROUNDING, Evidence, Floats, check_scores, evidence, holm


def compare_scores(
    base: Scores,
    tuned: Scores | Sequence[Scores],
    *,
    metric: str = "mrr@10",
    seed: int = 0,
    held_out: bool = False,
    seen: Sequence[bool] | None = None,
    choices: int = 1,
) -> Comparison:
    """Compare two models query by query.

    Args:
        base: Scores of the first model. Groups of queries may be set here or in ``tuned``.
        tuned: Scores of the second model on the same queries with the same metrics, or a sequence of Scores: one per seed of
            the same training. With several seeds, differences, wins and losses refer to each query's mean over seeds, and
            the interval and p-value also cover the choice of seeds. A query's rank is then the median over seeds, the worse
            of the two middle ones, so it is 1 only if more than half of the seeds rank a right answer first.
        metric: Name of the metric that the verdict is about.
        seed: Seed of the random draws.
        held_out: Whether none of the queries was used in training; the sentence then says so.
        seen: One boolean per query: whether one of its right answers was also right for a training query
            (`embedfit.data.split.answers_seen`). Where both kinds occur, each stratum is also compared by itself.
        choices: Number of pairs of models that this pair was chosen from by its scores on these queries. Intervals and p-values
            then hold for all pairs at once (Bonferroni), so they hold for the chosen one.

    Raises:
        EmbedfitError: The queries or metrics differ, a value lies outside 0 to 1, ``metric`` was not measured, or ``seen`` has the
            wrong length.
    """
    runs = (tuned,) if isinstance(tuned, Scores) else tuple(tuned)
    groups = check_scores((base, *runs), metric)
    names = list(base.values)
    gaps = np.stack([np.stack([run.values[name] - base.values[name] for name in names], axis=1) for run in runs])
    statistics = evidence(gaps, groups=groups, seed=seed, level=0.05 / choices)
    statistics = replace(statistics, p=np.minimum(1, choices * statistics.p))
    mean = runs[0] if len(runs) == 1 else _mean_over_seeds(runs)
    seeds = None
    if len(runs) > 1:
        means = {name: tuple(run.mean(name) for run in runs) for name in names}
        spread = {name: float(np.std(values, ddof=1)) for name, values in means.items()}
        seeds = Seeds(len(runs), means, spread, dict(zip(names, statistics.query_error.tolist(), strict=True)))
    seen = None if seen is None else tuple(map(bool, seen))
    base = _with_groups(base, groups)
    strata = () if seen is None else _strata(base, runs, seen, metric=metric, seed=seed, held_out=held_out, choices=choices)
    differences = _differences(base, mean, gaps.mean(axis=0), statistics)
    return Comparison(base, _with_groups(mean, groups), differences, metric, held_out, seeds, seen, strata)


def _differences(base: Scores, tuned: Scores, gaps: Floats, statistics: Evidence) -> tuple[Difference, ...]:
    names = list(base.values)
    before, after = ([scores.values[name] for name in names] for scores in (base, tuned))
    return differences_of(before, after, gaps, statistics, names)


def differences_of(
    before: Sequence[PerQuery], after: Sequence[PerQuery], gaps: Floats, statistics: Evidence, names: Sequence[str]
) -> tuple[Difference, ...]:
    """Return one Difference per column of gaps.

    Args:
        before: Values of the first model in each column, each of shape (queries,).
        after: Values of the second model in each column, averaged over seeds.
        gaps: Gap of each query, averaged over seeds; shape (queries, columns).
        statistics: Evidence with one value per column.
        names: Name of the metric of each column.
    """
    return tuple(
        Difference(
            metric=name,
            base=float(before[column].mean()),
            tuned=float(after[column].mean()),
            difference=float(statistics.difference[column]),
            low=float(statistics.low[column]),
            high=float(statistics.high[column]),
            p=float(statistics.p[column]),
            wins=int((gaps[:, column] > ROUNDING).sum()),
            ties=int((np.abs(gaps[:, column]) <= ROUNDING).sum()),
            losses=int((gaps[:, column] < -ROUNDING).sum()),
            detectable=float(statistics.detectable[column]),
        )
        for column, name in enumerate(names)
    )


def _strata(base: Scores, runs: Sequence[Scores], seen: Sequence[bool], **settings: Any) -> tuple[Stratum, ...]:
    """Return the strata of queries with a seen answer and with new answers only; empty if all queries are of one kind."""
    if len(seen) != len(base.query_ids):
        raise EmbedfitError(f"seen has {len(seen):,} values, one per query; expected {len(base.query_ids):,}")
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


def _with_groups(scores: Scores, groups: Groups | None) -> Scores:
    return scores if groups is None else replace(scores, groups=groups)


def _mean_over_seeds(runs: Sequence[Scores]) -> Scores:
    values = {name: np.mean([run.values[name] for run in runs], axis=0) for name in runs[0].values}
    ranks = np.stack([run.ranks for run in runs])
    missing = np.iinfo(ranks.dtype).max  # rank 0 means not retrieved, which is the worst rank
    middle = np.sort(np.where(ranks == 0, missing, ranks), axis=0)[len(runs) // 2]
    return Scores(runs[0].name, runs[0].query_ids, values, np.where(middle == missing, 0, middle))
