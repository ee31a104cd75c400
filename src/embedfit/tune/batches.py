"""Training batches: tokens of the queries and of their candidate documents."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from embedfit.encode.tokens import Tokens, length_batches
from embedfit.tune.candidates import CandidateSource
from embedfit.tune.lower import KEPT, KeptStates
from embedfit.tune.remembered import ROWS
from embedfit.tune.teacher import Teacher


class Counting(Protocol):
    """Makes a batch from the positions of its queries, and counts its tokens.

    Attributes:
        tokens: Number of tokens, without padding, of each batch that is made but not yet trained on; the trainer fetches one
            batch ahead.
    """

    tokens: deque[int]

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Return the features of each chunk under its own prefix, and what the loss needs as ``label``."""
        ...


class Collator:
    """Makes a batch of tokens and grades from the positions of its queries.

    Args:
        queries: Tokens of each training query.
        documents: Tokens of each document; None if no document is encoded.
        source: Source of each batch's candidate documents; None if no document is encoded.
        chunk_tokens: Most tokens, padding included, in one chunk of texts of similar length.
        kept: Kept states of the texts after the frozen layers, by kind (``query``, ``document``).
        teacher: Teacher's scores; None without a teacher.

    Attributes:
        tokens: Number of tokens, without padding, of each batch that is made but not yet trained on; the trainer fetches one
            batch ahead.
    """

    valid_label_columns: tuple[str, ...] = ()  # the trainer's batch sampler reads it

    def __init__(
        self,
        queries: Tokens,
        documents: Tokens | None,
        source: CandidateSource | None,
        *,
        chunk_tokens: int,
        kept: Mapping[str, KeptStates] | None = None,
        teacher: Teacher | None = None,
    ) -> None:
        self._queries, self._documents, self._source, self._kept = queries, documents, source, kept or {}
        self._chunk_tokens, self._teacher = chunk_tokens, teacher
        self.tokens: deque[int] = deque()

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Return the features of each chunk under its own prefix, and a ``label``.

        Each chunk names its texts' rows in `Remembered`, first the queries' and then the documents'.

        The label is the matrix of grades, with a teacher a stack of grades and the teacher's scores; the rows if no document is encoded.
        """
        # The order within a batch has no effect, and sorted by length the chunks need little padding.
        batch = sorted((row["row"] for row in rows), key=lambda row: (-self._queries.lengths[row], row))
        inputs: dict[str, Any] = {"return_loss": True}
        texts = [("query", self._queries, np.array(batch))]
        if self._source is None or self._documents is None:
            label = torch.tensor(batch)
        else:
            candidates = self._source.candidates(batch)
            order = np.argsort(-self._documents.lengths[candidates.documents], kind="stable")
            texts.append(("document", self._documents, candidates.documents[order]))
            label = torch.from_numpy(candidates.grades[:, order])
            if self._teacher:
                label = torch.stack([label, torch.from_numpy(self._teacher.of(batch, candidates.documents[order]))])
        count = 0
        for kind, tokens, chosen in texts:
            count += int(tokens.lengths[chosen].sum())
            first = len(self._queries) if kind == "document" else 0
            for number, chunk in enumerate(length_batches(tokens.lengths[chosen], self._chunk_tokens)):
                inputs |= {f"{kind}{number}_{key}": value for key, value in tokens.padded(chosen[chunk]).items()}
                inputs[f"{kind}{number}_{ROWS}"] = torch.from_numpy(first + chosen[chunk])
                if kind in self._kept:
                    inputs[f"{kind}{number}_{KEPT}"] = self._kept[kind].padded(chosen[chunk])
        self.tokens.append(count)
        inputs["label"] = label
        return inputs
