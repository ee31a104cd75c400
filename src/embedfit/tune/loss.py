"""The loss: one softmax over the candidates, in which every relevant document is a positive."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, nn

_BACKWARD = 0.5
"""Weight of the direction from documents to queries (docs/decisions.md)."""


def multi_positive_softmax(logits: Tensor, grades: Tensor) -> Tensor:
    """Return the cross-entropy of each relevant document against the irrelevant ones, and back.

    For a query q with relevant documents P and irrelevant candidates N, and logits s,

        loss(q) = - sum_{p in P} w_qp log( exp(s_qp) / (exp(s_qp) + sum_{n in N} exp(s_qn)) ),    w_qp = grade_qp / sum_p grade_qp

    With one positive this is the usual InfoNCE (van den Oord et al. 2018) that MultipleNegativesRankingLoss computes.
    With several it differs from SupCon (Khosla et al. 2020, eq. 2) in that the other positives are left out of the
    denominator: they are not to be pushed away. Half as much is added in the other direction, each relevant document
    against the batch's queries that it is not right for (CLIP has the two directions: Radford et al. 2021; here, too,
    no known positive is a negative).

    Args:
        logits: Shape (queries, candidates).
        grades: The same shape; above 0 for a relevant document. Each query must have one.

    Returns:
        The mean over queries, a scalar.
    """
    positive = grades > 0
    weights = grades / grades.sum(dim=1, keepdim=True)
    both = _against_negatives(logits, positive, 1) + _BACKWARD * _against_negatives(logits, positive, 0)
    return (both.masked_fill(~positive, 0.0) * weights).sum() / len(logits)


def _against_negatives(logits: Tensor, positive: Tensor, dim: int) -> Tensor:
    """Return, for each entry, the cross-entropy of choosing it among itself and the negatives along a dimension."""
    # A finite floor: where nothing is negative, -inf would turn the gradient into NaN.
    negatives = logits.masked_fill(positive, -1e9).logsumexp(dim=dim, keepdim=True)
    return torch.logaddexp(logits, negatives) - logits


class CandidateLoss(nn.Module):
    """Encode the queries and candidates of a batch, and score each query against every candidate.

    Args:
        model: The one being trained.
        scale: What cosine similarities are multiplied by (1 / temperature).
        dimensions: The loss is the mean over the whole vectors and these first so many of their dimensions, each made
            unit length again (Matryoshka representation learning: Kusupati et al. 2022, eq. 1 with equal weights).
    """

    def __init__(self, model: SentenceTransformer, scale: float, dimensions: Sequence[int] = ()) -> None:
        super().__init__()
        self.model, self.scale, self.dimensions = model, scale, tuple(dimensions)

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            features: Tokens of the queries and documents, in chunks of similar length.
            labels: Grades; shape (queries, candidates). Chunks of queries come first, in the order of its rows.
        """
        whole = torch.cat([self.model(dict(chunk))["sentence_embedding"].float() for chunk in features])
        losses = []
        for size in (*self.dimensions, whole.shape[1]):
            vectors = nn.functional.normalize(whole[:, :size], dim=-1)
            queries, documents = vectors[: len(labels)], vectors[len(labels) :]
            losses.append(multi_positive_softmax(queries @ documents.T * self.scale, labels))
        return torch.stack(losses).mean()
