"""Memory of a step: how much its tensors take at the peak, and what is left on the device."""

from __future__ import annotations

import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

MEMINFO = Path("/proc/meminfo")


def live_peak(run: Callable[[], object], device: torch.device) -> int:
    """Run something, and return by how many bytes the live tensors grew at the most meanwhile.

    It is counted from the events of torch's allocator, so it is the same in every run, and leaves
    out what the allocator keeps in reserve.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    kineto = profiler.profiler
    assert kineto is not None
    events = [event for event in kineto.kineto_results.events() if event.name() == "[memory]"]
    current = highest = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        highest = max(highest, current)
    return highest


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
