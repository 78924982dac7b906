"""Case: a base and a spec, with the inputs on which laws compare."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.architectures.resolve import resolve
from inlay.core.method import Spec
from inlay.core.piece import HeadPiece, OncePerPass, Piece, PromptVectors, VirtualTokens
from inlay.errors import LawError
from inlay.handle import Inlay, attach, attached, rows
from inlay.laws.batches import Inputs
from inlay.laws.media import media_row, with_picture
from inlay.runtime.container import container_of
from inlay.runtime.install import Prepared

TOO_LARGE = 300_000_000
"""Bases with more parameters are not copied."""


class Broken(LawError):
    """The law does not hold here."""


class NotApplicable(LawError):
    """The law says nothing about this case."""


class BaseBreaks(NotApplicable):
    """The base breaks the law itself, so it says nothing about what is attached to it."""


class Learner(Protocol):
    """What laws learn with: an inlay, or in a control some parameters of the base."""

    @property
    def name(self) -> str: ...  # noqa: D102

    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102


@dataclass(frozen=True)
class BareBase:
    """What stands for an inlay in a control: nothing is attached, vectors of the base learn."""

    name: str
    vectors: tuple[nn.Parameter, ...]

    def parameters(self) -> Iterator[nn.Parameter]:
        """The base's gains and biases."""
        return iter(self.vectors)


@dataclass
class Case:
    """A base, and a spec to attach to it.

    model:  the base.
    spec:   the methods. A preset is replaced by what it stands for on this base.
    state:  values for the pieces (`Inlay.training_state`); None for random ones, away from where
            the pieces start, so that nothing hides behind a zero.
    length: tokens of the longest row.
    seed:   of all that is random.
    bare:   whether nothing is attached: a control, which asks the base the same (see `control`).

    What the pieces are like, for laws that depend on it:

    chart:           of the base.
    virtual_tokens:  how many there are.
    changes_outputs: whether any piece changes what the base computes; heads do not.
    shares_values:   whether blocks read values that are computed once, before them.
    draws:           whether any piece draws random numbers.
    has_shared:      whether pieces share modules that the file holds.
    has_indices:     whether the file holds tensors of integers or booleans.
    """

    model: PreTrainedModel
    spec: Spec
    state: dict[str, Tensor] | None = None
    length: int = 9
    seed: int = 0
    bare: bool = False
    chart: Chart = field(init=False)
    virtual_tokens: int = field(init=False)
    changes_outputs: bool = field(init=False)
    shares_values: bool = field(init=False)
    draws: bool = field(init=False)
    has_shared: bool = field(init=False)
    has_indices: bool = field(init=False)

    def __post_init__(self) -> None:
        self.chart = resolve(self.model)
        handle = self._attach("law-examination")
        try:
            pieces = [placed.piece for placed in handle.placed]
            container = container_of(self.model)
            assert container is not None
            shared = container.pieces(handle.name).shared.values()
            self.spec = handle.spec
            self.virtual_tokens = handle.virtual_tokens
            self.changes_outputs = any(not isinstance(piece, HeadPiece) for piece in pieces)
            self.shares_values = any(_shares(piece) for piece in pieces) or any(
                isinstance(module, OncePerPass) for module in shared
            )
            self.draws = any(_draws(piece) for piece in pieces)
            self.has_shared = any(not isinstance(module, OncePerPass) for module in shared)
            tensors = handle.named_tensors().values()
            self.has_indices = any(not tensor.is_floating_point() for tensor in tensors)
        finally:
            handle.detach()

    def control(self) -> Case:
        """The same case with the bare base in the place of every inlay."""
        control = copy.copy(self)
        control.bare, control.virtual_tokens, control.changes_outputs = True, 0, True
        return control

    @property
    def nothing_prepared(self) -> Prepared:
        """What stands for the results of `Method.prepare`, which laws do not run: nothing."""
        count = len(self.spec.expand(self.chart.sites).methods)
        return {index: {} for index in range(count)}

    @property
    def tolerance(self) -> float:
        """How far two ways of computing the same thing may differ, relative to its size.

        Rounding adds up from block to block: 1e-5 for each, and at least for three.
        """
        if self.model.dtype not in (torch.float32, torch.float64):
            return 0.1
        return 1e-5 * max(3, sum(len(stack.layers) for stack in self.chart.stacks))

    @contextmanager
    def learner(self, name: str = "law", seed: int = 0) -> Iterator[Learner]:
        """What `inlay` yields; in a control, the bare base."""
        if not self.bare:
            with self.inlay(name, seed) as handle:
                yield handle
            return
        vectors = tuple(p for p in self.model.parameters() if p.dim() == 1)
        learned = [p.requires_grad for p in self.model.parameters()]
        try:
            for parameter in self.model.parameters():
                parameter.requires_grad_(parameter.dim() == 1)
            yield BareBase(name, vectors)
        finally:
            for parameter, learns in zip(self.model.parameters(), learned, strict=True):
                parameter.requires_grad_(learns)

    @contextmanager
    def serving(self, names: Sequence[str | None]) -> Iterator[None]:
        """Inside, these inlays serve the rows; in a control, none does."""
        if self.bare and not attached(self.model):
            yield
            return
        with rows(self.model, [None] if self.bare else names):
            yield

    @contextmanager
    def inlay(self, name: str = "law", seed: int = 0) -> Iterator[Inlay]:
        """The spec attached under a name, serving every row, and detached afterwards.

        Inlays of different seeds have different parameters; that of seed 0 has `state`.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + seed)
            handle = self._attach(name)
            if self.state is not None and seed == 0:
                handle.load_training_state(self.state)
            else:
                perturb(handle)
        try:
            with rows(self.model, [name]):
                yield handle
        finally:
            if handle.attached:
                handle.detach()

    @contextmanager
    def isolated(self) -> Iterator[None]:
        """Inside, the base is in evaluation mode and no inlay of the user's acts."""
        modes = {part: part.training for part in self.model.modules()}
        others = attached(self.model)
        enabled = {name: handle.enabled for name, handle in others.items()}
        self.model.eval()
        try:
            for handle in others.values():
                handle.enabled = False
            yield
        finally:
            for name, acts in enabled.items():
                others[name].enabled = acts
            for part, mode in modes.items():
                part.training = mode

    def inputs(self, count: int, seed: int = 1) -> list[Inputs]:
        """`count` rows of different lengths, each as a batch of one."""
        generator = torch.Generator().manual_seed(self.seed + seed)
        return [self._row(max(3, self.length - 2 * number), generator) for number in range(count)]

    def _row(self, length: int, generator: torch.Generator) -> Inputs:
        device, first = self.model.device, self.chart.vocabulary
        lowest = min(8, first // 2)
        if not self.chart.reads_text:
            row = media_row(self.chart, generator)
            if self.chart.decoder is not None:
                target = torch.randint(lowest, first, (1, 4), generator=generator)
                row["decoder_input_ids"] = self._with_virtual_tokens(target)
            return {name: tensor.to(device) for name, tensor in row.items()}
        ids = torch.randint(lowest, first, (1, length), generator=generator)
        ids = self._with_virtual_tokens(ids)
        row = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
        if self.chart.kind == "encoder-decoder":
            target = torch.randint(lowest, first, (1, 4), generator=generator)
            row["decoder_input_ids"] = target.to(device)
        return with_picture(self.chart, row, generator)

    def _with_virtual_tokens(self, ids: Tensor) -> Tensor:
        """The ids `[1, T]` with a virtual token at every second position, as far as there are."""
        for number in range(min(self.virtual_tokens, ids.shape[1] // 2)):
            ids[0, 2 * number] = self.chart.vocabulary + number
        return ids

    def _attach(self, name: str) -> Inlay:
        """The spec attached; methods that prepare get nothing, as when a file is read."""
        return attach(self.model, self.spec, name=name, prepared=self.nothing_prepared)


def perturb(handle: Inlay) -> None:
    """Add a random number to every trained parameter, so that each one matters."""
    for parameter in handle.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape).to(parameter) * 0.2)


def _shares(piece: Piece) -> bool:
    return isinstance(piece, PromptVectors | VirtualTokens)


def _draws(piece: Piece) -> bool:
    return any(isinstance(part, Piece) and part.draws for part in piece.modules())
