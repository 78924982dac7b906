"""A case to judge: a base and a spec, with inputs and ways to compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.architectures.resolve import resolve
from inlay.core.method import Spec
from inlay.core.piece import HeadPiece, VirtualTokens
from inlay.errors import LawError
from inlay.handle import Inlay, attach, attached, rows
from inlay.runtime.container import container_of

TOO_LARGE = 300_000_000
"""Bases with more parameters are not copied."""


class Broken(LawError):
    """The law does not hold here."""


class NotApplicable(LawError):
    """The law says nothing about this case."""


@dataclass
class Case:
    """A base and a spec to set into it.

    state: numbers for the pieces (`Inlay.training_state`); None moves every piece away from where
    it starts, so that nothing hides behind a zero. length: tokens of the longest row.
    """

    model: PreTrainedModel
    spec: Spec
    state: dict[str, Tensor] | None = None
    length: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        self.chart: Chart = resolve(self.model)
        pieces = self._pieces()
        kinds = [type(piece) for piece in pieces]
        self.virtual = sum(piece.length for piece in pieces if isinstance(piece, VirtualTokens))
        self.acts = any(not issubclass(kind, HeadPiece) for kind in kinds)
        self.learns = self.acts

    def _pieces(self) -> list[Any]:
        handle = attach(self.model, self.spec, name="law-look")
        try:
            return [placed.piece for placed in handle.placed]
        finally:
            handle.detach()

    @property
    def tolerance(self) -> float:
        """How far two ways of computing the same thing may differ, relative to its size.

        Rounding adds up from block to block: 1e-5 for each, and at least for three.
        """
        if self.model.dtype not in (torch.float32, torch.float64):
            return 0.1
        return 1e-5 * max(3, sum(len(stack.layers) for stack in self.chart.stacks))

    @contextmanager
    def inlay(self, name: str = "law", seed: int = 0) -> Iterator[Inlay]:
        """The spec attached, with numbers of its own; alone at work, and gone afterwards."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + seed)
            handle = attach(self.model, self.spec, name=name)
            if self.state is not None and seed == 0:
                handle.load_training_state(self.state)
            else:
                move(handle)
        try:
            with rows(self.model, [name]):
                yield handle
        finally:
            if handle.attached:
                handle.detach()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Evaluation mode, and no other inlay at work."""
        modes = {part: part.training for part in self.model.modules()}
        others = attached(self.model)
        enabled = {name: one.enabled for name, one in others.items()}
        self.model.eval()
        try:
            for one in others.values():
                one.enabled = False
            yield
        finally:
            for name, acts in enabled.items():
                others[name].enabled = acts
            for part, mode in modes.items():
                part.training = mode

    def inputs(self, count: int, seed: int = 1) -> list[dict[str, Tensor]]:
        """`count` single rows of different lengths."""
        generator = torch.Generator().manual_seed(self.seed + seed)
        config = self.model.config
        device = self.model.device
        made: list[dict[str, Tensor]] = []
        for number in range(count):
            if self.chart.kind == "vision":
                shape = (1, config.num_channels, config.image_size, config.image_size)
                made.append({"pixel_values": torch.randn(shape, generator=generator).to(device)})
                continue
            length = max(3, self.length - 2 * number)
            low = min(8, config.vocab_size // 2)
            ids = torch.randint(low, config.vocab_size, (1, length), generator=generator)
            for place in range(min(self.virtual, length // 2)):
                ids[0, 2 * place] = first_virtual(self.model) + place
            row = {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids).to(device)}
            if self.chart.kind == "encoder-decoder":
                target = torch.randint(low, config.vocab_size, (1, 4), generator=generator)
                row["decoder_input_ids"] = target.to(device)
            made.append(row)
        return made


def move(handle: Inlay) -> None:
    """Shift every number of the pieces at random, so that each one matters."""
    for parameter in handle.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn(parameter.shape).to(parameter) * 0.2)


def join(singles: list[dict[str, Tensor]], side: str = "right") -> dict[str, Tensor]:
    """Single rows as one padded batch."""
    made: dict[str, Tensor] = {}
    for key in singles[0]:
        tensors = [row[key] for row in singles]
        if key in ("input_ids", "attention_mask"):
            longest = max(t.shape[1] for t in tensors)
            pads = [longest - t.shape[1] for t in tensors]
            sides = [(0, p) if side == "right" else (p, 0) for p in pads]
            pairs = zip(tensors, sides, strict=True)
            tensors = [torch.nn.functional.pad(t, pad) for t, pad in pairs]
        made[key] = torch.cat(tensors)
    return made


def answer(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """What the model computes, in fp32: logits where it has a head, else hidden states."""
    out = model(**readable(model, inputs))
    logits = out.get("logits")
    return (out.last_hidden_state if logits is None else logits).float()


def first_virtual(model: PreTrainedModel) -> int:
    """The id of the first virtual token."""
    return len(model.get_input_embeddings().weight)  # type: ignore[arg-type]


def readable(model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inputs with words for the virtual tokens of rows that have none."""
    ids = inputs.get("input_ids")
    if ids is None or not bool((ids >= first_virtual(model)).any()):
        return inputs
    served = torch.zeros(len(ids), 1, dtype=torch.bool, device=ids.device)
    root = container_of(model)
    if root is not None:
        root.routing.bind()
        groups = root.routing.groups(len(ids), root.stacks[0].tokens.pieces)
        if groups is not None:
            has = torch.tensor([bool(names) for names in groups.names], device=ids.device)
            served[:, 0] = has[0] if groups.group is None else has[groups.index(ids.device)]
    words = ids - first_virtual(model) + 1
    return {**inputs, "input_ids": torch.where((ids < first_virtual(model)) | served, ids, words)}


def aligned(case: Case, whole: Tensor, number: int, single: dict[str, Tensor], side: str) -> Tensor:
    """One row of a batch's answer, without its padding."""
    row = whole[number : number + 1]
    if case.chart.kind in ("vision", "encoder-decoder") or row.dim() < 3:
        return row
    length = single["input_ids"].shape[1]
    return row[:, :length] if side == "right" else row[:, -length:]


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    if a.shape != b.shape:
        return float("inf")
    size = max(1e-6, b.abs().max().item())
    return (a - b).abs().max().item() / size


def near(case: Case, a: Tensor, b: Tensor, what: str, slack: float = 1.0) -> float:
    """How far apart; Broken where that is too far."""
    error = far(a, b)
    if not error <= case.tolerance * slack:
        raise Broken(f"{what}: off by {error:.2e}, allowed {case.tolerance * slack:.1e}")
    return error


def weigh(out: Tensor) -> Tensor:
    """A scalar in which every output counts differently."""
    flat = out.flatten(1)
    weights = torch.linspace(-1, 1, flat.shape[1], device=out.device).cos() + 0.5
    return (flat * weights).sum() / flat.shape[1] ** 0.5


Pad = Callable[[list[dict[str, Tensor]]], dict[str, Tensor]]


def paddings(case: Case, singles: list[dict[str, Tensor]]) -> list[tuple[str, Pad]]:
    """The ways of padding under which the bare base computes for a row what the row alone does.

    To be asked before anything is attached.
    """
    ways: list[tuple[str, Pad]] = [("right", join), ("left", lambda rows: join(rows, "left"))]
    if case.chart.kind == "decoder" and case.chart.stacks[0].takes("position_ids"):
        ways.append(("left", lambda rows: counted(case, join(rows, "left"))))
    if case.chart.kind == "vision":
        ways = ways[:1]
    found = []
    for side, pad in ways:
        with torch.no_grad(), bare(case):
            whole = answer(case.model, pad(singles))
            errors = [
                far(aligned(case, whole, i, single, side), answer(case.model, single))
                for i, single in enumerate(singles)
            ]
        if max(errors) <= case.tolerance * 3:
            found.append((side, pad))
    return found


@contextmanager
def bare(case: Case) -> Iterator[None]:
    """The base alone, whatever is attached."""
    if attached(case.model):
        with rows(case.model, [None]):
            yield
    else:
        yield


def counted(case: Case, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A left-padded batch with the position ids that a base with absolute positions needs."""
    start = case.chart.stacks[0].position_start
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp(min=0) + start
    return {**batch, "position_ids": positions}
