"""Extra keys and values: more of them in the softmax of an attention.

Keys added here never enter the cache, need no position, take no context length, and work in
encoders, in cross-attention, with gradient checkpointing, static caches and beams. Every query sees
them, sliding window or not. `runtime.attention` calls `SiteExtraKV.extend` inside each attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from inlay.architectures.chart import Chart
from inlay.core.context import PassContext
from inlay.core.per_thread import PerThread
from inlay.core.piece import ExtraKV, Piece
from inlay.core.site import Site
from inlay.errors import PortError
from inlay.runtime import attention
from inlay.runtime.port import Port, StackState, accepts
from inlay.runtime.routing import Groups, Names


class PrefixKV(Protocol):
    """Keys and values of what stands before the rows of a pass (see `runtime.shared_prefix`).

    visible `[B, P]`: which of them a row sees; None where all see all.
    """

    @property
    def visible(self) -> Tensor | None: ...  # noqa: D102

    def pair(self, site: str, batch: int) -> tuple[Tensor, Tensor]: ...  # noqa: D102


Addition = tuple[Tensor, Tensor, Tensor | None]
"""Keys and values `[B, H, P, K]`, and which of them each row sees, `[B, P]` (None: all)."""

Inputs = tuple[Tensor, Tensor, Tensor, Any, dict]
"""The arguments of an attention function: query, key, value, mask, and the rest by name."""

Observer = Callable[[str, Tensor, Tensor | None], None]
"""Receives the name of a site, its attention weights `[B, Hq, Tq, P + T]` with the extra keys
first, and the additive mask over them; None where everything is visible."""


class AttentionPass(PerThread):
    """What the attentions of one stack share in the pass under way in this thread.

    prefix:    keys and values that they add to those of the pieces.
    record:    where they store the keys and values that they receive, by site; None for nowhere.
    observer:  receives the attention weights (see `attention.eagerly`).
    continues: whether the pass goes on with texts that earlier passes began.
    """

    __slots__ = ()
    prefix: PrefixKV | None = None
    record: dict[str, tuple[Tensor, Tensor]] | None = None
    observer: Observer | None = None
    continues: bool = False


@accepts(ExtraKV)
class ExtraKVPort(Port):
    """The extra keys and values of one stack.

    sites: every attention of the stack that goes through transformers' attention interface.
    """

    label = "extra keys and values"

    def __init__(self, state: StackState):
        super().__init__(state)
        self.attention_pass = AttentionPass()
        self.sites = {
            site.name: SiteExtraKV(site, state, self.attention_pass)
            for site in state.chart.sites
            if site.heads and site.stack == self.stack.name and attention.has_port(site.host)
        }

    @classmethod
    @override
    def check(cls, method: str, site: Site, piece: Piece, chart: Chart) -> None:
        assert isinstance(piece, ExtraKV)
        base = type(chart.base).__name__
        if site.heads == 0:
            raise PortError(
                f"{method} adds keys, and {site.role!r} is not an attention: use 'attn.kv'"
            )
        if not attention.has_port(site.host):
            raise PortError(
                f"{method} adds keys, but {type(site.host).__name__} does not go through "
                "transformers' attention interface; LoRA, adapters and prompts work here"
            )
        attention.check_implementation(attention.configs(chart.base))
        if piece.shift and not chart.stack(site.stack).takes("position_ids"):
            raise PortError(
                f"{method} moves the text's positions, and {base} is not given any; "
                "use shifts=False"
            )

    @override
    def add(self, name: str, site: Site, piece: Piece) -> None:
        assert isinstance(piece, ExtraKV)
        self.sites[site.name].add(name, piece)

    @override
    def remove(self, name: str) -> None:
        for site in self.sites.values():
            site.remove(name)

    @override
    def row_sites(self) -> Iterable[str]:
        return (name for name, site in self.sites.items() if site.pieces)

    @property
    def names(self) -> set[str]:
        """The inlays with pieces that add keys to an attention of the stack."""
        return {name for site in self.sites.values() for name in site.pieces}

    @property
    def empty(self) -> bool:
        """Whether there are none."""
        return not any(site.pieces for site in self.sites.values())


class _Entered(PerThread):
    """What the attention reads, kept until its keys are asked for."""

    __slots__ = ()
    x: Tensor | None = None


class SiteExtraKV:
    """All pieces of all inlays in one attention, and the entrance for the stack's shared prefix."""

    def __init__(self, site: Site, state: StackState, attention_pass: AttentionPass):
        self.site = site
        self.state = state
        self.attention_pass = attention_pass
        self.pieces: dict[str, list[ExtraKV]] = {}
        self._entered = _Entered()
        self._hooks: list[RemovableHandle] = []
        self._cached: tuple[tuple[Any, ...], Addition] | None = None

    def add(self, name: str, piece: ExtraKV) -> None:
        """Let a piece of the inlay `name` in."""
        self.pieces.setdefault(name, []).append(piece)
        if not self._hooks:
            hook = self.site.host.register_forward_pre_hook
            self._hooks = [
                hook(self._keep_x, prepend=True, with_kwargs=True),
                self.site.host.register_forward_hook(self._forget_x),
            ]

    def remove(self, name: str) -> None:
        """Take out an inlay's pieces."""
        self.pieces.pop(name, None)
        if not self.pieces:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def extend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        more: dict,
        maskless: bool,
    ) -> Inputs:
        """Put extra keys and values before an attention's own; match queries, mask and bias.

        query `[B, Hq, Tq, K]`; key, value `[B, H, T, K]`; mask None, boolean (True = visible) or
        additive, broadcastable to `[B, Hq, Tq, T]`. maskless: whether what follows is causal by
        itself where it is given no mask.
        """
        if self.attention_pass.record is not None:
            self.attention_pass.record[self.site.name] = (key, value)
        batch = query.shape[0]
        x = self._entered.x
        if self.state.row_axis.under_way:
            self.state.row_axis.note(self.site.name, query)
        additions: list[Addition] = []
        prefix = self.attention_pass.prefix
        if prefix is not None:
            additions.append((*prefix.pair(self.site.name, batch), prefix.visible))
        groups = self.state.routing.groups(batch, self.pieces)
        if groups is not None:
            assert x is not None
            if groups.group is not None:
                self.state.row_axis.check(self.site.name)
            additions.append(self._from_pieces(groups, batch, key, x))
        if not additions:
            return query, key, value, mask, more
        return _prepend(module, query, key, value, mask, more, _joined(additions), maskless)

    def observe(self, weights: Tensor, mask: Tensor | None) -> None:
        """Hand the weights of this attention to the pass's observer, if there is one."""
        if self.attention_pass.observer is not None:
            self.attention_pass.observer(self.site.name, weights, mask)

    def _keep_x(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what the attention reads until its keys are asked for."""
        self._entered.x = args[0] if args else next(iter(kwargs.values()))

    def _forget_x(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forget it when the attention is over: one that cuts its rows asks several times."""
        self._entered.x = None

    def _from_pieces(self, groups: Groups, batch: int, key: Tensor, x: Tensor) -> Addition:
        """The pieces' keys and values; those of a text that is being generated only once."""
        if torch.compiler.is_compiling():
            return self._computed(groups, batch, key, x)[0]
        pieces = [p for names in groups.names for name in names for p in self.pieces[name]]
        conditions = (groups, batch, key.dtype, key.device, pieces)
        cached = self._cached
        if self.attention_pass.continues and cached is not None and cached[0] == conditions:
            return cached[1]
        addition, by_row = self._computed(groups, batch, key, x)
        reusable = not by_row and not torch.is_grad_enabled()
        self._cached = (conditions, addition) if reusable else None
        return addition

    def _computed(
        self, groups: Groups, batch: int, key: Tensor, x: Tensor
    ) -> tuple[Addition, bool]:
        """The pieces' keys and values, and whether they differ from row to row of a group."""
        pairs = self._pairs(groups, x)
        by_row = any(pair is not None and pair[0].dim() == 4 for pair in pairs)
        addition = _rows(groups, pairs, key) if by_row else _spread(groups, pairs, batch, key)
        return addition, by_row

    def _pairs(self, groups: Groups, x: Tensor) -> list[tuple[Tensor, Tensor] | None]:
        """The keys and values of each group, `[H, P, K]` or `[b, H, P, K]`; None where none."""
        context = self.state.context.of(x)
        if groups.group is None:
            return [self._of(groups.names[0], x, context)]
        pairs = []
        for number, names in enumerate(groups.names):
            rows = groups.rows(number, x.device)
            pairs.append(self._of(names, x.index_select(0, rows), context.select(rows)))
        return pairs

    def _of(self, names: Names, x: Tensor, context: PassContext) -> tuple[Tensor, Tensor] | None:
        pairs = [piece(x, context) for name in names for piece in self.pieces[name]]
        if not pairs:
            return None
        if any(k.dim() == 4 for k, _ in pairs):
            pairs = [tuple(_per_row(t, len(x)) for t in pair) for pair in pairs]
        keys, values = zip(*pairs, strict=True)
        return torch.cat(keys, -2), torch.cat(values, -2)


def _per_row(values: Tensor, rows: int) -> Tensor:
    """Keys or values with a dimension for rows, `[b, H, P, K]`."""
    return values if values.dim() == 4 else values.expand(rows, -1, -1, -1)


def _spread(
    groups: Groups, pairs: list[tuple[Tensor, Tensor] | None], batch: int, key: Tensor
) -> Addition:
    """Every row's keys and values `[B, H, P, K]` from those of its group `[H, P, K]`."""
    if groups.group is None:
        assert pairs[0] is not None
        k, v = (t.to(key.dtype).expand(batch, -1, -1, -1) for t in pairs[0])
        return k, v, None
    lengths = [0 if pair is None else pair[0].shape[-2] for pair in pairs]
    extra = max(lengths)
    rows = groups.index(key.device)
    k, v = (
        torch.stack([_padded(pair, extra, key, width, side) for pair in pairs])[rows]
        for side, width in enumerate(_widths(pairs))
    )
    return k, v, _visible(groups, lengths, key.device)


def _rows(groups: Groups, pairs: list[tuple[Tensor, Tensor] | None], key: Tensor) -> Addition:
    """The same where those of a group differ from row to row, `[b, H, P, K]`."""
    if groups.group is None:
        assert pairs[0] is not None
        k, v = (t.to(key.dtype) for t in pairs[0])
        return k, v, None
    order = groups.back(key.device)
    lengths = [0 if pair is None else pair[0].shape[-2] for pair in pairs]
    extra = max(lengths)
    sides = []
    for side, width in enumerate(_widths(pairs)):
        parts = []
        for number, pair in enumerate(pairs):
            count = groups.count(number)
            if pair is not None:
                rows = _per_row(pair[side], count).to(key.dtype)
                parts.append(F.pad(rows, (0, 0, 0, extra - rows.shape[2])))
            else:
                parts.append(key.new_zeros(count, key.shape[1], extra, width))
        sides.append(torch.cat(parts).index_select(0, order))
    return sides[0], sides[1], _visible(groups, lengths, key.device)


def _visible(groups: Groups, lengths: list[int], device: torch.device) -> Tensor:
    """Which extra positions each row sees, `[B, P]`: the first ones, as many as its group has."""
    return torch.arange(max(lengths), device=device) < groups.by_row(lengths, device)[:, None]


def _joined(additions: list[Addition]) -> Addition:
    """Several additions as one."""
    if len(additions) == 1:
        return additions[0]
    keys, values, visible = zip(*additions, strict=True)
    if all(columns is None for columns in visible):
        return torch.cat(keys, 2), torch.cat(values, 2), None
    ones = keys[0].new_ones(len(keys[0]), 1, dtype=torch.bool)
    parts = [
        ones.expand(-1, k.shape[2]) if columns is None else columns
        for k, columns in zip(keys, visible, strict=True)
    ]
    return torch.cat(keys, 2), torch.cat(values, 2), torch.cat(parts, 1)


def _prepend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    more: dict,
    addition: Addition,
    maskless: bool,
) -> Inputs:
    k, v, visible = addition
    extra, queries = k.shape[2], query.shape[2]
    bias = more.get("position_bias")
    square = maskless and mask is None and visible is None and bias is None and queries > 1
    if square and _causal(module, more):
        # Attention without a mask is much the fastest. With as many empty queries as there are
        # extra keys, in the same place, it is causal.
        query = F.pad(query, (0, 0, extra, 0))
        key, value = (torch.cat((a, b[:, :, :queries]), 2) for a, b in ((k, key), (v, value)))
        return query, key, value, None, more
    mask, length = _square(module, mask, query, key.shape[2], more)
    key = torch.cat((k, key[:, :, :length]), 2)
    value = torch.cat((v, value[:, :, :length]), 2)
    if bias is not None:
        more = {**more, "position_bias": F.pad(bias[..., :length], (extra, 0))}
    return query, key, value, _widen(mask, visible, extra, length), more


def _widths(pairs: list[tuple[Tensor, Tensor] | None]) -> tuple[int, int]:
    """K of the keys and of the values."""
    k, v = next(pair for pair in pairs if pair is not None)
    return k.shape[-1], v.shape[-1]


def _padded(
    pair: tuple[Tensor, Tensor] | None, extra: int, like: Tensor, width: int, side: int
) -> Tensor:
    """One group's keys (side 0) or values, with zeros after them up to `extra`: `[H, extra, K]`."""
    if pair is None:
        return like.new_zeros(like.shape[1], extra, width)
    return F.pad(pair[side].to(like.dtype), (0, 0, 0, extra - pair[side].shape[1]))


def _square(
    module: nn.Module, mask: Any, query: Tensor, length: int, more: dict
) -> tuple[Tensor | None, int]:
    """The mask over the text's own keys, explicit where None means causal, and how many keys count.

    None with more keys than queries means the first pass over an empty static cache: the attention
    reads as many keys as there are queries. For one query on a CPU a mask of ones is made as well:
    without a mask, grouped heads run in a kernel that takes four times as long.
    """
    queries = query.shape[2]
    if mask is not None:
        return mask[..., :length], length
    if queries == 1 and query.device.type == "cpu":
        return torch.ones(1, 1, 1, length, dtype=torch.bool), length
    if queries > 1 and _causal(module, more):
        ones = torch.ones(queries, queries, dtype=torch.bool, device=query.device)
        return ones.tril()[None, None], queries
    return None, length


def _causal(module: nn.Module, more: dict) -> bool:
    """Whether an attention without a mask hides later positions."""
    causal = more.get("is_causal")
    return bool(getattr(module, "is_causal", True) if causal is None else causal)


def _widen(mask: Tensor | None, visible: Tensor | None, extra: int, length: int) -> Tensor | None:
    """The mask with `extra` columns before its own, of which `visible` `[B, extra]` count."""
    if mask is None:
        if visible is None:
            return None
        mask = torch.ones(1, 1, 1, length, dtype=torch.bool, device=visible.device)
    if visible is None:
        visible = torch.ones(1, extra, dtype=torch.bool, device=mask.device)
    extra_columns = visible[:, None, None, :]
    if mask.dtype != torch.bool:
        zero = torch.zeros((), dtype=mask.dtype, device=mask.device)
        extra_columns = torch.where(extra_columns, zero, torch.finfo(mask.dtype).min)
    rows = max(mask.shape[0], extra_columns.shape[0])
    extra_columns = extra_columns.expand(rows, *mask.shape[1:3], -1)
    return torch.cat((extra_columns, mask.expand(rows, -1, -1, -1)), -1)
