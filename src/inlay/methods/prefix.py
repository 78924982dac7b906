"""Prefix tuning: K ← [P_K; K], V ← [P_V; V] in every layer (Li & Liang, ACL 2021, section 4)."""

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
class Prefix(Method):
    """Trained keys and values that every position can attend to, in every layer.

    In an encoder–decoder there are three independent sets: encoder self-attention, decoder
    self-attention and cross-attention. Positions and context length are untouched. Trained
    vectors in the embedding layer alone, the paper's ablation, are `Prompt`.

    length: P, virtual tokens.
    mlp:    inner width of the MLP that computes the prefix in training, `P' → tanh → 2·L·d`; it is
            dropped in the file. None trains the prefix directly (the embedding option).
    start:  real words, whose keys and values in the bare base are the starting point: "common"
            (different ones of the 5,000 most common tokens) or token ids, as many as `length`.
            None starts at random values, from which few steps lead nowhere: 0.53 against 0.83
            of movie reviews after 250 and 150 steps.
    dropout: fraction of the prefix that is dropped in training.
    shifts: the text's positions begin after the prefix, as in the paper's code and as after a
            prompt, not at 0. What `compile_prompt` makes.
    at:     'attn.kv', 'cross.kv'.
    """

    length: int = 10
    mlp: int | None = 512
    start: Start = "common"
    dropout: float = 0.0
    shifts: bool = False
    at: Where = Where(("attn.kv", "cross.kv?"))

    size: ClassVar[str] = "length"
    paper: ClassVar[str] = "Li & Liang, ACL 2021"
    sources: ClassVar[Mapping[str, str]] = {
        "length": "the paper: longer ones gain nothing on table-to-text",
        "mlp": "the paper's width for table-to-text",
        "start": "measured on movie reviews, 0.83 against 0.53 from random values (LOG.md)",
        "dropout": "the authors' code",
        "lr": "measured on movie reviews (LOG.md): 1e-4 and 3e-4 alike with the MLP, 1e-2 without "
        "it",
    }

    @override
    def check(self) -> None:
        check_prefix(self, self.length, self.mlp, self.start)
        fraction(self, "dropout")

    @override
    def learning_rate(self) -> float:
        return prefix_learning_rate(self.mlp)

    @override
    def build(self, site: Site, shared: Shared) -> ExtraKV:
        return keys_at(
            self,
            site,
            shared,
            length=self.length,
            mlp=self.mlp,
            dropout=self.dropout,
            shift=self.length if self.shifts else 0,
        )

    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        """Start from the activations of real words (section 7.4)."""
        start_from(self, self.start, self.length, pieces, shared)

    @override
    def exported(self) -> Prefix:
        """Without the MLP, and not starting anew."""
        return replace(self, mlp=None, start=None)


Prefix.examples = (Prefix(length=3, mlp=None, start=None), Prefix(length=2, mlp=5))
