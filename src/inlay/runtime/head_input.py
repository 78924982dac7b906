"""A frozen language-model head gets its states in one piece of memory."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class ContiguousHeadInput:
    """Makes the input of the language-model head contiguous.

    `generate` cuts the last position out of a batch, which leaves gaps in memory; torch then
    copies a weight that is not trained once for every row (LOG.md).
    """

    def __init__(self, head: nn.Module):
        self.head = head
        self._hook: RemovableHandle | None = None

    def hook(self) -> None:
        """Put the hook on."""
        self._hook = self.head.register_forward_pre_hook(self._before)

    def unhook(self) -> None:
        """Take the hook off."""
        if self._hook is not None:
            self._hook.remove()

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0].contiguous(), *args[1:])
