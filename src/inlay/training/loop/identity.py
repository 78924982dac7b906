"""The identity of a run: everything that its numbers depend on.

A checkpoint holds it, so that a run resumes from its own checkpoint alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from inlay.architectures.resolve import resolve
from inlay.core.method import Spec
from inlay.core.parse import to_json
from inlay.files.fingerprint import fingerprint
from inlay.runtime.install import Prepared
from inlay.tasks import Row, Task
from inlay.training.loop.options import Options
from inlay.training.loop.trainable import Trainable

NEUTRAL = {"lr", "weight_decay", "trackers", "checkpoint_every", "reuse"}
"""Options that are not compared: they change no number but for rounding, or each group's own value
is compared."""


def identity(
    trainable: Trainable,
    task: Task,
    options: Options,
    *,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    rows: Sequence[Row],
    dev_rows: Sequence[Row],
    processes: int,
    prepared: Prepared | None = None,
    start: str | None = None,
) -> dict[str, Any]:
    """The identity of a run by name, as JSON.

    Args:
        trainable: what is trained.
        task: the task.
        options: of the run.
        learning_rates: the highest of each group of parameters.
        weight_decays: of each group of parameters.
        rows: to train on.
        dev_rows: to evaluate on.
        processes: how many run side by side.
        prepared: what the methods computed from data before they were attached.
        start: the digest of the file that the pieces start from.
    """
    facts = {
        "base": describe_base(trainable.model),
        "method": describe_method(trainable.spec),
        "prepared": None if not prepared else describe_prepared(prepared),
        "start": start,
        "task": task.describe(),
        "data": describe_rows(rows),
        "dev": describe_rows(dev_rows),
        "lr": list(learning_rates),
        "weight_decay": list(weight_decays),
        **options.model_dump(exclude=NEUTRAL),
        "processes": processes,
    }
    return json.loads(json.dumps(facts))


def describe_base(model: PreTrainedModel) -> str:
    """The class, type and fingerprint of a base."""
    base = json.dumps(fingerprint(resolve(model)), sort_keys=True)
    return f"{type(model).__name__} {model.dtype} {_digest([base.encode()])}"


def describe_method(spec: Spec) -> str:
    """A spec as text."""
    return to_json(spec)


def describe_rows(rows: Sequence[Row]) -> str:
    """How many rows there are, and a digest of them."""
    parts = [repr((row.input_ids, row.labels)).encode() for row in rows]
    return f"{len(rows)} rows {_digest(parts)}"


def describe_prepared(prepared: Prepared) -> str:
    """How many tensors were prepared, and a digest of them."""
    parts: list[bytes] = []
    tensors: Mapping[str, torch.Tensor]
    for index, tensors in sorted(prepared.items()):
        for name, tensor in sorted(tensors.items()):
            parts.append(repr((index, name, tensor.dtype, tuple(tensor.shape))).encode())
            data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            parts.append(data.numpy().tobytes())
    return f"{len(parts) // 2} tensors {_digest(parts)}"


def _digest(parts: Sequence[bytes]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return sha.hexdigest()[:16]
