"""What a drawn number decides, in passes that know it and in compiled ones, which do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def chosen(tensors: Sequence[Tensor], number: Tensor) -> Tensor:
    """The tensor of a drawn number `[]`; all have one shape.

    A compiled pass stacks them all. Those that are not drawn then have gradients of zero, not none.
    """
    if not torch.compiler.is_compiling():
        return tensors[int(number)]
    stacked = torch.stack(tuple(tensors))
    return stacked.index_select(0, number.reshape(1).to(stacked.device))[0]


def unless(dropped: Tensor, compute: Callable[[], Tensor], like: Tensor) -> Tensor:
    """What `compute` returns, or zeros of the form of `like` where the truth value `[]` holds.

    A compiled pass computes it in either case, and gives it gradients of zero where it is dropped.
    """
    if not torch.compiler.is_compiling():
        return like.new_zeros(()).expand_as(like) if bool(dropped) else compute()
    computed = compute()
    return torch.where(dropped.to(computed.device), 0, computed)
