"""How often the promise of precision is broken, how good the probabilities are, and how often conformal sets miss.

- **simulated**: queries with known probabilities, alone and in groups, overconfident scores, some queries without an answer. The
  calibrator, the threshold and the sets come from 60 to 1,000 queries: out of fold as `calibrate` does it, from the same queries without
  folds, and from halves. The precision over the threshold is then known.
- **banking77**: 200 random splits of BANKING77. 10 queries for each intent are examples, the score is nearest examples plus documents
  with all-MiniLM-L6-v2, and the precision is that of 6,000 other queries. Calibration queries are others than the
  examples, or the examples themselves out of fold, as in a run. Then the same with 15 intents that nobody knows, and under label shift.
- **methods**: what turns scores into probabilities, on the same splits: log loss and calibration error of the best answer.

It needs ``../shared/data/bench/banking77``; vectors are encoded once (several minutes) and kept in ``runs/precision``. It takes an
hour of one core.

    python benchmarks/precision.py [--splits 200] [--simulations 200] [--only simulated ...]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from scipy.special import log_softmax
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from embedfit.evaluation import calibration, statistics, threshold
from embedfit.evaluation.abstention import abstention
from embedfit.evaluation.calibrate import calibrate
from embedfit.evaluation.calibration import Calibrator, best_answers, out_of_fold
from embedfit.evaluation.threshold import Threshold, choose_threshold

RESULTS = Path(__file__).parent / "results"
DATA = Path(__file__).parents[2] / "shared" / "data" / "bench" / "banking77"
VECTORS = Path("runs/precision/banking77.npz")
MODEL = "all-MiniLM-L6-v2"
SCALE = 14.0
PER_LABEL = 10
PRECISION = 0.95
HELD = 6_000
"""Number of queries that measure the true precision."""
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def rate(hits: list[bool]) -> dict[str, float]:
    """Return a share with its exact 95% interval."""
    interval = stats.binomtest(int(sum(hits)), len(hits)).proportion_ci()
    return {"rate": float(np.mean(hits)), "low": float(interval.low), "high": float(interval.high)}


# Simulated queries


@dataclass(frozen=True)
class World:
    """Queries with known probabilities.

    Attributes:
        heat: Divisor of the true log-probabilities; below 1 scores are overconfident.
        without_answer: Share of queries without an answer, for a typical query.
        sizes: Sizes of groups of near duplicates.
        shared: Chance that a query of a group agrees with its first query in everything.
    """

    heat: float = 0.5
    without_answer: float = 0.02
    sizes: tuple[int, ...] = (1,)
    shared: float = 0.0

    def draw(self, rng: np.random.Generator, queries: int) -> tuple[Floats, npt.NDArray[np.bool_], Ints, Floats]:
        """Return scores, relevance, groups, and the true probability of each candidate; at least so many queries."""
        groups = np.repeat(np.arange(queries), rng.choice(self.sizes, queries))[:queries]
        logits = rng.normal(0, 2, (queries, 10))
        logits[:, 0] += 2 + rng.exponential(8, queries)
        level, uniform, answer = rng.normal(0, 1, queries), rng.random(queries), rng.random(queries)
        same, first = rng.random(queries) < self.shared, np.searchsorted(groups, groups)
        for values in (logits, level, uniform, answer):
            values[same] = values[first][same]
        odds = np.log(1 / self.without_answer - 1) if self.without_answer else 50.0
        has_answer = 1 / (1 + np.exp(-(2 * level + odds)))
        shares = np.exp(log_softmax(logits, axis=1))
        relevant = np.zeros(shares.shape, bool)
        relevant[np.arange(queries), (shares.cumsum(axis=1) > uniform[:, None]).argmax(axis=1)] = answer < has_answer
        return log_softmax(logits, axis=1) / self.heat + 2 * level[:, None], relevant, groups, shares * has_answer[:, None]


WORLDS = {
    "single queries": World(),
    "single queries, all with an answer, scores right": World(1.0, 0.0),
    "groups of 1 to 3 that agree": World(sizes=(1, 1, 2, 3), shared=1.0),
    "groups of 1 to 3, half agree": World(sizes=(1, 1, 2, 3), shared=0.5),
    "groups of 5 that agree": World(sizes=(5,), shared=1.0),
    "groups of 1, one in 20 of 10": World(sizes=(1,) * 19 + (10,), shared=0.8),
}


def in_folds(scores: Floats, relevant: npt.NDArray[np.bool_], groups: Ints) -> tuple[Calibrator, Threshold]:
    """Calibrate as `calibrate` does."""
    best, correct = best_answers(out_of_fold(scores, relevant, groups), relevant)
    return Calibrator.fit(scores, relevant, groups), choose_threshold(best, correct, groups, precision=PRECISION)


def on_the_same(scores: Floats, relevant: npt.NDArray[np.bool_], groups: Ints) -> tuple[Calibrator, Threshold]:
    """Calibrate, and choose the threshold on the same queries."""
    calibrator = Calibrator.fit(scores, relevant, groups)
    best, correct = best_answers(calibrator.probabilities(scores), relevant)
    return calibrator, choose_threshold(best, correct, groups, precision=PRECISION)


def on_halves(scores: Floats, relevant: npt.NDArray[np.bool_], groups: Ints) -> tuple[Calibrator, Threshold]:
    """Calibrate on one half, and choose the threshold on the other."""
    first = groups % 2 == 0
    calibrator = Calibrator.fit(scores[first], relevant[first], groups[first])
    best, correct = best_answers(calibrator.probabilities(scores[~first]), relevant[~first])
    return calibrator, choose_threshold(best, correct, groups[~first], precision=PRECISION)


WAYS = {"out of fold": in_folds, "same queries": on_the_same, "halves": on_halves}


def simulated(simulations: int) -> Iterator[dict[str, Any]]:
    """Yield how often the promise is broken in each world, for each number of queries and each way."""
    for name, world in WORLDS.items():
        scores, _, _, truth = world.draw(np.random.default_rng(1), 5_000)
        top = np.arange(len(scores)), scores.argmax(axis=1)
        for n in (60, 100, 300, 1000):
            for way, choose in WAYS.items():
                if way != "out of fold" and (n < 100 or "single" not in name):
                    continue
                rng, broken, covered = np.random.default_rng(n), [], []
                for _ in range(simulations):
                    calibrator, chosen = choose(*world.draw(rng, n)[:3])
                    trusted = chosen.trusted(calibrator.probabilities(scores)[top]) if chosen.value else np.zeros(len(scores), bool)
                    broken.append(bool(trusted.any() and truth[top][trusted].mean() < PRECISION))
                    covered.append(float(trusted.mean()))
                yield {"world": name, "queries": n, "way": way, "broken": rate(broken), "coverage": float(np.mean(covered))}


# BANKING77


@dataclass(frozen=True)
class Banking:
    """Vectors, labels and groups of near duplicates of BANKING77."""

    queries: npt.NDArray[np.float32]
    documents: npt.NDArray[np.float32]
    labels: Ints
    groups: Ints

    def scores(self, rows: Ints, examples: Ints, kept: Ints) -> Floats:
        """Return log-scores of the kept documents: half the softmax of the documents, half the votes of the examples (kNN-LM)."""
        own = shares(self.queries[rows] @ self.documents[kept].T)
        answers = (self.labels[examples][:, None] == kept).astype(np.float32)
        return np.log(own / 2 + shares(self.queries[rows] @ self.queries[examples].T) @ answers / 2).astype(np.float64)

    def split(self, seed: int, unknown: int) -> tuple[Ints, Ints, Ints]:
        """Return examples, other queries in random order, and the documents that are known."""
        rng = np.random.default_rng(seed)
        kept = np.sort(rng.permutation(len(self.documents))[unknown:])
        order = rng.permutation(len(self.labels))
        examples = np.concatenate([order[self.labels[order] == label][:PER_LABEL] for label in kept])
        return examples, rng.permutation(np.setdiff1d(order, examples)), kept

    def relevant(self, rows: Ints, kept: Ints) -> npt.NDArray[np.bool_]:
        """Return whether a kept document is right, shape (rows, kept)."""
        return self.labels[rows][:, None] == kept


def shares(similarities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the softmax of each row."""
    powers = np.exp(SCALE * (similarities - similarities.max(axis=1, keepdims=True)))
    return powers / powers.sum(axis=1, keepdims=True)


def banking() -> Banking:
    """Return BANKING77, encoded now or before."""
    if not VECTORS.exists():
        from embedfit.data.load import load
        from embedfit.data.split import group_numbers
        from embedfit.encode.local import LocalEncoder
        from embedfit.template import DOCUMENT_TEMPLATE
        from embedfit.tune.frozen import vectors_of

        dataset = load(DATA)
        queries, documents = vectors_of(LocalEncoder(MODEL), dataset, DOCUMENT_TEMPLATE)
        places, groups = {id: place for place, id in enumerate(dataset.corpus)}, group_numbers(dataset)
        labels = np.array([places[next(iter(dataset.qrels[id]))] for id in dataset.queries])
        VECTORS.parent.mkdir(parents=True, exist_ok=True)
        np.savez(VECTORS, Q=queries, D=documents, lab=labels, groups=np.array([groups[id] for id in dataset.queries]))
    stored = np.load(VECTORS)
    return Banking(stored["Q"], stored["D"], stored["lab"], stored["groups"])


def out_of_fold_scores(data: Banking, examples: Ints, kept: Ints, seed: int) -> Floats:
    """Return the scores of the examples with the examples of the other four folds."""
    _, number = np.unique(data.groups[examples], return_inverse=True)
    fold = np.random.default_rng(seed).permutation(number.max() + 1)[number] % 5
    scores = np.empty((len(examples), len(kept)))
    for place in range(5):
        scores[fold == place] = data.scores(examples[fold == place], examples[fold != place], kept)
    return scores


def on_banking(splits: int) -> Iterator[dict[str, Any]]:
    """Yield figures for each way of calibrating, over random splits."""
    data = banking()
    ways = [(500, 0), (0, 0), (1000, 15), (1000, 0), (500, 15)]
    for calibrating, unknown in ways:
        rows = [one_split(data, seed, calibrating, unknown) for seed in range(splits)]
        row: dict[str, Any] = {
            "calibration": f"{calibrating} other queries" if calibrating else f"the {77 * PER_LABEL} examples, out of fold",
            "unknown_labels": unknown,
            "splits": splits,
            **{name: rate([found[name] for found in rows]) for name in ("broken", "broken_shift", "broken_hard", "no_threshold")},
        }
        yield row | {name: float(np.nanmean([found[name] for found in rows])) for name in rows[0] if name not in row}


def one_split(data: Banking, seed: int, calibrating: int, unknown: int) -> dict[str, Any]:
    """Return what one split shows; precision is that of queries that neither are examples nor calibrate."""
    examples, rest, kept = data.split(seed, unknown)
    used, left = (rest[:calibrating], rest[calibrating:][:HELD]) if calibrating else (examples, rest[:HELD])
    scores = data.scores(used, examples, kept) if calibrating else out_of_fold_scores(data, examples, kept, seed)
    relevant, groups = data.relevant(used, kept), data.groups[used]
    assessed = calibrate(scores, relevant, groups, precision=PRECISION)
    trust, evidence = assessed.trust, assessed.evidence
    right = data.relevant(left, kept)
    probabilities = trust.calibrator.probabilities(data.scores(left, examples, kept))
    best, correct = best_answers(probabilities, right)
    trusted, answerable = trust.threshold.trusted(best), right.any(axis=1)
    rng = np.random.default_rng(seed)
    shifted = rng.gamma(0.5, size=77)[data.labels[left]]
    accuracy = np.bincount(data.labels[left], correct, 77) / np.bincount(data.labels[left], minlength=77)
    hard = np.where(accuracy <= np.quantile(accuracy[kept], 0.25), 5.0, 1.0)[data.labels[left]]

    def broken(weights: Floats) -> bool:
        return bool(trusted.any() and np.average(correct[trusted], weights=weights[trusted]) < PRECISION)

    sizes = trust.sets.sizes(probabilities)
    ranks = (probabilities > np.where(right, probabilities, 0).max(axis=1, keepdims=True)).sum(axis=1)
    told = abstention(best, answerable, trust.threshold) if unknown else None
    error, chance = error_of(best, correct)
    return {
        "broken": broken(np.ones(len(left))),
        "broken_shift": broken(shifted),
        "broken_hard": broken(hard),
        "no_threshold": trust.threshold.value is None,
        "coverage": float(trusted.mean()),
        "coverage_stated": trust.threshold.coverage,
        "coverage_in_interval": trust.threshold.coverage_low <= trusted.mean() <= trust.threshold.coverage_high,
        "precision": float(correct[trusted].mean()) if trusted.any() else np.nan,
        "precision_shift": float(np.average(correct[trusted], weights=shifted[trusted])) if trusted.any() else np.nan,
        "precision_hard": float(np.average(correct[trusted], weights=hard[trusted])) if trusted.any() else np.nan,
        "accuracy": float(correct.mean()),
        "error": error,
        "error_chance": chance,
        "error_stated": evidence.reliability.error,
        "error_stated_chance": evidence.reliability.chance,
        "error_stated_excess": evidence.reliability.excess,
        "held": float((ranks < sizes)[answerable].mean()),
        "set_size": float(sizes[answerable].mean()),
        "auroc": told.auroc if told else np.nan,
        "auroc_stated": evidence.abstention.auroc if evidence.abstention else np.nan,
        "false_answers": told.false_answers if told else np.nan,
    }


def error_of(probability: Floats, correct: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Return the calibration error over 15 bins of equal size, and that of perfect probabilities (by the normal distribution)."""
    bins = np.array_split(np.argsort(probability), 15)
    error = sum(abs((probability[part] - correct[part]).sum()) for part in bins)
    chance = sum(np.sqrt(2 / np.pi * (probability[part] * (1 - probability[part])).sum()) for part in bins)
    return float(error / len(correct)), float(chance / len(correct))


# What turns scores into probabilities


Method = Callable[[Floats, npt.NDArray[np.bool_], Floats], Floats]


def softmax_of(_: Floats, __: npt.NDArray[np.bool_], scores: Floats) -> Floats:
    """Return the softmax of the scores as it is."""
    return np.exp(log_softmax(scores, axis=1)).max(axis=1)


def temperature(scores: Floats, relevant: npt.NDArray[np.bool_], others: Floats) -> Floats:
    """Scale the temperature alone (Guo et al. 2017)."""
    return np.exp(log_softmax(others / calibration._temperature(scores, relevant, 1.0), axis=1)).max(axis=1)


def logistic(features: Callable[[Floats], Floats]) -> Method:
    """Return a logistic regression on features of the largest share."""

    def method(scores: Floats, relevant: npt.NDArray[np.bool_], others: Floats) -> Floats:
        correct = relevant[np.arange(len(scores)), scores.argmax(axis=1)]
        model = LogisticRegression(C=100).fit(features(softmax_of(scores, relevant, scores)), correct)
        return model.predict_proba(features(softmax_of(scores, relevant, others)))[:, 1]

    return method


def isotonic(scores: Floats, relevant: npt.NDArray[np.bool_], others: Floats) -> Floats:
    """Fit a monotone step function (Zadrozny and Elkan 2002)."""
    correct = relevant[np.arange(len(scores)), scores.argmax(axis=1)]
    model = IsotonicRegression(out_of_bounds="clip", y_min=0, y_max=1).fit(softmax_of(scores, relevant, scores), correct)
    return model.predict(softmax_of(scores, relevant, others))


def ours(spreads: tuple[float, ...] = tuple(calibration._SPREADS.tolist())) -> Method:
    """Return the calibrator of embedfit, with these standard deviations of the priors."""

    def method(scores: Floats, relevant: npt.NDArray[np.bool_], others: Floats) -> Floats:
        usual, calibration._SPREADS = calibration._SPREADS, np.array(spreads)
        best = Calibrator.fit(scores, relevant).probabilities(others).max(axis=1)
        calibration._SPREADS = usual
        return best

    return method


METHODS: dict[str, Method] = {
    "softmax": softmax_of,
    "temperature": temperature,
    "Platt": logistic(lambda share: np.log(share / (1 - share + 1e-9))[:, None]),
    "beta": logistic(lambda share: np.stack([np.log(share), -np.log(1 - share + 1e-9)], axis=1)),
    "isotonic": isotonic,
    "embedfit": ours(),
    "constant alone": ours((1.5, 1e-3, 1e-3, 1e-3, 1e-3)),
    "wider priors": ours((3, 2, 2, 2, 2)),
    "narrower priors": ours((0.75, 0.25, 0.25, 0.25, 0.25)),
}


def compared(splits: int) -> Iterator[dict[str, Any]]:
    """Yield log loss and calibration error of each method."""
    data = banking()
    for unknown in (0, 15):
        for n in (60, 150, 500, 1500):
            figures: dict[str, list[tuple[float, float]]] = {name: [] for name in METHODS}
            for seed in range(splits):
                examples, rest, kept = data.split(seed, unknown)
                used, left = rest[:n], rest[n : n + 6000]
                scores, others = data.scores(used, examples, kept), data.scores(left, examples, kept)
                correct = data.relevant(left, kept)[np.arange(len(left)), others.argmax(axis=1)]
                for name, method in METHODS.items():
                    found = np.clip(method(scores, data.relevant(used, kept), others), 1e-4, 1 - 1e-4)
                    figures[name].append((float(-np.log(np.where(correct, found, 1 - found)).mean()), error_of(found, correct)[0]))
            for name, values in figures.items():
                loss, error = np.mean(values, axis=0)
                yield {"method": name, "unknown_labels": unknown, "queries": n, "log_loss": float(loss), "error": float(error)}


def tables(found: dict[str, Any]) -> Iterator[str]:
    """Yield the results as lines of Markdown."""

    def share(value: dict[str, float]) -> str:
        return f"{value['rate']:.1%} ({value['low'] * 100:.1f} to {value['high'] * 100:.1f})"

    if "simulated" in found:
        yield from ("## Simulated: promise of 95% precision broken, and share of queries answered", "")
        yield from ("| queries | number | way | broken | answered |", "| --- | --- | --- | --- | --- |")
        for row in found["simulated"]:
            yield f"| {row['world']} | {row['queries']} | {row['way']} | {share(row['broken'])} | {row['coverage']:.1%} |"
        yield ""
    if "banking77" in found:
        yield from ("## BANKING77, 95% precision promised", "")
        yield (
            "| calibration | unknown intents | splits | broken | ... random label shift | ... hard labels five times as often | "
            "no threshold | right, of all | answered (stated) | right, of answered | calibration error (chance) | "
            "stated, beyond chance | 95% sets hold | "
            "their size | AUROC | false answers |"
        )
        yield "|" + " --- |" * 16
        for row in found["banking77"]:
            broken = " | ".join(share(row[name]) for name in ("broken", "broken_shift", "broken_hard", "no_threshold"))
            told = f"{row['auroc']:.3f} | {row['false_answers']:.1%}" if row["unknown_labels"] else " | "
            yield (
                f"| {row['calibration']} | {row['unknown_labels']} | {row['splits']} | {broken} | {row['accuracy']:.1%} | "
                f"{row['coverage']:.1%} ({row['coverage_stated']:.1%}) | {row['precision']:.1%} | "
                f"{row['error']:.3f} ({row['error_chance']:.3f}) | "
                f"{row['error_stated_excess']:.3f} | {row['held']:.1%} | {row['set_size']:.2f} | {told} |"
            )
        yield ""
    if "methods" in found:
        yield from ("## Methods: log loss / calibration error of the best answer", "")
        columns = list(dict.fromkeys((row["unknown_labels"], row["queries"]) for row in found["methods"]))
        yield "| | " + " | ".join(f"{unknown} unknown, {n} queries" for unknown, n in columns) + " |"
        yield "|" + " --- |" * (len(columns) + 1)
        for name in METHODS:
            cells = [f"{row['log_loss']:.3f} / {row['error']:.3f}" for row in found["methods"] if row["method"] == name]
            yield f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Run what is asked for, and write results/precision.json and precision.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--simulations", type=int, default=200)
    parser.add_argument("--only", nargs="*", choices=["simulated", "banking77", "methods"], default=["simulated", "banking77", "methods"])
    options = parser.parse_args()
    threshold.DRAWS = statistics.DRAWS = 2_000  # for speed
    path = RESULTS / "precision.json"
    parts = {
        "simulated": lambda: simulated(options.simulations),
        "banking77": lambda: on_banking(options.splits),
        "methods": lambda: compared(max(1, options.splits // 10)),
    }
    for name in options.only:
        start, rows = time.perf_counter(), []
        for row in parts[name]():
            rows.append(row)
            print(json.dumps(row), flush=True)
        print(f"{name}: {time.perf_counter() - start:.0f} s")
        found = json.loads(path.read_text()) if path.exists() else {}  # now, since another process may do another part
        found[name] = rows
        path.write_text(json.dumps(found, indent=1) + "\n")
        path.with_suffix(".md").write_text("\n".join(tables(found)) + "\n")


if __name__ == "__main__":
    main()
