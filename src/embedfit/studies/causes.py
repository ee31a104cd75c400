"""The search for the mistake that explains why an endpoint gives other vectors."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from embedfit.encode.encoder import Kind, Vectors
from embedfit.errors import shown
from embedfit.retrieve.exact import top_k
from embedfit.studies.forms import COSINE_TOLERANCE, spread
from embedfit.studies.mistakes import OWN, PRECISIONS, Imitator, Mistake, Way, cut_at

Distances: TypeAlias = npt.NDArray[np.float64]
"""1 - cosine between two vectors of each text; shape (texts,)."""
_SCREENED, _TRIED = 4, 16
"""Number of texts by which mistakes are screened, and by which one is confirmed."""
_PAIRED = 6
"""Number of the likeliest mistakes that are paired with every other one."""
HALF_PRECISION = 5e-3
"""Largest distance of a vector from an imitated one that half precision explains."""
_ROUNDING = 1e-6
"""Distance of a vector from an imitated one that rounding explains in fp32."""
_QUANTISED = 0.1
"""Largest distance that vectors of 4 to 8 bits weights and activations have from those of fp32."""


def distance(left: Vectors, right: Vectors) -> Distances:
    """Return 1 - cosine of the rows of two matrices of unit vectors."""
    # From the difference, as 1 - x.y has an error of 1e-7 in float32.
    difference = left.astype(np.float64) - right
    halves: Distances = (difference * difference).sum(axis=1) / 2
    return halves


def are_of_others(served: Vectors, own: Vectors, rows: npt.NDArray[np.int64]) -> bool:
    """Return whether most of some served vectors are measured vectors of other texts."""
    some = spread(len(served), 64)
    nearest, _ = top_k(served[some], own, 1)
    near = distance(served[some], own[nearest[:, 0]]) <= HALF_PRECISION
    return bool((near & (nearest[:, 0] != rows[some])).mean() > 0.5)


def telling_rows(texts: Sequence[str], distances: Distances, differs: npt.NDArray[np.bool_]) -> list[int]:
    """Return the rows of up to `_TRIED` texts: the worst, long ones, ones with capitals, and some that do not differ."""
    worst = np.argsort(-distances, kind="stable").tolist()
    long = sorted(worst, key=lambda row: -len(texts[row]))
    capitals = [row for row in worst if texts[row] != texts[row].lower()]
    same = [row for row in worst[::-1] if not differs[row]]
    chosen = [*worst[:2], *long[:2], *capitals[:2], *same[:4]]
    return list(dict.fromkeys([*chosen, *(worst[row] for row in spread(len(worst), _TRIED))]))[:_TRIED]


class Search:
    """The search for the mistake that reproduces the vectors of an endpoint.

    Args:
        imitator: Makes the vectors of each mistake.
        kind: Kind of the texts.
        texts: Texts to try, the ones to screen by first.
        served: Vectors of the endpoint, of unit length.
    """

    def __init__(self, imitator: Imitator, kind: Kind, texts: Sequence[str], served: Vectors) -> None:
        self.imitator, self.kind, self.texts, self.served = imitator, kind, texts, served
        self.own = self._distances(OWN)

    def cause(self) -> tuple[str, bool]:
        """Return the mistakes that reproduce the vectors, as text; else the nearest one, and False."""
        longest = max(self.imitator.count(text, self.kind) for text in self.texts)
        mistakes = self.imitator.mistakes(self.kind, longest)
        screened: list[tuple[float, int, Mistake]] = []
        left, best = float(self.own.mean()), ""
        for place, mistake in enumerate(mistakes):
            distances = self._distances(mistake.on(OWN), _SCREENED)
            screened.append((float(distances.mean()), place, mistake))
            full = self._explained(mistake.on(OWN), left, distances)
            if full is not None:
                left, best = float(full.mean()), self._said(full, mistake)
                if full.max() <= _ROUNDING:
                    return best, True
        found = next(itertools.chain(self._precise(left), self._searched_length(left)), None)
        if found:
            return found, True
        for mean, _, first in sorted(screened)[:_PAIRED]:
            if mean >= self.own[:_SCREENED].mean():
                break
            for second in mistakes:
                way = second.on(first.on(OWN))
                full = self._explained(way, left) if second.family != first.family else None
                if full is not None:
                    left, best = float(full.mean()), self._said(full, *sorted((first, second), key=mistakes.index))
                    if full.max() <= _ROUNDING:
                        return best, True
        if best:
            return best, True
        if self.own.max() <= _QUANTISED and self.own.min() > self.own.max() / 50:
            middle = float(np.median(self.own))
            off = f"precision: every vector is off a little (median distance {middle:.1g}) and no other mistake explains it"
            return f"{off}: a lower precision, or weights that are nearly the run's; fix: serve in fp32, or accept the loss", True
        nearest, _, mistake = min(screened)
        near = f"; nearest: {mistake.text}, which leaves {nearest:.2g} of the distance of {self.own[:_SCREENED].mean():.2g}"
        tried = f"{len(mistakes):,} mistakes were tried, and pairs of them"
        most = shown(self.texts[int(self.own.argmax())])
        return f"not explained: {tried}{near}; the vectors differ most for {most}; it may be another model", False

    def _precise(self, left: float) -> Iterator[str]:
        """Yield the precision of the weights that reproduces the vectors."""
        for mistake in PRECISIONS if self.own.max() <= _QUANTISED else ():
            with contextlib.suppress(RuntimeError):  # a kernel that this processor lacks
                full = self._explained(mistake.on(OWN), left)
                if full is not None:
                    yield self._said(full, mistake)

    def _searched_length(self, left: float) -> Iterator[str]:
        """Yield the unusual length at which texts are cut, if that explains the vectors."""
        if self.own.min() > _ROUNDING:  # short texts would have their own vectors
            return
        counts = [self.imitator.count(text, self.kind) if far > _ROUNDING else 0 for text, far in zip(self.texts, self.own, strict=True)]
        long = int(np.argmax(counts))
        length = self.imitator.length_of(self.texts[long], self.kind, self.served[long])
        full = self._explained(Way(length=length), left) if length else None
        if full is not None and length:
            yield self._said(full, cut_at(length, self.imitator.limit))

    def _distances(self, way: Way, count: int | None = None) -> Distances:
        return distance(self.imitator.vectors(self.texts[:count], self.kind, way), self.served[:count])

    def _explained(self, way: Way, left: float, screened: Distances | None = None) -> Distances | None:
        """Return the distances that a way leaves, if they are a tenth of the best so far or less; else None."""
        distances = self._distances(way, _SCREENED) if screened is None else screened
        if distances.max() > HALF_PRECISION or distances.mean() > 0.1 * self.own[:_SCREENED].mean() + _ROUNDING:
            return None
        full = self._distances(way)
        return full if full.max() <= HALF_PRECISION and full.mean() <= 0.1 * left else None

    def _said(self, distances: Distances, *mistakes: Mistake) -> str:
        half = f" (the rest, a distance of up to {distances.max():.1g}, is like half precision)"
        rest = half if distances.max() > COSINE_TOLERANCE["fp32"] else ""
        return "; and ".join(map(str, mistakes)) + rest
