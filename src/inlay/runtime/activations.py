"""Running words through the bare base, for starting values: its own keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.architectures.chart import Chart
from inlay.core.modes import evaluating
from inlay.errors import PortError, SpecError
from inlay.runtime import attention
from inlay.runtime.container import container_of
from inlay.runtime.extra_kv import ExtraKVPort, Passing
from inlay.runtime.routing import Routing


def keys_and_values(chart: Chart, ids: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """The bare base's own keys and values of a text: site name -> (k, v), each `[H, T, K]`.

    In an encoder–decoder the text is both source and target. A text that is longer than the base
    reads at once is read in parts.
    """
    size = chart.max_length(chart.base) or len(ids)
    parts = [_read(chart, ids[start : start + size]) for start in range(0, len(ids), size)]
    return {
        name: (torch.cat([part[name][0] for part in parts], 1),
               torch.cat([part[name][1] for part in parts], 1))
        for name in parts[0]
    }  # fmt: skip


def _read(chart: Chart, ids: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    model = chart.base
    embed = chart.stacks[0].embed
    if embed is None:
        raise PortError(f"{type(model).__name__} reads no words, so none can be run through it")
    rows = len(embed.weight)  # type: ignore[arg-type]
    for number in ids:
        if not 0 <= number < rows:
            raise SpecError(f"token id {number} is outside the vocabulary of {rows}")
    sites = [site for site in chart.sites if site.heads and attention.has_port(site.host)]
    before = {site.name: vars(site.host).get(attention.PORT) for site in sites}
    heard: dict[str, tuple[Tensor, Tensor]] = {}
    passing = Passing(heard=heard)
    text = torch.tensor([list(ids)], device=model.device)
    inputs: dict[str, Any] = {"input_ids": text}
    if chart.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = text
    root = container_of(model)
    asked = None if root is None else root.route.asked
    configs = attention.configs(model)
    try:
        attention.check_way_in(configs)
        attention.enter(configs)
        for site in sites:
            setattr(site.host, attention.PORT, ExtraKVPort(site.name, Routing(), passing))
        if root is not None:
            root.route.ask([None])
        with evaluating(model):
            chart.hidden(model, **inputs)
    finally:
        if root is not None:
            root.route.asked = asked
            root.route.bind()
        for site in sites:
            if before[site.name] is None:
                delattr(site.host, attention.PORT)
            else:
                setattr(site.host, attention.PORT, before[site.name])
        if root is None:
            attention.leave(configs)
    return {name: (k[0].clone(), v[0].clone()) for name, (k, v) in heard.items()}
