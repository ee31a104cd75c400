"""Lines of a text file: its encoding, its compression, and the probable encoding of a file that is not UTF-8."""

from __future__ import annotations

import codecs
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from embedfit import console
from embedfit.data.formats.compressed import opened, without_compression
from embedfit.errors import ConfigError, DataError, shown

_BLOCK = 1 << 16
_SEVEN_BIT = re.compile(r"iso2022|utf_7|hz")
"""Encodings whose bytes are ASCII, so that a file in one of them is also UTF-8, with another text."""


def carriage_return(where: str) -> DataError:
    """Return the error for a carriage return without a line feed."""
    fix = "save it with Unix or Windows line ends"
    return DataError(where, "has a carriage return alone", expected="lines that end in a line feed", fix=fix)


def check_encoding(encoding: str) -> str:
    """Return Python's name of an encoding.

    Raises:
        ConfigError: Python has no text encoding of this name.
    """
    try:
        name = codecs.lookup(encoding).name
        "".encode(name)
    except (LookupError, ValueError):
        raise ConfigError(f"encoding {shown(encoding)} is unknown; expected one such as 'utf-8', 'cp1252' or 'shift-jis'") from None
    return name


def read_lines(path: Path, encoding: str = "") -> Iterator[tuple[int, str]]:
    """Yield (line number, line with its end), without a byte order mark.

    A file is read as UTF-8 if it is UTF-8, else as the encoding that its byte order mark or its zeros show, else as ``encoding``.

    Args:
        path: Text file, which may be compressed.
        encoding: Encoding of a file that is not UTF-8; empty for none.

    Raises:
        DataError: The text is in another encoding.
    """
    used = encoding_of(path, encoding)
    if used != "utf-8":
        yield from _decoded_lines(path, used)
        return
    with opened(path) as file:
        head = file.read(_BLOCK)
    with opened(path) as file:
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}",
                    f"is not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})",
                    expected="UTF-8",
                    fix=_conversion(path) if _is_western(head) and _is_western(raw) else _UNKNOWN_ENCODING,
                ) from None
            yield number, line


def encoding_of(path: Path, encoding: str = "") -> str:
    """Return the encoding that a file is read in.

    Args:
        path: Text file, which may be compressed.
        encoding: Encoding of a file that is not UTF-8; empty for none.

    Raises:
        ConfigError: The encoding is unknown.
    """
    encoding = check_encoding(encoding) if encoding else ""
    with opened(path) as file:
        head = file.read(_BLOCK)
        for mark, name in _MARKS.items():
            if head.startswith(mark):
                return name[:6]
            if encoding[:6] not in ("utf-16", "utf-32") and _has_zeros(head, name):
                _note(path, name, path.stat().st_mtime_ns)
                return name
        if not encoding or encoding == "utf-8":
            return "utf-8"
        if _SEVEN_BIT.match(encoding) or (encoding[:6] in ("utf-16", "utf-32") and _has_zeros(head, encoding.upper())):
            return encoding
        return "utf-8" if _is_utf8(head, file) else encoding


@functools.lru_cache(maxsize=32)  # a file is opened several times
def _note(path: Path, name: str, time: int) -> None:
    console.note(f"{path}: is not UTF-8, and is read as {name}")


def _is_utf8(head: bytes, file: BinaryIO) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    block = head
    try:
        while block:
            decoder.decode(block)
            block = file.read(_BLOCK)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _decoded_lines(path: Path, encoding: str) -> Iterator[tuple[int, str]]:
    number = 1
    try:
        for text in _decoded(path, encoding):
            yield number, text.removeprefix("\ufeff") if number == 1 else text
            number += 1
    except UnicodeError as error:
        reason = getattr(error, "reason", str(error))
        raise DataError(f"{path}:{number}", f"is not {encoding} ({reason})", expected=encoding, fix=_UNKNOWN_ENCODING) from None


def _decoded(path: Path, encoding: str) -> Iterator[str]:
    """Yield the lines of a file. The lines before bytes that cannot be decoded are yielded too."""
    decoder = codecs.getincrementaldecoder(encoding)()
    rest, problem, block = "", None, b"-"
    with opened(path) as file:
        while block and problem is None:
            block = file.read(_BLOCK)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                text, problem = error.object[: error.start].decode(encoding, "replace"), error
            *lines, rest = (rest + text).split("\n")
            yield from (line + "\n" for line in lines)
    if problem is not None:
        raise problem
    if rest:
        yield rest


_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32LE",
    b"\x00\x00\xfe\xff": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
}
"""Byte order mark -> encoding. Longer marks come first, since the mark of UTF-32LE starts with that of UTF-16LE."""
_WESTERN = "cp1252"
_UNKNOWN_ENCODING = "save it as UTF-8 where it was written ('CSV UTF-8' in Excel), or set encoding = \"...\" in [data]"


def _conversion(path: Path) -> str:
    suffix = Path(without_compression(path)).suffix
    return f"set encoding = {json.dumps(_WESTERN)} in [data], or iconv -f WINDOWS-1252 -t UTF-8 {path.name} > fixed{suffix}"


def _has_zeros(head: bytes, encoding: str) -> bool:
    """Return whether bytes have zeros where mostly Latin text in a two-byte or four-byte encoding has them."""
    width, low = int(encoding[4:6]) // 8, 0 if encoding.endswith("LE") else int(encoding[4:6]) // 8 - 1
    shares = [head[place::width].count(0) / max(1, len(head[place::width])) for place in range(width)]
    return len(head) >= 2 * width and shares[low] < 0.1 and all(share > 0.5 for place, share in enumerate(shares) if place != low)


def _is_western(raw: bytes) -> bool:
    """Return whether all bytes beyond ASCII are isolated letters that are the same in all Latin code pages of Windows.

    Two-byte encodings and code pages of other alphabets have adjacent bytes beyond ASCII.
    """
    for match in re.finditer(rb"[\x80-\xff]+", raw):
        readings = {match[0].decode(page, "replace") for page in ("cp1252", "cp1250", "cp1254", "cp1257")}
        if len(match[0]) > 1 or len(readings) > 1 or not readings.pop().isalpha():
            return False
    return True
