"""Every error that embedfit raises on purpose.

    EmbedfitError              one line for the user, exit code 2
    ├── DataError              queries, documents or qrels cannot be used
    ├── ConfigError            embedfit.toml, an option or a template cannot be used
    ├── ModelError             a model cannot be loaded, or is not what it was
    │   └── OfflineError       it must be downloaded, and there is no network
    ├── EndpointError          an LLM's endpoint refuses, or cannot be reached
    └── StorageError           a directory cannot be written, or the disk is full
        └── DamagedError       what was written cannot be read any more

A message is one line: the place, the problem, what was expected, and the fix.
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
        where: Place of the problem, such as ``pairs.jsonl:7`` or ``row 17``.
        problem: The problem, with the value.
        expected: Description of a valid value.
        fix: Advice to the user.
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
    """A model that cannot be loaded, or that gives unexpected vectors."""


class OfflineError(ModelError):
    """A model or data set that must be downloaded, without a network."""


class EndpointError(EmbedfitError):
    """An LLM's endpoint that refuses, or cannot be reached."""


class StorageError(EmbedfitError):
    """A path that cannot be written."""


class DamagedError(StorageError):
    """Files that were written once and cannot be read any more.

    Args:
        message: The message.
        again: Whether writing the same again repairs them.
    """

    def __init__(self, message: str, *, again: bool = False) -> None:
        self.again = again
        super().__init__(message)


def shown(value: Any, limit: int = 60) -> str:
    """Return a value for an error message, as one short line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the nearest known word, else an empty string."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def check_package(package: str, *, extra: str) -> None:
    """Check that a package is installed, without importing it.

    Raises:
        EmbedfitError: The package is not installed. The message has the command that installs it.
    """
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:  # a parent package is missing
        spec = None
    if spec is None:
        raise EmbedfitError(f"{package} is not installed; fix: pip install 'embedfit[{extra}]'")


def require(package: str, *, extra: str) -> ModuleType:
    """Import and return an optional package.

    Raises:
        EmbedfitError: The package is not installed or cannot be imported. The message has the command that installs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        seen = "is not installed" if error.name == package else f"cannot be imported: {error}"
        raise EmbedfitError(f"{package} {seen}; fix: pip install 'embedfit[{extra}]'") from None
