"""Adding up attention weights over batches, while they are computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inlay.architectures.chart import Chart
from inlay.core.piece import ExtraKV
from inlay.core.site import Site
from inlay.handle import Inlay
from inlay.runtime.observation import text_and_prompt


@dataclass(frozen=True)
class AttentionShare:
    """How much of one kind of attention falls on one kind of piece. L layers, H query heads.

    kind:      "prefix" or "prompt".
    attention: `decoder.attn`, `encoder.attn` or `decoder.cross`.
    layers:    the numbers of the layers.
    shares:    `[L, H]`, 0 to 1: the sum of the attention weights on the piece's positions, mean
               over the query positions of all texts.
    uniform:   `[L]`: what the share would be if every query attended equally to everything it
               sees.
    """

    kind: str
    attention: str
    layers: tuple[int, ...]
    shares: Tensor
    uniform: Tensor


def attention_name(site: Site) -> str:
    """The kind of attention that a `*.kv` site belongs to, such as `decoder.cross`."""
    return f"{site.stack}.{site.role.removesuffix('.kv')}"


@dataclass
class _Total:
    """Sums over queries: shares `[H]`, uniform shares, and the number of queries."""

    shares: Tensor
    uniform: float
    queries: int

    def add(self, other: _Total) -> _Total:
        return _Total(
            self.shares + other.shares,
            self.uniform + other.uniform,
            self.queries + other.queries,
        )


class AttentionRecorder:
    """Adds up the attention shares of one inlay over batches.

    Before each batch call `begin` with it; during the forward pass `add` gets the weights of each
    attention; at the end `shares` returns the means.
    """

    def __init__(self, handle: Inlay):
        self.handle = handle
        self.sites = {site.name: site for site in handle.chart.sites}
        self.prefix_lengths: Counter[str] = Counter()
        for placed in handle.placed:
            if isinstance(placed.piece, ExtraKV):
                self.prefix_lengths[placed.site.name] += placed.piece.length
        self.text_positions: dict[str, Tensor] = {}
        self.prompt_positions: dict[str, Tensor | None] = {}
        self.totals: dict[tuple[str, str], _Total] = {}

    def begin(self, batch: Mapping[str, Tensor]) -> None:
        """Note which positions of the next batch's rows are text, and which are prompt.

        The masks are `[B, P + T]`, one for each stack, with prompts where the stack puts them.
        """
        masks = text_and_prompt(self.handle.model, self.handle.name, batch)
        for stack, (text, prompt) in masks.items():
            self.text_positions[stack] = text
            self.prompt_positions[stack] = prompt if bool(prompt.any()) else None

    def add(self, name: str, weights: Tensor, mask: Tensor | None) -> None:
        """Add the weights of one attention.

        name: of its `*.kv` site. weights: `[B, H, T, P + T]`, the pieces' keys first. mask: what
        was added to the scores before the softmax, or None.
        """
        site, prefix_length = self.sites[name], self.prefix_lengths[name]
        keys_stack = (
            self.handle.chart.stacks[0].name if site.role.startswith("cross") else site.stack
        )
        prompt = self.prompt_positions[keys_stack]
        in_prefix = torch.arange(weights.shape[-1], device=weights.device) < prefix_length
        columns = {"prefix": in_prefix.expand(len(weights), -1)} if prefix_length else {}
        if prompt is not None:
            columns["prompt"] = F.pad(prompt, (prefix_length, 0))
        visible = torch.ones_like(weights[:, :1], dtype=torch.bool)
        if mask is not None:
            visible = (mask > torch.finfo(mask.dtype).min / 2)[:, :1].expand_as(visible)
        text = self.text_positions[site.stack][:, None]
        for kind, in_piece in columns.items():
            in_piece = in_piece[:, None, None]
            shares = (weights.float() * in_piece).sum(-1).clamp(max=1)  # bf16 rounds above 1
            uniform = (visible & in_piece).sum(-1) / visible.sum(-1).clamp(min=1) * text
            total = _Total((shares * text).sum((0, 2)), float(uniform.sum()), int(text.sum()))
            earlier = self.totals.get((kind, name))
            self.totals[kind, name] = total if earlier is None else earlier.add(total)

    def shares(self, chart: Chart) -> list[AttentionShare]:
        """The means over everything that was added, one result per kind of attention and piece."""
        grouped: dict[tuple[str, str], list[tuple[int, _Total]]] = {}
        for site in chart.sites:
            for kind in ("prefix", "prompt"):
                total = self.totals.get((kind, site.name))
                if total is not None:
                    layers = grouped.setdefault((kind, attention_name(site)), [])
                    layers.append((site.layer or 0, total))
        return [
            AttentionShare(
                kind,
                attention,
                tuple(layer for layer, _ in layers),
                torch.stack([total.shares / max(total.queries, 1) for _, total in layers]).cpu(),
                torch.tensor([total.uniform / max(total.queries, 1) for _, total in layers]),
            )
            for (kind, attention), layers in grouped.items()
        ]
