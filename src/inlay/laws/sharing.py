"""The law of shared modules: one storage in memory, one entry in the file, one after loading."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from inlay.core.piece import OncePerPass
from inlay.handle import Inlay, load, rows
from inlay.laws.batches import pad_batch
from inlay.laws.case import Broken, Case, NotApplicable
from inlay.laws.compare import model_output, require_close
from inlay.runtime.container import container_of


def shared_modules_are_stored_once(case: Case) -> float:
    """What pieces share is stored once, and after loading all of them read the one module."""
    if not case.has_shared:
        raise NotApplicable("no module is shared")
    inputs = pad_batch(case.inputs(2))
    with case.isolated(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "law.safetensors")
        with case.inlay() as handle:
            _check_memory(handle)
            handle.save(path)
            _check_file(load_file(path), _shared_tensors(handle))
            loaded = load(case.model, path, name="law-loaded")
            try:
                _check_memory(loaded)
                before = _output(case, handle, inputs)
                _change(handle)
                _change(loaded)
                changed = _output(case, handle, inputs)
                if torch.equal(before, changed):
                    raise Broken("no piece reads what is shared")
                output = _output(case, loaded, inputs)
            finally:
                loaded.detach()
    return require_close(case, output, changed, "after changing what is shared in a loaded inlay")


def _output(case: Case, handle: Inlay, inputs: dict[str, Tensor]) -> Tensor:
    with rows(case.model, [handle.name]):
        return model_output(case.model, inputs)


def _shared_modules(handle: Inlay) -> list[nn.Module]:
    """The shared modules that a file holds."""
    container = container_of(handle.model)
    assert container is not None
    shared = container.pieces(handle.name).shared.values()
    return [module for module in shared if not isinstance(module, OncePerPass)]


def _shared_tensors(handle: Inlay) -> list[Tensor]:
    return [t for module in _shared_modules(handle) for t in module.state_dict().values()]


def _check_memory(handle: Inlay) -> None:
    """Raise Broken where two names of an inlay are the same memory."""
    names: dict[tuple[int, int], str] = {}
    for name, tensor in handle.named_tensors().items():
        if tensor.numel() == 0:
            continue
        place = (tensor.data_ptr(), tensor.numel())
        if place in names:
            raise Broken(f"{name} and {names[place]} are the same memory under two names")
        names[place] = name


def _check_file(tensors: Mapping[str, Tensor], shared: list[Tensor]) -> None:
    """Raise Broken unless a file holds every shared tensor in exactly one place."""
    for tensor in shared:
        values = tensor.detach().cpu()
        if values.numel() < 2:
            continue  # a single number may occur by chance
        places = [name for name, other in tensors.items() if torch.equal(other, values)]
        if len(places) != 1:
            where = ", ".join(places) or "nowhere"
            raise Broken(f"a shared tensor is in the file at {len(places)} places: {where}")


def _change(handle: Inlay) -> None:
    """Change every shared tensor of an inlay in place, in the same way for equal inlays."""
    generator = torch.Generator().manual_seed(7)
    for tensor in _shared_tensors(handle):
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator).to(tensor) * 0.2)
