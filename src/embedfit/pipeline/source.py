"""The inputs of an experiment, from an embedfit.toml, a file of labelled queries, a Config, or a Dataset in memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from pydantic import BaseModel

from embedfit.config import Config, ModelConfig, make_config, overridden, read_config
from embedfit.data.dataset import Dataset
from embedfit.encode.encoder import Encoder, complete
from embedfit.encode.local import local_of
from embedfit.errors import ConfigError, shown
from embedfit.hub import MINILM

Source: TypeAlias = "Config | Dataset | str | Path"
"""Settings, a data set in memory, or the path of an embedfit.toml or of labelled queries."""
Model: TypeAlias = "str | Path | Mapping[str, Any] | ModelConfig | Encoder"
"""A model by name or folder, with its settings as in [model], or as an encoder."""

_LOADING = ("attn_implementation", "model_kwargs")
"""Keys of [model] that may be given like keys outside of sections."""
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
            source: A Dataset, a Config, or the path of an embedfit.toml or of labelled queries.
            model: Model to start from, in place of the one that the settings name.
            settings: Sections and keys of embedfit.toml that override the source, such as ``{"tune": {"epochs": 2}, "output": "runs"}``;
                ``attn_implementation`` and ``model_kwargs`` of [model] may stand outside of their section.

        Raises:
            ConfigError: A key or a value is not valid in embedfit.toml, or the source has another type.
        """
        given = {key: _as_section(value) for key, value in (settings or {}).items()}
        options = {name: given.pop(name) for name in _LOADING if name in given}
        base: Encoder | None = None
        if isinstance(model, str | Path):
            given = overridden(given, {"model": {"name": str(model)}})
        elif isinstance(model, Mapping | ModelConfig):
            given = overridden(given, {"model": _as_section(model)})
        elif model is not None:
            if not hasattr(model, "encode"):
                raise ConfigError(f"model is {shown(model)}; expected a name, a folder, a section [model] or an encoder")
            if options:
                raise ConfigError(f"{next(iter(options))} is for a model that is loaded here, and model is an encoder; fix: set it there")
            base, local = model, local_of(model)
            loaded_as = {"precision": local.precision, "model_kwargs": local.loading} if local else {}
            given = overridden(given, {"model": {"name": str(complete(base).saved_at or base.name), **loaded_as}})
        if options:
            given = overridden(given, {"model": options})
        if isinstance(source, Dataset):
            data = given.get("data", {})
            if not isinstance(data, Mapping) or set(data) - {"document_template"} or given.get("generate"):
                raise ConfigError("a Dataset is used as it is; fix: set document_template alone in data, and leave generate out")
            return cls(make_config(overridden(given, {"data": {"queries": IN_MEMORY}}), where="settings"), source, base)
        if isinstance(source, Config):
            if given:
                source = make_config(overridden(source.model_dump(exclude_unset=True), given), where="settings")
            return cls(source, base=base)
        if isinstance(source, str | Path):
            return cls(read_settings(Path(source), given), base=base)
        raise ConfigError(f"expected a Dataset, a Config or a path, not {type(cast(object, source)).__name__}")


def read_settings(path: Path, given: Mapping[str, Any], where: str = "settings") -> Config:
    """Return the settings that a path names: those of an embedfit.toml, or those of a run on a file of labelled queries.

    Args:
        path: An embedfit.toml or its folder; or labelled queries: a file, a folder, or ``hub:owner/name``.
        given: Settings that override them, by section.
        where: Place of the given settings, for messages.

    Raises:
        ConfigError: There is no such file, or a key or a value is not valid.
    """
    if (path / "embedfit.toml").is_file():
        path = path / "embedfit.toml"
    if not _is_data(path):
        return read_config(path, given)
    return make_config(overridden(_settings_for(path), given), where=where)


def _is_data(path: Path) -> bool:
    return _is_hub(path) or (path.suffix.lower() != ".toml" and (path.exists() or bool(path.suffix)))


def _settings_for(path: Path) -> dict[str, Any]:
    """Return the settings of an experiment on labelled queries, as `embedfit init --from` writes them."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(path).removeprefix("hub:") if _is_hub(path) else path.name.partition(".")[0])
    source = str(path) if _is_hub(path) else str(path.absolute())
    return {"name": name.strip("-.") or "run", "data": {"queries": source}, "model": {"name": MINILM}}


def _is_hub(path: Path) -> bool:
    return str(path).startswith("hub:")


def _as_section(value: Any) -> Any:
    """Return a section as plain values. It may also be an instance of its type, such as ``tune=TuneConfig(epochs=2)``."""
    return value.model_dump(exclude_unset=True) if isinstance(value, BaseModel) else value
