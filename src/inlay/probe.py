"""Running words through the bare base, for starting values: its own keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inlay.chart import Chart
from inlay.errors import PortError, SpecError
from inlay.layout import evaluating
from inlay.ports import keys
from inlay.root import root_of


def probe(chart: Chart, ids: Sequence[int]) -> dict[str, tuple[Tensor, Tensor]]:
    """The bare base's own keys and values of a text: site name -> (k, v), each `[H, T, K]`.

    In an encoder–decoder the text is both source and target.
    """
    model = chart.base
    embed = chart.stacks[0].embed
    if embed is None:
        raise PortError(f"{type(model).__name__} reads no words, so none can be run through it")
    rows = len(embed.weight)  # type: ignore[arg-type]
    for number in ids:
        if not 0 <= number < rows:
            raise SpecError(f"token id {number} is outside the vocabulary of {rows}")
    sites = [site for site in chart.sites if site.heads and keys.has_port(site.host)]
    before = {site.name: vars(site.host).get(keys.PORT) for site in sites}
    recorders = {site.name: keys.Recorder() for site in sites}
    text = torch.tensor([list(ids)], device=model.device)
    inputs: dict[str, Any] = {"input_ids": text}
    if chart.kind == "encoder-decoder":
        inputs["decoder_input_ids"] = text
    root = root_of(model)
    asked = None if root is None else root.route.asked
    try:
        keys.open_port(model)
        for site in sites:
            setattr(site.host, keys.PORT, recorders[site.name])
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
                delattr(site.host, keys.PORT)
            else:
                setattr(site.host, keys.PORT, before[site.name])
        if root is None or not any(door.adds_keys for door in root.doors):
            keys.close_port(model)
    return {name: one.seen for name, one in recorders.items() if one.seen is not None}
