"""Trained changes to whole weights of the base, for methods that train a part of it as it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from inlay.blocks.bottleneck import linear
from inlay.blocks.norm import NormTwin
from inlay.core.context import PassContext
from inlay.core.method import Method, require_site
from inlay.core.piece import Foldable, OutputDelta
from inlay.core.site import Site
from inlay.errors import SpecError


class DenseTwin(Foldable, OutputDelta):
    """`y + δ x + c`: a zeroed twin of a projection's matrix, and of its bias where it has one."""

    def __init__(self, site: Site):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(site.d_out, site.d_in))  # [d_out, d_in]
        self.bias = nn.Parameter(torch.zeros(site.d_out)) if site.bias() is not None else None

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return linear(x, self.weight, self.bias)

    @override
    def fold(self, w: Tensor, b: Tensor | None) -> tuple[Tensor, Tensor | None]:
        bias = b if self.bias is None or b is None else b + self.bias.detach()
        return w + self.weight.detach(), bias


def twin(method: Method, site: Site) -> OutputDelta:
    """The piece that trains all weights of a projection or a norm. Raises SiteError elsewhere."""
    require_site(method, site, site.is_projection or site.is_norm, "projections and norms")
    return NormTwin(site) if site.is_norm else DenseTwin(site)


def own_parameters(method: Method, sites: Sequence[Site]) -> dict[int, Tensor]:
    """The base's own matrices, gains and biases at these sites, each once, by its id.

    For a preparation that looks at their gradients. Raises SiteError at places without weights,
    and SpecError where weights are quantised and so have no gradients.
    """
    parameters: dict[int, Tensor] = {}
    for site in sites:
        require_site(method, site, site.is_projection or site.is_norm, "projections and norms")
        if site.quantisation is not None or not site.parameter.is_floating_point():
            raise SpecError(
                f"{type(method).__name__} needs gradients of the base's weights, and those of "
                f"{site.name} are quantised; open the base without quantisation"
            )
        for tensor in (site.parameter, site.bias_parameter):
            if tensor is not None:
                parameters[id(tensor)] = tensor
    return parameters
