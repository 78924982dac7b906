"""The sites of one stack: every place that its layout describes, found in the modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor, nn

from inlay.architectures.chart import Stack
from inlay.architectures.config import hidden_width
from inlay.architectures.layout import Experts, Fused, Inner, Layout, Place, Sub
from inlay.architectures.paths import submodule
from inlay.core.quantised import matrix_sizes
from inlay.core.site import Expert, Part, Site, stored_transposed

LATENT_WIDTHS = ("qk_head_dim", "v_head_dim")
"""The attributes under which latent attention keeps the widths of its keys and of its values."""

FIRST = ("q", "qkv", "q_a", "kv_a", "in", "qkvz", "up")
LAST = ("o", "out", "down")
"""The last parts of the roles of a sub-layer's first and last projection."""

READS_HIDDEN = ("attn.q", "attn.q_a", "attn.qkv", "mixer.in", "mixer.qkvz", "mixer.qkv", "mlp.up")
"""Projections that read the hidden states of their block."""

FUSED_IN_KERNELS = ("mixer.x", "mixer.out")
"""Projections of a mixer whose matrices fused kernels read without calling their modules."""


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
    known: set[tuple[object, ...]] = set()
    for number, block in enumerate(stack.layers):
        for site in _Block(stack, layout.of_block(number), number, block, takes_keys).sites():
            place = (id(site.host), site.role, site.part, site.expert)
            if place not in known:  # blocks may share modules, which have one place then (Zamba)
                known.add(place)
                yield site
    if outer.final is not None:
        yield _final_site(stack, layout, outer.final)


def projection_site(name: str, role: str, host: nn.Module, stack: str, layer: int | None) -> Site:
    """The site of a module that multiplies by one matrix (Linear or Conv1D)."""
    d_out, d_in = matrix_sizes(host)
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
        for role in READS_HIDDEN:
            projections = self._projections(role)
            if projections:
                return projections[0].d_in
        return hidden_width(self.stack.config)

    def sites(self) -> Iterator[Site]:
        """The block's sites: extra keys and values first, the block itself last."""
        for side in ("attn", "cross") if self.takes_keys else ():
            site = self._kv_site(side)
            if site is not None:
                yield site
        for role, place in self.layout.block.items():
            yield from self._sites(role, place)
        closing = self.layout.closing_norm
        norm = submodule(self.block, closing) if closing else None
        if not self.layout.streams:
            yield self._whole("block", norm or self.block, norm=norm)

    def _attention(self, side: str) -> nn.Module | None:
        """The module that computes self-attention ("attn") or cross-attention ("cross")."""
        paths = {"attn": self.layout.attention, "cross": self.layout.cross_attention}
        path = paths.get(side)
        return None if path is None else submodule(self.block, path)

    def _kv_site(self, side: str) -> Site | None:
        """The site of an attention's extra keys and values."""
        attention = self._attention(side)
        shape = None if attention is None else self._kv_shape(side, attention)
        if attention is None or shape is None:
            return None
        heads, head_dim, value_dim = shape
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
            value_dim=value_dim,
        )

    def _kv_shape(self, side: str, attention: nn.Module) -> tuple[int, int, int] | None:
        """Key-value heads, width of their keys, width of their values; None where not known."""
        keys = self._projections(f"{side}.k")
        values = self._projections(f"{side}.v") or keys  # where keys are values as well (Gemma 4)
        if keys:
            head_dim = int(getattr(attention, self.layout.head_width))
            heads = keys[0].d_out // head_dim
            return heads, head_dim, values[0].d_out // heads
        queries = self._projections(f"{side}.q_b") or self._projections(f"{side}.q")
        if not queries or not self._projections(f"{side}.kv_b"):
            return None
        # latent attention: every query has a key and a value of its own, of different widths
        head_width, value_width = (vars(attention).get(name) for name in LATENT_WIDTHS)
        if not head_width or not value_width:
            return None
        return queries[0].d_out // head_width, head_width, value_width

    def _sites(self, role: str, place: Place) -> list[Site]:
        """The sites of one entry of `Layout.block`; none where this block has no such module."""
        if isinstance(place, Sub):
            entries = (place.enter,) if isinstance(place.enter, str) else place.enter
            enter, leave = self._first(entries), submodule(self.block, place.leave)
            d_in, d_out = self._ends(role)
            if enter is None or leave is None or d_in != d_out:  # where stages meet, widths change
                return []
            return [replace(self._whole(role, leave, enter=enter), d_in=d_in, d_out=d_out)]
        if isinstance(place, Experts):
            return self._experts(role, place)
        if isinstance(place, str) and role.startswith("norm."):
            norm = submodule(self.block, place)
            if norm is None or not _is_norm(norm):
                return []
            return [_norm_site(f"{self.name}.{role}", role, norm, self.stack.name, self.number)]
        return self._projection(role, place)

    def _ends(self, role: str) -> tuple[int, int]:
        """The widths of what a sub-layer reads and of what it adds, as its projections say."""
        first, last = (
            [site for part in parts for site in self._projections(f"{role}.{part}")]
            for parts in (FIRST, LAST)
        )
        return (first[0].d_in if first else self.width, last[0].d_out if last else self.width)

    def _first(self, paths: Iterable[str]) -> nn.Module | None:
        """The first module of the block that exists."""
        modules = (submodule(self.block, path) for path in paths)
        return next((module for module in modules if module is not None), None)

    def _whole(
        self,
        role: str,
        host: nn.Module,
        enter: nn.Module | None = None,
        norm: nn.Module | None = None,
    ) -> Site:
        """The site of a sub-layer or of the whole block, from hidden states to hidden states."""
        name, stack = f"{self.name}.{role}", self.stack.name
        d_in, d_out = self.width, self._ends("mlp")[1]
        return Site(name, role, host, d_in, d_out, stack, self.number, enter=enter, norm=norm)

    def _projections(self, role: str) -> list[Site]:
        """The site of a projection by its role; none where the block has none."""
        place = self.layout.block.get(role)
        return [] if place is None or isinstance(place, Experts) else self._projection(role, place)

    def _projection(self, role: str, place: Place) -> list[Site]:
        """The site of a projection; none where this block has no such module."""
        assert not isinstance(place, Sub | Experts)
        if isinstance(place, Fused | Inner):
            host = submodule(self.block, place.path)
        else:
            host = self._first((place,) if isinstance(place, str) else place)
        if host is None:
            return []
        name, stack = f"{self.name}.{role}", self.stack.name
        site = projection_site(name, role, host, stack, self.number)
        if isinstance(place, Inner):
            return [replace(site, inside=True)]
        mixer = self.layout.block.get("mixer")
        if role in FUSED_IN_KERNELS and isinstance(mixer, Sub):
            return [replace(site, caller=submodule(self.block, mixer.leave))]
        if not isinstance(place, Fused):
            return [site]
        part = self._part(place, site.d_out, role.split(".")[0])
        return [replace(site, d_out=part.width, part=part)]

    def _experts(self, role: str, place: Experts) -> list[Site]:
        """The sites of a projection of every expert of a mixture."""
        host = submodule(self.block, place.path)
        if host is None:
            return []
        parameters = dict(host.named_parameters(recurse=False))
        named = f"{place.parameter}_bias"
        bias = named if named in parameters else None
        transposed = bool(vars(host).get("is_transposed"))
        count, d_out, d_in = parameters[place.parameter].shape
        if transposed:
            d_out, d_in = d_in, d_out
        part = None
        if place.count > 1 and vars(host).get("is_concatenated", True):
            size = d_out // place.count
            part = Part(place.index * size, size, d_out)
        elif place.count > 1:
            part = Part(place.index, 1, place.count, d_out // place.count)
        group, _, last = role.rpartition(".")
        return [
            Site(
                f"{self.name}.{group}.{number}.{last}",
                role,
                host,
                d_in,
                d_out if part is None else part.width,
                self.stack.name,
                self.number,
                part=part,
                expert=Expert(number, place.parameter, bias, transposed),
            )
            for number in range(count)
        ]

    def _part(self, place: Fused, columns: int, side: str) -> Part:
        """The columns of a fused projection's output that belong to one site.

        columns: of the whole output. side: "attn", "cross" or "mlp".
        """
        attention = self._attention(side)
        if place.per_head:
            width = int(getattr(attention, self.layout.head_width))
            queries = int(self.stack.config.num_attention_heads)
            heads = (columns // width - queries) // 2
            shared = queries // heads  # queries of one key-value head
            sizes = [shared * width, width, width]
            return Part(sum(sizes[: place.index]), sizes[place.index], sum(sizes), heads)
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
    width = _Block(
        stack, layout.of_block(len(stack.layers) - 1), len(stack.layers) - 1, last_block, False
    ).width
    return Site(role, role, norm or last_block, width, width, stack.name)


def _norm_site(name: str, role: str, host: nn.Module, stack: str, layer: int | None) -> Site:
    assert isinstance(host.weight, Tensor)
    return Site(name, role, host, len(host.weight), len(host.weight), stack, layer)


def _is_norm(module: nn.Module) -> bool:
    """Whether the module has a gain, a weight of one dimension."""
    gain = dict(module.named_parameters(recurse=False)).get("weight")
    return gain is not None and gain.dim() == 1
