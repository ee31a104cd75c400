"""Arguments and options that several commands share, and the settings that come of them."""

from __future__ import annotations

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
        raise ConfigError(f"{option} names a key twice; expected each once, as a document has one value for it")
    return pairs


def settings_of(path: Path, folds: int | None, allow_leaks: bool, options: dict[str, dict[str, Any]]) -> Config:
    """Return the configuration of a file, overridden by the options of the command line. Labelled queries need no embedfit.toml."""
    from embedfit.pipeline.source import read_settings

    options = {**options, "split": {"folds": folds, "leaks": "allow" if allow_leaks else None}}
    given = {section: {key: value for key, value in values.items() if value is not None} for section, values in options.items()}
    return read_settings(path, given, where="the command line")


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
