"""Lengths of texts in a model's own tokens, without loading the model."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from embedfit.encode.encoder import Kind
from embedfit.encode.local import LocalEncoder, Truncation

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SLICE = 4096
"""Texts tokenised at once."""
_OF_PLAIN_MODELS = {"modality_config", "module_output_name", "transformer_task", "max_seq_length", "do_lower_case"}


class Lengths:
    """The number of tokens that a local model makes of texts, and the number that it reads.

    Most models have a ``tokenizer.json``, which is read alone: it takes a hundredth of the time that loading the model takes. For
    others, the model is loaded.

    Args:
        encoder: Model whose tokens are counted.
    """

    def __init__(self, encoder: LocalEncoder) -> None:
        self._encoder = encoder

    @cached_property
    def limit(self) -> int:
        """Number of tokens that the model reads of a text; a huge number if it has no limit."""
        if self._tokenizer is None:
            return self._encoder.loaded.truncation([], "document").limit
        own = self._settings.get("max_seq_length")
        most = own or _json(self._path / "tokenizer_config.json").get("model_max_length") or sys.maxsize
        if own is None:
            positions = _json(self._path / "config.json").get("max_position_embeddings")
            most = min(most, positions if isinstance(positions, int) and positions > 0 else sys.maxsize)
        return int(min(most, sys.maxsize))

    def truncation(self, texts: Sequence[str], kind: Kind) -> Truncation:
        """Return the number of tokens of each text with its prompt, and how many the model reads."""
        if self._tokenizer is None:
            return self._encoder.loaded.truncation(texts, kind)
        counts = np.zeros(len(texts), np.int64)
        prompt = self._encoder.prompts[kind]
        for start in range(0, len(texts), _SLICE):
            batch = [prompt + text for text in texts[start : start + _SLICE]]
            encodings = self._tokenizer.encode_batch_fast(batch)
            counts[start : start + len(batch)] = [len(encoding) for encoding in encodings]
        return Truncation(counts, self.limit)

    def count(self, texts: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the number of tokens of each text as a document."""
        return self.truncation(texts, "document").counts

    @cached_property
    def _path(self) -> Path:
        """The folder of the transformer within that of the model."""
        modules = _json(self._encoder.folder / "modules.json", list)
        return self._encoder.folder / str(modules[0].get("path") or "") if modules else self._encoder.folder

    @cached_property
    def _settings(self) -> Mapping[str, Any]:
        settings: Mapping[str, Any] = _json(self._path / "sentence_bert_config.json")
        return settings

    @cached_property
    def _tokenizer(self) -> Tokenizer | None:
        """The tokenizer, or None if sentence-transformers does more with a text than to tokenise it."""
        modules = _json(self._encoder.folder / "modules.json", list)
        plain = not modules or str(modules[0].get("type")).endswith(".Transformer")
        modalities = self._settings.get("modality_config") or {"text": {}}
        if not plain or self._settings.keys() - _OF_PLAIN_MODELS or self._settings.get("do_lower_case") or list(modalities) != ["text"]:
            return None
        if not (self._path / "tokenizer.json").exists():
            return None
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self._path / "tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


def _json(path: Path, kind: type = dict) -> Any:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return kind()
    return value if isinstance(value, kind) else kind()
