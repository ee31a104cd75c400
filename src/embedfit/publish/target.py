"""The target of a publication: a folder, an archive, or a repository on the Hugging Face Hub."""

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
PublicationKind: TypeAlias = Literal["model", "dataset"]
EVIDENCE = "embedfit.json"
"""File of a published model with its evidence and the list of all published files."""
EXAMPLES = 5
"""Number of training queries that a model card quotes on request."""


@dataclass(frozen=True)
class Target:
    """The target of a publication.

    Attributes:
        kind: Hub repository, folder, or tar archive.
        where: Repository name as ``owner/name``, or path of the folder or archive.
    """

    kind: Literal["hub", "folder", "archive"]
    where: str

    @classmethod
    def of(cls, text: str) -> Target:
        """Read a target written as ``owner/name``, ``./folder`` or ``name.tar``.

        Raises:
            ConfigError: The text has none of these forms.
        """
        if text.endswith(".tar") or text.startswith((".", "/", "~")):
            path = os.path.normpath(os.path.expanduser(text))
            target = cls("archive" if text.endswith(".tar") else "folder", path if os.path.isabs(path) else os.path.join(".", path))
            # expanduser leaves the home of an unknown user as it is.
            if text.isprintable() and not path.startswith("~") and target.title.strip("."):
                return target
        elif re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text, re.ASCII) and len(text) <= 96:
            return cls("hub", text)
        raise ConfigError(
            f"{text!r} is not a place to publish to; expected owner/name on the Hub, a folder like ./name, or an archive like name.tar"
        )

    @property
    def title(self) -> str:
        """Name without the owner, folder or suffix."""
        return os.path.basename(os.path.abspath(self.where)).removesuffix(".tar")

    @property
    def path(self) -> Path:
        """Path of the folder or archive, with symbolic links resolved."""
        return Path(os.path.realpath(self.where))

    def check_free(self) -> None:
        """Check that a folder or an archive can be created. An empty folder may be replaced.

        Raises:
            StorageError: Something exists at the path, or the path cannot be read.
        """
        if self.kind == "hub":
            return
        path = self.path
        try:
            clear_leftovers(path.parent)  # temporary files of a killed publication
            exists = path.exists()
            is_free = self.kind == "folder" and exists and path.is_dir() and not any(path.iterdir())
        except OSError as error:
            raise StorageError(f"{self.where}: cannot be read: {error.strerror}") from None
        if exists and not is_free:
            raise StorageError(f"{self.where} already exists; fix: choose another name, or remove it")
        if exists and Path.cwd().is_relative_to(path):
            raise StorageError(f"{self.where} is the current folder, which cannot be replaced; fix: use a new folder, like ./{self.title}")


def in_one_line(text: str) -> str:
    """Return text that is safe within a line of Markdown: without line breaks, code, HTML and table cells."""
    return re.sub(r"[`<>|]", "", " ".join(text.split()))


def readable_size(size: float) -> str:
    """Return a size in bytes as text with a unit."""
    for unit in ("B", "KB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def hub_api() -> HfApi:
    """Return a client of the Hub, without progress bars if quiet or not on a terminal."""
    from huggingface_hub import HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if console.quiet or not sys.stderr.isatty():
        disable_progress_bars()
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"))


@contextlib.contextmanager
def refusals(repo: str) -> Iterator[None]:
    """Turn errors of the Hub's client into one line, without the signatures of upload URLs.

    Raises:
        EmbedfitError: The client raised an error.
    """
    try:
        yield
    except hub_errors() as error:
        raise EmbedfitError(f"{repo}: the request to the Hub failed: {reason_of(error)}") from None
