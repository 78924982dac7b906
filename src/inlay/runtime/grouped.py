"""A product of rows in groups with one matrix for each group, which a compiled graph takes whole.

How many rows a group has is a number on a device. A graph cannot hold it, and inside an operation
of its own it need not: the operation reads the numbers when it runs, and waits for the device then.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Multiply the rows of every group with its matrix.

    x `[N, d_in]`, sorted by group; weight `[G, d_in, d_out]`; ends `[G]`, where each group ends
    -> `[N, d_out]`.
    """
    product: Tensor = torch.ops.inlay.grouped_product(x, weight, ends)
    return product


def _product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    y, start = x.new_empty(len(x), weight.shape[2]), 0
    for matrix, end in zip(weight, ends.tolist(), strict=True):
        y[start:end] = x[start:end] @ matrix
        start = end
    return y


def _outer(x: Tensor, grad: Tensor, ends: Tensor) -> Tensor:
    """The gradients of the matrices, `[G, d_in, d_out]`."""
    sums, start = x.new_empty(len(ends), x.shape[1], grad.shape[1]), 0
    for number, end in enumerate(ends.tolist()):
        sums[number] = x[start:end].T @ grad[start:end]
        start = end
    return sums


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x, weight, ends = ctx.saved_tensors
    of_x, of_weight, _ = ctx.needs_input_grad
    product, outer = torch.ops.inlay.grouped_product, torch.ops.inlay.grouped_outer
    return (
        product(grad.contiguous(), weight.transpose(1, 2), ends) if of_x else None,
        outer(x, grad.contiguous(), ends) if of_weight else None,
        None,
    )


torch.library.custom_op(
    "inlay::grouped_product",
    _product,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor ends) -> Tensor",
)
torch.library.register_fake(
    "inlay::grouped_product", lambda x, weight, ends: x.new_empty(len(x), weight.shape[2])
)
torch.library.custom_op(
    "inlay::grouped_outer",
    _outer,
    mutates_args=(),
    schema="(Tensor x, Tensor grad, Tensor ends) -> Tensor",
)
torch.library.register_fake(
    "inlay::grouped_outer",
    lambda x, grad, ends: x.new_empty(len(ends), x.shape[1], grad.shape[1]),
)
torch.library.register_autograd("inlay::grouped_product", _backward, setup_context=_keep)
