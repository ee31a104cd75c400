"""Compressed files (.gz, .bz2, .xz, .zst) as files to read."""

from __future__ import annotations

import contextlib
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from embedfit.errors import DataError

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "Zstandard"}
"""Suffix of a compressed file -> name of the compression."""


def without_compression(path: Path) -> str:
    """Return a file's name without the suffix of its compression: ``pairs.csv`` for ``pairs.csv.gz``."""
    return path.stem if path.suffix.lower() in COMPRESSIONS else path.name


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read its bytes, decompressed.

    Raises:
        DataError: The file is not what its suffix says, or is cut off.
    """
    compression = COMPRESSIONS.get(path.suffix.lower(), "")
    try:
        with _stream(path, compression) as file:
            yield file
    except (EOFError, zlib.error, ValueError, OSError) as error:
        # Errors of the file itself have a number. Those of its contents do not. A ValueError may also be of the text in it.
        if not compression or isinstance(error, UnicodeError) or (isinstance(error, OSError) and error.errno):
            raise
        problem = str(error) or "it ends too early"
        raise DataError(str(path), f"is not {compression} ({problem})", expected=f"a whole {path.suffix} file") from None
    except Exception as error:
        if type(error).__name__ not in ("LZMAError", "ArrowInvalid"):
            raise
        raise DataError(str(path), f"is not {compression} ({error})", expected=f"a whole {path.suffix} file") from None


def _stream(path: Path, compression: str) -> BinaryIO:
    if compression == "gzip":
        import gzip

        return cast(BinaryIO, gzip.open(path, "rb"))
    if compression == "bzip2":
        import bz2

        return cast(BinaryIO, bz2.open(path, "rb"))
    if compression == "xz":
        import lzma

        return cast(BinaryIO, lzma.open(path, "rb"))
    if compression == "Zstandard":
        import pyarrow

        path.open("rb").close()  # for the error of a file that cannot be read
        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd")))
    return path.open("rb")
