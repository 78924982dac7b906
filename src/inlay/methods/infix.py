"""Infix tuning: [x; INFIX; y], trained activations (Li & Liang, ACL 2021, section 7.3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from inlay.blocks.init import common_tokens, embeddings
from inlay.blocks.kv_prefix import check_prefix, prefix_learning_rate
from inlay.blocks.vectors import VirtualTokenTable
from inlay.core.method import Method, Shared, require_site
from inlay.core.piece import OncePerPass, Piece, Reference, VirtualTokenDelta, VirtualTokens
from inlay.core.site import Site, Where
from inlay.errors import SpecError


@dataclass(frozen=True, repr=False)
class Infix(Method):
    """Virtual tokens after the text, with trained keys and values in every layer.

    In a causal base only what is generated next sees them, the text before them does not. They
    stand where a template says `{p*10}`, or after its last field. As in the paper's
    code each layer adds trained offsets to the keys and values that the base computes for them.

    length: N, virtual tokens; as many as the template has.
    mlp:    inner width of the MLP that computes the offsets of all layers in training, `P' → tanh →
            L·2·d`; it is dropped in the file. None trains the offsets directly.
    start:  "common" (different ones of the 5,000 most common tokens) or token ids, as many as
            `length`: what the tokens begin as. The offsets begin at 0.
    at:     'embed' and, in the same stack, 'attn.k' and 'attn.v'.
    """

    length: int = 10
    mlp: int | None = 512
    start: Literal["common"] | tuple[int, ...] = "common"
    at: Where = Where(("embed", "attn.k", "attn.v"))

    size: ClassVar[str] = "length"
    paper: ClassVar[str] = "Li & Liang, ACL 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "length": "the middle one of the paper's 1, 10 and 20",
        "mlp": "as for `Prefix`",
        "lr": "as for `Prefix`",
    }

    @override
    def check(self) -> None:
        check_prefix(self, self.length, self.mlp, self.start)

    @override
    def learning_rate(self) -> float:
        """As for `Prefix`."""
        return prefix_learning_rate(self.mlp)

    @override
    def build(self, site: Site, shared: Shared) -> Piece | None:
        fits = site.role in ("embed", "attn.k", "attn.v")
        require_site(self, site, fits, "'embed', 'attn.k' and 'attn.v'")
        home = next((s for s in shared.sites if s.role == "embed"), None)
        if home is None:
            raise SpecError("Infix: its tokens stand at 'embed', which `at` leaves out")
        if site is home:
            return Vectors(self._start(site))
        if site.stack != home.stack:
            return None
        if self.mlp is None:
            return Offsets(self.length, site.d_out)
        deep = [s for s in shared.sites if s.stack == home.stack and s is not home]
        widths = [s.d_out for s in deep]
        network = shared.once_per_pass(
            home.stack,
            home.stack,
            lambda: OffsetNetwork(self.length, home.d_out, self.mlp or 0, sum(widths)),
        )
        number = deep.index(site)
        return LayerOffsets(network, sum(widths[:number]), widths[number])

    @override
    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        """Every layer's offsets belong to the tokens."""
        tokens = next(piece for piece in pieces.values() if isinstance(piece, VirtualTokens))
        for piece in pieces.values():
            if isinstance(piece, VirtualTokenDelta):
                piece.follow(tokens)

    @override
    def exported(self) -> Infix:
        """Without the MLP."""
        return replace(self, mlp=None, start="common")

    def _start(self, site: Site) -> Tensor:
        tokens = (
            common_tokens(self, site.d_in, self.length) if self.start == "common" else self.start
        )
        return embeddings(self, site, [(int(number),) for number in tokens])


Infix.examples = (Infix(length=3, mlp=None), Infix(length=2, mlp=5))


class Vectors(VirtualTokenTable):
    """What the virtual tokens are in the embedding layer."""

    before = 0  # all stand after the text


class Offsets(VirtualTokenDelta):
    """What one layer adds to their keys, or to their values."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.values = nn.Parameter(torch.zeros(length, width))  # [N, d_out]

    @override
    def forward(self, y: Tensor, number: Tensor) -> Tensor:
        return _rows_at(y, number, self.values)


class OffsetNetwork(nn.Module):
    """`P' → linear → tanh → linear`, keys and values of all layers at once; begins at 0."""

    def __init__(self, length: int, width: int, inner: int, out: int):
        super().__init__()
        self.seed = nn.Parameter(torch.randn(length, width))  # [N, D]
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, out)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self) -> Tensor:
        """-> `[N, L·2·H·K]`."""
        output: Tensor = self.outer(torch.tanh(self.inner(self.seed)))
        return output


class LayerOffsets(VirtualTokenDelta):
    """One layer's slice of the MLP's output."""

    def __init__(self, network: OncePerPass, begin: int, width: int):
        super().__init__()
        self._network = Reference(network)
        self.begin = begin
        self.width = width

    @override
    def forward(self, y: Tensor, number: Tensor) -> Tensor:
        return _rows_at(y, number, self._network.module().narrow(1, self.begin, self.width))

    def export(self) -> dict[str, Tensor]:
        """The offsets alone, as `Offsets` reads them."""
        with torch.no_grad():
            values = self._network.module.net().narrow(1, self.begin, self.width)
        return {"values": values.contiguous()}


def _rows_at(y: Tensor, number: Tensor, values: Tensor) -> Tensor:
    """The `number`-th row of values `[N, d]` at every position where it is not 0: `[B, T, d]`."""
    table = F.pad(values.to(y.dtype), (0, 0, 1, 0))
    return F.embedding(number, table)
