"""Batches for training: the tokens of queries and of their candidates."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from embedfit.encode.tokens import Tokens, length_batches
from embedfit.tune.candidates import CandidateSource


class Collator:
    """Make a batch of tokens and grades from the positions of its queries.

    Args:
        queries: Tokens of each query.
        documents: Tokens of each document.
        source: Chooses the documents.
        chunk_tokens: Pad texts of similar length together, up to this many tokens.

    Attributes:
        tokens: For each batch made and not yet trained on (the trainer asks for one ahead), its tokens without padding.
    """

    valid_label_columns: tuple[str, ...] = ()  # asked for by the trainer's batch sampler

    def __init__(self, queries: Tokens, documents: Tokens, source: CandidateSource, *, chunk_tokens: int) -> None:
        self._queries, self._documents, self._source = queries, documents, source
        self._chunk_tokens = chunk_tokens
        self.tokens: deque[int] = deque()

    def __call__(self, rows: Sequence[dict[str, int]]) -> dict[str, Any]:
        """Return the chunks' features, each under a prefix of its own, and the grades as ``label``."""
        # Order within a batch is free, and by length the chunks need little padding.
        batch = sorted((row["row"] for row in rows), key=lambda row: (-self._queries.lengths[row], row))
        found = self._source.candidates(batch)
        order = np.argsort(-self._documents.lengths[found.documents], kind="stable")
        inputs: dict[str, Any] = {"return_loss": True}
        count = 0
        for kind, tokens, chosen in (
            ("query", self._queries, np.array(batch)),
            ("document", self._documents, found.documents[order]),
        ):
            count += int(tokens.lengths[chosen].sum())
            for number, chunk in enumerate(length_batches(tokens.lengths[chosen], self._chunk_tokens)):
                inputs |= {f"{kind}{number}_{key}": value for key, value in tokens.padded(chosen[chunk]).items()}
        self.tokens.append(count)
        inputs["label"] = torch.from_numpy(found.grades[:, order])
        return inputs
