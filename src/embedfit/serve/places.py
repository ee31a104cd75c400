"""Where feedback is: beside a searcher, in a file, or in that of all runs of a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from embedfit.config import Config, read_config
from embedfit.errors import DataError
from embedfit.serve.databases import is_address
from embedfit.serve.feedback import NAME, Feedback
from embedfit.serve.summary import picks_of

if TYPE_CHECKING:
    from embedfit.pipeline.picked import Pick

ALL = "feedback"
"""Names the feedback of all runs of a configuration."""


def read_picks(names: Iterable[str], config: Config, *, missing: bool = False) -> list[Pick]:
    """Return the labels that people gave.

    Args:
        names: ``feedback`` for that of all runs of the configuration, run directories, files, or addresses of PostgreSQL.
        config: Settings, of which ``name`` and ``output`` are used.
        missing: Whether there may be no feedback yet.

    Raises:
        DataError: There is no feedback in a place.
        StorageError: A file is no feedback.
    """
    locations = dict.fromkeys(location for name in names for location in _locations_of(name, config, missing))
    with ExitStack() as stack:
        stores = []
        for location in locations:
            stores.append(Feedback(location))
            stack.callback(stores[-1].close)
        return picks_of(stores)


def home(path: Path) -> Path:
    """Return the folder that feedback is kept in: what is served, or for an embedfit.toml the live folder of its runs, which is made."""
    if path.suffix != ".toml":
        return path
    config = read_config(path)
    folder = Path(config.output) / f"{config.name}-live"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def existing(location: str | None, run: Path) -> str:
    """Return where the feedback of a run is.

    Args:
        location: File, or address of PostgreSQL; None for the file in the run directory.
        run: Run directory.

    Raises:
        DataError: The file does not exist.
    """
    if location and is_address(location):
        return location
    path = Path(location) if location else run / NAME
    if not path.is_file():
        raise DataError(str(path), "does not exist", expected="the feedback that 'embedfit serve' keeps")
    return str(path)


def _locations_of(name: str, config: Config, missing: bool) -> list[str]:
    if name == ALL:
        output = Path(config.output)
        folder = re.compile(re.escape(config.name) + "-([0-9a-f]{10}|live)")
        paths = [str(path) for path in sorted(output.glob(f"*/{NAME}")) if folder.fullmatch(path.parent.name)]
        if not paths and not missing:
            raise DataError(str(output), "holds no run with feedback", expected="the feedback that 'embedfit serve' keeps")
        return paths
    return [existing(None if Path(name).is_dir() else name, Path(name))]
