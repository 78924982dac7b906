"""Changing a product inside a module's forward, which goes on from there.

A router computes scores and chooses experts by them, all in one module: its output is the choice.
What a piece adds must come in between, where the scores are a product of `F.linear`; while the
module runs, that call is changed:

    scores = F.linear(x, W)        ->   scores = F.linear(x', W) + delta(x', scores)
    chosen = topk(softmax(scores))      as ever
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from typing_extensions import override


class Product(TorchFunctionMode):
    """Inside it the first product with a matrix of this shape is given to `change`.

    change:  (x, multiply) -> what takes the place of the product, where multiply(x) is it.
    changed: whether there was one.
    """

    def __init__(self, shape: torch.Size, change: Callable[..., Tensor]):
        super().__init__()
        self.shape = shape
        self.change = change
        self.changed = False

    @override
    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.linear or self.changed or args[1].shape != self.shape:
            return func(*args, **kwargs)
        self.changed = True
        return self.change(args[0], lambda x: func(x, *args[1:], **kwargs))
