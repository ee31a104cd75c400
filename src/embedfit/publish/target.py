"""Where something is published: a folder, or a repository on the Hub."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from embedfit import console
from embedfit.errors import ConfigError, EmbedfitError, StorageError
from embedfit.files import clear_leftovers
from embedfit.hub import hub_errors, reason_of

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Content: TypeAlias = Path | bytes
What: TypeAlias = Literal["model", "dataset"]
MOST = 0.25
"""How much of the metric may differ, where a few queries' worth (`QUERIES_TOLERANCE`) would be more."""


@dataclass(frozen=True)
class Target:
    """Where something is published.

    Attributes:
        kind: The Hub, a folder, or a tar archive.
        where: ``owner/name``, or a path.
    """

    kind: Literal["hub", "folder", "archive"]
    where: str

    @classmethod
    def of(cls, said: str) -> Target:
        """Read ``owner/name``, ``./folder`` or ``name.tar``.

        Raises:
            ConfigError: It is none of them.
        """
        if said.endswith(".tar") or said.startswith((".", "/", "~")):
            path = os.path.normpath(os.path.expanduser(said))
            target = cls("archive" if said.endswith(".tar") else "folder", path if os.path.isabs(path) else os.path.join(".", path))
            # A home that nobody has is left as it is.
            if said.isprintable() and not path.startswith("~") and target.title.strip("."):
                return target
        elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", said, re.ASCII) and len(said) <= 96:
            return cls("hub", said)
        raise ConfigError(
            f"{said!r} is no place to publish to; expected owner/name on the Hub, a folder like ./name, or an archive like name.tar"
        )

    @property
    def title(self) -> str:
        """What the thing is called there."""
        return os.path.basename(os.path.abspath(self.where)).removesuffix(".tar")

    @property
    def path(self) -> Path:
        """Where a folder or an archive will lie, symbolic links followed."""
        return Path(os.path.realpath(self.where))

    def check_free(self) -> None:
        """Make sure that nothing is in the way of a folder or an archive; an empty folder is not.

        Raises:
            StorageError: Something is, or the place cannot be read.
        """
        if self.kind == "hub":
            return
        path = self.path
        try:
            clear_leftovers(path.parent)  # a killed publication's, which would be in its way
            is_there = path.exists()
            is_free = self.kind == "folder" and is_there and path.is_dir() and not any(path.iterdir())
        except OSError as error:
            raise StorageError(f"{self.where}: cannot be read: {error.strerror}") from None
        if is_there and not is_free:
            raise StorageError(f"{self.where} is there already; fix: give another name, or remove it")
        if is_there and Path.cwd().is_relative_to(path):
            raise StorageError(
                f"{self.where} is the folder you stand in, which cannot be exchanged; fix: a new folder, like ./{self.title}"
            )


def in_one_line(text: str) -> str:
    """Return text as it may stand within a line of Markdown: no new line, no code, no HTML, no cell of a table."""
    return re.sub(r"[`<>|]", "", " ".join(text.split()))


def readable_size(size: float) -> str:
    """Return a number of bytes with a unit."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def hub_api() -> HfApi:
    """Return the Hub's client, without its own progress bars."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if console.quiet or not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


@contextlib.contextmanager
def refusals(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one line, without the signature of an upload's address.

    Raises:
        EmbedfitError: Instead of it.
    """
    try:
        yield
    except hub_errors() as error:
        raise EmbedfitError(f"{repo}: the Hub did not take or give it: {reason_of(error)}") from None


EVIDENCE = "embedfit.json"
"""The file of a published model that holds its evidence, and the list of the files that were published."""
EXAMPLES = 5
"""Training queries that a card quotes, if it is to quote any."""
