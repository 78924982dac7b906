"""Checks that a base can be fed what a task feeds it: text and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.architectures.families import FAMILIES
from inlay.core.modes import evaluating
from inlay.errors import TaskError

READS = {"images": "images", "audio": "audio", "states": "something else"}

CURE = "write your own loop or use transformers.Trainer, which take any inputs"


def require_text(model: PreTrainedModel, chart: Chart, task: str) -> None:
    """Check that a base runs on text alone.

    A base whose family is not described is tried out with two tokens, because what its forward
    pass needs is written nowhere else.

    Raises TaskError where it does not.
    """
    if not chart.reads_text:
        reads = READS[chart.stacks[0].reads]
        raise TaskError(f"{task} works on text, and {type(model).__name__} reads {reads}; {CURE}")
    if FAMILIES.get(model.config.model_type) is chart.family or model.device.type == "meta":
        return
    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if chart.decoder is not None:
        inputs["decoder_input_ids"] = ids
    try:
        with evaluating(model):
            chart.last_hidden_state(model, **inputs)
    except Exception as error:
        raise TaskError(
            f"{task} feeds a base text alone, and {type(model).__name__} does not run on that "
            f"({type(error).__name__}: {error!s:.80}); {CURE}"
        ) from None
