"""Text files as lines: compression, encoding and line ends, told by the bytes where that is safe.

    with open_binary(path) as file, open_text(path, file, encoding=None) as text:
        for line in text.lines: ...

A file's first bytes tell that it is compressed, that it is UTF-16 or UTF-32, and that it ends its
lines by carriage returns alone. They do not tell one encoding of single bytes from another, so a
file that is neither of these and not UTF-8 is refused, and the message names the option `encoding`.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from inlay.errors import DataError

HEAD = 2**16
"""How many bytes of a file decide how it is written."""

BEGINNING = 256
"""How many of these decide whether it is UTF-16 without a byte order mark: a header, or names."""

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark begins it
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

COMPRESSIONS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz"}
"""What a second ending says of a file, and the name of that compression."""

MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
"""The first bytes of compressed files."""

OPENERS: dict[str, Callable[[Path], Any]] = {
    "gzip": gzip.open,
    "bzip2": bz2.open,
    "xz": lzma.open,
}
"""Each opens the file for reading bytes."""

UNDECODED = re.compile("[\ud800-\udfff]")
"""What a byte that cannot be decoded becomes."""


def open_binary(path: Path) -> BinaryIO:
    """Open a file for reading, uncompressed. Raises OSError."""
    with path.open("rb") as file:
        beginning = file.read(8)
    compression = COMPRESSIONS.get(path.suffix.lower())
    for magic, name in MAGIC.items():
        if beginning.startswith(magic):
            compression = name
    if compression is None:
        return path.open("rb")
    return cast(BinaryIO, OPENERS[compression](path))


@dataclass(frozen=True)
class TextFile:
    """An open text file.

    path: its name, for messages.
    encoding: how it is decoded.
    head: the whole lines at its beginning, as text; all of it where it is short.
    lines: all lines, with their ends. A byte that cannot be decoded is a lone surrogate.
    """

    path: Path
    encoding: str
    head: str
    lines: Iterator[str]

    def problem(self, line: str) -> str | None:
        """What is wrong with a text that could not be decoded; None for any other text."""
        match = UNDECODED.search(line)
        if match is None:
            return None
        if self.encoding != "utf-8":
            return f"not valid text in the encoding {self.encoding}; name another encoding"
        place = len(line[: match.start()].encode()) + 1
        return (
            f"not valid UTF-8 at byte {place} of the line; if the file has another encoding, name "
            "it, such as encoding='cp1252' (Windows) or encoding='gbk'"
        )


def check_encoding(encoding: str) -> None:
    """Raise DataError for a name that is not an encoding of text."""
    try:
        io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    except LookupError:
        raise DataError(
            f"there is no encoding {encoding!r}; write one such as utf-8, utf-16, cp1252 or gbk"
        ) from None


@contextmanager
def open_text(path: Path, file: BinaryIO, encoding: str | None) -> Iterator[TextFile]:
    """Read a file as text.

    Args:
        path: its name, for messages.
        file: its bytes, uncompressed.
        encoding: how they are decoded; None where the bytes tell.

    Raises DataError for an unknown encoding.
    """
    head = file.read(HEAD)
    file.seek(0)
    if encoding is not None:
        check_encoding(encoding)
    name = codecs.lookup(encoding or detect_encoding(head)).name
    beginning = head.decode(name, "replace").removeprefix("\ufeff")
    newline = "\r" if "\r" in beginning and "\n" not in beginning else "\n"
    whole = beginning if len(head) < HEAD else beginning[: beginning.rfind(newline) + 1]
    with io.TextIOWrapper(file, name, "surrogateescape", newline) as lines:
        yield TextFile(path, name, whole, _without_mark(lines))


def detect_encoding(head: bytes) -> str:
    """The encoding that the beginning of a file tells: UTF-8, UTF-16 or UTF-32.

    UTF-8 text has no zero bytes. In UTF-16 without a mark every other byte of ASCII is one.
    """
    for mark, name in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return name
    beginning = head[:BEGINNING]
    even, odd = beginning[::2].count(0), beginning[1::2].count(0)
    if (even + odd) * 20 < len(beginning) or min(even, odd) * 10 > max(even, odd) or not head:
        return "utf-8"
    return "utf-16-le" if odd > even else "utf-16-be"


def _without_mark(lines: Iterator[str]) -> Iterator[str]:
    """The lines without a byte order mark at their beginning."""
    for number, line in enumerate(lines):
        yield line if number else line.removeprefix("\ufeff")
