"""embedfit.toml as a whole: reading it, checking it, and placing its paths."""

from __future__ import annotations

import json
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from embedfit.errors import ConfigError, did_you_mean, shown
from embedfit.metrics import check_metric
from embedfit.secrets import FROM_ENVIRONMENT, NO_SECRETS_IN, SECRET_KEYS, refuse_secrets, refuse_urls_with_secrets
from embedfit.sections import (
    DataConfig,
    DeployConfig,
    EvaluateConfig,
    GeneralConfig,
    GenerateConfig,
    LadderConfig,
    MixConfig,
    ModelConfig,
    SearcherConfig,
    Section,
    SplitConfig,
    StoreConfig,
    TrackConfig,
)
from embedfit.tuning_section import TuneConfig

__all__ = [
    "Config",
    "DataConfig",
    "DeployConfig",
    "EvaluateConfig",
    "GeneralConfig",
    "GenerateConfig",
    "LadderConfig",
    "MixConfig",
    "ModelConfig",
    "SearcherConfig",
    "Section",
    "SplitConfig",
    "StoreConfig",
    "TrackConfig",
    "TuneConfig",
    "json_schema",
    "make_config",
    "placed_in",
    "read_config",
    "unused_settings",
    "with_method",
]


class Config(Section):
    """A whole experiment."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9._-]+$", description="First part of a run directory's name.")
    output: str = Field("runs", description="Folder of the run directories.")
    engine: Literal["local", "ray"] = Field("local", description="Where to encode, search and mine: in this process, or on a Ray cluster.")
    data: DataConfig
    split: SplitConfig = SplitConfig()
    model: ModelConfig = ModelConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    tune: TuneConfig = TuneConfig()
    mix: MixConfig = MixConfig()
    searcher: SearcherConfig = SearcherConfig()
    deploy: DeployConfig = DeployConfig()
    general: GeneralConfig = GeneralConfig()
    ladder: LadderConfig = LadderConfig()
    store: StoreConfig = StoreConfig()
    track: TrackConfig = TrackConfig()
    generate: GenerateConfig = GenerateConfig()


_GENERAL = ("general.queries", "general.documents", "general.measure", "general.keep")
_UNUSED = {
    "tune": ("split.folds", "evaluate.seeds", *_GENERAL),
    "ladder": ("tune.query_model", "evaluate.bm25", "evaluate.seeds", *_GENERAL),
    "curve": ("tune.patience", "evaluate.bm25", "evaluate.seeds", *_GENERAL),
    "evaluate": ("split.folds", "split.leaks", "evaluate.bm25"),
    "compare": ("split.folds", "split.leaks"),
}
"""Command -> settings that it does not use, although a user could expect it to. The command notes this if they are set.
docs/config.md lists the settings that each command uses."""


def unused_settings(config: Config, command: str) -> list[str]:
    """Return the settings that differ from their defaults and that a command notes as unused."""
    given = []
    for key in _UNUSED.get(command, ()):
        section, name = key.split(".")
        value = getattr(config, section)
        if getattr(value, name) != type(value).model_fields[name].default:
            given.append(key)
    return given


def with_method(config: TuneConfig, method: str) -> TuneConfig:
    """Return the settings for another method, without those that suit only the current one."""
    if method == config.method:
        return config
    suits_one = {"method", "learning_rate", "train_embeddings"}
    return TuneConfig.model_validate({**config.model_dump(exclude_unset=True, exclude=suits_one), "method": method})


def read_config(path: str | Path, options: Mapping[str, Any] | None = None) -> Config:
    """Read embedfit.toml. Its paths are relative to the file.

    Args:
        path: Path of the file.
        options: Settings that override the file: section -> key -> value, or key -> value outside of sections.

    Raises:
        ConfigError: The file does not exist, is not TOML, or holds an unknown key or an invalid value.
    """
    path = Path(path)
    try:
        # Windows editors add a byte order mark, which TOML does not allow.
        settings = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        beside = [other.name for other in path.parent.glob("*.toml")]
        raise ConfigError(f"{path}: {error.strerror}{did_you_mean(path.name, beside)}; fix: 'embedfit init' writes one") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None
    return make_config(overridden(settings, options or {}), where=str(path), folder=path.parent)


def overridden(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with changes in their place: section -> key -> value, or key -> value outside of sections.

    Folds replace a single split. A section that is no table stays, to be refused by `make_config`.
    """
    merged = dict(settings)
    for key, change in changes.items():
        section = merged.get(key, {})
        if not isinstance(change, Mapping):
            merged[key] = change
        elif change and isinstance(section, Mapping):
            merged[key] = {**section, **change}
            if key == "split" and change.get("folds"):
                merged[key].pop("test", None)
    return merged


def make_config(settings: dict[str, Any], *, where: str = "config", folder: Path = Path()) -> Config:
    """Check a configuration and place its paths in a folder.

    Args:
        settings: Section -> key -> value, as in embedfit.toml.
        where: Name of the source, for messages.
        folder: Folder that paths are relative to.

    Raises:
        ConfigError: A key is unknown, or a value is invalid. The message suggests the nearest known key.
    """
    try:
        refuse_secrets(settings.get("store"), where)
        for section in NO_SECRETS_IN:
            refuse_urls_with_secrets(settings.get(section), section, where)
        config = Config.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_first_problem(error)}") from None
    try:
        check_metric(config.evaluate.metric, config.evaluate.k)
    except ConfigError as error:
        raise ConfigError(f"{where}: key 'evaluate.metric': {error}") from None
    if config.split.folds and "test" in config.split.model_fields_set:
        raise ConfigError(
            f"{where}: split.test = {config.split.test:g} and split.folds = {config.split.folds} contradict each other: "
            "folds hold out every query once; fix: leave one of them out"
        )
    if config.general.documents and not config.general.queries:
        raise ConfigError(f"{where}: general.documents needs general.queries; fix: set both, or leave both out")
    unused = [name for name in ("queries", "keep") if getattr(config.general, name) is not None]
    if config.general.measure == "off" and unused:
        raise ConfigError(f"{where}: general.measure is 'off', and general.{unused[0]} needs it; fix: leave one of them out")
    return placed_in(config, folder)


def placed_in(config: Config, folder: Path) -> Config:
    """Return a configuration with its relative paths placed in a folder. Absolute paths stay."""

    def beside(path: str | None) -> str | None:
        return path if path is None or path.startswith("hub:") else str(folder / path)

    def placed(data: DataConfig) -> DataConfig:
        record = data.record if data.record in (None, "transaction") or ":" in str(data.record) else str(folder / str(data.record))
        paths = {name: beside(getattr(data, name)) for name in ("queries", "documents", "qrels")}
        return data.model_copy(update={**paths, "record": record})

    data = placed(config.data)
    mix = config.mix.model_copy(update={"data": tuple(map(placed, config.mix.data))})
    general = config.general
    general = general.model_copy(update={"queries": beside(general.queries), "documents": beside(general.documents)})
    generate = config.generate
    generate = generate.model_copy(update={key: beside(getattr(generate, key)) for key in ("prompt", "judge_prompt", "examples")})
    model = config.model
    if (folder / model.name).exists():  # a model's folder, or an adapter's file
        model = model.model_copy(update={"name": str(folder / model.name)})
    if model.candidates:
        names = (str(folder / name) if (folder / name).exists() else name for name in model.candidates)
        model = model.model_copy(update={"candidates": tuple(names)})
    store = config.store
    if store.kind != "pgvector" and "://" not in store.location and not store.location.startswith(FROM_ENVIRONMENT):
        store = store.model_copy(update={"location": str(folder / store.location)})
    rerankers = tuple(str(folder / name) if (folder / name).is_dir() else name for name in config.evaluate.rerankers)
    evaluate = config.evaluate.model_copy(update={"rerankers": rerankers})
    models = {key: getattr(config.tune, key) for key in ("reranker", "query_model", "judge", "teacher")}
    tune = config.tune.model_copy(update={key: str(folder / name) for key, name in models.items() if name and (folder / name).is_dir()})
    sections = {
        "data": data,
        "mix": mix,
        "general": general,
        "generate": generate,
        "model": model,
        "evaluate": evaluate,
        "tune": tune,
        "store": store,
    }
    return config.model_copy(update={**sections, "output": str(folder / config.output)})


def json_schema() -> str:
    """Return the JSON Schema of embedfit.toml, for editors."""
    return json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", **Config.model_json_schema()}, indent=2)


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        section: Any = Config
        for part in first["loc"][:-1]:
            if isinstance(part, str):  # numbers are positions in a list, whose type is known already
                section = section.model_fields[part].annotation
                section = typing.get_args(section)[0] if typing.get_origin(section) is tuple else section
        known = list(section.model_fields)
        return f"key {key!r} is unknown" + (did_you_mean(str(first["loc"][-1]), known) or f"; known: {', '.join(known)}")
    if first["type"] == "missing":
        return f"key {key!r} is missing"
    if key.startswith(SECRET_KEYS) or first["loc"] in (("generate",), ("store",)):
        return f"key {key!r}: {first['msg']}"
    seen = shown(first["input"]) if _is_plain(first["input"]) else "something that is not shown, as it may be a secret"
    return f"key {key!r}: {first['msg']}, seen {seen}"


def _is_plain(value: Any) -> bool:
    """Return whether a misplaced value cannot be a secret: a number, or a short word like those of a choice."""
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return not isinstance(value, dict) and (not isinstance(value, str) or bool(_CHOICE.fullmatch(value)))


_CHOICE = re.compile(r"[a-z]{0,12}[0-9]{0,2}|[0-9.,+-]{1,6}")
