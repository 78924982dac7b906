"""Predictions over a data set, with a bar that says how far they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inlay_cli.console import err

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from inlay.data import Example
    from inlay.tasks import Task


def predict(
    model: PreTrainedModel, task: Task, data: Sequence[Example], what: str, batch_size: int = 16
) -> list[str]:
    """One prediction for every example, in order. `what` stands in front of the bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    from inlay.layout import evaluating
    from inlay.training.evaluation import merged, predictions

    rows = task.encode_all(data)
    console = err()
    made: list = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Left())
    shown = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown as progress, evaluating(model):
        bar = progress.add_task(what, total=len(rows))
        for part in predictions(model, task, rows, batch_size, None):
            made += part
            progress.advance(bar, len(part))
    if not console.is_terminal:
        console.print(f"{what}: {len(rows)} rows", markup=False, soft_wrap=True)
    return merged(made)
