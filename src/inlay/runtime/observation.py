"""Watching a pass: its attention weights, and which positions of its rows are prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inlay.runtime.container import stack_hooks
from inlay.runtime.extra_kv import Observer


@contextmanager
def whole_rows(model: nn.Module) -> Iterator[None]:
    """Inside, every row runs whole: neither prompts nor common beginnings run apart from it."""
    prefixes = [
        (hooks.prefix, hooks.prefix.enabled)
        for hooks in stack_hooks(model)
        if hooks.prefix is not None
    ]
    try:
        for prefix, _ in prefixes:
            prefix.enabled = False
        yield
    finally:
        for prefix, enabled in prefixes:
            prefix.enabled = enabled


@contextmanager
def observed(model: nn.Module, observer: Observer) -> Iterator[None]:
    """Inside, the observer gets all attention weights, and every prompt runs as part of its row."""
    stacks = stack_hooks(model)
    try:
        for hooks in stacks:
            hooks.extra_kv.attention_pass.observer = observer
        with whole_rows(model):
            yield
    finally:
        for hooks in stacks:
            hooks.extra_kv.attention_pass.observer = None


def text_and_prompt(
    model: nn.Module, name: str, batch: Mapping[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Which positions of the rows that a stack sees are text, and which are prompt, by stack.

    Nothing of a stack for which the batch has no token ids.

    name: of the inlay whose virtual tokens count as prompt. batch: what the backbone takes.

    Both masks are `[B, P + T]`, with prompts where the stack puts them; padding is in neither.
    """
    positions = {}
    stacks = stack_hooks(model)
    sides = ("",) if stacks[0].state.chart.decoder is None else ("", "decoder_")
    for hooks, side in zip(stacks, sides, strict=False):
        ids, mask = batch.get(f"{side}input_ids"), batch.get(f"{side}attention_mask")
        if ids is None:
            continue
        mask = torch.ones_like(ids) if mask is None else mask
        prompt = torch.zeros_like(ids, dtype=torch.bool)
        if name in hooks.tokens.pieces:
            prompt = ids >= hooks.tokens.first_id
        groups = hooks.routing.groups(len(ids), hooks.prompts.pieces)
        if groups is not None:
            layout = hooks.prompts.plan(groups, len(ids), ids.shape[1], mask, ids.device)
            prompt = F.pad(prompt, (0, layout.extra), value=True).gather(1, layout.source)
            mask = layout.mask
        positions[hooks.stack.name] = mask.bool() & ~prompt, prompt
    return positions
