"""Memory of a step: how much its tensors take at the peak, and what is left on the device."""

from __future__ import annotations

import math
import os
import resource
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakIdKeyDictionary
from typing_extensions import override

MEMINFO = Path("/proc/meminfo")


def live_peak(run: Callable[[], object], device: torch.device) -> int:
    """Run something, and return by how many bytes the live tensors grew at the most meanwhile.

    It is the same in every run, and leaves out what an allocator keeps in reserve.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveTensors() as live:
        run()
    return live.highest


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations return, as long as these are alive.

    What kernels need inside is not seen. highest: the most bytes that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.highest = 0
        self._current = 0
        self._known = WeakIdKeyDictionary()

    @override
    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        tree_map_only(Tensor, lambda tensor: self._note(tensor, 0), (args, kwargs))
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, lambda tensor: self._note(tensor, 1), result)
        return result

    def _note(self, tensor: Any, times: int) -> None:
        """Count a tensor's storage, unless it is known; times: 0 for one that was there before."""
        if is_traceable_wrapper_subclass(tensor):
            return
        storage = tensor.untyped_storage()
        if storage in self._known:
            return
        size = times * storage.nbytes()
        self._known[storage] = size
        self._current += size
        self.highest = max(self.highest, self._current)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self._current -= size


def free_memory(device: torch.device) -> int | None:
    """How many bytes are free on a device for this process; None where that cannot be told."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    if MEMINFO.exists():
        lines = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    if "SC_AVPHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device has no memory left.

    Accelerators have a class for it; torch's allocator for the CPU says it in words alone.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def peak_memory(device: torch.device) -> int:
    """How many bytes this process took at the most so far, on a device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def cures(rows: int, tokens: int, room: float = 0.5) -> list[str]:
    """What makes a step smaller, in order of effect, with the numbers to give.

    rows, tokens: of the batch that does not fit, padding included. room: how much of it would.
    """
    fewer = max(1, min(int(rows * room), rows - 1))
    result = []
    if rows > 1:
        times = math.ceil(rows / fewer)
        result.append(f"batch_size {fewer} with accumulate {times}, which learns the same")
    shorter = max(1, int(tokens * min(room, 0.5)))
    result.append(f"tokens {shorter}, which puts fewer long rows into a batch")
    result.append("a base in fewer bits, quantize int8 or nf4")
    return result


def gigabytes(count: float) -> str:
    """Bytes for people: MiB below one GiB."""
    return f"{count / 2**20:,.0f} MiB" if count < 2**30 else f"{count / 2**30:,.2f} GiB"
