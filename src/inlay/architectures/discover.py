"""Reading a model whose family has no description, by its structure.

Every part that owns a list of equal blocks is a stack (`stacks.py`). Inside a block, projections
are recognised by the names that nearly every modelling file gives them (whole names, never parts
of names) and, in the feed-forward layer, by their shapes. What cannot be recognised is left out,
and a method that needs it says so.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import cast

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from inlay.architectures.config import is_decoder
from inlay.architectures.families import FAMILIES
from inlay.architectures.layout import Family, Layout, Place, Sub
from inlay.architectures.logits import input_embeddings, verified_logits
from inlay.architectures.names import Draft, named, reads
from inlay.architectures.paths import has_layout
from inlay.architectures.stacks import Found, config_of, find_stacks
from inlay.core.site import stored_transposed
from inlay.errors import SiteError

NAMES: dict[str, frozenset[str]] = {
    "q": frozenset({"q_proj", "query", "q", "q_lin", "query_proj", "wq", "to_q"}),
    "k": frozenset({"k_proj", "key", "k", "k_lin", "key_proj", "wk", "to_k"}),
    "v": frozenset({"v_proj", "value", "v", "v_lin", "value_proj", "wv", "to_v"}),
    "o": frozenset({"o_proj", "out_proj", "o", "out_lin", "c_proj", "wo", "dense", "proj"}),
    "gate": frozenset({"gate_proj", "wi_0", "w1"}),
    "up": frozenset({"up_proj", "wi_1", "w3"}),
}
"""What a projection is called, by the last part of its role."""

HEAD_WIDTHS = ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim")
"""The attributes under which attention modules keep the width of a head."""

Projections = dict[str, str]
"""Part of a role ("q", "k", "v", "o") -> path of the projection from its block."""


def discover(model: PreTrainedModel) -> Family:
    """Describe the family of a model from its modules. Raises SiteError where it has no blocks."""
    backbone = model.base_model
    found = find_stacks(backbone, lambda block: bool(_attentions(block)))
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
    block = next(stack.get_submodule(found.layers[0]).children())
    attentions = _attentions(block)
    sides = dict(zip(("attn", "cross"), attentions, strict=False))
    places: dict[str, Place] = {}
    for side, attention in sides.items():
        projections = attentions[attention]
        places |= {f"{side}.{part}": name for part, name in projections.items()}
        if "o" in projections:
            places[side] = Sub(projections["q"], projections["o"])
    in_attention = {name for projections in attentions.values() for name in projections.values()}
    places |= _feed_forward(block, in_attention)
    head_width = _head_width(block.get_submodule(sides["attn"])) if "attn" in sides else None
    embed = _embed_path(stack)
    return Layout(
        stack="",
        path=found.path,
        layers=found.layers,
        embed=embed,
        block=places,
        reads=reads(stack, embed is not None),
        attention=sides.get("attn") if head_width else None,
        cross_attention=sides.get("cross") if head_width else None,
        head_width=head_width or "",
        causal=_causal(block.get_submodule(sides["attn"]) if "attn" in sides else None, stack,
                       config, model),
        keeps_first=not model.config.is_encoder_decoder,
    )  # fmt: skip


def _embed_path(stack: nn.Module) -> str | None:
    """The path of the token embeddings; None where the stack reads no tokens (images, sound)."""
    embed = input_embeddings(stack)
    return next((name for name, part in stack.named_modules() if part is embed), None)


def _attentions(block: nn.Module) -> dict[str, Projections]:
    """The projections of each module that has all of q, k and v, by the module's path, in order."""
    linears = {name: part for name, part in block.named_modules() if _is_linear(part)}
    by_module: dict[str, Projections] = {}
    for name in linears:
        module, _, last = name.rpartition(".")
        for part in ("q", "k", "v"):
            if last in NAMES[part]:
                by_module.setdefault(module, {})[part] = name
    attentions = {
        module: projections for module, projections in by_module.items() if len(projections) == 3
    }
    for module, projections in attentions.items():
        output = _output_projection(module, projections, linears)
        if output is not None:
            projections["o"] = output
    return attentions


def _output_projection(
    attention: str, projections: Projections, linears: dict[str, nn.Module]
) -> str | None:
    """The path of the output projection, inside the attention module or beside it."""
    parent = attention.rpartition(".")[0]
    _, width = _shape(linears[projections["v"]])
    for name, part in linears.items():
        inside = name.startswith(f"{attention}.")
        beside = parent != "" and name.startswith(f"{parent}.")
        named = name.rpartition(".")[2] in NAMES["o"] and name not in projections.values()
        if named and (inside or beside) and _shape(part)[0] == width:
            return name
    return None


def _feed_forward(block: nn.Module, in_attention: set[str]) -> dict[str, Place]:
    """The places of the feed-forward layer: the one projection that narrows, and its reverse."""
    shapes = {
        name: _shape(part)
        for name, part in block.named_modules()
        if _is_linear(part) and name not in in_attention
    }
    downs = [name for name, (d_out, d_in) in shapes.items() if d_in > d_out]
    if len(downs) != 1:
        return {}
    down = downs[0]
    ups = [name for name, shape in shapes.items() if shape == shapes[down][::-1]]
    by_last_name = {name.rpartition(".")[2]: name for name in ups}
    gate = next((by_last_name[word] for word in NAMES["gate"] if word in by_last_name), None)
    up = next((by_last_name[word] for word in NAMES["up"] if word in by_last_name), None)
    if len(ups) == 1:
        gate, up = None, ups[0]
    if up is None:
        return {}
    places: dict[str, Place] = {"mlp.up": up, "mlp.down": down, "mlp": Sub(up, down)}
    return places if gate is None else {**places, "mlp.gate": gate}


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


def _head_width(attention: nn.Module) -> str | None:
    """The attribute of an attention module that holds the width of a head; None without one."""
    values = vars(attention)
    return next((name for name in HEAD_WIDTHS if isinstance(values.get(name), int)), None)


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, (nn.Linear, Conv1D))


def _shape(part: nn.Module) -> tuple[int, int]:
    """(d_out, d_in)."""
    rows, columns = cast(nn.Linear, part).weight.shape
    return (columns, rows) if stored_transposed(part) else (rows, columns)
