"""What benchmarks that go on where they stopped share: the rows so far, and the interval of a paired difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Return the rows that a benchmark has appended to its file so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def interval(differences: Any, groups: Any, draws: int) -> tuple[float, float]:
    """Return the 95% bootstrap interval of the mean. A group, such as a query that several seeds held out, is drawn as a whole."""
    _, numbers = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(numbers, differences), np.bincount(numbers)
    drawn = np.random.default_rng(0).integers(0, len(sums), (draws, len(sums)))
    low, high = np.percentile(sums[drawn].sum(1) / counts[drawn].sum(1), [2.5, 97.5])
    return float(low), float(high)
