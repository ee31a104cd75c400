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
    the text's part of the gradient of the weights (Katharopoulos and Fleuret 2018, section 3). Texts with less than a least norm are
    not due, and their last vectors stand in for them, as in a memory bank (Wang et al. 2020); these may be from the first epoch. A
    batch with a text that was never encoded is due as a whole.

    Norms are in units of scale / queries of the batch. For a query with one relevant document, that is the length of the sum of
    p (d - r) over the documents, where p is a document's probability, d its unit vector and r that of the relevant one, and half as
    much again for the other direction: about the probability that the query still gives to wrong documents.

    Args:
        texts: Number of training texts.
        dimensions: Dimensions of a vector.
        least: Least norm of a text that is due, above 0.

    Attributes:
        vectors: Last vector of each text, NaN before the first; shape (texts, dimensions).
        left_out: Tokens of the last batch that were not encoded.
    """

    def __init__(self, texts: int, dimensions: int, least: float) -> None:
        super().__init__()
        self.least, self.left_out = least, 0
        self.register_buffer("vectors", torch.full((texts, dimensions), torch.nan), persistent=False)
        self.vectors: Tensor

    def due(self, rows: Tensor, loss: Callable[[Tensor], Tensor], unit: float) -> Tensor:
        """Return which texts of a batch are due; at least one is.

        Args:
            rows: Rows of the batch's texts; shape (texts,).
            loss: Loss of the batch, given its vectors.
            unit: Unit of the norms.

        Returns:
            A mask; shape (texts,).
        """
        last = self.vectors[rows]
        if last.isnan().any():
            return torch.ones_like(rows, dtype=torch.bool)
        with torch.enable_grad():
            last.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(last), last)
        norms = gradient.norm(dim=1) / unit
        # Processes that train together may differ in rounding, and must not differ in this.
        due: Tensor = processes.agreed((norms >= norms.max().clamp(max=self.least)).cpu())
        return due.to(rows.device)


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
