"""Leaving out the lowest layers of a trained inlay."""

from __future__ import annotations

from dataclasses import fields, replace

from inlay.core.method import Method, sum_of
from inlay.core.site import Where
from inlay.errors import SpecError
from inlay.handle import Inlay, attach


def drop_layers(handle: Inlay, layers: int, *, name: str | None = None) -> Inlay:
    """Attach a copy of an inlay without its pieces in the lowest layers of each stack.

    These layers then compute exactly what the base does, whatever the task, so they can be run
    once for several (Rücklé et al., EMNLP 2021). The copy is an inlay like any other: it is saved
    in a file of its own.

    layers: k, how many layers from the input; of an encoder–decoder, in each stack. name: of the
    copy; None for the inlay's name and the number, `default-drop5`.

    Raises SpecError where nothing would be left of a method, or for one that acts outside layers.
    """
    methods = handle.spec.exported().methods
    rest = [_without_lowest(handle, index, method, layers) for index, method in enumerate(methods)]
    copy = attach(handle.model, sum_of(rest), name=name or f"{handle.name}-drop{layers}")
    tensors = handle.named_tensors()
    copy.load_tensors({key: tensors[key] for key in copy.named_tensors()})
    return copy


def _without_lowest(handle: Inlay, index: int, method: Method, layers: int) -> Method:
    """The method in the other layers alone."""
    kind = type(method).__name__
    places = [placed.site for placed in handle.placed if placed.index == index]
    if any(site.layer is None for site in places):
        raise SpecError(
            f"{kind} also acts outside the layers, at {places[0].name}, so that the base's lowest "
            "layers could not stay as they are; train it with at= layers alone"
        )
    if all(field.name != "at" for field in fields(method)):  # type: ignore[arg-type]
        raise SpecError(
            f"the places of {kind} follow from the method in it; drop the layers of that one"
        )
    numbers = {site.layer for site in places if site.layer is not None}
    kept = sorted(number for number in numbers if number >= layers)
    if layers < 0 or not kept:
        raise SpecError(
            f"without its lowest {layers} layers {kind} has none left; drop fewer than "
            f"{1 + max(site.layer or 0 for site in places)}"
        )
    at = Where(method.at.roles, tuple(kept), method.at.stacks)
    return replace(method, at=at)  # type: ignore[type-var]
