"""The base and the batch that everything is measured with, and the machine."""

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
    """Turn off progress bars, the hub, and the notices of peft and transformers."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def device() -> torch.device:
    """The accelerator, or the CPU if there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def model(dtype: torch.dtype = DTYPE) -> PreTrainedModel:
    """A new base in training mode, copied into memory because loading maps a file."""
    base = AutoModelForCausalLM.from_pretrained(fetch_model(MODEL), dtype=dtype)
    for parameter in base.parameters():
        parameter.data = parameter.data.clone()
    return base.to(device()).train()


def tokenizer() -> PreTrainedTokenizerBase:
    """The base's tokenizer."""
    return load_base(MODEL)[1]


@dataclass(frozen=True)
class Batch:
    """Rows of one length without padding; the last `LABELLED` tokens of each are predicted.

    ids, mask: `[B, T]`. labels: `[B, T]`, the ids, and -100 where no token is predicted, as
    transformers takes them. positions: `[N]`, the positions in the flat `[B·T]` at which a token
    is predicted. targets: `[N]`, these tokens.
    """

    ids: Tensor
    mask: Tensor
    labels: Tensor
    positions: Tensor
    targets: Tensor


def batch(rows: int = ROWS) -> Batch:
    """The same batch in every process."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (rows, LENGTH), generator=generator)
    labels = ids.clone()
    labels[:, :-LABELLED] = -100
    before = torch.arange(LENGTH - LABELLED - 1, LENGTH - 1)
    positions = (torch.arange(rows)[:, None] * LENGTH + before).flatten()
    targets = ids[:, -LABELLED:].flatten()
    tensors = (ids, torch.ones_like(ids), labels, positions, targets)
    return Batch(*(tensor.to(device()) for tensor in tensors))


def machine(packages: Sequence[str] = PACKAGES) -> dict[str, object]:
    """What the numbers depend on, without anything that identifies the machine."""
    properties = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "bf16_matrix_unit": bool(torch.cpu._is_amx_tile_supported()),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
    }
    return {**properties, **{name: version(name) for name in packages}}


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
