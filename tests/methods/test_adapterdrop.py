"""AdapterDrop, exactly: in the lowest layers the base alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.core.context import PassContext
from inlay.errors import PortError, SpecError
from inlay.files import format as file_format
from inlay.laws.case import perturb
from inlay.methods.adapterdrop import Dropped
from tests import zoo
from tests.methods import exact

ADAPTER = inlay.Pfeiffer(bottleneck=4)


def states(model: Any, family: str) -> tuple[torch.Tensor, ...]:
    inputs = exact.batch(family)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    return output.hidden_states


@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
@pytest.mark.parametrize("layers", [1, 2])
def test_the_lowest_layers_are_the_base_bit_for_bit(family: str, layers: int) -> None:
    base = states(zoo.fresh(family), family)
    model = zoo.fresh(family)
    handle = inlay.attach(model, ADAPTER)
    perturb(handle)
    copy = inlay.drop_layers(handle, layers)
    with inlay.rows(model, [copy.name, copy.name]):
        dropped = states(model, family)
    assert all(torch.equal(a, b) for a, b in zip(base[: layers + 1], dropped, strict=False))
    assert not torch.equal(base[layers + 1], dropped[layers + 1])


def test_the_copy_is_the_adapter_in_the_upper_layers(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, ADAPTER)
    perturb(handle)
    copy = inlay.drop_layers(handle, 1, name="short")
    tensors = handle.named_tensors()
    assert copy.named_tensors().keys() == {n for n in tensors if not n.startswith("decoder.0.")}
    assert all(torch.equal(tensor, tensors[n]) for n, tensor in copy.named_tensors().items())
    path = copy.save(tmp_path / "short.safetensors")
    assert inlay.load(zoo.fresh("llama"), path).spec == copy.spec


INSIDE = [
    inlay.Gate(inner=ADAPTER),
    inlay.AdaMix(inner=inlay.LoRA(rank=2), copies=2, inference="random"),
    inlay.UniPELT(rank=2, length=2, bottleneck=3, mlp=4),
    inlay.Fusion(adapters=(ADAPTER, ADAPTER)),
    inlay.Fusion(
        adapters=(
            inlay.Pfeiffer(bottleneck=4, at=inlay.Where("block", (0, 1))),
            inlay.Pfeiffer(bottleneck=3, at=inlay.Where("block", (0, 2))),
        )
    ),
]


@pytest.mark.parametrize("spec", INSIDE, ids=lambda spec: f"{spec!r:.40}")
def test_methods_around_others_hand_the_layers_on(spec: Any) -> None:
    """Below they are the base; above they hold what they held."""
    base = states(zoo.fresh("bert"), "bert")
    model = zoo.fresh("bert")
    handle = inlay.attach(model, spec)
    perturb(handle)
    copy = inlay.drop_layers(handle, 2)
    with inlay.rows(model, [copy.name, copy.name]):
        dropped = states(model, "bert")
    assert all(torch.equal(a, b) for a, b in zip(base[:3], dropped, strict=False))
    assert not torch.equal(base[3], dropped[3])
    old, new = handle.named_tensors(), copy.named_tensors()
    assert new.keys() == {n for n in old if not n.startswith(("encoder.0.", "encoder.1."))}
    assert all(torch.equal(tensor, old[name]) for name, tensor in new.items())


def test_what_acts_after_the_layers_stays(tmp_path: Path) -> None:
    """A trained head, the norm after the last block, and the base's own head."""
    model = zoo.fresh("llama")
    spec = ADAPTER + inlay.Head(labels=("x", "y")) + inlay.LayerNorm(at="norm.final")
    handle = inlay.attach(model, spec)
    perturb(handle)
    copy = inlay.drop_layers(handle, 1)
    old, new = handle.named_tensors(), copy.named_tensors()
    assert new.keys() == {name for name in old if not name.startswith("decoder.0.")}
    assert all(torch.equal(tensor, old[name]) for name, tensor in new.items())
    assert inlay.load(zoo.fresh("llama"), copy.save(tmp_path / "a.safetensors")).spec == copy.spec


def gradients(model: Any, handle: inlay.Inlay) -> set[int]:
    """The layers whose pieces got a gradient in one training pass."""
    for parameter in handle.parameters():
        parameter.grad = None
    model(**exact.batch("llama")).logits.logsumexp(-1).mean().backward()
    return {
        placed.site.layer
        for placed in handle.placed
        if all(p.grad is not None and p.grad.abs().sum() > 0 for p in placed.piece.parameters())
    }


def test_a_training_pass_leaves_out_the_layers_below_a_random_k() -> None:
    model = zoo.fresh("llama").train()
    handle = inlay.attach(model, inlay.AdapterDrop(inner=ADAPTER))
    perturb(handle)
    depth = 1 + max(placed.site.layer for placed in handle.placed)
    seen = Counter()
    for seed in range(40):
        torch.manual_seed(seed)
        layers = gradients(model, handle)
        assert layers == set(range(min(layers), depth))
        seen[min(layers)] += 1
    assert set(seen) == set(range(depth))


def test_k_is_uniform_and_one_for_all_layers() -> None:
    handle = inlay.attach(zoo.fresh("llama"), inlay.AdapterDrop(inner=ADAPTER))
    pieces = [p.piece for p in handle.placed if isinstance(p.piece, Dropped)]
    drawn = []
    for seed in range(900):
        numbers = {int(piece.drawn(PassContext(seed=seed))) for piece in pieces}
        assert len(numbers) == 1
        drawn += numbers
    counts = Counter(drawn)
    assert set(counts) == {0, 1, 2} and all(240 < n < 360 for n in counts.values())


def test_a_file_is_that_of_the_inner_method(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.AdapterDrop(inner=ADAPTER))
    perturb(handle)
    path = handle.save(tmp_path / "drop.safetensors")
    assert file_format.read(path).spec == ADAPTER
    other = zoo.fresh("llama")
    inlay.load(other, path)
    inputs = exact.batch("llama")
    torch.testing.assert_close(exact.run(other, inputs), exact.run(model, inputs))


def test_refusals() -> None:
    with pytest.raises(PortError, match="AdapterDrop leaves out what a method adds at modules"):
        inlay.attach(zoo.fresh("llama"), inlay.AdapterDrop(inner=inlay.Prefix(mlp=None)))
    with pytest.raises(SpecError, match="most is a number of layers"):
        inlay.AdapterDrop(most=0)
    handle = inlay.attach(zoo.fresh("llama"), ADAPTER)
    with pytest.raises(SpecError, match="has none left; drop fewer than 3"):
        inlay.drop_layers(handle, 3)
    norms = inlay.attach(zoo.fresh("bert"), inlay.Houlsby())
    with pytest.raises(SpecError, match="also acts outside the layers"):
        inlay.drop_layers(norms, 1)
