"""InlayCallback: lets `transformers.Trainer` train methods with a penalty or a schedule.

`Trainer` knows the task's loss alone. At the events of one of its steps the callback does the rest:

    on_step_begin        handle.penalty().backward()     gradients are empty before
    (batches)            loss.backward(), accumulated    `Trainer` makes it a mean per step
    (clipping)           of the sum of both
    optimizer.step()
    on_optimizer_step    handle.after_step(progress)     gradients are still there
    model.zero_grad()

The penalty is added before the batches, not in `on_pre_optimizer_step`: there the gradients are
clipped already. Its weight is 1 per step, whatever the number of accumulated batches. Under DDP
every process adds the same gradient before the average over processes, which keeps it.
"""

from __future__ import annotations

from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from typing_extensions import override

from inlay.errors import TrainingError
from inlay.handle import Inlay


class InlayCallback(TrainerCallback):
    """Adds the penalty of an inlay to each step of `Trainer` and calls its `after_step`.

        Trainer(model, args, ..., callbacks=[inlay.InlayCallback(handle)])

    Methods without a penalty and a schedule, such as `LoRA`, need no callback. Methods that run a
    batch several times (`passes` above 1) are trained with `inlay.fit`.

    handle: an attached inlay. Give one callback for each inlay that is trained.

    Raises TrainingError for an inlay that is not attached, or whose methods ask for several passes.
    """

    def __init__(self, handle: Inlay):
        if not handle.attached:
            raise TrainingError(f"the inlay {handle.name!r} is not attached; attach it first")
        if any(method.passes > 1 for method in handle.spec.methods):
            raise TrainingError(
                f"the inlay {handle.name!r} needs several passes over each batch, which Trainer "
                "does not make; train it with inlay.fit"
            )
        self.handle = handle

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        penalty = self.handle.penalty()
        if penalty is None or not penalty.requires_grad:
            return
        optimizer = kwargs.get("optimizer")
        if isinstance(optimizer, AcceleratedOptimizer) and optimizer.scaler is not None:
            penalty = optimizer.scaler.scale(penalty)  # fp16: as the losses of the batches are
        penalty.backward()

    @override
    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.handle.after_step(min(1.0, (state.global_step + 1) / state.max_steps))
