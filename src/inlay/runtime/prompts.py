"""Prompts: additional positions in a stack's input, which heads and losses never see.

A row is laid out as `[padding][prompt][text][padding]` (`[CLS]` before the prompt where a
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
from transformers.cache_utils import EncoderDecoderCache, StaticCache, StaticLayer
from typing_extensions import override

from inlay.architectures.chart import Chart, last_state
from inlay.core.per_thread import PerThread
from inlay.core.piece import Piece, PromptVectors
from inlay.core.site import Site
from inlay.errors import DataError, PortError, RowsError
from inlay.runtime.embeds import check_vectors
from inlay.runtime.port import Port, StackState, accepts
from inlay.runtime.positions import is_packed
from inlay.runtime.routing import Groups, Names
from inlay.runtime.stack_inputs import arange, cached, continues, leading_padding, text_of
from inlay.runtime.virtual_tokens import VirtualTokenPort, check_embed

BEFORE = "inlay_before"
"""The attribute under which a cache keeps what stands before the texts in it."""

OTHER_ROWS = (
    "this cache was filled without the prompt of these rows; "
    "start the generation again after choosing the rows"
)

NO_INLAYS = Groups(((),), None)
"""Rows of the bare base."""

FIRST_MASK = "inlay_first_mask"
"""The attribute under which a static cache keeps the padding mask of its first pass."""


@dataclass(frozen=True)
class PromptLayout:
    """Where everything stands in the widened rows.

    extra: P, positions of the longest prompt. lengths `[B]`: positions of each row's prompt.
    start `[B]`: where a row's prompt begins. source `[B, T + P]`, back `[B, T]`: see above.
    mask `[B, T + P]`: 1 = text or prompt. served: the inlays with prompts of every group of rows.
    """

    extra: int
    lengths: Tensor
    start: Tensor
    source: Tensor
    back: Tensor
    mask: Tensor
    served: tuple[Names, ...]

    def check(self, groups: Groups) -> None:
        """Raise RowsError for rows that a cache with this layout was not filled for."""
        if any(names not in self.served for names in groups.names):
            raise RowsError(OTHER_ROWS)


class _Pass(PerThread):
    __slots__ = ()
    layout: PromptLayout | None = None


@accepts(PromptVectors)
class PromptPort(Port):
    """All prompts of all inlays before one stack.

    layout: of the pass under way in this thread.
    """

    label = "prompts"

    def __init__(self, state: StackState):
        super().__init__(state)
        self.tokens = state.port(VirtualTokenPort)
        self.pieces: dict[str, list[PromptVectors]] = {}
        self._pass = _Pass()

    @property
    def layout(self) -> PromptLayout | None:  # noqa: D102
        return self._pass.layout

    @layout.setter
    def layout(self, layout: PromptLayout | None) -> None:
        self._pass.layout = layout

    @classmethod
    @override
    def check(cls, method: str, site: Site, piece: Piece, chart: Chart) -> None:
        check_embed(method, site)
        check_vectors(method, site, chart)
        if chart.stack(site.stack).is_recurrent:
            raise PortError(
                f"{method} puts a prompt before the first token of a text, and "
                f"{type(chart.base).__name__} does not tell which pass begins a text; use virtual "
                "tokens instead: PTuning, with {p*3} in the template"
            )

    @override
    def add(self, name: str, site: Site, piece: Piece) -> None:
        assert isinstance(piece, PromptVectors)
        self.pieces.setdefault(name, []).append(piece)

    @override
    def remove(self, name: str) -> None:
        self.pieces.pop(name, None)

    def of(self, names: Names) -> list[PromptVectors]:
        """The pieces of some inlays, in order."""
        return [piece for name in names for piece in self.pieces.get(name, ())]

    def length(self, names: Names) -> int:
        """How many positions these inlays take."""
        return sum(piece.length for piece in self.of(names))

    def longest(self) -> int:
        """The length of the longest prompt that any row of the pass under way has."""
        return max(self.length(names) for names in self.routing.bound)

    def check_room(self, length: int, extra: int) -> None:
        """Raise DataError where a text and a prompt of these lengths are too long together."""
        limit = self.state.limit
        if limit is not None and length + extra > limit:
            raise DataError(
                f"a text of {length} tokens and a prompt of {extra} are longer than the "
                f"{limit} positions of this model; shorten the text or the prompt"
            )

    def insert(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Put the prompts into the stack's inputs."""
        text = text_of(inputs)
        if text is None:
            return inputs
        groups = self.routing.groups(text.shape[0], self.pieces)
        goes_on = continues(inputs)
        if goes_on:
            kept = vars(inputs["past_key_values"]).get(BEFORE)
            if isinstance(kept, PromptLayout):
                kept.check(groups or NO_INLAYS)
        if groups is None:
            return inputs
        if is_packed(self.stack, inputs):
            raise PortError(
                f"{type(self.state.chart.base).__name__} reads a prompt as part of its row, and "
                "these rows hold several texts each; give every text a row of its own"
            )
        if goes_on:
            return self._continue(inputs, groups, text)
        mask = flat_mask(inputs.get("attention_mask"), inputs.get("past_key_values"), text.shape[1])
        return self._begin(inputs, groups, mask, text)

    def _begin(
        self, inputs: dict[str, Any], groups: Groups, mask: Tensor | None, text: Tensor
    ) -> dict[str, Any]:
        batch, length = text.shape[:2]
        layout = self.layout = self.plan(groups, batch, length, mask, text.device)
        self.check_room(length, layout.extra)
        embeds, beside = inputs.get("inputs_embeds"), self._looked_up(inputs, layout)
        if embeds is None:
            embeds = self.tokens.embed(inputs["input_ids"])
        self.tokens.move(layout.source, layout.extra)
        prompts = self._prompts(groups, layout.extra, batch).to(embeds.dtype)
        index = layout.source[..., None].expand(-1, -1, embeds.shape[-1])
        inputs_with_prompt = {
            **inputs,
            "input_ids": None,
            "inputs_embeds": torch.cat((embeds, prompts), 1).gather(1, index),
            "attention_mask": layout.mask,
            **beside,
        }
        if self.stack.takes("position_ids"):
            inputs_with_prompt["position_ids"] = self._positions(inputs.get("position_ids"), layout)
        types = inputs.get("token_type_ids")
        if types is not None:
            widened = torch.cat((types, types[:, :1].expand(-1, layout.extra)), 1)
            inputs_with_prompt["token_type_ids"] = widened.gather(1, layout.source)
        self._lengthen_cache(inputs.get("past_key_values"), layout.extra)
        return inputs_with_prompt

    def _looked_up(self, inputs: dict[str, Any], layout: PromptLayout) -> dict[str, Tensor]:
        """What the stack looks up by ids besides embeddings, for the widened rows.

        Raises DataError where it needs ids and was given embeddings.
        """
        if self.stack.beside_ids is None:
            return {}
        ids = inputs.get("input_ids")
        if ids is None:
            raise DataError(
                f"{type(self.stack.module).__name__} looks up more than embeddings by token ids; "
                "with a prompt give it input_ids, not inputs_embeds"
            )
        without = ids.new_full((len(ids), layout.extra), self.stack.vocabulary)
        return self.stack.looked_up(torch.cat((ids, without), 1).gather(1, layout.source))

    def _continue(self, inputs: dict[str, Any], groups: Groups, text: Tensor) -> dict[str, Any]:
        """A later step of generation: the prompt is in the cache already."""
        before = vars(inputs["past_key_values"]).get(BEFORE)
        if not isinstance(before, PromptLayout):
            raise RowsError(OTHER_ROWS)
        mask, columns = self._mask_so_far(inputs, groups, text, before)
        inputs_with_prompt = {**inputs, "attention_mask": mask}
        if self.stack.takes("position_ids"):
            of_text = inputs.get("position_ids")
            if of_text is None:
                counted = mask.long().cumsum(-1).gather(1, columns.expand(len(text), -1)) - 1
                inputs_with_prompt["position_ids"] = counted + self.stack.position_start
            else:
                inputs_with_prompt["position_ids"] = of_text + before.lengths[:, None]
        return inputs_with_prompt

    def _mask_so_far(
        self, inputs: dict[str, Any], groups: Groups, text: Tensor, before: PromptLayout
    ) -> tuple[Tensor, Tensor]:
        """The mask over cache and text with the prompts, and the columns of the text, `[1, T]`.

        The length of a static cache is a number on its device, which is not asked for: the mask
        that the caller gave says how many tokens there are, and else it covers all that the cache
        has room for.
        """
        batch, length = text.shape[:2]
        given, positions = inputs.get("attention_mask"), cached(inputs)
        if not isinstance(positions, Tensor):
            tokens = positions - max(self._lengths(groups)) + length
            flat = flat_mask(given, inputs["past_key_values"], tokens)
            if flat is not None and flat.shape[1] != tokens:
                raise RowsError(OTHER_ROWS)
        elif isinstance(given, Tensor) and given.dim() == 2:
            tokens, flat = given.shape[1], given
        else:
            return _whole_mask(before, inputs["past_key_values"]), arange(text, positions)
        mask = self.plan(groups, batch, tokens, flat, text.device).mask
        return mask, arange(text, mask.shape[1] - length)

    def trim(self, output: Any) -> Any:
        """Cut the prompts' positions off the stack's output."""
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
        output["last_hidden_state"] = cut(last_state(output))
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(cut(states) for states in output.hidden_states)
        if output.get("attentions") is not None:
            output["attentions"] = tuple(cut_queries(weights) for weights in output.attentions)
        return output

    def widened(self, mask: Tensor | None, states: Tensor) -> Tensor | None:
        """The mask over states that kept their prompts, from the mask over the text alone."""
        layout = self._layout_of(mask, states)
        return mask if layout is None else layout.mask

    def narrowed(self, mask: Tensor | None, states: Tensor) -> Tensor:
        """The text's own states `[B, T, D]` out of states that kept their prompts."""
        layout = self._layout_of(mask, states)
        return states if layout is None else _texts(layout, states)

    def _layout_of(self, mask: Tensor | None, states: Tensor) -> PromptLayout | None:
        """The layout of states that kept their prompts; None where there are none."""
        batch = states.shape[0]
        groups = self.routing.groups(batch, self.pieces)
        if groups is None:
            return None
        length = states.shape[1] - max(self._lengths(groups))
        return self.plan(groups, batch, length, mask, states.device)

    def plan(
        self, groups: Groups, batch: int, length: int, mask: Tensor | None, device: torch.device
    ) -> PromptLayout:
        """The layout of a batch whose text is `length` long with padding `mask` `[B, length]`."""
        extra = max(self._lengths(groups))
        lengths = groups.by_row(self._lengths(groups), device).expand(batch)
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.long, device=device)
        lead = leading_padding(mask).squeeze(1)
        lead = torch.where(lead == length, 0, lead)
        unused = (extra - lengths) if self.stack.causal else torch.zeros_like(lengths)
        start = lead + unused + (1 if self.stack.keeps_first else 0)
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
        return PromptLayout(extra, lengths, start, source, back, wide, groups.names)

    def _lengths(self, groups: Groups) -> list[int]:
        return [self.length(names) for names in groups.names]

    def _prompts(self, groups: Groups, extra: int, batch: int) -> Tensor:
        """The prompt of every row, `[B, P, D]`, with zeros after the shorter ones."""
        vectors = [[piece() for piece in self.of(names)] for names in groups.names]
        empty = next(v for group in vectors for v in group).new_zeros(0, self.stack.width)
        rows = [torch.cat([empty, *group]) for group in vectors]
        stacked = torch.stack([F.pad(r, (0, 0, 0, extra - len(r))) for r in rows])
        if groups.group is None:
            return stacked.expand(batch, -1, -1)
        return stacked[groups.index(stacked.device)]

    def _positions(self, positions: Tensor | None, layout: PromptLayout) -> Tensor:
        """Position ids of the widened rows, `[B, T + P]`: the text's, moved after the prompt."""
        if positions is None:
            counted = layout.mask.long().cumsum(-1) - 1
            return counted.clamp(min=0) + self.stack.position_start
        positions = positions.expand(len(layout.lengths), -1)
        length = positions.shape[1]
        first = layout.back.new_zeros(len(positions), 1)
        at = (layout.back >= layout.start[:, None]).long().argmax(-1, keepdim=True)
        begin = positions.gather(1, torch.where(at < length, at, first))
        if self.state.chart.family.position_table:  # there a position means itself
            kept = int(self.stack.keeps_first)
            begin = torch.full_like(begin, self.stack.position_start + kept)
        prompt = begin + torch.arange(layout.extra, device=positions.device)
        after = layout.back >= layout.start[:, None]
        text = torch.where(after, positions + layout.lengths[:, None], positions)
        return torch.cat((text, prompt), 1).gather(1, layout.source)

    def _lengthen_cache(self, cache: Any, extra: int) -> None:
        """Make an empty static cache long enough for the prompt as well."""
        if isinstance(cache, StaticCache):
            for layer in cache.layers:
                if isinstance(layer, StaticLayer) and not layer.is_initialized:
                    layer.max_cache_len += extra


def _texts(layout: PromptLayout, states: Tensor) -> Tensor:
    """The states of the text, `[B, T, D]`, out of those of the widened rows, `[B, T + P, D]`."""
    return states.gather(1, layout.back[..., None].expand(-1, -1, states.shape[-1]))


def _whole_mask(before: PromptLayout, cache: StaticCache) -> Tensor:
    """The mask over all that a static cache has room for, `[B, S]`; its length is not asked for.

    What follows the first pass is text; what is still to come, no query sees.
    """
    room = max(layer.max_cache_len for layer in cache.layers if isinstance(layer, StaticLayer))
    return F.pad(before.mask, (0, room - before.mask.shape[1]), value=1)


def flat_mask(mask: Any, cache: Any, tokens: int | Tensor) -> Tensor | None:
    """The padding mask `[B, tokens]` behind whatever form of mask the stack was given.

    `generate` with a static cache builds masks `[B, 1, T, length of the cache]` beforehand. In the
    first pass a position is text where any query sees it; that is noted on the cache, for later
    masks show no more than a window. Raises PortError for other masks of four dimensions, which
    may say anything.
    """
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None or mask.dim() == 2:
        return mask
    if isinstance(cache, EncoderDecoderCache):
        cache = cache.self_attention_cache
    if not isinstance(cache, StaticCache):
        raise PortError(
            "a prompt needs a padding mask of shape [batch, positions]; "
            f"this attention_mask has shape {list(mask.shape)}"
        )
    first = vars(cache).get(FIRST_MASK)
    if first is None:
        visible = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
        first = visible.any(1).any(1)[:, : int(tokens)].long()
        setattr(cache, FIRST_MASK, first)
    return F.pad(first, (0, int(tokens) - first.shape[1]), value=1)
