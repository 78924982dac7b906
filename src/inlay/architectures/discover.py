"""Reading a model whose family has no description, by its structure.

The blocks are the list of modules that holds most parameters. Inside a block, which need not be
like the others, projections are recognised by the names that nearly every modelling file gives
them (whole names, never parts of names) and by their shapes (`discover_block.py`). What cannot be
recognised is left out, and a method that needs it says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from inlay.architectures.config import is_decoder
from inlay.architectures.discover_block import BlockPlaces, is_plain_norm, places_of
from inlay.architectures.layout import Family, Layout
from inlay.architectures.logits import verified_logits
from inlay.errors import SiteError

STACKS = ("encoder", "decoder")
"""What the stacks of an encoder–decoder are called."""

FINAL_NORMS = ("norm", "ln_f", "norm_f", "final_layernorm", "final_layer_norm", "final_norm")
"""What the norm after the last block is called."""


def discover(model: PreTrainedModel) -> Family:
    """Describe the family of a model from its modules. Raises SiteError where it has no blocks."""
    backbone = model.base_model
    if model.config.is_encoder_decoder:
        stacks = [(name, part) for name, part in backbone.named_children() if name in STACKS]
    else:
        stacks = [("", backbone)]
    layouts = [layout for path, part in stacks if (layout := _layout(path, part, model))]
    if not layouts:
        raise SiteError(
            f"{type(model).__name__} has no list of equal blocks to set pieces into; "
            "use a transformer that is made of such blocks"
        )
    model_type = model.config.model_type
    return Family((model_type,), tuple(layouts), logits=verified_logits, linear_head=False)


def _layout(path: str, stack: nn.Module, model: PreTrainedModel) -> Layout | None:
    """The layout of the stack at `path`; None where it has no list of blocks."""
    layers = _blocks_path(stack)
    if layers is None or not isinstance(stack, PreTrainedModel):
        return None
    blocks = cast(nn.ModuleList, stack.get_submodule(layers))
    by_layer = [places_of(block) for block in blocks]
    first = next((places for places in by_layer if places.attention is not None), by_layer[0])
    attention = None if first.attention is None else _attention(blocks, by_layer, first)
    causal = _causal(attention, model)
    layout = Layout(
        stack=path or ("decoder" if causal else "encoder"),
        path=path,
        layers=layers,
        embed=_embed_path(stack),
        block={},
        norms=_norms(stack),
        causal=causal if not path else path == "decoder",
        keeps_first=not path,
    )
    alike = all(places == by_layer[0] for places in by_layer)
    single = tuple(_of_block(layout, places) for places in by_layer)
    return single[0] if alike else replace(layout, by_layer=single)


def _of_block(layout: Layout, places: BlockPlaces) -> Layout:
    """The layout with what was found in one block."""
    return replace(
        layout,
        block=places.block,
        attention=places.attention,
        cross_attention=places.cross_attention,
        head_width=places.head_width,
    )


def _attention(
    blocks: nn.ModuleList, by_layer: list[BlockPlaces], places: BlockPlaces
) -> nn.Module:
    """The attention module of the block in which these places were found."""
    assert places.attention is not None
    block = next(b for b, found in zip(blocks, by_layer, strict=True) if found is places)
    return block.get_submodule(places.attention)


def _blocks_path(stack: nn.Module) -> str | None:
    """The path of the list of blocks that holds most parameters.

    Blocks are modules of one class; of several, where each can be recomputed in backward.
    """
    sizes = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in stack.named_modules()
        if isinstance(part, nn.ModuleList) and _are_blocks(part)
    }
    return max(sizes, key=lambda name: sizes[name]) if sizes else None


def _are_blocks(modules: nn.ModuleList) -> bool:
    one_class = len({type(module) for module in modules}) == 1
    return one_class or (
        len(modules) > 0
        and all(isinstance(module, GradientCheckpointingLayer) for module in modules)
    )


def _embed_path(stack: PreTrainedModel) -> str | None:
    """The path of the token embeddings; None where the model reads no tokens (images)."""
    try:
        embed = stack.get_input_embeddings()
    except NotImplementedError:  # how transformers says that there are none
        return None
    if not isinstance(embed, nn.Embedding):
        return None
    return next((name for name, part in stack.named_modules() if part is embed), None)


def _norms(stack: nn.Module) -> dict[str, str]:
    """The norm after the last block, where it has one of the names that it has elsewhere."""
    children = dict(stack.named_children())
    named = (name for name in FINAL_NORMS if name in children)
    name = next((name for name in named if is_plain_norm(children[name])), None)
    return {} if name is None else {"norm.final": name}


def _causal(attention: nn.Module | None, model: PreTrainedModel) -> bool:
    """Whether a position sees only those before it, as the attention or else the model says."""
    is_causal = None if attention is None else vars(attention).get("is_causal")
    if is_causal is not None:
        return bool(is_causal)
    return is_decoder(model.config) or model.can_generate()
