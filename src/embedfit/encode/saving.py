"""A model's folder, written whole or not at all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from embedfit.encode.readers import write_older_form
from embedfit.files import replace_folder, temporary_path


def save_in_place(save: Callable[[str], Any], target: Path) -> None:
    """Save a model beside its final place, then move it there.

    Args:
        save: Function that writes the model to a given folder.
        target: Final folder of the model; a model in it is replaced.
    """
    with temporary_path(target) as temporary:
        save(str(temporary))
        write_older_form(temporary)
        settings = next(temporary.glob("*.json"))
        for weights in temporary.rglob("*.safetensors"):
            weights.chmod(settings.stat().st_mode)  # the library makes them readable by the owner alone
        replace_folder(temporary, target)


def why_not_written(error: Exception) -> str | None:
    """Return the reason if an error is about writing a file, else None: torch and safetensors wrap the system's errors in their own."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    text = str(error).splitlines()[0] if str(error) else ""
    marks = ("PytorchStreamWriter", "inline_container", "I/O error", "No space left", "File too large")
    return text if any(mark in text for mark in marks) else None
