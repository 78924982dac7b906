"""Noticing a training loop that leaves out what a method needs at each step.

`fit` and `InlayCallback` add the penalty of an inlay to the loss and call `after_step`. A loop of
one's own can forget either, and would then train something else, silently. A step of the optimiser
changes the pieces' parameters in place, which torch counts (but for fused optimisers) and which
changes their sum; so a training pass can tell at its beginning whether a step was made since the
last one, and whether `after_step` was called.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inlay.core.piece_set import PieceSet
from inlay.errors import TrainingError

PATIENCE = 2
"""How many steps without a call are an error: some loops begin with one step to warm up."""


class Reminder:
    """Watches the steps of one inlay. Raises TrainingError where they are left out."""

    def __init__(self, name: str, pieces: PieceSet):
        self.name = name
        self.pieces = pieces
        self.has_penalty = any(method.has_penalty for method in pieces.spec.methods)
        self.has_schedule = any(method.has_schedule for method in pieces.spec.methods)
        self._state: tuple[int, float] | None = None
        self._penalty_called = self._step_called = True
        self._without_penalty = self._without_step = 0

    def note_penalty(self) -> None:
        """Note that the loop called `penalty`."""
        self._penalty_called = True

    def note_step(self) -> None:
        """Note that the loop called `after_step`."""
        self._step_called = True
        self._state = self._parameters()

    def training_pass(self) -> None:
        """Check the calls since the last step, at the beginning of a pass with gradients."""
        if not (self.has_penalty or self.has_schedule):
            return
        state = self._parameters()
        if self._state is None:
            self._state = state
            self._penalty_called = self._step_called = False
            return
        stepped = state != self._state or self._step_called
        if not stepped:
            return
        self._without_penalty = 0 if self._penalty_called else self._without_penalty + 1
        self._without_step = 0 if self._step_called else self._without_step + 1
        self._state, self._penalty_called, self._step_called = state, False, False
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

    def _parameters(self) -> tuple[int, float]:
        """What a step changes: the versions of the parameters, and their sum."""
        parameters = [parameter.detach() for parameter in self.pieces.trained()]
        sums = [p.sum(dtype=_widest(p)).cpu().double() for p in parameters]
        return sum(p._version for p in parameters), float(torch.stack(sums).sum())


def _widest(parameter: Tensor) -> torch.dtype:
    return torch.float32 if parameter.device.type == "mps" else torch.float64
