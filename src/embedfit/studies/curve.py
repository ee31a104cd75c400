"""Learning curve: the score of models that were trained on growing numbers of labelled pairs."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

from embedfit import progress
from embedfit.data.dataset import Dataset
from embedfit.data.split import Split, group_numbers
from embedfit.errors import ConfigError, DataError, StorageError
from embedfit.evaluation.score import PerQuery, score_run
from embedfit.files import digest, writing
from embedfit.metrics import check_metric
from embedfit.retrieve.run import Run, joined, named
from embedfit.studies.forecast import LEAST_PAIRS, MORE, Curve, fit_curve

TrainAndSearch: TypeAlias = Callable[[Dataset, Dataset, Path], Run]
"""Function that trains on the first data set, in a working folder, and returns the Run on the queries of the second."""
_PARTS = (16, 8, 4, 2, 1)
"""Divisors of the training set: one model is trained on a sixteenth of the queries, one on an eighth, and so on."""


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
    """Train on growing subsets of the training queries, measure each model on the same test queries, and forecast.

    The rankings of each model are kept in the folder, so the same call resumes after a crash. The models are not kept.

    Args:
        dataset: Data set with the queries of every split.
        splits: One split, or one per fold. Each trains on subsets of its own train part; the test parts are scored together.
        train_and_search: Function that trains and searches. If it can resume in its working folder, so can the curve.
        folder: Folder for the rankings.
        base: Run of the untrained model on the test queries, for the curve's point at 0 pairs.
        metric: Metric of the curve.
        sizes: Numbers of training queries. By default a sixteenth, an eighth, a quarter, a half and all of the smallest train
            part.
        more: Numbers of further pairs to forecast for.
        identity: Text that changes whenever the result of ``train_and_search`` could: its name and settings.
        group_by: Metadata field; queries with the same value are drawn together, as near duplicates are.
        seed: Seed of the subsets and of the bootstrap.

    Raises:
        ConfigError: A size exceeds the training queries, or the metric is unknown.
        DataError: There are too few training queries for a curve.
        StorageError: The folder holds another curve, or cannot be written.
    """
    folder = Path(folder)
    depth = metric.partition("@")[2]
    k = int(depth) if depth.isdecimal() else 10
    check_metric(metric, [k])
    most = min(len(split.train) for split in splits)
    sizes = sorted({most // part for part in _PARTS if most // part >= LEAST_PAIRS} if sizes is None else set(sizes))
    if not sizes:
        raise DataError("data", f"has {most} training queries", expected=f"at least {LEAST_PAIRS} for a learning curve")
    if sizes[0] < 1 or sizes[-1] > most:
        raise ConfigError(f"sizes are {sizes}; expected numbers from 1 to {most}, the training queries there are")
    ordered = [nested_order(dataset, split.train, seed + number) for number, split in enumerate(splits)]
    runs = [base]

    def step(size: int, number: int) -> str:
        return f"training on {size:,} queries" + (f", fold {number + 1} of {len(splits)}" if len(splits) > 1 else "")

    with progress.plan("curve", [step(size, number) for size in sizes for number in range(len(splits))]) as plan:
        for size in sizes:
            parts = []
            for number, split in enumerate(splits):
                train, test = dataset.select(ordered[number][:size]), dataset.select(split.test)
                with plan.step(step(size, number)):
                    parts.append(_kept(train, test, train_and_search, folder, f"{size}-{number}", identity))
            runs.append(joined(parts))
    query_ids = [id for split in splits for id in split.test]
    values = [_values(run, dataset, metric, k, query_ids) for run in runs]
    numbers = group_numbers(dataset, group_by)
    groups = np.array([numbers[id] for id in query_ids])
    return fit_curve([0, *sizes], np.stack(values, axis=1), metric=metric, more=more, groups=groups, seed=seed)


def nested_order(dataset: Dataset, ids: Sequence[str], seed: int = 0) -> tuple[str, ...]:
    """Return query ids in an order whose every prefix covers the labels as evenly as possible.

    One query of each label comes first, with the labels in random order. After that each label's share of a prefix is its
    share of the whole: the j-th (from 0) of a label's m queries stands at j / m. This is Adams' divisor method of apportionment
    (Balinski and Young, Fair Representation, 2nd ed. 2001), under which a longer prefix contains every shorter one.
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


def _kept(train: Dataset, test: Dataset, train_and_search: TrainAndSearch, folder: Path, name: str, identity: str) -> Run:
    """Return the Run of a model trained on a subset: read from disk, or else by training the model."""
    path = folder / f"{name}.npz"
    document_ids = tuple(sorted(test.corpus))
    key = digest([identity, train.digest(), test.digest()])
    if path.exists():
        with np.load(path, allow_pickle=False) as kept:
            if str(kept["identity"]) != key:
                raise StorageError(f"{folder}: holds a curve of other data or another training; fix: give another folder, or remove it")
            return Run(tuple(test.queries), named(document_ids, kept["ranked"]), kept["ranked"], kept["scores"])
    work = folder / ".embedfit-work" / name  # removed at the end, so its name must not collide
    work.mkdir(parents=True, exist_ok=True)
    run = train_and_search(train, test, work)
    if run.query_ids != tuple(test.queries) or run.document_ids != named(document_ids, run.ranked):
        raise ConfigError("train_and_search must return a Run of the test queries, in their order, on the whole corpus")
    with writing(path) as file:
        np.savez(file, identity=key, ranked=run.ranked, scores=run.scores)
    shutil.rmtree(work, ignore_errors=True)  # one model per point would fill the disk
    return run


def _values(run: Run, dataset: Dataset, metric: str, k: int, query_ids: Sequence[str]) -> PerQuery:
    """Return the metric of each query."""
    scores = score_run(run, dataset.qrels, ks=[k])
    place = {id: row for row, id in enumerate(scores.query_ids)}
    missing = [id for id in query_ids if id not in place]
    if missing:
        raise ConfigError(f"base has no ranking for query {missing[0]!r}; expected all test queries")
    values: PerQuery = scores.values[metric][[place[id] for id in query_ids]]
    return values
