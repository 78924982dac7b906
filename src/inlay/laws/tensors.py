"""The law of indices and masks: tensors of integers and booleans are kept bit for bit."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from inlay.handle import load, rows
from inlay.laws.batches import pad_batch
from inlay.laws.case import Broken, Case, NotApplicable
from inlay.laws.compare import model_output


def index_tensors_are_exact(case: Case) -> float:
    """Indices and masks are in the file, after loading and after resuming what they were."""
    if not case.has_indices:
        raise NotApplicable("there is no tensor of integers or booleans")
    inputs = pad_batch(case.inputs(2))
    with case.isolated(), tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder, "law.safetensors")
        with case.inlay() as handle:
            rearrange(handle.training_state())  # other values than a new inlay has
            expected = _indices(handle.named_tensors())
            output = model_output(case.model, inputs)
            handle.save(path)
            _require_equal(_indices(load_file(path)), expected, "in the file")
            state = {name: t.clone() for name, t in handle.training_state().items()}
            rearrange(handle.training_state())
            handle.load_training_state(state)
            _require_equal(_indices(handle.named_tensors()), expected, "after resuming")
        loaded = load(case.model, path)
        try:
            _require_equal(_indices(loaded.named_tensors()), expected, "after loading")
            with rows(case.model, [loaded.name]):
                if not torch.equal(model_output(case.model, inputs), output):
                    raise Broken("the outputs after loading are not those before saving")
        finally:
            loaded.detach()
    return 0.0


def rearrange(tensors: Mapping[str, Tensor]) -> None:
    """Give every tensor of integers or booleans other values of its own, in place."""
    for tensor in tensors.values():
        if tensor.is_floating_point() or tensor.dim() == 0 or tensor.numel() < 2:
            continue
        flipped = tensor.flip(0)
        tensor.copy_(tensor.roll(1, 0) if torch.equal(flipped, tensor) else flipped)


def _indices(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of the tensors that are not of floating-point numbers."""
    return {n: t.detach().cpu().clone() for n, t in tensors.items() if not t.is_floating_point()}


def _require_equal(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: str
) -> None:
    if tensors.keys() != expected.keys():
        raise Broken(
            f"other tensors of indices {where}: {sorted(tensors.keys() ^ expected.keys())}"
        )
    for name, tensor in tensors.items():
        if tensor.dtype != expected[name].dtype or not torch.equal(tensor, expected[name]):
            raise Broken(f"{name} differs {where} from what it was")
