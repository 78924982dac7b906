"""The loss of one batch: that of the task, and what methods with several passes add to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inlay.core.method import Method, Spec
from inlay.tasks import Task


def batch_loss(
    model: PreTrainedModel, task: Task[Any, Any], spec: Spec, batch: Any
) -> tuple[Tensor, int]:
    """The loss of a batch, summed over what counts in the task's loss, and how many count.

    Where methods ask for several forward passes, the task's loss is that of the first, and the
    divergence is the mean over the first's comparisons with each of the others:

        loss = task_loss(first) + count · Σ_methods consistency(divergence / count)
    """
    passes = max((method.passes for method in spec.methods), default=1)
    first = task.outputs(model, batch)
    loss, count = task.loss(first, batch)
    if passes > 1 and count:
        sums = [first.divergence(task.outputs(model, batch)) for _ in range(passes - 1)]
        divergence = torch.stack(sums).mean() / count
        loss = loss + count * consistency(spec, divergence)
    return loss, count


def consistency(spec: Spec, divergence: Tensor) -> Tensor:
    """What methods with several passes add to the mean loss of a batch.

    Equal methods, such as those of inlays that are trained together, add their term once.

    divergence: between passes, the mean over what counts in the task's loss: a scalar.
    """
    methods: list[Method] = []
    for method in spec.methods:
        if method.passes > 1 and method not in methods:
            methods.append(method)
    return torch.stack([method.consistency(divergence) for method in methods]).sum()
