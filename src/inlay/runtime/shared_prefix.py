"""The front of a causal stack: what all rows begin with runs once a pass, not once a row.

Nothing behind a position changes what a causal model computes there. So prompts in front of the
text, and an opening that all rows of a batch share (an instruction, worked examples), run alone,
once for every group of rows that is served alike; their keys and values are then given to all
rows where attention receives its own. The text keeps its layout, its masks and its cache; only
its positions move back. While a text is written the front is kept beside the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inlay.errors import RowsError
from inlay.runtime import attention
from inlay.runtime.prompts import ANOTHER, NOTE
from inlay.runtime.routing import Groups, Names
from inlay.runtime.stack_inputs import cached, text_of

if TYPE_CHECKING:
    from inlay.architectures.chart import Stack
    from inlay.runtime.stack import StackHooks

SHORTEST = 8
"""An opening of fewer tokens is not worth a pass of its own."""

WORTH = 8
"""An opening is taken out where that saves at least one of so many positions."""


Heard = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Front:
    """What a pass ran in front of its rows.

    served: the inlays of every group of rows. names: of those it was run for. lengths: each such
    group's positions, its prompt and the opening. opening: C, tokens of the opening. pairs: site
    name -> keys and values `[G, H, P, K]`. states: the last hidden states `[G, P, D]`.
    """

    served: tuple[Names, ...]
    names: tuple[Names, ...]
    lengths: tuple[int, ...]
    opening: int
    pairs: Heard
    states: Tensor

    def check(self, groups: Groups) -> None:
        """Raise RowsError for rows whose front this is not."""
        if any(names not in self.served for names in groups.names):
            raise RowsError(ANOTHER)

    def beside(self, groups: Groups, device: torch.device) -> Beside:
        """The front as the rows of a pass see it."""
        numbers = [self.names.index(n) if n in self.names else -1 for n in groups.names]
        if len(numbers) == 1 and len(self.names) == 1 and numbers[0] == 0:
            return Beside(self, None, None, self.lengths[0] - self.opening)
        each = [0 if i < 0 else self.lengths[i] for i in numbers]
        rows = torch.tensor([max(i, 0) for i in numbers], device=device)
        counts = torch.tensor(each, device=device)
        spread = torch.zeros(1, dtype=torch.long, device=device)
        spread = spread if groups.group is None else groups.index(device)
        rows, counts = rows[spread], counts[spread]
        seen = torch.arange(max(self.lengths), device=device) < counts[:, None]
        return Beside(self, rows, seen, (counts - self.opening).clamp(min=0)[:, None])


@dataclass(frozen=True)
class Beside:
    """A front beside the rows of one pass.

    rows `[B]`: each row's group; None where there is one. seen `[B, P]`: which positions of the
    front a row has; None where all have all. shift: by how much the text's positions move back,
    a number or `[B, 1]`.
    """

    front: Front
    rows: Tensor | None
    seen: Tensor | None
    shift: Any

    def pair(self, name: str, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values for every row, each `[B, H, P, K]`."""
        k, v = self.front.pairs[name]
        return self._spread(k, batch), self._spread(v, batch)

    def states(self, batch: int) -> Tensor:
        """The front's last hidden states for every row, `[B, P, D]`."""
        return self._spread(self.front.states, batch)

    def _spread(self, one: Tensor, batch: int) -> Tensor:
        return one.expand(batch, *one.shape[1:]) if self.rows is None else one[self.rows]


class SharedPrefixPort:
    """What stands in front of one causal stack, all of whose attention has a keys port.

    absolute: the base looks positions up in a table. enabled: False runs everything in its row.
    """

    def __init__(self, door: StackHooks, absolute: bool):
        self.door = door
        self.stack = stack = door.stack
        self.route = door.route
        self.slots = door.slots
        self.passing = door.passing
        self.absolute = absolute
        self.configs = attention.configs(stack.module)
        self.enabled = True
        self.beside: Beside | None = None
        self._back: Tensor | None = None

    def forget(self) -> None:
        """Another pass begins."""
        self.beside = self._back = self.passing.beside = None

    def takes(self, inputs: dict[str, Any]) -> bool:
        """Whether a pass with these inputs can have its front run apart."""
        given = text_of(inputs)
        if not self.enabled or given is None or not attention.has_way_in(self.configs):
            return False
        window = self.stack.window
        if window is None:
            return True
        longest = given.shape[1] + self.slots.longest()
        kept = inputs.get("past_key_values") is not None or inputs.get("use_cache") is not False
        return not kept and longest <= window

    def enter(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """The stack's inputs with the front taken out, and the front where the keys ports find it.

        None where nothing stands in front, or not where it could run apart.
        """
        given = text_of(inputs)
        assert given is not None
        batch = given.shape[0]
        groups = self.route.groups(batch, self.route.known) or Groups(((),), None)
        before = cached(inputs)
        if before:
            front = vars(inputs["past_key_values"]).get(NOTE)
            if not isinstance(front, Front):
                return None
            front.check(groups)
        else:
            front = self._run(inputs, groups, given)
        if front is None:
            return None
        beside = front.beside(groups, given.device)
        changed = {**inputs, "position_ids": self._positions(inputs, given, before, front)}
        if front.opening:
            changed = self._without_opening(changed, front.opening, given, before, beside)
        changed["position_ids"] = changed["position_ids"] + beside.shift
        self.beside = self.passing.beside = beside
        return changed

    def leave(self, output: Any) -> Any:
        """The stack's output with the states of the opening back in their places."""
        beside, back = self.beside, self._back
        if beside is None or back is None:
            return output
        states = output[0] if isinstance(output, tuple) else output.last_hidden_state
        whole = torch.cat((states, beside.states(len(states)).to(states.dtype)), 1)
        states = whole.gather(1, back[..., None].expand(-1, -1, whole.shape[-1]))
        if isinstance(output, tuple):
            return (states, *output[1:])
        output["last_hidden_state"] = states
        return output

    def _run(self, inputs: dict[str, Any], groups: Groups, given: Tensor) -> Front | None:
        """Run prompts and opening, each group of rows once. None where there is neither."""
        if not self._begins(inputs, given):
            return None
        opening = self._opening(inputs, groups)
        names = [n for n in groups.names if opening or self.slots.length(n)]
        if not names:
            return None
        lengths = [self.slots.length(n) + opening for n in names]
        extra = max(lengths)
        self.slots.check_room(given.shape[1], extra - opening)
        words = self._words(inputs, opening)
        if words is not None and self.door.tokens.pieces:
            self.door.tokens.ask_for(names, words, [self.slots.length(n) for n in names])
        heard, states = self._alone(names, [self._embeds(n, words) for n in names])
        return Front(groups.names, tuple(names), tuple(lengths), opening, heard, states)

    def heard(self, names: Names) -> Heard:
        """The keys and values of these inlays' prompts: site name -> `[1, H, P, K]` each."""
        return self._alone([names], [self._embeds(names, None)])[0]

    def _alone(self, names: list[Names], rows: list[Tensor]) -> tuple[Heard, Tensor]:
        """Run what stands in front of each group, as a batch of its own."""
        extra = max(map(len, rows))
        embeds = torch.stack([F.pad(row, (0, 0, 0, extra - len(row))) for row in rows])
        heard: Heard = {}
        shifts = torch.tensor([self.door.shift(n) for n in names], device=embeds.device)
        positions = torch.arange(extra, device=embeds.device) + self.stack.position_start
        before = self.route.bound
        try:
            self.route.bound = tuple(names)
            self.passing.heard = heard
            attention.enter(self.configs)
            with _not_checkpointed(self.stack):
                states = self.stack.alone(
                    inputs_embeds=embeds,
                    attention_mask=positions.new_ones(len(names), extra),
                    position_ids=positions + shifts[:, None],
                )
        finally:
            self.passing.heard = None
            self.door.tokens.asked = None
            self.route.bound = before
        return heard, states

    def _words(self, inputs: dict[str, Any], opening: int) -> Tensor | None:
        """The ids of the opening, `[C]`; None where there is none."""
        if not opening:
            return None
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        start = 0 if mask is None else int((mask[0].cumsum(0) == 0).sum())
        return ids[0, start : start + opening]

    def _embeds(self, names: Names, words: Tensor | None) -> Tensor:
        """The input embeddings of what stands in front of one group, `[P, D]`."""
        dtype = self.stack.module.dtype
        parts = [piece().to(dtype) for piece in self.slots.of(names)]
        if words is not None:
            parts.append(self.door.tokens.embed_for(names, words).to(dtype))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _begins(self, inputs: dict[str, Any], given: Tensor) -> bool:
        """Whether every row's text begins at the first position."""
        positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
        if positions is None:
            return True
        if positions.dim() != 2:
            return False
        first = positions[:, :1].expand(len(given), -1)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            lead = (mask.cumsum(-1) == 0).sum(-1, keepdim=True).clamp(max=positions.shape[1] - 1)
            first = positions.expand(len(given), -1).gather(1, lead)
        return bool((first == self.stack.position_start).all())

    def _opening(self, inputs: dict[str, Any], groups: Groups) -> int:
        """How many tokens all rows begin with, where it pays to run them once."""
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        plain = not any(inputs.get(key) for key in ("output_attentions", "output_hidden_states"))
        config = self.stack.module.config
        plain = plain and not (config.output_attentions or config.output_hidden_states)
        if ids is None or ids.shape[0] < 2 or not plain or self.stack.window is not None:
            return 0
        if inputs.get("token_type_ids") is not None:
            return 0
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            return 0
        batch, length = ids.shape
        if length <= SHORTEST:
            return 0
        shortest = length
        positions = inputs.get("position_ids")
        place = torch.arange(length, device=ids.device)
        if mask is not None:
            lead = (mask.cumsum(-1) == 0).sum(-1, keepdim=True)
            if positions is None and self.absolute and bool(lead.any()):
                return 0
            index = (place + lead).clamp(max=length - 1)
            ids, mask = ids.gather(1, index), mask.gather(1, index) * (place + lead < length)
            shortest = int(mask.sum(-1).min())
            if positions is not None:
                positions = positions.expand(batch, -1).gather(1, index)
        same = (ids == ids[:1]).all(0)
        if mask is not None:
            same = same & (mask > 0).all(0)
        if positions is not None:
            same = same & (positions == place + self.stack.position_start).all(0)
        opening = min(int(same.long().cumprod(0).sum()), shortest - 1)
        saved = opening * (batch - len(groups.names))
        return opening if opening >= SHORTEST and saved * WORTH >= batch * length else 0

    def _positions(
        self, inputs: dict[str, Any], given: Tensor, before: int, front: Front
    ) -> Tensor:
        """Position ids of the text as if nothing stood in front of it, `[B, T]`."""
        batch, length = given.shape[:2]
        positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
        if positions is not None:
            assert isinstance(positions, Tensor)
            return positions.expand(batch, -1)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            counted = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        else:
            first = before + (front.opening if before else 0)
            counted = torch.arange(first, first + length, device=given.device).expand(batch, -1)
        return counted + self.stack.position_start

    def _without_opening(
        self, inputs: dict[str, Any], opening: int, given: Tensor, before: int, beside: Beside
    ) -> dict[str, Any]:
        batch, length = given.shape[:2]
        mask = inputs.get("attention_mask")
        lead = given.new_zeros(batch, 1, dtype=torch.long)
        if mask is not None:
            lead = (mask.cumsum(-1) == 0).sum(-1, keepdim=True)
            kept = _kept(mask.shape[1] - opening, lead, opening)
            inputs = {**inputs, "attention_mask": mask.gather(1, kept)}
        if before:
            return inputs
        kept = _kept(length - opening, lead, opening)
        place = torch.arange(length, device=given.device)
        behind = torch.where(place < lead, place, place - opening)
        within = (place >= lead) & (place < lead + opening)
        ahead = length - opening + beside.shift + place - lead
        self._back = torch.where(within, ahead, behind)
        return {
            **inputs,
            "input_ids": inputs["input_ids"].gather(1, kept),
            "position_ids": inputs["position_ids"].gather(1, kept),
        }


def _kept(length: int, lead: Tensor, opening: int) -> Tensor:
    """Which columns stay, `[B, length]`, when `opening` go behind each row's padding `[B, 1]`."""
    place = torch.arange(length, device=lead.device)
    return torch.where(place < lead, place, place + opening)


@contextmanager
def _not_checkpointed(stack: Stack) -> Iterator[None]:
    """A front is short: what its blocks keep for backward is not worth computing twice."""
    layers = stack.checkpointed
    try:
        for layer in layers:
            layer.gradient_checkpointing = False
        yield
    finally:
        for layer in layers:
            layer.gradient_checkpointing = True
