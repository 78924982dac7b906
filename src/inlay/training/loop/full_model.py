"""FullModel: an inlay and its base, trained together.

Liu et al., 2021 (GPT Understands, Too) train P-tuning so, and Schick & Schütze, EACL 2021, PET.
With an inlay of no methods it is full fine-tuning, the baseline of every method.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.architectures.paths import CHILD
from inlay.core.method import ParameterGroup, Spec
from inlay.errors import TrainingError
from inlay.files.atomic import write_folder
from inlay.handle import Inlay

BASE = "base"
"""The folder, in that of a run, of a trained base."""

FULL_PRECISION = (torch.float32, torch.float64)


class FullModel:
    """An inlay and the base that it is attached to, as one `Trainable`.

    handle: the inlay. base_lr: the highest learning rate of the base's parameters.
    """

    def __init__(self, handle: Inlay, base_lr: float):
        self.handle = handle
        self.base_lr = base_lr
        self.name = handle.name
        self.model = handle.model

    @property
    def spec(self) -> Spec:
        """Of the inlay."""
        return self.handle.spec

    def parameter_groups(self, learning_rate: float | None = None) -> list[ParameterGroup]:
        """The groups of the inlay, and last that of the base."""
        base = tuple(base_parameters(self.model).values())
        groups = self.handle.parameter_groups(learning_rate)
        return [*groups, ParameterGroup(base, self.base_lr)]

    def penalty(self) -> Tensor | None:
        """That of the inlay."""
        return self.handle.penalty()

    def after_step(self, progress: float) -> None:
        """Let the methods of the inlay act after a step."""
        self.handle.after_step(progress)

    @property
    def settled(self) -> bool:
        """Whether the inlay's pieces are what a file should hold."""
        return self.handle.settled

    def training_state(self) -> dict[str, Tensor]:
        """The tensors of both, named `inlay/…` and `base/…`. Tied weights are there once."""
        inlay = {f"inlay/{name}": t for name, t in self.handle.training_state().items()}
        base = {f"base/{name}": p.detach() for name, p in base_parameters(self.model).items()}
        return inlay | base

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `training_state` returned."""
        inlay = {k.removeprefix("inlay/"): t for k, t in state.items() if k.startswith("inlay/")}
        self.handle.load_training_state(inlay)
        with torch.no_grad():
            for name, parameter in base_parameters(self.model).items():
                parameter.copy_(state[f"base/{name}"])


def base_parameters(model: PreTrainedModel) -> dict[str, nn.Parameter]:
    """The base's own parameters, each once, without those of inlays."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if not name.startswith(f"{CHILD}.")
    }


def require_full_precision(model: PreTrainedModel) -> None:
    """Raise TrainingError for a base in half precision, which cannot be trained."""
    for name, parameter in base_parameters(model).items():
        if parameter.dtype not in FULL_PRECISION:
            dtype = str(parameter.dtype).removeprefix("torch.")
            raise TrainingError(
                f"base_lr: the base's {name} is {dtype}, whose rounding is coarser than the steps "
                "of training; load the base with dtype float32"
            )


@contextmanager
def base_trainable(model: PreTrainedModel) -> Iterator[None]:
    """Let the base's own parameters require gradients inside the `with` block.

    Raises TrainingError as `require_full_precision` does.
    """
    require_full_precision(model)
    before = {p: p.requires_grad for p in base_parameters(model).values()}
    for parameter in before:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, requires_grad in before.items():
            parameter.requires_grad_(requires_grad)


@contextmanager
def base_restored(model: PreTrainedModel) -> Iterator[None]:
    """Put the base's own parameters back at the end of the `with` block, from a copy in memory."""
    before = {p: p.detach().clone() for p in base_parameters(model).values()}
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in before.items():
                parameter.copy_(values)


def save_base(model: PreTrainedModel, tokenizer: Any, folder: Path) -> Path:
    """Write the base without its inlays, and its tokenizer, as a folder that transformers loads.

    The folder replaces an older one, whole or not at all. Raises FileError.
    """
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(f"{CHILD}.")}

    def fill(folder: Path) -> None:
        model.save_pretrained(folder, state_dict=state)
        tokenizer.save_pretrained(folder)

    return write_folder(folder, fill)
