"""Modules by their dotted paths."""

from __future__ import annotations

from torch import nn

from inlay.architectures.layout import Layout


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path (`""` is the module itself), or None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def has_layout(backbone: nn.Module, layout: Layout) -> bool:
    """Whether a layout's stack and its list of blocks are where the layout says."""
    stack = submodule(backbone, layout.path)
    return stack is not None and isinstance(submodule(stack, layout.layers), nn.ModuleList)
