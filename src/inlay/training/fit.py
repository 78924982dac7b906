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
from inlay.training.loop.full_model import FullModel, base_trainable
from inlay.training.loop.launch import create_accelerator
from inlay.training.loop.options import make_options
from inlay.training.loop.results import Result
from inlay.training.loop.trainable import Trainable
from inlay.training.loop.trainer import TrainingLoop


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
    start: str | None = None,
    **options: Any,
) -> Result:
    """Train the pieces of an inlay, and the base with `base_lr`; other inlays are not trained.

    Args:
        model: the base, on its device. Under `accelerate launch` or `torchrun` every process has
            its own.
        handle: an inlay attached to it.
        task: a task bound to it.
        data: the training examples.
        dev: examples to evaluate on.
        folder: where the log (`log.jsonl`) and the checkpoint are kept; None keeps neither.
        resume: resume from the folder's checkpoint, if there is one: a run that was killed at any
            instant ends with the same weights as one that was not. False starts anew.
        console: where progress is shown; None for the error stream.
        prepared: what the inlay was attached with, where its methods need preparation; a
            checkpoint of another preparation is refused.
        start: the digest of the file whose pieces the inlay starts from, if any; a checkpoint of
            another start is refused.
        **options: the fields of `Options`. Without `base_lr` the base is frozen. With it a
            checkpoint holds the base too, up to four times over (the best one, the optimiser's two
            moments), and a run resumes with the base as it was at first.

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
    base_lr = make_options(options).base_lr
    with nullcontext() if base_lr is None else base_trainable(model):
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
            start=start,
            **options,
        )


def tune(
    model: PreTrainedModel, task: Task, data: Sequence[Example], *, base_lr: float, **options: Any
) -> Result:
    """Train the whole base without any inlay: full fine-tuning, the baseline of every method.

    Args:
        model: the base.
        task: bound to it. One that reads a trained head is for `fit`, with an inlay of that head.
        data: the training examples.
        base_lr: the highest learning rate.
        **options: what `fit` takes by name.

    Raises TrainingError as `fit` does.
    """
    empty = attach(model, Sum(()), name="tune")
    try:
        return fit(model, empty, task, data, base_lr=base_lr, **options)
    finally:
        empty.detach()


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
    start: str | None = None,
    **options: Any,
) -> Result:
    """`fit` for any `Trainable`; names: of its inlays."""
    checked = make_options(options)
    if not len(data) or (dev is not None and not len(dev)):
        raise TrainingError("there are no examples to train or to evaluate on")
    for examples in (data, dev or data):
        if not isinstance(examples[0], Example):
            raise TrainingError(
                "the rows must be examples, as inlay.data.load(rows) returns them, not "
                f"{examples[0]!r:.60}"
            )
    if dev is None and checked.eval_every is not None:
        raise TrainingError("eval_every needs examples to evaluate on; give dev")
    if dev is None and checked.patience is not None:
        raise TrainingError("patience needs examples to evaluate on; give dev")
    if folder is None and checked.checkpoint_every is not None:
        raise TrainingError("checkpoint_every needs a folder to write to; give folder")
    config = {**checked.model_dump(mode="json"), "method": repr(trainable.spec)}
    accelerator = create_accelerator(checked.trackers, folder, config)
    if console is None:
        console = Console(stderr=True)
    if not accelerator.is_main_process:
        console = Console(quiet=True)
    with rng.preserved(), training_modes(model, names, checked.dropout):
        loop = TrainingLoop(
            model,
            trainable,
            task,
            data,
            dev,
            options=checked,
            folder=None if folder is None else Path(folder),
            accelerator=accelerator,
            console=console,
            prepared=prepared,
            start=start,
        )
        return loop.run(resume)


@contextmanager
def training_modes(model: PreTrainedModel, names: Sequence[str], dropout: bool) -> Iterator[None]:
    """Set the modes for training inside the `with` block; afterwards all are as before.

    Args:
        model: the base.
        names: the inlays that are trained; all others are in evaluation mode and frozen.
        dropout: whether the base is in training mode.
    """
    modes = {module: module.training for module in model.modules()}
    inlays = attached(model)
    others = [handle for name, handle in inlays.items() if name not in names]
    frozen = [p for handle in others for p in handle.parameters() if p.requires_grad]
    model.train(dropout)
    for handle in others:
        handle.eval()
    for name in names:
        inlays[name].train()
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter in frozen:
            parameter.requires_grad_(True)
