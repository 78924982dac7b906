"""A trained head: logits = W · pool(h) + b over the last hidden state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.init import normal
from inlay.core.method import Method, Shared
from inlay.core.piece import HeadPiece
from inlay.core.site import Site, Where
from inlay.errors import SpecError


@dataclass(frozen=True, repr=False)
class Head(Method):
    """A classifier that is part of the inlay: saved, loaded and mixed per row with it.

    labels: the names of the classes, in order.
    pool:   what is classified: the "mean" over the text, its "last" or its "first" token, or
            "each" token by itself.
    bias:   whether it has a bias. The classifiers that transformers puts on decoders have none,
            so a merged decoder with its head is one of them only without (`inlay merge`).
    at:     'final'.
    """

    labels: tuple[str, ...] = ("0", "1")
    pool: Literal["mean", "last", "first", "each"] = "mean"
    bias: bool = True
    at: Where = Where(("final",))

    lr: ClassVar[float] = 1e-2
    identity: ClassVar[bool] = True
    has_head: ClassVar[bool] = True
    sources: ClassVar[Mapping[str, str]] = {
        "lr": "measured on names in tweets, on three bases (LOG.md)",
    }

    @override
    def check(self) -> None:
        if len(self.labels) < 1 or len(set(self.labels)) != len(self.labels):
            raise SpecError(f"Head: labels are different names, not {self.labels!r:.80}")
        if self.pool not in ("mean", "last", "first", "each"):
            raise SpecError(f"Head: pool is 'mean', 'last', 'first' or 'each', not {self.pool!r}")

    @override
    def build(self, site: Site, shared: Shared) -> Classifier:
        return Classifier(site.d_out, self)


class Classifier(HeadPiece):
    """Pooling and one linear map, in fp32."""

    def __init__(self, width: int, spec: Head):
        super().__init__()
        self.weight = normal(len(spec.labels), width, std=0.02)  # [C, D]
        self.bias = nn.Parameter(torch.zeros(len(spec.labels))) if spec.bias else None  # [C]
        self.labels, self.pool = spec.labels, spec.pool
        self.each = spec.pool == "each"

    @override
    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.pool == "each":
            return self._scores(hidden.float())
        mask = mask.to(hidden.device).bool()
        if self.pool == "mean":
            weights = mask.float()
            pooled = torch.einsum("btd,bt->bd", hidden.float(), weights)
            pooled = pooled / weights.sum(1, keepdim=True).clamp(min=1)
        else:
            places = torch.arange(mask.shape[1], device=mask.device)
            at = torch.where(mask, places, -1).amax(1) if self.pool == "last" else mask.int().argmax(1)  # fmt: skip  # noqa: E501
            pooled = hidden[torch.arange(len(hidden), device=hidden.device), at.clamp(min=0)].float()  # fmt: skip  # noqa: E501
        return self._scores(pooled)

    def _scores(self, states: Tensor) -> Tensor:
        """W h + b: `[..., D]` -> `[..., C]`."""
        scores = states @ self.weight.T
        return scores if self.bias is None else scores + self.bias
