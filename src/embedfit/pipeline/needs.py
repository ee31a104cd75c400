"""Checks before a command begins: packages, weights, unused settings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from embedfit import console
from embedfit.config import Config, TuneConfig, unused_settings
from embedfit.encode.encoder import Encoder
from embedfit.encode.local import LocalEncoder, local_of
from embedfit.encode.remote import is_remote
from embedfit.errors import ConfigError, ModelError, check_package
from embedfit.generate.relevance import LLM
from embedfit.hub import model_folder
from embedfit.loading import is_quantized, uses_bitsandbytes
from embedfit.retrieve.rerank import LocalReranker
from embedfit.track.langwatch import langwatch_key

_ADAPTERS_SETTINGS = {"method", "documents", "scale", "seed"}
"""Keys of [tune] that an adapter uses; the command notes the rest as unused."""

_RERANKERS_SETTINGS = {
    *("method", "reranker", "epochs", "batch_size", "learning_rate", "warmup", "weight_decay", "dropout", "train_embeddings"),
    *("hard_negatives", "mined_margin", "judge", "memory_gb", "patience", "seed"),
}
"""Keys of [tune] that a reranker uses; the command notes the rest as unused."""


def local(encoder: Encoder) -> LocalEncoder:
    """Return the local encoder of an encoder, which has its weights on this machine.

    Raises:
        ModelError: The encoder is not a local model.
    """
    model = local_of(encoder)
    if model is None:
        raise ModelError(f"{encoder.name} is not a local model, so its tokens and weights are not here")
    return model


def reranker_start(config: TuneConfig, base: Encoder) -> str:
    """Return the model that a reranker starts from.

    Raises:
        ModelError: The settings name none, and the base model is not on this machine.
    """
    return config.reranker or str(local(base).folder)


def check_installed(config: Config, *, trains: bool = False, stores: bool = False, model: str | None = None) -> None:
    """Check at the start, and not after hours of work, that all required packages are installed.

    Args:
        config: All settings.
        trains: Whether the command trains a model.
        stores: Whether the command uses the vector store.
        model: Model in place of the configured model; None for the configured model.

    Raises:
        EmbedfitError: A package is missing; the message has the command that installs it.
    """
    needed: list[tuple[str, str]] = []
    if trains:
        needed += [("peft", "lora")] if config.tune.method == "lora" else []
        needed += [(name, name) for name in config.track.report_to]
        asks = config.generate.records or config.generate.questions or (config.tune.judge or "").startswith(LLM)
        needed += [("openai", "generate")] if asks else []
    if stores:
        packages = {"chroma": ("chromadb",), "pgvector": ("psycopg", "pgvector"), "qdrant": ("qdrant_client",)}
        needed += [(name, config.store.kind) for name in packages[config.store.kind]]
    if config.engine == "ray":
        needed.append(("ray", "ray"))
    name = model or config.model.name
    if is_remote(name) and name.startswith("openai:"):
        needed.append(("openai", "openai"))
    if config.track.langwatch and langwatch_key():
        needed += [(name, "langwatch") for name in ("opentelemetry.exporter.otlp.proto.common", "opentelemetry.sdk")]
    for package, extra in needed:
        check_package(package, extra=extra)


def note_unused(config: Config, command: str) -> None:
    """Note in one line the given settings that a command does not use, although a user could expect it to."""
    unused = unused_settings(config, command)
    if unused:
        console.note(f"'embedfit {command}' does not use {', '.join(unused)}")


def check_method(base: Encoder, config: TuneConfig, report_to: Sequence[str] = ()) -> None:
    """Check, before anything is paid for, that the method can train this model, and note the settings that it does not use.

    Raises:
        ConfigError: The method trains weights, and the model is not local; the method is an adapter, and ``track.report_to``
            needs a training of weights; or the model has fewer layers than are to be frozen.
        ModelError: The judge of mined documents is not a local cross-encoder.
    """
    model = local_of(base)
    if config.method == "adapter" and report_to:
        raise ConfigError(
            "track.report_to follows the training of weights, which an adapter does not change; fix: leave it out, or tune.method = 'full'"
        )
    if model and uses_bitsandbytes(model.loading):
        check_package("bitsandbytes", extra="quantized")
    if config.method == "reranker":
        _check_reranker(model, config)
        return
    if config.query_model:
        if config.documents != "frozen" or config.method == "adapter":
            raise ConfigError(
                "tune.query_model is trained for frozen documents; fix: tune.documents = 'frozen', with method 'full' or 'lora'"
            )
        model = LocalEncoder(config.query_model)
    if config.method != "adapter" and not model:
        raise ConfigError(f'{base.name} has no weights here to train; fix: method = "adapter" in [tune] fits a map of its query vectors')
    unused = sorted(config.model_fields_set - _ADAPTERS_SETTINGS) if config.method == "adapter" else []
    if unused:
        console.note(f"an adapter is fitted without {', '.join(f'tune.{name}' for name in unused)}")
    elif config.method == "full" and "lora_rank" in config.model_fields_set:
        console.note("tune.lora_rank is not used: tune.method is 'full'")
    if config.judge and not config.judge.startswith(LLM) and config.method != "adapter" and config.documents == "trained":
        LocalReranker(config.judge)
    if config.teacher not in (None, "data") and config.method != "adapter":
        LocalReranker(str(config.teacher))
    if model and config.method == "full" and is_quantized(model.loading):
        raise ConfigError("model.model_kwargs: quantized weights cannot be trained; fix: tune.method = 'lora', or leave the option out")
    if model and config.freeze != "auto" and config.method != "adapter":
        layers = number_of_layers(model.folder)
        if layers is not None and config.freeze >= layers:
            raise ConfigError(f"tune.freeze is {config.freeze}, and {model.name} has {layers} layers; fix: a smaller number")


def _check_reranker(model: LocalEncoder | None, config: TuneConfig) -> None:
    """Check that there is a model to start a reranker from, and note the settings that it does not use."""
    if not (config.reranker or model):
        raise ConfigError("tune.method 'reranker' needs a model to start from; fix: tune.reranker, such as a cross-encoder's folder")
    judge = None if config.judge and config.judge.startswith(LLM) else config.judge
    for name in filter(None, (config.reranker, judge)):
        model_folder(name, proof="config.json")
    unused = sorted(config.model_fields_set - _RERANKERS_SETTINGS)
    if unused:
        console.note(f"a reranker is tuned without {', '.join(f'tune.{name}' for name in unused)}")


def refuse_parts(config: Config, command: str) -> None:
    """Refuse the tuning of a model for queries alone where the command measures whole models, and a reranker in a curve.

    Raises:
        ConfigError: ``tune.query_model`` is set, or the command is ``curve`` and ``tune.method`` is ``reranker``.
    """
    if config.tune.query_model:
        raise ConfigError(
            f"'embedfit {command}' measures models that encode documents too; fix: 'embedfit tune' with tune.query_model, and 'embedfit "
            "evaluate --model' for the result"
        )
    if config.tune.method == "reranker" and command == "curve":
        raise ConfigError("'embedfit curve' measures models that encode; fix: 'embedfit run' measures a reranker")


def number_of_layers(folder: Path) -> int | None:
    """Return the number of layers that a model's folder names; None if it names none."""
    path = folder / "config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    layers = settings.get("num_hidden_layers")
    return layers if isinstance(layers, int) else None
