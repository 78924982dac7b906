"""Rows: E[token] + δ[token], rows of the embeddings for chosen tokens, and of a head tied to them.

That is what tokens need which were added to a tokenizer: `model.resize_token_embeddings` gives
them rows, and nothing else trains or saves these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared, require_site
from inlay.core.piece import OutputDelta, Piece
from inlay.core.site import Site, Where
from inlay.errors import SpecError


@dataclass(frozen=True, repr=False)
class Rows(Method):
    """The embeddings of some tokens, trained and saved whole; all other tokens stay as they are.

    The file holds the rows themselves, not their change, so that they are the same in another base
    whose new tokens started from other random rows. Where the language-model head shares its
    matrix with the embeddings, both get the same rows.

    tokens: ids; negative ones count from the end of the table, where new tokens stand.
    at:     embeddings, and the language-model head.
    """

    tokens: tuple[int, ...] = (-1,)
    at: Where = Where(("embed", "embed.target?", "head?"))

    identity: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-3
    sources: ClassVar[Mapping[str, str]] = {"lr": "our choice"}

    @override
    def check(self) -> None:
        if not self.tokens or len(set(self.tokens)) < len(self.tokens):
            raise SpecError(f"Rows: tokens are ids, each once, not {self.tokens!r:.80}")

    @override
    def build(self, site: Site, shared: Shared) -> TokenRows:
        fits = site.role in ("embed", "embed.target", "head")
        require_site(self, site, fits, "'embed', 'embed.target' and 'head'")
        size = len(site.parameter)
        for token in self.tokens:
            if not -size <= token < size:
                raise SpecError(
                    f"Rows: there is no token {token} among the {size} at {site.name}; call "
                    "model.resize_token_embeddings for tokens that were added to the tokenizer"
                )
        return TokenRows(site, torch.tensor([token % size for token in self.tokens]))

    @override
    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        """Places that share a matrix in the base share the rows."""
        first: dict[int, TokenRows] = {}
        for site in shared.sites:
            piece = pieces.get(site.name)
            if isinstance(piece, TokenRows):
                piece.rows = first.setdefault(id(site.parameter), piece).rows


Rows.examples = (Rows(tokens=(-1, *range(8, 60))),)


class TokenRows(OutputDelta):
    """The rows of one matrix, beginning as the base's."""

    brings_weights: ClassVar[bool] = True
    tokens: Tensor

    def __init__(self, site: Site, tokens: Tensor):
        super().__init__()
        self._site = site
        self.register_buffer("tokens", tokens.to(site.device()), persistent=False)  # [N]
        self.rows = nn.Parameter(self._own().clone())  # [N, D]

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        change = self.rows - self._own()
        if self._site.role == "head":  # x [..., D], y [..., V]
            columns = linear(x, change)
            return torch.zeros_like(y).index_copy(-1, self.tokens, columns)
        chosen = x[..., None] == self.tokens  # ids [B, T] -> [B, T, N]
        return chosen.to(y.dtype) @ change.to(y.dtype)

    def _own(self) -> Tensor:
        """The base's rows, `[N, D]`, in fp32."""
        with torch.no_grad():
            return self._site.parameter[self.tokens].float()
