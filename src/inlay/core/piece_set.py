"""PieceSet: all pieces of one inlay, with their spec and the modules they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from inlay.core.method import Method, ParameterGroup, Placed, Spec
from inlay.core.piece import ExtraKV, OncePerPass, Piece, VirtualTokens, resize_parts


@dataclass(frozen=True)
class MethodParts:
    """What one method of a spec has in an inlay: its pieces by site, its shared modules by key."""

    method: Method
    pieces: Mapping[str, Piece]
    shared: Mapping[str, nn.Module]


class PieceSet(nn.Module):
    """The pieces of one inlay. Its `state_dict` is what a training checkpoint holds.

    spec: what was attached. placed: every piece with its site and method. shared: the modules
    that pieces of method number i share, by (i, key).
    """

    def __init__(
        self, spec: Spec, placed: Sequence[Placed], shared: Mapping[tuple[int, str], nn.Module]
    ) -> None:
        super().__init__()
        self.spec = spec
        self.placed = tuple(placed)
        self.pieces = nn.ModuleDict({_without_dots(p.name): p.piece for p in placed})
        self.shared = nn.ModuleDict({_without_dots(f"{i}/{k}"): m for (i, k), m in shared.items()})
        self._frozen = {name for name, p in self.named_parameters() if not p.requires_grad}

    def trained(self) -> Iterator[nn.Parameter]:
        """Every parameter that is trained, each once; those built frozen are left out."""
        return (p for name, p in self.named_parameters() if name not in self._frozen)

    def parts(self) -> list[MethodParts]:
        """The parts of each method of the spec, in its order."""
        return [
            MethodParts(method, self._pieces_of(index), self._shared_of(index))
            for index, method in enumerate(self.spec.methods)
        ]

    def parameter_groups(self, learning_rate: float | None) -> list[ParameterGroup]:
        """What is trained, in groups; learning_rate: one instead of each method's own."""
        groups: list[ParameterGroup] = []
        for part in self.parts():
            rate = part.method.learning_rate() if learning_rate is None else learning_rate
            groups += part.method.parameter_groups(part.pieces, part.shared, rate)
        return [group for group in groups if group.parameters]

    def penalty(self) -> Tensor | None:
        """The sum of all methods' penalties; None where no method has one."""
        terms = [part.method.penalty(part.pieces, part.shared) for part in self.parts()]
        present = [term for term in terms if term is not None]
        return torch.stack(present).sum() if present else None

    def after_step(self, progress: float) -> None:
        """Tell every method that a step of the optimiser is over; progress from 0 to 1."""
        with torch.no_grad():
            for part in self.parts():
                part.method.after_step(part.pieces, part.shared, progress)

    def settled(self) -> bool:
        """Whether every method's pieces are what a file should hold."""
        return all(part.method.settled(part.pieces, part.shared) for part in self.parts())

    def once_per_pass(self) -> list[OncePerPass]:
        """The shared modules that a stack runs once per pass."""
        return [module for module in self.shared.values() if isinstance(module, OncePerPass)]

    def shift(self, stack: str) -> int:
        """By how many positions the extra keys of one stack move its text back."""
        by_method = {
            placed.index: placed.piece.shift
            for placed in self.placed
            if isinstance(placed.piece, ExtraKV) and placed.site.stack == stack
        }
        return sum(by_method.values())

    def virtual_tokens(self) -> int:
        """How many virtual tokens the inlay has."""
        pieces = (placed.piece for placed in self.placed)
        return sum(piece.length for piece in pieces if isinstance(piece, VirtualTokens))

    def resize(self, state: Mapping[str, Tensor]) -> None:
        """Get ready for the tensors of a checkpoint, whose sizes may differ."""
        for name, modules in (("pieces", self.pieces), ("shared", self.shared)):
            for key, module in modules.items():
                prefix = f"{name}.{key}."
                under = {
                    n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)
                }
                _resize(module, under)

    def copy_from(self, other: PieceSet, indices: Mapping[int, int]) -> None:
        """Copy the tensors of another set; indices: number of a method here -> its number there."""
        for index, source in indices.items():
            for here, there in (
                (self._pieces_of(index), other._pieces_of(source)),
                (self._shared_of(index), other._shared_of(source)),
            ):
                for key, module in here.items():
                    if key in there:
                        _resize(module, there[key].state_dict())
                        module.load_state_dict(there[key].state_dict())

    def _pieces_of(self, index: int) -> dict[str, Piece]:
        return {p.site.name: p.piece for p in self.placed if p.index == index}

    def _shared_of(self, index: int) -> dict[str, nn.Module]:
        prefix = f"{index}/"
        return {
            key.removeprefix(prefix).replace(":", "."): module
            for key, module in self.shared.items()
            if key.startswith(prefix)
        }


def _resize(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Get a piece or a shared module ready for these tensors, if their shapes are not its own."""
    shapes = {name: tensor.shape for name, tensor in state.items()}
    if shapes == {name: tensor.shape for name, tensor in module.state_dict().items()}:
        return
    if isinstance(module, Piece):
        module.resize(shapes)
    else:
        resize_parts(module, shapes)


def _without_dots(key: str) -> str:
    return key.replace(".", ":")  # a module's name may not hold a dot
