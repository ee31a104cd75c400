"""How many candidates to show, so that a right one is among them with a stated probability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedfit.errors import DataError
from embedfit.evaluation.calibration import VERSION, checked, numbered, saved
from embedfit.evaluation.score import Groups
from embedfit.evaluation.statistics import Floats


@dataclass(frozen=True)
class ConformalSets:
    """Number of best candidates of a query that hold a right one with a stated probability.

    A candidate's score is the probability mass of the candidates before it: adaptive prediction sets (Romano, Sesia and
    Candès 2020, "Classification with valid and adaptive coverage") without randomisation, with the mass before instead of the
    mass up to the candidate, so that a set is never empty. The limit is a quantile of the scores of the best-placed right
    candidates (split conformal prediction; Angelopoulos and Bates 2021, "A gentle introduction to conformal prediction",
    section 1). With groups of queries, each group has the same weight (hierarchical conformal prediction; Lee, Barber and Willett
    2023, "Distribution-free inference with hierarchical data"; compare Dunn, Wasserman and Ramdas 2022, who draw one query per group).

    The promise is for a query of a new group, over all calibrations and queries, if it has an answer. It is not a promise for each query.

    Attributes:
        limit: Largest share of the mass that may stand before a candidate of the set, between 0 and 1; None if all candidates
            are needed.
        coverage: Stated probability, between 0 and 1.
        queries: Number of calibration queries with an answer.
        groups: Number of their groups.
        excluded: Number of calibration queries without an answer; nothing is promised for such queries.
    """

    limit: float | None
    coverage: float
    queries: int
    groups: int
    excluded: int

    @classmethod
    def fit(
        cls,
        probabilities: npt.ArrayLike,
        relevant: npt.ArrayLike,
        groups: Groups | None = None,
        *,
        coverage: float = 0.95,
        answerable: npt.ArrayLike | None = None,
    ) -> ConformalSets:
        """Choose the limit from queries whose right answers are known.

        Args:
            probabilities: Probability of each candidate, out of fold, shape (queries, candidates).
            relevant: Whether a candidate is right, shape (queries, candidates).
            groups: Group number of each query, shape (queries,); by default each query is a group of its own.
            coverage: Stated probability, between 0 and 1, both excluded.
            answerable: Whether a query has any answer, also among documents that are no candidates, shape (queries,). By default a
                query without a right candidate has no answer.

        Raises:
            DataError: The arrays do not fit together, a value is NaN or +inf, there is no query, or a share is not between 0 and 1.
        """
        if not 0 < coverage < 1:
            raise DataError("coverage", f"{coverage}", expected="a number between 0 and 1, both excluded, such as 0.95")
        probabilities, relevant = checked(probabilities, relevant)
        found = relevant.any(axis=1)
        with_answer = found if answerable is None else np.asarray(answerable, bool) | found
        number = numbered(groups, len(probabilities))[with_answer]
        masses = np.where(relevant, mass_before(probabilities), np.inf).min(axis=1)[with_answer]
        if not len(masses):
            return cls(None, coverage, 0, 0, len(probabilities))
        sizes = np.bincount(number)
        count = int((sizes > 0).sum())
        order = np.argsort(masses, kind="stable")
        # A new group has the weight of one of the others, and its score may be infinite.
        reached = (1 / sizes[number[order]]).cumsum() / (count + 1)
        place = int(np.searchsorted(reached, coverage - 1e-12))
        limit = float(masses[order[place]]) if place < len(order) else np.inf
        return cls(limit if np.isfinite(limit) else None, coverage, len(masses), count, int((~with_answer).sum()))

    def sizes(self, probabilities: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Return how many of the best candidates to show for each query, at least 1, shape (queries,).

        Args:
            probabilities: Probability of each candidate, shape (queries, candidates); 0 where there is none.
        """
        matrix = np.asarray(probabilities, np.float64)
        real: npt.NDArray[np.int64] = (matrix > 0).sum(axis=1)
        if self.limit is None:
            return np.maximum(real, 1)
        within: npt.NDArray[np.int64] = (mass_before(matrix) <= self.limit).sum(axis=1)
        return np.clip(within, 1, np.maximum(real, 1))

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, with a version."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any]) -> ConformalSets:
        """Return the sets that `to_dict` wrote.

        Raises:
            DataError: Another version wrote the dict, or a value is missing.
        """
        return cls(**saved(payload, cls))


def mass_before(probabilities: Floats) -> Floats:
    """Return the share of a query's probability that stands on better candidates, shape (queries, candidates)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ordered = np.take_along_axis(probabilities, order, axis=1)
    total = np.maximum(ordered.sum(axis=1, keepdims=True), 1e-300)
    before = np.empty_like(ordered)
    before[:, 0] = 0.0
    before[:, 1:] = ordered[:, :-1].cumsum(axis=1) / total
    masses = np.empty_like(before)
    np.put_along_axis(masses, order, before, axis=1)
    return masses
