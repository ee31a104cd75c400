"""Texts that a step need not encode again: their last vectors stand in, and they get no gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

PLACES = "places"
"""Name of the texts' places in `Remembered` among the features of a chunk of texts."""


class Remembered(nn.Module):
    """The last vector of each training text, and which texts of a batch are due for another.

    The gradient of the loss with respect to the last vectors says what each text would still teach: up to a constant, its norm bounds
    the text's part of the gradient of the weights (Katharopoulos and Fleuret 2018, section 3, who draw samples by it). The texts
    with the most are due, until they hold a share of the sum of squares. The others' last vectors stand in for them, which are a few
    steps or an epoch old (Wang et al. 2020 compare with such vectors). A batch with a text that was never encoded is due as a whole.

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

    def due(self, places: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
        """Return which texts of a batch are due.

        Args:
            places: Places of the batch's texts; shape (texts,).
            loss: Loss of the batch, given its vectors.

        Returns:
            A mask; shape (texts,).
        """
        last = self.vectors[places]
        if last.isnan().any():
            return torch.ones_like(places, dtype=torch.bool)
        with torch.enable_grad():
            last.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(last), last)
        return largest(gradient.double().square().sum(dim=1), self.share)


def largest(values: Tensor, share: float) -> Tensor:
    """Return a mask of the fewest values whose sum is at least a share of the whole; never none of them."""
    order = values.argsort(descending=True, stable=True)
    above = values[order].cumsum(dim=0) - values[order]  # held by the larger ones
    mask = torch.zeros_like(values, dtype=torch.bool)
    mask[order[: max(1, int((above < share * values.sum()).sum()))]] = True
    return mask


def some_of(chunk: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    """Return a chunk of some of its texts, without the columns that are padding to all of them.

    Args:
        chunk: Features of the chunk: matrices of texts and tokens, or one value for each text.
        rows: Mask of the texts.
    """
    columns = chunk["attention_mask"][rows].bool().any(dim=0)
    return {
        key: value if not torch.is_tensor(value) else value[rows] if value.dim() == 1 else value[rows][:, columns]
        for key, value in chunk.items()
    }


def split(mask: Tensor, chunks: Sequence[dict[str, Tensor]]) -> Sequence[Tensor]:
    """Return the part of a batch's mask for each of its chunks."""
    return torch.split(mask, [len(chunk[PLACES]) for chunk in chunks])
