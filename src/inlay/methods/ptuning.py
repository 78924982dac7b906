"""P-tuning: trained vectors in place of a template's words (Liu et al., 2021, section 2.2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.init import embeddings
from inlay.blocks.vectors import VirtualTokenTable
from inlay.core.method import Method, Shared, positive_int, require_site
from inlay.core.piece import OncePerPass, Piece, Reference, VirtualTokens
from inlay.core.site import Site, Where
from inlay.errors import SpecError

Words = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, repr=False)
class PTuning(Method):
    """Virtual tokens that stand anywhere in the text, where a template says `{p}` or `{p*3}`.

    The words of the labels are trained too in a sum with label vectors alone, `PTuning(...) +
    WARP(length=0, ...)`; the base, with the training option `base_lr`; and the text itself is
    predicted beside the label with the task's `auxiliary_weight`.

    length:  N, virtual tokens; as many as the template has.
    encoder: the network that computes the vectors in training, dropped in the file: a "lstm" (two
             layers in both directions, then an MLP: the paper's), a "mlp" (which learns faster on
             a frozen base: 0.85 against 0.75 of movie reviews after 250 steps), or None, which
             trains the vectors directly (at ten times the learning rate).
    start:   token ids, one group a position, whose embeddings are averaged: the vectors begin
             there (with an encoder: it is fitted to them). None starts at random.
    at:      'embed', or 'embed.target' for the decoder of an encoder–decoder.
    """

    length: int = 9
    encoder: Literal["lstm", "mlp"] | None = "mlp"
    start: Words | None = None
    at: Where = Where(("embed",))

    size: ClassVar[str] = "length"
    paper: ClassVar[str] = "Liu et al., 2021 (GPT Understands, Too)"
    sources: ClassVar[Mapping[str, str]] = {
        "length": "the paper's template for LAMA, three times three",
        "encoder": "measured on movie reviews, one seed, each encoder at its own learning "
        "rate: 0.85 against the LSTM's 0.75 (LOG.md); the claim `ptuning_encoder` finds no "
        "difference",
        "lr": "measured on movie reviews, for each encoder (LOG.md)",
    }

    @override
    def check(self) -> None:
        positive_int(self, "length")
        if self.encoder not in ("lstm", "mlp", None):
            raise SpecError(f"PTuning: encoder is 'lstm', 'mlp' or None, not {self.encoder!r}")
        if self.start is not None and (len(self.start) != self.length or not all(self.start)):
            groups = len(self.start)
            raise SpecError(f"PTuning: {groups} groups of ids for {self.length} positions")

    @override
    def learning_rate(self) -> float:
        return {None: 1e-2, "mlp": 1e-3, "lstm": 3e-3}[self.encoder]

    @override
    def build(self, site: Site, shared: Shared) -> VirtualTokens:
        require_site(
            self, site, site.role in ("embed", "embed.target"), "input embeddings ('embed')"
        )
        if self.encoder is None:
            return VirtualTokenTable(self._start(site))
        encoder = shared.once_per_pass(
            site.name, site.stack, lambda: Encoder(self.length, site.d_out, self.encoder == "lstm")
        )
        return EncodedTokens(encoder, self.length)

    def finish(self, pieces: Mapping[str, Piece], shared: Shared) -> None:
        """Fit the encoder to real words, exactly."""
        for site in shared.sites:
            encoder = shared.modules.get(site.name)
            if isinstance(encoder, OncePerPass) and isinstance(encoder.net, Encoder):
                encoder.net.fit(self._start(site).to(site.device()), exactly=self.start is not None)

    @override
    def exported(self) -> PTuning:
        """Without the encoder, and not starting anew."""
        return replace(self, encoder=None, start=None)

    def _start(self, site: Site) -> Tensor:
        """Embeddings `[N, D]` of the starting words, or of tokens drawn at random."""
        if self.start is not None:
            return embeddings(self, site, self.start)
        tokens = torch.randint(0, site.d_in, (self.length,), device="cpu")
        return site.host.forward(tokens.to(site.device())).detach().float()


PTuning.examples = (
    PTuning(length=3, encoder=None),
    PTuning(length=2),
    PTuning(length=2, encoder="lstm"),
)


class Encoder(nn.Module):
    """`h = MLP([→LSTM; ←LSTM](z))` for all positions at once; without the LSTM `h = MLP(z)`."""

    def __init__(self, length: int, width: int, recurrent: bool):
        super().__init__()
        self.seed = nn.Parameter(torch.randn(length, width))  # [N, D]
        half = (width + 1) // 2
        self.lstm = (
            nn.LSTM(width, half, num_layers=2, bidirectional=True, batch_first=True)
            if recurrent
            else None
        )
        self.inner = nn.Linear(2 * half if recurrent else width, width)
        self.outer = nn.Linear(width, width)

    def forward(self) -> Tensor:
        """-> `[N, D]`."""
        return self.outer(self._hidden())

    def _hidden(self) -> Tensor:
        states = self.seed if self.lstm is None else self.lstm(self.seed[None])[0][0]
        return torch.relu(self.inner(states))

    @torch.no_grad()
    def fit(self, target: Tensor, exactly: bool) -> None:
        """Begin where real embeddings are: exactly at `target` `[N, D]`, or at its scale.

        A linear layer's own starting values make vectors far shorter than any embedding, which a
        base has never seen.
        """
        if not exactly:
            output = self.forward()
            ratio = target.std() / (output - output.mean(0)).std().clamp(min=1e-6)
            self.outer.weight.mul_(ratio)
            self.outer.bias.mul_(ratio)
            return
        hidden = self._hidden().double()
        self.outer.bias.copy_(target.mean(0))
        rest = (target - target.mean(0)).double()
        self.outer.weight.copy_((torch.linalg.pinv(hidden) @ rest).T)


class EncodedTokens(VirtualTokens):
    """The encoder's output, computed once for all rows."""

    def __init__(self, encoder: OncePerPass, length: int):
        super().__init__()
        self.length = length
        self._encoder = Reference(encoder)

    @override
    def forward(self) -> Tensor:
        return self._encoder.module()

    def export(self) -> dict[str, Tensor]:
        """The vectors alone, as `VirtualTokenTable` reads them."""
        with torch.no_grad():
            return {"values": self._encoder.module.net().contiguous()}
