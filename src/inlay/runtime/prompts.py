"""The slots port: more positions in the backbone's input, where heads and losses never see them.

A row is laid out as `[padding][prompt][text][padding]` (`[CLS]` in front of the prompt where a
head reads position 0), so that what a row computes does not depend on the rest of the batch. Rows
with shorter prompts get more padding. Two index tensors describe it: `source`, which position of
`text + prompt` stands where, and `back`, where each position of the text went.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import StaticCache, StaticLayer

from inlay.architectures.chart import Stack
from inlay.core.piece import PromptVectors
from inlay.errors import DataError, PortError, RowsError
from inlay.runtime.routing import Groups, Names, Routing
from inlay.runtime.stack_inputs import cached, text_of
from inlay.runtime.virtual_tokens import VirtualTokenPort

NOTE = "inlay_note"
"""The attribute under which a cache keeps what stood in front of the texts in it."""

ANOTHER = (
    "this cache was filled without the prompt of these rows; "
    "begin generation again with the rows it shall use"
)

FIRST = "inlay_first_mask"
"""The attribute under which a static cache keeps the padding mask of its first pass."""


@dataclass(frozen=True)
class Layout:
    """Where everything stands in the widened rows.

    extra: P, slots of the longest prompt. lengths `[B]`: slots of each row's prompt.
    start `[B]`: where a row's prompt begins. source `[B, T + P]`, back `[B, T]`: see above.
    mask `[B, T + P]`: 1 = text or prompt.
    """

    extra: int
    lengths: Tensor
    start: Tensor
    source: Tensor
    back: Tensor
    mask: Tensor


class PromptPort:
    """All slot pieces of all inlays in front of one stack."""

    def __init__(self, stack: Stack, route: Routing, tokens: VirtualTokenPort, limit: int | None):
        self.stack = stack
        self.route = route
        self.tokens = tokens
        self.limit = limit
        self.pieces: dict[str, list[PromptVectors]] = {}
        self.layout: Layout | None = None

    def of(self, names: Names) -> list[PromptVectors]:
        """The pieces of some inlays, in order."""
        return [piece for name in names for piece in self.pieces.get(name, ())]

    def length(self, names: Names) -> int:
        """How many positions these inlays take."""
        return sum(piece.length for piece in self.of(names))

    def longest(self) -> int:
        """The positions of the longest prompt that any row of the pass under way has."""
        return max(self.length(names) for names in self.route.bound)

    def check_room(self, length: int, extra: int) -> None:
        """Raise DataError where a text of that length and a prompt of P are too long together."""
        if self.limit is not None and length + extra > self.limit:
            raise DataError(
                f"a text of {length} tokens and a prompt of {extra} are longer than the "
                f"{self.limit} positions of this model; shorten the text or the prompt"
            )

    def enter(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The stack's inputs with the prompts in them."""
        self.layout = None
        given = text_of(inputs)
        if given is None:
            return inputs
        groups = self.route.groups(given.shape[0], self.pieces)
        if groups is None:
            return inputs
        before = cached(inputs)
        seen = given.shape[1] + (before - max(self._lengths(groups)) if before else 0)
        mask = flat_mask(inputs.get("attention_mask"), inputs.get("past_key_values"), seen)
        if before:
            return self._continue(inputs, groups, mask, seen, given)
        return self._begin(inputs, groups, mask, given)

    def _begin(
        self, inputs: dict[str, Any], groups: Groups, mask: Tensor | None, given: Tensor
    ) -> dict[str, Any]:
        batch, length = given.shape[:2]
        layout = self.layout = self.plan(groups, batch, length, mask, given.device)
        self.check_room(length, layout.extra)
        embeds = inputs.get("inputs_embeds")
        if embeds is None:
            embeds = self.tokens.embed(inputs["input_ids"])
        self.tokens.move(layout.source, layout.extra)
        prompts = self._prompts(groups, layout.extra, batch).to(embeds.dtype)
        index = layout.source[..., None].expand(-1, -1, embeds.shape[-1])
        changed = {
            **inputs,
            "input_ids": None,
            "inputs_embeds": torch.cat((embeds, prompts), 1).gather(1, index),
            "attention_mask": layout.mask,
        }
        if self.stack.takes("position_ids"):
            changed["position_ids"] = self._positions(inputs.get("position_ids"), mask, layout)
        types = inputs.get("token_type_ids")
        if types is not None:
            widened = torch.cat((types, types[:, :1].expand(-1, layout.extra)), 1)
            changed["token_type_ids"] = widened.gather(1, layout.source)
        self._room(inputs.get("past_key_values"), layout.extra)
        return changed

    def _continue(
        self,
        inputs: dict[str, Any],
        groups: Groups,
        mask: Tensor | None,
        seen: int,
        given: Tensor,
    ) -> dict[str, Any]:
        """A later step of generation, `seen` tokens in all: the prompt is in the cache already."""
        batch, length = given.shape[:2]
        note = vars(inputs["past_key_values"]).get(NOTE)
        if not isinstance(note, Layout) or (mask is not None and mask.shape[1] != seen):
            raise RowsError(ANOTHER)
        layout = self.plan(groups, batch, seen, mask, given.device)
        changed = {**inputs, "attention_mask": layout.mask}
        if self.stack.takes("position_ids"):
            positions = inputs.get("position_ids")
            if positions is None:
                counted = layout.mask.long().cumsum(-1)[:, -length:] - 1
                changed["position_ids"] = counted + self.stack.position_start
            else:
                changed["position_ids"] = positions + layout.lengths[:, None]
        return changed

    def leave(self, output: Any) -> Any:
        """The stack's output without the prompt's positions."""
        layout = self.layout
        if layout is None:
            return output

        def cut(states: Tensor | None) -> Tensor | None:
            return None if states is None else _texts(layout, states)

        def cut_queries(attention: Tensor | None) -> Tensor | None:
            if attention is None:
                return None
            index = layout.back[:, None, :, None]
            index = index.expand(-1, attention.shape[1], -1, attention.shape[3])
            return attention.gather(2, index)

        if isinstance(output, tuple):
            return (cut(output[0]), *output[1:])
        output["last_hidden_state"] = cut(output.last_hidden_state)
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(cut(states) for states in output.hidden_states)
        if output.get("attentions") is not None:
            output["attentions"] = tuple(cut_queries(one) for one in output.attentions)
        return output

    def widened(self, mask: Tensor | None, states: Tensor) -> Tensor | None:
        """The mask over states that kept their prompts, from the mask over the text alone."""
        layout = self._kept(mask, states)
        return mask if layout is None else layout.mask

    def narrowed(self, mask: Tensor | None, states: Tensor) -> Tensor:
        """The text's own states `[B, T, D]` out of states that kept their prompts."""
        layout = self._kept(mask, states)
        return states if layout is None else _texts(layout, states)

    def _kept(self, mask: Tensor | None, states: Tensor) -> Layout | None:
        """The layout of states that kept their prompts; None where there are none."""
        batch = states.shape[0]
        groups = self.route.groups(batch, self.pieces)
        if groups is None:
            return None
        length = states.shape[1] - max(self._lengths(groups))
        return self.plan(groups, batch, length, mask, states.device)

    def plan(
        self, groups: Groups, batch: int, length: int, mask: Tensor | None, device: torch.device
    ) -> Layout:
        """The layout of a batch whose text is `length` long with padding `mask` `[B, length]`."""
        counts = torch.tensor(self._lengths(groups), device=device)
        extra = int(max(self._lengths(groups)))
        rows = None if groups.group is None else groups.index(device)
        lengths = counts.expand(batch) if rows is None else counts[rows]
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.long, device=device)
        lead = (mask.long().cumsum(-1) == 0).sum(-1)
        lead = torch.where(lead == length, 0, lead)
        unused = (extra - lengths) if self.stack.causal else torch.zeros_like(lengths)
        start = lead + unused + (1 if self.stack.first_stays else 0)
        text = torch.arange(length, device=device)
        back = text + unused[:, None]
        back = torch.where(back >= start[:, None], back + lengths[:, None], back)
        place = torch.arange(length + extra, device=device)[None]
        begin, stop = start[:, None], (start + lengths)[:, None]
        prompt = (place >= begin) & (place < stop)
        moved = torch.where(place < begin, place - unused[:, None], place - unused[:, None] - lengths[:, None])  # fmt: skip  # noqa: E501
        empty = (moved < 0) | (moved >= length)
        source = torch.where(prompt, length + place - begin, moved.clamp(0, length - 1))
        wide = F.pad(mask, (0, extra), value=1).gather(1, source)
        wide = wide.masked_fill(empty & ~prompt, 0)
        return Layout(extra, lengths, start, source, back, wide)

    def _lengths(self, groups: Groups) -> list[int]:
        return [self.length(names) for names in groups.names]

    def _prompts(self, groups: Groups, extra: int, batch: int) -> Tensor:
        made = []
        for names in groups.names:
            parts = [piece() for piece in self.of(names)]
            width = self._width()
            rows = torch.cat(parts) if parts else next(self._any()).new_zeros(0, width)
            made.append(F.pad(rows, (0, 0, 0, extra - len(rows))))
        stacked = torch.stack(made)
        if groups.group is None:
            return stacked.expand(batch, -1, -1)
        return stacked[groups.index(stacked.device)]

    def _any(self) -> Any:
        for pieces in self.pieces.values():
            for piece in pieces:
                yield from piece.parameters()

    def _width(self) -> int:
        assert self.stack.embed is not None and isinstance(self.stack.embed.weight, Tensor)
        return int(self.stack.embed.weight.shape[1])

    def _positions(self, given: Tensor | None, mask: Tensor | None, layout: Layout) -> Tensor:
        """Position ids of the widened rows, `[B, T + P]`: the text's, moved behind the prompt."""
        if given is None:
            counted = layout.mask.long().cumsum(-1) - 1
            return counted.clamp(min=0) + self.stack.position_start
        given = given.expand(len(layout.lengths), -1)
        length = given.shape[1]
        first = layout.back.new_zeros(len(given), 1)
        at = (layout.back >= layout.start[:, None]).long().argmax(-1, keepdim=True)
        begin = given.gather(1, torch.where(at < length, at, first))
        prompt = begin + torch.arange(layout.extra, device=given.device)
        behind = layout.back >= layout.start[:, None]
        text = torch.where(behind, given + layout.lengths[:, None], given)
        return torch.cat((text, prompt), 1).gather(1, layout.source)

    def _room(self, cache: Any, extra: int) -> None:
        """Make an empty static cache long enough for the prompt as well."""
        if isinstance(cache, StaticCache):
            for layer in cache.layers:
                if isinstance(layer, StaticLayer) and not layer.is_initialized:
                    layer.max_cache_len += extra


def _texts(layout: Layout, states: Tensor) -> Tensor:
    """The states of the text, `[B, T, D]`, out of those of the widened rows, `[B, T + P, D]`."""
    return states.gather(1, layout.back[..., None].expand(-1, -1, states.shape[-1]))


def flat_mask(mask: Any, cache: Any, seen: int) -> Tensor | None:
    """The padding mask `[B, seen]` behind whatever form of mask the stack was given.

    `generate` with a static cache builds masks `[B, 1, T, length of the cache]` beforehand. In the
    first pass a position is text where any query sees it; that is noted on the cache, for later
    masks show no more than a window. Raises PortError for other masks of four dimensions, which
    may say anything.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None or mask.dim() == 2:
        return mask
    if not isinstance(cache, StaticCache):
        raise PortError(
            "a prompt needs a padding mask of shape [batch, positions]; "
            f"this attention_mask has shape {list(mask.shape)}"
        )
    first = vars(cache).get(FIRST)
    if first is None:
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        first = visible.any(1).any(1)[:, :seen].long()
        setattr(cache, FIRST, first)
    return F.pad(first, (0, seen - first.shape[1]), value=1)
