"""Position ids of a pass whose caller gave none, row by row.

A left-padded row whose positions are not counted from its first token stands at other positions
than the same row alone. Keys, prompts and virtual tokens that are put before a text would notice
that; a row that has none of them gets what the base alone gives it:

    row           inlays        mask        positions
    0             Prefix        0 0 1 1 1   0 0 0 1 2
    1             LoRA, none    0 0 1 1 1   0 1 2 3 4   (GPT-2; OPT counts by itself)

What the base alone does is measured, once for each stack that ever needs it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inlay.architectures.chart import Stack
from inlay.core.modes import evaluating
from inlay.errors import DataError
from inlay.runtime.port import StackState
from inlay.runtime.routing import Groups
from inlay.runtime.stack_inputs import arange, padding_mask, text_of, with_positions

CLOSE = 1e-3
"""How far outputs of the same positions may differ, relative to their size."""


class Positions:
    """Counts the positions of one stack's passes, where something stands before the texts."""

    def __init__(self, state: StackState):
        self.state = state
        self.stack = state.stack
        self._counts: bool | None = None

    def counted(self, inputs: dict[str, Any], groups: Groups) -> dict[str, Any]:
        """The inputs with position ids where none were given, and the stack takes any.

        groups: the rows, by the inlays that put something before the text.

        Raises DataError where rows without such an inlay would need positions that nobody knows.
        """
        counted = with_positions(self.stack, inputs)
        if counted is inputs or all(groups.names) or self._base_counts(inputs):
            return counted
        mask, text = padding_mask(inputs), text_of(inputs)
        assert mask is not None and text is not None
        served = [bool(names) for names in groups.names]
        rows = torch.tensor(served, device=text.device)[groups.index(text.device)]
        plain = arange(text, mask.shape[1] - text.shape[1]) + self.stack.position_start
        positions = torch.where(rows[:, None], counted["position_ids"], plain)
        return {**counted, "position_ids": positions}

    def _base_counts(self, inputs: dict[str, Any]) -> bool:
        """Whether the base counts positions from the mask by itself; else they are 0, 1, 2, …"""
        if self._counts is None and not torch.compiler.is_compiling():
            self._counts = self._measured(inputs)
        return bool(self._counts)

    def _measured(self, inputs: dict[str, Any]) -> bool:
        stack, text = self.stack, text_of(inputs)
        assert text is not None
        pad = stack.module.config.pad_token_id
        ids = torch.arange(1, 7, device=text.device)[None] % max(2, stack.vocabulary)
        ids[:, :2] = 0 if pad is None else pad
        mask = torch.tensor([[0, 0, 1, 1, 1, 1]], device=text.device)
        counted = (mask.cumsum(-1) - 1).clamp(min=0) + stack.position_start
        ways = (None, arange(ids, 0) + stack.position_start, counted)
        with evaluating(stack.module), self.state.nothing_serves():
            states = [
                stack.run_without_hooks(input_ids=ids, attention_mask=mask, position_ids=way)[:, 2:]
                for way in ways
            ]
        alone, plain, after_padding = states
        if _close(plain, alone):
            return False
        if _close(after_padding, alone):
            return True
        raise DataError(
            "rows with and without an inlay that needs positions stand in one batch, and which "
            f"positions {type(stack.module).__name__} gives to padded rows is not known; "
            "give position_ids"
        )


def is_packed(stack: Stack, inputs: dict[str, Any]) -> bool:
    """Whether a row holds several texts that do not see each other: their positions begin anew.

    A base looks for them where it is given neither a mask nor a cache.
    """
    positions = inputs.get("position_ids")
    if not stack.causal or not isinstance(positions, Tensor) or positions.dim() != 2:
        return False
    if inputs.get("attention_mask") is not None or _caches(stack, inputs):
        return False
    if positions.shape[1] < 2 or torch.compiler.is_compiling():  # a compiled pass cannot look
        return False
    return bool((positions.diff(dim=-1) != 1).any())


def _caches(stack: Stack, inputs: dict[str, Any]) -> bool:
    if inputs.get("past_key_values") is not None:
        return True
    if not stack.takes("use_cache") and "use_cache" not in inputs:
        return False
    asked = inputs.get("use_cache")
    return bool(stack.module.config.use_cache if asked is None else asked)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= CLOSE * b.abs().max())
