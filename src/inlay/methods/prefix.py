"""Prefix tuning: K ← [P_K; K], V ← [P_V; V] in every layer (Li & Liang, ACL 2021, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from inlay.errors import SpecError
from inlay.piece import Keys, Piece
from inlay.prefixes import keys_at, start_from
from inlay.site import Site, Where
from inlay.spec import Method, Shared, share, whole


@dataclass(frozen=True, repr=False)
class Prefix(Method):
    """Trained keys and values that every position can attend to, in every layer.

    In an encoder–decoder there are three independent sets: encoder self-attention, decoder
    self-attention and cross-attention. Positions and context length are untouched. Trained
    vectors in the embedding layer alone, the paper's ablation, are `Prompt`.

    length: P, virtual tokens.
    mlp:    inner width of the MLP that makes the prefix in training, `P' → tanh → 2·L·d`; it is
            dropped in the file. None learns the prefix itself (the embedding option).
    start:  token ids: the keys and values that the bare base computes for these words are the
            starting point, and there must be as many ids as `length`. None starts at random.
    dropout: share of the prefix that is dropped in training.
    shifts: the text's positions begin behind the prefix, as in the paper's code and as behind a
            prompt, not at 0. What `compile_prompt` makes.
    at:     'attn.kv', 'cross.kv'.
    """

    length: int = 10
    mlp: int | None = 512
    start: tuple[int, ...] | None = None
    dropout: float = 0.0
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
        share(self, "dropout")

    def build(self, site: Site, shared: Shared) -> Keys:
        """See `Method`."""
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
        if self.start is not None:
            start_from(self.start, pieces, shared)

    def served(self) -> Prefix:
        """See `Method`: without the MLP, and not starting anew."""
        return replace(self, mlp=None, start=None)


Prefix.examples = (Prefix(length=3, mlp=None), Prefix(length=2, mlp=5))
