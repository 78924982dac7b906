"""The memory of one step, measured in a process of its own: `python -m bench.memory ours`.

Two numbers, both in MiB. `live`: the largest sum of tensors alive at once during the step, beyond
those alive before it, counted from the events of torch's allocator (on a GPU by the allocator
itself). It is exact and the same in every run. `resident`: the largest resident memory of the
process during the step, beyond that of the loaded model, as the Linux kernel counts it (VmHWM,
reset through clear_refs before the step); it includes what the allocator keeps in reserve.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench import steps
from bench.base import quiet
from bench.live import live

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")

KINDS: dict[str, Callable[[], steps.Step]] = {
    "limit": steps.limit,
    "ours": lambda: steps.ours("lora"),
    "theirs": lambda: steps.theirs("lora"),
    "theirs narrow": lambda: steps.theirs("lora", narrow=True),
}


def measured(kind: str) -> dict[str, float]:
    """The numbers of one kind of step, from a process of its own."""
    command = [sys.executable, "-m", "bench.memory", kind]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise RuntimeError(f"measuring {kind!r} failed:\n{process.stderr[-2000:]}")
    numbers: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return numbers


def measure(kind: str) -> dict[str, float]:
    """The memory of two steps by the kernel's count, then of one by torch's."""
    step = KINDS[kind]()
    gc.collect()
    numbers: dict[str, float] = {}
    if STATUS.exists():
        loaded = status("VmRSS")
        RESET.write_text("5")
        step()
        step()
        peak = status("VmHWM")
        numbers |= {"loaded": loaded, "total": peak, "resident": peak - loaded}
    step()
    numbers["live"] = live(step)
    return numbers


def status(field: str) -> float:
    """A figure of this process in the kernel's tables, in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    quiet()
    print(json.dumps(measure(sys.argv[1])))
