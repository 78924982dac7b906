"""Prefix tuning: K ← [P_K; K], V ← [P_V; V] in every layer (Li & Liang, ACL 2021, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from inlay.errors import SpecError
from inlay.piece import Keys, Once, Piece
from inlay.site import Site, Where
from inlay.spec import Method, Shared, only, whole


@dataclass(frozen=True, repr=False)
class Prefix(Method):
    """Trained keys and values that every position can attend to, in every layer.

    In an encoder–decoder there are three independent sets: encoder self-attention, decoder
    self-attention and cross-attention. Positions and context length are untouched.

    length: P, virtual tokens.
    mlp:    inner width of the MLP that makes the prefix in training, `P' → tanh → 2·L·d`; it is
            dropped in the file. None learns the prefix itself (the embedding option).
    start:  token ids: the keys and values that the bare base computes for these words are the
            starting point, and there must be as many ids as `length`. None starts at random.
    shifts: the text's positions begin behind the prefix, as in the paper's code and as behind a
            prompt, not at 0. What `compile_prompt` makes.
    at:     'attn.kv', 'cross.kv'.
    """

    length: int = 10
    mlp: int | None = 512
    start: tuple[int, ...] | None = None
    shifts: bool = False
    at: Where = Where(("attn.kv", "cross.kv?"))

    paper: ClassVar[str] = "Li & Liang, ACL 2021"

    def check(self) -> None:
        """See `Method`."""
        whole(self, "length")
        if self.mlp is not None:
            whole(self, "mlp")
        if self.start is not None and len(self.start) != self.length:
            raise SpecError(f"Prefix: {len(self.start)} token ids for {self.length} positions")

    def build(self, site: Site, shared: Shared) -> Keys:
        """See `Method`."""
        only(self, site, site.heads > 0, "attention ('attn.kv', 'cross.kv')")
        shift = self.length if self.shifts and site.role == "attn.kv" else 0
        if self.mlp is None:
            return Vectors(site.heads, self.length, site.head_dim, shift)
        alike = [s for s in shared.sites if (s.stack, s.role) == (site.stack, site.role)]
        if any(s.d_out != site.d_out for s in alike):
            raise SpecError(
                "Prefix: an MLP needs attention of equal width everywhere; use mlp=None"
            )
        length, inner, width = self.length, self.mlp, site.d_in
        made = shared.once(
            f"{site.stack}.{site.role}",
            site.stack,
            lambda: Reparameterisation(length, width, inner, len(alike), 2 * site.d_out),
        )
        return Sliced(made, alike.index(site), site.heads, site.head_dim, shift)

    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        """Start from the activations of real words (section 7.4), exactly."""
        if self.start is None:
            return
        seen = shared.probe(list(self.start))
        if self.mlp is None:
            for name, piece in pieces.items():
                k, v = seen[name]
                piece.accept({"k": k.float(), "v": v.float()})
            return
        for key, once in shared.modules.items():
            alike = [s for s in shared.sites if f"{s.stack}.{s.role}" == key]
            flat = [torch.stack(seen[s.name]).float() for s in alike]  # each [2, H, P, K]
            target = torch.stack(flat).permute(3, 0, 1, 2, 4).flatten(2)  # [P, L, 2·H·K]
            assert isinstance(once.net, Reparameterisation)
            once.net.fit(target)

    def served(self) -> Prefix:
        """See `Method`: without the MLP, and not starting anew."""
        return replace(self, mlp=None, start=None)


Prefix.examples = (Prefix(length=3, mlp=None), Prefix(length=2, mlp=5))


class Vectors(Keys):
    """The prefix itself."""

    def __init__(self, heads: int, length: int, width: int, shift: int):
        super().__init__()
        self.shift = shift
        self.k = nn.Parameter(torch.randn(heads, length, width) * 0.02)  # [H, P, K]
        self.v = nn.Parameter(torch.randn(heads, length, width) * 0.02)  # [H, P, K]

    def forward(self) -> tuple[Tensor, Tensor]:
        """See `Keys`."""
        return self.k, self.v


class Reparameterisation(nn.Module):
    """`P' → linear → tanh → linear`, all layers of one kind of attention at once."""

    def __init__(self, length: int, width: int, inner: int, layers: int, both: int):
        super().__init__()
        self.layers = layers
        self.seed = nn.Parameter(torch.randn(length, width))  # [P, D]
        self.inner = nn.Linear(width, inner)
        self.outer = nn.Linear(inner, layers * both)

    def forward(self) -> Tensor:
        """-> `[P, L, 2·H·K]`."""
        made = self.outer(torch.tanh(self.inner(self.seed)))
        return made.unflatten(1, (self.layers, -1))

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
        solved = torch.linalg.lstsq(hidden.double(), rest.double(), driver="gelsd").solution \
            if hidden.device.type == "cpu" else torch.linalg.pinv(hidden.double()) @ rest.double()  # fmt: skip  # noqa: E501
        self.outer.weight.copy_(solved.T.to(hidden))


class Sliced(Keys):
    """One layer's part of what the MLP makes."""

    def __init__(self, made: Once, layer: int, heads: int, width: int, shift: int):
        super().__init__()
        self.shift = shift
        self._made = (made,)  # shared by all layers: in a tuple, so that it is no part of this one
        self.layer = layer
        self.heads = heads
        self.width = width

    def forward(self) -> tuple[Tensor, Tensor]:
        """See `Keys`."""
        both = self._made[0]()[:, self.layer]  # [P, 2·H·K]
        k, v = both.unflatten(1, (2, self.heads, self.width)).permute(1, 2, 0, 3)
        return k, v

    def served(self) -> dict[str, Tensor]:
        """The prefix alone, as `Vectors` reads it."""
        with torch.no_grad():
            both = self._made[0].net()[:, self.layer]
            k, v = both.unflatten(1, (2, self.heads, self.width)).permute(1, 2, 0, 3)
        return {"k": k.contiguous(), "v": v.contiguous()}
