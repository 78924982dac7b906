"""safetensors files whose bytes depend on nothing but what they hold.

The safetensors library writes the entries of a header in an order that differs from process to
process. Equal runs shall write equal files, so the entries are sorted here; the tensors stay where
they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor

LENGTH = 8
"""Bytes that hold the header's length, and of which it is a multiple."""


def to_bytes(tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """A safetensors file in two parts: its header, and its tensors."""
    whole = memoryview(save(tensors, metadata=dict(metadata)))
    end = LENGTH + int.from_bytes(whole[:LENGTH], "little")
    entries = json.loads(bytes(whole[LENGTH:end]))
    header = json.dumps(entries, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % LENGTH)
    return len(header).to_bytes(LENGTH, "little") + header, whole[end:]
