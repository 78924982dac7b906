"""Reading a model: `resolve(model)` returns its `Chart`.

The description of the model's family says where the parts are (`families.py`). A family without a
description is read by its structure (`discover.py`).
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from inlay.architectures.base_head import base_head_sites
from inlay.architectures.chart import Chart, Stack
from inlay.architectures.config import is_decoder, sliding_window
from inlay.architectures.discover import discover
from inlay.architectures.families import FAMILIES
from inlay.architectures.layout import Family, Layout
from inlay.architectures.logits import output_matrix
from inlay.architectures.paths import blocks, has_layout, submodule
from inlay.architectures.sites import Outer, projection_site, stack_sites
from inlay.architectures.stacks import config_of
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
    layouts = [layout for layout in family.layouts if has_layout(backbone, layout)]
    has_pair = model.config.is_encoder_decoder
    stacks: list[Stack] = []
    sites: list[Site] = []
    for number, layout in enumerate(layouts):
        stack = _stack(backbone, layout, family, reads_encoder=has_pair and number == 1)
        stacks.append(stack)
    reads_text = any(stack.embed is not None for stack in stacks)
    for number, (stack, layout) in enumerate(zip(stacks, layouts, strict=True)):
        is_main = number == 0 or stack.reads_encoder
        takes_keys = not reads_text or (is_main and stack.embed is not None)
        earlier = any(other.embed is not None for other in stacks[:number])
        sites += stack_sites(stack, layout, Outer.of(stack, is_main, earlier), takes_keys)
    head = output_matrix(model)
    if isinstance(head, nn.Linear):
        reader = next((s for s in stacks if s.reads_encoder), stacks[0])
        sites.append(projection_site("head", "head", head, reader.name, None))
    sites += base_head_sites(model, stacks, sites)
    return Chart(family, model, tuple(stacks), tuple(sites))


def _stack(backbone: nn.Module, layout: Layout, family: Family, *, reads_encoder: bool) -> Stack:
    module = submodule(backbone, layout.path)
    layers = None if module is None else blocks(module, layout)
    assert module is not None and layers is not None
    config = config_of(backbone, layout.path)
    causal = layout.causal or is_decoder(config)
    return Stack(
        name=layout.stack,
        module=module,
        config=config,
        layers=layers,
        embed=None if layout.embed is None else submodule(module, layout.embed),
        reads="text" if layout.embed is not None else layout.reads,
        reads_encoder=reads_encoder,
        causal=causal,
        keeps_first=layout.keeps_first and not causal,
        position_start=family.position_start(config),
        window=sliding_window(config),
        beside_ids=layout.beside_ids,
    )
