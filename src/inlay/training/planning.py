"""plan: what a training run will take, measured on one step before it starts.

    estimate = plan(model, handle, task, rows, batch_size=16, steps=500)
    estimate.peak        bytes: the base, the pieces, and a step on the largest batch
    estimate.epoch       seconds for one pass over the rows

The step is made on the batch that needs most memory, and once more on one of middle size, for its
time. Nothing is learned, and the pieces and all random generators are afterwards as before.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from inlay.core.quantised import memory_of
from inlay.data.dataset import Example
from inlay.handle import Inlay, rows
from inlay.tasks import Row, Task
from inlay.training.fit import training_modes
from inlay.training.loop import rng
from inlay.training.loop.batches import shuffled_batches
from inlay.training.loop.launch import create_accelerator
from inlay.training.loop.memory import (
    cures,
    free_memory,
    gigabytes,
    is_out_of_memory,
    live_peak,
)
from inlay.training.loop.options import Options, make_options
from inlay.training.loop.step import Stepper

FULL_PRECISION_BYTES = 4
ADAM_MOMENTS = 2
"""AdamW keeps two numbers for every trained one."""


@dataclass(frozen=True)
class Plan:
    """What a run takes. Memory is in bytes, times are in seconds.

    parameters: how many are trained. file: the size of the inlay's file, about. base: the memory of
    the base. step: what the tensors of a step take at the peak, on the largest batch; None where
    that did not fit. optimizer: what AdamW keeps. free: what the device had left; None where that
    cannot be told. rows, tokens: of the largest batch, padding included. per_step: of a batch of
    middle size. steps: of an epoch. total_steps: of the run; None where time ends it.
    """

    parameters: int
    file: int
    base: int
    step: int | None
    optimizer: int
    free: int | None
    rows: int
    tokens: int
    per_step: float
    steps: int
    total_steps: int | None

    @property
    def peak(self) -> int | None:
        """The base, the pieces' optimiser and the largest step together; None if it did not fit."""
        return None if self.step is None else self.base + self.optimizer + self.step

    @property
    def epoch(self) -> float:
        """Seconds of one pass over the rows."""
        return self.per_step * self.steps

    @property
    def fits(self) -> bool | None:
        """Whether the run fits the device; None where that cannot be told."""
        if self.step is None:
            return False
        return None if self.free is None else self.step + self.optimizer <= self.free

    def cures(self) -> list[str]:
        """What makes a step smaller, in order of effect, with the numbers to give."""
        room = 0.5
        if self.step is not None and self.free is not None:
            room = 0.9 * max(0, self.free - self.optimizer) / max(1, self.step)
        return cures(self.rows, self.tokens, room)


def plan(
    model: PreTrainedModel,
    handle: Inlay,
    task: Task,
    data: Sequence[Example],
    **options: Any,
) -> Plan:
    """Measure what a training run will take, on one step.

    Args:
        model: the base, on its device.
        handle: an inlay attached to it, which would be trained.
        task: a task bound to it.
        data: the training examples.
        **options: the fields of `Options`, as for `fit`.

    Raises TrainingError and DataError as `fit` does before its first step.
    """
    checked = make_options(options)
    encoded = task.encode_all(data)
    costs = [len(row) for row in encoded]
    batches = shuffled_batches(
        costs, rows=checked.rows, tokens=checked.tokens, seed=checked.seed, epoch=0
    )
    padded = [len(batch) * max(costs[number] for number in batch) for batch in batches]
    order = sorted(range(len(batches)), key=padded.__getitem__)
    largest, middle = order[-1], order[len(order) // 2]
    parameters = handle.count()
    steps = math.ceil(len(batches) / checked.accumulate)
    with rng.preserved(), training_modes(model, [handle.name], checked.dropout):
        free = free_memory(model.device)
        run = _step(model, handle, task, checked, encoded)
        try:
            peak = live_peak(lambda: run(batches[largest]), model.device)
            begun = time.perf_counter()
            run(batches[middle])
            seconds = time.perf_counter() - begun
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            peak, seconds = None, math.nan
    mean = sum(padded) / len(padded)
    return Plan(
        parameters=parameters,
        file=sum(tensor.nbytes for tensor in handle.named_tensors().values()),
        base=memory_of(model),
        step=peak,
        optimizer=parameters * FULL_PRECISION_BYTES * ADAM_MOMENTS,
        free=free,
        rows=len(batches[largest]),
        tokens=padded[largest],
        per_step=seconds * mean / padded[middle] * checked.accumulate,
        steps=steps,
        total_steps=_total(checked, steps),
    )


def describe_plan(estimate: Plan, device: torch.device) -> str:
    """A line that says what a run will take."""
    time_of = f"about {duration(estimate.epoch)} an epoch of {estimate.steps:,} steps"
    file = f"a file of about {gigabytes(estimate.file)}"
    if estimate.peak is None or estimate.fits is False:
        ways = "; or ".join(estimate.cures())
        return f"it will not fit {device}: {file}; try {ways}"
    return f"it will take {gigabytes(estimate.peak)} at the peak on {device}, {time_of}, {file}"


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _step(
    model: PreTrainedModel, handle: Inlay, task: Task, options: Options, encoded: Sequence[Row]
) -> Callable[[Sequence[int]], None]:
    """What makes the forward and backward pass of one batch, and drops the gradients."""
    stepper = Stepper(model, handle, task, options, create_accelerator((), None, {}))

    def run(batch: Sequence[int]) -> None:
        with rows(model, [handle.name]):
            stepper.backward([[encoded[number] for number in batch]])
        stepper.drop_gradients()

    return run


def _total(options: Options, steps: int) -> int | None:
    """The steps of the run, as far as epochs and steps say."""
    ends = [] if options.steps is None else [options.steps]
    if options.max_epochs is not None:
        ends.append(math.ceil(options.max_epochs * steps))
    return min(ends, default=None)
