"""Gradient checkpointing of the kind that runs blocks without a graph and goes back by itself.

With `use_reentrant=True` every block has a backward of its own, which frees the graph it went
through. A value that several blocks read and that is computed before them would lose its graph in
the first of these. So under this kind nothing is shared: networks run where they are read, and
prompts run in their rows. And since such a block learns only where something that it is given
requires a gradient, the stack's input does.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inlay.architectures.chart import Stack

LEARNED_THROUGH = ("inputs_embeds", "pixel_values", "input_features")
"""Inputs that may require a gradient. Bases that read waves ask for it behind their first layers,
and refuse waves that have one."""


def is_reentrant(stack: Stack) -> bool:
    """Whether the pass under way runs blocks under this kind of checkpointing."""
    module = stack.module
    if not (module.training and torch.is_grad_enabled()):
        return False
    return any(_reentrant(part) for part in (module, *stack.layers))


def with_gradient(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a stack, which require a gradient where they are numbers."""
    changed = dict(inputs)
    for name in LEARNED_THROUGH:
        value = inputs.get(name)
        if isinstance(value, Tensor) and value.is_floating_point() and not value.requires_grad:
            changed[name] = value.detach().requires_grad_()
    return changed


def _reentrant(part: nn.Module) -> bool:
    values = vars(part)
    function = values.get("_gradient_checkpointing_func")
    if not values.get("gradient_checkpointing") or not isinstance(function, partial):
        return False
    return bool(function.keywords.get("use_reentrant", True))
