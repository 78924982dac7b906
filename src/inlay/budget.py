"""The size of a method, counted before anything is attached, and fitted to a budget."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import TypeVar

import torch
from torch import nn
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.architectures.paths import CHILD
from inlay.architectures.resolve import resolve
from inlay.core.method import Method, Shared, Spec
from inlay.core.piece import OncePerPass
from inlay.errors import SiteError, SpecError

MethodT = TypeVar("MethodT", bound=Method)

UNITS = {"": 1.0, "k": 1e3, "m": 1e6}
BYTES = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
BYTES_EACH = 4
"""A file holds parameters in fp32."""

NO_ROOM = 2**62

LARGEST = 2**20
"""No rank, bottleneck or length beyond this is tried."""


def count_parameters(model: PreTrainedModel, spec: Spec) -> int:
    """How many parameters a file of this spec would hold, without attaching or drawing any.

    What only training needs, such as the MLP of a prefix, does not count, nor does what is frozen.

    Raises SpecError, SiteError or PortError where the spec does not fit the model.
    """
    return _count(resolve(model), spec)


def fit_budget(
    model: PreTrainedModel, method: type[MethodT] | MethodT, parameters: str | int
) -> MethodT:
    """The method with the size that comes closest to a budget from below.

    method: a class, `LoRA`, or an instance whose other fields stay, `LoRA(alpha=32, at="mlp.up")`.
    parameters: a number, "300k", "0.1%" of the base's parameters, or bytes of a file, "2MB".

    What is fitted is the method's rank, bottleneck, length or fraction: see `Method.size`. Raises
    SpecError for a method without one, and for a budget that the smallest size exceeds.
    """
    start = method() if isinstance(method, type) else method
    kind = type(start).__name__
    if not start.size:
        raise SpecError(
            f"{kind} has no rank, bottleneck or length to fit; choose fewer places with at=, or "
            "give its own budget where it has one"
        )
    chart = resolve(model)
    budget = budget_of(model, parameters)

    def count(steps: int) -> int:
        """How many parameters that size has; `NO_ROOM` where the model has no room for it."""
        try:
            return _count(chart, start.with_size(steps))
        except (SpecError, SiteError):
            return NO_ROOM

    if count(1) > budget:
        least = _count(chart, start.with_size(1))
        raise SpecError(
            f"{kind} has {least:,} parameters at least in this model, and the budget is "
            f"{budget:,}; give a larger budget, or choose fewer places with at="
        )
    above = 2
    while above < LARGEST and count(above) <= budget:
        above *= 2
    largest = bisect_right(range(above), budget, lo=1, key=count) - 1
    return start.with_size(bisect_left(range(largest), count(largest), lo=1, key=count))


def budget_of(model: PreTrainedModel, parameters: str | int) -> int:
    """How many parameters a budget is: 300000, "300k", "0.1%" of the base's, or bytes, "2MB"."""
    if isinstance(parameters, int) and not isinstance(parameters, bool) and parameters > 0:
        return parameters
    text = str(parameters).strip().lower()
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*(%|[a-z]*)", text)
    number, unit = (float(match[1]), match[2]) if match else (0.0, "?")
    if number > 0:
        if unit == "%":
            base = [p for n, p in model.named_parameters() if not n.startswith(f"{CHILD}.")]
            return int(number / 100 * sum(p.numel() for p in base))
        if unit in UNITS:
            return int(number * UNITS[unit])
        if unit in BYTES:
            return int(number * BYTES[unit] / BYTES_EACH)
    raise SpecError(
        f'a budget is a number of parameters (300000 or "300k"), a percentage of the base '
        f'("0.1%") or the bytes of a file ("2MB"), not {parameters!r:.40}'
    )


def _count(chart: Chart, spec: Spec) -> int:
    exported = spec.expand(chart.sites).exported()
    return sum(_count_method(chart, method) for method in exported.methods)


def _count_method(chart: Chart, method: Method) -> int:
    sites = chart.find(method.at)
    shared = Shared(sites, lambda ids: {}, chart.stacks[0].vocabulary)
    with torch.device("meta"), torch.no_grad(), torch.random.fork_rng(devices=[]):
        pieces = [method.build(site, shared) for site in sites]
    modules: list[nn.Module] = [piece for piece in pieces if piece is not None]
    modules += [m for m in shared.modules.values() if not isinstance(m, OncePerPass)]
    parameters = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return sum(p.numel() for p in parameters.values())
