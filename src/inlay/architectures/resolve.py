"""What is where in a base: `resolve(model)` gives its Chart.

A family's chart is data (see `charts/`): paths from a block to its parts. A family that nobody
charted is read by its structure (`charts/discover.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart, Stack
from inlay.architectures.discover import discover
from inlay.architectures.families import FAMILIES
from inlay.architectures.layout import (
    Fused,
    Layout,
    Place,
    Sub,
    child,
    reaches,
)
from inlay.core.site import Part, Site, stored_transposed
from inlay.errors import SiteError


def require_model(model: object) -> None:
    """Raise SiteError for what is no transformers model."""
    if not isinstance(model, PreTrainedModel):
        raise SiteError(
            f"inlay works on transformers models; {type(model).__name__} is not a PreTrainedModel"
        )


def resolve(model: PreTrainedModel) -> Chart:
    """Read a base. Raises SiteError for what is not a transformer this library can read."""
    require_model(model)
    family = FAMILIES.get(model.config.model_type)
    backbone = model.base_model
    if family is None or not any(reaches(backbone, lay) for lay in family.layouts):
        family = discover(model)
    stacks: list[Stack] = []
    sites: list[Site] = []
    layouts = [layout for layout in family.layouts if reaches(backbone, layout)]
    start = family.position_start(model.config)
    for layout in layouts:
        stack = _stack(backbone, layout, start)
        stacks.append(stack)
        sites += _sites(stack, layout, len(stacks) > 1)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear):
        sites.append(_linear("head", "head", head, stacks[-1].name, None))
    return Chart(family, model, tuple(stacks), tuple(sites))


def _stack(backbone: nn.Module, layout: Layout, start: int) -> Stack:
    module = child(backbone, layout.path)
    assert isinstance(module, PreTrainedModel)
    layers = child(module, layout.layers)
    assert isinstance(layers, nn.ModuleList)
    embed = child(module, layout.embed) if layout.embed is not None else None
    causal = layout.causal or bool(getattr(module.config, "is_decoder", False))
    first_stays = layout.first_stays and not causal
    window = _window(module.config)
    return Stack(layout.stack, module, tuple(layers), embed, causal, first_stays, start, window)


def _window(config: Any) -> int | None:
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and all(kind == "full_attention" for kind in kinds):
        return None
    return getattr(config, "sliding_window", None)


def _sites(stack: Stack, layout: Layout, second: bool) -> Iterator[Site]:
    if stack.embed is not None:
        role = "embed.target" if second else "embed"
        assert isinstance(stack.embed.weight, Tensor)
        rows, width = stack.embed.weight.shape
        yield Site(role, role, stack.embed, rows, width, stack.name)
    for role, path in layout.norms.items():
        norm = child(stack.module, path)
        if norm is not None and _is_norm(norm):
            yield _norm(f"{stack.name}.{role}", role, norm, stack.name, None)
    for number, block in enumerate(stack.layers):
        yield from _block(f"{stack.name}.{number}", number, block, stack, layout)
    closing = layout.norms.get("norm.final") if layout.closing is None else None
    last = stack.layers[-1]
    host = child(stack.module, closing) if closing else child(last, layout.closing or "")
    width = _width(stack)
    if not second:
        yield Site("final", "final", host or last, width, width, stack.name)


def _block(
    name: str, number: int, block: nn.Module, stack: Stack, layout: Layout
) -> Iterator[Site]:
    width = _width(stack)
    cores = {"attn": layout.core, "cross": layout.cross}
    for side, path in cores.items():
        core = child(block, path) if path is not None else None
        place = layout.block.get(f"{side}.k")
        if core is None or place is None:
            continue
        keys = _projection(name, f"{side}.k", place, block, core, stack, number)
        if keys is not None:
            head_dim = int(getattr(core, layout.width))
            role, heads = f"{side}.kv", keys.d_out // head_dim
            size = heads * head_dim
            yield Site(
                f"{name}.{role}",
                role,
                core,
                width,
                size,
                stack.name,
                number,
                heads=heads,
                head_dim=head_dim,
            )
    for role, place in layout.block.items():
        core = child(block, cores.get(role.split(".")[0]) or "")
        if isinstance(place, Sub):
            enter, leave = child(block, place.enter), child(block, place.leave)
            if enter is not None and leave is not None:
                yield Site(
                    f"{name}.{role}", role, leave, width, width, stack.name, number, enter=enter
                )
        elif isinstance(place, str) and role.startswith("norm."):
            norm = child(block, place)
            if norm is not None and _is_norm(norm):
                yield _norm(f"{name}.{role}", role, norm, stack.name, number)
        else:
            site = _projection(name, role, place, block, core, stack, number)
            if site is not None:
                yield site
    norm = child(block, layout.closing) if layout.closing else None
    yield Site(f"{name}.block", "block", norm or block, width, width, stack.name, number, norm=norm)


def _projection(
    name: str,
    role: str,
    place: Place,
    block: nn.Module,
    core: nn.Module | None,
    stack: Stack,
    number: int,
) -> Site | None:
    assert not isinstance(place, Sub)
    paths = (
        (place.path,) if isinstance(place, Fused) else (place,) if isinstance(place, str) else place
    )
    host = next((found for path in paths if (found := child(block, path)) is not None), None)
    if host is None:
        return None
    site = _linear(f"{name}.{role}", role, host, stack.name, number)
    if not isinstance(place, Fused):
        return site
    part = _part(place, site.d_out, core)
    return Site(site.name, role, host, site.d_in, part.width, stack.name, number, part=part)


def _part(place: Fused, total: int, core: nn.Module | None) -> Part:
    if place.per_head:
        head = int(core.head_size)  # type: ignore[union-attr,arg-type]
        return Part(place.index * head, head, place.of * head, total // (place.of * head))
    if place.grouped:
        groups = int(core.num_key_value_groups)  # type: ignore[union-attr,arg-type]
        small = total // (groups + place.of - 1)
        sizes = [groups * small, *[small] * (place.of - 1)]
        return Part(sum(sizes[: place.index]), sizes[place.index], total)
    size = total // place.of
    return Part(place.index * size, size, total)


def _linear(name: str, role: str, host: nn.Module, stack: str, layer: int | None) -> Site:
    assert isinstance(host.weight, Tensor)
    d_out, d_in = host.weight.shape
    if stored_transposed(host):
        d_out, d_in = d_in, d_out
    return Site(name, role, host, d_in, d_out, stack, layer)


def _norm(name: str, role: str, host: nn.Module, stack: str, layer: int | None) -> Site:
    assert isinstance(host.weight, Tensor)
    return Site(name, role, host, len(host.weight), len(host.weight), stack, layer)


def _is_norm(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() == 1


def _width(stack: Stack) -> int:
    config = stack.module.config
    return int(getattr(config, "hidden_size", None) or config.d_model)
