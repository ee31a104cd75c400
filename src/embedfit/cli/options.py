"""Arguments and options that several commands share, and the settings that come of them."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

if TYPE_CHECKING:
    from embedfit.config import Config


FormName: TypeAlias = Literal["onnx", "onnx-int8", "static"]

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="embedfit.toml, or a file of labelled queries.")]

HERE = Path("embedfit.toml")

OptionalConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="Configuration file.")]

SourcePath = Annotated[Path, typer.Argument(metavar="SOURCE", help="Configuration file, or a file of labelled queries.")]

QueryColumn = Annotated[str | None, typer.Option("--query", help="Column of the query text. Default: one with a common name.")]

LabelColumn = Annotated[str | None, typer.Option("--label", help="Column of the labels. Default: one with a common name.")]

Documents = Annotated[Path | None, typer.Option("--documents", help="File or folder of documents. Default: each label is one.")]

ModelName = Annotated[str | None, typer.Option("--model", help="Base model. Default for a file of queries: all-MiniLM-L6-v2.")]

Folds = Annotated[int | None, typer.Option(help="Number of folds for cross-validation, in place of split.test; 0 means one split.")]

AllowLeaks = Annotated[
    bool, typer.Option("--allow-leaks", help="Continue although training has seen held-out queries. The report says so in red.")
]

Price = Annotated[
    float | None, typer.Option(min=0, help="Price of a remote encoder, in US dollars per million tokens. Default: OpenAI's list price.")
]

EngineName = Annotated[
    Literal["local", "ray"] | None, typer.Option(help="Where to encode and search: on this machine, or on a Ray cluster. Default: local.")
]

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Setting of embedfit.toml, such as tune.epochs=2; repeatable."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print only the result to stdout, as JSON.")]


def pairs_of(option: str, given: Sequence[str]) -> dict[str, str]:
    """Return the keys and values of a repeatable option KEY=VALUE.

    Raises:
        ConfigError: A key or an equals sign is missing, or a key is given twice.
    """
    from embedfit.errors import ConfigError, shown

    pairs = dict(text.partition("=")[::2] for text in given)
    for text in given:
        if "=" not in text or text.startswith("="):
            raise ConfigError(f"{option} {shown(text)}; expected KEY=VALUE")
    if len(pairs) < len(given):
        raise ConfigError(f"{option} names a key twice; expected each once, as it has one value")
    return pairs


def settings_of(
    path: Path, folds: int | None, allow_leaks: bool, options: dict[str, dict[str, Any]], overrides: Sequence[str] | None = None
) -> Config:
    """Return the configuration of a file, overridden by the options of the command line. Labelled queries need no embedfit.toml.

    Args:
        path: An embedfit.toml, or labelled queries.
        folds: Number of folds; None for that of the file.
        allow_leaks: Whether leaks are allowed.
        options: Settings that other options give, by section. None stands for an option that is not given.
        overrides: Values of ``--set``. Options of their own go before them.
    """
    from embedfit.config import overridden
    from embedfit.pipeline.source import read_settings

    options = {**options, "split": {"folds": folds, "leaks": "allow" if allow_leaks else None}}
    given = {section: {key: value for key, value in values.items() if value is not None} for section, values in options.items()}
    return read_settings(
        path, overridden(_set(overrides or ()), {key: values for key, values in given.items() if values}), "the command line"
    )


def _set(given: Sequence[str]) -> dict[str, Any]:
    """Return the settings that ``--set KEY=VALUE`` gives. A value is one of TOML, or else a text without quotes."""
    from embedfit.errors import ConfigError, shown

    lines = []
    for key, value in pairs_of("--set", given).items():
        line = f"{key} = {value}"
        lines.append(line if _is_toml(line) else f"{key} = {json.dumps(value.strip(), ensure_ascii=False)}")
        if not _is_toml(lines[-1]) or "\n" in key:
            raise ConfigError(f"--set {shown(key)}; expected a key of embedfit.toml, such as tune.epochs")
    try:
        return tomllib.loads("\n".join(lines))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--set: the keys do not go together: {error}") from None


def _is_toml(line: str) -> bool:
    try:
        return len(tomllib.loads(line)) == 1
    except tomllib.TOMLDecodeError:
        return False


def data_options(query: str | None, label: str | None, documents: Path | None) -> dict[str, Any]:
    """Return the settings of [data] that the options of the command line give."""
    return {"query": query, "label": label, "documents": absolute(documents)}


def with_engine(settings: Config, engine: str | None) -> Config:
    """Return the settings, with another engine if it is named."""
    return settings.model_copy(update={"engine": engine}) if engine else settings


def absolute(path: Path | None) -> str | None:
    """Return a path that means the same from anywhere, as those in a configuration are relative to its file."""
    return str(path.resolve()) if path else None


def check_folder(option: str, folder: Path) -> None:
    """Refuse the name of a file where a folder will be made.

    Raises:
        ConfigError: The path is a file, or has a file's extension.
    """
    from embedfit.errors import ConfigError

    is_file = folder.exists() and not folder.is_dir()
    if is_file or (folder.suffix.lower() in _FILES and not folder.exists()):
        raise ConfigError(f"{option} {folder}: expected a folder{', and it is a file' if is_file else ''}; fix: such as {folder.stem}")


_FILES = {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".toml", ".safetensors", ".html", ".tar", ".zip", ".gz", ".txt", ".md", ".xlsx"}
