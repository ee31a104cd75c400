"""Training of the encoder of queries alone: the documents' vectors are frozen, and every one of them is a candidate in every step."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, Vectors
from embedfit.encode.local import LocalEncoder
from embedfit.retrieve.run import own_positions
from embedfit.tune.candidates import relevant_positions
from embedfit.tune.loss import CandidateLoss
from embedfit.tune.teacher import Teacher
from embedfit.tune.training import Training

_MOST_DOCUMENTS = 2**18
"""Most documents that queries are scored against. Their products with a batch cost about as much as encoding its queries."""
_MAPPED_TEXTS, _RIDGE = 4096, 0.01
"""Most texts that the map between two encoders is fitted on, and its penalty as a share of the mean variance of a dimension."""
_BLOCK_BYTES = 64 * 2**20
"""Memory for the similarities of one block of documents."""


@dataclass(frozen=True)
class FrozenDocuments:
    """The documents' vectors, and what each training query must not push away.

    Attributes:
        vectors: Unit vectors of the documents; shape (documents, dimensions).
        grades: Relevant documents of each training query: position among the vectors -> grade.
        neither: Positions of the documents that are no negatives of a query and not relevant either: the document that is the query
            itself, and copies of its relevant documents.
        teacher: Teacher's scores, by positions among the vectors; None without a teacher.
    """

    vectors: Vectors
    grades: list[dict[int, int]]
    neither: list[list[int]]
    teacher: Teacher | None = None

    @classmethod
    def of(
        cls,
        encoder: Encoder,
        train: Dataset,
        template: str,
        seed: int,
        most: int = _MOST_DOCUMENTS,
        teacher: Teacher | None = None,
    ) -> FrozenDocuments:
        """Encode the documents: all of them, or with more than ``most`` the relevant ones and a random share of the others.

        Args:
            encoder: Encoder of the documents. If it is cached, no document of an earlier measurement is encoded again.
            train: Training queries, corpus and judgements.
            template: Document template.
            seed: Seed of the share.
            most: Most documents.
            teacher: Teacher's scores, by positions in the corpus; None without a teacher.
        """
        relevant, texts = relevant_positions(train), train.document_texts(template)
        own = own_positions(train, list(train.corpus))
        chosen = np.arange(len(texts))
        if len(texts) > most:
            needed = np.unique([position for grades in relevant for position in grades])
            others = np.setdiff1d(chosen, needed)
            drawn = np.random.default_rng(seed).choice(others, max(0, most - len(needed)), replace=False)
            chosen = np.sort(np.concatenate([needed, drawn]))
        place = {int(position): index for index, position in enumerate(chosen)}
        copies = defaultdict(list)
        for position in chosen.tolist():
            copies[texts[position]].append(place[position])
        neither = []
        for row, grades in enumerate(relevant):
            same = itertools.chain.from_iterable(copies[texts[position]] for position in grades)
            known = {place[position] for position in grades}
            neither.append(sorted({*same, *([place[own[row]]] if own[row] in place else [])} - known))
        vectors = encoder.encode([texts[position] for position in chosen], "document")
        taught = teacher and Teacher([{place[key]: score for key, score in row.items() if key in place} for row in teacher.scores])
        return cls(vectors, [{place[position]: grade for position, grade in grades.items()} for grades in relevant], neither, taught)


def map_between(queries: LocalEncoder, documents: Encoder, training: Training) -> tuple[nn.Module, nn.Module]:
    """Fit the linear map from one encoder's vectors to another's, as modules to put after the first.

    It is a ridge regression on document texts, each encoded by both; where the spaces are the same, it is close to the identity.

    Args:
        queries: Encoder whose vectors are mapped.
        documents: Encoder whose vectors they are mapped to.
        training: Corpus, template and seed.
    """
    from sentence_transformers.base.modules import Dense, Normalize

    texts = sorted(set(training.train.document_texts(training.template)))
    texts = random.Random(training.config.seed).sample(texts, min(len(texts), _MAPPED_TEXTS))
    given, wanted = (vectors.astype(np.float64) for vectors in (queries.encode(texts, "query"), documents.encode(texts, "document")))
    centre, target = given.mean(axis=0), wanted.mean(axis=0)
    given, wanted = given - centre, wanted - target
    products = given.T @ given
    penalty = _RIDGE * np.trace(products) / len(products) + 1e-9
    weight = np.linalg.solve(products + penalty * np.eye(len(products)), given.T @ wanted)
    bias = target - centre @ weight
    matrix, shift = (torch.from_numpy(np.ascontiguousarray(values, np.float32)) for values in (weight.T, bias))
    return Dense(len(centre), len(target), activation_function=None, init_weight=matrix, init_bias=shift), Normalize()


class CorpusLoss(CandidateLoss):
    """Encodes the queries of a batch, and scores each against all frozen documents.

    It is the loss of `multi_positive_softmax` with every document as a candidate. The documents go by in blocks, of which one at a
    time is in memory.

    Args:
        documents: Vectors, and the relevant documents of each training query.
        given: Encoder, scale and further arguments of `CandidateLoss`.
        block_bytes: Memory for the similarities of one block.
    """

    def __init__(self, documents: FrozenDocuments, *given: Any, block_bytes: int = _BLOCK_BYTES, **named: Any) -> None:
        super().__init__(*given, **named)
        self._frozen, self._block_bytes = documents, block_bytes
        self.register_buffer("vectors", torch.from_numpy(np.array(documents.vectors, np.float32)), persistent=False)
        self.vectors: Tensor

    def _loss_of(self, vectors: Tensor, labels: Tensor) -> Tensor:
        rows = labels.tolist()
        teacher = self._frozen.teacher
        columns = sorted({key for row in rows for key in (*self._frozen.grades[row], *(teacher.scores[row] if teacher else ()))})
        place = {position: index for index, position in enumerate(columns)}
        grades = torch.zeros(len(rows), len(columns))
        hidden = []  # (row in the batch, document) of no negatives
        for index, row in enumerate(rows):
            for position, grade in self._frozen.grades[row].items():
                grades[index, place[position]] = grade
            grades[index, [place[position] for position in self._frozen.neither[row] if position in place]] = -1
            hidden += [(index, position) for position in (*self._frozen.grades[row], *self._frozen.neither[row])]
        positives = self._documents(torch.tensor(columns, device=vectors.device), vectors.shape[1])
        negatives = self._negatives(vectors, torch.tensor(hidden, device=vectors.device))
        scores = torch.from_numpy(teacher.of(rows, columns)).to(vectors.device) if teacher else None
        return self._with_teacher(vectors @ positives.T * self.scale, grades.to(vectors.device), scores, negatives)

    def _negatives(self, queries: Tensor, hidden: Tensor) -> Tensor:
        """Return the logarithm of the sum of exp over all negatives of each query; shape (queries, 1)."""
        height = max(1, self._block_bytes // (4 * len(queries)))
        starts = range(0, len(self.vectors), height)
        block = self._block if len(starts) == 1 else partial(checkpoint, self._block, use_reentrant=False)
        sums = [block(queries, hidden, start, min(start + height, len(self.vectors))) for start in starts]
        return torch.cat(sums, dim=1).logsumexp(dim=1, keepdim=True)

    def _block(self, queries: Tensor, hidden: Tensor, start: int, stop: int) -> Tensor:
        documents = self._documents(slice(start, stop), queries.shape[1])
        inside = hidden[(hidden[:, 1] >= start) & (hidden[:, 1] < stop)]
        mask = torch.zeros(len(queries), stop - start, dtype=torch.bool, device=queries.device)
        mask[inside[:, 0], inside[:, 1] - start] = True
        # The floor is finite, because without negatives -inf would turn the gradient into NaN.
        return (queries @ documents.T * self.scale).masked_fill(mask, -1e9).logsumexp(dim=1, keepdim=True)

    def _documents(self, where: Tensor | slice, size: int) -> Tensor:
        chosen = self.vectors[where]
        return chosen if size == chosen.shape[1] else nn.functional.normalize(chosen[:, :size], dim=1)
