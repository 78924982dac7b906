"""Merging: what to write into the base's weights so that they compute what the pieces compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.core.method import Placed, Spec
from inlay.core.piece import Foldable, InputMap, Piece
from inlay.core.quantised import as_linear, quantised_modules
from inlay.core.site import Site
from inlay.errors import MergeError, NotFoldableError, QuantisedError, TiedWeightsError

Linears = Mapping[nn.Module, nn.Linear]
"""Ordinary modules by the quantised ones whose places they take."""

Write = tuple[Tensor, Tensor]
"""A parameter of the base, or an expert's slice of one, and its new value, in fp32."""


def check_alone(others: Sequence[str]) -> None:
    """Raise MergeError where other inlays are attached to the base that is about to change."""
    if others:
        raise MergeError(
            f"merging changes the base, and {', '.join(map(repr, others))} depend on it; "
            "detach every other inlay first"
        )


def dequantised(model: PreTrainedModel) -> Linears:
    """For every quantised module of a model an ordinary one with its numbers."""
    return {module: as_linear(module, model.dtype) for module in quantised_modules(model).values()}


def replace_quantised(model: PreTrainedModel, linears: Linears) -> None:
    """Put the ordinary modules in the places of the quantised ones."""
    for path, module in quantised_modules(model).items():
        if module in linears:
            model.set_submodule(path, linears[module])
    if linears:
        quantizer: Any = model.hf_quantizer
        quantizer.remove_quantization_config(model)


def plan(
    model: PreTrainedModel, spec: Spec, placed: Sequence[Placed], linears: Linears | None = None
) -> list[Write]:
    """Every write that merging would do. Nothing is written.

    Trained heads read what the base has computed, have no place in its weights, and are left out.

    linears: the modules that will take the places of quantised ones; what is folded into these is
    written into them.

    Raises MergeError where a piece cannot be folded.
    """
    weights: dict[tuple[int, object], ModuleWeights] = {}
    by_site: dict[str, tuple[Site, list[Piece]]] = {}
    for entry in placed:
        if entry.method.has_head:
            continue
        if not isinstance(entry.piece, Foldable):
            raise NotFoldableError(
                f"{type(entry.method).__name__} at {entry.site.name} cannot be folded into "
                "weights: no linear map computes it; keep it as a file beside the base"
            )
        by_site.setdefault(entry.site.name, (entry.site, []))[1].append(entry.piece)
    if not by_site:
        raise MergeError(
            f"{spec!r} is a trained head alone, with nothing to fold into weights; keep it as a "
            "file beside the base"
        )
    tied = _tied_parameters(model)
    for site, pieces in by_site.values():
        expert = site.expert
        matrix = id(site.host), None if expert is None else (expert.parameter, expert.number)
        if matrix not in weights:
            weights[matrix] = ModuleWeights(_replaced(site, linears or {}))
        module = weights[matrix]
        if id(site.parameter) in tied:
            raise TiedWeightsError(
                f"{site.name} shares its matrix with another part of the model, which merging "
                "would change as well; keep the inlay as a file beside the base"
            )
        w, b = module.part(site)
        # what changes the input reads x first, so it is folded last
        for piece in sorted(pieces, key=lambda piece: isinstance(piece, InputMap)):
            assert isinstance(piece, Foldable)
            try:
                w, b = piece.fold(w, b)
            except MergeError as error:
                raise type(error)(f"{site.name}: {error}") from None
        module.put(site, w, b)
    return [write for module in weights.values() for write in module.writes()]


def _replaced(site: Site, linears: Linears) -> Site:
    """The site in the module that takes the place of its own."""
    host = linears.get(site.host)
    return site if host is None else replace(site, host=host)


class ModuleWeights:
    """A matrix and its bias in fp32, `[d_out, d_in]`, while sites of it are folded."""

    def __init__(self, site: Site):
        quantised = site.quantisation
        if quantised is not None or not site.parameter.is_floating_point():
            raise QuantisedError(
                f"{site.name} is quantised ({quantised or site.parameter.dtype}), and what is "
                "folded into it would be rounded away; merge with dequantise=True (on the command "
                "line --dequantize), load the base unquantised, or keep the inlay as a file"
            )
        self.weight, self.bias = site.stored()
        self.transposed = site.transposed
        self.w = self.weight.detach().float().clone()
        if self.transposed:
            self.w = self.w.T.contiguous()
        self.b = None if self.bias is None else self.bias.detach().float().clone()

    def part(self, site: Site) -> tuple[Tensor, Tensor | None]:
        """The site's own rows."""
        if site.part is None:
            return self.w, self.b
        w, b = site.part.take(self.w, 0), self.b
        return w.clone(), None if b is None else site.part.take(b, 0).clone()

    def put(self, site: Site, w: Tensor, b: Tensor | None) -> None:
        """Replace a site's rows."""
        if site.part is None:
            self.w, self.b = w, b
            return
        site.part.write(self.w, w)
        if self.b is not None and b is not None:
            site.part.write(self.b, b)

    def writes(self) -> list[Write]:
        """The module's new parameters."""
        writes: list[Write] = [(self.weight, self.w.T if self.transposed else self.w)]
        if self.b is not None:
            assert self.bias is not None
            writes.append((self.bias, self.b))
        return writes


def _tied_parameters(model: PreTrainedModel) -> set[int]:
    """Ids of the parameters that several modules hold."""
    holders: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                holders.setdefault(id(parameter), set()).add(id(module))
    return {number for number, modules in holders.items() if len(modules) > 1}
