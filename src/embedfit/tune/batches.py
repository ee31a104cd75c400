"""Batches for training: the tokens of queries and of their candidates, each text tokenised once."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer

from embedfit.encode import length_batches
from embedfit.tune.candidates import CandidateSource

_SLICE = 1024
"""Texts tokenised at once."""


class Tokens:
    """The tokens of many texts, cut to the model's length and not padded.

    They lie end to end in one array for each input of the model: as objects, those of a million texts would not fit.

    Args:
        model: Its tokenizer and length.
        texts: What to tokenise.
        prompt: Put before each text.

    Attributes:
        lengths: Tokens of each text.
    """

    def __init__(self, model: SentenceTransformer, texts: Sequence[str], prompt: str) -> None:
        self._pad = model.tokenizer.pad
        found: dict[str, list[npt.NDArray[Any]]] = {}
        self._same: dict[str, Any] = {}
        lengths = []
        for start in range(0, len(texts), _SLICE):
            whole = model.preprocess(list(texts[start : start + _SLICE]), prompt=prompt or None)
            mask = whole["attention_mask"].bool()
            lengths.append(mask.sum(dim=1).numpy())
            for key, value in whole.items():
                if torch.is_tensor(value) and value.shape == mask.shape:
                    kept = value[mask].numpy()
                    # Masks and token types are numbers up to 1; only the tokens' own need more room.
                    found.setdefault(key, []).append(kept.astype(np.int32 if key == "input_ids" else np.int8))
                elif not torch.is_tensor(value):
                    self._same[key] = value
        self.lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        self._ends = np.cumsum(self.lengths)
        self._values = {key: np.concatenate(parts) for key, parts in found.items()}

    def __len__(self) -> int:
        return len(self.lengths)

    def padded(self, positions: npt.NDArray[np.int64]) -> dict[str, Any]:
        """Return the features of these texts, one matrix (texts, longest) for each input of the model."""
        rows = []
        for position in positions:
            end = self._ends[position]
            part = slice(end - self.lengths[position], end)
            rows.append({key: value[part].tolist() for key, value in self._values.items()})
        return {**self._pad(rows, return_tensors="pt"), **self._same}


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
