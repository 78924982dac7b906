"""WARP: trained prompt and label vectors, s_c = v_c · f_MASK + b_c (Hambardzumyan et al., 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.init import check_tokens, embeddings, normal
from inlay.blocks.vectors import VirtualTokenTable
from inlay.core.method import Method, Shared, require_site
from inlay.core.piece import HeadPiece, VirtualTokens
from inlay.core.site import Site, Where
from inlay.errors import SiteError, SpecError

Words = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, repr=False)
class WARP(Method):
    """Virtual tokens in a template, and a vector for each label, scored where a word would be.

    That is at the template's `{mask}` in an encoder, after the text in a decoder; what is scored
    is what the output embeddings read (in BERT: after the head's dense layer and norm).

    labels: the names of the classes, in order.
    length: K, virtual tokens; as many as the template has (0: label vectors alone).
    start:  token ids, one group a virtual token, whose embeddings are averaged, such as the mask
            token's. None draws from the normal distribution of the embedding table.
    words:  token ids, one group a label: label vectors begin as these words' output embeddings,
            with their biases (WARP_init). None starts at random.
    at:     'embed' and 'head'.
    """

    labels: tuple[str, ...] = ("0", "1")
    length: int = 8
    start: Words | None = None
    words: Words | None = None
    at: Where = Where(("embed", "head"))

    has_head: ClassVar[bool] = True
    lr: ClassVar[float] = 1e-3
    size: ClassVar[str] = "length"
    paper: ClassVar[str] = "Hambardzumyan et al., ACL 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "length": "our choice; the paper's runs on GLUE have up to 20",
        "lr": "the authors' code",
    }

    @override
    def check(self) -> None:
        if len(self.labels) < 1 or len(set(self.labels)) != len(self.labels):
            raise SpecError(f"WARP: labels are different names, not {self.labels!r:.80}")
        if self.length < 0:
            raise SpecError(f"WARP: length must be 0 or more, not {self.length}")
        for name, groups, count in (
            ("start", self.start, self.length),
            ("words", self.words, len(self.labels)),
        ):
            if groups is not None and (len(groups) != count or not all(groups)):
                raise SpecError(
                    f"WARP: {name} has {len(groups)} groups of ids where {count} belong"
                )

    @override
    def build(self, site: Site, shared: Shared) -> VirtualTokens | HeadPiece | None:
        require_site(self, site, site.role in ("embed", "head"), "'embed' and 'head'")
        if len({one.stack for one in shared.sites}) > 1:
            raise SiteError("WARP reads the stack that it prompts, and an encoder–decoder has two")
        if site.role == "head":
            return LabelVectors(self, site)
        return VirtualTokenTable(self._start(site)) if self.length else None

    @override
    def exported(self) -> WARP:
        """Not starting anew."""
        return replace(self, start=None, words=None)

    def _start(self, site: Site) -> Tensor:
        if self.start is not None:
            return embeddings(self, site, self.start)
        table = site.weight().float()
        noise = torch.randn(self.length, site.d_out, device="cpu").to(table.device)
        return table.mean(0) + table.std(0) * noise


WARP.examples = (WARP(length=3), WARP(length=2, words=((5,), (6, 7))))


class LabelVectors(HeadPiece):
    """The vectors of the labels, in fp32."""

    reads = "features"

    def __init__(self, spec: WARP, site: Site):
        super().__init__()
        self.labels = spec.labels
        self.weight = normal(len(spec.labels), site.d_in, std=0.02)  # [C, D]
        self.bias = nn.Parameter(torch.zeros(len(spec.labels)))  # [C]
        if spec.words is not None:
            check_tokens(spec, spec.words, site.d_out)
            table, bias = site.weight().float(), site.bias()
            with torch.no_grad():
                for label, group in enumerate(spec.words):
                    self.weight[label] = table[list(group)].mean(0)
                    if bias is not None:
                        self.bias[label] = bias.float()[list(group)].mean()

    @override
    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Hidden `[B, 1, D]` is the one place where a word would be read off."""
        return hidden[:, 0].float() @ self.weight.T + self.bias
