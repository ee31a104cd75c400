"""The vectors of one model in an SQLite file, each with a checksum."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import sqlite3
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from embedfit import console
from embedfit.encode.encoder import Vectors
from embedfit.errors import ModelError, StorageError
from embedfit.files import cache_limit, in_bytes


def other_width(name: str, width: int, before: int | None) -> ModelError:
    """Return the error for vectors whose dimension has changed under the same name."""
    return ModelError(
        f"{name} gave vectors of {width:,} dimensions, and earlier ones of {before:,}: the model behind this name has changed; "
        f"fix: embedfit cache --clear {name}"
    )


_UNIT = 1e-3
"""Largest difference of a vector's length from 1."""
_READ = 500
"""Rows looked up by one SQL query."""
_ROW_BYTES = 64
"""Bytes of the file for each vector, beyond the vector itself."""
_SLACK = 65_536
"""Bytes of half-filled pages."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class VectorFile:
    """The vectors of one model on disk: a table of keys, vectors and checksums, and a table with the model's name and width.

    A file that SQLite cannot read, or that belongs to another program, is moved aside, and a new one is begun.

    Args:
        path: Path of the file.
        name: Name of the model, for messages.

    Attributes:
        width: Number of dimensions of the vectors; None before there are any.
        damaged: Number of vectors that were read and found damaged.

    Raises:
        StorageError: The folder cannot be used.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        self.width: int | None = None
        self.damaged = 0
        self._limit = cache_limit()
        self._database: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._open()

    def read(self, keys: npt.NDArray[np.uint64], rows: npt.NDArray[np.int64]) -> Iterator[tuple[npt.NDArray[np.int64], Vectors]]:
        """Yield rows whose keys are in the file, some at a time, with their vectors; damaged vectors are left out."""
        for start in range(0, len(rows), _READ):
            if self._database is None:
                return
            some = {keys[row].tobytes(): row for row in rows[start : start + _READ]}
            marks = ",".join("?" * len(some))
            try:
                stored = self._database.execute(f"SELECT key, vector, checksum FROM vectors WHERE key IN ({marks})", list(some)).fetchall()
            except sqlite3.Error as error:
                self._after(error)
                return
            good = [(key, vector) for key, vector, checksum in stored if _is_sound(key, vector, checksum, self.width)]
            self.damaged += len(stored) - len(good)
            if good:
                vectors = np.frombuffer(b"".join(vector for _, vector in good), np.float32).reshape(len(good), -1)
                yield np.array([some[key] for key, _ in good]), vectors

    def write(self, keys: npt.NDArray[np.uint64], vectors: Vectors) -> None:
        """Add vectors, which are safe once it returns. When there is no room, it warns once and adds nothing from then on.

        Raises:
            ModelError: Another process added vectors of another width.
        """
        for _ in range(2):
            if self._database is None:
                return
            try:
                with self._database as database:
                    if not self._make_room(database, vectors.nbytes + _ROW_BYTES * len(vectors) + _SLACK):
                        self._go_without(f"the limit of {in_bytes(self._limit)} (EMBEDFIT_CACHE_LIMIT)")
                        return
                    self._settle_width(database, vectors.shape[1])
                    rows = zip((key.tobytes() for key in keys), (vector.tobytes() for vector in vectors), strict=True)
                    database.executemany(
                        "INSERT OR REPLACE INTO vectors (key, vector, checksum) VALUES (?, ?, ?)",
                        ((key, vector, _checksum(key, vector)) for key, vector in rows),
                    )
                return
            except (sqlite3.Error, OSError) as error:
                self._after(error)

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _open(self) -> None:
        """Open the file, or a new one if the file there cannot be used."""
        from filelock import FileLock

        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Processes that train together open it at once, and SQLite does not wait while another one sets up the journal.
            with FileLock(self.path.with_suffix(".lock")):
                try:
                    self._database = self._connected()
                except (sqlite3.DatabaseError, _Foreign) as error:
                    if not _is_damage(error):
                        raise
                    self._move_aside(error)
                    self._database = self._connected()
                status = os.stat(self.path)
                self._file = status.st_dev, status.st_ino
                os.utime(self.path)  # the most recently used is removed last
        except (sqlite3.Error, OSError) as error:
            if _is_full(error):
                self._go_without(str(error))
                return
            raise StorageError(
                f"{self.path}: the embedding cache cannot be used: {error}; fix: set EMBEDFIT_CACHE to another directory"
            ) from None

    def _connected(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.path, timeout=60)
        try:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            columns, described = _columns(database, "vectors"), _columns(database, "about")
            ours = columns - {("checksum", 0)} == {("key", 1), ("vector", 0)} and described in (set(), {("name", 1), ("value", 0)})
            if tables and not ours:
                raise _Foreign("it is another program's")
            # Rows are in order of writing, with an index of keys beside them, on pages that hold several vectors. In order of
            # keys, on pages of 4 KiB, they took three times the space, and nine times as long to write (docs/scale.md).
            database.execute("PRAGMA page_size = 16384")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            with database:
                database.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB, checksum INTEGER)")
                if columns and ("checksum", 0) not in columns:  # written by an earlier version
                    database.execute("ALTER TABLE vectors ADD COLUMN checksum INTEGER")
                database.execute("CREATE TABLE IF NOT EXISTS about (name TEXT PRIMARY KEY, value TEXT)")
                about = dict(database.execute("SELECT name, value FROM about"))
                if about.get("model") != self.name:
                    database.execute("INSERT OR REPLACE INTO about VALUES ('model', ?)", [self.name])
                self.width = _usual_width(database)
                if about.get("width", str(self.width)) != str(self.width):
                    database.execute("DELETE FROM about WHERE name = 'width'")  # damaged: no vector has it
        except BaseException:
            database.close()
            raise
        return database

    def _settle_width(self, database: sqlite3.Connection, width: int) -> None:
        database.execute("INSERT OR IGNORE INTO about VALUES ('width', ?)", [str(self.width or width)])
        [(settled,)] = database.execute("SELECT value FROM about WHERE name = 'width'")
        if settled != str(width):
            raise other_width(self.name, width, int(settled))
        self.width = width

    def _make_room(self, database: sqlite3.Connection, needed: int) -> bool:
        """Remove the least recently used models, then this model's oldest vectors, until there is room; returns whether there is."""
        if needed > self._limit:
            return False
        room = self._limit - needed
        sizes = {path: file_size(path) for path in vector_files(self.path.parent) if path != self.path}
        for path in list(sizes):  # the least recently used comes first
            if _used(database) + sum(sizes.values()) <= room:
                break
            if remove_file(path):
                del sizes[path]
        while (over := _used(database) + sum(sizes.values()) - room) > 0:
            [(count, mean)] = database.execute("SELECT count(*), avg(length(vector)) FROM (SELECT vector FROM vectors LIMIT 1000)")
            if not count:
                break
            oldest = math.ceil(over / (mean + _ROW_BYTES))
            database.execute("DELETE FROM vectors WHERE key IN (SELECT key FROM vectors NOT INDEXED LIMIT ?)", [oldest])
        return True

    def _after(self, error: Exception) -> None:
        """Go on after an error in an open file: with a new file if it is damaged, else with none."""
        self.close()
        if not _is_damage(error):
            self._go_without(str(error))
            return
        from filelock import FileLock

        with FileLock(self.path.with_suffix(".lock")), contextlib.suppress(OSError):
            status = os.stat(self.path)
            if (status.st_dev, status.st_ino) == self._file:  # else another process has moved it already
                self._move_aside(error)
        self._open()

    def _move_aside(self, error: Exception) -> None:
        numbers = (f"-{number}" if number > 1 else "" for number in range(1, sys.maxsize))
        aside = next(path for number in numbers if not (path := Path(f"{self.path}.damaged{number}")).exists())
        for end in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}{end}", f"{aside}{end}")
        console.note(f"Warning: {self.path} cannot be read ({error}); it is now {aside.name}, and its vectors are encoded again")

    def _go_without(self, why: str) -> None:
        self.close()
        folder = self.path.parent
        if self._limit and folder not in _not_kept:
            _not_kept.add(folder)
            console.note(f"Warning: {folder}: vectors cannot be kept ({why}); the run goes on, and they are encoded again next time")


_not_kept: set[Path] = set()
"""Folders that have been reported as full."""


class _Foreign(Exception):
    """A file of another program."""


def _is_damage(error: Exception) -> bool:
    return isinstance(error, _Foreign) or _sqlite_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _is_full(error: Exception) -> bool:
    return _sqlite_code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR) or getattr(error, "errno", None) in _NO_ROOM


def _sqlite_code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF  # the other bits are details


def _checksum(key: bytes, vector: bytes) -> int:
    """Return a CRC-32 of a row; the key is part of it, so that no row passes for another."""
    return zlib.crc32(vector, zlib.crc32(key))


def _is_sound(key: bytes, vector: Any, checksum: Any, width: int | None) -> bool:
    """Return whether a row is as it was written, by its checksum; by its length, if an earlier version wrote it without one."""
    if not isinstance(vector, bytes) or not width or len(vector) != 4 * width:
        return False
    return _is_unit(vector) if checksum is None else checksum == _checksum(key, vector)


def _is_unit(vector: bytes) -> bool:
    with np.errstate(all="ignore"):  # random bytes may be any float
        return abs(float(np.linalg.norm(np.frombuffer(vector, np.float32).astype(np.float64))) - 1) < _UNIT


def _columns(database: sqlite3.Connection, table: str) -> set[tuple[str, int]]:
    """Return the names of a table's columns, each with its place in the primary key, which is 0 outside it."""
    return {(row[1], row[5]) for row in database.execute(f"PRAGMA table_info({table})")}


def _usual_width(database: sqlite3.Connection) -> int | None:
    """Return the width of the first sound vector; without checksums, the most common width of the first ones; else None."""
    widths: Counter[int] = Counter()
    for key, vector, checksum in database.execute("SELECT key, vector, checksum FROM vectors NOT INDEXED LIMIT 1000"):
        if not isinstance(vector, bytes) or not vector or len(vector) % 4:
            continue
        if checksum is not None and _is_sound(key, vector, checksum, len(vector) // 4):
            return len(vector) // 4
        if checksum is None and _is_unit(vector):
            widths[len(vector) // 4] += 1
    return widths.most_common(1)[0][0] if widths else None


def _used(database: sqlite3.Connection) -> int:
    """Return the bytes of the pages in use."""
    pages, free, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "freelist_count", "page_size"))
    return int((pages - free) * size)


def vector_files(folder: Path) -> list[Path]:
    """Return the files of vectors in a folder, the least recently used first."""

    def used(path: Path) -> float:
        with contextlib.suppress(OSError):  # another process has just removed it
            return path.stat().st_mtime
        return 0.0

    return sorted(folder.glob("*.sqlite"), key=used)


def file_size(path: Path) -> int:
    """Return the bytes of a database and its write-ahead log."""
    sizes = 0
    for end in ("", "-wal"):
        with contextlib.suppress(OSError):
            sizes += os.path.getsize(f"{path}{end}")
    return sizes


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open a database for reading alone."""
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)


def remove_file(path: Path) -> bool:
    """Remove a file of vectors, unless another program wrote it or another process has it open; returns whether it is gone."""
    from filelock import FileLock, Timeout

    lock = path.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=0), contextlib.closing(sqlite3.connect(path, timeout=0)) as database:
            columns = {row[1] for row in database.execute("PRAGMA table_info(vectors)")}
            if not {"key", "vector"} <= columns:
                return False
            # SQLite gives up the journal only if no other process has the file open.
            if database.execute("PRAGMA journal_mode = DELETE").fetchone() != ("delete",):
                return False
            for name in (path, lock):
                name.unlink(missing_ok=True)
    except (sqlite3.Error, OSError, Timeout):
        return False
    return True
