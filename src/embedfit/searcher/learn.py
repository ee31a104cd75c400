"""What is learnt out of fold: the weights of the views, the calibration, and the threshold that can be trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from embedfit.evaluation.calibrate import Assessed, calibrate
from embedfit.retrieve.run import Run
from embedfit.searcher.fusion import Evidence, Fusion, choose_scale, fit_fusion, folds_of
from embedfit.searcher.gather import SCALE
from embedfit.searcher.searcher import ranked
from embedfit.searcher.views import VIEWS, Array


@dataclass(frozen=True)
class Learnt:
    """Weights of the views.

    Attributes:
        fusion: Weights.
        scale: Scale of the soft maximum over a document's examples.
    """

    fusion: Fusion
    scale: float = SCALE

    @classmethod
    def of(cls, evidence: Evidence, views: tuple[str, ...] = VIEWS, *, seed: int = 0) -> Learnt:
        """Choose the scale and fit the weights.

        Args:
            evidence: Queries that the views were not fitted on.
            views: Views to fuse.
            seed: Seed of the documents of which less is made known.
        """
        scale = choose_scale(evidence, seed=seed) if evidence.scales else SCALE
        return cls(fit_fusion(evidence.with_scale(scale) if evidence.scales else evidence, views, seed=seed), scale)

    def scores(self, evidence: Evidence) -> Array:
        """Return the fused scores of the candidates, -inf at empty places; shape (n, m)."""
        evidence = evidence.with_scale(self.scale) if evidence.scales else evidence
        return self.fusion.scores(evidence.scores, evidence.candidates < 0)


def cross_fitted(evidence: Evidence, groups: npt.NDArray[np.int64], views: tuple[str, ...] = VIEWS, *, seed: int = 0) -> Array:
    """Return the fused scores of each query by weights that were fitted without it and its group; shape (n, m)."""
    folds = folds_of(groups, seed)
    scores = np.full(evidence.candidates.shape, -np.inf, np.float32)
    for fold in np.unique(folds):
        test = folds == fold
        others = evidence.take(~test)
        scores[test] = Learnt.of(others, views, seed=seed).scores(evidence.take(test))
    return scores


def assess(
    evidence: Evidence,
    scores: Array,
    groups: npt.NDArray[np.int64],
    answerable: Sequence[bool],
    *,
    precision: float,
    coverage: float,
    seed: int,
) -> Assessed | None:
    """Return how far answers can be trusted; None for too few queries.

    Args:
        evidence: Queries with their right answers.
        scores: Fused scores by weights that were fitted without each query; shape (n, m).
        groups: Number of each query's group; shape (n,).
        answerable: Whether each query has an answer.
        precision: Promised share of right answers above the threshold.
        coverage: Probability that a conformal set holds a right answer.
        seed: Seed of folds and random draws.
    """
    if len(np.unique(groups)) < 2:
        return None
    return calibrate(scores, evidence.relevant, groups, answerable=answerable, precision=precision, coverage=coverage, seed=seed)


def run_of_evidence(evidence: Evidence, scores: Array, document_ids: tuple[str, ...], k: int) -> Run:
    """Return the Run of the candidates with their fused scores.

    Args:
        evidence: Queries and candidates.
        scores: Fused scores; shape (n, m).
        document_ids: Sorted document ids.
        k: Number of documents for each query.
    """
    return ranked(evidence.query_ids, document_ids, [(evidence.candidates, scores)], k)
