"""calibrate: fit the temperature of a task's probabilities on held-out rows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from inlay.core.modes import evaluating
from inlay.data.dataset import Example
from inlay.tasks import Task
from inlay.tasks.calibration import Calibration, fit_temperature
from inlay.training.loop.batches import batches_by_length
from inlay.training.loop.evaluation import chunks
from inlay.training.loop.progress import ProgressDisplay

MAX_ROWS = 2000
"""A temperature is one number: more rows change nothing that matters. They are spread evenly."""


def calibrate(
    model: PreTrainedModel,
    task: Task,
    data: Sequence[Example],
    console: Console,
    *,
    batch_size: int | None,
    tokens: int | None,
) -> Calibration | None:
    """The temperature that fits the task's probabilities best on held-out rows.

    Args:
        model: the base, with the inlay that serves every row.
        task: bound to it.
        data: the rows, with gold answers.
        console: where progress is shown.
        batch_size, tokens: the size of a batch.

    None where the task has no probabilities or the rows no gold answers.
    """
    if not task.calibrates:
        return None
    examples = [data[n] for n in range(0, len(data), -(-len(data) // MAX_ROWS))]
    scores: list[Tensor] = []
    classes: list[Tensor] = []
    with (
        ProgressDisplay(console) as display,
        evaluating(model),
        display.counting("calibrating on dev", len(examples)) as advance,
    ):
        for chunk in chunks(examples):
            rows = task.encode_all(chunk)
            for numbers in batches_by_length([len(row) for row in rows], rows=batch_size, tokens=tokens):  # fmt: skip  # noqa: E501
                batch = task.collate([rows[number] for number in numbers]).to(model.device)
                pair = task.class_scores(task.outputs(model, batch), batch)
                if pair is None:
                    return None
                scores.append(pair[0].cpu())
                classes.append(pair[1].cpu())
                advance(len(numbers))
    width = max(part.shape[1] for part in scores)
    padded = [F.pad(part, (0, width - part.shape[1]), value=-torch.inf) for part in scores]
    return fit_temperature(torch.cat(padded), torch.cat(classes))
