"""Data sets of the Hugging Face Hub."""

from __future__ import annotations

import sys

from embedfit import console
from embedfit.data.formats.features import hf_rows
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
        rows = datasets.load_dataset(name, split=split or "train")
    except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
        raise DataError(source, f"cannot be loaded from the Hub: {reason_of(error.__cause__ or error)}") from None
    except OSError as error:
        raise OfflineError(f"data set {name!r} cannot be loaded from the Hub: {reason_of(error)}") from None
    except hub_errors() as error:
        raise DataError(source, f"cannot be loaded from the Hub: {reason_of(error)}") from None
    columns = tuple(rows.column_names or ())
    return Rows(source, "Hub data set", hf_rows(rows, source, lambda index: f"{source}[{index}]"), columns)
