"""Small methods that only tests have: with a penalty, several passes, a schedule, a preparation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.core.method import Loss, Method, ParameterGroup, Shared
from inlay.core.piece import OutputDelta, Piece
from inlay.core.site import Site, Where


class Scaling(OutputDelta):
    """y' = y + y ⊙ (s ⊙ mask ⊙ noise), with the noise drawn once per pass.

    s: `[d_out]`. mask: `[d_out]`, 0 where the schedule removed s. importance: `[d_out]`.
    """

    draws = True

    def __init__(self, site: Site, start: Tensor, noise: float):
        super().__init__()
        self.s = nn.Parameter(start)
        self.register_buffer("mask", torch.ones_like(start))
        self.register_buffer("importance", torch.zeros_like(start))
        self.register_buffer("progress", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.site, self.noise = site.name, noise

    @override
    def delta(self, x, y, context):
        scale = self.s * self.mask
        if self.training and self.noise:
            draws = torch.rand(
                len(scale), generator=context.generator(self.site), dtype=scale.dtype
            )
            scale = scale * (1 + self.noise * draws)
        return y * scale.to(y.dtype)


@dataclass(frozen=True, repr=False)
class Scaled(Method, listed=False):
    """Scales outputs; subclasses add one interface each.

    noise: how much the scale varies from pass to pass.
    """

    at: Where = Where(("attn.q", "mlp.down"))  # type: ignore[assignment]
    noise: float = 0.0

    @override
    def build(self, site: Site, shared: Shared) -> Piece:
        return Scaling(site, torch.full((site.d_out,), 0.1), self.noise)


@dataclass(frozen=True, repr=False)
class Penalised(Scaled, listed=False):
    """With the penalty weight · Σ s²."""

    weight: float = 0.5

    @override
    def penalty(self, pieces, shared):
        return (
            self.weight * torch.stack([piece.s.square().sum() for piece in pieces.values()]).sum()
        )


@dataclass(frozen=True, repr=False)
class Compared(Scaled, listed=False):
    """With three passes over a batch, whose divergence counts `weight`."""

    noise: float = 1.0
    weight: float = 2.0
    passes: ClassVar[int] = 3

    @override
    def consistency(self, divergence: Tensor) -> Tensor:
        return self.weight * divergence


@dataclass(frozen=True, repr=False)
class Pruned(Penalised, listed=False):
    """With a schedule that removes half of each scale by the importance |s · gradient|."""

    noise: float = 1.0

    @override
    def after_step(self, pieces: Mapping[str, Piece], shared, progress: float) -> None:
        for piece in pieces.values():
            assert isinstance(piece, Scaling) and piece.s.grad is not None
            piece.importance.mul_(0.8).add_((piece.s * piece.s.grad).abs())
            piece.progress.fill_(progress)
            piece.steps += 1
            removed = round(progress / 2 * len(piece.s))
            piece.mask.fill_(1)
            piece.mask[piece.importance.argsort()[:removed]] = 0


@dataclass(frozen=True, repr=False)
class Grouped(Scaled, listed=False):
    """With a learning rate and a weight decay of its own for half of its pieces."""

    @override
    def parameter_groups(self, pieces, shared, learning_rate):
        parameters = [piece.s for piece in pieces.values()]
        return [
            ParameterGroup(tuple(parameters[::2]), learning_rate),
            ParameterGroup(tuple(parameters[1::2]), 10 * learning_rate, weight_decay=0.5),
        ]


@dataclass(frozen=True, repr=False)
class Fisher(Scaled, listed=False):
    """Starts from the mean squared gradients of the weights' rows of the base."""

    @override
    def prepare(self, base, sites: Sequence[Site], batches: Iterable[Loss]) -> Mapping[str, Tensor]:
        weights = {site.name: site.host.weight for site in sites}
        sums = {name: torch.zeros(len(weight)) for name, weight in weights.items()}
        count = 0
        for weight in weights.values():
            weight.requires_grad_(True)
        for loss in batches:
            gradients = torch.autograd.grad(loss(), list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                sums[name] += gradient.detach().float().square().mean(1)
            count += 1
        return {name: total / count for name, total in sums.items()}

    @override
    def build(self, site: Site, shared: Shared) -> Piece:
        start = shared.prepared.get(site.name, torch.zeros(site.d_out))
        return Scaling(site, start.clone(), self.noise)
