"""The memory of one step, measured in a process of its own: `python -m bench.memory ours`.

Two numbers, both in MiB. `live`: the most bytes of tensors that stood at once during the step,
counted event by event from torch's own allocator, on top of what stood before it (on a GPU the
allocator's own count). It is exact and the same in every run. `resident`: the most pages that the
process held during the step, which the Linux kernel keeps (VmHWM, reset before the step through
clear_refs), on top of those of the loaded model; with it whatever the allocator keeps in reserve.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from bench import steps
from bench.base import quiet

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")
MIB = 2**20

KINDS: dict[str, Callable[[], steps.Step]] = {
    "limit": steps.limit,
    "ours": lambda: steps.ours("lora"),
    "theirs": lambda: steps.theirs("lora"),
    "theirs narrow": lambda: steps.theirs("lora", narrow=True),
}


def measured(kind: str) -> dict[str, float]:
    """The numbers of one kind, from a fresh process."""
    run = [sys.executable, "-m", "bench.memory", kind]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {kind!r} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(kind: str) -> dict[str, float]:
    """Two steps watched by the kernel, then one by torch."""
    step = KINDS[kind]()
    gc.collect()
    made: dict[str, float] = {}
    if STATUS.exists():
        loaded = status("VmRSS")
        RESET.write_text("5")
        step()
        step()
        peak = status("VmHWM")
        made |= {"loaded": loaded, "total": peak, "resident": peak - loaded}
    step()
    made["live"] = _live(step)
    return made


def _live(step: steps.Step) -> float:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most / MIB


def status(field: str) -> float:
    """A figure that the kernel keeps about this process, in MiB."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    quiet()
    print(json.dumps(measure(sys.argv[1])))
