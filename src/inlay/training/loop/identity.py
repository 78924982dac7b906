"""What makes a run the run that it is: a checkpoint of one is not taken for another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from inlay.architectures.resolve import resolve
from inlay.core.parse import to_json
from inlay.files.fingerprint import fingerprint
from inlay.tasks import Row, Task
from inlay.training.loop.options import Options
from inlay.training.loop.trainable import Trainable

NEUTRAL = {"lr", "trackers", "checkpoint_every"}
"""Options that change no number, and so may change when a run goes on; `lr` is told by itself."""


def identity(
    handle: Trainable,
    task: Task,
    chosen: Options,
    learning_rates: Sequence[float],
    weight_decays: Sequence[float],
    rows: Sequence[Row],
    dev: Sequence[Row],
    processes: int,
) -> dict[str, Any]:
    """Everything that a run's numbers depend on, by name, as JSON."""
    model = handle.model
    base = json.dumps(fingerprint(resolve(model)), sort_keys=True)
    said = {
        "base": f"{type(model).__name__} {model.dtype} {_digest(base)}",
        "method": to_json(handle.spec),
        "task": task.describe(),
        "data": _rows(rows),
        "dev": _rows(dev),
        "lr": list(learning_rates),
        **chosen.model_dump(exclude=NEUTRAL),
        "weight_decay": list(weight_decays),
        "processes": processes,
    }
    return json.loads(json.dumps(said))


def _rows(rows: Sequence[Row]) -> str:
    return f"{len(rows)} rows {_digest(*(repr((row.input_ids, row.labels)) for row in rows))}"


def _digest(*parts: str) -> str:
    made = hashlib.sha256()
    for part in parts:
        made.update(part.encode())
    return made.hexdigest()[:16]
