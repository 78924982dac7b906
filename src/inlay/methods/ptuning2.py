"""P-tuning v2: trained keys and values in every layer, and a head (Liu et al., ACL 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from typing_extensions import override

from inlay.blocks.kv_prefix import Start, check_prefix, keys_at, prefix_learning_rate, start_from
from inlay.core.method import Method, Shared, fraction
from inlay.core.piece import ExtraKV, Piece
from inlay.core.site import Site, Where


@dataclass(frozen=True, repr=False)
class PTuningV2(Method):
    """Deep prompts for understanding: trained keys and values in every layer, without an MLP.

    Made for a trained head on top (sentences, tags, spans): `PTuningV2() + Head(labels=[...])`.

    length:  P, virtual tokens; below 20 for simple classification, about 100 for hard tagging
             (section 3.2).
    mlp:     inner width of the MLP that computes the keys and values in training; None as a rule.
    start:   "common", token ids, as many as `length`, or None: see `Prefix`.
    dropout: fraction of the keys and values that is dropped in training.
    at:      'attn.kv'.
    """

    length: int = 20
    mlp: int | None = None
    start: Start = "common"
    dropout: float = 0.0
    at: Where = Where(("attn.kv",))

    size: ClassVar[str] = "length"
    paper: ClassVar[str] = "Liu et al., ACL 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "length": "the paper: below 20 for simple classification, about 100 for tagging (section "
        "3.2)",
        "mlp": "our choice; the paper finds it of use on some tasks only (section 3.2)",
        "start": "measured on movie reviews, 0.84 against 0.52 from the paper's N(0, 1) (LOG.md)",
        "dropout": "our choice; the authors' code drops as the base does",
        "lr": "as for `Prefix` without its MLP",
    }

    @override
    def check(self) -> None:
        check_prefix(self, self.length, self.mlp, self.start)
        fraction(self, "dropout")

    @override
    def learning_rate(self) -> float:
        """As for `Prefix`."""
        return prefix_learning_rate(self.mlp)

    @override
    def build(self, site: Site, shared: Shared) -> ExtraKV:
        return keys_at(
            self, site, shared, length=self.length, mlp=self.mlp, dropout=self.dropout, std=1.0
        )

    @override
    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        start_from(self, self.start, self.length, pieces, shared)

    @override
    def exported(self) -> PTuningV2:
        """Without the MLP, and not starting anew."""
        return replace(self, mlp=None, start=None)


PTuningV2.examples = (PTuningV2(length=3), PTuningV2(length=2, mlp=5, start=None, dropout=0.1))
