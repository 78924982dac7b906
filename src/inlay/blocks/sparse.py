"""Changes to few single weights of the base: where they are, what they do, how a file holds them.

All weights of a projection or a norm are numbered: the matrix `[d_out, d_in]` row by row (of a norm
its gain), then the bias, where there is one. S is how many there are. A position is such a number.

A file holds positions in order in few bits more than must be (Elias 1974, Fano 1971): the lowest
log₂ S/N bits of each as they are, and of the others how much they grow, as so many zeros before a
one. Where one weight of 200 changes, that is 1.2 bytes each, beside 4 for its value. Of S = 16:

    positions   3   6   14      0011   0110   1110     two bits each as they are: 11 10 10
    the rest    0   1    3      1     01     001       as zeros before a one:    101001
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.core.context import PassContext
from inlay.core.method import Method, positive, require_site
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site
from inlay.errors import FileError, SpecError


def check_share(method: Method, name: str) -> None:
    """Raise SpecError unless the named number is a share above 0, of at most 1."""
    positive(method, name)
    value = getattr(method, name)
    if value > 1:
        kind = type(method).__name__
        raise SpecError(f"{kind}: {name} is a share of at most 1, not {value!r}")


def part_of(share: float, count: int) -> int:
    """⌊share · count⌋, whatever the share's binary fraction."""
    return math.floor(share * count + 1e-6)


def count_weights(method: Method, site: Site) -> int:
    """S: how many weights the base has at a projection or a norm. Raises SiteError elsewhere."""
    require_site(method, site, site.is_projection or site.is_norm, "projections and norms")
    matrix = site.d_out if site.is_norm else site.d_out * site.d_in
    return matrix + (0 if site.bias_parameter is None else site.d_out)


def flat(site: Site, like_parameter: Tensor, like_bias: Tensor | None) -> Tensor:
    """By position, `[S]`: numbers laid out as the host's parameters are, such as gradients."""
    parts = [site.own_matrix(like_parameter).reshape(-1)]
    if like_bias is not None:
        parts.append(site.own_bias(like_bias).reshape(-1))
    return torch.cat(parts)


def spread(count: int, size: int, generator: torch.Generator | None = None) -> Tensor:
    """One position of each of `count` equal stretches of `size` weights, `[count]` in order.

    generator: draws them; None for the first of each.
    """
    begins = torch.arange(count + 1, device="cpu") * size // max(1, count)
    if generator is None:
        return begins[:-1]
    shares = torch.rand(count, generator=generator, device="cpu", dtype=torch.float64)
    return begins[:-1] + (shares * begins.diff()).long()


def largest(scores: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The positions of the `count` largest of all scores, by name, on the CPU.

    scores: `[S]` each.
    """
    ends = torch.tensor([len(score) for score in scores.values()]).cumsum(0)
    every = torch.cat([score.detach().cpu() for score in scores.values()])
    chosen = every.topk(count, sorted=False).indices.sort().values
    parts = chosen.tensor_split(torch.searchsorted(chosen, ends[:-1]))
    begins = [0, *ends[:-1].tolist()]
    return {n: part - begin for n, part, begin in zip(scores, parts, begins, strict=True)}


def encode(positions: Tensor, size: int) -> Tensor:
    """Positions `[N]` in order, each below `size`, as bytes; N and `size` say how many."""
    count, bits = len(positions), _plain_bits(len(positions), size)
    index = torch.arange(count, device=positions.device)
    ones = torch.zeros(_growth(count, size), dtype=torch.bool, device=positions.device)
    ones[(positions >> bits) + index] = True
    plain = positions[:, None] >> torch.arange(bits, device=positions.device) & 1
    return torch.cat((_pack(ones), _pack(plain.flatten().bool())))


def decode(code: Tensor, count: int, size: int) -> Tensor:
    """The `count` positions that were encoded. Raises FileError where the bytes are no such."""
    bits, growth = _plain_bits(count, size), _growth(count, size)
    ones, plain = (_unpack(part) for part in code.split([-(-growth // 8), -(-count * bits // 8)]))
    index = ones.nonzero().flatten()
    if len(index) == count:
        high = index - torch.arange(count, device=code.device)
        low = plain[: count * bits].view(count, bits).long()
        positions = (high << bits) + (low << torch.arange(bits, device=code.device)).sum(1)
        if not count or int(positions[-1]) < size:
            return positions
    raise FileError(
        f"a file holds no {count:,} positions of {size:,} weights where it should; it is not the "
        "file that was saved"
    )


def _plain_bits(count: int, size: int) -> int:
    """How many bits of each position are kept as they are: ⌊log₂ size/count⌋."""
    return max(1, size // max(1, count)).bit_length() - 1


def _growth(count: int, size: int) -> int:
    """How many bits say how the other bits of the positions grow."""
    return count + (size >> _plain_bits(count, size)) + 1


def _pack(bits: Tensor) -> Tensor:
    """Booleans `[n]` -> bytes `[⌈n/8⌉]`."""
    whole = torch.cat((bits, bits.new_zeros(-len(bits) % 8))).view(-1, 8)
    return (whole.long() << torch.arange(8, device=bits.device)).sum(1).to(torch.uint8)


def _unpack(code: Tensor) -> Tensor:
    """Bytes `[n]` -> booleans `[8 n]`."""
    return (code[:, None] >> torch.arange(8, device=code.device) & 1).flatten().bool()


class WeightsDelta(Foldable, OutputDelta):
    """`y + δ x + c`, of a norm `y + g ⊙ x̂ + c`: a change to the weights of a site, by position."""

    def __init__(self, method: Method, site: Site):
        super().__init__()
        self.count = count_weights(method, site)  # S
        self.normalised = site.normalised() if site.is_norm else None
        self.shape = (site.d_out,) if site.is_norm else (site.d_out, site.d_in)

    @property
    def sizes(self) -> list[int]:
        """How many weights the matrix or gain has, and the bias, where there is one."""
        matrix = math.prod(self.shape)
        return [matrix] if matrix == self.count else [matrix, self.count - matrix]

    @abstractmethod
    def change(self, context: PassContext | None) -> Tensor:
        """The change to every weight, `[S]`; without a context the one that is to stay."""

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        weight, *bias = self.change(context).to(x.dtype).split(self.sizes)
        if self.normalised is None:
            return linear(x, weight.view(self.shape), bias[0] if bias else None)
        delta = self.normalised(x) * weight
        return delta + bias[0] if bias else delta

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        weight, *bias = self.change(None).detach().split(self.sizes)
        w = _changed(w, weight.view(self.shape))
        return w, b if b is None or not bias else _changed(b, bias[0])


def _changed(weights: Tensor, change: Tensor) -> Tensor:
    """Weights and their change; where that is zero every bit stays, the sign of a zero too."""
    return torch.where(change == 0, weights, weights + change)


class SparseDelta(WeightsDelta):
    """A change to chosen weights only, beginning at zero. A file that holds none has no tensors."""

    positions: Tensor

    def __init__(self, method: Method, site: Site, positions: Tensor):
        super().__init__(method, site)
        self._choose(positions.to(site.device()))

    def _choose(self, positions: Tensor) -> None:
        self.register_buffer("positions", positions)  # [N], in order
        self.values = nn.Parameter(torch.zeros(len(positions), device=positions.device))  # [N]

    @override
    def change(self, context: PassContext | None) -> Tensor:
        nothing = self.values.new_zeros(self.count)
        return nothing.index_copy(0, self.positions, self.values)

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return super().delta(x, y, context) if len(self.values) else torch.zeros_like(y)

    @override
    def export(self) -> dict[str, Tensor]:
        return in_file(self.positions, self.values.detach(), self.count)

    @override
    def resize(self, shapes: Mapping[str, torch.Size]) -> None:
        count = math.prod(shapes.get("values", torch.Size([0])))
        if count <= self.count:
            self._choose(torch.arange(count, device=self.values.device))

    @override
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors:
            self.positions.copy_(decode(tensors["positions"], len(self.values), self.count))
            self.values.detach().copy_(tensors["values"])


def in_file(positions: Tensor, values: Tensor, size: int) -> dict[str, Tensor]:
    """What a file holds of changed weights: their positions `[N]` of `size`, and their changes."""
    order = positions.argsort()
    if not len(values):
        return {}
    return {"positions": encode(positions[order], size), "values": values[order]}
