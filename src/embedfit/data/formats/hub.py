"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from embedfit import console
from embedfit.data.formats.features import hf_rows, hf_sections
from embedfit.data.formats.source import Rows
from embedfit.errors import DataError, OfflineError


def hub_rows(source: str) -> Rows:
    """Return the rows of a data set of the Hub.

    Args:
        source: ``hub:owner/name``, or ``hub:owner/name:split``.

    Raises:
        DataError: The data set, or the split, does not exist or cannot be read.
        OfflineError: There is no network.
    """
    from embedfit.hub import check_reachable, hub_errors, reason_of

    name, _, split = source.removeprefix("hub:").partition(":")
    check_reachable(f"data set {name!r}", instead="give a local file or folder")
    import datasets

    if console.quiet or not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        try:
            rows = datasets.load_dataset(name, split=split or "train")
        except ValueError:
            sections = {} if split else _sections(name)
            if not sections:
                raise
            return Rows(source, "Hub data set", iter(()), sections=sections)
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        raise DataError(source, f"cannot be loaded from the Hub: {reason_of(error.__cause__ or error)}") from None
    except OSError as error:
        raise OfflineError(f"data set {name!r} cannot be loaded from the Hub: {reason_of(error)}") from None
    except hub_errors() as error:
        raise DataError(source, f"cannot be loaded from the Hub: {reason_of(error)}") from None
    columns = tuple(rows.column_names or ())
    return Rows(source, "Hub data set", hf_rows(rows, source, lambda index: f"{source}[{index}]"), columns)


def _sections(name: str) -> dict[str, Any]:
    """Return queries, documents and judgements of a data set that has a configuration for each, as MTEB's have; else nothing."""
    import datasets

    names = datasets.get_dataset_config_names(name)
    if not {"corpus", "queries"} <= set(names):
        return {}
    wanted = [each for each in ("corpus", "queries", "qrels", "default") if each in names]
    return hf_sections({each: datasets.load_dataset(name, each) for each in wanted}, f"hub:{name}")


def saved_rows(folder: Path) -> Rows:
    """Return the rows of a data set that `save_to_disk` wrote.

    Raises:
        DataError: The folder is not such a data set, or is damaged.
    """
    import datasets

    try:
        rows = datasets.load_from_disk(str(folder))
    except Exception as error:  # the library raises whatever its parts do
        raise DataError(str(folder), f"cannot be loaded ({error})", expected="a data set that save_to_disk wrote") from None
    return Rows(str(folder), "saved data set", hf_rows(rows, str(folder), lambda index: f"{folder}[{index}]"), tuple(rows.column_names))
