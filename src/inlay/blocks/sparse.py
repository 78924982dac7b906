"""Changes to few single weights of the base: where they are, what they do, how a file holds them.

All weights of a projection or a norm are numbered: the matrix `[d_out, d_in]` row by row (of a norm
its gain), then the bias, where there is one. S is how many there are. A position is such a number.

A file holds the positions as gaps, each the distance from the position before, seven bits in a
byte; the eighth bit says that more of the same gap follow. Where one weight of 200 changes, that is
less than 2 bytes each, beside 4 for its value:

    positions   5     7     300       gaps   5     2     293 = 37 + 2 · 128
    bytes       5     2     37 + 128, 2
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

BYTES = 5
"""The longest gap in a file: 35 bits."""


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
    """The positions of the `count` largest of all scores, by the name under which each stands.

    scores: `[S]` each.
    """
    ends = torch.tensor([len(score) for score in scores.values()]).cumsum(0)
    chosen = torch.cat([*scores.values()]).topk(count, sorted=False).indices.sort().values.cpu()
    parts = chosen.tensor_split(torch.searchsorted(chosen, ends[:-1]))
    begins = [0, *ends[:-1].tolist()]
    return {n: part - begin for n, part, begin in zip(scores, parts, begins, strict=True)}


def encode(positions: Tensor) -> Tensor:
    """Positions `[N]` in order -> their gaps in bytes, uint8."""
    gaps = positions.diff(prepend=positions.new_zeros(1))[:, None]
    place = torch.arange(BYTES, device=positions.device)
    rest = gaps >> 7 * place  # [N, BYTES]
    last = torch.maximum(rest.ne(0).sum(1, keepdim=True) - 1, torch.zeros_like(gaps))
    digits = rest % 128 + 128 * (place < last)
    return digits[place <= last].to(torch.uint8)


def decode(code: Tensor) -> Tensor:
    """What was encoded. Raises FileError for bytes that end within a gap."""
    ends = code < 128
    if len(code) and not ends[-1]:
        raise FileError("positions of weights end within a number: the file is not what was saved")
    number = ends.cumsum(0) - ends.long()  # of the gap to which a byte belongs
    index = torch.arange(len(code), device=code.device)
    first = torch.cat((index[:1], index[ends][:-1] + 1))
    digits = (code.long() % 128) << 7 * (index - first[number])
    gaps = torch.zeros(len(first), dtype=torch.long, device=code.device)
    return gaps.index_add_(0, number, digits).cumsum(0)


def with_code_length(count: int, length: int) -> Tensor:
    """Some positions `[count]` whose code has so many bytes: room for those of a file."""
    each, more = divmod(length, max(1, count))
    sizes = each + (torch.arange(count) < more).long()
    return torch.where(sizes > 1, 128 ** (sizes - 1).clamp(min=0), 0).cumsum(0)


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
        return w + weight.view(self.shape), b if b is None or not bias else b + bias[0]


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
        return in_file(self.positions, self.values.detach())

    @override
    def resize(self, shapes: Mapping[str, torch.Size]) -> None:
        count = math.prod(shapes.get("values", torch.Size([0])))
        length = math.prod(shapes.get("gaps", torch.Size([count])))
        if count <= self.count and count <= length <= BYTES * count:
            self._choose(with_code_length(count, length).to(self.values.device))

    @override
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            return
        positions = decode(tensors["gaps"])
        if len(positions) != len(self.values) or positions[-1] >= self.count:
            raise FileError(
                f"the file changes weights that are not among the {self.count:,} here; load it "
                "into the base that it was made for"
            )
        self.positions.copy_(positions)
        self.values.detach().copy_(tensors["values"])


def in_file(positions: Tensor, values: Tensor) -> dict[str, Tensor]:
    """What a file holds of changed weights: their positions `[N]`, and their changes `[N]`."""
    order = positions.argsort()
    return {"gaps": encode(positions[order]), "values": values[order]} if len(values) else {}
