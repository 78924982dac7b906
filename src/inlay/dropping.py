"""Leaving out the lowest layers of a trained inlay."""

from __future__ import annotations

from inlay.core.method import Method, sum_of
from inlay.core.site import AFTER_BLOCKS
from inlay.errors import SpecError
from inlay.handle import Inlay, attach


def drop_layers(handle: Inlay, layers: int, *, name: str | None = None) -> Inlay:
    """Attach a copy of an inlay without its pieces in the lowest layers of each stack.

    These layers then compute exactly what the base does, whatever the task, so they can be run
    once for several (Rücklé et al., EMNLP 2021). The copy is an inlay like any other: it is saved
    in a file of its own. What acts after the layers, such as a trained head, stays.

    layers: k, how many layers from the input; of an encoder–decoder, in each stack. name: of the
    copy; None for the inlay's name and the number, `default-drop5`.

    Raises SpecError where nothing would be left of a method, or for one that acts before layers.
    """
    methods = handle.spec.exported().methods
    rest = [_without_lowest(handle, index, method, layers) for index, method in enumerate(methods)]
    copy = attach(handle.model, sum_of(rest), name=name or f"{handle.name}-drop{layers}")
    tensors = handle.named_tensors()
    copy.load_tensors({key: tensors[key] for key in copy.named_tensors()})
    return copy


def in_place_of(handle: Inlay, layers: int) -> Inlay:
    """Put the copy of `drop_layers` in the place of an inlay, which is detached.

    With 0 layers it stays as it is. Raises what `drop_layers` raises; then it is still attached.
    """
    if not layers:
        return handle
    copy = drop_layers(handle, layers)
    handle.detach()
    return copy


def _without_lowest(handle: Inlay, index: int, method: Method, layers: int) -> Method:
    """The method in the other layers alone; as it is where it acts after all of them."""
    kind = type(method).__name__
    places = [placed.site for placed in handle.placed if placed.index == index]
    before = [s for s in places if s.layer is None and s.role not in AFTER_BLOCKS]
    if before:
        raise SpecError(
            f"{kind} also acts outside the layers, at {before[0].name}, so that the base's lowest "
            "layers could not stay as they are; train it with at= layers alone"
        )
    numbers = {site.layer for site in places if site.layer is not None}
    if not numbers:
        return method
    kept = sorted(number for number in numbers if number >= layers)
    if layers < 0 or not kept:
        raise SpecError(
            f"without its lowest {layers} layers {kind} has none left; drop fewer than "
            f"{1 + max(numbers)}"
        )
    return method.in_layers(kept)
