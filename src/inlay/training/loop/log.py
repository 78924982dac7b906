"""The log of a run: one JSON object a line, and no line twice after a resume."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from inlay.errors import TrainingError


class Log:
    """Appends lines to a file.

    Args:
        path: the file; None keeps no log.
        length: how many bytes of it to keep. What follows was written after the checkpoint from
            which the run resumes, and is cut off.

    Raises TrainingError where the file is shorter than `length` or cannot be written.
    """

    def __init__(self, path: Path | None, length: int = 0):
        self._file = None
        if path is None:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise TrainingError(f"cannot write {path}: {error.strerror}") from None
        if self._file.tell() < length:
            self._file.close()
            raise TrainingError(
                f"{path} is shorter than when the checkpoint beside it was written; "
                "put it back, or start anew (--fresh, in Python resume=False)"
            )
        self._file.truncate(length)

    def write(self, **entry: Any) -> None:
        """Append one line; it is in the file when this returns."""
        if self._file is not None:
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()

    def sync(self) -> int:
        """Flush the file to the disk; returns its length in bytes."""
        if self._file is None:
            return 0
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
