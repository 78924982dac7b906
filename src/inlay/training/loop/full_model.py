"""The base learns along with an inlay: one trainable, whose state is every number of both.

Liu et al., 2021 (GPT Understands, Too) train P-tuning so, and Schick & Schütze, EACL 2021, PET.
With an inlay that sets nothing in it is full fine-tuning, which every method is measured by.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.core.method import ParameterGroup, Spec
from inlay.errors import TrainingError
from inlay.files.atomic import write_folder
from inlay.handle import Inlay
from inlay.runtime.container import CHILD

BASE = "base"
"""The folder, in that of a run, of a base that has learned."""

FINE = (torch.float32, torch.float64)


class FullModel:
    """An inlay and the base that it is set into, as one that learns."""

    def __init__(self, handle: Inlay, base_learning_rate: float):
        self.handle = handle
        self.base_learning_rate = base_learning_rate
        self.name = handle.name
        self.model = handle.model

    @property
    def spec(self) -> Spec:
        """Of the inlay."""
        return self.handle.spec

    def penalty(self) -> Tensor | None:
        """That of the inlay."""
        return self.handle.penalty()

    def after_step(self, progress: float) -> None:
        """Hand the end of a step on to the inlay."""
        self.handle.after_step(progress)

    def parameter_groups(self, learning_rate: float | None = None) -> list[ParameterGroup]:
        """See `Inlay`; the base comes last."""
        base = tuple(base_parameters(self.model).values())
        groups = self.handle.parameter_groups(learning_rate)
        return [*groups, ParameterGroup(base, self.base_learning_rate)]

    def training_state(self) -> dict[str, Tensor]:
        """See `Inlay`; names begin with `inlay/` or `base/`. Tied numbers are there once."""
        own = {f"inlay/{name}": t for name, t in self.handle.training_state().items()}
        base = {f"base/{name}": p.detach() for name, p in base_parameters(self.model).items()}
        return own | base

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """See `Inlay`."""
        own = {k.removeprefix("inlay/"): t for k, t in state.items() if k.startswith("inlay/")}
        self.handle.load_training_state(own)
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


def need_fine(model: PreTrainedModel) -> None:
    """Raise TrainingError for a base whose numbers are too coarse to learn."""
    for name, parameter in base_parameters(model).items():
        if parameter.dtype not in FINE:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise TrainingError(
                f"base_lr: the base's {name} is {kind}, whose rounding is coarser than the steps "
                "of training; load the base with dtype float32"
            )


@contextmanager
def thawed(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the base's own parameters learn; afterwards each is as it was before.

    Raises TrainingError as `need_fine` does.
    """
    need_fine(model)
    before = {p: p.requires_grad for p in base_parameters(model).values()}
    for parameter in before:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, learned in before.items():
            parameter.requires_grad_(learned)


@contextmanager
def restored(model: PreTrainedModel) -> Iterator[None]:
    """Afterwards the base's own numbers are what they were before; a copy of them is kept."""
    before = {p: p.detach().clone() for p in base_parameters(model).values()}
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, numbers in before.items():
                parameter.copy_(numbers)


def save_base(model: PreTrainedModel, tokenizer: Any, folder: Path) -> Path:
    """Write the base without its inlays, and its tokenizer, as a folder that transformers loads.

    The folder replaces its predecessor, and is there whole or not at all. Raises FileError.
    """
    own = {n: t for n, t in model.state_dict().items() if not n.startswith(f"{CHILD}.")}

    def fill(new: Path) -> None:
        model.save_pretrained(new, state_dict=own)
        tokenizer.save_pretrained(new)

    return write_folder(folder, fill)
