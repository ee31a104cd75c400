"""How often the verdict is wrong, and how often it finds what is there, by simulation.

Gaps (a query's metric with the second model minus that with the first) are drawn from shapes as retrieval has them,
whose mean is zero, and judged by `embedfit.evaluation.statistics.evidence`, the code behind `compare_scores`:

- **False verdicts**: the share of "better" and of "worse"; goal: at most 2.5% each, whatever the shape and the number of
  queries. Beside it the methods that were rejected: the percentile bootstrap, BCa and bootstrap-t, each together with the
  randomisation test. Shapes and their mirror images are one, as both directions are counted.
- **Power**: a share of the queries gains, so that the true mean is known; the share of "better" at several true differences.
  At the difference that equals its own `detectable`, on average, it should be about 80%.
- **Seeds**: trainings whose true mean is zero over all seeds, but not for each; the share of false verdicts with the seeds'
  error drawn from Student's t, and as the seeds themselves drawn with replacement, and not at all.
- **Holm**: eight comparisons at once without any true difference; the share with any false verdict, goal: at most 5%.
- **Groups**: queries in groups of equal and of very unequal sizes, correlated within them from 0 to 1, without a true difference;
  the share of "better" and "worse", how often the interval alone misses zero on either side, and how wide it is. Beside it, the same
  with queries taken for independent.
- **Power with groups**: what it costs to allow for correlation where there is none.
- **Best of several**: 13 equal models; how often the first is called worse than the best, by `may_be_best` and by one comparison with
  the model that happens to lead; and how often one that is truly worse is passed over.

It takes about half an hour of one core.

    python benchmarks/verdict.py [--simulations 2000] [--only groups ...]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from embedfit.evaluation.families import may_be_best, not_worse
from embedfit.evaluation.score import Scores
from embedfit.evaluation.statistics import DRAWS, bootstrap_means, evidence, extended_means, holm, randomised_means

RESULTS = Path(__file__).parent / "results"
Floats = npt.NDArray[np.float64]
QUERIES = (20, 65, 326, 1000)
BLOCK = 500
"""Simulations that share their draws and are columns of one matrix."""


@dataclass(frozen=True)
class Shape:
    """What a query's gap may be.

    Attributes:
        values: Gaps.
        chances: Of each.
    """

    values: Floats
    chances: Floats

    def draw(self, rng: np.random.Generator, *size: int) -> Floats:
        """Return gaps of this shape."""
        edges = self.chances.cumsum()[:-1]
        return self.values[np.searchsorted(edges, rng.random(size), side="right")]

    def better_by(self, difference: float) -> Shape:
        """Return the shape where a share of the queries gains as much as a query can, so that the mean is ``difference``."""
        gain = self.values.max()
        return Shape(np.append(self.values, gain), np.append(self.chances * (1 - difference / gain), difference / gain))


def shape(chances: dict[float, float]) -> Shape:
    """Return a shape from gap -> chance; all other queries are ties."""
    values, shares = np.array([0.0, *chances]), np.array([1 - sum(chances.values()), *chances.values()])
    assert abs(values @ shares) < 1e-12, "the mean gap is not zero"
    return Shape(values, shares)


RANKS = {1: 0.50, 2: 0.15, 3: 0.08, 4: 0.05, 5: 0.04, 6: 0.03, 7: 0.03, 8: 0.02, 9: 0.02, 10: 0.02, 0: 0.06}
"""How often a model ranks the right answer where; 0 where it is not found."""


def equal_models(changed: float) -> Shape:
    """Return the gaps in MRR@10 of two models that rank equally well, and differ on a share of the queries."""
    chances: dict[float, float] = {}
    for (first, share), (second, other) in product(RANKS.items(), repeat=2):
        gap = (1 / second if second else 0.0) - (1 / first if first else 0.0)
        chances[gap] = chances.get(gap, 0.0) + changed * share * other
    chances.pop(0.0)
    return shape(chances)


SHAPES = {
    "recall@1, a tenth of the queries change": shape({-1: 0.05, 1: 0.05}),
    "recall@1, half of them change": shape({-1: 0.25, 1: 0.25}),
    "MRR, a fifth of the rankings change": equal_models(0.2),
    "MRR, half of them change": equal_models(0.5),
    "MRR, gains from rank 3 to 2, losses from 1 to 2": shape({1 / 6: 0.3, -1 / 2: 0.1}),
    "MRR, gains and losses of many sizes, skewed": shape({1 / 2: 0.04, 1 / 6: 0.24, 1 / 12: 0.12, -1 / 2: 0.06, -1: 0.04}),
    "MRR, small gains, rare losses from 1 to 5": shape({0.1: 0.4, -0.8: 0.05}),
    "recall, a fifth of it gained, rarely all lost": shape({0.2: 0.25, -1: 0.05}),
}
SIZES = {
    "60 of 5": np.full(60, 5),
    "20 of 15": np.full(20, 15),
    "6 of 50": np.full(6, 50),
    "270 of 1, 1 of 30": np.array([1] * 270 + [30]),
    "200 of 1, 20 of 5": np.array([1] * 200 + [5] * 20),
    "500 of 1, 10 of 30": np.array([1] * 500 + [30] * 10),
    "half of 300 in one": np.array([1] * 150 + [150]),
    "200, sizes as 200/rank": np.maximum(1, 200 // np.arange(1, 201)),
    "10 of 1 to 60": np.array([60, 30, 20, 10, 10, 5, 5, 2, 2, 1]),
}
"""Sizes of groups of queries."""
GROUPED_SHAPES = (
    "recall@1, half of them change",
    "MRR, half of them change",
    "MRR, gains and losses of many sizes, skewed",
    "recall, a fifth of it gained, rarely all lost",
)
CORRELATIONS = (0.0, 0.3, 0.6, 1.0)
POWER_SHAPES = ("recall@1, half of them change", "MRR, half of them change", "MRR, gains from rank 3 to 2, losses from 1 to 2")


def blocks(simulations: int) -> Iterator[tuple[int, int]]:
    """Yield (number of the block, simulations in it)."""
    for number, start in enumerate(range(0, simulations, BLOCK)):
        yield number, min(BLOCK, simulations - start)


def verdicts(low: Floats, high: Floats, p: Floats) -> npt.NDArray[np.int64]:
    """Return how many are better and how many worse, by the rule of `Difference.verdict`."""
    return np.array([((low > 0) & (p < 0.05)).sum(), ((high < 0) & (p < 0.05)).sum()])


def ours(gaps: Floats, seed: int, groups: npt.NDArray[np.int64] | None = None) -> npt.NDArray[np.int64]:
    """Return the verdicts of embedfit on gaps of shape (queries, simulations) or (seeds, queries, simulations)."""
    found = evidence(gaps if gaps.ndim == 3 else gaps[None], groups=groups, seed=seed)
    return verdicts(found.low, found.high, found.p)


def in_groups(
    gaps_shape: Shape, rng: np.random.Generator, sizes: npt.NDArray[np.int64], correlation: float, size: int
) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Return gaps of shape (queries, size), and the number of each query's group.

    A query has its group's gap with a chance of the correlation's square root, and otherwise one of its own: so two queries of
    a group correlate as asked for, and each alone has the same shape as any other.
    """
    groups = np.repeat(np.arange(len(sizes)), sizes)
    common, own = gaps_shape.draw(rng, len(sizes), size)[groups], gaps_shape.draw(rng, len(groups), size)
    return np.where(rng.random(own.shape) < np.sqrt(correlation), common, own), groups


def equal_rungs(rng: np.random.Generator, n: int, models: int, size: int, shared: float = 0.6) -> Floats:
    """Return reciprocal ranks of models that are equally good, shape (size, n, models); a share of the values is the query's own."""
    values = np.array([1 / rank if rank else 0.0 for rank in RANKS])
    chances = np.array([*RANKS.values()])
    common, own = (rng.choice(values, p=chances, size=(size, n, columns)) for columns in (1, models))
    return np.where(rng.random(own.shape) < shared, common, own)


def rejected(gaps: Floats, seed: int) -> dict[str, npt.NDArray[np.int64]]:
    """Return the verdicts of other intervals, each together with the randomisation test; shape (queries, simulations)."""
    n, simulations = gaps.shape
    seen = gaps.mean(axis=0)
    flips = randomised_means(gaps, np.random.default_rng([seed, 2]))
    p = (1 + (np.abs(flips) >= np.abs(seen) - 1e-12).sum(axis=0)) / (1 + DRAWS)
    drawn = bootstrap_means(np.concatenate([gaps, gaps**2], axis=1), np.random.default_rng([seed, 1]))
    means, squares = drawn[:, :simulations], drawn[:, simulations:]
    found = {"percentile": np.quantile(means, [0.025, 0.975], axis=0)}
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw, or a simulation, of equal gaps
        # BCa: Efron and Tibshirani 1993, equations 14.10 to 14.15.
        centred = gaps - seen
        bias = stats.norm.ppf((means < seen - 1e-12).mean(axis=0) + (np.abs(means - seen) <= 1e-12).mean(axis=0) / 2)
        skew = np.nan_to_num((centred**3).sum(axis=0) / (6 * (centred**2).sum(axis=0) ** 1.5))
        shifted = bias + stats.norm.ppf([[0.025], [0.975]])
        places = np.nan_to_num(stats.norm.cdf(bias + shifted / (1 - skew * shifted)), nan=0.5)
        ordered = np.sort(means, axis=0)
        found["BCa"] = np.take_along_axis(ordered, np.clip(places * DRAWS, 0, DRAWS - 1).astype(int), axis=0)
        # Bootstrap-t: the same, section 12.5.
        error = gaps.std(axis=0) / np.sqrt(n)
        errors = np.sqrt(np.maximum(squares - means**2, 0) / n)
        scaled = np.where(errors > 1e-9, (means - seen) / errors, np.sign(means - seen) * 1e9)
        low, high = np.quantile(scaled, [0.025, 0.975], axis=0)
        found["bootstrap-t"] = np.stack([seen - high * error, seen - low * error])
    return {name: verdicts(*np.where(np.abs(ends) < 1e-12, 0, ends), p) for name, ends in found.items()}


def rate(count: int, simulations: int) -> dict[str, float]:
    """Return a share with its exact 95% interval."""
    interval = stats.binomtest(int(count), simulations).proportion_ci()
    return {"rate": int(count) / simulations, "low": float(interval.low), "high": float(interval.high)}


def false_verdicts(simulations: int) -> list[dict[str, Any]]:
    """Judge gaps without a true difference."""
    rows = []
    for (name, gaps_shape), n in product(SHAPES.items(), QUERIES):
        counts: dict[str, npt.NDArray[np.int64]] = {}
        rng = np.random.default_rng(n)
        for block, size in blocks(simulations):
            gaps = gaps_shape.draw(rng, n, size)
            found = {"embedfit": ours(gaps, block)}
            if n < 1000:  # it is known by then what they do
                found |= rejected(gaps, block)
            for method, count in found.items():
                counts[method] = counts.get(method, 0) + count
        for method, (better, worse) in counts.items():
            rows.append(
                {
                    "shape": name,
                    "queries": n,
                    "method": method,
                    "better": rate(better, simulations),
                    "worse": rate(worse, simulations),
                }
            )
    return rows


def power(simulations: int) -> list[dict[str, Any]]:
    """Judge gaps with a true difference: multiples of the one that is detectable."""
    rows = []
    for name, n in product(POWER_SHAPES, QUERIES[:3]):
        rng = np.random.default_rng(n)
        usual, largest = 0.0, float(SHAPES[name].values.max())
        for _ in range(4):  # what is detectable depends on the spread of the gaps, and that on the difference
            sample = SHAPES[name].better_by(min(usual, largest)).draw(rng, n, BLOCK)
            usual = float(evidence(sample[None]).detectable.mean())
        for times in (0.5, 0.75, 1.0, 1.25, 1.5):
            true = usual * times
            if true > largest:
                continue  # no query gains that much
            better = percentile = 0
            for block, size in blocks(simulations):
                gaps = SHAPES[name].better_by(true).draw(rng, n, size)
                better += ours(gaps, block)[0]
                percentile += rejected(gaps, block)["percentile"][0] if times == 1 else 0
            row = {"shape": name, "queries": n, "detectable": usual, "times": times, "better": rate(better, simulations)}
            rows.append(row | ({"percentile": rate(percentile, simulations)} if times == 1 else {}))
    return rows


def of_seeds(rng: np.random.Generator, n: int, size: int, seeds: int, spread: float) -> Floats:
    """Return gaps of shape (seeds, n, size) whose mean over all seeds is zero, but for one seed is off by about ``spread``.

    A share of a seed's queries, as large as the seed is off, is won or lost outright; the rest are the same for all seeds.
    """
    common = SHAPES["MRR, half of them change"].draw(rng, n, size)
    off = np.clip(rng.normal(0, spread, (seeds, 1, size)), -1, 1)
    return np.where(rng.random((seeds, n, size)) < np.abs(off), np.sign(off), common)


def resampled_seeds(gaps: Floats, seed: int) -> npt.NDArray[np.int64]:
    """Return the verdicts if seeds are drawn with replacement, and stretched by sqrt(S / (S - 1)), instead of Student's t."""
    seeds = len(gaps)
    rng = np.random.default_rng([seed, 3])
    chosen = rng.integers(seeds, size=(DRAWS, seeds))
    shares = np.stack([(chosen == one).mean(axis=1) for one in range(seeds)], axis=1)
    means = gaps.mean(axis=1)
    noise = np.sqrt(seeds / (seeds - 1)) * shares @ (means - means.mean(axis=0))
    lows, highs = extended_means(gaps.mean(axis=0), np.random.default_rng([seed, 1]))
    low, high = np.quantile(lows + noise, 0.025, axis=0), np.quantile(highs + noise, 0.975, axis=0)
    return verdicts(low, high, np.zeros_like(low))


def false_verdicts_with_seeds(simulations: int) -> list[dict[str, Any]]:
    """Judge several seeds of a training without a true difference."""
    methods: dict[str, Callable[[Floats, int], npt.NDArray[np.int64]]] = {
        "embedfit": ours,
        "seeds resampled": resampled_seeds,
        "seeds ignored": lambda gaps, seed: ours(gaps.mean(axis=0), seed),
    }
    rows = []
    for n, seeds, times in product((65, 326), (2, 3, 5), (0, 1, 3)):
        one = SHAPES["MRR, half of them change"]
        spread = times * float(np.sqrt(one.values**2 @ one.chances / n))
        counts = dict.fromkeys(methods, np.zeros(2, np.int64))
        rng = np.random.default_rng([n, seeds, times])
        for block, size in blocks(simulations):
            gaps = of_seeds(rng, n, size, seeds, spread)
            counts = {method: counts[method] + judge(gaps, block) for method, judge in methods.items()}
        for method, count in counts.items():
            wrong = rate(count.max(), simulations)
            rows.append({"queries": n, "seeds": seeds, "spread over error of queries": times, "method": method, "better or worse": wrong})
    return rows


def false_verdicts_of_many(simulations: int, comparisons: int = 8) -> list[dict[str, Any]]:
    """Judge several comparisons at once, none with a true difference, by adjusted p-values and by plain ones."""
    rows = []
    for (name, gaps_shape), n in product(SHAPES.items(), (65, 326)):
        any_adjusted = any_plain = 0
        rng = np.random.default_rng([n, comparisons])
        for block, size in blocks(simulations):
            found = [evidence(gaps_shape.draw(rng, n, size)[None], seed=block) for _ in range(comparisons)]
            p = np.stack([one.p for one in found], axis=1)
            shown = np.stack([(one.low > 0) | (one.high < 0) for one in found], axis=1)
            any_plain += int((shown & (p < 0.05)).any(axis=1).sum())
            any_adjusted += int((shown & (np.array([holm(row) for row in p]) < 0.05)).any(axis=1).sum())
        rows.append(
            {
                "shape": name,
                "queries": n,
                "comparisons": comparisons,
                "adjusted": rate(any_adjusted, simulations),
                "plain": rate(any_plain, simulations),
            }
        )
    return rows


def false_verdicts_in_groups(simulations: int) -> list[dict[str, Any]]:
    """Judge gaps without a true difference, of queries that stand in groups."""
    rows = []
    for name, (sizes_name, sizes), correlation in product(GROUPED_SHAPES, SIZES.items(), CORRELATIONS):
        rng = np.random.default_rng([len(sizes), int(10 * correlation)])
        ours_, alone, missed, width = np.zeros(2, np.int64), np.zeros(2, np.int64), np.zeros(2, np.int64), 0.0
        for block, size in blocks(simulations):
            gaps, groups = in_groups(SHAPES[name], rng, sizes, correlation, size)
            found = evidence(gaps[None], groups=groups, seed=block)
            ours_ += verdicts(found.low, found.high, found.p)
            missed += np.array([(found.low > 0).sum(), (found.high < 0).sum()])
            width += float((found.high - found.low).sum())
            if block == 0:
                alone += ours(gaps, block)
        rows.append(
            {
                "shape": name,
                "sizes": sizes_name,
                "correlation": correlation,
                "better": rate(ours_[0], simulations),
                "worse": rate(ours_[1], simulations),
                "interval above zero": rate(missed[0], simulations),
                "interval below zero": rate(missed[1], simulations),
                "width": width / simulations,
                "taken for independent": rate(alone.max(), min(BLOCK, simulations)),
            }
        )
    return rows


def power_in_groups(simulations: int) -> list[dict[str, Any]]:
    """Judge a true difference that as many independent queries show in four cases of five, where the correlation is zero."""
    rows = []
    for name, (sizes_name, sizes) in product(POWER_SHAPES, SIZES.items()):
        n, largest = int(sizes.sum()), float(SHAPES[name].values.max())
        rng = np.random.default_rng(n)
        usual = 0.0
        for _ in range(4):
            usual = min(largest, float(evidence(SHAPES[name].better_by(usual).draw(rng, n, BLOCK)[None]).detectable.mean()))
        alone = together = 0
        widths = np.zeros(2)
        for block, size in blocks(simulations):
            gaps, groups = in_groups(SHAPES[name].better_by(usual), rng, sizes, 0.0, size)
            for place, found in enumerate((evidence(gaps[None], seed=block), evidence(gaps[None], groups=groups, seed=block))):
                better = int(verdicts(found.low, found.high, found.p)[0])
                alone, together = (alone + better, together) if place == 0 else (alone, together + better)
                widths[place] += float((found.high - found.low).sum()) / simulations
        rows.append(
            {
                "shape": name,
                "sizes": sizes_name,
                "difference": usual,
                "independent": rate(alone, simulations),
                "in groups": rate(together, simulations),
                "widths": widths.tolist(),
            }
        )
    return rows


def best_of_several(simulations: int, models: int = 13) -> list[dict[str, Any]]:
    """Look for the best of several models: all equal; and with the first so much worse that it is shown in four cases of five."""
    rows = []
    for n, grouped in ((65, False), (326, False), (195, True)):
        rng = np.random.default_rng([n, models])
        sizes = n // 3 if grouped else n
        groups = np.repeat(np.arange(sizes), 3) if grouped else None
        counts = dict.fromkeys(("alone", "first", "any", "worse alone", "worse"), 0)
        for number in range(simulations):
            [values] = equal_rungs(rng, sizes, models, 1)
            values = values if groups is None else values[groups]

            def scores(columns: Floats, groups: Any = groups, n: int = n) -> list[Scores]:
                ids = tuple(map(str, range(n)))
                return [Scores("", ids, {"mrr@10": column}, np.ones(n, np.int64), groups) for column in columns.T]

            every = scores(values)
            best = int(np.argmax(values.mean(axis=0)))
            as_good = may_be_best(every, seed=number)
            counts["alone"] += not not_worse(every[best], every[0], seed=number)
            counts["first"] += not as_good[0]
            counts["any"] += not all(as_good)
            lost = rng.random(sizes) < 0.35 * np.sqrt(65 / sizes)
            worse = values.copy()
            worse[:, 0] *= ~(lost if groups is None else lost[groups])
            every = scores(worse)
            counts["worse alone"] += not not_worse(every[1], every[0], seed=number)
            counts["worse"] += not may_be_best(every, seed=number)[0]
        case = f"{n} queries{' in groups of 3' if grouped else ''}"
        rows.append({"case": case, "models": models, **{name: rate(count, simulations) for name, count in counts.items()}})
    return rows


def percent(share: dict[str, float]) -> str:
    """Return a share as 2.1% (1.5 to 2.8)."""
    return f"{100 * share['rate']:.1f}% ({100 * share['low']:.1f} to {100 * share['high']:.1f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def markdown(found: dict[str, Any]) -> str:
    """Return all tables."""
    counts = ", ".join(f"{name} {count:,}" for name, count in found["simulations"].items())
    parts = [
        f"Each figure with its exact 95% interval. Simulations: {counts}.",
        "",
        '## False "better" and "worse"',
        "",
    ]
    rows = [
        [row["shape"], f"{row['queries']:,}", percent(row["better"]), percent(row["worse"])]
        for row in found["false verdicts"]
        if row["method"] == "embedfit"
    ]
    parts += [table(["gaps, mean zero", "queries", "better", "worse"], rows), "", "## The same with other methods: better / worse, %", ""]
    by_cell: dict[tuple[str, int], dict[str, str]] = {}
    for row in found["false verdicts"]:
        pair = f"{100 * row['better']['rate']:.1f} / {100 * row['worse']['rate']:.1f}"
        by_cell.setdefault((row["shape"], row["queries"]), {})[row["method"]] = pair
    methods = ["embedfit", "percentile", "BCa", "bootstrap-t"]
    rows = [[name, f"{n:,}", *(cell[method] for method in methods)] for (name, n), cell in by_cell.items() if len(cell) > 1]
    parts += [table(["gaps, mean zero", "queries", *methods], rows), "", "## Power", ""]
    steps = sorted({row["times"] for row in found["power"]})
    curves: dict[tuple[str, int, float], dict[float | str, str]] = {}
    for row in found["power"]:
        cell = curves.setdefault((row["shape"], row["queries"], row["detectable"]), {})
        cell[row["times"]] = f"{100 * row['better']['rate']:.0f}%"
        if "percentile" in row:
            cell["percentile"] = f"{100 * row['percentile']['rate']:.0f}%"
    head = ["gaps", "queries", "detectable", *(f"x {step:g}" for step in steps), "percentile, x 1"]
    rows = [
        [name, f"{n:,}", f"{size:.3f}", *(cell.get(step, "") for step in [*steps, "percentile"])]
        for (name, n, size), cell in curves.items()
    ]
    parts += ["No figure stands where no query gains that much.", "", table(head, rows), "", "## Several seeds", ""]
    by_case: dict[tuple[int, int, int], dict[str, str]] = {}
    for row in found["seeds"]:
        key = (row["queries"], row["seeds"], row["spread over error of queries"])
        by_case.setdefault(key, {})[row["method"]] = percent(row["better or worse"])
    rows = [[f"{key[0]}", f"{key[1]}", f"{key[2]}", *cell.values()] for key, cell in by_case.items()]
    head = ["queries", "seeds", "spread of seeds / error of queries", *next(iter(by_case.values()))]
    parts += ["The larger of false better and worse.", "", table(head, rows), "", "## Eight comparisons at once: any false verdict", ""]
    rows = [[row["shape"], f"{row['queries']}", percent(row["adjusted"]), percent(row["plain"])] for row in found["many"]]
    parts += [table(["gaps, mean zero", "queries", "Holm", "not adjusted"], rows), "", "## Queries in groups: no true difference", ""]
    rows = [
        [
            row["shape"],
            row["sizes"],
            f"{row['correlation']:g}",
            percent(row["better"]),
            percent(row["worse"]),
            f"{100 * row['interval above zero']['rate']:.1f} / {100 * row['interval below zero']['rate']:.1f}",
            f"{row['width']:.3f}",
            f"{100 * row['taken for independent']['rate']:.0f}%",
        ]
        for row in found["groups"]
    ]
    head = ["gaps, mean zero", "groups", "correlation", "better", "worse", "interval misses, % above / below", "its width"]
    head.append("better or worse, taken for independent")
    parts += [table(head, rows), "", "## The price of groups where queries are independent: better", ""]
    rows = [
        [
            row["shape"],
            row["sizes"],
            f"{row['difference']:.3f}",
            *(percent(row[name]) for name in ("independent", "in groups")),
            " / ".join(f"{width:.3f}" for width in row["widths"]),
        ]
        for row in found["power in groups"]
    ]
    head = ["gaps", "groups", "true difference", "each query alone", "in groups", "widths of the intervals"]
    parts += [table(head, rows), "", "## The best of 13 models", ""]
    names = ("alone", "first", "any", "worse alone", "worse")
    rows = [[row["case"], *(percent(row[name]) for name in names)] for row in found["best"]]
    head = [
        "",
        "all equal: first against the leader, one comparison",
        "first, `may_be_best`",
        "any of them",
        "first truly worse: one comparison",
    ]
    return "\n".join([*parts, table([*head, "`may_be_best`"], rows), ""])


def main() -> None:
    """Simulate, and write results/verdict.json and verdict.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--only", nargs="+", help="Parts to simulate; the others are kept as they were.")
    arguments = parser.parse_args()
    simulations = arguments.simulations
    start = time.process_time()
    found: dict[str, Any] = json.loads((RESULTS / "verdict.json").read_text()) if arguments.only else {}
    found.setdefault("simulations", {})
    parts: dict[str, Callable[[int], list[dict[str, Any]]]] = {
        "false verdicts": false_verdicts,
        "power": power,
        "seeds": false_verdicts_with_seeds,
        "many": false_verdicts_of_many,
        "groups": false_verdicts_in_groups,
        "power in groups": power_in_groups,
        "best": best_of_several,
    }
    RESULTS.mkdir(exist_ok=True)
    for name in arguments.only or parts:
        found[name] = parts[name](simulations)
        found["simulations"][name] = simulations
        print(f"{name}: {time.process_time() - start:.0f} s", flush=True)
    (RESULTS / "verdict.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "verdict.md").write_text(markdown(found))
    print(markdown(found))


if __name__ == "__main__":
    main()
