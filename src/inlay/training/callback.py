"""InlayCallback: lets `transformers.Trainer` train an inlay as `fit` does, and save it alone.

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

A checkpoint of `Trainer` holds whatever tensors of the model `save_pretrained` does not ignore, and
it is loaded again without minding those that are missing. So between a step and its checkpoint:

    on_step_end          the frozen tensors of the base are among those to ignore
    (checkpoint)         model.safetensors = pieces and whatever else is trained; optimizer.pt, …
    on_save              <name>.safetensors is added; nothing is ignored any more
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from typing_extensions import override

from inlay.errors import TrainingError
from inlay.handle import Inlay
from inlay.architectures.paths import CHILD


class InlayCallback(TrainerCallback):
    """Gives each step of `Trainer` the penalty and schedule of an inlay, and saves it alone.

        Trainer(model, args, ..., callbacks=[inlay.InlayCallback(handle)])

    A checkpoint then has the inlay as `<name>.safetensors`, which `inlay.load` reads, and what
    `Trainer` resumes from: the pieces as they are in training, the optimiser, the generators. The
    base, which did not change, is not in it, unless `save_base` asks for it; parameters of the base
    that are trained too always are. `train(resume_from_checkpoint=…)` goes on with the same base
    and the same inlay attached (transformers logs that the base is missing in the checkpoint, and
    would say so if it were loaded as a whole model).

    Methods that run a batch several times (`passes` above 1) are trained with `inlay.fit`.

    handle: an attached inlay. Give one callback for each inlay that is trained. save_base: whether
    every checkpoint holds the whole base too.

    Raises TrainingError for an inlay that is not attached, or whose methods ask for several passes.
    """

    def __init__(self, handle: Inlay, *, save_base: bool = False):
        if not handle.attached:
            raise TrainingError(f"the inlay {handle.name!r} is not attached; attach it first")
        if any(method.passes > 1 for method in handle.spec.methods):
            raise TrainingError(
                f"the inlay {handle.name!r} needs several passes over each batch, which Trainer "
                "does not make; train it with inlay.fit"
            )
        self.handle = handle
        self.save_base = save_base
        self._ignoring: tuple[PreTrainedModel, set[str]] = (handle.model, set())

    @override
    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ignore_nothing()
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

    @override
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ignore_base(kwargs.get("model"))

    @override
    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ignore_base(kwargs.get("model"))

    @override
    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ignore_nothing()
        folder = Path(args.output_dir or ".") / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        # a search over hyperparameters has folders of its own
        if not state.is_world_process_zero or not folder.is_dir():
            return
        tokenizer = kwargs.get("processing_class")
        fitting = tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
        self.handle.save(folder / f"{self.handle.name}.safetensors", tokenizer=fitting)

    @override
    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._ignore_nothing()

    def _ignore_base(self, model: Any) -> None:
        """Let `save_pretrained` leave out what is frozen in the base; model: the trainer's."""
        if self.save_base:
            return
        if not isinstance(model, PreTrainedModel):  # compiled: what is saved is inside
            model = self.handle.model
        frozen = {
            name
            for name, parameter in model.named_parameters(remove_duplicate=False)
            if not parameter.requires_grad and CHILD not in name.split(".")
        }
        names = set(model._keys_to_ignore_on_save or ())
        self._ignoring = (model, self._ignoring[1] | (frozen - names))
        model._keys_to_ignore_on_save = names | frozen

    def _ignore_nothing(self) -> None:
        """Let `save_pretrained` write everything again."""
        model, names = self._ignoring
        if names:
            model._keys_to_ignore_on_save = set(model._keys_to_ignore_on_save or ()) - names
        self._ignoring = (self.handle.model, set())
