"""Setting up an AdapterFusion from the files of trained adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inlay.architectures.resolve import resolve
from inlay.core.method import Method
from inlay.core.modes import evaluating
from inlay.errors import SpecError
from inlay.files import format as file_format
from inlay.files.fingerprint import check_base
from inlay.handle import Inlay, attach, rows
from inlay.methods.fusion import Fused, Fusion


def fuse(
    model: PreTrainedModel,
    files: Mapping[str, str | Path],
    *,
    name: str = "default",
    **fields: Any,
) -> Inlay:
    """Attach a fusion of trained adapters, whose attention is then trained on a target task.

    files: what each adapter is called, and its file. name: of the fusion. fields: those of
    `Fusion`, such as `identity_weight`.

    Raises FileError for a file that is no inlay, BaseError for one made for another base, and
    SpecError where the files do not hold one adapter of the same kind each. Then the model is as
    it was.
    """
    chart = resolve(model)
    adapters: list[Method] = []
    start: dict[str, Tensor] = {}
    for number, path in enumerate(files.values()):
        file = file_format.read(path)
        check_base(file.path, file.header, chart)
        methods = file.spec.methods
        if len(methods) != 1:
            raise SpecError(
                f"{path} holds {len(methods)} methods, and a fusion is made of adapters alone; "
                "train the adapter without the others"
            )
        adapters.append(methods[0])
        prefix = f"/0/{type(methods[0]).__name__.lower()}/"
        for key, tensor in file.tensors.items():
            site, _, part = key.partition(prefix)
            start[f"{site}/{number}/{part}"] = tensor
    spec = Fusion(adapters=tuple(adapters), names=tuple(files), **fields)
    return attach(model, spec, name=name, prepared={0: start})


AdapterWeights = dict[str, dict[str, float]]
"""Site -> adapter -> how much the fusion listens to it there, on average; a site's sum is 1."""


def adapter_weights(handle: Inlay, batches: Iterable[Mapping[str, Tensor]]) -> AdapterWeights:
    """What a fusion listens to in each place, on average over the text of some batches.

    batches: what the model's forward takes, with an `attention_mask` where there is padding.

    Raises SpecError for an inlay that is no fusion.
    """
    spec = _fusion_of(handle)
    sums = {placed.site.name: torch.zeros(len(spec.names)) for placed in _fused(handle)}
    masks: list[Tensor | None] = [None]

    def note(site: str, stack: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], weights: Tensor) -> None:
            text, mask = weights.float(), masks[0]
            if mask is not None and mask.shape == text.shape[:2]:
                text = text[mask.bool()]
            sums[site] += text.flatten(0, -2).sum(0).cpu()

        return hook

    hooks = [
        placed.piece.attention.register_forward_hook(note(placed.site.name, placed.site.stack))
        for placed in _fused(handle)
    ]
    try:
        with evaluating(handle.model):
            for batch in batches:
                masks[0] = batch.get("attention_mask")
                with rows(handle.model, [handle.name]):
                    handle.model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        site: dict(zip(spec.names, (total / total.sum().clamp(min=1e-9)).tolist(), strict=True))
        for site, total in sums.items()
    }


def prune_fusion(
    handle: Inlay, weights: AdapterWeights, keep: int, *, name: str | None = None
) -> Inlay:
    """Attach a copy of a fusion with the adapters alone that it listens to most.

    weights: what `adapter_weights` returned for texts of the task; the mean over all places
    counts. keep: how many adapters stay. name: of the copy; None for `default-keep2`.

    Raises SpecError for an inlay that is no fusion, or has no more adapters than that.
    """
    spec = _fusion_of(handle)
    if not 1 <= keep < len(spec.names):
        raise SpecError(
            f"this fusion has {len(spec.names)} adapters; keep at least 1 and fewer than that"
        )
    means = {n: sum(place[n] for place in weights.values()) for n in spec.names}
    least = sorted(spec.names, key=lambda adapter: means[adapter])[: len(spec.names) - keep]
    copy = attach(handle.model, spec.without(set(least)), name=name or f"{handle.name}-keep{keep}")
    kept = [number for number, adapter in enumerate(spec.names) if adapter not in least]
    for whole, part in zip(_fused(handle), _fused(copy), strict=True):
        part.piece.take(whole.piece, kept)
    return copy


def _fusion_of(handle: Inlay) -> Fusion:
    """The method of an inlay that is a fusion. Raises SpecError for another."""
    spec = handle.spec
    if not isinstance(spec, Fusion):
        raise SpecError(f"the inlay {handle.name!r} is no Fusion, but {spec!r:.80}")
    return spec


def _fused(handle: Inlay) -> list[Any]:
    """The places of a fusion, with their pieces."""
    return [placed for placed in handle.placed if isinstance(placed.piece, Fused)]
