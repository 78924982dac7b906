"""Gate, exactly: y + g · Δ(x, y) around any method that acts at modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import inlay
from inlay.blocks.gates import InputGate
from inlay.core.context import PassContext
from inlay.core.method import ParameterGroup
from inlay.core.parse import from_json, parse, to_json
from inlay.core.piece import Piece
from inlay.errors import MergeError, PortError, SpecError, TrainingError
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error
from inlay.methods.pfeiffer import Renormed
from tests import zoo
from tests.methods import exact

INNER = [
    inlay.LoRA(rank=2),
    inlay.DoRA(rank=2),
    inlay.IA3(),
    inlay.BitFit(),
    inlay.LayerNorm(),
    inlay.VeRA(rank=5),
    inlay.Houlsby(bottleneck=4, std=0.1),
    inlay.Parallel(bottleneck=4),
    inlay.Gate(inner=inlay.LoRA(rank=2)),
]


def gated(family: str, inner: inlay.Method, gate: float) -> tuple[Tensor, Tensor]:
    """What a gated method computes, and the bare method with the same parameters."""
    model, inputs = zoo.fresh(family), exact.batch(family)
    torch.manual_seed(1)
    alone = inlay.attach(model, inner)
    torch.manual_seed(2)
    perturb(alone)
    method = exact.run(model, inputs)
    alone.detach()
    torch.manual_seed(1)
    handle = inlay.attach(model, inlay.Gate(inner=inner))
    state = alone.training_state()
    merged = {key.replace("/0.", "/0.inner."): value for key, value in state.items()}
    merged |= {key: v for key, v in state.items() if key.startswith("shared.")}
    gates = {k: v for k, v in handle.training_state().items() if k.endswith("/0.gate.value")}
    known = handle.training_state().keys()
    merged = {key: value for key, value in merged.items() if key in known}
    handle.load_training_state(
        {**merged, **{k: torch.full_like(v, gate) for k, v in gates.items()}}
    )
    return exact.run(model, inputs), method


@pytest.mark.parametrize("inner", INNER, ids=repr)
@pytest.mark.parametrize("family", ["llama", "bert", "gpt2"])
def test_one_is_the_method_and_zero_the_base(family: str, inner: inlay.Method) -> None:
    output, method = gated(family, inner, 1.0)
    torch.testing.assert_close(output, method)
    base = exact.run(zoo.fresh(family), exact.batch(family))
    assert relative_error(method, base) > 1e-3
    torch.testing.assert_close(gated(family, inner, 0.0)[0], base)


def test_formula() -> None:
    _, handle = exact.moved("llama", inlay.Gate(inner=inlay.LoRA(rank=2, alpha=8)))
    placed = exact.first(handle)
    inner = placed.piece.inner
    exact.expect(placed, placed.piece.gate.value * 4.0 * inner.b @ inner.a)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, inlay.Gate())
    exact.check_start(family, inlay.Gate(start=0.3))


@pytest.mark.parametrize("inner", [i for i in INNER if "Houls" not in repr(i)], ids=repr)
@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_merges_where_the_inner_method_does(family: str, inner: inlay.Method) -> None:
    spec = inlay.Gate(inner=inner)
    if "Parallel" in repr(inner):
        with pytest.raises(MergeError, match="Gate at .* cannot be folded"):
            exact.moved(family, spec)[1].merge()
    elif not (isinstance(inner, inlay.BitFit) and family == "llama"):
        exact.check_merge(family, spec)


def test_counts_one_a_place() -> None:
    model = zoo.fresh("llama")
    alone = inlay.attach(model, inlay.LoRA(rank=2), name="alone")
    handle = inlay.attach(model, inlay.Gate(inner=inlay.LoRA(rank=2)))
    assert handle.count() == alone.count() + len(handle.placed)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_training_leaves_the_base_alone(family: str) -> None:
    _, handle = exact.train(family, inlay.Gate(inner=inlay.LoRA(rank=2)))
    assert all(placed.piece.gate.value != 1 for placed in handle.placed)


def test_file(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    spec = inlay.Gate(inner=inlay.VeRA(rank=5))
    handle = inlay.attach(model, spec)
    perturb(handle)
    assert {
        "decoder.0.attn.q/0/gate/gate.value",
        "decoder.0.attn.q/0/gate/inner.scale_b",
        "shared/0/gate/projections/a",
    } < handle.named_tensors().keys()
    path = handle.save(tmp_path / "gate.safetensors")
    other = zoo.fresh("llama")
    assert inlay.load(other, path).spec == spec
    inputs = exact.batch("llama")
    assert torch.equal(exact.run(other, inputs), exact.run(model, inputs))


def test_spellings() -> None:
    spec = inlay.Gate(inner=inlay.Houlsby(bottleneck=4), start=0.5)
    assert parse("Gate(inner=Houlsby(bottleneck=4), start=0.5)") == spec
    assert from_json(to_json(spec)) == spec
    assert repr(spec) == "Gate(inner=Houlsby(bottleneck=4), start=0.5)"
    assert spec.at == inlay.Houlsby().at
    assert not spec.identity and inlay.Gate().identity
    assert repr(inlay.Gate()) == "Gate()"


@pytest.mark.parametrize(
    "inner",
    [
        inlay.Prompt(length=2),
        inlay.PTuning(length=2, encoder=None),
        inlay.Infix(length=2, mlp=None),
        inlay.Head(labels=("a", "b")),
    ],
    ids=repr,
)
def test_what_does_not_act_at_modules_is_refused(inner: inlay.Method) -> None:
    model = zoo.fresh("llama")
    with pytest.raises(PortError, match=rf"^Gate acts on .*{type(inner).__name__} does something"):
        inlay.attach(model, inlay.Gate(inner=inner))
    assert not inlay.attached(model)


def test_refusals() -> None:
    with pytest.raises(SpecError, match="inner is one method, not LoRA.* gate each alone"):
        inlay.Gate(inner=inlay.LoRA() + inlay.IA3())  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="with start=0 around LoRA, which starts at zero too"):
        inlay.Gate(start=0.0)
    assert inlay.Gate(inner=inlay.Houlsby(), start=0.0).start == 0


@dataclass(frozen=True, repr=False)
class Scheduled(inlay.LoRA, listed=False):
    """A LoRA with everything a method may have besides pieces. at: projections."""

    passes = 2

    def penalty(self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module]) -> Tensor:
        return torch.stack([piece.a.square().sum() for piece in pieces.values()]).sum()

    def consistency(self, divergence: Tensor) -> Tensor:
        return 3 * divergence

    def after_step(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], progress: float
    ) -> None:
        for piece in pieces.values():
            piece.b.fill_(progress)

    def parameter_groups(
        self, pieces: Mapping[str, Piece], shared: Mapping[str, nn.Module], learning_rate: float
    ) -> list[ParameterGroup]:
        return [
            ParameterGroup(tuple(p.a for p in pieces.values()), learning_rate),
            ParameterGroup(tuple(p.b for p in pieces.values()), 16 * learning_rate),
        ]

    def learning_rate(self) -> float:
        return 0.5


def test_what_the_inner_method_asks_for_reaches_it() -> None:
    handle = inlay.attach(zoo.fresh("llama"), inlay.Gate(inner=Scheduled(rank=2)))
    pieces = [placed.piece for placed in handle.placed]
    expected = sum(piece.inner.a.square().sum() for piece in pieces)
    torch.testing.assert_close(handle.penalty(), expected)
    handle.after_step(0.25)
    assert all(torch.equal(p.inner.b, torch.full_like(p.inner.b, 0.25)) for p in pieces)
    assert [group.learning_rate for group in handle.parameter_groups()] == [0.5, 8.0, 0.5]
    assert [group.learning_rate for group in handle.parameter_groups(1.0)] == [1.0, 16.0, 1.0]
    parameters = [p for group in handle.parameter_groups() for p in group.parameters]
    assert {id(p) for p in parameters} == {id(p) for p in handle.parameters()}
    assert handle.spec.passes == 2 and handle.spec.consistency(torch.tensor(1.0)) == 3


@pytest.mark.parametrize("inner", [inlay.LoRA(rank=2), Scheduled(rank=2)], ids=lambda i: str(i))
def test_a_loop_is_reminded_of_what_the_inner_method_needs_and_of_nothing_else(
    inner: inlay.Method,
) -> None:
    model = zoo.fresh("llama").train()
    handle = inlay.attach(model, inlay.Gate(inner=inner))
    optimiser = torch.optim.SGD(handle.parameters(), lr=1e-3)

    def steps() -> None:
        for _ in range(4):
            model_output(model, exact.batch("llama")).mean().backward()
            optimiser.step()

    if isinstance(inner, Scheduled):
        with pytest.raises(TrainingError, match="has a penalty"):
            steps()
    else:
        steps()


def test_a_gate_does_not_decay() -> None:
    handle = inlay.attach(zoo.fresh("llama"), inlay.Gate())
    groups = handle.parameter_groups()
    assert [group.weight_decay for group in groups] == [None, 0.0]
    assert len(groups[1].parameters) == len(handle.placed)


def readings(model: object, inputs: dict[str, Tensor]) -> list[Tensor]:
    """What every gate that reads the input computes in one pass, in the order of the base."""
    seen: list[Tensor] = []
    gates = [part for part in model.modules() if isinstance(part, InputGate)]  # type: ignore[attr-defined]
    hooks = [gate.register_forward_hook(lambda m, a, value: seen.append(value)) for gate in gates]
    exact.run(model, inputs)
    for hook in hooks:
        hook.remove()
    return seen


READING = [
    inlay.Gate(inner=inlay.LoRA(rank=2), reads="input"),
    inlay.Gate(inner=inlay.Pfeiffer(bottleneck=3), reads="input"),
    inlay.Gate(inner=inlay.Prefix(length=2, mlp=None, start=None), reads="input"),
]


@pytest.mark.parametrize("spec", READING, ids=repr)
def test_a_gate_that_reads_is_a_mean_over_the_text_by_hand(spec: inlay.Method) -> None:
    """In an encoder: padding counts for nothing, and other rows neither."""
    model, handle = exact.moved("bert", spec)
    x: list[Tensor] = []
    gate = next(part for part in handle.placed[0].piece.modules() if isinstance(part, InputGate))
    gate.register_forward_pre_hook(lambda m, a: x.append(a[0]))
    row = exact.batch("bert", count=1)
    value = readings(model, row)[0]
    by_hand = (x[0].float() @ gate.weight.float() + gate.bias).sigmoid().mean()
    torch.testing.assert_close(value.flatten(), by_hand.reshape(1), check_dtype=False)
    assert value.shape == (1, 1, 1) and 0 < float(value) < 1
    longer = {
        "input_ids": torch.cat((row["input_ids"], torch.full((1, 3), 9)), 1).repeat(2, 1),
        "attention_mask": torch.tensor([[1] * 7 + [0] * 3, [1] * 10]),
    }
    torch.testing.assert_close(readings(model, longer)[0][:1], value)


def test_what_a_norm_follows_is_scaled_before_the_norm() -> None:
    """Pfeiffer in a post-norm base: LN(s + g · U f(D u)), u = LN(s), with g the mean of σ(u w + b)."""
    _, handle = exact.moved("bert", inlay.Gate(inner=inlay.Pfeiffer(bottleneck=3), reads="input"))
    placed = exact.first(handle)
    piece, norm = placed.piece, placed.site.norm
    s = torch.randn(2, 5, placed.site.d_in).double()
    u = norm.forward(s)
    g = (u @ piece.gate.weight + piece.gate.bias).sigmoid().mean(1)[:, None, None]
    expected = norm.forward(s + g * piece.inner.inner(u))
    torch.testing.assert_close(u + piece.delta(s, u, PassContext()), expected)


WRAPPED = [
    inlay.Gate(inner=inlay.Pfeiffer(bottleneck=3)),
    inlay.AdaMix(inner=inlay.Pfeiffer(bottleneck=3), copies=2),
    inlay.AdapterDrop(inner=inlay.Pfeiffer(bottleneck=3)),
    inlay.Fusion(adapters=(inlay.Pfeiffer(bottleneck=3), inlay.Pfeiffer(bottleneck=2))),
]


@pytest.mark.parametrize("inner", WRAPPED, ids=lambda m: type(m).__name__)
def test_so_is_what_other_methods_hold(inner: inlay.Method) -> None:
    _, handle = exact.moved("bert", inlay.Gate(inner=inner))
    placed = exact.first(handle)
    piece, norm, context = placed.piece, placed.site.norm, PassContext()
    s = torch.randn(2, 5, placed.site.d_in).double()
    u = norm.forward(s)
    output = u + piece.delta(s, u, context)
    for part in piece.modules():
        if isinstance(part, Renormed):
            part._norm = None  # now delta is what comes before it
    torch.testing.assert_close(output, norm.forward(s + piece.delta(s, u, context)))


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(
    ("inner", "after"),
    [
        (inlay.LoRA(rank=2), False),
        (inlay.LayerNorm(), False),
        (inlay.Parallel(bottleneck=3), False),
        (inlay.Houlsby(bottleneck=3, at=("mlp",)), True),
        (inlay.Pfeiffer(bottleneck=3), True),
        (inlay.Compacter(bottleneck=4, terms=2, at=("mlp",)), True),
        (inlay.IA3(at=("attn.k",)), True),
        *((method, True) for method in WRAPPED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_gate_reads_what_the_inner_method_reads(
    inner: inlay.Method, after: bool, family: str
) -> None:
    _, handle = exact.moved(family, inlay.Gate(inner=inner, reads="input"))
    seen: list[Tensor] = []
    for placed in handle.placed:
        placed.piece.gate.register_forward_pre_hook(lambda m, a: seen.append(a[0]))
        x, y = torch.randn(1, 4, placed.site.d_in), torch.randn(1, 4, placed.site.d_out)
        placed.piece.delta(x.double(), y.double(), PassContext())
        assert torch.equal(seen.pop(), (y if after else x).double())


@pytest.mark.parametrize("spec", READING, ids=repr)
def test_in_a_decoder_no_gate_looks_ahead(spec: inlay.Method) -> None:
    model, _ = exact.moved("llama", spec)
    inputs = exact.batch("llama")
    whole = readings(model, inputs)
    output = exact.run(model, inputs)
    changed = {**inputs, "input_ids": inputs["input_ids"].clone()}
    changed["input_ids"][:, 5:] = 11
    torch.testing.assert_close(exact.run(model, changed)[:, :5], output[:, :5])
    if isinstance(spec.inner, inlay.Prefix):  # type: ignore[attr-defined]
        assert all(value.shape == (1,) for value in whole)
    else:
        assert all(value.shape == (2, 7, 1) for value in whole)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_static_cache_writes_the_same(family: str) -> None:
    """What a gate keeps in it must not make transformers attend to its unused places."""
    model, _ = exact.moved(family, READING[0])
    ids = exact.batch(family)["input_ids"]
    options: dict[str, Any] = {"input_ids": ids, "max_new_tokens": 6, "do_sample": False}
    options |= {"min_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    expected = torch.stack(model.generate(**options).logits)
    written = torch.stack(model.generate(**options, cache_implementation="static").logits)
    assert relative_error(written, expected) < 1e-5


def test_what_depends_on_the_input_is_not_merged() -> None:
    _, handle = exact.moved("llama", READING[0])
    with pytest.raises(MergeError, match="Gate at .* cannot be folded"):
        handle.merge()


def test_a_file_of_gates_that_read(tmp_path: Path) -> None:
    model = zoo.fresh("bert")
    handle = inlay.attach(model, inlay.UniPELT(rank=2, length=2, bottleneck=3, mlp=4))
    perturb(handle)
    path = handle.save(tmp_path / "unipelt.safetensors")
    other = zoo.fresh("bert")
    inlay.load(other, path)
    inputs = exact.batch("bert")
    torch.testing.assert_close(exact.run(other, inputs), exact.run(model, inputs))
