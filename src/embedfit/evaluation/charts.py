"""An empty chart, which the studies and comparisons draw on."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
