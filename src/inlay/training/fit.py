"""fit and tune: train the pieces of one inlay on one task, the base with it, or the base alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedModel

from inlay.core.method import Sum
from inlay.data.dataset import Example
from inlay.errors import TrainingError
from inlay.handle import Inlay, attach, attached
from inlay.runtime.install import Prepared
from inlay.tasks import Task
from inlay.training.loop import rng
from inlay.training.loop.full_model import FullModel, thawed
from inlay.training.loop.launch import accelerator_for
from inlay.training.loop.options import options
from inlay.training.loop.results import Result
from inlay.training.loop.trainable import Trainable
from inlay.training.loop.trainer import Loop


def fit(
    model: PreTrainedModel,
    handle: Inlay,
    task: Task,
    data: Sequence[Example],
    *,
    dev: Sequence[Example] | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    console: Console | None = None,
    prepared: Prepared | None = None,
    **given: Any,
) -> Result:
    """Train the pieces of an inlay, and the base with `base_lr`; other inlays do not learn.

    Args:
        model: the base, on its device. Under `accelerate launch` or `torchrun` every process has
            its own.
        handle: an inlay attached to it.
        task: a task bound to it.
        data: the training examples.
        dev: examples to evaluate on.
        folder: where the log (`log.jsonl`) and the checkpoint are kept; None keeps neither.
        resume: go on from the folder's checkpoint, if there is one: a run that was killed at any
            instant ends with the same numbers as one that was not. False starts anew.
        console: where progress is shown; None for the error stream.
        prepared: what the inlay was attached with, if its methods need preparation: a checkpoint
            of another preparation is refused.
        **given: the fields of `Options`. Without `base_lr` the base is not touched. With it a
            checkpoint holds the base too, up to four times over (the best one, the optimiser's two
            averages), and one goes on from it with the base as it was at first.

    Ctrl-C ends the step, writes a checkpoint where there is a folder, and raises
    KeyboardInterrupt. The mode of the model and the random generators are afterwards as they were
    before. On one machine the same seed gives the same bits; on a GPU this takes
    `torch.use_deterministic_algorithms(True)`.

    Raises TrainingError: an unknown or impossible option, a checkpoint of another run, a loss that
    is not finite (then the pieces are as before that step), or `base_lr` for a base in half
    precision.
    """
    if not handle.attached or handle.model is not model:
        raise TrainingError(f"the inlay {handle.name!r} is not attached to this model")
    if handle.virtual_tokens != task.virtual_tokens:
        raise TrainingError(
            f"the task's template has {task.virtual_tokens} virtual tokens ({{p}}) and the inlay "
            f"{handle.virtual_tokens}; they must be as many"
        )
    base_lr = options(given).base_lr
    with nullcontext() if base_lr is None else thawed(model):
        return train(
            model,
            handle if base_lr is None else FullModel(handle, base_lr),
            [handle.name],
            task,
            data,
            dev=dev,
            folder=folder,
            resume=resume,
            console=console,
            prepared=prepared,
            **given,
        )


def tune(
    model: PreTrainedModel, task: Task, data: Sequence[Example], *, base_lr: float, **given: Any
) -> Result:
    """Train the whole base and set nothing in: full fine-tuning, which methods are measured by.

    given: what `fit` takes by name. A task that reads a trained head is for `fit`, with that head.

    Raises TrainingError as `fit` does.
    """
    nothing = attach(model, Sum(()), name="tune")
    try:
        return fit(model, nothing, task, data, base_lr=base_lr, **given)
    finally:
        nothing.detach()


def train(
    model: PreTrainedModel,
    trainable: Trainable,
    names: Sequence[str],
    task: Task,
    data: Sequence[Example],
    *,
    dev: Sequence[Example] | None = None,
    folder: str | Path | None = None,
    resume: bool = True,
    console: Console | None = None,
    prepared: Prepared | None = None,
    **given: Any,
) -> Result:
    """`fit`, for one inlay or several that learn as one; names: of those inlays."""
    chosen = options(given)
    if not len(data) or (dev is not None and not len(dev)):
        raise TrainingError("there are no examples to train or to evaluate on")
    for rows in (data, dev or data):
        if not isinstance(rows[0], Example):
            raise TrainingError(
                f"the rows are examples, as inlay.data.load(rows) makes them, not {rows[0]!r:.60}"
            )
    for name in ("eval_every", "patience"):
        if dev is None and getattr(chosen, name) is not None:
            raise TrainingError(f"{name} needs examples to evaluate on; give dev")
    if folder is None and chosen.checkpoint_every is not None:
        raise TrainingError("checkpoint_every needs a folder to write to; give folder")
    accelerator = accelerator_for(
        chosen.trackers, folder, {**chosen.model_dump(mode="json"), "method": repr(trainable.spec)}
    )
    if console is None:
        console = Console(stderr=True)
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    place = None if folder is None else Path(folder)
    with rng.kept(), learning(model, names, chosen.dropout):
        loop = Loop(
            model, trainable, task, data, dev, chosen, place, accelerator, console, prepared
        )
        return loop(resume)


@contextmanager
def learning(model: PreTrainedModel, names: Sequence[str], dropout: bool) -> Iterator[None]:
    """Inside, these inlays train and all others hold still; afterwards all modes are as before."""
    modes = {part: part.training for part in model.modules()}
    present = attached(model)
    others = [one for name, one in present.items() if name not in names]
    held = [p for one in others for p in one.parameters() if p.requires_grad]
    model.train(dropout)
    for one in others:
        one.eval()
    for name in names:
        present[name].train()
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        for parameter in held:
            parameter.requires_grad_(True)
