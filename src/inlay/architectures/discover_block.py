"""Reading one block of a model whose family has no description: what is where in it.

Parts are grouped by the module that holds them: one that has projections to queries, keys and
values is an attention, one with an input and an output projection a mixer, one with an up and a
down projection a feed-forward layer, one with fused parameters of three dimensions the experts of
a mixture. Each name in the tables is the whole name of a module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from inlay.architectures.discover_mlp import feed_forward
from inlay.architectures.layout import Place, Sub
from inlay.architectures.modules import Linears, linears_of

ATTENTION: dict[str, frozenset[str]] = {
    "q": frozenset({"q_proj", "query", "q", "q_lin", "query_proj", "wq", "to_q"}),
    "k": frozenset({"k_proj", "key", "k", "k_lin", "key_proj", "wk", "to_k"}),
    "v": frozenset({"v_proj", "value", "v", "v_lin", "value_proj", "wv", "to_v"}),
    "qkv": frozenset({"query_key_value", "Wqkv", "qkv_proj", "qkv", "c_attn", "att_proj"}),
    "q_a": frozenset({"q_a_proj"}),
    "q_b": frozenset({"q_b_proj"}),
    "kv_a": frozenset({"kv_a_proj_with_mqa", "kv_a_proj"}),
    "kv_b": frozenset({"kv_b_proj"}),
}
"""What a projection of attention is called, by the last part of its role."""

COMPLETE = ({"q", "k", "v"}, {"qkv"}, {"q", "kv_a", "kv_b"}, {"q_a", "q_b", "kv_a", "kv_b"})
"""The projections that an attention has: one of these sets at least."""

OUTPUT = frozenset({"o_proj", "out_proj", "o", "out_lin", "c_proj", "wo", "Wo", "dense", "proj"})
"""What the output projection of an attention or a mixer is called."""

MIXER: dict[str, str] = {
    "in_proj": "in",
    "in_proj_qkvz": "qkvz",
    "in_proj_qkv": "qkv",
    "in_proj_z": "z",
    "in_proj_ba": "ba",
    "in_proj_b": "b",
    "in_proj_a": "a",
    "x_proj": "x",
    "out_proj": "out",
}
"""The last part of a mixer's role, by what the projection is called. The one to the step size
is left out: modelling files multiply by its matrix without calling the module."""

HEAD_WIDTHS = ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim")
"""The attributes under which attention modules keep the width of a head."""

BEFORE_MIXING = (
    "input_layernorm",
    "ln_1",
    "norm_1",
    "attention_norm",
    "attn_norm",
    "ln_attn",
    "layernorm_before",
    "operator_norm",
    "pre_attention_layernorm",
    "norm",
)
"""What the norm before the attention or mixer of a block is called."""

BEFORE_MLP = (
    "pre_feedforward_layernorm",
    "pre_ff_layernorm",
    "pre_mlp_layernorm",
    "ln_mlp",
    "post_attention_layernorm",
    "ln_2",
    "norm_2",
    "ffn_norm",
    "mlp_norm",
    "layernorm_after",
)
"""What the norm before the feed-forward layer is called, where there is one before attention."""

AFTER = {"attn": "post_attention_layernorm", "mlp": "post_feedforward_layernorm"}
"""What the norms after both sub-layers are called, where both have one (Gemma, OLMo 2)."""


@dataclass(frozen=True)
class BlockPlaces:
    """What was found in one block.

    block: role -> place. attention, cross_attention: paths of the modules that compute attention,
    each where the width of its heads is known. head_width: the attribute that says it.
    """

    block: Mapping[str, Place]
    attention: str | None
    cross_attention: str | None
    head_width: str


def places_of(block: nn.Module) -> BlockPlaces:
    """Read a block."""
    linears = linears_of(block)
    attentions = _attentions(linears)
    sides = dict(zip(("attn", "cross"), attentions, strict=False))
    places: dict[str, Place] = {}
    for side, path in sides.items():
        projections = attentions[path]
        places |= {f"{side}.{part}": name for part, name in projections.items()}
        if "o" in projections:
            places[side] = Sub(next(iter(projections.values())), projections["o"])
    mixing = {name for projections in attentions.values() for name in projections.values()}
    mixer = _mixer(linears, attentions)
    if mixer is not None:
        path, projections = mixer
        places |= {f"mixer.{part}": name for part, name in projections.items()}
        places["mixer"] = Sub(next(iter(projections.values())), path)
        mixing |= set(projections.values())
    places |= feed_forward(block, {n: s for n, s in linears.items() if n not in mixing})
    places = _with_norms(block, places)
    width = None if "attn" not in sides else _head_width(block.get_submodule(sides["attn"]))
    known = {
        side: path
        for side, path in sides.items()
        if f"{side}.kv_b" in places or _is_width(block.get_submodule(path), width)
    }
    return BlockPlaces(places, known.get("attn"), known.get("cross"), width or "")


def attends(block: nn.Module) -> bool:
    """Whether a block holds the projections of an attention."""
    return bool(_attentions(linears_of(block)))


def is_plain_norm(module: nn.Module) -> bool:
    """Whether a module computes x̂ times a gain, or times one and a gain, plus a bias if any.

    Tried on random numbers: what a piece adds to a gain is a change of the module's gain then.
    """
    parameters = dict(module.named_parameters(recurse=False))
    gain, bias = parameters.get("weight"), parameters.get("bias")
    if gain is None or gain.dim() != 1 or not set(parameters) <= {"weight", "bias"}:
        return False
    eps = vars(module).get("variance_epsilon", vars(module).get("eps"))
    if isinstance(module, nn.LayerNorm):
        return True
    if not isinstance(eps, float) or gain.is_meta:
        return False
    x = torch.linspace(-1, 2, 2 * len(gain), device=gain.device).view(2, -1).to(gain.dtype)
    with torch.no_grad():
        try:
            y = module(x)
        except (TypeError, RuntimeError):  # it reads something else as well, such as a gate
            return False
        scaled = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
        shift = 0 if bias is None else bias.float()
        expected = (scaled * (gain.float() + one) + shift for one in (0, 1))
        return any(torch.allclose(y.float(), e, atol=1e-2, rtol=1e-2) for e in expected)


def _attentions(linears: Linears) -> dict[str, dict[str, str]]:
    """The projections of each module that has all it takes for attention, by the module's path.

    Of each the projections by the last part of their roles; those that read its input come first.
    """
    by_module: dict[str, dict[str, str]] = {}
    for name in linears:
        module, _, last = name.rpartition(".")
        for part, names in ATTENTION.items():
            if last in names:
                by_module.setdefault(module, {})[part] = name
    attentions = {}
    for module, projections in by_module.items():
        complete = any(parts <= projections.keys() for parts in COMPLETE)
        if complete and module:
            order = (part for part in ATTENTION if part in projections)
            attentions[module] = {part: projections[part] for part in order}
    for module, projections in attentions.items():
        output = _output_projection(module, projections, linears)
        if output is not None:
            projections["o"] = output
    return attentions


def _output_projection(attention: str, projections: dict[str, str], linears: Linears) -> str | None:
    """The path of the output projection, inside the attention module or beside it."""
    parent = attention.rpartition(".")[0]
    _, width = linears[next(iter(projections.values()))]
    for name, shape in linears.items():
        inside = name.startswith(f"{attention}.")
        beside = parent != "" and name.startswith(f"{parent}.")
        named = name.rpartition(".")[2] in OUTPUT and name not in projections.values()
        if named and (inside or beside) and shape[0] == width:
            return name
    return None


def _mixer(linears: Linears, attentions: Mapping[str, object]) -> tuple[str, dict[str, str]] | None:
    """The path of the first mixer and its projections; None where the block has none."""
    by_module: dict[str, dict[str, str]] = {}
    for name in linears:
        module, _, last = name.rpartition(".")
        if last in MIXER and module and module not in attentions:
            by_module.setdefault(module, {})[MIXER[last]] = name
    for module, projections in by_module.items():
        reads = any(part in projections for part in ("in", "qkvz", "qkv"))
        if reads and "out" in projections:
            order = (part for part in MIXER.values() if part in projections)
            return module, {part: projections[part] for part in order}
    return None


def _with_norms(block: nn.Module, places: dict[str, Place]) -> dict[str, Place]:
    """The places with the norms of the block's sub-layers, and sub-layers that reach to them.

    Only norms by the names of the tables that compute what a norm is taken to (`is_plain_norm`).
    """
    norms = [name for name, part in block.named_children() if is_plain_norm(part)]
    after = {role: name for role, name in AFTER.items() if name in norms}
    sandwiched = len(after) == len(AFTER)
    mixing = [role for role in ("attn", "mixer") if role in places]
    before = next((name for name in BEFORE_MIXING if name in norms), None)
    mlp = next((name for name in BEFORE_MLP if name in norms), None)
    entrances: dict[str, str] = {}
    if before is not None and mixing:
        places = {**places, f"norm.{mixing[0]}": before}
        entrances = dict.fromkeys(mixing, before)
        if mlp is not None:
            places["norm.mlp"] = entrances["mlp"] = mlp
    elif before is not None and "mlp" in places:  # a block that is a feed-forward layer alone
        places = {**places, "norm.mlp": before}
        entrances["mlp"] = before
    elif sandwiched:
        places = {**places, **{f"norm.{role}": name for role, name in after.items()}}
    exits = after if sandwiched else {}
    for role in ("attn", "mixer", "mlp"):
        place = places.get(role)
        if isinstance(place, Sub):
            enter, leave = entrances.get(role, place.enter), exits.get(role, place.leave)
            places[role] = Sub(enter, leave)
    return places


def _head_width(attention: nn.Module) -> str | None:
    """The attribute of an attention module that holds the width of a head; None without one."""
    return next((name for name in HEAD_WIDTHS if _is_width(attention, name)), None)


def _is_width(attention: nn.Module, name: str | None) -> bool:
    """Whether an attention module holds a number under this name."""
    return name is not None and isinstance(vars(attention).get(name), int)
