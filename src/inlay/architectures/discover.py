"""Reading a model whose family has no description, by its structure.

Every part that owns a list of blocks is a stack (`stacks.py`). Inside a block, which need not be
like the others, projections are recognised by the names that nearly every modelling file gives
them (whole names, never parts of names) and by their shapes (`discover_block.py`). What cannot be
recognised is left out, and a method that needs it says so.
"""

from __future__ import annotations

import inspect
from dataclasses import replace

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from inlay.architectures.config import is_decoder
from inlay.architectures.discover_block import BlockPlaces, attends, is_plain_norm, places_of
from inlay.architectures.families import FAMILIES
from inlay.architectures.layout import Family, Layout
from inlay.architectures.logits import input_embeddings, verified_logits
from inlay.architectures.names import Draft, named, reads
from inlay.architectures.paths import has_layout
from inlay.architectures.stacks import Found, config_of, find_stacks
from inlay.errors import SiteError

FINAL_NORMS = ("norm", "ln_f", "norm_f", "final_layernorm", "final_layer_norm", "final_norm")
"""What the norm after the last block is called."""


def discover(model: PreTrainedModel) -> Family:
    """Describe the family of a model from its modules. Raises SiteError where it has no blocks."""
    backbone = model.base_model
    found = find_stacks(backbone, attends)
    if not found:
        raise SiteError(
            f"{type(model).__name__} has no list of equal blocks to set pieces into; "
            "use a transformer that is made of such blocks"
        )
    drafts = named([_draft(part, backbone, model) for part in found], model)
    known = drafts[0].known
    family = Family(
        (model.config.model_type,),
        tuple(draft.layout for draft in drafts),
        logits=verified_logits,
        linear_head=False,
    )
    if known is None:
        return family
    return replace(
        family,
        position_start=known.position_start,
        position_table=known.position_table,
        shares_prefix=known.shares_prefix,
    )


def _draft(found: Found, backbone: nn.Module, model: PreTrainedModel) -> Draft:
    """The layout of a stack that was found, before it has its name."""
    stack = backbone.get_submodule(found.path)
    config = config_of(backbone, found.path)
    known = FAMILIES.get(config.model_type)
    if known is not None and len(known.layouts) == 1 and has_layout(stack, known.layouts[0]):
        (layout,) = known.layouts
        module = stack.get_submodule(layout.path)
        path = ".".join(part for part in (found.path, layout.path) if part)
        layout = replace(layout, path=path, causal=layout.causal or is_decoder(config))
        return Draft(layout, module, config, known)
    return Draft(_layout(found, stack, config, model), stack, config)


def _layout(
    found: Found, stack: nn.Module, config: PreTrainedConfig, model: PreTrainedModel
) -> Layout:
    """The layout of a stack that no family describes."""
    blocks = [block for path in found.layers for block in stack.get_submodule(path).children()]
    by_layer = [places_of(block) for block in blocks]
    pairs = zip(blocks, by_layer, strict=True)
    attention = next((b.get_submodule(p.attention) for b, p in pairs if p.attention), None)
    embed = _embed_path(stack)
    layout = Layout(
        stack="",
        path=found.path,
        layers=found.layers,
        embed=embed,
        block={},
        reads=reads(stack, embed is not None),
        norms=_norms(stack),
        causal=_causal(attention, stack, config, model),
        keeps_first=not model.config.is_encoder_decoder,
    )
    single = tuple(_of_block(layout, places) for places in by_layer)
    alike = all(places == by_layer[0] for places in by_layer)
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


def _norms(stack: nn.Module) -> dict[str, str]:
    """The norm after the last block, where it has one of the names that it has elsewhere."""
    children = dict(stack.named_children())
    named = (name for name in FINAL_NORMS if name in children)
    name = next((name for name in named if is_plain_norm(children[name])), None)
    return {} if name is None else {"norm.final": name}


def _embed_path(stack: nn.Module) -> str | None:
    """The path of the token embeddings; None where the stack reads no tokens (images, sound)."""
    embed = input_embeddings(stack)
    return next((name for name, part in stack.named_modules() if part is embed), None)


def _causal(
    attention: nn.Module | None,
    stack: nn.Module,
    config: PreTrainedConfig,
    model: PreTrainedModel,
) -> bool:
    """Whether a position sees only those before it, as the attention or else the model says."""
    is_causal = None if attention is None else vars(attention).get("is_causal")
    if is_causal is not None:
        return bool(is_causal)
    if is_decoder(config):
        return True
    takes_ids = "input_ids" in inspect.signature(type(stack).forward).parameters
    return takes_ids and not model.config.is_encoder_decoder and model.can_generate()
