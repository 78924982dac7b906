"""Attention of short texts in bf16 training on a CPU, in less time than torch's own takes.

    P = softmax(scale · Q Kᵀ + bias),   O = P V

Torch's kernel for CPUs works through short texts in small blocks, and goes back slower still
(LOG.md). Here whole matrices are multiplied: the scores and the gradient of P in fp32, because a
softmax lies between them and what follows; all else in bf16, to which it is rounded anyway. Q, K,
V and P are kept for backward, in bf16.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

SHORT = 192 * 192
"""The most queries times keys: P, which is kept, has as many entries a head."""

CACHED = 2 * 2**20
"""Bytes of scores that each thread has under way at once."""


class Short(TorchFunctionMode):
    """Inside it `F.scaled_dot_product_attention` is `attend`, for texts that are short.

    key, value: what transformers' attention function is given. Where there is a mask it repeats
    them for every query that shares them, before it comes to torch; `attend` takes them once.
    """

    def __init__(self, key: Tensor, value: Tensor):
        super().__init__()
        self.key = key
        self.value = value

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not fits(*args, **kwargs):
            return func(*args, **kwargs)
        length = args[1].shape[2]  # an empty static cache is cut down to the text
        key, value = self.key[:, :, :length], self.value[:, :, :length]
        return attend(args[0], key, value, *args[3:], **kwargs)


def in_training(*tensors: Tensor) -> bool:
    """Whether a gradient will go back through an attention of these, in bf16 on a CPU.

    Compiled passes are left to torch.
    """
    if torch.compiler.is_compiling():
        return False
    half = all(t.device.type == "cpu" and t.dtype == torch.bfloat16 for t in tensors)
    return half and any(t.requires_grad for t in tensors)


def fits(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    **how: Any,
) -> bool:
    """Whether `attend` can take the place of torch's function for these arguments."""
    if dropout_p or torch.is_autocast_enabled("cpu") or query.dim() != 4:
        return False
    if attn_mask is not None and attn_mask.requires_grad:
        return False
    same = query.shape[0] == key.shape[0] == value.shape[0]
    return same and query.shape[2] * key.shape[2] <= SHORT


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention` without dropout.

    query `[B, Hq, T, K]`; key, value `[B, H, S, K]`, where H divides Hq; attn_mask boolean (True =
    seen) or additive, broadcastable to `[B, Hq, T, S]`. Returns `[B, Hq, T, K]`: zeros where a
    query sees nothing.
    """
    if is_causal:
        attn_mask = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
    bias, blind = None, None
    if attn_mask is not None:
        bias = _grouped(attn_mask, key.shape[1])
        nothing = bias.isneginf().all(-1, keepdim=True)
        if nothing.any():
            bias, blind = bias.masked_fill(nothing, 0.0), nothing
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    result: Tensor = _Attention.apply(query, key, value, bias, blind, scale)
    return result


def _grouped(mask: Tensor, heads: int) -> Tensor:
    """A mask as what is added, with heads that share a key side by side: `[b, h, g, t, s]`."""
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape).masked_fill_(~mask, -math.inf)
    mask = mask.float().reshape((1,) * (4 - mask.dim()) + mask.shape)
    return mask.unsqueeze(2) if mask.shape[1] == 1 else mask.unflatten(1, (heads, -1))


class _Attention(torch.autograd.Function):
    """Queries that share a key are rows of one matrix: all is `[B · H, Hq/H · T or S, K]`."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor | None,
        blind: Tensor | None,
        scale: float,
    ) -> Tensor:
        batch, heads, keys = key.shape[:3]
        shape = (batch, heads, query.shape[1] // heads, query.shape[2], keys)
        q = query.reshape(batch * heads, -1, query.shape[3])
        k, v = (t.reshape(batch * heads, keys, t.shape[3]) for t in (key, value))
        p = q.new_empty(*q.shape[:2], keys)
        output = q.new_empty(*q.shape[:2], v.shape[2])
        for rows, part in _portions(shape):
            scores = torch.bmm(q[part].float(), k[part].float().mT * scale)
            if bias is not None:
                scores.view(-1, *shape[1:]).add_(bias if len(bias) == 1 else bias[rows])
            p[part] = scores.softmax(-1)
            if blind is not None:
                here = blind if len(blind) == 1 else blind[rows]
                p[part].view(-1, *shape[1:]).masked_fill_(here, 0.0)
            torch.bmm(p[part], v[part], out=output[part])
        ctx.save_for_backward(q, k, v, p)
        ctx.shape, ctx.scale = shape, scale
        return output.view(*query.shape[:3], v.shape[2])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, p = ctx.saved_tensors
        up = up.reshape(*q.shape[:2], -1)
        for_q, for_k, for_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for _, part in _portions(ctx.shape):
            torch.bmm(p[part].mT, up[part], out=for_v[part])
            slope = torch.bmm(up[part].float(), v[part].float().mT * ctx.scale)
            weights = p[part].float()
            slope.mul_(weights)
            slope.addcmul_(weights, slope.sum(-1, keepdim=True), value=-1)
            of_scores = slope.to(q.dtype)
            torch.bmm(of_scores, k[part], out=for_q[part])
            torch.bmm(of_scores.mT, q[part], out=for_k[part])
        batch, heads, group, length, keys = ctx.shape
        return (
            for_q.view(batch, heads * group, length, -1),
            for_k.view(batch, heads, keys, -1),
            for_v.view(batch, heads, keys, -1),
            None,
            None,
            None,
        )


def _portions(shape: tuple[int, ...]) -> Iterator[tuple[slice, slice]]:
    """Rows of the batch whose scores fit into the caches, and where they lie in `[B · H, ...]`."""
    batch, heads, group, length, keys = shape
    size = 4 * heads * group * length * keys
    step = max(1, torch.get_num_threads() * CACHED // size)
    for start in range(0, batch, step):
        stop = min(start + step, batch)
        yield slice(start, stop), slice(start * heads, stop * heads)
