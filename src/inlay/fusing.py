"""Setting up an AdapterFusion from the files of trained adapters, reading it out, pruning it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor
from transformers import PreTrainedModel

from inlay.architectures.chart import Chart
from inlay.architectures.resolve import resolve
from inlay.core.method import Method, Placed, Spec, sum_of
from inlay.core.site import AFTER_BLOCKS
from inlay.errors import SpecError
from inlay.files import format as file_format
from inlay.files.fingerprint import check_base
from inlay.handle import Inlay, attach
from inlay.inspect.readings import PlaceReading, readings
from inlay.methods.fusion import Fused, Fusion


def fuse(
    model: PreTrainedModel,
    files: Mapping[str, str | Path],
    *,
    name: str = "default",
    plus: Spec | None = None,
    **fields: Any,
) -> Inlay:
    """Attach a fusion of trained adapters, whose attention is then trained on a target task.

    files: what each adapter is called, and its file; a trained head in it, which is that of
    another task, is left out. name: of the fusion. plus: methods that are trained beside it,
    such as `BitFit()`. fields: those of `Fusion`, such as `identity_weight`.

    Raises FileError for a file that is no inlay, BaseError for one made for another base, and
    SpecError where the files do not hold one adapter of the same kind each. Then the model is as
    it was.
    """
    chart = resolve(model)
    adapters = [read_adapter(path, chart) for path in files.values()]
    spec: Spec = Fusion(
        adapters=tuple(adapter.method for adapter in adapters), names=tuple(files), **fields
    )
    start = {
        f"{site}/{number}/{part}": tensor
        for number, adapter in enumerate(adapters)
        for (site, part), tensor in adapter.tensors.items()
    }
    whole = spec if plus is None else spec + plus
    return attach(model, whole, name=name, prepared={0: start})


@dataclass(frozen=True)
class AdapterFile:
    """The adapter that a file holds.

    tensors: by the name of the site, and their names in a piece of the method.
    """

    method: Method
    tensors: Mapping[tuple[str, str], Tensor]


def read_adapter(path: str | Path, chart: Chart) -> AdapterFile:
    """Read the adapter of a file, without a trained head of its task.

    chart: of the base that it must be made for.

    Raises FileError, BaseError, and SpecError where the file holds other methods too.
    """
    file = file_format.renamed(file_format.read(path), chart)
    check_base(file.path, file.header, chart)
    methods = {
        index: method
        for index, method in enumerate(file.spec.methods)
        if not {role.removesuffix("?") for role in method.at.roles} <= AFTER_BLOCKS
    }
    if len(methods) != 1:
        raise SpecError(
            f"{path} holds {len(methods)} methods, and a fusion is made of adapters alone; "
            "train the adapter without the others"
        )
    ((index, method),) = methods.items()
    begin = f"/{index}/{type(method).__name__.lower()}/"
    parts = {key: key.partition(begin) for key in file.tensors}
    tensors = {
        (site, part): file.tensors[key] for key, (site, found, part) in parts.items() if found
    }
    return AdapterFile(method, tensors)


AdapterWeights = dict[str, dict[str, float]]
"""Site -> adapter -> how much the fusion listens to it there, on average; a site's sum is 1."""


def adapter_weights(handle: Inlay, batches: Iterable[Mapping[str, Tensor]]) -> AdapterWeights:
    """What a fusion listens to in each place, on average over the text of some batches.

    batches: what the model's forward takes, with an `attention_mask` where there is padding.
    `inlay.inspect.readings` gives the same for each text.

    Raises SpecError for an inlay that is no fusion.
    """
    return weights_of(handle, readings(handle, batches))


def weights_of(handle: Inlay, read: Iterable[PlaceReading]) -> AdapterWeights:
    """What a fusion listens to in each place, by what was read out of its inlay."""
    index, _ = _fusion_of(handle)
    return {
        reading.placed.site.name: dict(zip(reading.names, reading.mean.tolist(), strict=True))
        for reading in read
        if reading.placed.index == index
    }


def prune_fusion(
    handle: Inlay,
    weights: AdapterWeights,
    keep: int,
    *,
    per: Literal["inlay", "layer"] = "inlay",
    name: str | None = None,
) -> Inlay:
    """Attach a copy of a fusion with the adapters alone that it listens to most.

    weights: what `adapter_weights` returned for texts of the task. keep: how many adapters stay.
    per: whether these are the same everywhere, by the mean over all places, or each layer keeps
    its own, by the mean over its places; of an encoder–decoder the layers of one number in both
    stacks together. name: of the copy; None for `default-keep2`.

    Raises SpecError for an inlay that is no fusion, or has no more adapters than that.
    """
    index, spec = _fusion_of(handle)
    if not 1 <= keep < len(spec.names):
        raise SpecError(
            f"this fusion has {len(spec.names)} adapters; keep at least 1 and fewer than that"
        )
    if per not in ("inlay", "layer"):
        raise SpecError(f'per is "inlay" or "layer", not {per!r:.40}')
    places = {placed.site.name: placed for placed in handle.placed if placed.index == index}
    if per == "inlay":
        most = _most_used(weights.values(), keep)
        kept = spec.keeping(dict.fromkeys(most))
    else:
        layers = sorted({p.site.layer for p in places.values() if p.site.layer is not None})
        of_layer = {
            layer: _most_used(
                [weights[n] for n, p in places.items() if p.site.layer == layer and n in weights],
                keep,
            )
            for layer in layers
        }
        kept = spec.keeping(
            {n: [layer for layer in layers if n in of_layer[layer]] for n in spec.names}
        )
    methods = list(handle.spec.methods)
    methods[index] = kept
    copy = attach(handle.model, sum_of(methods), name=name or f"{handle.name}-keep{keep}")
    others = {number: number for number in range(len(methods)) if number != index}
    copy.copy_from(handle, others)
    for placed in copy.placed:
        whole = places.get(placed.site.name)
        if placed.index == index and whole is not None:
            _fused(placed).take(_fused(whole))
    return copy


def _most_used(places: Iterable[Mapping[str, float]], keep: int) -> list[str]:
    """The adapters with the highest weights in all of these places together."""
    sums: dict[str, float] = {}
    for place in places:
        for name, weight in place.items():
            sums[name] = sums.get(name, 0.0) + weight
    return sorted(sums, key=lambda name: sums[name], reverse=True)[:keep]


def _fusion_of(handle: Inlay) -> tuple[int, Fusion]:
    """The fusion among the methods of an inlay, and its number. Raises SpecError without one."""
    for index, method in enumerate(handle.spec.methods):
        if isinstance(method, Fusion):
            return index, method
    raise SpecError(f"the inlay {handle.name!r} is no Fusion, but {handle.spec!r:.80}")


def _fused(placed: Placed) -> Fused:
    """The piece of a fusion."""
    assert isinstance(placed.piece, Fused)
    return placed.piece
