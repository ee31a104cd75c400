"""Scores a ranking, query by query. Means come later, because comparisons are paired by query.

Definitions follow trec_eval. G(q) is the set of relevant documents of query q; the ranking is cut at k:

- recall: fraction of G(q) that was retrieved
- hit: 1 if at least one document of G(q) was retrieved, otherwise 0 (trec_eval: success)
- precision: number of retrieved documents of G(q), divided by k
- mrr: 1 / rank of the first relevant document, or 0 if none was retrieved
- map: mean over G(q) of the precision at each document's rank, 0 for documents that were not retrieved
- ndcg: sum of grade / log2(rank + 1), divided by its maximum over all rankings (Järvelin and Kekäläinen 2002, "Cumulated
  gain-based evaluation of IR techniques")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.data.dataset import Qrels
from embedfit.errors import ConfigError
from embedfit.metrics import KS
from embedfit.retrieve.run import Run

if TYPE_CHECKING:
    import pandas as pd

PerQuery: TypeAlias = npt.NDArray[np.float64]
Groups: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Scores:
    """The metrics of one Run, for each of n queries.

    Attributes:
        name: Name of the retriever.
        query_ids: Ids of the n queries.
        values: Metric, such as ``recall@5`` -> n values between 0 and 1.
        ranks: Rank of the first relevant document of each query, starting at 1; 0 if none was retrieved. Shape (n,).
        groups: Group number of each query, shape (n,). Queries of one group depend on each other, like near duplicates, and
            are not independent evidence. None if each query is a group of its own.
    """

    name: str
    query_ids: tuple[str, ...]
    values: dict[str, PerQuery]
    ranks: npt.NDArray[np.int64]
    groups: Groups | None = None

    def mean(self, metric: str) -> float:
        """Return the mean over queries of a metric such as ``recall@5``."""
        return float(self.values[metric].mean())

    def select(self, query_ids: Iterable[str]) -> Scores:
        """Return the scores of the given queries only, in the given order."""
        place = {id: row for row, id in enumerate(self.query_ids)}
        ids = tuple(query_ids)
        rows = [place[id] for id in ids]
        groups = None if self.groups is None else self.groups[rows]
        return Scores(self.name, ids, {name: values[rows] for name, values in self.values.items()}, self.ranks[rows], groups)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric and k: model, metric, k, value (the mean over queries)."""
        import pandas as pd

        rows = [(self.name, *_split_name(name), self.mean(name)) for name in self.values]
        return pd.DataFrame(rows, columns=["model", "metric", "k", "value"])

    def _repr_html_(self) -> str:
        table = self.to_frame().pivot(index="k", columns="metric", values="value")
        return str(table.to_html(float_format="{:.3f}".format))


def score_run(run: Run, qrels: Qrels, *, ks: Sequence[int] = KS, name: str = "", groups: Mapping[str, int] | None = None) -> Scores:
    """Score a Run query by query.

    Args:
        run: Rankings of queries that each have a relevant document.
        qrels: Query id -> {document id: grade}; a grade above 0 means relevant.
        ks: Ranks at which to cut the ranking, at least 1. A shorter Run is scored as it is, like in trec_eval.
        name: Name of the retriever, for tables.
        groups: Query id -> group number; see `Scores` and `embedfit.data.split.group_numbers`.

    Raises:
        ConfigError: There is no k, a k is under 1, there is no query, or a query has no relevant document.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"k is {list(ks)}; expected whole numbers of at least 1")
    if not run.query_ids:
        raise ConfigError("there are no queries to score")
    for id in run.query_ids:
        if not any(grade > 0 for grade in qrels.get(id, {}).values()):
            raise ConfigError(f"query {id!r} has no relevant document, so no metric is defined; fix: score data.select(data.judged)")
    grades = _grades(run, qrels)
    relevant = grades > 0
    depth = grades.shape[1]
    ideal = _ideal_grades(run, qrels, max(ks))
    totals = np.array([sum(grade > 0 for grade in qrels[id].values()) for id in run.query_ids], np.float64)
    retrieved = relevant.cumsum(axis=1)
    places = np.arange(1, depth + 1)
    discounts = np.log2(np.arange(2, max(ks, default=1) + 2))
    first = np.where(relevant.any(axis=1), relevant.argmax(axis=1) + 1, 0)
    values: dict[str, PerQuery] = {}
    for k in ks:
        cut = min(k, depth)
        hits = retrieved[:, cut - 1].astype(np.float64)
        gain = (grades[:, :cut] / discounts[:cut]).sum(axis=1)
        values[f"recall@{k}"] = hits / totals
        values[f"mrr@{k}"] = np.where((first > 0) & (first <= k), 1 / np.maximum(first, 1), 0.0)
        values[f"ndcg@{k}"] = gain / (ideal[:, :k] / discounts[:k]).sum(axis=1)
        values[f"hit@{k}"] = (hits > 0).astype(np.float64)
        values[f"precision@{k}"] = hits / k
        values[f"map@{k}"] = (relevant * retrieved / places)[:, :cut].sum(axis=1) / totals
    group_of = None if groups is None else np.array([groups[id] for id in run.query_ids], np.int64)
    return Scores(name, run.query_ids, values, first, group_of)


def _grades(run: Run, qrels: Qrels) -> npt.NDArray[np.int64]:
    """Return the grade of each retrieved document, shape (n, depth)."""
    position = {id: index for index, id in enumerate(run.document_ids)}
    grades = np.zeros(run.ranked.shape, np.int64)
    for row, id in enumerate(run.query_ids):
        for document, grade in qrels[id].items():
            grades[row, run.ranked[row] == position.get(document, -1)] = grade
    return grades


def _ideal_grades(run: Run, qrels: Qrels, k: int) -> npt.NDArray[np.int64]:
    """Return the k highest grades of each query in descending order, shape (n, k)."""
    ideal = np.zeros((len(run.query_ids), k), np.int64)
    for row, id in enumerate(run.query_ids):
        best = sorted(qrels[id].values(), reverse=True)[:k]
        ideal[row, : len(best)] = best
    return ideal


def _split_name(name: str) -> tuple[str, int]:
    metric, _, k = name.partition("@")
    return metric, int(k)
