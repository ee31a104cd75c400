"""From out-of-fold scores to everything that an answer needs to be trusted, and the evidence for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from embedfit.errors import DataError
from embedfit.evaluation.abstention import Abstention, RiskPoint, abstention, risk_curve
from embedfit.evaluation.calibration import VERSION, Calibrator, best_answers, checked, out_of_fold
from embedfit.evaluation.conformal import ConformalSets
from embedfit.evaluation.reliability import Reliability, reliability
from embedfit.evaluation.score import Groups
from embedfit.evaluation.threshold import Threshold, choose_threshold


@dataclass(frozen=True)
class Trust:
    """What a searcher needs to state probabilities and to abstain.

    Attributes:
        calibrator: Map from scores to probabilities.
        threshold: Threshold of answers that need no person.
        sets: Number of candidates that hold a right one with a stated probability.
    """

    calibrator: Calibrator
    threshold: Threshold
    sets: ConformalSets

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON, with a version."""
        return {"version": VERSION, **{name: getattr(self, name).to_dict() for name in ("calibrator", "threshold", "sets")}}

    @classmethod
    def from_dict(cls, payload: Mapping[str, Any]) -> Trust:
        """Return what `to_dict` wrote.

        Raises:
            DataError: Another version wrote the dict, or a value is missing.
        """
        if missing := [name for name in ("calibrator", "threshold", "sets") if name not in payload]:
            raise DataError("Trust", f"no {', '.join(missing)}", expected="what to_dict wrote", fix="calibrate again")
        return cls(
            Calibrator.from_dict(payload["calibrator"]), Threshold.from_dict(payload["threshold"]), ConformalSets.from_dict(payload["sets"])
        )


@dataclass(frozen=True)
class TrustEvidence:
    """How good the probabilities are on the queries that they were calibrated on, out of fold.

    Attributes:
        reliability: Expected calibration error and the bins of the reliability diagram.
        curve: Points of the risk-coverage curve.
        abstention: How queries without an answer are told from others; None if there are none.
        set_sizes: Number of queries for which 1, 2, 3 ... candidates are shown.
    """

    reliability: Reliability
    curve: tuple[RiskPoint, ...]
    abstention: Abstention | None
    set_sizes: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a dict for JSON."""
        return {
            "reliability": self.reliability.to_dict(),
            "curve": [asdict(point) for point in self.curve],
            "abstention": self.abstention and self.abstention.to_dict(),
            "set_sizes": list(self.set_sizes),
        }


@dataclass(frozen=True)
class Assessed:
    """How far answers can be trusted.

    Attributes:
        trust: Calibration, threshold and sets.
        evidence: How good they are on the queries that they were fitted on.
        probability: Probability of each query's best answer, by a calibrator that was fitted without it; shape (queries,).
    """

    trust: Trust
    evidence: TrustEvidence
    probability: npt.NDArray[np.float64]


def calibrate(
    scores: npt.ArrayLike,
    relevant: npt.ArrayLike,
    groups: Groups | None = None,
    *,
    answerable: npt.ArrayLike | None = None,
    precision: float = 0.95,
    confidence: float = 0.95,
    coverage: float = 0.95,
    seed: int = 0,
) -> Assessed:
    """Calibrate out-of-fold scores, choose the threshold and the sets, and measure all of it.

    The calibrator is fitted on all queries. The threshold, the sets and the evidence use probabilities of calibrators that did not
    see the query or its group, so that fitting and choosing on the same queries breaks no promise (docs/probabilities.md).

    Args:
        scores: Log-scores, out of fold, shape (queries, candidates); -inf where there is no candidate.
        relevant: Whether a candidate is right, shape (queries, candidates).
        groups: Group number of each query, shape (queries,); by default each query is a group of its own.
        answerable: Whether a query has any answer, also among documents that are no candidates, shape (queries,). By default a
            query without a right candidate has no answer.
        precision: Promised share of right answers above the threshold, between 0 and 1, both excluded.
        confidence: Confidence of that promise, between 0 and 1, both excluded.
        coverage: Probability that a conformal set holds a right candidate, between 0 and 1, both excluded.
        seed: Seed of folds and random draws.

    Raises:
        DataError: The arrays do not fit together, a score is NaN or +inf, there are fewer than two groups, or a share is not
            between 0 and 1.
    """
    scores, relevant = checked(scores, relevant)
    with_answer = relevant.any(axis=1) if answerable is None else np.asarray(answerable, bool) | relevant.any(axis=1)
    probabilities = out_of_fold(scores, relevant, groups, seed=seed)
    best, correct = best_answers(probabilities, relevant)
    threshold = choose_threshold(best, correct, groups, precision=precision, confidence=confidence, seed=seed)
    sets = ConformalSets.fit(probabilities, relevant, groups, coverage=coverage, answerable=with_answer)
    evidence = TrustEvidence(
        reliability(best, correct, groups, seed=seed),
        risk_curve(best, correct, groups),
        abstention(best, with_answer, threshold, groups),
        tuple(np.bincount(sets.sizes(probabilities))[1:].tolist()),
    )
    return Assessed(Trust(Calibrator.fit(scores, relevant, groups), threshold, sets), evidence, best)
