"""Setting up an AdapterFusion from the files of trained adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from inlay.architectures.resolve import resolve
from inlay.core.method import Method
from inlay.errors import SpecError
from inlay.files import format as file_format
from inlay.files.fingerprint import check_base
from inlay.handle import Inlay, attach
from inlay.methods.fusion import Fusion


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
