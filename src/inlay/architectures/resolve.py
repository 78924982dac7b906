"""Reading a model: `resolve(model)` returns its `Chart`.

The description of the model's family says where the parts are (`families.py`). A family without a
description is read by its structure (`discover.py`).
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart, Stack
from inlay.architectures.config import is_decoder, sliding_window
from inlay.architectures.discover import discover
from inlay.architectures.families import FAMILIES
from inlay.architectures.layout import Layout
from inlay.architectures.paths import has_layout, submodule
from inlay.architectures.sites import projection_site, stack_sites
from inlay.core.site import Site
from inlay.errors import SiteError


def require_model(model: object) -> None:
    """Raise SiteError for anything that is not a transformers model."""
    if not isinstance(model, PreTrainedModel):
        raise SiteError(
            f"inlay works on transformers models, not on objects of type {type(model).__name__}; "
            "load the model with from_pretrained"
        )


def resolve(model: PreTrainedModel) -> Chart:
    """Find the stacks and sites of a model.

    Raises SiteError for what is not a transformers model, and for a model without a list of equal
    blocks.
    """
    require_model(model)
    backbone = model.base_model
    family = FAMILIES.get(model.config.model_type)
    if family is None or not any(has_layout(backbone, layout) for layout in family.layouts):
        family = discover(model)
    position_start = family.position_start(model.config)
    stacks: list[Stack] = []
    sites: list[Site] = []
    for layout in family.layouts:
        if has_layout(backbone, layout):
            stack = _stack(backbone, layout, position_start)
            sites += stack_sites(stack, layout, reads_encoder=bool(stacks))
            stacks.append(stack)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        sites.append(projection_site("head", "head", head, stacks[-1].name, None))
    return Chart(family, model, tuple(stacks), tuple(sites))


def _stack(backbone: nn.Module, layout: Layout, position_start: int) -> Stack:
    module = submodule(backbone, layout.path)
    assert isinstance(module, PreTrainedModel)
    layers = submodule(module, layout.layers)
    assert isinstance(layers, nn.ModuleList)
    causal = layout.causal or is_decoder(module.config)
    return Stack(
        name=layout.stack,
        module=module,
        layers=tuple(layers),
        embed=None if layout.embed is None else submodule(module, layout.embed),
        causal=causal,
        keeps_first=layout.keeps_first and not causal,
        position_start=position_start,
        window=sliding_window(module.config),
        beside_ids=layout.beside_ids,
    )
