"""JointInlays: several inlays that are trained together, as one thing to train."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inlay.core.method import ParameterGroup, Spec, sum_of
from inlay.handle import Inlay


class JointInlays:
    """Several inlays as one `Trainable`."""

    def __init__(self, handles: Sequence[Inlay]):
        self.handles = {handle.name: handle for handle in handles}
        self.name = "+".join(self.handles)
        self.model = handles[0].model

    @property
    def spec(self) -> Spec:
        """The methods of all inlays, one after the other."""
        return sum_of([m for handle in self.handles.values() for m in handle.spec.methods])

    def parameter_groups(self, learning_rate: float | None = None) -> list[ParameterGroup]:
        """The groups of all inlays; learning_rate: one for all methods instead of their own."""
        handles = self.handles.values()
        return [group for handle in handles for group in handle.parameter_groups(learning_rate)]

    def penalty(self) -> Tensor | None:
        """The sum of all inlays' penalties; None where none has one."""
        penalties = [handle.penalty() for handle in self.handles.values()]
        terms = [penalty for penalty in penalties if penalty is not None]
        return torch.stack(terms).sum() if terms else None

    def after_step(self, progress: float) -> None:
        """Let the methods of every inlay act after a step."""
        for handle in self.handles.values():
            handle.after_step(progress)

    @property
    def settled(self) -> bool:
        """Whether the pieces of all inlays are what files should hold."""
        return all(handle.settled for handle in self.handles.values())

    def training_state(self) -> dict[str, Tensor]:
        """The tensors of all inlays, named `<inlay>/…`."""
        return {
            f"{name}/{key}": tensor
            for name, handle in self.handles.items()
            for key, tensor in handle.training_state().items()
        }

    def load_training_state(self, state: dict[str, Tensor]) -> None:
        """Restore what `training_state` returned."""
        for name, handle in self.handles.items():
            prefix = f"{name}/"
            handle.load_training_state(
                {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}
            )
