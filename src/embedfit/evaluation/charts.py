"""Charts of comparisons."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from embedfit.evaluation.comparison import Comparison

_BASE, _TUNED, _WHISKER = "#9aa5b1", "#0f766e", "#134e4a"


def new_chart(width: float, height: float) -> Figure:
    """Return an empty figure that a notebook displays, even where pyplot was never imported.

    Args:
        width: Width in inches.
        height: Height in inches.
    """
    from matplotlib.figure import Figure

    class Chart(Figure):
        def _repr_png_(self) -> bytes:
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=100)
            return picture.getvalue()

    return Chart(figsize=(width, height), layout="constrained")


def comparison_chart(comparison: Comparison) -> Figure:
    """Return a bar chart of recall at each k, base beside tuned; whiskers show the 95% interval of the difference."""
    recalls = [row for row in comparison.differences if row.metric.startswith("recall@")]
    figure = new_chart(7, 4)
    axes = figure.subplots()
    places = np.arange(len(recalls))
    base, tuned = [row.base for row in recalls], [row.tuned for row in recalls]
    # Where all gaps are equal, rounding may put an end of the interval on the wrong side of the difference.
    whiskers = [
        [max(0.0, row.difference - row.low) for row in recalls],
        [max(0.0, row.high - row.difference) for row in recalls],
    ]
    axes.bar(places - 0.2, base, 0.38, label=_short_name(comparison.base.name), color=_BASE)
    axes.bar(places + 0.2, tuned, 0.38, label=_short_name(comparison.tuned.name), color=_TUNED, yerr=whiskers, ecolor=_WHISKER, capsize=3)
    for place, before, after in zip(places, base, tuned, strict=True):
        axes.text(place - 0.2, before + 0.01, f"{before:.2f}", ha="center", va="bottom", fontsize=9)
        axes.text(place + 0.2, after / 2, f"{after:.2f}", ha="center", va="center", fontsize=9, color="white")
    if comparison.seeds:
        means = np.array([comparison.seeds.means[row.metric] for row in recalls])
        axes.plot(np.repeat(places - 0.05, comparison.seeds.count), means.ravel(), ".", color=_WHISKER, markersize=4, label="one seed")
    axes.set_xticks(places, [row.metric for row in recalls])
    axes.set_ylim(0, 1.05)
    axes.set_title(f"{comparison.queries}; whisker: 95% interval of the difference", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False)
    return figure


def _short_name(name: str) -> str:
    """Return a model's name cut to the 40 characters that a legend has room for."""
    return name if len(name) <= 40 else f"{name[:18]}...{name[-19:]}"
