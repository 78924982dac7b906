"""The processes, devices and trackers of a run, as accelerate reports them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType, PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import parse_flag_from_env

from inlay.errors import TrainingError, nearest

SHARDED = {
    DistributedType.FSDP,
    DistributedType.DEEPSPEED,
    DistributedType.MEGATRON_LM,
}


def processes() -> PartialState:
    """This process and those that run beside it. The first call joins them.

    `PartialState()` alone joins no processes on CPUs: each would run as if it were the only one.

    Raises TrainingError where a launcher started several and they were not joined.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=cpu)
    launched = int(os.environ.get("WORLD_SIZE", "1")) if "LOCAL_RANK" in os.environ else 1
    if launched != state.num_processes:
        raise TrainingError(
            f"{launched} processes were launched, and accelerate knows of {state.num_processes}; "
            "call inlay before anything else creates a PartialState or an Accelerator"
        )
    return state


def create_accelerator(
    trackers: Sequence[str], folder: str | Path | None, config: dict[str, object]
) -> Accelerator:
    """The accelerator of this process, with its trackers started.

    Args:
        trackers: their names.
        folder: where trackers write their files; None for the current folder.
        config: the description of the run that trackers store.

    Raises TrainingError for a tracker that is unknown or not installed, for fp16 (whose gradients
    need scaling; those of bf16 do not), where processes are not joined, and where the model is
    sharded over them.
    """
    processes()
    installed = {kind.value for kind in get_available_trackers()}
    for name in trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise TrainingError(
                f"no tracker is called {name!r}{nearest(name, LOGGER_TYPE_TO_CLASS)}"
            )
        if name not in installed:
            raise TrainingError(f"the tracker {name!r} is not installed; pip install it")
    accelerator = Accelerator(log_with=list(trackers) or None, project_dir=folder or ".")
    if accelerator.distributed_type in SHARDED:
        raise TrainingError(
            f"fit runs a whole model in each process, not {accelerator.distributed_type.value}; "
            "train the inlay with transformers.Trainer there"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise TrainingError(
            f"fit has no mixed precision {accelerator.mixed_precision!r}; use bf16, or load the "
            "base in bf16 and use none"
        )
    if trackers:
        plain = {k: v if isinstance(v, int | float) else str(v) for k, v in config.items()}
        accelerator.init_trackers("inlay", config=plain)
    return accelerator
