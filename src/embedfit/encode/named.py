"""From the name of a model to its encoder."""

from __future__ import annotations

from pathlib import Path

from embedfit import console
from embedfit.encode.cache import CachedEncoder
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.local import LocalEncoder
from embedfit.encode.onnx import OnnxEncoder, is_exported
from embedfit.encode.pooling import pooling_of, pools_itself
from embedfit.encode.remote import RemoteEncoder, is_remote
from embedfit.encode.sides import TwoEncoders
from embedfit.encode.static import StaticEncoder, is_static
from embedfit.errors import ConfigError, ModelError
from embedfit.hub import model_folder
from embedfit.sections import ModelConfig


def encoder_of(config: ModelConfig, name: str | None = None) -> Encoder:
    """Return the encoder that a configuration names, or another model with the configured prompts and precision.

    Args:
        config: Settings of the model.
        name: Folder, Hub name, remote encoder (`embedfit.encode.remote`), path of an ``adapter.safetensors``, or folder that
            ``embedfit export`` wrote.

    Raises:
        EmbedfitError: The model does not exist, or its API key is missing.
    """
    if name is None and config.is_open:
        raise ModelError(
            "model.candidates leaves the model open, and this needs one; fix: 'embedfit candidates' chooses one, to be set as model.name"
        )
    name = name or config.name
    if is_remote(name):
        if config.pooling != "auto":
            raise ConfigError(f"model.pooling is for models that run here, and {name} does its own pooling; fix: leave it out")
        if config.precision != "auto":
            console.note(f"model.precision is not used: {name} runs behind an API")
        if config.loading:
            console.note(f"model.attn_implementation and model.model_kwargs are not used: {name} runs behind an API")
        return RemoteEncoder(name, query_prompt=config.query_prompt, document_prompt=config.document_prompt, price=config.price)
    if name.endswith(".safetensors") and Path(name).is_file():
        from embedfit.encode.adapted import AdaptedEncoder, load_adapter

        adapter = load_adapter(name)
        return AdaptedEncoder(CachedEncoder(encoder_of(config, adapter.base_name)), adapter)
    if is_exported(Path(name)):
        return OnnxEncoder(name, query_prompt=config.query_prompt, document_prompt=config.document_prompt)
    if is_static(Path(name)):
        return StaticEncoder(name)
    if config.price is not None and name == config.name:
        console.note(f"model.price is not used: {name} is not a remote encoder")
    query, document = config.query_prompt, config.document_prompt
    pooling = config.pooling
    if pooling != "auto" and name != config.name:
        folder = model_folder(name, proof="config.json")
        if pools_itself(folder) or pooling_of(folder):
            pooling = "auto"  # another model may define its own
    local = LocalEncoder(
        name, query_prompt=query, document_prompt=document, precision=config.precision, pooling=pooling, model_kwargs=config.loading
    )
    return local if local.other_side is None else _with_other_side(config, local, *local.other_side)


def _with_other_side(config: ModelConfig, queries: LocalEncoder, name: str, identity: str) -> Encoder:
    """Return an encoder of queries with the encoder of documents that it was trained for."""
    documents = encoder_of(config, name)
    if complete(documents).identity != identity:
        raise ModelError(f"model {queries.name!r} was trained for the documents of {name!r}, which has changed; fix: tune it again")
    return TwoEncoders(queries, CachedEncoder(documents))
