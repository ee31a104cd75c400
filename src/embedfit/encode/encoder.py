"""The encoder protocol: texts in, unit vectors out.

`Encoder` is what everything accepts: a name, a fingerprint and ``encode``. `BaseEncoder` is what everything asks for: the
rest, with a default for each. `complete` turns the first into the second.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

Vectors: TypeAlias = npt.NDArray[np.float32]
"""A matrix (texts, dimensions), each row of unit length."""
Kind: TypeAlias = Literal["query", "document"]
Precision: TypeAlias = Literal["auto", "bf16", "fp32"]
PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
NO_PROMPTS: Mapping[Kind, str] = MappingProxyType({"query": "", "document": ""})


class Encoder(Protocol):
    """Anything that turns texts into unit vectors.

    These three members are all that an encoder of your own needs. It may also have ``prompts``, ``remote``, ``identity``,
    ``dimension`` and ``encode_parts``: see `BaseEncoder`, which has the default of each.
    """

    name: str

    @property
    def fingerprint(self) -> str:
        """A text that changes whenever the vectors could. Vectors are cached under it."""
        ...

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order."""
        ...


SLICE = 1024
"""Texts encoded between two writes to the cache."""


class Part(NamedTuple):
    """Vectors of some of the texts: their positions, and a matrix of shape (positions, dimensions)."""

    rows: npt.NDArray[np.int64]
    vectors: Vectors


def slices(texts: Sequence[str]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield the texts' indices in slices, longest first: a killed process loses one slice, and padding stays small."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    for start in range(0, len(order), SLICE):
        yield order[start : start + SLICE]


class BaseEncoder:
    """All that is ever asked of an encoder. A subclass has a name, a fingerprint and ``encode``, and may change the defaults.

    Attributes:
        name: Name for tables and messages.
        prompts: Texts put before each query and before each document; by default empty.
        remote: Whether texts go to another machine, where each one may cost money; by default False.
    """

    name: str
    prompts: Mapping[Kind, str] = NO_PROMPTS
    remote: bool = False

    @property
    def fingerprint(self) -> str:
        """A text that changes whenever the vectors could. Vectors are cached under it."""
        raise NotImplementedError

    @property
    def document_fingerprint(self) -> str:
        """A text that changes whenever the vectors of documents could. They are cached under it. By default the fingerprint."""
        return self.fingerprint

    @property
    def identity(self) -> str:
        """A text that changes whenever the vectors of documents could, and is the same on every machine. Stores keep it.

        By default the fingerprint.
        """
        return self.fingerprint

    @property
    def whole_identity(self) -> str:
        """A text that changes whenever the vectors of documents or queries could, and is the same on every machine.

        By default the identity.
        """
        return self.identity

    @property
    def dimension(self) -> int | None:
        """Number of dimensions of the vectors; None, the default, if it is not known before a text is encoded."""
        return None

    @property
    def saved_at(self) -> Path | None:
        """The folder of the model, or the file of the adapter; None, the default, if nothing is saved on this machine."""
        return None

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return one unit vector per text, in order, as a float32 matrix (texts, dimensions)."""
        raise NotImplementedError

    def encode_parts(self, texts: Sequence[str], kind: Kind) -> Iterator[Part]:
        """Yield the vectors part by part, in any order, so that the cache can keep each part at once. By default in `slices`."""
        for rows in slices(texts):
            yield Part(rows, np.asarray(self.encode([texts[row] for row in rows], kind), np.float32))


class WrappingEncoder(BaseEncoder):
    """An encoder around another one. What a subclass does not change is the other encoder's.

    A subclass with other vectors has another fingerprint. Then its identity is that fingerprint, and neither the dimension nor
    a local model is taken from the encoder inside.

    Args:
        encoder: The encoder inside.
    """

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.name = encoder, encoder.name
        inner = complete(encoder)
        self.prompts, self.remote = inner.prompts, inner.remote

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the encoder inside."""
        return self.encoder.fingerprint

    @property
    def document_fingerprint(self) -> str:
        """That of the encoder inside; the fingerprint if that is another."""
        return complete(self.encoder).document_fingerprint if self.is_same_model else self.fingerprint

    @property
    def identity(self) -> str:
        """The identity of the encoder inside; the fingerprint if that is another."""
        return complete(self.encoder).identity if self.is_same_model else self.fingerprint

    @property
    def whole_identity(self) -> str:
        """The whole identity of the encoder inside; the identity if the fingerprint is another."""
        return complete(self.encoder).whole_identity if self.is_same_model else self.identity

    @property
    def dimension(self) -> int | None:
        """The dimension of the encoder inside; None if the fingerprint is another."""
        return complete(self.encoder).dimension if self.is_same_model else None

    @property
    def saved_at(self) -> Path | None:
        """The place where the encoder inside is saved."""
        return complete(self.encoder).saved_at

    @property
    def is_same_model(self) -> bool:
        """Whether this is the model of the encoder inside: so it is if the fingerprints are equal."""
        return self.fingerprint == self.encoder.fingerprint

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        """Return the vectors of the encoder inside."""
        return self.encoder.encode(texts, kind)


def complete(encoder: Encoder) -> BaseEncoder:
    """Return an encoder with every member of `BaseEncoder`: itself, or one around it that has the defaults for what is missing."""
    return encoder if isinstance(encoder, BaseEncoder) else _Completed(encoder)


class _Completed(BaseEncoder):
    """A user's own encoder, with defaults for what it leaves out."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder, self.name = encoder, encoder.name
        self.prompts = {**NO_PROMPTS, **getattr(encoder, "prompts", {})}
        self.remote = getattr(encoder, "remote", False)

    @property
    def fingerprint(self) -> str:
        return self.encoder.fingerprint

    @property
    def identity(self) -> str:
        return str(getattr(self.encoder, "identity", self.encoder.fingerprint))

    @property
    def dimension(self) -> int | None:
        return getattr(self.encoder, "dimension", None)

    def encode(self, texts: Sequence[str], kind: Kind) -> Vectors:
        return self.encoder.encode(texts, kind)

    def encode_parts(self, texts: Sequence[str], kind: Kind) -> Iterator[Part]:
        parts = getattr(self.encoder, "encode_parts", super().encode_parts)
        yield from parts(texts, kind)
