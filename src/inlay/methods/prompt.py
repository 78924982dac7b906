"""Prompt tuning: [P; E(x)], P is trained (Lester et al., EMNLP 2021, section 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from typing_extensions import override

from inlay.blocks.init import common_tokens, embeddings
from inlay.blocks.vectors import PromptTable
from inlay.core.method import Method, Shared, positive_int, require_site
from inlay.core.site import Site, Where
from inlay.errors import SpecError

Words = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, repr=False)
class Prompt(Method):
    """Trained positions before the text; an encoder keeps its first token first.

    length: P, virtual tokens.
    start:  "common" (different ones of the 5,000 most common tokens: the vocabularies of today
            are ordered by frequency), "uniform" (±0.5), or token ids: one group a position, whose
            embeddings are averaged (a class label of several tokens is one group); positions
            beyond the groups start as "common". `inlay.words` makes groups of a text.
    at:     'embed', or 'embed.target' for the decoder of an encoder–decoder.
    """

    length: int = 20
    start: Literal["common", "uniform"] | Words = "common"
    at: Where = Where(("embed",))

    lr: ClassVar[float] = 1e-2
    size: ClassVar[str] = "length"
    paper: ClassVar[str] = "Lester et al., EMNLP 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "length": "the paper: little to gain beyond 20 (section 3.2); on a small T5 50 were better "
        "still, 0.85 against 0.81 (the claim `length`)",
        "start": "the claim `prompt_init`; class labels did better still, and need the labels",
        "lr": "a rate that never diverged here; the paper's 0.3 is for Adafactor and T5",
    }

    @override
    def check(self) -> None:
        positive_int(self, "length")
        if isinstance(self.start, str):
            if self.start not in ("common", "uniform"):
                raise SpecError(f"Prompt: start is 'common', 'uniform' or ids, not {self.start!r}")
        elif not all(self.start) or len(self.start) > self.length:
            groups = len(self.start)
            raise SpecError(f"Prompt: {groups} groups of ids for {self.length} positions")

    @override
    def build(self, site: Site, shared: Shared) -> PromptTable:
        require_site(
            self, site, site.role in ("embed", "embed.target"), "input embeddings ('embed')"
        )
        return PromptTable(self._values(site))

    @override
    def exported(self) -> Prompt:
        """Not starting anew."""
        return replace(self, start="uniform")

    def _values(self, site: Site) -> Tensor:
        width = site.d_out
        if self.start == "uniform":
            return torch.empty(self.length, width).uniform_(-0.5, 0.5)
        words: Words = () if isinstance(self.start, str) else self.start
        tokens = common_tokens(self, site.d_in, self.length - len(words))
        return embeddings(self, site, [*words, *((number,) for number in tokens)])


Prompt.examples = (
    Prompt(length=3),
    Prompt(length=2, start="uniform"),
    Prompt(length=3, start=((5,), (6, 7))),
)
