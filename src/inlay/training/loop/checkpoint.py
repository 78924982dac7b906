"""Checkpoints: one safetensors file with everything that a run needs to resume bit for bit.

A new checkpoint replaces the old one atomically, so that at any instant one of them is there whole.
Tensors (pieces, the optimiser's moments, the best pieces) are tensors; everything else is JSON in
the header. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from inlay.errors import TrainingError
from inlay.files.atomic import write_whole
from inlay.files.ordered import to_bytes

NAME = "checkpoint.safetensors"
FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    identity: what must be equal for a run to be the same.
    counters: where it stands.
    generators: the states of the random number generators of every process.
    log: how many bytes of the log belong to it.
    pieces: `Inlay.training_state` now.
    best: `Inlay.training_state` at the best evaluation; empty where there was none.
    optimizer: the optimiser's state, `<number of the parameter>/<name>` -> tensor.
    """

    identity: dict[str, Any]
    counters: dict[str, Any]
    generators: list[dict[str, Any]]
    log: int
    pieces: dict[str, Tensor]
    best: dict[str, Tensor]
    optimizer: dict[str, Tensor]


GROUPS = ("pieces", "best", "optimizer")


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the folder's checkpoint, whole or not at all."""
    header = {
        "format": FORMAT,
        "identity": checkpoint.identity,
        "counters": checkpoint.counters,
        "generators": checkpoint.generators,
        "log": checkpoint.log,
    }
    groups = {
        "pieces": checkpoint.pieces,
        "best": checkpoint.best,
        "optimizer": checkpoint.optimizer,
    }
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group in GROUPS
        for name, tensor in groups[group].items()
    }
    write_whole(folder / NAME, to_bytes(tensors, {"run": json.dumps(header)}))


def read(folder: Path) -> Checkpoint | None:
    """The folder's checkpoint, or None where there is none.

    Raises TrainingError for a file that is damaged or from another version.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads(file.metadata()["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version = header.pop("format")
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        if version == FORMAT:
            return Checkpoint(**{**header, **groups})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path} is damaged ({error!s:.100}); delete it to start this run anew"
        ) from None
    raise TrainingError(f"{path} is from another version of inlay; delete it to start anew")


def clean_up(folder: Path, everything: bool) -> None:
    """Remove half-written files of killed processes; with `everything`, the checkpoint too."""
    if everything:
        (folder / NAME).unlink(missing_ok=True)
    for partial in folder.glob(f".{NAME}.*"):
        partial.unlink(missing_ok=True)


def check_identity(path: Path, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Raise TrainingError, which names the first difference, for the checkpoint of another run."""
    for name, value in current.items():
        if stored.get(name) != value:
            before, after = _difference(stored.get(name), value)
            raise TrainingError(
                f"{path} is of another run: {name} was {before} and is {after}; use another "
                "folder, or start anew (--fresh, in Python resume=False)"
            )


def _difference(before: Any, after: Any) -> tuple[str, str]:
    """Two values as text; of long ones the part from shortly before they differ."""
    texts = [value if isinstance(value, str) else json.dumps(value) for value in (before, after)]
    pairs = enumerate(zip(*texts, strict=False))
    start = max(0, next((at for at, (a, b) in pairs if a != b), min(map(len, texts))) - 20)
    return _shorten(texts[0], start), _shorten(texts[1], start)


def _shorten(text: str, start: int) -> str:
    if len(text) <= 80:
        return text
    return "…" * (start > 0) + text[start : start + 76] + "…" * (start + 76 < len(text))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as named tensors."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}/{name}": tensor
        for number, tensors in state.items()
        for name, tensor in tensors.items()
    }


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `optimizer_state` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
