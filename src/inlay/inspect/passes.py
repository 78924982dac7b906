"""How passes are run for looking inside: one inlay alone, every prompt as a part of its row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from inlay.handle import Inlay, rows
from inlay.runtime.container import stack_hooks


@contextmanager
def served_alone(handle: Inlay) -> Iterator[None]:
    """Inside, every row is served by this inlay, enabled or not, and by no other."""
    enabled = handle.enabled
    handle.enabled = True
    try:
        with rows(handle.model, [handle.name]):
            yield
    finally:
        handle.enabled = enabled


@contextmanager
def whole_rows(model: PreTrainedModel) -> Iterator[None]:
    """Inside, every row runs whole: neither prompts nor common beginnings run apart from it."""
    prefixes = [hooks.prefix for hooks in stack_hooks(model) if hooks.prefix is not None]
    enabled = [prefix.enabled for prefix in prefixes]
    try:
        for prefix in prefixes:
            prefix.enabled = False
        yield
    finally:
        for prefix, before in zip(prefixes, enabled, strict=True):
            prefix.enabled = before


@dataclass(frozen=True, eq=False)
class Positions:
    """Which positions of the rows in a stack are what, with prompts where the stack puts them.

    text:   `[B, P + T]`, without padding and without prompts.
    prompt: `[B, P + T]`, prompts and virtual tokens; None where there are none.
    """

    text: Tensor
    prompt: Tensor | None


def positions_of(handle: Inlay, batch: Mapping[str, Tensor]) -> dict[str, Positions]:
    """The positions of a batch, by the name of the stack; nothing of stacks that read no texts.

    batch: what the model's forward takes, with `attention_mask` where there is padding.
    """
    positions: dict[str, Positions] = {}
    stacks = stack_hooks(handle.model)
    stacks = stacks[: 1 if handle.chart.decoder is None else 2]
    for hooks, side in zip(stacks, ("", "decoder_"), strict=False):
        ids, mask = batch.get(f"{side}input_ids"), batch.get(f"{side}attention_mask")
        if ids is None:
            continue
        mask = torch.ones_like(ids) if mask is None else mask
        prompt = torch.zeros_like(ids, dtype=torch.bool)
        if handle.name in hooks.tokens.pieces:
            prompt = ids >= hooks.tokens.first_id
        groups = hooks.routing.groups(len(ids), hooks.prompts.pieces)
        if groups is not None:
            layout = hooks.prompts.plan(groups, len(ids), ids.shape[1], mask, ids.device)
            prompt = F.pad(prompt, (0, layout.extra), value=True).gather(1, layout.source)
            mask = layout.mask
        text = mask.bool() & ~prompt
        positions[hooks.stack.name] = Positions(text, prompt if bool(prompt.any()) else None)
    return positions
