"""Position ids of a pass whose caller gave none, row by row.

A left-padded row whose positions are not counted from its first token stands at other positions
than the same row alone. Keys, prompts and virtual tokens that are put before a text would notice
that; a row that has none of them gets what the base alone gives it:

    row           inlays        mask        positions
    0             Prefix        0 0 1 1 1   0 0 0 1 2
    1             LoRA, none    0 0 1 1 1   0 1 2 3 4   (GPT-2)

What the base alone does is measured, once for each stack that ever needs it: GPT-2 numbers all
positions, OPT those that the mask shows, RoBERTa those that do not hold the padding token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inlay.architectures.chart import Stack
from inlay.core.modes import evaluating
from inlay.errors import DataError
from inlay.runtime.port import StackState
from inlay.runtime.routing import Groups
from inlay.runtime.stack_inputs import arange, padding_mask, text_of, with_positions

Numbering = Callable[[Stack, Tensor, Tensor], Tensor]
"""(stack, text `[B, T]` or `[B, T, D]`, mask `[B, S]`) -> position ids `[B or 1, T]`."""

CLOSE = 1e-3
"""How far outputs of the same positions may differ, relative to their size."""


class Positions:
    """Counts the positions of one stack's passes, where something stands before the texts."""

    def __init__(self, state: StackState):
        self.state = state
        self.stack = state.stack
        self._numbering: Numbering | None = None

    def counted(self, inputs: dict[str, Any], groups: Groups) -> dict[str, Any]:
        """The inputs with position ids where none were given, and the stack takes any.

        groups: the rows, by the inlays that put something before the text.

        Raises DataError where rows without such an inlay would need positions that nobody knows.
        """
        counted = with_positions(self.stack, inputs)
        mask, text = padding_mask(inputs), text_of(inputs)
        if counted is inputs or all(groups.names) or mask is None or text is None:
            return counted
        rows = groups.by_row([int(bool(names)) for names in groups.names], text.device).bool()
        plain = self._alone()(self.stack, text, mask)
        positions = torch.where(rows[:, None], counted["position_ids"], plain)
        return {**counted, "position_ids": positions}

    def _alone(self) -> Numbering:
        """How the base numbers positions where it is given none; in a graph it is not measured."""
        if self._numbering is None:
            if torch.compiler.is_compiling():
                return all_positions
            self._numbering = self._measured()
        return self._numbering

    def _measured(self) -> Numbering:
        stack = self.stack
        ids = torch.arange(7, 13, device=stack.device)[None] % stack.vocabulary
        ids[:, 0] = stack.config.pad_token_id or 0
        mask = torch.tensor([[0, 0, 1, 1, 1, 1]], device=ids.device)

        def states(positions: Tensor | None) -> Tensor:
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            return stack.run_without_hooks(**inputs)[:, 2:]

        with evaluating(stack.module), self.state.nothing_serves():
            alone = states(None)
            for numbering in (all_positions, shown_positions, positions_of_words):
                if _close(states(numbering(stack, ids, mask)), alone):
                    return numbering
        raise DataError(
            "rows with and without an inlay that needs positions stand in one batch, and which "
            f"positions {type(stack.module).__name__} gives to padded rows is not known; "
            "give position_ids"
        )


def all_positions(stack: Stack, text: Tensor, mask: Tensor) -> Tensor:
    """0, 1, 2, …, padding included."""
    return arange(text, mask.shape[1] - text.shape[1]) + stack.position_start


def shown_positions(stack: Stack, text: Tensor, mask: Tensor) -> Tensor:
    """Counted from the first that the mask shows."""
    counted = (mask.long().cumsum(-1) - 1).clamp(min=0)
    return counted[:, -text.shape[1] :] + stack.position_start


def positions_of_words(stack: Stack, text: Tensor, mask: Tensor) -> Tensor:
    """Those of ids other than padding counted; padding stands before the first."""
    if text.is_floating_point():
        return all_positions(stack, text, mask)
    words = text.ne(stack.config.pad_token_id).long()
    return words.cumsum(-1) * words + stack.position_start - 1


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
    return bool(stack.config.use_cache if asked is None else asked)


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= CLOSE * b.abs().max())
