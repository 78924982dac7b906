"""Whether the activations below every piece are kept between epochs, and where.

What lies below every trained piece is the same in every epoch: all blocks for a trained head or a
side network, the lower ones for the top layers or for adapters in the upper ones. They are kept by
`runtime.reuse`; here it is decided, and shown, before the run begins.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedModel

from inlay.errors import TrainingError
from inlay.runtime.reuse import RANDOM, StackReuse, reusable
from inlay.tasks import Row
from inlay.training.loop import rng
from inlay.training.loop.identity import describe_base
from inlay.training.loop.kept import DiskStore, MemoryStore
from inlay.training.loop.options import Options

WORTH = 1e12
"""Of how many multiplications and additions reuse has to spare a run to begin by itself."""

SHARE = 0.25
"""Which share of a stack's blocks must be below every piece for that."""

ROOM = 0.25
"""Which share of the free memory, or disk, it takes for that at most."""

LIMITS = ("memory.max", "memory.current")

CGROUP = Path("/sys/fs/cgroup")
MEMORY = Path("/proc/meminfo")


class Reuse:
    """The part of a run that keeps activations.

    Args:
        model: the base, with what is trained attached, in the modes of the run.
        options: of the run.
        rows: everything that goes through the model again and again.
        epochs: how many times it does; None where that is not known.
        folder: of the run.
        accelerator: of this process.

    note: what to show before the run begins; None where there is nothing to say.

    Raises TrainingError where `options.reuse` asks for what is not possible.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        options: Options,
        rows: Sequence[Row],
        epochs: float | None,
        folder: Path | None,
        accelerator: Accelerator,
    ):
        self.model = model
        self.options = options
        self.folder = folder
        self.tokens = sum(len(row) for row in rows)
        self.epochs = epochs
        self.stacks: list[StackReuse] = []
        self.note: str | None = None
        self.automatic = options.reuse == "auto"
        self.place = options.reuse
        if self.automatic:
            self.place = "memory" if folder is None else "disk"
        self.limit = 0
        self._decide(len(rows), accelerator)

    def _decide(self, count: int, accelerator: Accelerator) -> None:
        """Choose the stacks, the place and the words for them."""
        if self.place == "never" or (self.epochs is not None and self.epochs < 2):
            if not self.automatic and self.place != "never":
                self.note = "reuse: nothing is kept, because the run has fewer than two epochs"
            return
        if self.automatic and (self.epochs is None or not self._pays(reusable(self.model))):
            return
        reason = self._obstacle(accelerator)
        if reason is not None:
            if not self.automatic:
                raise TrainingError(f"nothing can be reused: {reason}")
            if reason.startswith(RANDOM):
                self.note = f"reuse: nothing is kept, because {RANDOM}; dropout=False would let it"
            return
        size = self.tokens * sum(stack.bytes_of_token for stack in self.stacks)
        free = self._free()
        share = ROOM if self.automatic else 1.0
        if free is not None and size > share * free:
            where = "of memory are" if self.place == "memory" else "of the disk are"
            needed = (
                f"about {_bytes(size)} of activations would be kept, and {_bytes(free)} {where}"
            )
            if not self.automatic:
                cure = "reuse='disk', " if self.place == "memory" else ""
                raise TrainingError(f"{needed} free; use {cure}reuse='never' or fewer rows")
            self.note = f"reuse: nothing is kept, because {needed} free"
            self.stacks = []
            return
        self.limit = int(1.5 * size) + 2**20
        blocks = " and ".join(
            f"the first {s.layers} of {len(s.stack.layers)} blocks of the {s.stack.name}"
            for s in self.stacks
        )
        dtypes = ", ".join(sorted({str(s.dtype).removeprefix("torch.") for s in self.stacks}))
        where = "in memory" if self.place == "memory" else f"in {self.folder}"
        self.note = (
            f"reuse: what {blocks} compute is kept {where}: about {_bytes(size)} ({dtypes}) for "
            f"{count} rows"
        )

    def _pays(self, stacks: Sequence[StackReuse]) -> bool:
        """Whether it spares enough to begin by itself."""
        assert self.epochs is not None
        spared = 0
        for entry in stacks:
            layers = entry.stack.layers
            if entry.layers >= SHARE * len(layers):
                blocks = layers[: entry.layers]
                spared += 2 * sum(p.numel() for block in blocks for p in block.parameters())
        return spared * self.tokens * (self.epochs - 1) >= WORTH

    def _obstacle(self, accelerator: Accelerator) -> str | None:
        """Why nothing can be reused, with the cure; None where `stacks` can."""
        if self.options.base_lr is not None:
            return "the base itself is trained; leave base_lr out"
        if accelerator.num_processes > 1:
            return (
                "several processes share the rows anew in every epoch; train in one, or use "
                "reuse='never'"
            )
        if self.place == "disk" and self.folder is None:
            return "there is no folder for what reuse='disk' keeps; give a folder"
        stacks = reusable(self.model)
        if not stacks:
            return (
                "a piece acts on the first block or before it; let pieces act in upper layers "
                "only, or use reuse='never'"
            )
        reasons = self._measure(stacks, accelerator)
        if self.stacks:
            return None
        if RANDOM in reasons:
            return f"{RANDOM}; use dropout=False, or reuse='never'"
        return f"{reasons[0]}; use reuse='never'"

    def _measure(self, stacks: Sequence[StackReuse], accelerator: Accelerator) -> list[str]:
        """Add the stacks that can be reused; returns why others cannot."""
        reasons: list[str] = []
        with rng.preserved(), accelerator.autocast():
            for stack in stacks:
                if stack.upstream is not None and stack.upstream not in self.stacks:
                    continue
                reason = stack.measure()
                if reason is None:
                    self.stacks.append(stack)
                else:
                    reasons.append(reason)
        return reasons

    def _free(self) -> int | None:
        """How many bytes are free where activations are kept; None where that is not known."""
        if self.place == "memory":
            return free_memory()
        assert self.folder is not None
        present = next(part for part in (self.folder, *self.folder.parents) if part.exists())
        kept = sum(path.stat().st_size for path in self.folder.glob(name_of("*")))
        return shutil.disk_usage(present).free + kept

    @contextmanager
    def reusing(self, resume: bool) -> Iterator[None]:
        """Inside, activations are kept and reused. A run that ends leaves no file of them."""
        if self.folder is not None and not (resume and self.stacks and self.place == "disk"):
            self._remove()
        with ExitStack() as context:
            self.stores = [self._store(stack) for stack in self.stacks]
            for stack, store in zip(self.stacks, self.stores, strict=True):
                context.callback(store.close)
                context.enter_context(stack.reusing(store))
            yield
        self._remove()

    def facts(self) -> dict[str, Any] | None:
        """What was spared, for the log; None where nothing was kept."""
        passes = sum(stack.passes for stack in self.stacks)
        if not passes:
            return None
        skipped = sum(stack.skipped for stack in self.stacks)
        return {
            "bytes": sum(store.size for store in self.stores),
            "passes": passes,
            "skipped": skipped,
        }

    def summary(self) -> str | None:
        """The same as a sentence."""
        facts = self.facts()
        if facts is None:
            return None
        return (
            f"reuse: {facts['skipped']} of {facts['passes']} times a row skipped these blocks; "
            f"{_bytes(facts['bytes'])} kept"
        )

    def _store(self, stack: StackReuse) -> MemoryStore | DiskStore:
        if self.place == "memory":
            return MemoryStore(self.limit)
        assert self.folder is not None
        identity = {
            "base": describe_base(self.model),
            "stack": stack.stack.name,
            "blocks": list(stack.numbers),
        }
        path = self.folder / name_of(stack.stack.name)
        return DiskStore(path, identity, stack.width, stack.dtype, self.limit)

    def _remove(self) -> None:
        if self.folder is not None:
            for path in self.folder.glob(name_of("*")):
                path.unlink(missing_ok=True)


def name_of(stack: str) -> str:
    """The name of the file in a run's folder with the activations of a stack."""
    return f"activations-{stack}.bin"


def free_memory() -> int | None:
    """How many bytes of memory this process may still take; None where that is not known."""
    free: list[int] = []
    if MEMORY.exists():
        lines = dict(line.split(":") for line in MEMORY.read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
    elif "SC_AVPHYS_PAGES" in os.sysconf_names:
        free.append(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    limits = [CGROUP / name for name in LIMITS]
    if all(path.exists() for path in limits):
        most, now = (path.read_text().strip() for path in limits)
        if most != "max":
            free.append(int(most) - int(now))
    return min(free, default=None)


def _bytes(size: float) -> str:
    """A number of bytes for people."""
    units = ["B", "kB", "MB", "GB", "TB"]
    power = min(len(units) - 1, max(0, len(str(int(size))) - 1) // 3)
    return f"{size / 1000**power:.{min(power, 1)}f} {units[power]}"
