"""Cross entropy and divergence over a vocabulary, without the logits of a whole batch in memory.

    loss = Σₙ logsumexp(zₙ) − zₙ[targetₙ],   z = logits(hidden)

Positions are split into chunks. Where the head is frozen, the gradient of a chunk with respect to
`hidden`, (softmax(z) − onehot) · ∂z/∂hidden, is computed together with its loss, and the logits
are freed before the next chunk. Where a parameter of the head is trainable, autograd computes the
gradient, and a chunk's logits are computed again in backward.
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
"""How much memory the logits of one chunk take in fp32."""

CHUNK_BYTES_ON_CPU = 24 * 2**20
"""The same on a CPU, where glibc fetches more than 32 MiB anew from the kernel (LOG.md)."""

CHUNK_ROWS = 64
"""The fewest positions of a chunk, however large: each chunk reads the head's weight twice."""


def token_loss(
    chart: Chart,
    model: PreTrainedModel,
    hidden: Tensor,
    targets: Tensor,
    *,
    weights: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The summed cross entropy of `hidden` against `targets`: a scalar, fp32.

    Args:
        chart: the model's chart, whose `logits` applies the head.
        model: the base.
        hidden: final states at the labelled positions only, `[N, D]`.
        targets: the token to predict at each, `[N]`.
        weights: the weight of each in the sum, `[N]`; None for 1.
        chunk: the most positions whose logits are in memory at once; None for
            `positions_at_once`. A head that mixes positions is always applied to all at once.
    """
    if not len(targets):
        return hidden.float().sum()  # 0, and still part of the graph
    count = _chunks(chart, model, targets, chunk)
    target_chunks = targets.tensor_split(count)  # sizes differ by one at most
    weight_chunks = [None] * count if weights is None else weights.tensor_split(count)
    needs_grad = torch.is_grad_enabled() and hidden.requires_grad
    total = torch.zeros((), dtype=torch.float32, device=hidden.device)
    grads: list[Tensor] = []
    for states, target, weight in zip(
        hidden.detach().tensor_split(count), target_chunks, weight_chunks, strict=True
    ):
        states.requires_grad_(needs_grad)
        logits = chart.logits(model, states)
        if not grads and _head_learns(logits, states):
            del logits
            state_chunks = hidden.tensor_split(count)
            return _loss_by_autograd(chart, model, state_chunks, target_chunks, weight_chunks)
        loss, grad = _loss_and_gradient(logits, states, target, weight, needs_grad)
        total += loss
        grads += [grad] if grad is not None else []
    if not needs_grad:
        return total
    result: Tensor = _WithGradient.apply(hidden, total, torch.cat(grads))
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

    A chunk's logits are computed again in backward, for the gradient of each is not known here.
    """

    def likelihoods(states: Tensor, target: Tensor) -> Tensor:
        logits = chart.logits(model, states).float()
        return -F.cross_entropy(logits, target, reduction="none")

    count = _chunks(chart, model, targets, chunk)
    pairs = list(zip(hidden.tensor_split(count), targets.tensor_split(count), strict=True))
    if count == 1 or not torch.is_grad_enabled():
        return torch.cat([likelihoods(*pair) for pair in pairs])
    return torch.cat([checkpoint(likelihoods, *pair, use_reentrant=False) for pair in pairs])


def token_divergence(
    chart: Chart,
    model: PreTrainedModel,
    hidden: Tensor,
    other: Tensor,
    *,
    chunk: int | None = None,
) -> Tensor:
    """The symmetrised KL divergence of the predicted tokens of two runs, summed over positions.

    A chunk's logits are computed again in backward, so those of one chunk only are in memory.

    Args:
        chart: the model's chart, whose `logits` applies the head.
        model: the base.
        hidden: final states of one run, `[N, D]`.
        other: those of the other run at the same positions, `[N, D]`.
        chunk: the most positions of each run whose logits are in memory at once; None for half of
            `positions_at_once`.

    Returns a scalar, in fp32, or in fp64 where the logits are.
    """
    if not len(hidden):
        return (hidden.float() + other.float()).sum()  # 0, and still part of the graph

    def divergence(states: Tensor, other_states: Tensor) -> Tensor:
        return symmetric_divergence(chart.logits(model, states), chart.logits(model, other_states))

    if chunk is None:  # two sets of logits
        chunk = max(1, _positions_at_once(model, hidden.device) // 2)
    count = _chunks(chart, model, hidden, chunk)
    pairs = list(zip(hidden.tensor_split(count), other.tensor_split(count), strict=True))
    if count == 1 or not torch.is_grad_enabled():
        return torch.stack([divergence(*pair) for pair in pairs]).sum()
    sums = [checkpoint(divergence, *pair, use_reentrant=False) for pair in pairs]
    return torch.stack(sums).sum()


def symmetric_divergence(scores: Tensor, other: Tensor) -> Tensor:
    """½ Σ [KL(p ‖ q) + KL(q ‖ p)] of p = softmax(scores) and q = softmax(other) over the last axis.

    Both are `[..., C]`, with -inf for a class that is impossible in both. Returns a scalar, at
    least in fp32.
    """
    log_p, log_q = (
        z.to(torch.promote_types(z.dtype, torch.float32)).log_softmax(-1) for z in (scores, other)
    )
    impossible = log_p.isneginf() & log_q.isneginf()
    log_p, log_q = log_p.masked_fill(impossible, 0), log_q.masked_fill(impossible, 0)
    return ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum() / 2


def positions_at_once(vocabulary: int, device: torch.device) -> int:
    """How many positions of logits `[n, V]` may be in memory at once."""
    limit = CHUNK_BYTES_ON_CPU if device.type == "cpu" else CHUNK_BYTES
    return max(CHUNK_ROWS, limit // (4 * vocabulary))


def _positions_at_once(model: PreTrainedModel, device: torch.device) -> int:
    return positions_at_once(model.config.get_text_config(decoder=True).vocab_size, device)


def _chunks(chart: Chart, model: PreTrainedModel, positions: Tensor, chunk: int | None) -> int:
    """Into how many chunks the positions `[N, …]` are split; see `token_loss`."""
    if not chart.linear_head:
        return 1
    if chunk is None:
        chunk = _positions_at_once(model, positions.device)
    return -(-len(positions) // chunk)


def _loss_and_gradient(
    logits: Tensor, states: Tensor, targets: Tensor, weights: Tensor | None, needs_grad: bool
) -> tuple[Tensor, Tensor | None]:
    """The loss of one chunk and, where needed, its gradient with respect to `states`."""
    targets = targets.unsqueeze(1)
    scores = logits.detach().to(torch.float32, copy=True)
    top = scores.amax(1, keepdim=True)
    target_scores = scores.gather(1, targets)
    exps = scores.sub_(top).exp_()  # in place from here on: one pass of exp, one [n, V] of fp32
    total = exps.sum(1, keepdim=True)
    losses = total.log() + top - target_scores
    loss = (losses if weights is None else losses * weights.unsqueeze(1)).sum()
    if not needs_grad:
        return loss, None
    grad = exps.div_(total)
    grad.scatter_add_(1, targets, grad.new_full((1, 1), -1.0).expand_as(targets))
    if weights is not None:
        grad.mul_(weights.unsqueeze(1))
    return loss, torch.autograd.grad(logits, states, grad.to(logits.dtype))[0]


class _WithGradient(torch.autograd.Function):
    """A loss whose gradient is already known."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, loss: Tensor, grad: Tensor) -> Tensor:
        ctx.save_for_backward(grad)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = ctx.saved_tensors
        return grad * grad_loss.to(grad.dtype), None, None


def _loss_by_autograd(
    chart: Chart,
    model: PreTrainedModel,
    hidden: Sequence[Tensor],
    targets: Sequence[Tensor],
    weights: Sequence[Tensor | None],
) -> Tensor:
    """The loss of all chunks where a parameter of the head is trainable."""

    def chunk_loss(states: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        logits = chart.logits(model, states).float()
        if weight is None:
            return F.cross_entropy(logits, target, reduction="sum")
        return F.cross_entropy(logits, target, reduction="none") @ weight

    if len(hidden) == 1:
        return chunk_loss(hidden[0], targets[0], weights[0])
    losses = [
        checkpoint(chunk_loss, states, target, weight, use_reentrant=False)
        for states, target, weight in zip(hidden, targets, weights, strict=True)
    ]
    return torch.stack(losses).sum()


def _head_learns(logits: Tensor, states: Tensor) -> bool:
    """Whether the graph of the logits has a trainable leaf apart from `states`."""
    nodes: list[Node | None] = [logits.grad_fn]
    while nodes:
        node = nodes.pop()
        if node is None:
            continue
        leaf = node.name() == "torch::autograd::AccumulateGrad"
        if leaf and node.variable is not states:  # type: ignore[attr-defined]
            return True
        nodes += [next_node for next_node, _ in node.next_functions]
    return False
