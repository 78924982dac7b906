"""The sites of one stack: every place that its layout describes, found in the modules."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from inlay.architectures.chart import Stack
from inlay.architectures.config import hidden_width
from inlay.architectures.layout import Fused, Layout, Place, Sub
from inlay.architectures.paths import submodule
from inlay.core.site import Part, Site, stored_transposed


@dataclass(frozen=True)
class Outer:
    """The roles of a stack's places outside its blocks; None where it has no such place.

    embed: of its token embeddings. final: of its last hidden state.
    """

    embed: str | None
    final: str | None

    @staticmethod
    def of(stack: Stack, is_main: bool, earlier_text: bool) -> Outer:
        """The roles in one stack.

        is_main: heads or a decoder read its last hidden state. earlier_text: a stack before it
        reads text, so that `embed` is that one's. A further tower has neither place.
        """
        reads_text = stack.embed is not None and is_main
        embed = "embed.target" if earlier_text else "embed"
        final = "final.target" if stack.reads_encoder else "final"
        return Outer(embed if reads_text else None, final if is_main else None)


def stack_sites(stack: Stack, layout: Layout, outer: Outer, takes_keys: bool) -> Iterator[Site]:
    """The sites of a stack, in the order of the base.

    outer: the roles of what is outside the blocks. takes_keys: whether extra keys and values have
        a place there: in a base with text, only in the stacks that read it.
    """
    if outer.embed is not None:
        assert stack.embed is not None and isinstance(stack.embed.weight, Tensor)
        vocabulary, width = stack.embed.weight.shape
        yield Site(outer.embed, outer.embed, stack.embed, vocabulary, width, stack.name)
    for role, path in layout.norms.items():
        norm = submodule(stack.module, path)
        if norm is not None and _is_norm(norm):
            yield _norm_site(f"{stack.name}.{role}", role, norm, stack.name, None)
    for number, block in enumerate(stack.layers):
        yield from _Block(stack, layout, number, block, takes_keys).sites()
    if outer.final is not None:
        yield _final_site(stack, layout, outer.final)


def projection_site(name: str, role: str, host: nn.Module, stack: str, layer: int | None) -> Site:
    """The site of a module that multiplies by one matrix (Linear or Conv1D)."""
    assert isinstance(host.weight, Tensor)
    d_out, d_in = host.weight.shape
    if stored_transposed(host):
        d_out, d_in = d_in, d_out
    return Site(name, role, host, d_in, d_out, stack, layer)


class _Block:
    """One block of a stack, with number `number`."""

    def __init__(
        self, stack: Stack, layout: Layout, number: int, block: nn.Module, takes_keys: bool
    ):
        self.takes_keys = takes_keys
        self.stack = stack
        self.layout = layout
        self.number = number
        self.block = block
        self.name = f"{stack.name}.{number}"
        self.width = self._width()

    def _width(self) -> int:
        """D, the width of the hidden states in this block: what its first projection reads."""
        for role in ("attn.q", "mlp.up"):
            place = self.layout.block.get(role)
            site = None if place is None else self._projection(role, place)
            if site is not None:
                return site.d_in
        return hidden_width(self.stack.config)

    def sites(self) -> Iterator[Site]:
        """The block's sites: extra keys and values first, the block itself last."""
        for side in ("attn", "cross") if self.takes_keys else ():
            site = self._kv_site(side)
            if site is not None:
                yield site
        for role, place in self.layout.block.items():
            site = self._site(role, place)
            if site is not None:
                yield site
        closing = self.layout.closing_norm
        norm = submodule(self.block, closing) if closing else None
        yield self._whole("block", norm or self.block, norm=norm)

    def _attention(self, side: str) -> nn.Module | None:
        """The module that computes self-attention ("attn") or cross-attention ("cross")."""
        paths = {"attn": self.layout.attention, "cross": self.layout.cross_attention}
        path = paths.get(side)
        return None if path is None else submodule(self.block, path)

    def _kv_site(self, side: str) -> Site | None:
        """The site of an attention's extra keys and values."""
        attention, place = self._attention(side), self.layout.block.get(f"{side}.k")
        if attention is None or place is None:
            return None
        keys = self._projection(f"{side}.k", place)
        if keys is None:
            return None
        head_dim = int(getattr(attention, self.layout.head_width))
        heads = keys.d_out // head_dim
        role = f"{side}.kv"
        return Site(
            f"{self.name}.{role}",
            role,
            attention,
            self.width,
            heads * head_dim,
            self.stack.name,
            self.number,
            heads=heads,
            head_dim=head_dim,
        )

    def _site(self, role: str, place: Place) -> Site | None:
        """The site of one entry of `Layout.block`; None where this block has no such module."""
        if isinstance(place, Sub):
            enter, leave = submodule(self.block, place.enter), submodule(self.block, place.leave)
            if enter is None or leave is None:
                return None
            return self._whole(role, leave, enter=enter)
        if isinstance(place, str) and role.startswith("norm."):
            norm = submodule(self.block, place)
            if norm is None or not _is_norm(norm):
                return None
            return _norm_site(f"{self.name}.{role}", role, norm, self.stack.name, self.number)
        return self._projection(role, place)

    def _whole(
        self,
        role: str,
        host: nn.Module,
        enter: nn.Module | None = None,
        norm: nn.Module | None = None,
    ) -> Site:
        """The site of a sub-layer or of the whole block, from hidden states to hidden states."""
        name, width, stack = f"{self.name}.{role}", self.width, self.stack.name
        return Site(name, role, host, width, width, stack, self.number, enter=enter, norm=norm)

    def _projection(self, role: str, place: Place) -> Site | None:
        """The site of a projection; None where this block has no such module."""
        assert not isinstance(place, Sub)
        if isinstance(place, Fused):
            host = submodule(self.block, place.path)
        else:
            paths = (place,) if isinstance(place, str) else place
            hosts = (submodule(self.block, path) for path in paths)
            host = next((module for module in hosts if module is not None), None)
        if host is None:
            return None
        name, stack = f"{self.name}.{role}", self.stack.name
        site = projection_site(name, role, host, stack, self.number)
        if not isinstance(place, Fused):
            return site
        part = _part(place, site.d_out, self._attention(role.split(".")[0]))
        return Site(name, role, host, site.d_in, part.width, stack, self.number, part=part)


def _part(place: Fused, columns: int, attention: nn.Module | None) -> Part:
    """The columns of a fused projection's output that belong to one site.

    columns: of the whole output. attention: the module that the projection belongs to.
    """
    if place.per_head:
        head = int(attention.head_size)  # type: ignore[union-attr,arg-type]
        heads = columns // (place.count * head)
        return Part(place.index * head, head, place.count * head, heads)
    if place.grouped:
        groups = int(attention.num_key_value_groups)  # type: ignore[union-attr,arg-type]
        narrow = columns // (groups + place.count - 1)
        sizes = [groups * narrow, *[narrow] * (place.count - 1)]
        return Part(sum(sizes[: place.index]), sizes[place.index], columns)
    size = columns // place.count
    return Part(place.index * size, size, columns)


def _final_site(stack: Stack, layout: Layout, role: str) -> Site:
    """The last hidden state: the output of the last norm, or of the last block."""
    last_block = stack.layers[-1]
    if layout.closing_norm is not None:
        norm = submodule(last_block, layout.closing_norm)
    else:
        path = layout.norms.get("norm.final")
        norm = None if path is None else submodule(stack.module, path)
    width = _Block(stack, layout, len(stack.layers) - 1, last_block, False).width
    return Site(role, role, norm or last_block, width, width, stack.name)


def _norm_site(name: str, role: str, host: nn.Module, stack: str, layer: int | None) -> Site:
    assert isinstance(host.weight, Tensor)
    return Site(name, role, host, len(host.weight), len(host.weight), stack, layer)


def _is_norm(module: nn.Module) -> bool:
    """Whether the module has a gain, a weight of one dimension."""
    gain = dict(module.named_parameters(recurse=False)).get("weight")
    return gain is not None and gain.dim() == 1
