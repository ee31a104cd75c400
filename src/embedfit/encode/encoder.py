"""What an encoder is: texts in, unit vectors out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Vectors: TypeAlias = npt.NDArray[np.float32]
"""A matrix (texts, dimensions), each row of unit length."""
Kind: TypeAlias = Literal["query", "document"]
Precision: TypeAlias = Literal["auto", "bf16", "fp32"]
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}


class Encoder(Protocol):
    """Anything that turns texts into unit vectors."""

    name: str

    @property
    def fingerprint(self) -> str:
        """A text that changes whenever the vectors could."""
        ...

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order."""
        ...


SLICE = 1024
"""Texts encoded between two writes to the cache."""


class Part(NamedTuple):
    """Vectors of some of the texts: which, and shape (rows, dimensions)."""

    rows: npt.NDArray[np.int64]
    vectors: Vectors


def slices(texts: Sequence[str]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the texts' indices in slices, longest first: a killed process loses one slice, and padding stays small."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    for start in range(0, len(order), SLICE):
        yield order[start : start + SLICE]
