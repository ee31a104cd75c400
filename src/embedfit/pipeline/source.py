"""The inputs of an experiment, from an embedfit.toml, a Config, or a Dataset in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from embedfit.config import Config, make_config, read_config
from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, complete
from embedfit.errors import ConfigError

Source: TypeAlias = "Config | Dataset | str | Path"
"""Settings, a data set in memory, or the path of an embedfit.toml."""
Model: TypeAlias = "str | Path | Encoder"
"""A model by name or folder, or an encoder."""

IN_MEMORY = "(in memory)"
"""Value of ``data.queries`` for a data set that was not read from files."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of an experiment.

    Attributes:
        config: All settings.
        dataset: Data set in memory; None if the settings name files.
        base: Encoder to start from; None if the settings name a model.
    """

    config: Config
    dataset: Dataset | None = None
    base: Encoder | None = None

    @classmethod
    def of(cls, source: Source, model: Model | None = None, settings: dict[str, Any] | None = None) -> Inputs:
        """Return the inputs that a source describes, with the caller's settings in place of its own.

        Args:
            source: A Dataset, a Config, or the path of an embedfit.toml.
            model: Model to start from, in place of the one that the settings name.
            settings: Sections and keys of embedfit.toml that override the source, such as ``{"tune": {"epochs": 2}, "output": "runs"}``.

        Raises:
            ConfigError: A key or a value is not valid in embedfit.toml, or the source has another type.
        """
        given = _as_sections(settings or {})
        base = None if model is None or isinstance(model, str | Path) else model
        if model is not None:
            name = str(model) if base is None else str(complete(base).saved_at or base.name)
            given["model"] = {**given.get("model", {}), "name": name}
        if isinstance(source, Dataset):
            if (set(given.get("data", {})) - {"document_template"}) or given.get("generate"):
                raise ConfigError("a Dataset is used as it is; fix: set document_template alone in data, and leave generate out")
            given["data"] = {**given.get("data", {}), "queries": IN_MEMORY}
            return cls(make_config(given, where="settings"), source, base)
        if isinstance(source, Config):
            config = make_config(_merged(source.model_dump(exclude_unset=True), given), where="settings") if given else source
            return cls(config, base=base)
        if isinstance(source, str | Path):
            return cls(read_config(source, given), base=base)
        raise ConfigError(f"expected a Dataset, a Config or the path of an embedfit.toml, not {type(cast(object, source)).__name__}")


def _as_sections(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as plain values. A section may also be an instance of its type, such as ``tune=TuneConfig(epochs=2)``."""
    return {key: value.model_dump(exclude_unset=True) if hasattr(value, "model_dump") else value for key, value in settings.items()}


def _merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    sections = {key: {**settings.get(key, {}), **value} if isinstance(value, dict) else value for key, value in changes.items()}
    return {**settings, **sections}
