"""Lines of a text file, and the probable encoding of a file that is not UTF-8."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from embedfit.errors import DataError


def carriage_return(where: str) -> DataError:
    """Return the error for a carriage return without a line feed."""
    fix = "save it with Unix or Windows line ends"
    return DataError(where, "has a carriage return alone", expected="lines that end in a line feed", fix=fix)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, line with its end), without a byte order mark."""
    with path.open("rb") as file:
        head = file.read(1 << 16)
        file.seek(0)
        for mark, encoding in _MARKS.items():
            if head.startswith(mark):
                encoding = encoding[:6]  # with its mark, which iconv then takes away
            elif not _has_zeros(head, encoding):
                continue
            raise DataError(str(path), f"is {encoding}", expected="UTF-8", fix=_conversion(path, encoding))
        for number, raw in enumerate(file, 1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number}",
                    f"is not UTF-8 (byte 0x{raw[error.start]:02x} at column {error.start + 1})",
                    expected="UTF-8",
                    fix=_conversion(path, _WESTERN) if _is_western(head) and _is_western(raw) else _UNKNOWN_ENCODING,
                ) from None
            yield number, line


_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32LE",
    b"\x00\x00\xfe\xff": "UTF-32BE",
    b"\xff\xfe": "UTF-16LE",
    b"\xfe\xff": "UTF-16BE",
}
"""Byte order mark -> encoding. Longer marks come first, since the mark of UTF-32LE starts with that of UTF-16LE."""
_WESTERN = "WINDOWS-1252"
_UNKNOWN_ENCODING = "save it as UTF-8 where it was written ('CSV UTF-8' in Excel), or convert it from the encoding that it really has"


def _conversion(path: Path, encoding: str) -> str:
    return f"iconv -f {encoding} -t UTF-8 {path.name} > fixed{path.suffix}"


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
