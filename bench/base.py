"""The base, the batch and the machine that everything is measured on."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from inlay.hub import fetch_model, load_base

MODEL = "smollm2"
DTYPE = torch.bfloat16
ROWS, LENGTH, LABELLED = 8, 128, 64
PACKAGES = ("torch", "transformers", "accelerate", "peft")


def quiet() -> None:
    """No progress bars, no hub, and none of the notices that peft and transformers print."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def device() -> torch.device:
    """The accelerator, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model(dtype: torch.dtype = DTYPE) -> PreTrainedModel:
    """A fresh copy of the base, in training mode, in memory of its own (loading maps a file)."""
    made = AutoModelForCausalLM.from_pretrained(fetch_model(MODEL), dtype=dtype)
    for parameter in made.parameters():
        parameter.data = parameter.data.clone()
    return made.to(device()).train()


def tokenizer() -> PreTrainedTokenizerBase:
    """The base's tokenizer."""
    return load_base(MODEL)[1]


@dataclass(frozen=True)
class Batch:
    """Rows of one length without padding; the last `LABELLED` tokens of each are to be predicted.

    ids, mask `[B, T]`. labels `[B, T]`: the same tokens, -100 where none is to be predicted, as
    transformers wants them. positions `[N]`: where in the flat `[B·T]` a token is predicted;
    targets `[N]`: which one.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    positions: Tensor
    targets: Tensor


def batch(rows: int = ROWS) -> Batch:
    """The same batch in every process."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (rows, LENGTH), generator=draw)
    labels = ids.clone()
    labels[:, :-LABELLED] = -100
    before = torch.arange(LENGTH - LABELLED - 1, LENGTH - 1)
    positions = (torch.arange(rows)[:, None] * LENGTH + before).flatten()
    targets = ids[:, -LABELLED:].flatten()
    made = (ids, torch.ones_like(ids), labels, positions, targets)
    return Batch(*(tensor.to(device()) for tensor in made))


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """What the numbers depend on, without anything that says whose machine it is."""
    here = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_matrix_unit": bool(torch.cpu._is_amx_tile_supported()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    return {**here, **{name: version(name) for name in packages}}


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
