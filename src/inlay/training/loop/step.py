"""One step of the optimiser: gradients summed over batches, divided, clipped and applied.

gradient = (Σ_processes Σ_batches ∇ summed loss) / count + ∇ penalty
"""

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

from inlay.errors import TrainingError
from inlay.tasks import Row, Task
from inlay.training.loop.memory import cures, gigabytes, is_out_of_memory, peak_memory
from inlay.training.loop.moving import on_device
from inlay.training.loop.objective import batch_loss
from inlay.training.loop.options import Options
from inlay.training.loop.trainable import Trainable

FUSED = {"cpu", "cuda", "mps", "xpu"}
"""Devices for which torch has AdamW as one kernel."""

MAX_ROWS_NAMED = 8
"""How many rows a message names."""


@dataclass(frozen=True)
class StepResult:
    """What one step computed.

    loss: the mean over what counts, plus the penalty.
    penalty: of the inlay; None where it has none.
    gradient_norm: before clipping.
    """

    loss: float
    penalty: float | None
    gradient_norm: float


class Stepper:
    """The optimiser, and the gradients that it is given.

    Losses are sums, so gradients add up over batches and processes; one division by the total
    count makes them those of one large batch. The penalty is no sum over rows: it is added once
    per step, by every process alike, after the gradients of all processes are summed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        trainable: Trainable,
        task: Task,
        options: Options,
        accelerator: Accelerator,
    ):
        self.model = model
        self.trainable = trainable
        self.task = task
        self.clip = options.clip
        self.accelerator = accelerator
        self.device = model.device
        groups = trainable.parameter_groups(options.lr)
        self.learning_rates = [group.learning_rate for group in groups]
        self.weight_decays = [
            options.weight_decay if group.weight_decay is None else group.weight_decay
            for group in groups
        ]
        self.parameters = [p for group in groups for p in group.parameters]
        if not self.parameters:
            raise TrainingError(
                f"nothing in the inlay {trainable.name!r} learns: all of its parameters are "
                "frozen; attach it anew, or set requires_grad on what should learn"
            )
        self.optimizer = torch.optim.AdamW(
            [
                {"params": group.parameters, "weight_decay": decay}
                for group, decay in zip(groups, self.weight_decays, strict=True)
            ],
            betas=options.betas,
            fused=all(p.device.type in FUSED for p in self.parameters),
        )

    def __call__(
        self, step: int, batches: Sequence[Sequence[Row]], lr_factor: float, progress: float
    ) -> StepResult:
        """Make one step.

        Args:
            step: its number, for messages.
            batches: this process's rows.
            lr_factor: what every group's learning rate is multiplied by.
            progress: how much of the training is done after this step, from 0 to 1.

        Raises TrainingError where the loss or the gradient is not finite, or nothing counts; then
        the pieces are as they were.
        """
        try:
            losses, count = self.backward(batches)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.drop_gradients()
            raise TrainingError(self._out_of_memory(step, batches)) from None
        if self.accelerator.num_processes > 1:
            total, count = self._reduce(losses, count)
        else:
            total = torch.stack(losses).sum()
        penalty = self._penalty(count)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients).to(total.device)
        facts = [total, norm] if penalty is None else [total, norm, penalty.to(total)]
        loss, length, *rest = torch.stack(facts).tolist()  # the one time the CPU waits
        if not (count and all(map(math.isfinite, (loss, length, *rest)))):
            self.drop_gradients()
            lr = lr_factor * max(self.learning_rates)
            raise TrainingError(_failure(step, batches, losses, [loss, *rest], count, lr))
        scale = 1 / count
        length *= scale
        if self.clip is not None and length > self.clip:
            scale *= self.clip / length
        torch._foreach_mul_(gradients, scale)
        for group, rate in zip(self.optimizer.param_groups, self.learning_rates, strict=True):
            group["lr"] = lr_factor * rate
        self.optimizer.step()
        self.trainable.after_step(progress)
        self.drop_gradients()
        return StepResult(loss / count + sum(rest), rest[0] if rest else None, length)

    def drop_gradients(self) -> None:
        """Free the gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, batches: Sequence[Sequence[Row]]) -> tuple[list[Tensor], int]:
        """Add up the gradients of this process; returns the summed losses and the count."""
        losses, total = [], 0
        for rows in batches:
            collated = self.task.collate(rows)
            with on_device(self.model, collated) as batch, self.accelerator.autocast():
                loss, count = batch_loss(self.model, self.task, self.trainable.spec, batch)
            if not loss.requires_grad:
                raise TrainingError(
                    "no piece of the inlay acts on the loss; set enabled = True on it, or let "
                    "inlay.rows name it for these rows"
                )
            loss.backward()
            losses.append(loss.detach().float())
            total += count
        return losses, total

    def _out_of_memory(self, step: int, batches: Sequence[Sequence[Row]]) -> str:
        """What did not fit, and what would."""
        largest = max(batches, key=lambda batch: len(batch) * max(map(len, batch)))
        rows, longest = len(largest), max(map(len, largest))
        peak = gigabytes(peak_memory(self.device))
        ways = "; or ".join(cures(rows, rows * longest))
        return (
            f"step {step}: no memory is left on {self.device} for a batch of {rows} rows of up to "
            f"{longest} tokens ({peak} were taken); the pieces are as before this step: try {ways}"
        )

    def _penalty(self, count: int) -> Tensor | None:
        """Add the gradient of the penalty, such that the division by the count makes it exact."""
        penalty = self.trainable.penalty()
        if penalty is None:
            return None
        if penalty.requires_grad:
            (count * penalty).backward()
        return penalty.detach()

    def _reduce(self, losses: list[Tensor], count: int) -> tuple[Tensor, int]:
        """Sum gradients, losses and counts over all processes, in one message."""
        totals = torch.tensor([sum(map(float, losses)), float(count)], device=self.device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        flat = reduce(torch.cat([*[g.flatten() for g in gradients], totals]), reduction="sum")
        *parts, totals = flat.split([*[p.numel() for p in self.parameters], 2])
        for p, part in zip(self.parameters, parts, strict=True):
            p.grad = part.view_as(p)
        return totals[0], int(totals[1])


def _failure(
    step: int,
    batches: Sequence[Sequence[Row]],
    losses: list[Tensor],
    terms: list[float],
    count: int,
    lr: float,
) -> str:
    """Why a step was not made, and in which rows the cause may lie.

    terms: the summed loss, and the penalty where there is one.
    """
    if len(terms) > 1 and not math.isfinite(terms[1]):
        return (
            f"step {step}: the penalty of the inlay is not finite (learning rate {lr:.3g}); the "
            "pieces are as before this step: try a lower lr"
        )
    causes = [rows for rows, loss in zip(batches, losses, strict=True) if not loss.isfinite()]
    places = [row.where for rows in causes or batches for row in rows]
    rows = ", ".join(places[:MAX_ROWS_NAMED])
    if len(places) > MAX_ROWS_NAMED:
        rows += f" and {len(places) - MAX_ROWS_NAMED} more"
    if not count:
        return f"step {step}: no token or label counts in the loss of these rows: {rows}"
    subject = "the gradient" if math.isfinite(terms[0]) else "the loss"
    return (
        f"step {step}: {subject} is not finite (learning rate {lr:.3g}, rows {rows}); the pieces "
        "are as before this step: try a lower lr, or look at these rows"
    )
