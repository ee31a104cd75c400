"""Every error that embedfit raises on purpose.

    EmbedfitError              one line for the user, exit code 2
    ├── DataError              a file of queries, documents or qrels says something unusable
    ├── ConfigError            embedfit.toml, an option or a template says something unusable
    ├── ModelError             a model cannot be loaded, or is not what it was
    │   └── OfflineError       it would have to come over a network that is not there
    ├── EndpointError          an LLM's endpoint refuses, or cannot be reached
    └── StorageError           a directory cannot be written, or the disk is full

A message is one line: where, what was seen, what was expected, how to mend it.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from types import ModuleType
from typing import Any


class EmbedfitError(Exception):
    """Base of all errors meant for the user."""


class DataError(EmbedfitError):
    """Data that cannot be used.

    Args:
        where: File and line or key, for example ``pairs.jsonl:7``.
        problem: What was seen there.
        expected: What would have been right.
        fix: What to do about it.
    """

    def __init__(self, where: str, problem: str, *, expected: str = "", fix: str = "") -> None:
        self.where, self.problem, self.expected, self.fix = where, problem, expected, fix
        line = f"{where}: {problem}"
        if expected:
            line += f"; expected {expected}"
        if fix:
            line += f"; fix: {fix}"
        super().__init__(" ".join(line.split()))


class ConfigError(EmbedfitError):
    """A setting, option or template that cannot be used."""


class ModelError(EmbedfitError):
    """A model that cannot be loaded, or that does not give the vectors it should."""


class OfflineError(ModelError):
    """A model or data set that would have to be downloaded, without a network."""


class EndpointError(EmbedfitError):
    """An LLM's endpoint that refuses, or cannot be reached."""


class StorageError(EmbedfitError):
    """A path that cannot be written."""


def shown(value: Any, limit: int = 60) -> str:
    """Return a value as it may stand in an error message: one short line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known word, else an empty string."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_package(package: str, *, extra: str) -> None:
    """Make sure that a package is installed, without the seconds that importing it takes.

    Raises:
        EmbedfitError: It is not, with the command that installs it.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # of a package around it
        spec = None
    if spec is None:
        raise EmbedfitError(f"{package} is not installed; fix: pip install 'embedfit[{extra}]'")


def require(package: str, *, extra: str) -> ModuleType:
    """Return a package that not everybody installs.

    Raises:
        EmbedfitError: It is not there, or does not work, with the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        seen = "is not installed" if error.name == package else f"cannot be imported: {error}"
        raise EmbedfitError(f"{package} {seen}; fix: pip install 'embedfit[{extra}]'") from None
