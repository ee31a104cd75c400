"""Files and folders that appear whole or not at all, and the leftovers of killed processes.

Each is made inside a temporary folder beside its final place, and then moved there. The temporary folder is called
``.embedfit-partial-XXXXXXXX`` and holds

    embedfit.name   embedfit's mark, and the name of what is being written
    embedfit.lock   locked for as long as the process that made it is alive
    content         the file or folder that is being written
    replaced        the folder that is replaced, during the exchange

Nothing else is ever removed. A folder of that name without the mark, or with other contents, is not embedfit's, and a folder whose
lock is held is in use. The system frees the lock when a process ends, however it ends. If a process dies during an exchange, the old
folder is left as ``replaced``, and is put back.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedfit.errors import ConfigError, StorageError, shown

if TYPE_CHECKING:
    import filelock

_PREFIX = ".embedfit-partial-"
_NAME = re.compile(r"\.embedfit-partial-[a-z0-9_]{8}")
"""Names that `tempfile.mkdtemp` makes with the prefix."""
_MARK, _LOCK, _CONTENT, _REPLACED = "embedfit.name", "embedfit.lock", "content", "replaced"
_MARKED = b"embedfit is writing here: "
_TRIES = 20
# Also after a separator, where a spreadsheet with other settings starts a cell. Full-width signs start formulas too.
_FORMULA = re.compile("(^|[,;\t\r\n])([\\s\"']*)(?=[=+\\-@\uff1d\uff0b\uff0d\uff20])")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Any]:
    """Open a binary file beside its final name, and move it into place if no error occurs.

    A symbolic link stays, and its target is replaced.

    Raises:
        StorageError: The directory cannot be written, something other than a file is there, or the disk is full; nothing is
            left behind.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise StorageError(f"{path}: exists and is not a file; fix: give another name")
        with temporary_path(target) as temporary:
            with temporary.open("wb") as file:
                yield file
            os.replace(temporary, target)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from None


@contextlib.contextmanager
def temporary_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path on the disk of a target, for a file or folder that is then moved to the target.

    Leftovers of dead processes beside the target are removed first, and anything left at the path is removed at the end.

    Args:
        target: Final path. Its folder is created.

    Raises:
        OSError: The folder cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(target.parent)
    folder, lock = _locked_folder(target)
    try:
        yield folder / _CONTENT
    finally:
        _remove(folder)
        lock.release()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """Yield an empty folder in the system's temporary folder. It is removed at the end, with the leftovers of dead processes."""
    with temporary_path(Path(tempfile.gettempdir()) / "folder") as path:
        path.mkdir()
        yield path


def replace_folder(made: Path, target: Path) -> None:
    """Move a folder from its temporary path to its final path, and remove the folder there.

    Args:
        made: Path from `temporary_path`.
        target: Final path. The caller has checked that the folder there is embedfit's own.
    """
    if target.exists():
        target.rename(made.with_name(_REPLACED))
    made.rename(target)


def clear_leftovers(folder: Path, *, deep: bool = False) -> None:
    """Remove the temporary folders of dead processes. Those of live processes stay.

    Args:
        folder: Folder to clear.
        deep: Whether to clear all folders below it too.
    """
    import filelock

    for path in list(folder.rglob(f"{_PREFIX}*") if deep else folder.glob(f"{_PREFIX}*")):
        with contextlib.suppress(OSError, filelock.Timeout):
            names = {entry.name for entry in os.scandir(path)} if _is_named_as_ours(path) else None
            if names is not None and names <= {_MARK} and not _target_of(path):  # killed before it was marked
                if names and not (path / _MARK).stat().st_size:
                    (path / _MARK).unlink()
                path.rmdir()
            elif names is not None and _target_of(path) and names <= {_MARK, _LOCK, _CONTENT, _REPLACED}:
                with filelock.FileLock(path / _LOCK, timeout=0):
                    _remove(path)


def _is_named_as_ours(path: Path) -> bool:
    return bool(_NAME.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _target_of(folder: Path) -> Path | None:
    """Return the target of a temporary folder by its mark, or None without a mark."""
    with contextlib.suppress(OSError):
        mark = (folder / _MARK).read_bytes()
        if mark.startswith(_MARKED) and len(mark) > len(_MARKED):
            return folder.parent / os.fsdecode(mark.removeprefix(_MARKED))
    return None


def _locked_folder(target: Path) -> tuple[Path, filelock.BaseFileLock]:
    """Return a new marked temporary folder beside a target, and its lock, which is held."""
    import filelock

    for _ in range(_TRIES):
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=target.parent))
        lock = filelock.FileLock(folder / _LOCK, timeout=0)
        # Until the lock is held, another process may take the folder for a leftover.
        with contextlib.suppress(filelock.Timeout, FileNotFoundError):
            (folder / _MARK).write_bytes(_MARKED + os.fsencode(target.name))
            lock.acquire()
            return folder, lock
    raise OSError(f"no temporary folder can be locked in {target.parent}")


def _remove(folder: Path) -> None:
    """Remove a temporary folder, with its mark and lock last, since they identify it.

    A folder that an interrupted exchange moved out of the way is put back first.
    """
    target = _target_of(folder)
    if target and (folder / _REPLACED).exists() and not os.path.lexists(target):
        (folder / _REPLACED).rename(target)
    for name in (_CONTENT, _REPLACED):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        (folder / _LOCK).unlink(missing_ok=True)
        (folder / _MARK).unlink(missing_ok=True)
        folder.rmdir()


def neutral(text: str) -> str:
    """Return a text with an apostrophe before anything that could start a spreadsheet formula (OWASP, "CSV Injection")."""
    return ("'" if text[:1] in ("\t", "\r", "\n") else "") + _FORMULA.sub(r"\1\2'", text)


@contextlib.contextmanager
def locked(path: Path, busy: str, wait: float = 0) -> Iterator[None]:
    """Hold a lock file. The system frees it when the process ends, however it ends.

    Args:
        path: Path of the lock file. Its folder is created.
        busy: Message of the error if another process holds the lock.
        wait: Seconds to wait for that process.

    Raises:
        StorageError: Another process holds the lock, or the file cannot be written.
    """
    import filelock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=wait)
        lock.acquire(poll_interval=0.01)
    except filelock.Timeout:
        raise StorageError(busy) from None
    except OSError as error:
        raise StorageError(f"{path.parent}: cannot be written: {error.strerror}") from None
    try:
        yield
    finally:
        lock.release()


def cache_folder() -> Path:
    """Return the cache folder: ``$EMBEDFIT_CACHE``, else ``embedfit`` in the user's cache directory."""
    import platformdirs

    given = os.environ.get("EMBEDFIT_CACHE")
    return Path(given) if given else platformdirs.user_cache_path("embedfit", appauthor=False)


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_bytes(value: Any) -> bytes:
    """Return a value as JSON in UTF-8."""
    # Values from Parquet and the Hub that JSON lacks, such as dates, become text.
    return json.dumps(value, ensure_ascii=False, default=str).encode()


def digest(value: Any, *, sort_keys: bool = True) -> str:
    """Return the SHA-256 of a value's JSON, in hexadecimal. Caches, run directories and stores are keyed by it.

    Args:
        value: Anything that JSON can hold.
        sort_keys: Whether the order of keys makes no difference.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=sort_keys).encode()).hexdigest()


def cache_limit() -> int:
    """Return the size limit of the vector cache in bytes: ``$EMBEDFIT_CACHE_LIMIT``, such as ``5 GiB``, else 20 GiB.

    Raises:
        ConfigError: The variable is not a size.
    """
    given = os.environ.get("EMBEDFIT_CACHE_LIMIT", "").strip() or "20 GiB"
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?", given, re.IGNORECASE | re.ASCII)
    if not match:
        raise ConfigError(f"the environment variable EMBEDFIT_CACHE_LIMIT is {shown(given)}; expected a size such as 5 GiB, or 0")
    number, power, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " kmgt".index(power.lower() or " "))


def in_bytes(size: float) -> str:
    """Return a number of bytes for people, with a unit."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:,.3g} TiB"
