"""What a command needs before it begins: packages, weights, settings that it uses."""

from __future__ import annotations

from collections.abc import Sequence

from embedfit import console
from embedfit.config import Config, TuneConfig, unused_settings
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.local import LocalEncoder
from embedfit.encode.remote import is_remote
from embedfit.errors import ConfigError, ModelError, check_package
from embedfit.retrieve.rerank import LocalReranker
from embedfit.track.langwatch import langwatch_key

_ADAPTERS_SETTINGS = {"method", "scale", "seed"}
"""What an adapter heeds of [tune]; the rest is noted as unused."""


def local(encoder: Encoder) -> LocalEncoder:
    """Return an encoder that has its weights here.

    Raises:
        ModelError: It has not.
    """
    model = complete(encoder).local
    if model is None:
        raise ModelError(f"{encoder.name} reads texts elsewhere, so its tokens and weights are not here")
    return model


def check_installed(config: Config, *, trains: bool = False, stores: bool = False, model: str | None = None) -> None:
    """Refuse in the first second what would need a package that is not installed, and not after hours of work.

    Args:
        config: All settings.
        trains: Whether the command trains a model.
        stores: Whether it needs the vector store.
        model: What it uses in place of the configured model.

    Raises:
        EmbedfitError: A package is missing, with the command that installs it.
    """
    needed: list[tuple[str, str]] = []
    if trains:
        needed += [("peft", "lora")] if config.tune.method == "lora" else []
        needed += [(name, name) for name in config.track.report_to]
        needed += [("openai", "generate")] if config.generate.records or config.generate.questions else []
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
    """Say in one line which settings that were given have no part in a command, where one could think that they had."""
    unused = unused_settings(config, command)
    if unused:
        console.note(f"'embedfit {command}' does not use {', '.join(unused)}")


def check_method(base: Encoder, config: TuneConfig, report_to: Sequence[str] = ()) -> None:
    """Refuse to train weights that are not here, before anything is paid for, and say what the method has no use for.

    Raises:
        ConfigError: The method needs weights, and the model is behind an API; or it is an adapter, and something asked for needs a
            training of weights.
        ModelError: The judge of mined documents is no cross-encoder that is here.
    """
    if config.method == "adapter" and report_to:
        raise ConfigError(
            "track.report_to follows the training of weights, and an adapter is fitted in seconds without it; "
            "fix: leave it out, or tune.method = 'full'"
        )
    if config.method != "adapter" and not complete(base).local:
        raise ConfigError(f'{base.name} has no weights here to train; fix: method = "adapter" in [tune] fits a map of its query vectors')
    unused = sorted(config.model_fields_set - _ADAPTERS_SETTINGS) if config.method == "adapter" else []
    if unused:
        console.note(f"an adapter is fitted without {', '.join(f'tune.{name}' for name in unused)}")
    elif config.method == "full" and "lora_rank" in config.model_fields_set:
        console.note("tune.lora_rank is not used: tune.method is 'full'")
    if config.judge and config.method != "adapter":
        LocalReranker(config.judge)
