"""Reminder: notices a training loop that leaves out what a method needs at each step.

`fit` and `InlayCallback` add the penalty of an inlay to the loss and call `after_step`. Any other
loop can forget either, and would then silently train something else.

    optimizer.step()          noted, by a hook on all optimisers of torch, if it has our parameters
    handle.penalty()          noted
    handle.after_step(…)      noted
    model(**batch)            after a step: were both called? Then the notes are cleared

The versions that torch counts of each parameter cannot tell that a step was made: fused optimisers
do not count them up, and loading a state does. A loop that changes parameters without an optimiser
of torch is not noticed.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.hooks import RemovableHandle

from inlay.core.piece_set import PieceSet
from inlay.errors import TrainingError

PATIENCE = 2
"""How many steps without a call are an error: some loops begin with one step to warm up."""


class Reminder:
    """Watches the steps of one inlay. Raises TrainingError where they are incomplete."""

    def __init__(self, name: str, pieces: PieceSet):
        self.name = name
        self.pieces = pieces
        self.has_penalty = any(method.has_penalty for method in pieces.spec.methods)
        self.has_schedule = any(method.has_schedule for method in pieces.spec.methods)
        self._hook: RemovableHandle | None = None
        self._stepped = self._penalty_called = self._step_called = False
        self._without_penalty = self._without_step = 0

    def __getstate__(self) -> dict[str, Any]:  # a copy watches its own parameters
        return {**self.__dict__, "_hook": None}

    def note_penalty(self) -> None:
        """Note that the loop called `penalty`."""
        self._penalty_called = True

    def note_step(self) -> None:
        """Note that the loop called `after_step`."""
        self._step_called = True

    def training_pass(self) -> None:
        """Check the calls since the last step, at the beginning of a pass with gradients."""
        if not (self.has_penalty or self.has_schedule) or torch.compiler.is_compiling():
            return
        if self._hook is None:
            self._hook = _watch(self)
        if not (self._stepped or self._step_called):
            return
        self._without_penalty = 0 if self._penalty_called else self._without_penalty + 1
        self._without_step = 0 if self._step_called else self._without_step + 1
        self._stepped = self._penalty_called = self._step_called = False
        if self.has_penalty and self._without_penalty >= PATIENCE:
            raise TrainingError(
                f"the inlay {self.name!r} has a penalty, and this loop leaves it out; add "
                "handle.penalty() to the mean loss of each step, or train with inlay.fit, or give "
                "transformers.Trainer an inlay.InlayCallback"
            )
        if self.has_schedule and self._without_step >= PATIENCE:
            raise TrainingError(
                f"the inlay {self.name!r} changes on a schedule, and this loop leaves it out; call "
                "handle.after_step(progress) after each step of the optimiser, or train with "
                "inlay.fit, or give transformers.Trainer an inlay.InlayCallback"
            )

    def optimizer_stepped(self, optimizer: Optimizer) -> None:
        """Note the step of an optimiser, if it changed parameters of this inlay."""
        ours = {id(parameter) for parameter in self.pieces.trained()}
        groups = optimizer.param_groups
        self._stepped |= any(id(p) in ours for group in groups for p in group["params"])


def _watch(reminder: Reminder) -> RemovableHandle:
    """Tell a reminder of the steps of all optimisers, for as long as it exists."""
    reference = weakref.ref(reminder)

    def tell(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        alive = reference()
        if alive is not None:
            alive.optimizer_stepped(optimizer)

    handle = register_optimizer_step_post_hook(tell)
    weakref.finalize(reminder, handle.remove)
    return handle
