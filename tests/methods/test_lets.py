"""LeTS: branches from frozen activations, sparse differences, one pass of the base for all tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn import functional as F

import inlay
from inlay.core.context import PassContext
from inlay.errors import SiteError, SpecError
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error, weighted_sum
from inlay.methods.lets import Cell
from inlay.training import fit, prepare
from tests import zoo
from tests.methods.exact import batch, run
from tests.test_asking import alone, rows_read
from tests.training import tiny

SMALL = inlay.LeTS(keep=0.2, hidden=5)
FAMILIES = ("bert", "llama", "opt")


def moved(family: str, spec: inlay.Method = SMALL) -> tuple[Any, Any]:
    """A new model in float64 with this spec attached, every trained parameter moved at random."""
    model = zoo.fresh(family)
    handle = inlay.attach(model, spec, prepared={0: {}})
    torch.manual_seed(5)
    perturb(handle)
    return model.double(), handle


def tapped(model: Any, piece: Any, inputs: dict[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """x and y of every tap, in a pass of the model."""
    pairs: list[tuple[Tensor, Tensor]] = []
    hooks = [
        site.host.register_forward_hook(lambda m, args, y: pairs.append((args[0], y)))
        for site in piece.taps
    ]
    run(model, inputs)
    for hook in hooks:
        hook.remove()
    return pairs


def piece_of(handle: Any) -> Any:
    (piece,) = (piece for _, _, piece in zoo.pieces(handle))
    return piece


@pytest.mark.parametrize("family", FAMILIES)
def test_branches_are_projections_with_changed_weights(family: str) -> None:
    """x W + x δ is x (W + δ), with the base's bias; without a δ it is the frozen activation."""
    model, handle = moved(family)
    piece = piece_of(handle)
    pairs = tapped(model, piece, batch(family))
    states = tuple(tensor for pair in pairs for tensor in pair)
    for t, (x, _), site, difference in zip(
        piece.results(states), pairs, piece.taps, piece.differences, strict=True
    ):
        changed = site.weight().clone()
        changed.view(-1)[difference.positions.long()] += difference.values.detach()
        torch.testing.assert_close(t, F.linear(x, changed, site.bias()))
        difference.values.data.zero_()
    for t, (_, y) in zip(piece.results(states), pairs, strict=True):
        assert torch.equal(t, y)


def test_the_cell_is_an_lstm() -> None:
    cell, reference = Cell(6, 4), torch.nn.LSTMCell(6, 4)
    cell.bias.data.normal_()
    own = (cell.read.data, cell.recur.data, cell.bias.data)
    order = [0, 1, 3, 2]  # enter, keep, new, leave
    for target, source in zip(
        (reference.weight_ih, reference.weight_hh, reference.bias_ih), own, strict=True
    ):
        target.data.copy_(torch.cat([source.chunk(4)[i] for i in order]))
    reference.bias_hh.data.zero_()
    t, state, memory = torch.randn(3, 6), torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(cell(t, state, memory), reference(t, (state, memory)))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_graph_and_no_gradient_in_the_base(family: str) -> None:
    model, handle = moved(family)
    piece = piece_of(handle)
    hooks = [site.host.register_forward_hook(refuse_graphs) for site in piece.taps]
    weighted_sum(model_output(model, batch(family))).backward()
    trained = {id(p) for p in handle.parameters()}
    assert all(p.grad is not None for p in handle.parameters())
    assert all(p.grad is None for p in model.parameters() if id(p) not in trained)
    for hook in hooks:
        hook.remove()


def refuse_graphs(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
    assert not args[0].requires_grad and not output.requires_grad


LST = inlay.LST(reduction=2, start="random")


@pytest.mark.parametrize(
    ("family", "spec"), [("bert", SMALL), ("llama", SMALL), ("llama", LST), ("t5", LST)]
)
def test_the_base_computes_once_for_all_tasks(family: str, spec: inlay.Method) -> None:
    model = zoo.fresh(family)
    names = ["a", "b", "c"]
    for seed, name in enumerate(names):
        handle = inlay.attach(model, spec, name=name, prepared={0: {}})
        torch.manual_seed(seed)
        perturb(handle)
    inputs = batch(family)
    inlay.ask_all(model, names, **inputs)  # what is measured once
    counts = rows_read([layer for stack in handle.chart.stacks for layer in stack.layers])
    with torch.no_grad():
        outputs = inlay.ask_all(model, names, **inputs)
    assert counts == [2] * len(counts)
    for name in names:
        assert relative_error(outputs[name].logits, alone(model, name, inputs)) < 1e-5
    assert relative_error(outputs["a"].logits, outputs["b"].logits) > 1e-3


def test_the_mask_is_where_gradients_are_largest_and_stays(tmp_path: Path) -> None:
    """As many weights in each matrix; training moves their values only; the file holds no more."""
    model, data = tiny.base(), tiny.examples(12)
    spec = inlay.LeTS(keep=0.1, hidden=5, batches=1)
    options: Any = {"console": tiny.quiet(), "batch_size": 12}
    prepared = prepare(model, spec, tiny.task(model), data, **options)
    handle = inlay.attach(model, spec, prepared=prepared)
    piece = piece_of(handle)
    masks = [difference.positions.clone() for difference in piece.differences]
    assert [len(mask) for mask in masks] == [38, 38]  # a tenth of 16 · 24
    fit(model, handle, tiny.task(model), data, epochs=2, prepared=prepared, console=tiny.quiet())
    for mask, difference in zip(masks, piece.differences, strict=True):
        assert torch.equal(difference.positions, mask)
        assert difference.values.any()
    path = handle.save(tmp_path / "a.safetensors")
    with safe_open(path, framework="pt") as file:
        sizes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
    assert sum(sizes[key] == [38] for key in sizes) == 4
    other = tiny.base()
    read = inlay.load(other, path)
    for mask, difference in zip(masks, piece_of(read).differences, strict=True):
        assert torch.equal(difference.positions, mask)


def test_prepared_positions_are_the_largest_squared_gradients() -> None:
    model = zoo.fresh("gpt2")  # its matrices are stored transposed
    handle = inlay.attach(model, SMALL, prepared={0: {}})
    sites = handle.chart.find(SMALL.at)
    handle.detach()
    model.requires_grad_(False)
    calls = [lambda n=n: weighted_sum(model_output(model, batch("gpt2", count=n))) for n in (1, 2)]
    masks = inlay.LeTS(keep=0.01, batches=2).prepare(model, sites, calls)
    weight = model.transformer.h[1].mlp.c_proj.weight
    total = torch.zeros_like(weight)
    for call in calls:
        (gradient,) = torch.autograd.grad(call(), [weight])
        total += gradient.square()
    expected = total.T.flatten().topk(40).indices  # a hundredth of 128 · 32
    assert masks["decoder.1.mlp.down"].tolist() == sorted(expected.tolist())


@pytest.mark.parametrize("family", ["t5", "mixtral", "mamba2"])
def test_refusals(family: str) -> None:
    model = zoo.fresh(family)
    with pytest.raises(SiteError):
        inlay.attach(model, SMALL, prepared={0: {}})
    assert not inlay.attached(model)


@pytest.mark.parametrize("fields", [{"keep": 0}, {"keep": 1.5}, {"hidden": 0}])
def test_values_that_can_never_work(fields: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="LeTS: "):
        inlay.LeTS(**fields)


def test_positions_are_read_each_by_itself() -> None:
    """No position's result depends on others, so a decoder generates with it as ever."""
    piece = piece_of(moved("llama")[1])
    states = tuple(torch.randn(1, 4, 32).double() for _ in range(4))
    states += tuple(torch.randn(1, 4, width).double() for _ in range(3) for width in (48, 32))
    last = torch.randn(1, 4, 32).double()
    whole = piece(states, last, PassContext())
    part = piece(tuple(s[:, 2:3] for s in states), last[:, 2:3], PassContext())
    torch.testing.assert_close(whole[:, 2:3], part)
