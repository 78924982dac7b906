"""Where activations of rows are kept between epochs: in memory, or in a file beside the run's log.

The file only grows. A killed process leaves at most one row half written, the last one, and then
its length shows it; what a failing disk made of earlier rows shows in their checksums.

    one line of JSON                  what the rows were computed by
    key | tokens | checksum | states  of a row, and so on
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FORMAT = 1
RECORD = struct.Struct("<16sII")
"""What stands before the states of a row: its key, its number of tokens, their checksum."""


class MemoryStore:
    """Activations in memory.

    limit: how many bytes there is room for; rows behind that are not kept.
    size: how many are kept.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.size = 0
        self._states: dict[bytes, Tensor] = {}

    def get(self, key: bytes) -> Tensor | None:
        """The states of a row, `[t, W]`."""
        return self._states.get(key)

    def put(self, key: bytes, states: Tensor) -> None:
        """Keep the states of a row, `[t, W]`."""
        if self.size + states.nbytes <= self.limit:
            self._states[key] = states
            self.size += states.nbytes

    def close(self) -> None:
        """Free the memory."""
        self._states.clear()


class DiskStore:
    """Activations in a file.

    Args:
        path: the file. One of other activations, or a damaged one, is begun anew.
        identity: what the activations depend on besides their row, as JSON.
        width: W, of the states of a token.
        dtype: of the states.
        limit: as in `MemoryStore`.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        width: int,
        dtype: torch.dtype,
        limit: int,
    ):
        self.limit = limit
        self.width = width
        self.dtype = dtype
        self._places: dict[bytes, tuple[int, int]] = {}
        self._checksums: dict[bytes, int] = {}  # of rows that another process wrote
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._file = path.open("r+b", buffering=0)
        facts = {"format": FORMAT, **identity, "width": width, "dtype": str(dtype)}
        header = json.dumps(facts, sort_keys=True).encode() + b"\n"
        if self._file.read(len(header)) != header:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(header)
        self._end = len(header)
        self._scan(self._file.seek(0, 2))

    @property
    def size(self) -> int:
        """How many bytes are kept."""
        return self._end

    def get(self, key: bytes) -> Tensor | None:
        """The states of a row, `[t, W]`."""
        if key not in self._places:
            return None
        place, tokens = self._places[key]
        data = bytearray(tokens * self._bytes_of_token)
        self._file.seek(place)
        whole = self._file.readinto(data) == len(data)
        if not whole or self._checksums.pop(key, None) not in (None, zlib.crc32(data)):
            del self._places[key]
            return None
        return torch.frombuffer(data, dtype=self.dtype).view(tokens, self.width)

    def put(self, key: bytes, states: Tensor) -> None:
        """Keep the states of a row, `[t, W]`."""
        fits = self._end + RECORD.size + states.nbytes <= self.limit
        if not fits or states.dtype != self.dtype or states.shape[-1] != self.width:
            return
        data = states.contiguous().view(torch.uint8).numpy().tobytes()
        record = RECORD.pack(key, len(states), zlib.crc32(data)) + data
        self._file.seek(self._end)
        try:
            whole = self._file.write(record) == len(record)
        except OSError:
            whole = False
        if not whole:  # the disk is full
            self._file.truncate(self._end)
            self.limit = 0
            return
        self._places[key] = self._end + RECORD.size, len(states)
        self._end += len(record)

    def close(self) -> None:
        """Close the file, which stays for a run that is resumed."""
        self._file.close()

    @property
    def _bytes_of_token(self) -> int:
        return self.width * self.dtype.itemsize

    def _scan(self, length: int) -> None:
        """Find the rows of a file of this length, and cut off what was half written."""
        while self._end + RECORD.size <= length:
            self._file.seek(self._end)
            key, tokens, checksum = RECORD.unpack(self._file.read(RECORD.size))
            place = self._end + RECORD.size
            if place + tokens * self._bytes_of_token > length:
                break
            self._places[key], self._checksums[key] = (place, tokens), checksum
            self._end = place + tokens * self._bytes_of_token
        self._file.truncate(self._end)
