"""The beginning of an experiment on the data of the user: what was found in it, and an embedfit.toml that reads it."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedfit.data.folders import SUFFIXES
from embedfit.data.formats.encodings import read_lines
from embedfit.data.formats.sniffing import Sniffed, sniff
from embedfit.data.layouts import holds_tables
from embedfit.errors import ConfigError, DataError, shown
from embedfit.hub import MINILM
from embedfit.samples.starting import toml_for

_LINES = 100_000
"""Lines of a text file that are looked at for its encoding."""
_CELL = 60
"""Maximum length of a cell that is shown, in characters."""


@dataclass(frozen=True)
class Start:
    """The beginning of an experiment on the data of the user.

    Attributes:
        toml: Text of the embedfit.toml.
        lines: What was found in the data, in sentences.
        columns: Names of the columns; empty for a folder of documents.
        rows: The first rows, with shortened cells.
        next: Command to go on with.
    """

    toml: str
    lines: tuple[str, ...]
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    next: str = "check"


def start_for(source: Path, folder: Path, *, query: str | None, label: str | None, documents: Path | None, model: str | None) -> Start:
    """Return the beginning of an experiment on a file of labelled queries, or on a folder of documents.

    Args:
        source: The file or folder.
        folder: Folder of the embedfit.toml, which its paths are relative to.
        query: Column of the query text, if it is known.
        label: Column of the labels, if it is known.
        documents: File or folder of documents; None if each label is one.
        model: Base model; by default the one that works offline.

    Raises:
        DataError: The file cannot be read.
        ConfigError: No column can be taken for the query or the label.
    """
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source.resolve().name.partition(".")[0]).strip("-.") or "run"
    model = model or MINILM
    if source.is_dir() and not holds_tables(source):
        if query or label or documents:
            raise ConfigError(f"--from {source} is a folder of documents, which have no columns; fix: --from alone")
        return _for_documents(source, folder, name, model)
    settings: dict[str, Any] = {"queries": _beside(source, folder)}
    if source.is_dir():
        return Start(toml_for(name, settings, model=model), (f"{source}: a folder with a data set",))
    seen = _sniffed(source, query, label)
    roles = {"query": seen.query, "label": seen.label}
    missing = [role for role, column in roles.items() if not column]
    if missing:
        expected = " and ".join(f"--{role}" for role in missing)
        raise ConfigError(f"{source}: no column is known to hold the {missing[0]}; its columns: {', '.join(seen.columns)}; fix: {expected}")
    given = {"query": query, "label": label, **seen.options}
    settings |= {"documents": _beside(documents, folder)} if documents else {}
    # Columns that were found by their names are written down too, so that the file says what is read.
    settings |= {**roles, "id": seen.id, "grade": seen.grade, "part": seen.part} | {key: value for key, value in given.items() if value}
    details = [seen.format, *(f"{kind} {shown(value)}" for kind in ("encoding", "delimiter", "sheet") if (value := getattr(seen, kind)))]
    lines = (f"{source}: {', '.join(details)}", f"Taken: {seen}")
    rows = tuple(tuple(_short(row.get(column)) for column in seen.columns) for row in seen.rows)
    return Start(toml_for(name, {key: value for key, value in settings.items() if value}, model=model), lines, seen.columns, rows)


def _sniffed(source: Path, query: str | None, label: str | None) -> Sniffed:
    """Return what a file is. A text file that is not UTF-8 is read in Windows' Western encoding, if its bytes are certain enough."""
    encoding = None
    if source.suffix.lower() in (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json"):
        try:
            for _ in itertools.islice(read_lines(source), _LINES):
                pass
        except DataError as error:
            encoding = "cp1252" if "cp1252" in error.fix else None
        except OSError:
            pass  # sniff says what is wrong
    return sniff(source, query=query, label=label, encoding=encoding)


def _for_documents(source: Path, folder: Path, name: str, model: str) -> Start:
    counts: dict[str, int] = defaultdict(int)
    for path in source.rglob("*"):
        if path.is_file() and path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.relative_to(source).parts):
            counts[path.suffix.lower()] += 1
    if not counts:
        raise DataError(str(source), "has no documents", expected=f"files that end in {', '.join(SUFFIXES)}")
    found = ", ".join(f"{count:,} {suffix}" for suffix, count in sorted(counts.items()))
    settings = {"queries": f"{name}-queries.jsonl", "documents": _beside(source, folder)}
    generate = "\n[generate]\nquestions = 3                       # for each passage; an LLM writes them, and OPENAI_API_KEY has its key\n"
    lines = (f"{source}: {found}", "They have no labels, so an LLM writes questions first: [generate] in embedfit.toml")
    return Start(toml_for(name, settings, model=model) + generate, lines, next="run")


def _beside(path: Path, folder: Path) -> str:
    """Return a path as it is written in an embedfit.toml in a folder."""
    path, folder = path.absolute(), folder.absolute()
    return Path(os.path.relpath(path, folder)).as_posix() if path.anchor == folder.anchor else str(path)


def _short(value: Any) -> str:
    text = " ".join(
        ("" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)).split()
    )
    return text if len(text) <= _CELL else f"{text[: _CELL - 3]}..."
