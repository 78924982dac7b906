"""Modules by their dotted paths."""

from __future__ import annotations

from torch import nn

from inlay.architectures.layout import Layout

CHILD = "inlays"
"""The name of the one child that a base has while inlays are attached."""


def own_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All modules of a base by their paths, without what is attached to it."""
    children = [(name, child) for name, child in list(model._modules.items()) if name != CHILD]
    return {
        path: module
        for name, child in children
        if child is not None
        for path, module in child.named_modules(prefix=name)
    }


def submodule(module: nn.Module, path: str) -> nn.Module | None:
    """The module at a dotted path (`""` is the module itself), or None where there is none."""
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def blocks(stack: nn.Module, layout: Layout) -> tuple[nn.Module, ...] | None:
    """The blocks of a stack, in order; None where its lists are not where the layout says."""
    paths = (layout.layers,) if isinstance(layout.layers, str) else layout.layers
    lists = [submodule(stack, path) for path in paths]
    if not all(isinstance(part, (nn.ModuleList, nn.Sequential)) for part in lists):
        return None
    return tuple(block for part in lists if part is not None for block in part.children())


def has_layout(backbone: nn.Module, layout: Layout) -> bool:
    """Whether a layout's stack and its blocks are where the layout says."""
    stack = submodule(backbone, layout.path)
    return stack is not None and bool(blocks(stack, layout))
