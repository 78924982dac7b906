"""S4: layers in four groups, each with methods of its own (Chen et al., ICLR 2023, section 3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from inlay.core.method import Method, Preset, Spec, sum_of
from inlay.core.site import Site, Where
from inlay.errors import SiteError, SpecError
from inlay.methods.bitfit import BitFit
from inlay.methods.houlsby import Houlsby
from inlay.methods.lora import LoRA
from inlay.methods.prefix import Prefix

GROUPS = (
    ("adapter", "lora"),
    ("adapter", "prefix"),
    ("adapter", "prefix", "bitfit"),
    ("prefix", "bitfit", "lora"),
)
"""The methods of each group, from the input to the output."""


@dataclass(frozen=True, repr=False)
class S4(Preset):
    """A design found by search: a spindle of layer groups, one budget a layer, methods by group.

    The two middle groups have more layers than the outer ones. Every layer gets the same number
    of parameters, which its group's methods share; biases take what they need first, and are
    created where the base has none. Each stack of an encoder–decoder is grouped by itself.

    budget: all trained parameters, as a fraction of the base's.
    """

    budget: float = 0.005

    paper: ClassVar[str] = "Chen et al., ICLR 2023"
    sources: ClassVar[Mapping[str, str]] = {
        "budget": "the survey (Lialin et al., 2023): 0.5 % of the parameters",
        "lr": "those of its parts",
    }

    @override
    def check(self) -> None:
        if not 0 < self.budget < 1:
            raise SpecError(f"S4: budget is a fraction between 0 and 1, not {self.budget!r}")

    @override
    def expand(self, sites: Sequence[Site]) -> Spec:
        depths = {
            stack: 1 + max(s.layer for s in sites if s.stack == stack and s.layer is not None)
            for stack in dict.fromkeys(s.stack for s in sites if s.layer is not None)
        }
        hosts = {id(p): p.numel() for site in sites for p in site.host.parameters()}
        share = int(self.budget * sum(hosts.values()) / sum(depths.values()))
        methods: list[Method] = []
        for stack, depth in depths.items():
            first = 0
            for size, names in zip(spindle(depth), GROUPS, strict=True):
                layers = tuple(range(first, first + size))
                first += size
                if layers:
                    methods += _group(names, layers, stack, sites, share)
        return sum_of(methods)


S4.examples = (S4(budget=0.2),)


def spindle(depth: int) -> tuple[int, int, int, int]:
    """How many layers each group has: N₁ < N₂ = N₃ > N₄, if there are six, or eight and more."""
    third = -(-depth // 3)
    middle = third if depth - 2 * third >= 2 else depth // 3
    outer = depth - 2 * middle
    return outer // 2, middle, middle, outer - outer // 2


def lora(rank: int, at: Where) -> LoRA:
    """LoRA whose update has the same scale for every rank."""
    return LoRA(rank=rank, alpha=2.0 * rank, at=at)


def _group(
    names: Sequence[str],
    layers: tuple[int, ...],
    stack: str,
    sites: Sequence[Site],
    share: int,
) -> list[Method]:
    """The methods of one group, in sizes that fill the share of a layer from below."""
    here = [s for s in sites if s.stack == stack and s.layer == layers[0]]
    present = {site.role: site for site in here}
    for role in ("mlp", "attn.kv", "attn.q", "attn.v"):
        if role not in present:
            raise SiteError(
                f"S4 puts adapters, prefixes and LoRA into every layer, and layer {layers[0]} of "
                f"the {stack} has no {role!r}; give methods one by one, each with at="
            )

    def where(*roles: str) -> Where:
        return Where(tuple(role for role in roles if role in present), layers, (stack,))

    def sized(make: Callable[[int], Method], unit: int, least: int, part: int) -> Method:
        size = (part - least) // unit
        if size < 1:
            raise SpecError(
                f"S4: the budget leaves {part:,} parameters for {type(make(1)).__name__} in each "
                f"layer of the {stack}, and {unit + least:,} are the least; give a larger budget"
            )
        return make(size)

    biased = [site for site in here if site.is_projection or site.is_norm]
    methods: list[Method] = []
    if "bitfit" in names:
        roles = dict.fromkeys(site.role for site in biased)
        methods.append(BitFit(at=where(*roles)))
        share -= sum(site.d_out for site in biased)
    sizeable = [name for name in names if name != "bitfit"]
    part = share // len(sizeable)
    width = present["mlp"].d_out
    if "adapter" in sizeable:
        adapted = where("mlp")
        methods.append(
            sized(lambda m: Houlsby(bottleneck=m, at=adapted), 2 * width + 1, width, part)
        )
    if "prefix" in sizeable:
        attended = where("attn.kv", "cross.kv")
        unit = sum(2 * present[role].d_out for role in attended.roles)
        methods.append(sized(lambda p: Prefix(length=p, mlp=None, at=attended), unit, 0, part))
    if "lora" in sizeable:
        projected = where("attn.q", "attn.v", "cross.q", "cross.v")
        matrices = [present[role] for role in projected.roles]
        unit = sum(site.d_in + site.d_out for site in matrices)
        largest = min(min(site.d_in, site.d_out) for site in matrices)
        methods.append(sized(lambda r: lora(min(r, largest), projected), unit, 0, part))
    return methods
