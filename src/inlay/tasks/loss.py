"""Cross entropy over a vocabulary, without the logits of the whole batch ever standing at once.

    loss = Σₙ logsumexp(zₙ) − zₙ[targetₙ],   z = logits(hidden)

Where the head is frozen, the gradient of a chunk with respect to `hidden` is computed together
with its loss, (softmax(z) − onehot) · ∂z/∂hidden, and the chunk's logits are gone before the next
chunk's are made. Where something in the head learns, autograd does it, and a chunk's logits are
made again in backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart

CHUNK_BYTES = 64 * 2**20
"""Of logits in fp32: what stands at once."""

CHUNK_BYTES_ON_CPU = 24 * 2**20
"""Memory for more than 32 MiB comes fresh from the kernel every time, page by page (LOG.md)."""

CHUNK_ROWS = 64
"""At least so many positions a chunk, however large: it reads the head's whole weight twice."""


def token_loss(
    chart: Chart,
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The summed cross entropy (a scalar, fp32) of `hidden` against `targets`.

    Args:
        chart: the model's chart, whose `logits` is the head.
        model: the base.
        hidden: final states at the labelled positions only, `[N, D]`.
        targets: the token that each should predict, `[N]`.
        weights: how much each counts, `[N]`; None for 1.
        chunk: the most positions to make logits for at once; None for `positions_at_once`. A
            head that is not plain is always applied to all positions at once.
    """
    if not len(targets):
        return hidden.float().sum()  # 0, and still part of the graph
    parts = _parts(chart, model, targets, chunk)
    aims = targets.tensor_split(parts)  # sizes differ by one at most
    worth = [None] * parts if weights is None else weights.tensor_split(parts)
    wanted = torch.is_grad_enabled() and hidden.requires_grad
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    grads: list[Tensor] = []
    for states, aim, each in zip(hidden.detach().tensor_split(parts), aims, worth, strict=True):
        states.requires_grad_(wanted)
        logits = chart.logits(model, states)
        if not grads and _learns(logits, states):
            del logits
            return _through_autograd(chart, model, hidden.tensor_split(parts), aims, worth)
        loss, grad = _known(logits, states, aim, each, wanted)
        total += loss
        grads += [grad] if grad is not None else []
    if not wanted:
        return total
    result: Tensor = _Given.apply(hidden, total, torch.cat(grads))
    return result


def token_likelihoods(
    chart: Chart,
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    *,
    chunk: int | None = None,
) -> Tensor:
    """The log likelihood of each target, `[N]`, fp32; arguments as in `token_loss`.

    A chunk's logits are made again in backward, for what is done with them is not known here.
    """

    def one(states: Tensor, aim: Tensor) -> Tensor:
        logits = chart.logits(model, states).float()
        return -F.cross_entropy(logits, aim, reduction="none")

    parts = _parts(chart, model, targets, chunk)
    pairs = list(zip(hidden.tensor_split(parts), targets.tensor_split(parts), strict=True))
    if parts == 1 or not torch.is_grad_enabled():
        return torch.cat([one(*pair) for pair in pairs])
    return torch.cat([checkpoint(one, *pair, use_reentrant=False) for pair in pairs])


def positions_at_once(vocabulary: int, device: torch.device) -> int:
    """How many positions' logits are made at once."""
    allowed = CHUNK_BYTES_ON_CPU if device.type == "cpu" else CHUNK_BYTES
    return max(CHUNK_ROWS, allowed // (4 * vocabulary))


def _parts(chart: Chart, model: PreTrainedModel, targets: Tensor, chunk: int | None) -> int:
    """Into how many parts the positions are split; see `token_loss`."""
    if not chart.linear_head:
        return 1
    if chunk is None:
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        chunk = positions_at_once(vocabulary, targets.device)
    return -(-len(targets) // chunk)


def _known(
    logits: Tensor, states: Tensor, aim: Tensor, each: Tensor | None, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of one chunk and, where wanted, its gradient with respect to `states`."""
    aim = aim.unsqueeze(1)
    scores = logits.detach().to(torch.float32, copy=True)
    top = scores.amax(1, keepdim=True)
    reached = scores.gather(1, aim)
    parts = scores.sub_(top).exp_()  # in place from here on: one pass of exp, one [n, V] of fp32
    total = parts.sum(1, keepdim=True)
    losses = total.log() + top - reached
    loss = (losses if each is None else losses * each.unsqueeze(1)).sum()
    if not wanted:
        return loss, None
    slope = parts.div_(total)
    slope.scatter_add_(1, aim, slope.new_full((1, 1), -1.0).expand_as(aim))
    if each is not None:
        slope.mul_(each.unsqueeze(1))
    return loss, torch.autograd.grad(logits, states, slope.to(logits.dtype))[0]


class _Given(torch.autograd.Function):
    """A loss whose gradient is already known."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * up.to(grad.dtype), None, None


def _through_autograd(
    chart: Chart,
    model: PreTrainedModel,
    hidden: Sequence[Tensor],
    aims: Sequence[Tensor],
    worth: Sequence[Tensor | None],
) -> Tensor:
    def one(states: Tensor, aim: Tensor, each: Tensor | None) -> Tensor:
        logits = chart.logits(model, states).float()
        if each is None:
            return F.cross_entropy(logits, aim, reduction="sum")
        return F.cross_entropy(logits, aim, reduction="none") @ each

    if len(hidden) == 1:
        return one(hidden[0], aims[0], worth[0])
    losses = [
        checkpoint(one, states, aim, each, use_reentrant=False)
        for states, aim, each in zip(hidden, aims, worth, strict=True)
    ]
    return torch.stack(losses).sum()


def _learns(logits: Tensor, states: Tensor) -> bool:
    """Whether the graph of the logits ends in anything that learns, apart from `states`."""
    nodes: list[Node | None] = [logits.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        leaf = node.name() == "torch::autograd::AccumulateGrad"
        if leaf and node.variable is not states:  # type: ignore[attr-defined]
            return True
        nodes += [following for following, _ in node.next_functions]
    return False
