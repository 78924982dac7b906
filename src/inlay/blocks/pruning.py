"""Narrow copies of a base's blocks: of its matrices only the most important rows and columns.

A column of one matrix meets a row of another, and both are kept or left out together:

    D, the width of the stream     rows of o and down, columns of q, k, v, gate and up
    K, the width of a head         rows of q and k; rows of v and columns of o; head by head
    M, the inner width             rows of gate and up, columns of down
    D of the encoder               columns of the k and v of cross-attention

How important a row or column is: the sum of its entries' scores, which are squared gradients
(Fisher information) or squared weights. Every matrix has the same say, however large its scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor, nn

from inlay.blocks.side_block import Projection, RootMeanSquareNorm, SideAttention, SideBlock
from inlay.core.site import Site
from inlay.errors import SpecError

READS = ("q", "k", "v", "gate", "up")
WRITES = ("o", "down")
SUB_LAYERS = ("attn", "cross", "mlp")


def is_matrix(site: Site) -> bool:
    """Whether a site is a matrix of a block of which a narrow copy can be made."""
    group, _, part = site.role.partition(".")
    return (
        group in SUB_LAYERS
        and part in READS + WRITES
        and site.expert is None
        and site.layer is not None
    )


def squared_weights(sites: Iterable[Site]) -> dict[str, Tensor]:
    """The scores of rows and columns by squared weights; see `fisher`."""
    scores: dict[str, Tensor] = {}
    for site in filter(is_matrix, sites):
        _add(scores, site, site.weight().detach().float().square())
    return scores


def fisher(
    sites: Iterable[Site], batches: Iterable[Callable[[], Tensor]], count: int
) -> dict[str, Tensor]:
    """The scores of rows and columns by the squared gradients of up to `count` batches' losses.

    Returns for every matrix `{site's name}/rows` `[d_out]` and `{site's name}/columns` `[d_in]`.
    Raises SpecError for matrices that have no gradients.
    """
    scores: dict[str, Tensor] = {}
    chosen = [site for site in sites if is_matrix(site)]
    parameters = {id(site.parameter): site.parameter for site in chosen}
    if any(s.quantisation or not s.parameter.is_floating_point() for s in chosen):
        raise SpecError(
            "a quantised base has no gradients for its matrices, from which Fisher information is "
            "computed; take another start"
        )
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    for loss in islice(batches, count):
        loss().backward()
        for site in chosen:
            gradient = site.parameter.grad
            if gradient is not None:
                _add(scores, site, site.own_matrix(gradient).float().square())
        for parameter in parameters.values():
            parameter.grad = None
    return scores


def _add(scores: dict[str, Tensor], site: Site, squares: Tensor) -> None:
    for name, dim in (("rows", 1), ("columns", 0)):
        key = f"{site.name}/{name}"
        total = squares.sum(dim)
        scores[key] = scores[key] + total if key in scores else total


class Pruner:
    """Fills side blocks with narrow copies.

    scores: of rows and columns, as `fisher` returns them. sites: of all blocks that are copied.
    """

    def __init__(self, scores: Mapping[str, Tensor], sites: Sequence[Site]):
        self.scores = scores
        self.sites = {(s.stack, s.layer, s.role): s for s in sites if is_matrix(s)}
        self.norms = {
            (s.stack, s.layer, s.role): s for s in sites if s.is_norm and s.layer is not None
        }
        self.source = next((s.stack for s in sites if s.role == "final"), "")

    def stream(self, stack: str, width: int, kept: int) -> Tensor:
        """The most important dimensions of a stack's stream of this width, `[kept]`."""
        total = torch.zeros(width)
        for (owner, _, role), site in self.sites.items():
            part = role.partition(".")[2]
            read_by = self.source if role in ("cross.k", "cross.v") else owner
            if part in READS and read_by == stack and site.d_in == width:
                total += self._scores(site, "columns")
            if part in WRITES and owner == stack and site.d_out == width:
                total += self._scores(site, "rows")
        return largest(total, kept)

    def fill(
        self, block: SideBlock, stack: str, layer: int, stream: Tensor, source: Tensor | None
    ) -> None:
        """Copy what is kept of one block of the base, as far as the base has such matrices.

        stream, source: the dimensions that are kept of the block's own stream and of the one that
        cross-attention reads.
        """
        named = {
            role: self.sites[stack, layer, role]
            for part in (*READS, *WRITES)
            for role in (f"{group}.{part}" for group in SUB_LAYERS)
            if (stack, layer, role) in self.sites
        }
        self._attention(block.attention, "attn", named, stream, stream)
        if block.cross is not None and source is not None:
            self._attention(block.cross, "cross", named, stream, source)
        self._feed_forward(block, named, stream)
        for role, norm in (
            ("norm.attn", block.norm_attention),
            ("norm.cross", block.norm_cross),
            ("norm.mlp", block.norm_mlp),
        ):
            site = self.norms.get((stack, layer, role))
            if norm is not None and site is not None:
                _copy_gain(norm, site, stream)

    def _attention(
        self,
        attention: SideAttention,
        group: str,
        named: Mapping[str, Site],
        stream: Tensor,
        source: Tensor,
    ) -> None:
        """Of every head the most important dimensions; key-value heads choose for their queries."""
        sites = [named.get(f"{group}.{part}") for part in ("q", "k", "v", "o")]
        if any(site is None for site in sites):
            return
        q, k, v, o = (site for site in sites if site is not None)
        heads, kv_heads, kept = (
            attention.shape.heads,
            attention.shape.kv_heads,
            attention.shape.head_dim,
        )
        if q.d_out != o.d_in or k.d_out != v.d_out or q.d_out * kv_heads != k.d_out * heads:
            return  # gated queries, or values of another width than keys
        width = q.d_out // heads
        keys = self._of_heads(k, "rows", kv_heads, kv_heads)
        keys = largest(keys + self._of_heads(q, "rows", heads, kv_heads), kept)
        values = self._of_heads(v, "rows", kv_heads, kv_heads)
        values = largest(values + self._of_heads(o, "columns", heads, kv_heads), kept)
        _copy(attention.q, q, _rows(keys, heads, width), stream)
        _copy(attention.k, k, _rows(keys, kv_heads, width), source)
        _copy(attention.v, v, _rows(values, kv_heads, width), source)
        _copy(attention.o, o, stream, _rows(values, heads, width))

    def _of_heads(self, site: Site, side: str, heads: int, kv_heads: int) -> Tensor:
        """Scores `[H · K]` -> `[G, K]`, summed over the query heads of a key-value head."""
        return self._scores(site, side).unflatten(0, (kv_heads, heads // kv_heads, -1)).sum(1)

    def _feed_forward(self, block: SideBlock, named: Mapping[str, Site], stream: Tensor) -> None:
        up, gate, down = (named.get(f"mlp.{part}") for part in ("up", "gate", "down"))
        if up is None or down is None or up.d_out != down.d_in:
            return
        scores = self._scores(up, "rows") + self._scores(down, "columns")
        if gate is not None and gate.d_out == up.d_out:
            scores = scores + self._scores(gate, "rows")
        inner = largest(scores, block.up.weight.shape[0])
        _copy(block.up, up, inner, stream)
        _copy(block.down, down, stream, inner)
        if block.gate is not None and gate is not None:
            _copy(block.gate, gate, inner, stream)

    def _scores(self, site: Site, side: str) -> Tensor:
        """The scores of a matrix's rows or columns, of which the mean is 1; equal without any."""
        size = site.d_out if side == "rows" else site.d_in
        scores = self.scores.get(f"{site.name}/{side}")
        if scores is None:
            return torch.ones(size)
        scores = scores.float().cpu()
        return scores / scores.mean().clamp(min=torch.finfo(torch.float32).tiny)


def largest(scores: Tensor, count: int) -> Tensor:
    """Where the largest scores of the last dimension are, `[..., N] -> [..., count]`, sorted."""
    return scores.topk(count).indices.sort().values


def _rows(dimensions: Tensor, heads: int, width: int) -> Tensor:
    """Dimensions `[G, k]` of key-value heads -> rows of all heads, `[H · k]`."""
    each = dimensions.repeat_interleave(heads // len(dimensions), 0)
    return (each + width * torch.arange(heads)[:, None]).flatten()


def _copy(target: Projection, site: Site, rows: Tensor, columns: Tensor) -> None:
    """Fill a projection with these rows and columns of the matrix at a site, and of its bias."""
    weight, bias = site.weight().detach(), site.bias()
    rows, columns = rows.to(weight.device), columns.to(weight.device)
    with torch.no_grad():
        target.weight.copy_(weight[rows][:, columns])
        if target.bias is not None and bias is not None:
            target.bias.copy_(bias[rows])


def _copy_gain(target: RootMeanSquareNorm, site: Site, stream: Tensor) -> None:
    """Fill a norm with these dimensions of the gain of the base's norm."""
    host = site.host
    gain = host.weight if isinstance(host, nn.LayerNorm) else _gain(host, site.d_out)
    assert isinstance(gain, Tensor)
    with torch.no_grad():
        target.gain.copy_(gain[stream.to(gain.device)])


def _gain(host: nn.Module, width: int) -> Tensor:
    """The gain of a root-mean-square norm, however it is stored: what it makes of ones."""
    weight = host.weight
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        ones: Tensor = host.forward(torch.ones(1, width, device=weight.device, dtype=weight.dtype))
    return ones[0]
