"""The live folder: a file names the run that is live, and a server of the folder follows it without a restart.

    runs/support-live/
      live.json     the run that is live, the one before, and those that were taken back
      feedback.db   what people picked, whichever run answered

The file is replaced as a whole, so a reader sees one version or the other.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path

from embedfit.errors import ConfigError, DataError, EmbedfitError, StorageError
from embedfit.files import writing
from embedfit.searcher.saving import searcher_digest
from embedfit.serve.indexed import IndexSource, ServedIndex
from embedfit.serve.searching import Served
from embedfit.serve.service import Service

log = logging.getLogger("embedfit.serve")

NAME = "live.json"
_LOOK_SECONDS = 0.5
_TRY_AGAIN_SECONDS = 30.0


@dataclass(frozen=True)
class Live:
    """What a live folder says.

    Attributes:
        run: Run directory that is live, relative to the live folder.
        fingerprint: Fingerprint of its searcher.
        since: Time of the switch, in seconds since 1970.
        previous: Run directory that was live before; empty for none.
        taken_back: Run directories that were taken back. They do not go live again by themselves.
    """

    run: str
    fingerprint: str
    since: float
    previous: str = ""
    taken_back: tuple[str, ...] = ()


class LiveFolder:
    """A live folder.

    Args:
        path: Path of the folder, which need not exist yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def read(self) -> Live | None:
        """Return what is live; None before the first version.

        Raises:
            DataError: The file is damaged, or of another version.
        """
        try:
            content = json.loads((self.path / NAME).read_text(encoding="utf-8"))
            return Live(**{**content, "taken_back": tuple(content["taken_back"])})
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise DataError(str(self.path / NAME), f"cannot be read: {error}", fix="restore it, or remove it and refresh again") from None

    def run_of(self, name: str) -> Path:
        """Return the path of a run directory that `Live` names."""
        return Path(os.path.normpath(self.path / name))

    def running(self) -> Path:
        """Return the run directory that is live; the folder itself if it is no live folder.

        Raises:
            DataError: The file is damaged, or of another version.
        """
        live = self.read()
        return self.path if live is None else self.run_of(live.run)

    def switch(self, run: str | Path) -> Live:
        """Make the searcher of a run directory live. The one that is live becomes the previous one.

        Raises:
            DataError: The run has no searcher.
            StorageError: The folder cannot be written.
        """
        before = self.read()
        name = os.path.relpath(Path(run).resolve(), self.path.resolve())
        if before and before.run == name:
            return before
        taken_back = tuple(run for run in before.taken_back if run != name) if before else ()
        return self._write(name, before.run if before else "", taken_back)

    def roll_back(self) -> Live:
        """Make the previous version live again.

        Raises:
            DataError: There is no previous version, or its run directory is gone.
            StorageError: The folder cannot be written.
        """
        before = self.read()
        if before is None or not before.previous:
            raise DataError(str(self.path), "has no previous version", expected="a folder with two versions, which 'refresh' makes")
        return self._write(before.previous, "", (*before.taken_back, before.run))

    def _write(self, name: str, previous: str, taken_back: tuple[str, ...]) -> Live:
        place = self.run_of(name) / "searcher"
        if not (place / "searcher.json").exists():
            raise DataError(str(place.parent), "has no searcher", expected="a finished run directory")
        live = Live(name, searcher_digest(place), time.time(), previous, taken_back)
        content = {"run": name, "fingerprint": live.fingerprint, "since": live.since, "previous": previous, "taken_back": taken_back}
        with writing(self.path / NAME) as file:
            file.write(json.dumps(content, indent=1).encode())
            file.flush()
            os.fsync(file.fileno())
        return live


class FolderSource:
    """A live folder, followed by a server; or a run directory, which stays as it is.

    Args:
        path: Path of the folder.
        form: Form of the model to run; empty for the model itself.
    """

    def __init__(self, path: str | Path, form: str = "") -> None:
        self._place, self._form = LiveFolder(path), form

    def token(self) -> str:
        """Return what changes when another version goes live; empty if none ever does."""
        live = self._place.read()
        return live.fingerprint if live else ""

    def load(self) -> Served:
        """Return the searcher that is live.

        Raises:
            EmbedfitError: The folder holds no searcher, or the run has no such form.
        """
        live = self._place.read()
        if live is None:
            return Served.load(self._place.path, self._form or None)
        served = Served.load(self._place.run_of(live.run), self._form or None)
        return Served(served.searcher, self._place.path.resolve().name, served.fingerprint)


def source_of(path: str | Path, form: str = "") -> FolderSource | IndexSource:
    """Return what a server is to serve: the live index of an embedfit.toml, a live folder, or a run directory.

    Args:
        path: Path of one of these.
        form: Form of the model to run; empty for the model itself.

    Raises:
        EmbedfitError: The configuration cannot be read, or the store cannot be opened.
    """
    if Path(path).suffix != ".toml":
        return FolderSource(path, form)
    if form:
        raise ConfigError(f"--form {form} is for a run; a live index runs the model that it was made with; fix: leave it out")
    return IndexSource(path)


def load(path: str | Path, form: str = "") -> Served | ServedIndex:
    """Return the searcher of a run directory, of a searcher's own folder, of a live folder, or of an embedfit.toml's live index.

    Args:
        path: Path of one of these.
        form: Form of the model to run; empty for the model itself.

    Raises:
        EmbedfitError: There is no searcher, or the run has no such form.
    """
    return source_of(path, form).load()


async def follow(service: Service, path: str, form: str = "") -> None:
    """Switch a server to each version that goes live. It ends when it is cancelled.

    A version that cannot be loaded is logged, and the server stays at the one it has.

    Args:
        service: Service to switch.
        path: Path that the service was loaded from.
        form: Form of the model that it runs; empty for the model itself.
    """
    if not path:
        return
    loop = asyncio.get_running_loop()
    source = await loop.run_in_executor(None, source_of, path, form)
    if not await loop.run_in_executor(None, source.token):
        return
    refused, again = "", 0.0
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        try:
            token = await loop.run_in_executor(None, source.token)
            served = service.searcher.fingerprint.partition(":")[0]  # the form is the rest
            if token in ("", served) or (token == refused and time.monotonic() < again):
                continue
            refused, again = token, time.monotonic() + _TRY_AGAIN_SECONDS
            searcher: Served | ServedIndex = await loop.run_in_executor(None, source.load)
            await loop.run_in_executor(None, service.switch, searcher)
            log.info("now live: %s", token[:40])
        except (EmbedfitError, OSError) as error:
            log.error("%s", error)


def check_live(path: Path) -> None:
    """Check that a path can be a live folder.

    Raises:
        StorageError: It is a file, or a run directory.
    """
    if path.is_file() or (path / "manifest.json").exists():
        raise StorageError(f"{path}: is {'a file' if path.is_file() else 'a run directory'}; expected a folder that 'refresh' keeps")
