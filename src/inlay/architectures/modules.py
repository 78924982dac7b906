"""Modules that multiply by a matrix, and where they are in a block."""

from __future__ import annotations

from torch import nn
from transformers.pytorch_utils import Conv1D

from inlay.core.quantised import matrix_sizes
from inlay.core.site import stored_transposed

Linears = dict[str, tuple[int, int]]
"""Path of a module that multiplies by a matrix -> (d_out, d_in), in the order of the block."""


def is_linear(part: nn.Module) -> bool:
    """Whether a module multiplies by one matrix, and its output is the product."""
    return isinstance(part, (nn.Linear, Conv1D))


def shape_of(part: nn.Module) -> tuple[int, int]:
    """(d_out, d_in) of such a module."""
    rows, columns = matrix_sizes(part)
    return (columns, rows) if stored_transposed(part) else (rows, columns)


def linears_of(block: nn.Module) -> Linears:
    """Every such module of a block that reads whole rows.

    Those in lists of equal modules are left out: experts that are sent single tokens, and which
    tokens these are cannot be seen from outside.
    """
    lists = in_equal_lists(block)
    return {
        name: shape_of(part)
        for name, part in block.named_modules()
        if is_linear(part) and not name.startswith(lists)
    }


def in_equal_lists(block: nn.Module) -> tuple[str, ...]:
    """How the paths of modules begin that are in a list of several modules of one class."""
    return tuple(
        f"{name}."
        for name, part in block.named_modules()
        if isinstance(part, (nn.ModuleList, nn.ModuleDict))
        and len(part) > 1
        and len({type(module) for module in part.children()}) == 1
    )
