"""Reading the feed-forward layer of a block: dense, or a mixture of experts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from inlay.architectures.layout import Experts, Fused, Inner, Place, Sub
from inlay.architectures.modules import Linears, is_linear

GATE = frozenset({"gate_proj", "wi_0", "w1"})
UP = frozenset({"up_proj", "wi_1", "w3", "fc1", "c_fc", "dense_h_to_4h", "wi", "lin1"})
DOWN = frozenset({"down_proj", "wo", "w2", "fc2", "c_proj", "dense_4h_to_h", "lin2"})
GATE_UP = frozenset({"gate_up_proj"})
"""What the projections of a feed-forward layer are called; the last is gate and up in one."""

SUB_LAYER = ("mlp", "ffn", "feed_forward", "block_sparse_moe", "moe")
"""What a feed-forward layer is called, whose inside cannot be read."""


@dataclass(frozen=True)
class Mixture:
    """A mixture of experts: its path, that of its experts, and the names of their parameters."""

    path: str
    experts: str
    up: str
    down: str
    count: int


def feed_forward(block: nn.Module, linears: Linears) -> dict[str, Place]:
    """The places of a block's feed-forward layer.

    linears: the projections of the block that are no part of its attention or mixer.
    """
    mixture = _mixture(block)
    if mixture is None:
        places = _dense("mlp", _by_name(linears) or _by_shape(linears))
    else:
        inside = {n: s for n, s in linears.items() if n.startswith(f"{mixture.path}.")}
        outside = {n: s for n, s in linears.items() if n not in inside}
        places = _dense("mlp", _by_name(outside))
        places |= _of_mixture(block, mixture)
        shared = _dense("mlp.shared", _by_name(inside))
        places |= {role: place for role, place in shared.items() if role != "mlp.shared"}
    if "mlp" not in places:
        name = next((name for name in SUB_LAYER if name in dict(block.named_children())), None)
        places |= {} if name is None else {"mlp": Sub(name, name)}
    return places


def _mixture(block: nn.Module) -> Mixture | None:
    """The first module that holds the matrices of all experts in parameters of three dimensions."""
    for path, part in block.named_modules():
        parameters = dict(part.named_parameters(recurse=False))
        down = parameters.get("down_proj")
        up = next((name for name in ("gate_up_proj", "up_proj") if name in parameters), None)
        if up is None or down is None or down.dim() != 3:
            continue
        return Mixture(path.rpartition(".")[0], path, up, "down_proj", len(down))
    return None


def _of_mixture(block: nn.Module, mixture: Mixture) -> dict[str, Place]:
    """The places of a mixture of experts, shared ones left out."""
    places: dict[str, Place] = {}
    if mixture.path:
        places["mlp"] = Sub(mixture.path, mixture.path)
    router = _router(block, mixture)
    if router is not None:
        places["mlp.router"] = router
    if "is_transposed" not in vars(block.get_submodule(mixture.experts)):
        return places  # it does not compute what transformers' interface for experts says
    if mixture.up == "gate_up_proj":
        places["mlp.experts.gate"] = Experts(mixture.experts, mixture.up, 0, 2)
        places["mlp.experts.up"] = Experts(mixture.experts, mixture.up, 1, 2)
    else:
        places["mlp.experts.up"] = Experts(mixture.experts, mixture.up)
    places["mlp.experts.down"] = Experts(mixture.experts, mixture.down)
    return places


def _router(block: nn.Module, mixture: Mixture) -> Place | None:
    """The module beside the experts whose matrix has one row for each of them."""
    parent = block.get_submodule(mixture.path)
    start = f"{mixture.path}." if mixture.path else ""
    for name, part in parent.named_modules():
        weight = dict(part.named_parameters(recurse=False)).get("weight")
        if weight is None or weight.dim() != 2 or len(weight) != mixture.count:
            continue
        path = start + name
        if path == mixture.experts or path.startswith(f"{mixture.experts}."):
            continue
        own = type(part).__module__ == type(parent).__module__  # it goes on from the product
        return path if is_linear(part) and not own else Inner(path)
    return None


def _dense(role: str, projections: dict[str, Place]) -> dict[str, Place]:
    """The places of a dense layer from those of its projections by the last part of their roles."""
    if not projections:
        return {}
    enter, leave = projections.get("gate", projections["up"]), projections["down"]
    enter = enter.path if isinstance(enter, Fused) else enter
    assert isinstance(enter, str) and isinstance(leave, str)
    places: dict[str, Place] = {f"{role}.{part}": place for part, place in projections.items()}
    return {**places, role: Sub(enter, leave)}


def _by_name(linears: Linears) -> dict[str, Place]:
    """The projections of the only module whose names and shapes are those of such a layer."""
    by_module: dict[str, dict[str, str]] = {}
    for name in linears:
        module, _, last = name.rpartition(".")
        by_module.setdefault(module, {})[last] = name
    layers = []
    for names in by_module.values():
        down = next((names[last] for last in names if last in DOWN), None)
        if down is not None and (layer := _layer(names, down, linears)):
            layers.append(layer)
    return layers[0] if len(layers) == 1 else {}


def _layer(names: dict[str, str], down: str, linears: Linears) -> dict[str, Place]:
    """The projections beside a down projection: up, up and gate, or both in one matrix."""
    inner, outer = linears[down][::-1]
    shape = {last: linears[name] for last, name in names.items()}
    fused = next((names[last] for last in names if last in GATE_UP), None)
    if fused is not None and linears[fused] == (2 * inner, outer):
        return {"gate": Fused(fused, 0, 2), "up": Fused(fused, 1, 2), "down": down}
    fits = [last for last in names if shape[last] == (inner, outer) and names[last] != down]
    up = next((names[last] for last in fits if last in UP), None)
    gate = next((names[last] for last in fits if last in GATE), None)
    if up is None:
        up, gate = gate, None
    if up is None:
        return {}
    places: dict[str, Place] = {"up": up, "down": down}
    return places if gate is None else {"gate": gate, **places}


def _by_shape(linears: Linears) -> dict[str, Place]:
    """The one projection that narrows, and the one of the reverse shape."""
    downs = [name for name, (d_out, d_in) in linears.items() if d_in > d_out]
    if len(downs) != 1:
        return {}
    ups = [name for name, shape in linears.items() if shape == linears[downs[0]][::-1]]
    return {"up": ups[0], "down": downs[0]} if len(ups) == 1 else {}
