"""A local model that reads more of each text than its folder says."""

from __future__ import annotations

import json
from collections.abc import Sequence

from embedfit.encode.encoder import Kind, Vectors, WrappingEncoder
from embedfit.encode.local import LocalEncoder
from embedfit.files import digest

_RESERVED = 2
"""Positions that RoBERTa and its relatives do not give to tokens."""


def readable_length(encoder: LocalEncoder) -> int | None:
    """Return the number of tokens that a model has positions for; None if its config.json does not say."""
    path = encoder.folder / "config.json"
    positions = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings") if path.exists() else None
    return positions - _RESERVED if isinstance(positions, int) and positions > _RESERVED else None


class LongerEncoder(WrappingEncoder):
    """A local model with another limit of tokens.

    Args:
        encoder: Model.
        length: Number of tokens that it reads of a text.
    """

    def __init__(self, encoder: LocalEncoder, length: int) -> None:
        super().__init__(encoder)
        self._length = length

    @property
    def fingerprint(self) -> str:
        """Hash of the model and the limit."""
        return digest([self.encoder.fingerprint, "length", self._length])

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions)."""
        model = self.encoder.loaded.model  # type: ignore[attr-defined]
        before = model.max_seq_length
        model.max_seq_length = self._length
        try:
            return self.encoder.encode(texts, kind)
        finally:
            model.max_seq_length = before
