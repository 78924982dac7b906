"""AdapterFusion, exactly: attention over frozen adapters in the place of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import inlay
from inlay.core.parse import from_json, parse, to_json
from inlay.errors import PortError, SpecError
from inlay.files import format as file_format
from inlay.laws.case import perturb
from inlay.testing import laws_hold
from tests import zoo
from tests.methods import exact

FAMILIES = ["bert", "llama", "t5"]
KINDS = [
    inlay.Pfeiffer(bottleneck=3, std=0.3),
    inlay.Houlsby(bottleneck=3, std=0.3, at=("attn", "mlp")),
    inlay.Parallel(bottleneck=3, scale=2.0),
]


def adapter_file(family: str, adapter: inlay.Method, seed: int, folder: Path) -> Path:
    """A file of an adapter whose parameters are random."""
    model = zoo.fresh(family)
    handle = inlay.attach(model, adapter, name=f"task{seed}")
    torch.manual_seed(seed)
    perturb(handle)
    return handle.save(folder / f"task{seed}.safetensors")


def outputs(family: str, path: Path) -> torch.Tensor:
    model = zoo.fresh(family)
    inlay.load(model, path)
    return exact.run(model, exact.batch(family))


def set_values_to_identity(handle: inlay.Inlay) -> None:
    for placed in handle.placed:
        value = placed.piece.attention.value
        value.data.copy_(torch.eye(len(value)))


@pytest.mark.parametrize("adapter", KINDS, ids=lambda a: type(a).__name__)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_adapter_and_an_identity_are_that_adapter(
    family: str, adapter: inlay.Method, tmp_path: Path
) -> None:
    path = adapter_file(family, adapter, 1, tmp_path)
    model = zoo.fresh(family)
    handle = inlay.fuse(model, {"only": path})
    set_values_to_identity(handle)
    output = exact.run(model, exact.batch(family))
    torch.testing.assert_close(output, outputs(family, path), rtol=1e-5, atol=1e-5)


def test_by_hand() -> None:
    adapters = (inlay.Houlsby(bottleneck=3, at=("mlp",)), inlay.Houlsby(bottleneck=5, at=("mlp",)))
    _, handle = exact.moved("llama", inlay.Fusion(adapters=adapters))
    piece = handle.placed[0].piece.double()
    attention, y = piece.attention, torch.randn(2, 5, 32).double()
    z = torch.stack([part(y) for part in piece.adapter.inner.bottlenecks], -2)
    q = y @ attention.query.T + attention.query_bias
    k = z @ attention.key.T + attention.key_bias
    alpha = torch.softmax(torch.einsum("bte,btne->btn", q, k), -1)
    expected = torch.einsum("btn,btne->bte", alpha, z @ attention.value)
    torch.testing.assert_close(piece.delta(y, y, None), expected)
    weights = attention(y, z)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 5).double())


@pytest.mark.parametrize("learned", [False, True])
def test_each_adapter_keeps_its_own_scale(learned: bool, tmp_path: Path) -> None:
    """Keys and values are what an adapter adds: of a parallel one, s · U f(D x)."""
    scales = (1.0, 4.0)
    adapters = [inlay.Parallel(bottleneck=3, scale=s, learned=learned) for s in scales]
    paths = {f"t{i}": adapter_file("llama", adapters[i], i, tmp_path) for i in range(2)}
    alone = []
    x = torch.randn(2, 5, 32)
    for path in paths.values():
        model = zoo.fresh("llama")
        alone.append(inlay.load(model, path).placed[0].piece.delta(x, x, None))
    handle = inlay.fuse(zoo.fresh("llama"), paths)
    piece = handle.placed[0].piece
    z = torch.stack(alone, -2)
    expected = (piece.attention(x, z)[..., None] * z).sum(-2) @ piece.attention.value
    torch.testing.assert_close(piece.delta(x, x, None), expected)


def test_their_order_does_not_matter(tmp_path: Path) -> None:
    paths = {f"t{seed}": adapter_file("bert", KINDS[0], seed, tmp_path) for seed in (1, 2, 3)}
    results = []
    for names in (["t1", "t2", "t3"], ["t3", "t1", "t2"]):
        model = zoo.fresh("bert")
        torch.manual_seed(0)
        inlay.fuse(model, {name: paths[name] for name in names})
        results.append(exact.run(model, exact.batch("bert")))
    torch.testing.assert_close(results[0], results[1])


def test_only_the_attention_learns_and_the_file_needs_no_other(tmp_path: Path) -> None:
    paths = {f"t{seed}": adapter_file("llama", KINDS[0], seed, tmp_path) for seed in (1, 2)}
    model = zoo.fresh("llama")
    handle = inlay.fuse(model, paths, name="both")
    frozen = {n: t.clone() for n, t in handle.named_tensors().items() if "bottlenecks" in n}
    width = 32
    assert handle.count() == len(handle.placed) * (3 * width**2 + 2 * width)
    optimiser = torch.optim.AdamW(handle.parameters(), lr=1e-2)
    inputs = exact.batch("llama")
    for _ in range(3):
        (model(**inputs).logits.logsumexp(-1).mean() + handle.penalty()).backward()
        optimiser.step()
        handle.after_step(1.0)
    tensors = handle.named_tensors()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in frozen.items())
    path = handle.save(tmp_path / "fusion.safetensors")
    for source in paths.values():
        source.unlink()
    other = zoo.fresh("llama")
    assert inlay.load(other, path).spec == handle.spec
    torch.testing.assert_close(exact.run(other, inputs), exact.run(model, inputs))


def test_penalty_by_hand(tmp_path: Path) -> None:
    _, handle = exact.moved("llama", inlay.Fusion.examples[0])
    values = [placed.piece.attention.value.detach() for placed in handle.placed]
    expected = 0.01 * sum(float((torch.eye(32) - v).pow(2).sum()) for v in values)
    assert float(handle.penalty().detach()) == pytest.approx(expected, rel=1e-5)


def test_spellings() -> None:
    spec = inlay.Fusion(
        adapters=(inlay.Pfeiffer(bottleneck=3), inlay.Pfeiffer(bottleneck=4)), names=("a", "b")
    )
    assert from_json(to_json(spec)) == spec
    assert parse(repr(spec)) == spec


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="2 adapters need as many names"):
        inlay.Fusion(names=("one",))
    with pytest.raises(SpecError, match="a name of its own"):
        inlay.Fusion(names=("same", "same"))
    with pytest.raises(SpecError, match="of one kind and at the same roles"):
        inlay.Fusion(adapters=(inlay.Pfeiffer(), inlay.Parallel()))
    last = inlay.Pfeiffer(at=inlay.Where("block", -1))
    with pytest.raises(SpecError, match="a negative layer counts from the end"):
        inlay.Fusion(adapters=(inlay.Pfeiffer(), last))
    assert inlay.Fusion(adapters=(last, last)).at == last.at
    with pytest.raises(PortError, match="Fusion attends over bottlenecks, and LoRA"):
        inlay.attach(
            zoo.fresh("llama"), inlay.Fusion(adapters=(inlay.LoRA(rank=2), inlay.LoRA(rank=2)))
        )
    lora = adapter_file("llama", inlay.LoRA(rank=2) + inlay.BitFit(), 1, tmp_path)
    with pytest.raises(SpecError, match="holds 2 methods"):
        inlay.fuse(zoo.fresh("llama"), {"x": lora})
    path = adapter_file("llama", KINDS[0], 2, tmp_path)
    other = zoo.fresh("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    with pytest.raises(inlay.InlayError, match="made for another base"):
        inlay.fuse(other, {"x": path})
    assert file_format.read(path).header["name"] == "task2" and not inlay.attached(other)


def fusion_of_three(folder: Path) -> tuple:
    model = zoo.fresh("bert")
    files = {f"t{seed}": adapter_file("bert", KINDS[0], seed, folder) for seed in (1, 2, 3)}
    handle = inlay.fuse(model, files)
    torch.manual_seed(0)
    perturb(handle)
    return model, handle


def test_what_a_fusion_listens_to_by_hand(tmp_path: Path) -> None:
    """The mean over the text; what stands in the padding counts for nothing."""
    model, handle = fusion_of_three(tmp_path)
    inputs = exact.batch("bert")
    inputs["attention_mask"][0, 4:] = 0
    weights = inlay.adapter_weights(handle, [inputs])
    assert list(weights) == [placed.site.name for placed in handle.placed]
    captured: list[torch.Tensor] = []
    hook = handle.placed[1].piece.attention.register_forward_hook(
        lambda module, args, value: captured.append(value)
    )
    exact.run(model, inputs)
    hook.remove()
    mean = captured[0][inputs["attention_mask"].bool()].mean(0)
    place = weights[handle.placed[1].site.name]
    torch.testing.assert_close(torch.tensor(list(place.values())), mean)
    assert list(place) == ["t1", "t2", "t3"] and sum(place.values()) == pytest.approx(1)


def test_pruning_keeps_the_most_used(tmp_path: Path) -> None:
    model, handle = fusion_of_three(tmp_path)
    weights = {p.site.name: {"t1": 0.5, "t2": 0.1, "t3": 0.4} for p in handle.placed}
    copy = inlay.prune_fusion(handle, weights, 2)
    assert copy.spec.names == ("t1", "t3") and copy.name == "default-keep2"
    inputs = exact.batch("bert")
    with inlay.rows(model, [copy.name]):
        pruned = exact.run(model, inputs)
    with torch.no_grad():  # the same as never choosing the second
        for placed in handle.placed:
            attention = placed.piece.attention
            original = attention.forward

            def without(u, outputs, original=original, attention=attention):
                keys = outputs @ attention.key.T + attention.key_bias
                query = u @ attention.query.T + attention.query_bias
                scores = torch.einsum("btd,btnd->btn", query, keys)
                scores[..., 1] = -torch.inf
                return scores.softmax(-1)

            attention.forward = without
        with inlay.rows(model, [handle.name]):
            torch.testing.assert_close(pruned, exact.run(model, inputs))
    with pytest.raises(SpecError, match="has 3 adapters; keep at least 1"):
        inlay.prune_fusion(handle, weights, 3)
    with pytest.raises(SpecError, match="is no Fusion"):
        inlay.prune_fusion(inlay.attach(zoo.fresh("bert"), KINDS[0]), weights, 1)


def test_each_layer_can_keep_its_own(tmp_path: Path) -> None:
    """Per layer: each keeps the adapters that it listens to most, in the file too."""
    model, handle = fusion_of_three(tmp_path)
    orders = (("t1", "t2", "t3"), ("t3", "t1", "t2"), ("t2", "t3", "t1"))
    weights = {
        placed.site.name: dict(zip(orders[placed.site.layer], (0.5, 0.3, 0.2), strict=True))
        for placed in handle.placed
    }
    copy = inlay.prune_fusion(handle, weights, 1, per="layer")
    assert [placed.piece.names for placed in copy.placed] == [("t1",), ("t3",), ("t2",)]
    assert copy.spec.at.layers == (0, 1, 2)
    for whole, part in zip(handle.placed, copy.placed, strict=True):
        number = whole.piece.names.index(part.piece.names[0])
        expected = whole.piece.adapter.inner.bottlenecks[number].state_dict()
        for name, tensor in part.piece.adapter.inner.bottlenecks[0].state_dict().items():
            assert torch.equal(tensor, expected[name])
        assert torch.equal(part.piece.attention.value, whole.piece.attention.value)
    other = zoo.fresh("bert")
    loaded = inlay.load(other, copy.save(tmp_path / "pruned.safetensors"))
    assert loaded.spec == copy.spec == parse(repr(copy.spec)) == from_json(to_json(copy.spec))
    inputs = exact.batch("bert")
    with inlay.rows(model, [copy.name]):
        assert torch.equal(exact.run(other, inputs), exact.run(model, inputs))
    again = inlay.adapter_weights(loaded, [inputs])
    assert [list(place) for place in again.values()] == [["t1"], ["t3"], ["t2"]]
    two = inlay.prune_fusion(handle, weights, 2, per="layer", name="two")
    assert [placed.piece.names for placed in two.placed] == [
        ("t1", "t2"),
        ("t1", "t3"),
        ("t2", "t3"),
    ]
    with pytest.raises(SpecError, match='per is "inlay" or "layer"'):
        inlay.prune_fusion(handle, weights, 1, per="head")  # type: ignore[arg-type]


def test_pruned_a_second_time_a_place_without_adapters_is_left_out(tmp_path: Path) -> None:
    _, handle = fusion_of_three(tmp_path)
    names = ("t1", "t2", "t2")
    weights = {p.site.name: {"t1": 0.0, "t2": 0.0, "t3": 0.1} for p in handle.placed}
    for placed in handle.placed:
        weights[placed.site.name][names[placed.site.layer]] = 0.9
    own = inlay.prune_fusion(handle, weights, 1, per="layer")
    assert own.spec.names == ("t1", "t2")
    left = inlay.prune_fusion(own, {n: dict(w) for n, w in weights.items()}, 1, name="left")
    assert left.spec.names == ("t2",)
    assert [placed.site.layer for placed in left.placed] == [1, 2]


def test_heads_of_the_files_are_left_out(tmp_path: Path) -> None:
    model = zoo.fresh("bert")
    handle = inlay.attach(model, inlay.Head(labels=("x", "y")) + KINDS[0], name="a")
    perturb(handle)
    files = {"a": handle.save(tmp_path / "a.safetensors")}
    files["b"] = adapter_file("bert", KINDS[0], 2, tmp_path)
    fusion = inlay.fuse(zoo.fresh("bert"), files)
    assert [type(method) for method in fusion.spec.methods] == [inlay.Fusion]
    bottleneck = fusion.placed[0].piece.adapter.inner.bottlenecks[0]
    expected = handle.named_tensors()[f"{fusion.placed[0].site.name}/1/pfeiffer/inner.down"]
    assert torch.equal(bottleneck.down, expected)


def test_a_fusion_in_a_sum_is_read_out_and_pruned(tmp_path: Path) -> None:
    model = zoo.fresh("bert")
    files = {f"t{seed}": adapter_file("bert", KINDS[0], seed, tmp_path) for seed in (1, 2, 3)}
    handle = inlay.fuse(model, files, plus=inlay.BitFit() + inlay.Head(labels=("x", "y")))
    torch.manual_seed(0)
    perturb(handle)
    weights = inlay.adapter_weights(handle, [exact.batch("bert")])
    assert all(sum(place.values()) == pytest.approx(1) for place in weights.values())
    assert len(weights) == 3
    copy = inlay.prune_fusion(handle, weights, 2)
    assert [type(m).__name__ for m in copy.spec.methods] == ["Fusion", "BitFit", "Head"]
    old, new = handle.named_tensors(), copy.named_tensors()
    others = [name for name in old if "/0/" not in name]
    assert others and all(torch.equal(old[name], new[name]) for name in others)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_laws_hold_for_adapters_in_different_layers(family: str) -> None:
    """Two of three in each layer: where there is one, there is nothing to learn."""
    adapters = tuple(
        inlay.Pfeiffer(bottleneck=size, std=0.3, at=inlay.Where("block", layers))
        for size, layers in ((3, (0, 1)), (4, (0, 2)), (5, (1, 2)))
    )
    spec = inlay.Fusion(adapters=adapters, names=("a", "b", "c"))
    verdict = laws_hold(spec, family)
    assert verdict.refusal is None
    assert {"save → load", "rows do not meet", "only pieces learn"} <= set(verdict.spoke)
