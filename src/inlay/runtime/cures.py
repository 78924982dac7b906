"""What would work instead, where a base lacks the places that a method asks for."""

from __future__ import annotations

from dataclasses import fields

import torch

from inlay.architectures.chart import Chart
from inlay.core.method import METHODS, Method, Shared
from inlay.core.site import Site, Where
from inlay.errors import InlayError
from inlay.runtime.activations import keys_and_values
from inlay.runtime.port import port_for

MIXES = ("attn", "mixer")
"""Sub-layers that stand for each other: a block has one or the other."""

SUB_LAYERS = ("attn", "mlp")
"""Sub-layers that a method can do without, for another one; without cross-attention it is none."""

EXAMPLES = 3
"""How many methods a message names."""


def missing_roles(chart: Chart, where: Where) -> list[str]:
    """The roles that a base lacks; those that end in `?` only where it has none of them all."""
    known = {name for site in chart.sites for name in (site.role, site.plain_role)}
    required = [role for role in where.roles if not role.endswith("?")]
    optional = [role.removesuffix("?") for role in where.roles if role.endswith("?")]
    if not required and not known.intersection(optional):
        return optional
    return [role for role in required if role not in known]


def cure(chart: Chart, method: Method) -> str:
    """The end of a message about missing roles: what works on this base."""
    kind = type(method).__name__
    roles = _roles_instead(chart, method)
    if roles:
        return f"; use {kind}(at={roles!r})"
    asis, elsewhere = _other_methods(chart, kind)
    if not asis and not elsewhere:
        return ", and no other place for anything"
    names = [*asis[:EXAMPLES], *elsewhere[: 1 if asis else EXAMPLES]]
    return f", nor another place for {kind}; use {' or '.join(names)}"


def _roles_instead(chart: Chart, method: Method) -> tuple[str, ...]:
    """Roles with which the method can be attached: its own, and others for those that are missing.

    The others are of the same sub-layers, or of any where there are none of these.
    """
    if all(field.name != "at" for field in fields(method)):  # type: ignore[arg-type]
        return ()  # its places follow from something else
    taken = _roles_taken(chart, method)
    missing = missing_roles(chart, method.at)
    own = [role for role in taken if role in {r.removesuffix("?") for r in method.at.roles}]
    groups = {_group(role) for role in missing}
    others = [role for role in taken if _group(role) in groups and role not in own]
    if not others and groups.intersection(SUB_LAYERS):
        others = taken
    return tuple(role for role in taken if role in own or role in others) if others else ()


def _roles_taken(chart: Chart, method: Method) -> list[str]:
    """The roles inside blocks that a method can act at. A router is left out: it chooses."""
    firsts: dict[str, Site] = {}
    for site in chart.sites:
        if site.layer is not None and not site.role.endswith(".router"):
            firsts.setdefault(site.plain_role, site)
    return [role for role, site in firsts.items() if _fits(chart, method, site)]


def _fits(chart: Chart, method: Method, site: Site) -> bool:
    """Whether the method builds a piece for a site, and a port takes it there."""
    shared = Shared([site], lambda ids: keys_and_values(chart, ids), chart.stacks[0].vocabulary)
    with torch.random.fork_rng(devices=[]):
        try:
            piece = method.build(site, shared)
            if piece is not None:
                port_for(piece).check(type(method).__name__, site, piece, chart)
        except Exception:  # of anyone's method, at a place that nobody asked for
            return False
    return piece is not None


def _other_methods(chart: Chart, kind: str) -> tuple[list[str], list[str]]:
    """Methods that work on this base as they are, and those that do with an `at` of their own."""
    asis, elsewhere = [], []
    for name, other in METHODS.items():
        try:
            methods = other().expand(chart.sites).methods
        except (InlayError, TypeError):
            continue
        if name == kind or any(method.has_head for method in methods):
            continue
        if all(_attaches(chart, method) for method in methods):
            asis.append(name)
        elif len(methods) == 1 and (roles := _roles_instead(chart, methods[0])):
            elsewhere.append(f"{name}(at={roles!r})")
    return asis, elsewhere


def _attaches(chart: Chart, method: Method) -> bool:
    """Whether every role that a method finds takes it."""
    try:
        sites = chart.find(method.at)
    except InlayError:
        return False
    firsts = {site.role: site for site in reversed(sites)}
    return all(_fits(chart, method, site) for site in firsts.values())


def _group(role: str) -> str:
    """The sub-layer of a role."""
    first = role.split(".")[0]
    return MIXES[0] if first in MIXES else first
