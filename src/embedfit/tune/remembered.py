"""Texts that a step need not encode again: their last vectors stand in, and they get no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from embedfit import processes

ROWS = "rows"
"""Name of the texts' rows in `Remembered` among the features of a chunk of texts."""


class Remembered(nn.Module):
    """The last vector of each training text, and which texts of a batch are due for another.

    The gradient of the loss with respect to the last vectors says what each text would still teach: up to a constant, its norm bounds
    the text's part of the gradient of the weights (Katharopoulos and Fleuret 2018, section 3, who draw samples by it). The texts
    with the most are due, until they hold a share of the sum of squares. The others' last vectors stand in for them, as in a memory bank
    (Wang et al. 2020); they may be from the first epoch. A batch with a text that was never encoded is due as a whole.

    Args:
        texts: Number of training texts.
        dimensions: Dimensions of a vector.
        share: Share of the sum of squares, above 0.

    Attributes:
        vectors: Last vector of each text, NaN before the first; shape (texts, dimensions).
        left_out: Tokens of the last batch that were not encoded.
    """

    def __init__(self, texts: int, dimensions: int, share: float) -> None:
        super().__init__()
        self.share, self.left_out = share, 0
        self.register_buffer("vectors", torch.full((texts, dimensions), torch.nan), persistent=False)
        self.vectors: Tensor

    def due(self, rows: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Return which texts of a batch are due.

        Args:
            rows: Rows of the batch's texts; shape (texts,).
            loss: Loss of the batch, given its vectors.

        Returns:
            A mask; shape (texts,).
        """
        last = self.vectors[rows]
        if last.isnan().any():
            return torch.ones_like(rows, dtype=torch.bool)
        with torch.enable_grad():
            last.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(last), last)
        # Processes that train together may differ in rounding, and must not differ in this.
        mask = processes.agreed(largest(gradient.square().sum(dim=1).cpu().double(), self.share))
        return mask.to(rows.device)


def largest(values: Tensor, share: float) -> Tensor:
    """Return a mask of the fewest values whose sum is at least a share of the whole; never none of them."""
    order = values.argsort(descending=True, stable=True)
    above = values[order].cumsum(dim=0) - values[order]  # held by the larger ones
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[order[: max(1, int((above < share * values.sum()).sum()))]] = True
    return mask


def some_of(chunk: dict[str, Tensor], chosen: Tensor) -> dict[str, Tensor]:
    """Return a chunk of some of its texts, without the columns that are padding to all of them.

    Args:
        chunk: Features of the chunk: matrices of texts and tokens, or one value for each text.
        chosen: Mask of the texts.
    """
    if chosen.all():
        return chunk
    columns = chunk["attention_mask"][chosen].bool().any(dim=0)
    return {
        key: value if not torch.is_tensor(value) else value[chosen] if value.dim() == 1 else value[chosen][:, columns]
        for key, value in chunk.items()
    }


def split(mask: Tensor, chunks: Sequence[dict[str, Tensor]]) -> Sequence[Tensor]:
    """Return the part of a batch's mask for each of its chunks."""
    return torch.split(mask, [len(chunk[ROWS]) for chunk in chunks])
