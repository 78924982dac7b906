"""Checkpoints: one safetensors file that holds all that a run needs to go on to the same numbers.

The file replaces its predecessor in one motion, so that at any instant one of them is there whole.
Tensors (pieces, the optimiser's averages, the best pieces) are tensors; everything else is JSON in
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
from safetensors.torch import save
from torch import Tensor

from inlay.errors import TrainingError
from inlay.files.atomic import write_whole

NAME = "checkpoint.safetensors"
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A run between two steps.

    identity: what must be the same for the run to be the same. counters: where it stands.
    generators: the random state of every process. log: how many bytes of the log count.
    pieces, best: `Inlay.training_state` now and, if there was one, at the best evaluation.
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
    plain = {
        "format": FORMAT,
        "identity": checkpoint.identity,
        "counters": checkpoint.counters,
        "generators": checkpoint.generators,
        "log": checkpoint.log,
    }
    tensors = {
        f"{group}/{name}": tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for group in GROUPS
        for name, tensor in getattr(checkpoint, group).items()
    }
    write_whole(folder / NAME, save(tensors, metadata={"run": json.dumps(plain)}))


def read(folder: Path) -> Checkpoint | None:
    """The folder's checkpoint, or None where there is none.

    Raises TrainingError for a file that is damaged or from another version.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            plain: dict[str, Any] = json.loads(file.metadata()["run"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version = plain.pop("format")
        groups: dict[str, dict[str, Tensor]] = {group: {} for group in GROUPS}
        for name, tensor in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = tensor
        if version == FORMAT:
            return Checkpoint(**{**plain, **groups})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path} is damaged ({error!s:.100}); delete it to start this run anew"
        ) from None
    raise TrainingError(f"{path} is from another version of inlay; delete it to start anew")


def sweep(folder: Path, everything: bool) -> None:
    """Remove what killed processes left half written; or `everything`, the checkpoint too."""
    if everything:
        (folder / NAME).unlink(missing_ok=True)
    for partial in folder.glob(f".{NAME}.*"):
        partial.unlink(missing_ok=True)


def compare(path: Path, found: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise TrainingError, which says what differs, unless the checkpoint is of this run."""
    for name, value in now.items():
        if found.get(name) != value:
            before, after = _differing(found.get(name), value)
            raise TrainingError(
                f"{path} is of another run: {name} was {before} and is {after}; use another "
                "folder, or start anew (--fresh, in Python resume=False)"
            )


def _differing(before: Any, after: Any) -> tuple[str, str]:
    """Two values as text; of long ones the part from shortly before they differ."""
    texts = [one if isinstance(one, str) else json.dumps(one) for one in (before, after)]
    pairs = enumerate(zip(*texts, strict=False))
    start = max(0, next((at for at, (a, b) in pairs if a != b), min(map(len, texts))) - 20)
    return _short(texts[0], start), _short(texts[1], start)


def _short(text: str, start: int) -> str:
    if len(text) <= 80:
        return text
    return "…" * (start > 0) + text[start : start + 76] + "…" * (start + 76 < len(text))


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimiser as named tensors."""
    state = optimizer.state_dict()["state"]
    return {f"{n}/{name}": t for n, own in state.items() for name, t in own.items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Take back what `optimizer_state` returned."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
