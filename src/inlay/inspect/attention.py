"""The share of attention that falls on prompts and prefixes, by layer and head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inlay.architectures.chart import Chart
from inlay.core.modes import evaluating
from inlay.core.site import Site
from inlay.errors import DataError, PortError
from inlay.handle import Inlay, rows
from inlay.runtime.attention import eagerly
from inlay.runtime.container import stack_hooks

LONGEST = 256
"""Texts are cut off behind so many tokens: eager attention keeps a number for every pair."""

TEXTS = (
    "The film was far too long, but nobody in the audience wanted it to end.",
    "Water boils at a lower temperature in the mountains, because the air is thinner there.",
    "She asked him twice where he had left the keys, and twice he said that he did not know.",
    "The court has to decide by Friday whether the contract of 2019 still holds.",
)
"""What to measure on where nobody has a text of their own."""


@dataclass(frozen=True)
class Share:
    """How much of one kind of attention falls on one kind of piece.

    of: "prefix" or "prompt". attention: `decoder.attn`, `encoder.attn` or `decoder.cross`.
    layers: their numbers. shares `[L, H]`, 0 to 1: the sum of the attention weights on the
    piece's positions, mean over the query positions of all texts; H counts query heads.
    even `[L]`: the same if every query looked alike at everything it sees.
    """

    of: str
    attention: str
    layers: tuple[int, ...]
    shares: Tensor
    even: Tensor


def written(
    handle: Inlay, tokenizer: Any, texts: Sequence[str], targets: Sequence[str] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Texts as batches for `attention`, as the tokenizer writes them by itself; see `batches`.

    targets: what the decoder of an encoder–decoder reads, one a text; None: the texts themselves.
    """
    sources = [tokenizer(text)["input_ids"] for text in texts]
    read = None if targets is None else [tokenizer(text)["input_ids"] for text in targets]
    return batches(handle, sources, read, pad=tokenizer.pad_token_id or 0)


def room(handle: Inlay) -> int:
    """How many tokens of a row are read: `LONGEST`, or fewer where the base's positions end."""
    limit = handle.chart.max_length(handle.model) or LONGEST
    name = (handle.name,)
    taken = max(
        door.prompts.length(name) + door.state.shift(name) for door in stack_hooks(handle.model)
    )
    return max(1, min(LONGEST, limit - taken))


def batches(
    handle: Inlay,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]] | None = None,
    *,
    pad: int = 0,
    size: int = 8,
) -> Iterator[dict[str, Tensor]]:
    """Token ids as batches for `attention`, `size` rows at a time, padded on the right.

    targets: for the decoder of an encoder–decoder, which reads them behind its start token; None:
    the sources. Rows are cut off behind `room` tokens. Raises DataError for one without any.
    """
    chart = handle.chart
    longest = room(handle)
    sides = {"": sources}
    if chart.kind == "encoder-decoder":
        sides["decoder_"] = sources if targets is None else targets
    for first in range(0, len(sources), size):
        batch: dict[str, Tensor] = {}
        for side, every in sides.items():
            ids = [list(row)[:longest] for row in every[first : first + size]]
            if not all(ids):
                raise DataError("a text has no tokens; give one with words in it")
            if side:
                start = chart.base.config.decoder_start_token_id
                ids = [[start, *row[:-1]] for row in ids]
            width = max(map(len, ids))
            padded = [row + [pad] * (width - len(row)) for row in ids]
            mask = [[1] * len(row) + [0] * (width - len(row)) for row in ids]
            batch[f"{side}input_ids"] = torch.tensor(padded, device=handle.model.device)
            batch[f"{side}attention_mask"] = torch.tensor(mask, device=handle.model.device)
        yield batch


def attention(handle: Inlay, batches: Iterable[Mapping[str, Tensor]]) -> list[Share]:
    """The share of attention on the prompts and prefixes of an inlay, measured on texts.

    batches: what the backbone takes, `input_ids` `[B, T]` and, where there is padding,
    `attention_mask`; in an encoder–decoder also `decoder_input_ids` and `decoder_attention_mask`.

    The weights are those of the model's own eager attention, all of its masks, biases and caps
    included; a prompt runs in its row. Queries are the tokens of the text, without padding and
    without the prompt itself. Virtual tokens (ids from V on) are a prompt wherever they stand.
    The first position of a causal model draws much attention whatever stands there.

    Empty where nothing can be measured: no prompt or prefix, no virtual token in any
    text, or attention without a keys port.
    Raises PortError for a base that reads no words.
    """
    chart = handle.chart
    if chart.kind == "vision":
        raise PortError(f"{type(chart.base).__name__} reads no words, so texts cannot be run")
    watch = _Watch(handle)
    with (
        evaluating(handle.model),
        _alone(handle),
        eagerly(handle.model),
        _told(handle, watch),
    ):
        for batch in batches:
            watch.begin(batch)
            chart.hidden(handle.model, **batch)
    return watch.shares(chart)


@contextmanager
def _alone(handle: Inlay) -> Iterator[None]:
    """Every row is served by this inlay, enabled or not, and by no other."""
    enabled = handle.enabled
    handle.enabled = True
    try:
        with rows(handle.model, [handle.name]):
            yield
    finally:
        handle.enabled = enabled


@contextmanager
def _told(handle: Inlay, watch: _Watch) -> Iterator[None]:
    """The weights of every attention go to `watch`, and nothing runs apart from its row."""
    doors = stack_hooks(handle.model)
    fronts = [(door.prefix, door.prefix.enabled) for door in doors if door.prefix is not None]
    try:
        for door in doors:
            door.extra_kv.attention_pass.observer = watch.tell
        for front, _ in fronts:
            front.enabled = False
        yield
    finally:
        for door in doors:
            door.extra_kv.attention_pass.observer = None
        for front, before in fronts:
            front.enabled = before


@dataclass
class _Sum:
    """Over all queries so far: shares `[H]`, even shares, and how many queries."""

    shares: Tensor
    even: float
    queries: int


class _Watch:
    """Adds up the shares of one inlay over batches."""

    def __init__(self, handle: Inlay):
        self.name = handle.name
        self.doors = stack_hooks(handle.model)
        self.sites: dict[str, Site] = {}
        self.prefix: dict[str, int] = {}
        for door in self.doors:
            for name, extra_kv in door.extra_kv.sites.items():
                pieces = extra_kv.pieces.get(self.name, ())
                self.sites[name] = extra_kv.site
                self.prefix[name] = sum(piece.length for piece in pieces)
        self.queries: dict[str, Tensor] = {}
        self.prompts: dict[str, Tensor | None] = {}
        self.sums: dict[tuple[str, str], _Sum] = {}

    def begin(self, batch: Mapping[str, Tensor]) -> None:
        """A batch will pass: note which positions of its rows are text, and which are prompt."""
        for door, side in zip(self.doors, ("", "decoder_"), strict=False):
            ids, mask = batch[f"{side}input_ids"], batch.get(f"{side}attention_mask")
            mask = torch.ones_like(ids) if mask is None else mask
            soft = torch.zeros_like(ids, dtype=torch.bool)
            if self.name in door.tokens.pieces:
                soft = ids >= door.tokens.first_id
            groups = door.routing.groups(len(ids), door.prompts.pieces)
            if groups is not None:
                layout = door.prompts.plan(groups, len(ids), ids.shape[1], mask, ids.device)
                soft = F.pad(soft, (0, layout.extra), value=True).gather(1, layout.source)
                mask = layout.mask
            self.queries[door.stack.name] = mask.bool() & ~soft
            self.prompts[door.stack.name] = soft if bool(soft.any()) else None

    def tell(self, name: str, weights: Tensor, mask: Tensor | None) -> None:
        """Add the shares of one attention; see `keys.Told`."""
        site, extra = self.sites[name], self.prefix[name]
        read = self.doors[0].stack.name if site.role.startswith("cross") else site.stack
        prompt = self.prompts[read]
        front = torch.arange(weights.shape[-1], device=weights.device) < extra
        columns = {"prefix": front.expand(len(weights), -1)} if extra else {}
        if prompt is not None:
            columns["prompt"] = F.pad(prompt, (extra, 0))
        seen = torch.ones_like(weights[:, :1], dtype=torch.bool)
        if mask is not None:
            seen = (mask > torch.finfo(mask.dtype).min / 2)[:, :1].expand_as(seen)
        text = self.queries[site.stack]
        for of, chosen in columns.items():
            chosen = chosen[:, None, None]
            shares = (weights.float() * chosen).sum(-1).clamp(max=1)  # bf16 rounds beyond
            shares = shares * text[:, None]
            even = (seen & chosen).sum(-1) / seen.sum(-1).clamp(min=1) * text[:, None]
            more = _Sum(shares.sum((0, 2)), float(even.sum()), int(text.sum()))
            old = self.sums.get((of, name))
            if old is not None:
                more = _Sum(
                    old.shares + more.shares, old.even + more.even, old.queries + more.queries
                )
            self.sums[of, name] = more

    def shares(self, chart: Chart) -> list[Share]:
        """What was added up, one a kind of attention."""
        grouped: dict[tuple[str, str], list[tuple[int, _Sum]]] = {}
        for site in chart.sites:
            for of in ("prefix", "prompt"):
                found = self.sums.get((of, site.name))
                if found is not None:
                    side = f"{site.stack}.{site.role.removesuffix('.kv')}"
                    grouped.setdefault((of, side), []).append((site.layer or 0, found))
        return [
            Share(
                of,
                side,
                tuple(layer for layer, _ in each),
                torch.stack([one.shares / max(one.queries, 1) for _, one in each]).cpu(),
                torch.tensor([one.even / max(one.queries, 1) for _, one in each]),
            )
            for (of, side), each in grouped.items()
        ]
