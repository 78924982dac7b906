"""What pieces decide on texts: the values of gates, the attention over adapters."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor

from inlay.core.method import Placed
from inlay.core.modes import evaluating
from inlay.core.readings import Readable, Reading
from inlay.errors import SpecError
from inlay.handle import Inlay
from inlay.inspect.passes import served_alone
from inlay.inspect.vectors import has_vectors
from inlay.runtime.observation import text_and_prompt, whole_rows


@dataclass(frozen=True, eq=False)
class PlaceReading:
    """What one piece decided at its place, for each of several texts. B texts, N numbers.

    placed:    the piece, its site and its method.
    what:      in words, such as "gate".
    axis:      what the numbers belong to, such as "method".
    names:     of the numbers.
    values:    `[B, N]`, the mean over the text of each row, in the order of the batches; nan where
               the piece did not run.
    positions: `[B]`, over how many positions: 1 for what is decided once a row.
    """

    placed: Placed
    what: str
    axis: str
    names: tuple[str, ...]
    values: Tensor
    positions: Tensor

    @property
    def mean(self) -> Tensor:
        """`[N]`, over the positions of all texts."""
        weights = self.positions[:, None]
        return (self.values.nan_to_num() * weights).sum(0) / weights.sum().clamp(min=1)


def readable_parts(handle: Inlay) -> list[tuple[Placed, Reading]]:
    """What can be read out of an inlay's pieces, and of pieces inside them."""
    return [
        (placed, reading)
        for placed in handle.placed
        for part in placed.piece.modules()
        if isinstance(part, Readable)
        for reading in part.readings()
    ]


def require_inspectable(handle: Inlay) -> None:
    """Raise SpecError where an inlay has neither vectors to look into nor anything to read out."""
    if not (has_vectors(handle) or readable_parts(handle)):
        raise SpecError(
            f"{handle.spec!r} has no prompt or prefix to inspect, and nothing to read out; give an "
            "inlay of a method such as Prompt, Prefix, Gate or Fusion"
        )


def readings(handle: Inlay, batches: Iterable[Mapping[str, Tensor]]) -> list[PlaceReading]:
    """Read out what the pieces of an inlay decide on texts, in each place and for each text.

    batches: what the model's forward takes, with `attention_mask` where there is padding;
        `text_batches` makes them. The mean is that over a row's text, without padding and prompts.

    Every row is served by this inlay alone, enabled or not. Empty where nothing can be read out.
    """
    with recording(handle) as recorded:
        for batch in batches:
            recorded.begin(batch)
            handle.model(**batch)
    return recorded.readings()


@contextmanager
def recording(handle: Inlay) -> Iterator[Recording]:
    """Inside, passes of this thread are recorded; `begin` says what the next one reads.

    For passes that something else makes than `readings`, such as a task.
    """
    recorded = Recording(handle)
    hooks = [
        recorder.reading.module.register_forward_hook(recorder) for recorder in recorded.recorders
    ]
    try:
        with evaluating(handle.model), served_alone(handle), whole_rows(handle.model):
            yield recorded
    finally:
        for hook in hooks:
            hook.remove()


class Recording:
    """What was read out of one inlay, batch by batch."""

    def __init__(self, handle: Inlay):
        self.handle = handle
        self.recorders = [_Recorder(placed, part) for placed, part in readable_parts(handle)]

    def begin(self, batch: Mapping[str, Tensor]) -> None:
        """The next pass reads this batch."""
        masks = text_and_prompt(self.handle.model, self.handle.name, batch)
        texts = {stack: text for stack, (text, _) in masks.items()}
        count = len(next(iter(batch.values())))
        for recorder in self.recorders:
            recorder.end()
            recorder.begin(count, texts)

    def readings(self) -> list[PlaceReading]:
        """What all passes gave; nothing of parts that did not run."""
        for recorder in self.recorders:
            recorder.end()
        return [recorder.result() for recorder in self.recorders if recorder.ran]


class _Recorder:
    """Takes down what one reading gives, batch by batch."""

    def __init__(self, placed: Placed, reading: Reading):
        self.placed = placed
        self.reading = reading
        self.thread = get_ident()
        self.text: Tensor | None = None
        self.count = 0
        self.sums: list[tuple[Tensor, Tensor]] = []
        self.values: list[Tensor] = []
        self.counts: list[Tensor] = []

    def begin(self, count: int, texts: Mapping[str, Tensor]) -> None:
        """A pass of so many rows follows. texts: which positions are text, by stack."""
        site = self.placed.site
        # the keys and values of cross-attention are made of what the encoder has read
        reads_source = site.role in ("cross.k", "cross.v")
        self.text = next(iter(texts.values()), None) if reads_source else texts.get(site.stack)
        self.count = count

    def __call__(self, module: Any, args: tuple[Any, ...], output: Tensor) -> None:
        """Add up what the part returned: [N], [B, 1, N] or [B, T, N]."""
        if get_ident() != self.thread:  # another may be in a pass of its own
            return
        numbers = output.detach().float()
        if numbers.dim() < 3 or len(numbers) != self.count:
            mean = numbers.flatten(0, -2).mean(0) if numbers.dim() > 1 else numbers
            numbers = mean.expand(self.count, 1, -1)
        text = self.text
        if text is None or text.shape[1] != numbers.shape[1]:
            text = numbers.new_ones(numbers.shape[:2])
        weights = text.to(numbers)[..., None]
        self.sums.append(((numbers * weights).sum(1), weights.sum(1)))

    def end(self) -> None:
        """The pass is over, if one was begun."""
        if self.sums:
            total = torch.stack([values for values, _ in self.sums]).sum(0)
            count = torch.stack([positions for _, positions in self.sums]).sum(0)
            self.values.append((total / count.clamp(min=1)).cpu())
            self.counts.append((count[:, 0] / len(self.sums)).cpu())
        elif self.count:
            self.values.append(torch.full((self.count, len(self.reading.names)), torch.nan))
            self.counts.append(torch.zeros(self.count))
        self.count, self.sums = 0, []

    @property
    def ran(self) -> bool:
        """Whether the part ran in any pass."""
        return any(bool(counts.any()) for counts in self.counts)

    def result(self) -> PlaceReading:
        """Of all rows together."""
        reading = self.reading
        values, counts = torch.cat(self.values), torch.cat(self.counts)
        return PlaceReading(self.placed, reading.what, reading.axis, reading.names, values, counts)
