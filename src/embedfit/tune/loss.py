"""The loss: a softmax over the candidates in which every relevant document is a positive."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor, distributed, nn
from torch.utils.checkpoint import checkpoint

from embedfit import processes
from embedfit.encode.precision import without_cudnn_attention
from embedfit.tune.lower import KEPT, LowerLayers
from embedfit.tune.remembered import ROWS, Remembered, some_of, split

_BACKWARD = 0.5
"""Weight of the direction from documents to queries (docs/decisions.md)."""


def multi_positive_softmax(logits: Tensor, grades: Tensor, negatives: Tensor | None = None) -> Tensor:
    """Return the cross-entropy of each relevant document against the irrelevant ones, in both directions.

    For a query q with relevant documents P and irrelevant candidates N, and logits s,

        loss(q) = - sum_{p in P} w_qp log( exp(s_qp) / (exp(s_qp) + sum_{n in N} exp(s_qn)) ),    w_qp = grade_qp / sum_p grade_qp

    With one positive this is InfoNCE (van den Oord et al. 2018), which MultipleNegativesRankingLoss computes. With several it
    differs from SupCon (Khosla et al. 2020, eq. 2): the denominator leaves out the other positives, so they are not pushed
    away. The opposite direction, each relevant document against the batch's queries that it is not right for, is added with
    half the weight (CLIP uses both directions: Radford et al. 2021). There, too, no known positive is a negative.

    Args:
        logits: Scaled similarities, shape (queries, candidates).
        grades: Grades, shape (queries, candidates): above 0 for a relevant document, of which each query needs one; 0 for a
            negative; below 0 if the query and the document are not compared.
        negatives: log sum exp(s_qn) over each query's negatives, shape (queries, 1), if they are not among the columns; None if
            they are.

    Returns:
        Mean over the queries, a scalar.
    """
    positive = grades > 0
    weights = grades / grades.clamp(min=0).sum(dim=1, keepdim=True)
    forth = _against_negatives(logits, grades, 1) if negatives is None else torch.logaddexp(logits, negatives) - logits
    both = forth + _BACKWARD * _against_negatives(logits, grades, 0)
    return (both.masked_fill(~positive, 0.0) * weights).sum() / len(logits)


def _against_negatives(logits: Tensor, grades: Tensor, dim: int) -> Tensor:
    """Return the cross-entropy of choosing each entry from itself and the negatives along a dimension."""
    # The floor is finite, because without negatives -inf would turn the gradient into NaN.
    negatives = logits.masked_fill(grades != 0, -1e9).logsumexp(dim=dim, keepdim=True)
    return torch.logaddexp(logits, negatives) - logits


def distillation(logits: Tensor, grades: Tensor, scores: Tensor) -> Tensor:
    """Return how far the similarities are from a teacher's scores.

    For each relevant document p of a query and its irrelevant candidates N, all of those that the teacher has scored, it is the
    Kullback-Leibler divergence of the softmax over the logits of {p} and N from that over the teacher's scores (Hinton et al. 2015,
    equation 1, at temperature 1). With one irrelevant document both are functions of the margin between the two, as in Margin-MSE
    (Hofstaetter et al. 2020). Relevant documents do not compete with one another, and a score of p below one of N counts as equal to it:
    labels overrule the teacher, so no known positive is a negative.

    Args:
        logits: Scaled similarities, shape (queries, candidates).
        grades: Grades as in `multi_positive_softmax`, shape (queries, candidates).
        scores: The teacher's logits, NaN where there is none, shape (queries, candidates).

    Returns:
        Mean over the queries, a scalar. A query without scores of both a relevant and an irrelevant document counts as 0.
    """
    scored = ~scores.isnan()
    positive, negative = (grades > 0) & scored, (grades == 0) & scored
    positive = positive & negative.any(dim=1, keepdim=True)
    scores = scores.nan_to_num(0.0)
    taught, learnt = (values.masked_fill(~negative, -1e9) for values in (scores, logits))
    share = taught.softmax(dim=1)  # of each negative among the negatives, by the teacher
    above = scores.maximum(taught.amax(dim=1, keepdim=True))
    rest, rest_learnt = taught.logsumexp(dim=1, keepdim=True), learnt.logsumexp(dim=1, keepdim=True)
    whole, whole_learnt = torch.logaddexp(above, rest), torch.logaddexp(logits, rest_learnt)
    right = (above - whole).exp()  # the relevant document's probability, by the teacher

    def likelihood(of_right: Tensor, of_negatives: Tensor, of_all: Tensor) -> Tensor:
        return right * of_right + (1 - right) * (share * of_negatives).sum(dim=1, keepdim=True) - of_all

    divergence = likelihood(above, scores, whole) - likelihood(logits, logits, whole_learnt)
    weights = positive * grades
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-9)
    return (divergence.masked_fill(~positive, 0.0) * weights).sum() / len(logits)


class CandidateLoss(nn.Module):
    """Encodes the queries and candidates of a batch, and scores each query against every candidate.

    If several processes train together, each has the whole batch and encodes its share of the chunks. It gets the other
    vectors without gradients, so the gradient of the batch is the sum over the processes.

    Args:
        encoder: Model in training. (The trainer would replace an attribute called ``model`` by a wrapper.)
        scale: Factor of the cosine similarities (1 / temperature).
        dimensions: Numbers of leading dimensions, each below the whole. The loss is the mean over these truncated vectors,
            cut to unit length, and the whole ones (Matryoshka representation learning: Kusupati et al. 2022, eq. 1 with equal
            weights).
        memory_tokens: Most padded tokens whose activations are kept for the gradients. In a larger batch the activations of
            each chunk are computed again in the backward pass: the same gradients with the memory of one chunk and a third
            more work (GradCache: Gao et al. 2021; here with torch's checkpoints).
        lower: Frozen layers, whose kept states a chunk may have among its features; None if none are frozen.
        teacher_weight: Weight of the teacher's scores in the loss, where the labels come with them.
        remembered: Last vectors of the training texts; None to encode every text of a batch.
    """

    def __init__(
        self,
        encoder: SentenceTransformer,
        scale: float,
        dimensions: Sequence[int] = (),
        *,
        memory_tokens: float = math.inf,
        lower: LowerLayers | None = None,
        teacher_weight: float = 1.0,
        remembered: Remembered | None = None,
    ) -> None:
        super().__init__()
        self._lower, self._teacher_weight, self.remembered = lower, teacher_weight, remembered
        self.encoder, self.scale, self.dimensions, self.memory_tokens = encoder, scale, tuple(dimensions), memory_tokens

    def forward(self, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            features: Tokens in chunks of texts of similar length: first the queries, in the order of the rows of ``labels``,
                then the documents.
            labels: Grades, shape (queries, candidates); with a teacher a stack of the grades and the teacher's scores.
        """
        vectors = self._renewed(self.remembered, features, labels) if self.remembered else self._gathered(features)
        return self._over_dimensions(vectors, labels)

    def _over_dimensions(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over the truncated vectors and the whole ones."""
        sizes = (*self.dimensions, vectors.shape[1])
        return torch.stack([self._loss_of(nn.functional.normalize(vectors[:, :size], dim=-1), labels) for size in sizes]).mean()

    def _renewed(self, remembered: Remembered, features: list[dict[str, Tensor]], labels: Tensor) -> Tensor:
        """Return the vectors of all chunks, new ones of the texts that are due; shape (texts, dimensions)."""
        rows = torch.cat([chunk[ROWS] for chunk in features])
        queries = labels.shape[-2]
        due = remembered.due(rows, partial(self._over_dimensions, labels=labels), self.scale / queries)
        chunks = [some_of(chunk, chosen) for chunk, chosen in zip(features, split(due, features), strict=True) if chosen.any()]
        new = self._gathered(chunks)
        remembered.left_out = _tokens(features) - _tokens(chunks)
        vectors = remembered.vectors[rows]
        vectors[due] = new
        remembered.vectors[rows[due]] = new.detach()
        return vectors

    def _loss_of(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of unit vectors; shape (texts, dimensions)."""
        grades, scores = labels if labels.dim() == 3 else (labels, None)
        queries, documents = vectors[: len(grades)], vectors[len(grades) :]
        return self._with_teacher(queries @ documents.T * self.scale, grades, scores)

    def _with_teacher(self, logits: Tensor, grades: Tensor, scores: Tensor | None, negatives: Tensor | None = None) -> Tensor:
        loss = multi_positive_softmax(logits, grades, negatives)
        return loss if scores is None else loss + self._teacher_weight * distillation(logits, grades, scores)

    def _gathered(self, features: list[dict[str, Tensor]]) -> Tensor:
        """Return the vectors of all chunks; shape (texts, dimensions)."""
        sizes = [_texts(chunk).numel() for chunk in features]
        encode = self._encoded if sum(sizes) <= self.memory_tokens else partial(checkpoint, self._encoded, use_reentrant=False)
        if processes.count() == 1:
            return torch.cat([encode(chunk) for chunk in features])
        mine = shares(sizes, processes.count())[processes.number()]
        # A process without chunks encodes one all the same, or it would have no gradient to add.
        own = {number: encode(features[number]) for number in mine} or {0: 0 * encode(features[0])}
        empty = next(iter(own.values())).detach()
        rows = [
            own[number] if number in own else empty.new_zeros(len(_texts(chunk)), empty.shape[1]) for number, chunk in enumerate(features)
        ]
        whole = torch.cat(rows)
        gathered = whole.detach().clone()
        distributed.all_reduce(gathered)
        return whole + (gathered - whole.detach())

    def _encoded(self, chunk: dict[str, Tensor]) -> Tensor:
        states = chunk.get(KEPT)
        lower = self._lower.replaced_by(states) if self._lower and states is not None else nullcontext()
        with without_cudnn_attention(_texts(chunk).device.type), lower:
            vectors: Tensor = self.encoder({key: value for key, value in chunk.items() if key not in (KEPT, ROWS)})[
                "sentence_embedding"
            ].float()
        return vectors[:, : getattr(self.encoder, "truncate_dim", None)]  # as the model's own encode truncates them


def shares(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Distribute numbered chunks over parts: the largest first, each to the part with the least load so far."""
    chunks: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for number in sorted(range(len(sizes)), key=lambda number: (-sizes[number], number)):
        least = loads.index(min(loads))
        chunks[least].append(number)
        loads[least] += sizes[number]
    return [sorted(part) for part in chunks]


def _texts(chunk: dict[str, Tensor]) -> Tensor:
    """Return a matrix of the chunk whose rows are texts and whose columns are padded tokens."""
    return next(value for value in chunk.values() if torch.is_tensor(value))


def _tokens(chunks: Sequence[dict[str, Tensor]]) -> int:
    """Return the number of tokens in some chunks, without padding."""
    return int(torch.stack([chunk["attention_mask"].sum() for chunk in chunks]).sum())
