"""The keys port: more keys and values in the same softmax (see `ports.attention` for the way in).

Keys added here never enter the cache, need no position, take no context length, and work in
encoders, in cross-attention, with gradient checkpointing, static caches and beams. Every query sees
them, sliding window or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inlay.core.piece import ExtraKV
from inlay.runtime.routing import Groups, Routing


class Ahead(Protocol):
    """Keys and values of what stands in front of the rows of a pass (see `ports.front`).

    seen `[B, P]`: which of them a row has; None where all have all.
    """

    @property
    def seen(self) -> Tensor | None: ...  # noqa: D102

    def pair(self, name: str, batch: int) -> tuple[Tensor, Tensor]: ...  # noqa: D102


Added = tuple[Tensor, Tensor, Tensor | None]
"""Keys and values `[B, H, P, K]`, and which of them each row sees, `[B, P]` (None: all)."""

Inputs = tuple[Tensor, Tensor, Tensor, Any, dict]
"""What an attention function is given: query, key, value, mask, and the rest by name."""

Told = Callable[[str, Tensor, Tensor | None], None]
"""Is told the name of a site, its attention weights `[B, Hq, Tq, P + T]` with the pieces' keys in
front, and the additive mask over them; None where everything is seen."""


@dataclass
class Passing:
    """What the keys ports of one stack give and take in the pass that is under way.

    beside: what they add to the pieces'. heard: where they note what they are given, by site.
    told: what they tell the weights that come out (see `attention.eagerly`). goes_on: whether it
    goes on with texts that earlier passes began.
    """

    beside: Ahead | None = None
    heard: dict[str, tuple[Tensor, Tensor]] | None = None
    told: Told | None = None
    goes_on: bool = False


class ExtraKVPort:
    """All pieces of all inlays in one attention, and the way in for the front of its stack."""

    def __init__(self, name: str, route: Routing, passing: Passing):
        self.name = name
        self.route = route
        self.passing = passing
        self.pieces: dict[str, list[ExtraKV]] = {}
        self._kept: tuple[tuple[Any, ...], Added] | None = None

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
        """Keys and values with more of them in front, and queries, mask and bias to match.

        query `[B, Hq, Tq, K]`; key, value `[B, H, T, K]`; mask None, boolean (True = seen) or
        additive, broadcastable to `[B, Hq, Tq, T]`. maskless: whether what follows is causal by
        itself where it is given no mask.
        """
        if self.passing.heard is not None:
            self.passing.heard[self.name] = (key, value)
        batch = query.shape[0]
        added: list[Added] = []
        beside = self.passing.beside
        if beside is not None:
            added.append((*beside.pair(self.name, batch), beside.seen))
        groups = self.route.groups(batch, self.pieces)
        if groups is not None:
            added.append(self._served(groups, batch, key))
        if not added:
            return query, key, value, mask, more
        return _prepend(module, query, key, value, mask, more, _joined(added), maskless)

    def tell(self, weights: Tensor, mask: Tensor | None) -> None:
        """The weights of this attention have been computed."""
        if self.passing.told is not None:
            self.passing.told(self.name, weights, mask)

    def _served(self, groups: Groups, batch: int, key: Tensor) -> Added:
        """`_spread`, made once for all tokens of a text that is being written."""
        pieces = [p for names in groups.names for name in names for p in self.pieces[name]]
        asked = (groups, batch, key.dtype, key.device, pieces)
        if self.passing.goes_on and self._kept is not None and self._kept[0] == asked:
            return self._kept[1]
        made = self._spread(groups, batch, key)
        self._kept = None if torch.is_grad_enabled() else (asked, made)
        return made

    def _spread(self, groups: Groups, batch: int, key: Tensor) -> Added:
        """Every row's keys and values from the pieces, `[B, H, P, K]`, and which count."""
        pairs = [self._of(names) for names in groups.names]
        lengths = [0 if pair is None else pair[0].shape[1] for pair in pairs]
        extra = max(lengths)
        if groups.group is None:
            assert pairs[0] is not None
            k, v = (t.to(key.dtype).expand(batch, -1, -1, -1) for t in pairs[0])
            return k, v, None
        rows = groups.index(key.device)
        k, v = (
            torch.stack([_filled(pair, side, extra, key) for pair in pairs])[rows]
            for side in (0, 1)
        )
        counts = torch.tensor(lengths, device=key.device)[rows]
        return k, v, torch.arange(extra, device=key.device) < counts[:, None]

    def _of(self, names: tuple[str, ...]) -> tuple[Tensor, Tensor] | None:
        made = [piece() for name in names for piece in self.pieces[name]]
        if not made:
            return None
        keys, values = zip(*made, strict=True)
        return torch.cat(keys, 1), torch.cat(values, 1)


def _joined(added: list[Added]) -> Added:
    """Several additions as one."""
    if len(added) == 1:
        return added[0]
    keys, values, seen = zip(*added, strict=True)
    marks = None
    if any(one is not None for one in seen):
        rows = keys[0].new_ones(len(keys[0]), 1, dtype=torch.bool)
        pairs = zip(keys, seen, strict=True)
        marks = torch.cat(
            [rows.expand(-1, k.shape[2]) if one is None else one for k, one in pairs], 1
        )
    return torch.cat(keys, 2), torch.cat(values, 2), marks


def _prepend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    more: dict,
    added: Added,
    maskless: bool,
) -> Inputs:
    k, v, seen = added
    extra, queries = k.shape[2], query.shape[2]
    bias = more.get("position_bias")
    square = maskless and mask is None and seen is None and bias is None and queries > 1
    if square and _causal(module, more):
        # No mask at all is much the fastest way: as many empty queries in front, and it is causal.
        query = F.pad(query, (0, 0, extra, 0))
        key, value = (torch.cat((a, b[:, :, :queries]), 2) for a, b in ((k, key), (v, value)))
        return query, key, value, None, more
    mask, length = _square(module, mask, query, key.shape[2], more)
    key = torch.cat((k, key[:, :, :length]), 2)
    value = torch.cat((v, value[:, :, :length]), 2)
    if bias is not None:
        more = {**more, "position_bias": F.pad(bias[..., :length], (extra, 0))}
    return query, key, value, _widen(mask, seen, extra, length), more


def _filled(pair: tuple[Tensor, Tensor] | None, side: int, extra: int, like: Tensor) -> Tensor:
    """One group's keys (side 0) or values, with zeros behind up to `extra`: `[H, extra, K]`."""
    if pair is None:
        return like.new_zeros(like.shape[1], extra, like.shape[3])
    return F.pad(pair[side].to(like.dtype), (0, 0, 0, extra - pair[side].shape[1]))


def _square(
    module: nn.Module, mask: Any, query: Tensor, length: int, more: dict
) -> tuple[Tensor | None, int]:
    """The mask over the text's own keys, made explicit where None means causal, and their number.

    None with more keys than queries means the prefill of an empty static cache: the attention
    looks at as many keys as there are queries. For one query on a CPU a mask of ones is made as
    well: without any mask, grouped heads go through a kernel that takes four times as long.
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
    """Whether an attention without a mask lets nobody see what comes later."""
    causal = more.get("is_causal")
    return bool(getattr(module, "is_causal", True) if causal is None else causal)


def _widen(mask: Tensor | None, seen: Tensor | None, extra: int, length: int) -> Tensor | None:
    """The mask with `extra` columns in front; `seen` `[B, extra]` says which of them count."""
    if mask is None:
        if seen is None:
            return None
        mask = torch.ones(1, 1, 1, length, dtype=torch.bool, device=seen.device)
    if seen is None:
        seen = torch.ones(1, extra, dtype=torch.bool, device=mask.device)
    front = seen[:, None, None, :]
    if mask.dtype != torch.bool:
        zero = torch.zeros((), dtype=mask.dtype, device=mask.device)
        front = torch.where(front, zero, torch.finfo(mask.dtype).min)
    rows = max(mask.shape[0], front.shape[0])
    front = front.expand(rows, *mask.shape[1:3], -1)
    return torch.cat((front, mask.expand(rows, -1, -1, -1)), -1)
