"""AdaMix, exactly: copies drawn in training, their means afterwards."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

import inlay
from inlay.core.context import PassContext
from inlay.errors import MergeError, PortError, SpecError
from inlay.files import format as file_format
from inlay.laws.case import perturb
from inlay.methods.adamix import Mixture
from tests import zoo
from tests.methods import exact

ADAPTER = inlay.Houlsby(bottleneck=4, std=0.1, at=("mlp",))
INNER = [ADAPTER, inlay.LoRA(rank=2), inlay.Parallel(bottleneck=3)]
SHARES = ["up", "down", None]


def mixtures(handle: inlay.Inlay) -> list[Mixture]:
    return [p.piece for p in handle.placed if isinstance(p.piece, Mixture)]


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_a_file_is_the_inner_method_with_the_means(
    inner: inlay.Method, share: str | None, tmp_path: Path
) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.AdaMix(inner=inner, copies=3, share=share))
    perturb(handle)
    path = handle.save(tmp_path / "mix.safetensors")
    tensors = file_format.read(path).tensors
    for placed in handle.placed:
        parts = [dict(copy.named_parameters()) for copy in placed.piece.copies]
        for name in parts[0]:
            mean = torch.stack([part[name] for part in parts]).mean(0)
            kind = type(inner).__name__.lower()
            torch.testing.assert_close(tensors[f"{placed.name}/{kind}/{name}"], mean)
    other = zoo.fresh("llama")
    assert inlay.load(other, path).spec == inner
    inputs = exact.batch("llama")
    torch.testing.assert_close(exact.run(other, inputs), exact.run(model, inputs))


def test_merged_is_the_product_of_means_not_the_mean_of_products() -> None:
    spec = inlay.AdaMix(inner=inlay.LoRA(rank=2, alpha=2.0), copies=3, share=None)
    _, handle = exact.moved("llama", spec)
    placed = handle.placed[0]
    a = torch.stack([copy.a for copy in placed.piece.copies])
    b = torch.stack([copy.b for copy in placed.piece.copies])
    exact.expect(placed, b.mean(0) @ a.mean(0))
    assert (b.mean(0) @ a.mean(0) - (b @ a).mean(0)).abs().max() > 1e-3
    exact.check_merge("llama", spec)


@pytest.mark.parametrize("share", SHARES)
def test_counts(share: str | None) -> None:
    """M(2dm + d + m) a place unshared, M(dm + m) + dm + d with one up-projection."""
    d, m, copies = 32, 4, 3
    each = {"up": copies * (d * m + m) + d * m + d, "down": d * m + m + copies * (d * m + d)}
    expected = each.get(str(share), copies * (2 * d * m + d + m))
    handle = inlay.attach(zoo.fresh("llama"), inlay.AdaMix(ADAPTER, copies=copies, share=share))
    assert handle.count() == expected * len(handle.placed)


def test_routes_are_uniform_and_independent() -> None:
    handle = inlay.attach(zoo.fresh("llama"), inlay.AdaMix(ADAPTER, copies=3))
    first, second = mixtures(handle)[:2]
    routes = [
        tuple(tuple(piece.route(context).tolist()) for piece in (first, second))
        for context in (PassContext(seed=seed) for seed in range(900))
    ]
    for part in (
        Counter(a for (a, _), _ in routes),
        Counter(b for (_, b), _ in routes),
        Counter(a for _, (a, _) in routes),
    ):
        assert set(part) == {0, 1, 2} and all(240 < count < 360 for count in part.values())
    assert len(set(routes)) == 81


def test_a_pass_takes_one_down_and_one_up_projection() -> None:
    model = zoo.fresh("llama").train()
    handle = inlay.attach(model, inlay.AdaMix(inner=inlay.LoRA(rank=2), copies=4, share=None))
    perturb(handle)
    inlay.handle.attached(model)["default"].train()
    model(**exact.batch("llama")).logits.mean().backward()
    for mixture in mixtures(handle):
        for name in ("a", "b"):
            taken = [copy.get_parameter(name).grad is not None for copy in mixture.copies]
            assert sum(taken) == 1, name


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_one_copy_is_the_method(weight: float) -> None:
    spec = inlay.AdaMix(inner=ADAPTER, copies=1, consistency_weight=weight)
    assert spec.passes == (2 if weight else 1)
    torch.manual_seed(0)
    model = zoo.fresh("llama")
    alone = inlay.attach(model, ADAPTER)
    torch.manual_seed(1)
    perturb(alone)
    inputs = exact.batch("llama")
    expected = exact.run(model, inputs)
    state = alone.training_state()
    alone.detach()
    handle = inlay.attach(model, spec)
    handle.load_training_state({k.replace("/0.", "/0.copies.0."): v for k, v in state.items()})
    for training in (False, True):
        handle.train(training)
        torch.testing.assert_close(exact.run(model, inputs), expected)


def test_random_copies_at_inference(tmp_path: Path) -> None:
    spec = inlay.AdaMix(inner=ADAPTER, copies=3, inference="random")
    model = zoo.fresh("llama")
    handle = inlay.attach(model, spec)
    perturb(handle)
    with torch.no_grad():
        outputs = {float(model(**exact.batch("llama")).logits.sum()) for _ in range(6)}
    assert len(outputs) > 1
    other = zoo.fresh("llama")
    loaded = inlay.load(other, handle.save(tmp_path / "random.safetensors"))
    assert loaded.spec == spec and loaded.count() == handle.count()
    for ours, theirs in zip(mixtures(handle), mixtures(loaded), strict=True):
        for name, tensor in ours.state_dict().items():
            assert torch.equal(tensor, theirs.state_dict()[name]), name


def test_what_cannot_be_mixed_is_refused() -> None:
    with pytest.raises(PortError, match="AdaMix mixes pieces of two projections, and Houlsby"):
        inlay.attach(zoo.fresh("llama"), inlay.AdaMix(inner=inlay.Houlsby()))
    with pytest.raises(SpecError, match="AdaMix copies methods that learn by gradients alone"):
        inlay.AdaMix(inner=inlay.AdaLoRA())
    with pytest.raises(SpecError, match="inner is one method"):
        inlay.AdaMix(inner=inlay.LoRA() + inlay.IA3())  # type: ignore[arg-type]


def test_random_copies_are_not_merged() -> None:
    spec = inlay.AdaMix(inner=inlay.LoRA(rank=2), inference="random")
    with pytest.raises(MergeError, match="cannot be folded"):
        inlay.attach(zoo.fresh("llama"), spec).merge()
