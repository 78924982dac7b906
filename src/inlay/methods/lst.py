"""LST: gᵢ = Block(μᵢ gᵢ₋₁ + (1 - μᵢ) Wᵢ hᵢ), μᵢ = σ(αᵢ / T), beside the base (Sung et al., 2022).

h₀ ──────> h₁ ──────> … ──────> h_L          the base: no gradient, no graph
│ W₀       │ W₁                 │ W_L
g₀ ──(μ₁)──> g₁ ──(μ₂)──> … ──> g_L ──> norm ──> W_out ──> the base's head
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.blocks.bottleneck import activation
from inlay.blocks.pruning import Pruner, fisher, squared_weights
from inlay.blocks.side_block import (
    AttentionShape,
    BlockShape,
    Projection,
    RootMeanSquareNorm,
    SideBlock,
    Sight,
)
from inlay.core.context import PassContext
from inlay.core.method import Loss, Method, Shared, positive, positive_int
from inlay.core.piece import SideEncoder, SideNetwork
from inlay.core.site import Site, Where
from inlay.errors import RowsError, SiteError, SpecError

GROUPS = {
    "attn": ("q", "k", "v", "o"),
    "cross": ("q", "k", "v", "o"),
    "mlp": ("gate", "up", "down"),
}
READ = tuple(f"{group}.{part}?" for group, parts in GROUPS.items() for part in parts)
NORMS = ("norm.attn?", "norm.cross?", "norm.mlp?")
"""What is looked at in the base's blocks, for the sizes and starting values of the side blocks."""

STARTS = ("fisher", "magnitude", "random")
HEAD_DIM = 64
"""K of the base where its attention has none that a side block could copy."""


@dataclass(frozen=True, repr=False)
class LST(Method):
    """Ladder side-tuning: a narrow network beside the base, which is never gone back through.

    Each side block reads the side block before it, mixed with the hidden state of the base after
    the same block. No gradient enters the base, so it runs without a graph: training needs the
    memory of the side network alone. In an encoder-decoder there are two side networks, and the
    decoder's attends to the encoder's.

    The side blocks are transformer blocks of our own, the same on every base (see
    `blocks.side_block`): as many heads as the base has, K / r and M / r wide. Where the base's
    block has matrices of that kind they start as narrow copies of these: of its rows and columns
    the most important ones are kept, and so are those of the gains of norms before sub-layers.
    Where it has others (experts, latent attention, state spaces) they start at random values.

    reduction:   r, by which the side network is narrower than the base.
    layers:      the blocks that have a side block; negative ones count from the end. None means
                 all but every fourth (0, 4, 8, …), which the authors leave out in T5-base.
    start:       how the rows and columns are chosen that side blocks start with: "fisher", by
                 squared gradients, which takes a look at the training data before it begins;
                 "magnitude", by squared weights; "random", nothing is copied.
    batches:     how many batches of the training data "fisher" looks at, at most.
    temperature: T of the gates.
    act:         the activation of the side blocks' feed-forward layers.
    merge_last:  mix what the side network gives with the base's own last state, by one more gate.
    at:          follows from the fields: the last states, and what is copied.
    """

    reduction: int = 8
    layers: tuple[int, ...] | None = None
    start: str = "fisher"
    batches: int = 64
    temperature: float = 0.1
    act: str = "gelu"
    merge_last: bool = False

    lr: ClassVar[float] = 3e-3
    paper: ClassVar[str] = "Sung et al., NeurIPS 2022"
    sources: ClassVar[Mapping[str, str]] = {
        "reduction": "the paper",
        "layers": "the authors' scripts for T5-base",
        "start": "the paper",
        "batches": "the authors' code: 1024 examples, here in batches of 16",
        "temperature": "the authors' code",
        "act": "chosen: near what most bases have",
        "merge_last": "the authors' code, where it is off",
        "lr": "the authors' scripts",
    }

    @override
    def check(self) -> None:
        positive_int(self, "reduction", "batches")
        positive(self, "temperature")
        activation(self.act)
        if self.start not in STARTS:
            raise SpecError(f"LST: start is one of {', '.join(STARTS)}, not {self.start!r:.40}")
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))
            if not self.layers:
                raise SpecError("LST: layers are numbers of blocks; None takes most of them")
        roles = ("final", "final.target?", "block", "attn.kv?", "cross.kv?", *READ, *NORMS)
        object.__setattr__(self, "at", Where(roles))

    @property
    @override
    def needs_preparation(self) -> bool:
        return self.start == "fisher"

    @override
    def prepare(
        self, base: PreTrainedModel, sites: Sequence[Site], batches: Iterable[Loss]
    ) -> Mapping[str, Tensor]:
        return fisher(sites, batches, self.batches)

    @override
    def build(self, site: Site, shared: Shared) -> SideNetwork | SideEncoder | None:
        if site.role not in ("final", "final.target"):
            return None
        kept = self._kept(site, shared)
        shapes = {layer: _shape(self, site, shared, layer) for layer in kept}
        ladder = Ladder(self, site.d_out, shapes, causal=site.stack == "decoder")
        self._fill(ladder, site, shared)
        targets = [other for other in shared.sites if other.role == "final.target"]
        if site.role == "final" and targets:
            return SideOfEncoder(ladder)
        return SideStack(ladder, site.d_out, self)

    def _kept(self, site: Site, shared: Shared) -> list[int]:
        """The blocks of a stack that have a side block."""
        blocks = [s for s in shared.sites if s.role == "block" and s.stack == site.stack]
        widths = {s.d_out for s in blocks}
        if widths != {site.d_out}:
            raise SiteError(
                f"LST reads the outputs of all blocks of a stack, and those of the {site.stack} "
                f"are {sorted(widths)} wide; use a method that acts inside blocks, such as LoRA"
            )
        depth = len(blocks)
        if self.layers is None:
            return [i for i in range(depth) if i % 4] or [0]
        for layer in self.layers:
            if not -depth <= layer < depth:
                raise SpecError(
                    f"LST: there is no block {layer} in the {site.stack}, which has {depth}"
                )
        return sorted({layer % depth for layer in self.layers})

    def _fill(self, ladder: Ladder, site: Site, shared: Shared) -> None:
        """Start the side blocks as narrow copies."""
        scores = shared.prepared
        if self.start == "magnitude":
            scores = squared_weights(shared.sites)
        if self.start == "random" or not scores:
            return  # there is nothing prepared where a file is read
        pruner = Pruner(scores, shared.sites)
        stream = pruner.stream(site.stack, site.d_out, ladder.width)
        for layer, block in zip(ladder.layers, ladder.blocks, strict=True):
            assert isinstance(block, SideBlock)
            source = None
            if block.cross is not None:
                width = _sites_at(shared, site, layer, "cross.k")[0].d_in
                source = pruner.stream(pruner.source, width, block.cross.shape.source)
            pruner.fill(block, site.stack, layer, stream, source)


LST.examples = (
    LST(reduction=2, start="random"),
    LST(reduction=2, layers=(-1,), start="magnitude", merge_last=True),
)


def _sites_at(shared: Shared, site: Site, layer: int, role: str) -> list[Site]:
    return [
        s
        for s in shared.sites
        if (s.stack, s.layer, s.role) == (site.stack, layer, role) and s.expert is None
    ]


def _shape(spec: LST, site: Site, shared: Shared, layer: int) -> BlockShape:
    """The side block beside one block."""
    width = _narrow(site.d_out, spec)
    bias = any(s.bias() is not None for s in _sites_at(shared, site, layer, "mlp.down"))
    attention = _attention_shape(spec, site, shared, layer, "attn", width)
    crosses = _sites_at(shared, site, layer, "cross.k")
    cross = None
    if crosses:
        source = _narrow(crosses[0].d_in, spec)
        cross = _attention_shape(spec, site, shared, layer, "cross", source)
    ups = [s for s in _sites_at(shared, site, layer, "mlp.up") if s.d_in == site.d_out]
    inner = ups[0].d_out if ups else 4 * site.d_out
    gated = bool(ups and _sites_at(shared, site, layer, "mlp.gate"))
    return BlockShape(width, attention, cross, _narrow(inner, spec), gated, bias)


def _attention_shape(
    spec: LST, site: Site, shared: Shared, layer: int, group: str, source: int
) -> AttentionShape:
    """Heads as the base has them; as many as fit where it has none of this kind."""
    keys, outputs = (
        _sites_at(shared, site, layer, f"{group}.kv"),
        _sites_at(shared, site, layer, f"{group}.o"),
    )
    heads = 0
    if keys and outputs and not outputs[0].d_in % max(1, keys[0].value_dim):
        heads = outputs[0].d_in // keys[0].value_dim
    if not heads or heads % keys[0].heads:
        heads = max(1, site.d_out // HEAD_DIM)
        return AttentionShape(heads, heads, _narrow(site.d_out // heads, spec), source)
    bias = outputs[0].bias() is not None
    head_dim = _narrow(keys[0].head_dim, spec)
    return AttentionShape(heads, keys[0].heads, head_dim, source, bias)


def _narrow(width: int, spec: LST) -> int:
    return max(1, width // spec.reduction)


class Ladder(nn.Module):
    """The side blocks of one stack, with what leads from the base's states to each."""

    def __init__(self, spec: LST, width: int, shapes: Mapping[int, BlockShape], causal: bool):
        super().__init__()
        self.width = _narrow(width, spec)
        self.temperature = spec.temperature
        self.layers = list(shapes)
        self.causal = causal
        self.first = Projection(width, self.width, bias=True)
        self.downs = nn.ModuleList(Projection(width, self.width, bias=True) for _ in shapes)
        self.gates = nn.Parameter(torch.zeros(len(shapes)))  # α, one a block
        self.blocks = nn.ModuleList(SideBlock(shape, spec.act) for shape in shapes.values())
        self.norm = RootMeanSquareNorm(self.width)

    @override
    def forward(
        self,
        states: tuple[Tensor, ...],
        source: Tensor | None,
        context: PassContext,
        owner: object,
    ) -> Tensor:
        """States L + 1 times `[B, T, D]`, source `[B, S, D' / r]` -> `[B, T, D / r]`."""
        sight = Sight(context, self.causal, states[0].shape[1])
        x = self.first(states[0])
        shares = (self.gates / self.temperature).sigmoid().to(x.dtype)  # μ
        parts = zip(self.layers, self.downs, self.blocks, strict=True)
        for number, (layer, down, block) in enumerate(parts):
            mixed = torch.lerp(down(states[layer + 1]), x, shares[number])
            x = block(mixed, source, sight, owner, number)
        return self.norm(x)


class SideStack(SideNetwork):
    """The side network of a stack whose last states a head reads."""

    def __init__(self, ladder: Ladder, width: int, spec: LST):
        super().__init__()
        self.ladder = ladder
        self.up = Projection(ladder.width, width, bias=True)
        self.last_gate = nn.Parameter(torch.zeros(1)) if spec.merge_last else None  # α

    @override
    def forward(self, states: tuple[Tensor, ...], last: Tensor, context: PassContext) -> Tensor:
        """Raises RowsError for an encoder's states that were computed without its side network."""
        source = context.side_states
        for block in self.ladder.blocks:
            cross = block.cross if isinstance(block, SideBlock) else None
            if cross is None:
                continue
            if source is None:
                raise RowsError(
                    "the encoder's states were computed without the side network of these rows; "
                    "run the encoder again, with the rows that the decoder has"
                )
            source = source[..., : cross.shape.source]
        y = self.up(self.ladder(states, source, context, self))
        if self.last_gate is None:
            return y
        share = (self.last_gate / self.ladder.temperature).sigmoid().to(y.dtype)
        return torch.lerp(last, y, share)


class SideOfEncoder(SideEncoder):
    """The side network of an encoder, whose states those of the decoder attend to."""

    def __init__(self, ladder: Ladder):
        super().__init__()
        self.ladder = ladder
        self.width = ladder.width

    @override
    def forward(self, states: tuple[Tensor, ...], context: PassContext) -> Tensor:
        return self.ladder(states, None, context, self)
