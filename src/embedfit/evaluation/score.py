"""How good a ranking is, for each query. Means come later: comparisons need the pairs.

Definitions are trec_eval's; with G(q) the relevant documents of a query and the ranking cut at k:

- recall: share of G(q) that was found
- hit: 1 if any of G(q) was found (trec_eval: success)
- precision: share of the k places that hold one of G(q)
- mrr: 1 / rank of the first relevant document, 0 if none was found
- map: mean, over G(q), of the precision at each one's rank, 0 for those not found
- ndcg: sum of grade / log2(rank + 1), over the best sum possible (Järvelin and Kekäläinen 2002)
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
    """The metrics of one Run, for each query.

    Attributes:
        name: Of the retriever.
        query_ids: n of them.
        values: ``"recall@5"`` -> n values between 0 and 1.
        ranks: Rank of the first relevant document, from 1; 0 where none was retrieved.
        groups: Number of each query's group, shape (n,). Queries of one group belong together, such as near duplicates, and
            are no independent evidence. None where nothing is known of groups: each query then counts as one.
    """

    name: str
    query_ids: tuple[str, ...]
    values: dict[str, PerQuery]
    ranks: npt.NDArray[np.int64]
    groups: Groups | None = None

    def mean(self, metric: str) -> float:
        """Return the mean over queries of a metric like ``recall@5``."""
        return float(self.values[metric].mean())

    def select(self, query_ids: Iterable[str]) -> Scores:
        """Return the scores of these queries alone, in this order."""
        place = {id: row for row, id in enumerate(self.query_ids)}
        ids = tuple(query_ids)
        rows = [place[id] for id in ids]
        groups = None if self.groups is None else self.groups[rows]
        return Scores(self.name, ids, {name: values[rows] for name, values in self.values.items()}, self.ranks[rows], groups)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per metric and k: model, metric, k, value (the mean over queries)."""
        import pandas as pd

        rows = [(self.name, *_named(name), self.mean(name)) for name in self.values]
        return pd.DataFrame(rows, columns=["model", "metric", "k", "value"])

    def _repr_html_(self) -> str:
        table = self.to_frame().pivot(index="k", columns="metric", values="value")
        return str(table.to_html(float_format="{:.3f}".format))


def score_run(run: Run, qrels: Qrels, *, ks: Sequence[int] = KS, name: str = "", groups: Mapping[str, int] | None = None) -> Scores:
    """Score a Run query by query.

    Args:
        run: Its queries must all have a relevant document.
        qrels: Query id -> {document id: grade}; a grade above 0 is relevant.
        ks: Where to cut the ranking. A Run of fewer documents is scored as it is, as trec_eval does.
        name: Of the retriever, for tables.
        groups: Query id -> number of its group; see `Scores` and `embedfit.split.group_numbers`.

    Raises:
        ConfigError: A k under 1, no k at all, no query, or a query without a relevant document.
    """
    if not ks or min(ks) < 1:
        raise ConfigError(f"k is {list(ks)}; expected whole numbers from 1")
    if not run.query_ids:
        raise ConfigError("there is no query to score")
    for id in run.query_ids:
        if not any(grade > 0 for grade in qrels.get(id, {}).values()):
            raise ConfigError(f"query {id!r} has no relevant document, so no metric is defined; fix: score data.select(data.judged)")
    grades = _grades(run, qrels)
    relevant = grades > 0
    depth = grades.shape[1]
    ideal = _ideal_grades(run, qrels, max(ks))
    totals = np.array([sum(grade > 0 for grade in qrels[id].values()) for id in run.query_ids], np.float64)
    found = relevant.cumsum(axis=1)
    places = np.arange(1, depth + 1)
    discounts = np.log2(np.arange(2, max(ks, default=1) + 2))
    first = np.where(relevant.any(axis=1), relevant.argmax(axis=1) + 1, 0)
    values: dict[str, PerQuery] = {}
    for k in ks:
        cut = min(k, depth)
        hits = found[:, cut - 1].astype(np.float64)
        gained = (grades[:, :cut] / discounts[:cut]).sum(axis=1)
        values[f"recall@{k}"] = hits / totals
        values[f"mrr@{k}"] = np.where((first > 0) & (first <= k), 1 / np.maximum(first, 1), 0.0)
        values[f"ndcg@{k}"] = gained / (ideal[:, :k] / discounts[:k]).sum(axis=1)
        values[f"hit@{k}"] = (hits > 0).astype(np.float64)
        values[f"precision@{k}"] = hits / k
        values[f"map@{k}"] = (relevant * found / places)[:, :cut].sum(axis=1) / totals
    numbers = None if groups is None else np.array([groups[id] for id in run.query_ids], np.int64)
    return Scores(name, run.query_ids, values, first, numbers)


def _grades(run: Run, qrels: Qrels) -> npt.NDArray[np.int64]:
    """Return the grade of each retrieved document; shape (n, depth)."""
    position = {id: index for index, id in enumerate(run.document_ids)}
    grades = np.zeros(run.ranked.shape, np.int64)
    for row, id in enumerate(run.query_ids):
        for document, grade in qrels[id].items():
            grades[row, run.ranked[row] == position.get(document, -1)] = grade
    return grades


def _ideal_grades(run: Run, qrels: Qrels, k: int) -> npt.NDArray[np.int64]:
    """Return the k best grades of each query, best first; shape (n, k)."""
    ideal = np.zeros((len(run.query_ids), k), np.int64)
    for row, id in enumerate(run.query_ids):
        best = sorted(qrels[id].values(), reverse=True)[:k]
        ideal[row, : len(best)] = best
    return ideal


def _named(name: str) -> tuple[str, int]:
    metric, _, k = name.partition("@")
    return metric, int(k)
