"""Trained keys and values, with or without the MLP that computes them in training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from inlay.blocks.init import common_tokens
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, positive_int, require_site
from inlay.core.piece import ExtraKV, OncePerPass, Piece, Reference
from inlay.core.site import Site
from inlay.errors import SpecError


def keys_at(
    method: Method,
    site: Site,
    shared: Shared,
    *,
    length: int,
    mlp: int | None,
    dropout: float = 0.0,
    std: float = 0.02,
    shift: int = 0,
) -> ExtraKV:
    """The piece of a prefix method at one attention.

    length:  P, the number of keys and values.
    mlp:     inner width of the MLP that computes those of all layers in training, or None.
    dropout: fraction of keys and values that is dropped in training.
    std:     standard deviation of the starting vectors.
    shift:   by how many positions the text moves back, see `ExtraKV`.

    Raises SiteError at a site that is no attention, SpecError where an MLP meets attention of
    unequal width.
    """
    require_site(method, site, site.heads > 0, "attention ('attn.kv', 'cross.kv')")
    shift = shift if site.role == "attn.kv" else 0
    if mlp is None:
        return Vectors(site, length, std, dropout, shift)
    alike = [s for s in shared.sites if (s.stack, s.role) == (site.stack, site.role)]
    if any(_widths(s) != _widths(site) for s in alike):
        raise SpecError(
            f"{type(method).__name__}: an MLP needs attention of equal width everywhere; "
            "use mlp=None"
        )
    maker = shared.once_per_pass(
        f"{site.stack}.{site.role}",
        site.stack,
        lambda: Reparameterisation(length, site.d_in, mlp, len(alike), sum(_widths(site))),
    )
    return Sliced(maker, length, alike.index(site), site, dropout, shift)


def _widths(site: Site) -> tuple[int, int]:
    """H·K and H·V: the widths of all heads' keys and values, which differ in latent attention."""
    return site.heads * site.head_dim, site.heads * site.value_dim


Start = Literal["common"] | tuple[int, ...] | None
"""Where a prefix starts: at the keys and values of common tokens, of these tokens, or at random
values."""


def check_prefix(method: Method, length: int, mlp: int | None, start: Start) -> None:
    """Raise SpecError for impossible fields of a prefix: a start must have `length` tokens."""
    positive_int(method, "length")
    if mlp is not None:
        positive_int(method, "mlp")
    kind = type(method).__name__
    if isinstance(start, str):
        if start != "common":
            raise SpecError(f"{kind}: start is 'common' or token ids, not {start!r}")
    elif start is not None and len(start) != length:
        raise SpecError(f"{kind}: {len(start)} token ids for {length} positions")


def prefix_learning_rate(mlp: int | None) -> float:
    """The learning rate of a prefix: an MLP moves all layers at once, vectors move one by one."""
    return 1e-2 if mlp is None else 1e-4


def start_from(
    method: Method, start: Start, length: int, pieces: Mapping[str, Piece], shared: Shared
) -> None:
    """Start from the keys and values that the bare base computes for real words, exactly.

    For a base that reads no words, or some of whose attentions see none, "common" means random
    values.
    """
    if start is None or (start == "common" and not shared.vocabulary):
        return
    words = common_tokens(method, shared.vocabulary, length) if start == "common" else list(start)
    pairs = shared.keys_and_values(words)
    blind = [site.name for site in shared.sites if site.name not in pairs]
    if blind and start == "common":
        return  # the text does not reach them all: cross-attention of a decoder without its encoder
    if blind:
        raise SpecError(
            f"{type(method).__name__}: {blind[0]} does not see each word of a text at a position "
            "of its own, so its keys cannot start from words; use start=None"
        )
    for name, piece in pieces.items():
        if isinstance(piece, Vectors):
            k, v = pairs[name]
            piece.load({"k": k.float(), "v": v.float()})
    for key, module in shared.modules.items():
        alike = [s for s in shared.sites if f"{s.stack}.{s.role}" == key]
        layers = [torch.cat([_flat(t) for t in pairs[s.name]], -1) for s in alike]  # [P, H·K + H·V]
        target = torch.stack(layers, 1)  # [P, L, H·K + H·V]
        assert isinstance(module, OncePerPass) and isinstance(module.net, Reparameterisation)
        module.net.fit(target)


def _flat(values: Tensor) -> Tensor:
    """Keys or values `[H, P, K]` -> `[P, H·K]`, in fp32."""
    return values.float().transpose(0, 1).flatten(1)


class Vectors(ExtraKV):
    """The prefix itself."""

    def __init__(self, site: Site, length: int, std: float, dropout: float, shift: int):
        super().__init__()
        self.length = length
        self.shift = shift
        self.dropout = dropout
        k, v = ((site.heads, length, width) for width in (site.head_dim, site.value_dim))
        self.k = nn.Parameter(torch.randn(k) * std)  # [H, P, K]
        self.v = nn.Parameter(torch.randn(v) * std)  # [H, P, V]

    @override
    def forward(self, x: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        return _dropout(self, self.k), _dropout(self, self.v)


class Reparameterisation(nn.Module):
    """`P' → linear → tanh → linear`, all layers of one kind of attention at once."""

    def __init__(self, length: int, width: int, inner: int, layers: int, both: int):
        super().__init__()
        self.layers = layers
        self.seed = nn.Parameter(torch.randn(length, width))  # [P, D]
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, layers * both)

    def forward(self) -> Tensor:
        """-> `[P, L, H·K + H·V]`."""
        output: Tensor = self.outer(torch.tanh(self.inner(self.seed)))
        return output.unflatten(1, (self.layers, -1))

    @torch.no_grad()
    def fit(self, target: Tensor) -> None:
        """Choose the last layer so that the output is `target`, by least squares.

        Exact where there are no more positions than inner units; the paper's code takes 500 steps
        of Adam towards the same end.
        """
        hidden = torch.tanh(self.inner(self.seed))
        target = target.flatten(1).to(hidden)
        self.outer.bias.copy_(target.mean(0))
        rest = target - target.mean(0)
        self.outer.weight.copy_(_least_squares(hidden.double(), rest.double()).T.to(hidden))


def _least_squares(a: Tensor, b: Tensor) -> Tensor:
    """The smallest x for which `a x` comes nearest to b, whatever the rank of a."""
    if a.device.type == "cpu":
        return torch.linalg.lstsq(a, b, driver="gelsd").solution
    return torch.linalg.pinv(a) @ b  # there torch has a driver for full rank only


class Sliced(ExtraKV):
    """One layer's slice of the MLP's output."""

    def __init__(
        self, maker: OncePerPass, length: int, layer: int, site: Site, dropout: float, shift: int
    ):
        super().__init__()
        self.length = length
        self.shift = shift
        self.dropout = dropout
        self._maker = Reference(maker)
        self.layer = layer
        self.heads = site.heads
        self.widths = _widths(site)

    @override
    def forward(self, x: Tensor, context: PassContext) -> tuple[Tensor, Tensor]:
        k, v = self._slice(self._maker.module())
        return _dropout(self, k), _dropout(self, v)

    def export(self) -> dict[str, Tensor]:
        """The prefix alone, as `Vectors` reads it."""
        with torch.no_grad():
            k, v = self._slice(self._maker.module.net())
        return {"k": k.contiguous(), "v": v.contiguous()}

    def _slice(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """`[P, L, H·K + H·V]` -> this layer's keys `[H, P, K]` and values `[H, P, V]`."""
        both = output[:, self.layer].split(self.widths, -1)
        keys, values = (side.unflatten(1, (self.heads, -1)).transpose(0, 1) for side in both)
        return keys, values


def _dropout(piece: Vectors | Sliced, values: Tensor) -> Tensor:
    """Inverted dropout on keys or values, in training."""
    return F.dropout(values, piece.dropout, piece.training) if piece.dropout else values
