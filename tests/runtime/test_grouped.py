"""The product of rows in groups with a matrix for each group."""

from __future__ import annotations

import torch

from inlay.runtime.grouped import grouped_product


def test_each_group_is_multiplied_with_its_own_matrix_and_learns() -> None:
    torch.manual_seed(0)
    sizes = [2, 0, 3, 1]
    x = torch.randn(6, 5, dtype=torch.double, requires_grad=True)
    weight = torch.randn(4, 5, 3, dtype=torch.double, requires_grad=True)
    ends = torch.tensor(sizes).cumsum(0)
    parts = [a @ b for a, b in zip(x.split(sizes), weight, strict=True)]
    torch.testing.assert_close(grouped_product(x, weight, ends), torch.cat(parts))
    assert torch.autograd.gradcheck(lambda a, b: grouped_product(a, b, ends), (x, weight))
    frozen = weight.detach()
    grouped_product(x, frozen, ends).sum().backward()
    torch.testing.assert_close(x.grad, frozen.sum(-1).repeat_interleave(torch.tensor(sizes), dim=0))


def test_torch_takes_it_for_an_operation_of_its_own() -> None:
    x, weight = torch.randn(4, 3, requires_grad=True), torch.randn(2, 3, 5)
    ends = torch.tensor([1, 4])
    torch.library.opcheck(torch.ops.inlay.grouped_product.default, (x, weight, ends))
    torch.library.opcheck(torch.ops.inlay.grouped_outer.default, (x.detach(), x.detach(), ends))
