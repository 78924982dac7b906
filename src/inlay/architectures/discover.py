"""Reading a family that nobody charted, by its structure.

The blocks are the list of equal modules that holds most parameters. Inside a block, projections
are told by what they are called in nearly every modelling file (whole names, never parts of
names) and, for the feed-forward layer, by their shapes. What cannot be told is left out, and a
method that needs it says so.
"""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from inlay.architectures.layout import Family, Layout, Place, Sub, output_head
from inlay.core.modes import evaluating
from inlay.errors import SiteError

NAMES: dict[str, frozenset[str]] = {
    "q": frozenset({"q_proj", "query", "q", "q_lin", "query_proj", "wq", "to_q"}),
    "k": frozenset({"k_proj", "key", "k", "k_lin", "key_proj", "wk", "to_k"}),
    "v": frozenset({"v_proj", "value", "v", "v_lin", "value_proj", "wv", "to_v"}),
    "o": frozenset({"o_proj", "out_proj", "o", "out_lin", "c_proj", "wo", "dense", "proj"}),
    "gate": frozenset({"gate_proj", "wi_0", "w1"}),
    "up": frozenset({"up_proj", "wi_1", "w3"}),
}
WIDTHS = ("head_dim", "head_size", "attention_head_size", "key_value_proj_dim")


def discover(model: PreTrainedModel) -> Family:
    """The family of one model, read from its modules. Raises SiteError where it has no blocks."""
    backbone = model.base_model
    if model.config.is_encoder_decoder:
        stacks = [(name, part) for name, part in backbone.named_children() if name in SIDES]
    else:
        stacks = [("", backbone)]
    layouts = [layout for name, part in stacks if (layout := _layout(name, part, model))]
    if not layouts:
        raise SiteError(
            f"no list of equal blocks was found in {type(model).__name__}; "
            "inlay works on transformers made of blocks"
        )
    kind = model.config.model_type
    return Family((kind,), tuple(layouts), logits=checked_logits, plain_head=False)


SIDES = ("encoder", "decoder")


def _layout(path: str, stack: nn.Module, model: PreTrainedModel) -> Layout | None:
    lists = {
        name: part
        for name, part in stack.named_modules()
        if isinstance(part, nn.ModuleList) and len(part) and len({type(b) for b in part}) == 1
    }
    if not lists or not isinstance(stack, PreTrainedModel):
        return None
    layers = max(lists, key=lambda name: sum(p.numel() for p in lists[name].parameters()))
    block = lists[layers][0]
    embeds = stack.get_input_embeddings()
    embed = next((name for name, part in stack.named_modules() if part is embeds), None)
    attention = _attentions(block)
    places: dict[str, Place] = {}
    cores: dict[str, str] = {}
    for side, (core, own) in zip(("attn", "cross"), attention.items(), strict=False):
        cores[side] = core
        places |= {f"{side}.{role}": name for role, name in own.items()}
        if "o" in own:
            places[side] = Sub(own["q"], own["o"])
    taken = {name for own in attention.values() for name in own.values()}
    places |= _feed_forward(block, taken)
    width = next((w for w in WIDTHS if "attn" in cores and _has(block, cores["attn"], w)), None)
    return Layout(
        stack=path or ("decoder" if _causal(block, cores, model) else "encoder"),
        path=path,
        layers=layers,
        embed=embed,
        block=places,
        core=cores.get("attn") if width else None,
        cross=cores.get("cross") if width else None,
        width=width or "",
        causal=path == "decoder" or (not path and _causal(block, cores, model)),
        first_stays=not path,
    )


def _attentions(block: nn.Module) -> dict[str, dict[str, str]]:
    """Path of each module with query, key and value projections -> role -> path, in order."""
    linears = {name: part for name, part in block.named_modules() if _is_linear(part)}
    found: dict[str, dict[str, str]] = {}
    for name in linears:
        core, _, last = name.rpartition(".")
        for role in ("q", "k", "v"):
            if last in NAMES[role]:
                found.setdefault(core, {})[role] = name
    found = {core: own for core, own in found.items() if len(own) == 3}
    for core, own in found.items():
        above = core.rpartition(".")[0]
        width = block.get_submodule(own["v"])
        outs = [
            name
            for name, part in linears.items()
            if name.rpartition(".")[2] in NAMES["o"]
            and name not in own.values()
            and (name.startswith(core + ".") or (above and name.startswith(above + ".")))
            and _size(part)[0] == _size(width)[1]
        ]
        if outs:
            own["o"] = outs[0]
    return found


def _feed_forward(block: nn.Module, taken: set[str]) -> dict[str, Place]:
    rest = {
        name: _size(part)
        for name, part in block.named_modules()
        if _is_linear(part) and name not in taken
    }
    downs = [name for name, (d_out, d_in) in rest.items() if d_in > d_out]
    if len(downs) != 1:
        return {}
    down = downs[0]
    ups = [name for name, size in rest.items() if size == rest[down][::-1]]
    last = {name.rpartition(".")[2]: name for name in ups}
    gate = next((last[word] for word in NAMES["gate"] if word in last), None)
    up = next((last[word] for word in NAMES["up"] if word in last), None)
    if len(ups) == 1:
        gate, up = None, ups[0]
    if up is None:
        return {}
    places: dict[str, Place] = {"mlp.up": up, "mlp.down": down, "mlp": Sub(up, down)}
    return places if gate is None else {**places, "mlp.gate": gate}


def _causal(block: nn.Module, cores: dict[str, str], model: PreTrainedModel) -> bool:
    if "attn" in cores:
        said = getattr(block.get_submodule(cores["attn"]), "is_causal", None)
        if said is not None:
            return bool(said)
    return bool(getattr(model.config, "is_decoder", False)) or model.can_generate()


def _has(block: nn.Module, core: str, width: str) -> bool:
    return isinstance(vars(block.get_submodule(core)).get(width), int)


def _is_linear(part: nn.Module) -> bool:
    return isinstance(part, (nn.Linear, Conv1D))


def _size(part: nn.Module) -> tuple[int, int]:
    """(d_out, d_in)."""
    weight = part.weight
    assert isinstance(weight, Tensor)
    rows, columns = weight.shape
    return (columns, rows) if isinstance(part, Conv1D) else (rows, columns)


_checked: WeakSet[nn.Module] = WeakSet()


def checked_logits(model: Any, hidden: Tensor) -> Tensor:
    """The output embeddings alone, once it is shown that the model does nothing else.

    Raises SiteError where its logits are not what its output embeddings return.
    """
    head = output_head(model)
    if model not in _checked:
        seen: list[Tensor] = []
        hook = head.register_forward_hook(lambda module, args, output: seen.append(output))
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        more = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
        try:
            with evaluating(model):
                logits = model(input_ids=ids, **more).logits
        finally:
            hook.remove()
        if not seen or not torch.equal(seen[-1], logits):
            raise SiteError(
                f"{type(model).__name__} does more to its logits than its head does, and nobody "
                "has charted how; use your own loss on model(...).logits"
            )
        _checked.add(model)
    return head(hidden)
