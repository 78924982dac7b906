"""The shared prefix of a causal stack: what all rows begin with runs once a pass, not once a row.

Later positions change nothing of what a causal model computes at earlier ones. So prompts before
the text, and an opening that all rows of a batch have in common (an instruction, worked examples),
run alone, once for every group of rows that the same inlays serve. Their keys and values are then
given to all rows where attention receives its own:

    rows  [prompt | opening | text 0]         prefix  [prompt | opening] -> keys, values, states
          [prompt | opening | text 1]    =>   rows    [text 0]
          [prompt | opening | text 2]                 [text 1]    each with the prefix's keys and
                                                      [text 2]    values before its own

The text keeps its layout, its masks and its cache; only its positions move back. While a text is
generated, the prefix is kept on the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer

from inlay.architectures.chart import Stack, last_state
from inlay.core.per_thread import PerThread
from inlay.errors import RowsError
from inlay.runtime import attention
from inlay.runtime.extra_kv import ExtraKVPort
from inlay.runtime.openings import SHORTEST, Openings
from inlay.runtime.port import StackState
from inlay.runtime.positions import is_packed
from inlay.runtime.prompts import BEFORE, OTHER_ROWS, PromptPort
from inlay.runtime.routing import Groups, Names
from inlay.runtime.stack_inputs import (
    arange,
    cached,
    continues,
    leading_padding,
    padding_mask,
    readable,
    replace_last_state,
    text_of,
)
from inlay.runtime.virtual_tokens import VirtualTokenPort

WORTH = 8
"""An opening is taken out where that saves at least one of so many positions."""

KeysAndValues = dict[str, tuple[Tensor, Tensor]]

_PAUSED: dict[Stack, tuple[int, list[GradientCheckpointingLayer]]] = {}
"""How many threads run a prefix in each stack, and the blocks whose checkpointing waits."""

_PAUSING = Lock()


@dataclass(frozen=True)
class SharedPrefix:
    """What a pass ran before its rows.

    served:  the inlays of every group of rows of the pass.
    names:   those of the groups that the prefix was run for.
    lengths: the positions of each such group: its prompt and the opening.
    opening: C, the tokens of the opening.
    first:   by how much the positions that rows were given are too large, `[B, 1]`: they count
             from a row's first token, and need not begin there; None where they do.
    pairs:   site name -> keys and values `[G, H, P, K]`.
    states:  the last hidden states, `[G, P, D]`.
    """

    served: tuple[Names, ...]
    names: tuple[Names, ...]
    lengths: tuple[int, ...]
    opening: int
    first: Tensor | None
    pairs: KeysAndValues
    states: Tensor

    def check(self, groups: Groups) -> None:
        """Raise RowsError for rows that it was not made for."""
        if any(names not in self.served for names in groups.names):
            raise RowsError(OTHER_ROWS)

    def view(self, groups: Groups, device: torch.device) -> PrefixView:
        """The prefix as the rows of a pass see it."""
        numbers = [self.names.index(n) if n in self.names else -1 for n in groups.names]
        if len(numbers) == 1 and len(self.names) == 1 and numbers[0] == 0:
            return PrefixView(self, None, None, self.lengths[0] - self.opening)
        rows = groups.by_row([max(i, 0) for i in numbers], device)
        counts = groups.by_row([0 if i < 0 else self.lengths[i] for i in numbers], device)
        visible = torch.arange(max(self.lengths), device=device) < counts[:, None]
        return PrefixView(self, rows, visible, (counts - self.opening).clamp(min=0)[:, None])


@dataclass(frozen=True)
class PrefixView:
    """A shared prefix as the rows of one pass see it.

    rows `[B]`: each row's group; None where there is one. visible `[B, P]`: which positions of
    the prefix a row sees; None where all see all. shift: by how much the text's positions move
    back, a number or `[B, 1]`.
    """

    prefix: SharedPrefix
    rows: Tensor | None
    visible: Tensor | None
    shift: Any

    def pair(self, site: str, batch: int) -> tuple[Tensor, Tensor]:
        """Keys and values for every row, each `[B, H, P, K]`."""
        k, v = self.prefix.pairs[site]
        return self._spread(k, batch), self._spread(v, batch)

    def states(self, batch: int) -> Tensor:
        """The prefix's last hidden states for every row, `[B, P, D]`."""
        return self._spread(self.prefix.states, batch)

    def _spread(self, by_group: Tensor, batch: int) -> Tensor:
        if self.rows is None:
            return by_group.expand(batch, *by_group.shape[1:])
        return by_group[self.rows]


class _Pass(PerThread):
    """view: the prefix that the rows see. back: where each position of the text went, `[B, T]`."""

    __slots__ = ()
    view: PrefixView | None = None
    back: Tensor | None = None


class PrefixRunner:
    """Runs the shared prefix of one causal stack, all of whose attention takes extra keys.

    absolute: the base looks positions up in a table. enabled: False runs everything in its row.
    view: of the pass under way in this thread.
    """

    def __init__(self, state: StackState, absolute: bool):
        self.state = state
        self.stack = state.stack
        self.routing = state.routing
        self.prompts = state.port(PromptPort)
        self.tokens = state.port(VirtualTokenPort)
        self.attention_pass = state.port(ExtraKVPort).attention_pass
        self.absolute = absolute
        self.openings = Openings(self.stack.position_start, absolute)
        self.configs = attention.configs(self.stack.module)
        self.enabled = True
        self._pass = _Pass()

    @property
    def view(self) -> PrefixView | None:  # noqa: D102
        return self._pass.view

    @view.setter
    def view(self, view: PrefixView | None) -> None:
        self._pass.view = view

    def forget(self) -> None:
        """Drop what the last pass left."""
        self.view = self._pass.back = self.attention_pass.prefix = None

    def takes(self, inputs: dict[str, Any]) -> bool:
        """Whether the prefix of a pass with these inputs can run separately."""
        text = text_of(inputs)
        if not self.enabled or text is None or not attention.has_implementation(self.configs):
            return False
        if not self.routing.serving().isdisjoint(self.state.relating):
            return False  # such a piece reads all positions of its rows
        window = self.stack.window
        if window is None:
            return True
        longest = text.shape[1] + self.prompts.longest()
        caches = inputs.get("past_key_values") is not None or inputs.get("use_cache") is not False
        return not caches and longest <= window

    def remove(self, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """Remove the shared prefix from the inputs; register its keys and values for attention.

        Returns None where there is no shared prefix, or where it cannot run separately.
        """
        text = text_of(inputs)
        assert text is not None
        batch = text.shape[0]
        groups = self.routing.groups(batch, self.routing.enabled) or Groups(((),), None)
        goes_on = continues(inputs)
        if goes_on:
            prefix = vars(inputs["past_key_values"]).get(BEFORE)
            if not isinstance(prefix, SharedPrefix):
                return None
            prefix.check(groups)
        else:
            prefix = self._run(inputs, groups, text)
        if prefix is None:
            return None
        view = prefix.view(groups, text.device)
        changed = {**inputs, "position_ids": self._positions(inputs, text, goes_on, prefix)}
        if prefix.opening:
            changed = self._without_opening(changed, prefix.opening, text, goes_on, view)
        changed["position_ids"] = changed["position_ids"] + view.shift
        self.view = self.attention_pass.prefix = view
        return changed

    def restore(self, output: Any) -> Any:
        """Put the states of the opening back into their places in the stack's output."""
        view, back = self.view, self._pass.back
        if view is None or back is None:
            return output
        states = last_state(output)
        whole = torch.cat((states, view.states(len(states)).to(states.dtype)), 1)
        states = whole.gather(1, back[..., None].expand(-1, -1, whole.shape[-1]))
        return replace_last_state(output, states)

    def _run(self, inputs: dict[str, Any], groups: Groups, text: Tensor) -> SharedPrefix | None:
        """Run prompts and opening once for each group of rows. None where there is neither."""
        positions = inputs.get("position_ids")
        if positions is not None and positions.dim() != 2:
            return None
        opening = self._opening(inputs, groups)
        names = [n for n in groups.names if opening or self.prompts.length(n)]
        if not names:
            return None
        lengths = [self.prompts.length(n) + opening for n in names]
        extra = max(lengths)
        self.prompts.check_room(text.shape[1], extra - opening)
        ids = self._ids(inputs, opening)
        if ids is not None and self.tokens.pieces:
            self.tokens.begin_prefix(names, ids, [self.prompts.length(n) for n in names])
        recorded, states = self._alone(names, [self._embeds(n, ids) for n in names])
        first = self._first(inputs, text)
        return SharedPrefix(
            groups.names, tuple(names), tuple(lengths), opening, first, recorded, states
        )

    def keys_and_values(self, names: Names) -> KeysAndValues:
        """The keys and values of these inlays' prompts: site name -> each `[1, H, P, K]`."""
        return self._alone([names], [self._embeds(names, None)])[0]

    def _alone(self, names: list[Names], rows: list[Tensor]) -> tuple[KeysAndValues, Tensor]:
        """Run the prefix of each group, as a batch of its own.

        Shorter ones are padded at the end, which nothing before it sees. Of a mask of ones
        transformers asks the device whether it masks anything; so a device gets the whole mask,
        and the CPU the ones, without which attention is faster.
        """
        extra = max(map(len, rows))
        embeds = torch.stack([F.pad(row, (0, 0, 0, extra - len(row))) for row in rows])
        recorded: KeysAndValues = {}
        start, place = self.stack.position_start, torch.arange(extra, device=embeds.device)
        positions = torch.stack([place + (start + self.state.shift(n)) for n in names])
        whole = (place <= place[:, None])[None, None]
        mask = torch.ones_like(positions) if readable(embeds) else whole
        bound, context = self.routing.bound, self.state.context
        try:
            self.routing.bound = tuple(names)
            self.state.context = replace(
                context, mask=None, continues=False, cache=None, batch=len(names)
            )
            self.attention_pass.record = recorded
            with _not_checkpointed(self.stack):
                states = self.stack.run_without_hooks(
                    inputs_embeds=embeds,
                    attention_mask=mask,
                    position_ids=positions,
                )
        finally:
            self.attention_pass.record = None
            self.tokens.positions = None
            self.routing.bound, self.state.context = bound, context
        return recorded, states

    def _ids(self, inputs: dict[str, Any], opening: int) -> Tensor | None:
        """The ids of the opening, `[C]`; None where there is none."""
        if not opening:
            return None
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        if mask is None:
            return ids[0, :opening]
        place = torch.arange(opening, device=ids.device)
        return ids[0].gather(0, place + leading_padding(mask[:1])[0])

    def _embeds(self, names: Names, ids: Tensor | None) -> Tensor:
        """The input embeddings of one group's prefix, `[P, D]`."""
        dtype = self.stack.dtype
        parts = [piece().to(dtype) for piece in self.prompts.of(names)]
        if ids is not None:
            parts.append(self.tokens.embed_for(names, ids).to(dtype))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _first(self, inputs: dict[str, Any], text: Tensor) -> Tensor | None:
        """How far from its first position each row's text begins, `[B, 1]`, by given positions.

        None where none are given, and for tables: there a position means itself, and not the
        distance to others.
        """
        positions, mask = inputs.get("position_ids"), padding_mask(inputs)
        if positions is None or self.absolute:
            return None
        positions = positions.expand(len(text), -1)
        if mask is None:
            return positions[:, :1] - self.stack.position_start
        lead = leading_padding(mask).clamp(max=positions.shape[1] - 1)
        return positions.gather(1, lead) - self.stack.position_start

    def _opening(self, inputs: dict[str, Any], groups: Groups) -> int:
        """How many tokens all rows begin with, where it pays to run them once."""
        ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
        plain = not any(inputs.get(key) for key in ("output_attentions", "output_hidden_states"))
        config = self.stack.config
        plain = plain and not (config.output_attentions or config.output_hidden_states)
        if ids is None or ids.shape[0] < 2 or not plain or self.stack.window is not None:
            return 0
        if inputs.get("token_type_ids") is not None or is_packed(self.stack, inputs):
            return 0
        if mask is not None and (not isinstance(mask, Tensor) or mask.dim() != 2):
            return 0
        batch, length = ids.shape
        if length <= SHORTEST:
            return 0
        opening = self.openings.length(ids, mask, inputs.get("position_ids"))
        saved = opening * (batch - len(groups.names))
        return opening if opening >= SHORTEST and saved * WORTH >= batch * length else 0

    def _positions(
        self, inputs: dict[str, Any], text: Tensor, goes_on: bool, prefix: SharedPrefix
    ) -> Tensor:
        """Position ids of the text as if nothing stood before it, `[B, T]`."""
        batch, length = text.shape[:2]
        positions, mask = inputs.get("position_ids"), inputs.get("attention_mask")
        if positions is not None:
            positions = positions.expand(batch, -1)
            return positions if prefix.first is None else positions - prefix.first
        if isinstance(mask, Tensor) and mask.dim() == 2:
            counted = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
        else:
            first = cached(inputs) + (prefix.opening if goes_on else 0)
            counted = arange(text, first).expand(batch, -1)
        return counted + self.stack.position_start

    def _without_opening(
        self, inputs: dict[str, Any], opening: int, text: Tensor, goes_on: bool, view: PrefixView
    ) -> dict[str, Any]:
        batch, length = text.shape[:2]
        mask = inputs.get("attention_mask")
        lead = text.new_zeros(batch, 1, dtype=torch.long)
        if mask is not None:
            lead = leading_padding(mask)
            remaining = _remaining(mask.shape[1] - opening, lead, opening)
            inputs = {**inputs, "attention_mask": mask.gather(1, remaining)}
        if goes_on:
            return inputs
        remaining = _remaining(length - opening, lead, opening)
        place = torch.arange(length, device=text.device)
        in_text = torch.where(place < lead, place, place - opening)
        in_prefix = length - opening + view.shift + place - lead
        of_opening = (place >= lead) & (place < lead + opening)
        self._pass.back = torch.where(of_opening, in_prefix, in_text)
        return {
            **inputs,
            "input_ids": inputs["input_ids"].gather(1, remaining),
            "position_ids": inputs["position_ids"].gather(1, remaining),
        }


def _remaining(length: int, lead: Tensor, opening: int) -> Tensor:
    """Which columns stay, `[B, length]`, when `opening` go after each row's padding `[B, 1]`."""
    place = torch.arange(length, device=lead.device)
    return torch.where(place < lead, place, place + opening)


@contextmanager
def _not_checkpointed(stack: Stack) -> Iterator[None]:
    """Keep what the blocks of the prefix need for backward: it is short, so that is cheap.

    Blocks that other threads run meanwhile keep it too, until no thread is inside any more. In a
    compiled pass, which can hold no lock, the prefix is checkpointed like the rest.
    """
    if torch.compiler.is_compiling() or (not stack.checkpointed and stack not in _PAUSED):
        yield
        return
    with _PAUSING:
        inside, layers = _PAUSED.get(stack, (0, stack.checkpointed))
        _PAUSED[stack] = (inside + 1, layers)
        for layer in layers:
            layer.gradient_checkpointing = False
    try:
        yield
    finally:
        with _PAUSING:
            inside, layers = _PAUSED[stack]
            if inside > 1:
                _PAUSED[stack] = (inside - 1, layers)
            else:
                for layer in layers:
                    layer.gradient_checkpointing = True
                del _PAUSED[stack]  # last: whoever finds neither has nothing to wait for
