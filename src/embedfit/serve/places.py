"""Where feedback is: beside a searcher, in a file, or in that of all runs of a configuration."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from embedfit.config import Config
from embedfit.errors import DataError
from embedfit.serve.feedback import NAME, Feedback
from embedfit.serve.summary import picks_of

if TYPE_CHECKING:
    from embedfit.pipeline.picked import Pick

ALL = "feedback"
"""Names the feedback of all runs of a configuration."""


def read_picks(names: Iterable[str], config: Config) -> list[Pick]:
    """Return the labels that people gave.

    Args:
        names: ``feedback`` for that of all runs of the configuration, run directories, or files.
        config: Settings, of which ``name`` and ``output`` are used.

    Raises:
        DataError: There is no feedback in a place.
        StorageError: A file is no feedback.
    """
    paths = dict.fromkeys(path for name in names for path in _paths_of(name, config))
    with ExitStack() as stack:
        stores = []
        for path in paths:
            stores.append(Feedback(path))
            stack.callback(stores[-1].close)
        return picks_of(stores)


def _paths_of(name: str, config: Config) -> list[Path]:
    if name == ALL:
        output = Path(config.output)
        folder = re.compile(re.escape(config.name) + "-([0-9a-f]{10}|live)")
        paths = [path for path in sorted(output.glob(f"*/{NAME}")) if folder.fullmatch(path.parent.name)]
        if not paths:
            raise DataError(str(output), "holds no run with feedback", expected="the feedback that 'embedfit serve' keeps")
        return paths
    path = Path(name) / NAME if Path(name).is_dir() else Path(name)
    if not path.is_file():
        raise DataError(str(path), "does not exist", expected="the feedback that 'embedfit serve' keeps")
    return [path]
