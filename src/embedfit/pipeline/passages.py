"""Passages of a folder of documents, cut to the length that a model reads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from embedfit.config import DataConfig, ModelConfig
from embedfit.data.folders import Cutting, about_tokens
from embedfit.encode.lengths import Lengths
from embedfit.encode.local import LocalEncoder
from embedfit.encode.remote import is_remote
from embedfit.errors import ConfigError

_TOKENS = 256


def cutting_of(data: DataConfig, model: ModelConfig | None) -> Cutting | None:
    """Return how the documents of a configuration are cut into passages; None if they are no folder.

    Args:
        data: Settings of the data.
        model: Settings of the model, whose tokens are counted. Those of a remote model are estimated.

    Raises:
        ConfigError: A passage may have more tokens than the model reads.
        EmbedfitError: The model is missing.
    """
    tokens, overlap = data.passage_tokens, data.passage_overlap
    if not data.documents or not Path(data.documents).is_dir():
        if tokens is not None or overlap is not None:
            key = "passage_overlap" if tokens is None else "passage_tokens"
            raise ConfigError(f"data.{key} is for a folder of documents, and data.documents is {data.documents}; fix: leave it out")
        return None
    if model is None:
        raise ValueError("a folder of documents is cut by the tokens of a model")
    cutting = Cutting(about_tokens, tokens or _TOKENS, overlap, data.document_template, data.encoding or "")
    encoder = _local(model)
    if encoder is None:
        return cutting
    lengths = Lengths(encoder)
    if cutting.tokens > lengths.limit:
        if tokens:
            raise ConfigError(f"data.passage_tokens is {cutting.tokens:,}; expected at most {lengths.limit:,}, which {encoder.name} reads")
        cutting = replace(cutting, tokens=lengths.limit)
    return replace(cutting, count=lambda texts: lengths.count(texts).tolist())


def _local(model: ModelConfig) -> LocalEncoder | None:
    name = model.name
    if name.endswith(".safetensors") and Path(name).is_file():
        from embedfit.encode.adapted import load_adapter

        name = load_adapter(name).base_name
    if is_remote(name):
        return None
    return LocalEncoder(
        name,
        query_prompt=model.query_prompt,
        document_prompt=model.document_prompt,
        pooling=model.pooling,
        model_kwargs=model.loading,
    )
