"""One step of the optimiser: the gradient of a sum over batches, made a mean, clipped, applied."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from torch import Tensor
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel

from inlay.core.method import ParameterGroup
from inlay.errors import TrainingError
from inlay.tasks import Row, Task
from inlay.training.loop.options import Options
from inlay.training.loop.trainable import Learner

FUSED = {"cpu", "cuda", "mps", "xpu"}
"""Devices for which torch has AdamW as one kernel."""

NAMED = 8
"""How many rows a message names."""


@dataclass(frozen=True)
class Taken:
    """What a step found. loss: the mean over what counts. norm: of the gradient, not clipped."""

    loss: float
    norm: float


class Stepper:
    """The optimiser, and how gradients come about. Only what learns is given to it.

    Losses are sums, so gradients add up over batches and over processes; one division by all that
    counts makes them those of one large batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        handle: Learner,
        task: Task,
        options: Options,
        accelerator: Accelerator,
    ):
        self.model = model
        self.task = task
        self.clip = options.clip
        self.accelerator = accelerator
        self.device = model.device
        groups = handle.parameter_groups(options.lr)
        self.rates = [group.learning_rate for group in groups]
        self.parameters = [p for group in groups for p in group.parameters]
        if not self.parameters:
            raise TrainingError(f"nothing in the inlay {handle.name!r} learns")
        self.optimizer = torch.optim.AdamW(
            [{"params": group.parameters, **_decay(group, options)} for group in groups],
            betas=options.betas,
            fused=all(p.device.type in FUSED for p in self.parameters),
        )

    def __call__(self, number: int, batches: Sequence[Sequence[Row]], share: float) -> Taken:
        """Step `number` over this process's batches, at this share of each method's rate.

        Raises TrainingError where the loss or the gradient is not finite, or nothing counts; then
        the pieces are as they were.
        """
        losses, count = self._backward(batches)
        if self.accelerator.num_processes > 1:
            total, count = self._meet(losses, count)
        else:
            total = torch.stack(losses).sum()
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients).to(total.device)
        loss, length = torch.stack([total, norm]).tolist()  # the one time the CPU waits
        if not (count and math.isfinite(loss) and math.isfinite(length)):
            self.forget()
            lr = share * max(self.rates)
            raise TrainingError(_hopeless(number, batches, losses, loss, count, lr))
        scale = 1 / count
        length *= scale
        if self.clip is not None and length > self.clip:
            scale *= self.clip / length
        torch._foreach_mul_(gradients, scale)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = share * rate
        self.optimizer.step()
        self.forget()
        return Taken(loss / count, length)

    def forget(self) -> None:
        """Drop the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def _backward(self, batches: Sequence[Sequence[Row]]) -> tuple[list[Tensor], int]:
        losses, count = [], 0
        for rows in batches:
            batch = self.task.collate(rows).to(self.device, non_blocking=True)
            with self.accelerator.autocast():
                outputs = self.task.outputs(self.model, batch)
                loss, counted = self.task.loss(outputs, batch)
            del outputs  # what backward does not need is freed before it
            if not loss.requires_grad:
                raise TrainingError(
                    "no piece of the inlay acts on the loss; is it disabled, or are other rows "
                    "asked for?"
                )
            loss.backward()
            losses.append(loss.detach().float())
            count += counted
        return losses, count

    def _meet(self, losses: list[Tensor], count: int) -> tuple[Tensor, int]:
        """Add up gradients, losses and counts of all processes. All pieces are one message."""
        own = torch.tensor([sum(map(float, losses)), float(count)], device=self.device)
        mine = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = reduce(torch.cat([*[grad.flatten() for grad in mine], own]), reduction="sum")
        *parts, both = flat.split([*[p.numel() for p in self.parameters], 2])
        for p, part in zip(self.parameters, parts, strict=True):
            p.grad = part.view_as(p)
        return both[0], int(both[1])


def _decay(group: ParameterGroup, options: Options) -> dict[str, float]:
    decay = group.weight_decay
    return {"weight_decay": options.weight_decay if decay is None else decay}


def _hopeless(
    number: int,
    batches: Sequence[Sequence[Row]],
    losses: list[Tensor],
    loss: float,
    count: int,
    lr: float,
) -> str:
    guilty = [rows for rows, one in zip(batches, losses, strict=True) if not one.isfinite()]
    named = [row.where for rows in guilty or batches for row in rows]
    rows = ", ".join(named[:NAMED])
    if len(named) > NAMED:
        rows += f" and {len(named) - NAMED} more"
    if not count:
        return f"step {number}: no token or label counts in the loss of these rows: {rows}"
    what = "the loss" if not math.isfinite(loss) else "the gradient"
    return (
        f"step {number}: {what} is not finite (learning rate {lr:.3g}, rows {rows}); the pieces "
        "are as before this step: try a lower lr, or look at these rows"
    )
