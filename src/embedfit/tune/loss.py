"""The loss: one softmax over the candidates, in which every relevant document is a positive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

from embedfit import processes
from embedfit.encode.precision import without_cudnn_attention

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
        grades: The same shape; above 0 for a relevant document, of which each query must have one; below 0 where a query and
            a document are not compared.

    Returns:
        The mean over queries, a scalar.
    """
    positive = grades > 0
    weights = grades / grades.clamp(min=0).sum(dim=1, keepdim=True)
    both = _against_negatives(logits, grades, 1) + _BACKWARD * _against_negatives(logits, grades, 0)
    return (both.masked_fill(~positive, 0.0) * weights).sum() / len(logits)


def _against_negatives(logits: Tensor, grades: Tensor, dim: int) -> Tensor:
    """Return, for each entry, the cross-entropy of choosing it among itself and the negatives along a dimension."""
    # A finite floor: where nothing is negative, -inf would turn the gradient into NaN.
    negatives = logits.masked_fill(grades != 0, -1e9).logsumexp(dim=dim, keepdim=True)
    return torch.logaddexp(logits, negatives) - logits


class CandidateLoss(nn.Module):
    """Encode the queries and candidates of a batch, and score each query against every candidate.

    Where several processes train together, each of them has the whole batch and encodes its share of the chunks; the
    vectors of the others come without their gradients. So the gradient is the sum of those of all processes.

    Args:
        encoder: The model being trained. (Not called ``model``, or the trainer would put a wrapper in its place.)
        scale: What cosine similarities are multiplied by (1 / temperature).
        dimensions: The loss is the mean over the whole vectors and these first so many of their dimensions, each made
            unit length again (Matryoshka representation learning: Kusupati et al. 2022, eq. 1 with equal weights).
        memory_tokens: The activations of at most so many padded tokens are kept until the gradients are computed. In a larger
            batch those of each chunk are computed again when it is their turn: the same gradients, from the memory of one
            chunk and a third more work (GradCache: Gao et al. 2021; here by torch's own checkpoints).
    """

    def __init__(
        self, encoder: SentenceTransformer, scale: float, dimensions: Sequence[int] = (), *, memory_tokens: float = math.inf
    ) -> None:
        super().__init__()
        self.encoder, self.scale, self.dimensions, self.memory_tokens = encoder, scale, tuple(dimensions), memory_tokens

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            features: Tokens of the queries and documents, in chunks of similar length.
            labels: Grades; shape (queries, candidates). Chunks of queries come first, in the order of its rows.
        """
        whole = self._gathered(features)
        losses = []
        for size in (*self.dimensions, whole.shape[1]):
            vectors = nn.functional.normalize(whole[:, :size], dim=-1)
            queries, documents = vectors[: len(labels)], vectors[len(labels) :]
            losses.append(multi_positive_softmax(queries @ documents.T * self.scale, labels))
        return torch.stack(losses).mean()

    def _gathered(self, features: list[dict[str, Tensor]]) -> Tensor:
        """Return the vectors of all chunks; shape (texts, dimensions)."""
        sizes = [_texts(chunk).numel() for chunk in features]
        encode = self._encoded if sum(sizes) <= self.memory_tokens else partial(checkpoint, self._encoded, use_reentrant=False)
        if processes.count() == 1:
            return torch.cat([encode(chunk) for chunk in features])
        mine = shares(sizes, processes.count())[processes.number()]
        # A process without a share takes part all the same, or it would have no gradient to add.
        own = {number: encode(features[number]) for number in mine} or {0: 0 * encode(features[0])}
        empty = next(iter(own.values())).detach()
        rows = [
            own[number] if number in own else empty.new_zeros(len(_texts(chunk)), empty.shape[1]) for number, chunk in enumerate(features)
        ]
        whole = torch.cat(rows)
        everybodys = whole.detach().clone()
        distributed.all_reduce(everybodys)
        return whole + (everybodys - whole.detach())

    def _encoded(self, chunk: dict[str, Tensor]) -> Tensor:
        with without_cudnn_attention(_texts(chunk).device.type):
            vectors: Tensor = self.encoder(dict(chunk))["sentence_embedding"].float()
        return vectors[:, : getattr(self.encoder, "truncate_dim", None)]  # as the model's own encode cuts them


def shares(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Deal numbered chunks out to so many parts, the largest first, each to the part with the least so far."""
    found: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        least = loads.index(min(loads))
        found[least].append(number)
        loads[least] += sizes[number]
    return [sorted(part) for part in found]


def _texts(chunk: dict[str, Tensor]) -> Tensor:
    """Return a matrix of the chunk with one row for each text and one column for each padded token."""
    return next(value for value in chunk.values() if torch.is_tensor(value))
