"""What pieces decide is read out by place and by text, and is what a hand computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from typing_extensions import override

import inlay
from inlay import AdapterDrop, Gate, LoRA, Pfeiffer, Prefix, Prompt, UniPELT
from inlay.core.context import PassContext
from inlay.core.method import Method, Shared
from inlay.core.piece import OutputDelta
from inlay.core.readings import Readable, Reading
from inlay.core.site import Site, Where
from inlay.inspect import readings, recording
from inlay.laws.case import perturb
from tests import zoo
from tests.inspect.models import batch


def moved(family: str, spec: inlay.Sum | Method) -> inlay.Inlay:
    """The spec on a new model, every trained parameter away from its start."""
    handle = inlay.attach(zoo.fresh(family), spec)
    torch.manual_seed(5)
    perturb(handle)
    return handle


def inputs_of(handle: inlay.Inlay, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the module at each place reads in a pass, by the name of its site."""
    seen: dict[str, Tensor] = {}

    def note(name: str):
        return lambda module, args, kwargs: seen.update(
            {name: args[0] if args else next(iter(kwargs.values()))}
        )

    hooks = [
        placed.site.host.register_forward_pre_hook(note(placed.site.name), with_kwargs=True)
        for placed in handle.placed
    ]
    with torch.no_grad():
        handle.model(**batch)
    for hook in hooks:
        hook.remove()
    return seen


def test_the_gate_of_an_encoder_is_what_a_hand_computes() -> None:
    handle = moved("bert", Gate(inner=LoRA(rank=2), reads="input"))
    texts = batch(handle.model, 6, 3)
    read = readings(handle, [texts])
    x = inputs_of(handle, texts)
    assert len(read) == len(handle.placed)
    for reading in read:
        gate = reading.placed.piece.gate
        scores = torch.sigmoid(x[reading.placed.site.name] @ gate.weight + gate.bias)
        expected = torch.stack([scores[0].mean(), scores[1, :3].mean()])
        torch.testing.assert_close(reading.values[:, 0], expected.detach())
        assert (reading.what, reading.axis, reading.names) == ("gate", "method", ("LoRA",))
        assert reading.positions.tolist() == [1, 1]
        torch.testing.assert_close(reading.mean[0], expected.detach().mean())


def test_the_gate_of_a_decoder_is_the_mean_over_its_text() -> None:
    handle = moved("llama", Gate(inner=LoRA(rank=2), reads="input"))
    texts = batch(handle.model, 5, 3)
    x = inputs_of(handle, texts)
    for reading in readings(handle, [texts]):
        gate = reading.placed.piece.gate
        scores = torch.sigmoid(x[reading.placed.site.name] @ gate.weight + gate.bias).detach()
        running = scores.cumsum(1) / torch.arange(1, 6)
        expected = torch.stack([running[0].mean(), running[1, :3].mean()])
        torch.testing.assert_close(reading.values[:, 0], expected)
        assert reading.positions.tolist() == [5, 3]


def test_other_rows_and_batches_change_nothing() -> None:
    handle = moved("bert", UniPELT(rank=2, length=2, bottleneck=3, mlp=None))
    texts = batch(handle.model, 6, 3, 5)
    together = readings(handle, [texts])
    rows = [
        {k: v[n : n + 1, :length] for k, v in texts.items()} for n, length in enumerate((6, 3, 5))
    ]
    alone = readings(handle, rows)
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.values, other.values)
    kinds = {(r.names[0], r.placed.site.role) for r in together}
    assert kinds == {
        ("LoRA", "attn.q"),
        ("LoRA", "attn.v"),
        ("Prefix", "attn.kv"),
        ("Pfeiffer", "block"),
    }


def test_what_does_not_read_the_text_is_the_same_for_every_text() -> None:
    spec = Gate(inner=LoRA(rank=2), start=0.25) + Gate(
        inner=Prefix(length=2, mlp=None), reads="input"
    )
    handle = inlay.attach(zoo.fresh("llama"), spec)
    for reading in readings(handle, [batch(handle.model, 6, 3)]):
        expected = 0.25 if reading.names == ("LoRA",) else 0.5
        assert reading.values.flatten().tolist() == pytest.approx([expected, expected])


def fusion(family: str, folder) -> inlay.Inlay:
    files = {}
    for seed in (1, 2):
        handle = moved(family, Pfeiffer(bottleneck=3, std=0.3))
        torch.manual_seed(seed)
        perturb(handle)
        files[f"t{seed}"] = handle.save(folder / f"t{seed}.safetensors")
    handle = inlay.fuse(zoo.fresh(family), files)
    torch.manual_seed(9)
    perturb(handle)
    return handle


@pytest.mark.parametrize("family", ["bert", "llama", "t5"])
def test_a_fusion_by_text(family: str, tmp_path) -> None:
    handle = fusion(family, tmp_path)
    texts = batch(handle.model, 6, 3)
    captured: dict[str, Tensor] = {}
    hooks = [
        placed.piece.attention.register_forward_hook(
            lambda module, args, value, name=placed.site.name: captured.update({name: value})
        )
        for placed in handle.placed
    ]
    with torch.no_grad():
        handle.model(**texts)
    for hook in hooks:
        hook.remove()
    for reading in readings(handle, [texts]):
        weights = captured[reading.placed.site.name]
        expected = torch.stack([weights[0].mean(0), weights[1, :3].mean(0)])
        torch.testing.assert_close(reading.values, expected)
        assert reading.positions.tolist() == [6, 3]
        torch.testing.assert_close(reading.mean, (6 * expected[0] + 3 * expected[1]) / 9)


def test_a_common_beginning_and_a_prompt_change_no_text(tmp_path) -> None:
    """What all rows begin with runs apart from them otherwise, and so does a prompt."""
    handle = fusion("llama", tmp_path)
    texts = batch(handle.model, 14, 12)
    texts["input_ids"][1, :10] = texts["input_ids"][0, :10]
    alone = [
        {k: v[n : n + 1, :length] for k, v in texts.items()} for n, length in enumerate((14, 12))
    ]
    together, apart = readings(handle, [texts]), readings(handle, alone)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one.values, other.values)
    prompted = moved("llama", Gate(inner=LoRA(rank=2), reads="input") + Prompt(length=4))
    read = readings(prompted, [texts])
    assert all(reading.positions.tolist() == [14, 12] for reading in read)


def test_an_inlay_is_read_alone_and_left_as_it_was(tmp_path) -> None:
    handle = moved("bert", Gate(inner=LoRA(rank=2), reads="input"))
    texts = batch(handle.model, 6, 3)
    expected = readings(handle, [texts])
    other = inlay.attach(handle.model, Pfeiffer(bottleneck=3, std=0.5), name="other")
    perturb(other)
    handle.enabled = False
    for one, again in zip(expected, readings(handle, [texts]), strict=True):
        assert torch.equal(one.values, again.values)
    assert not handle.enabled and other.enabled
    assert not any(p.piece.gate._forward_hooks for p in handle.placed)
    with pytest.raises(RuntimeError, match="stop"), recording(handle):
        raise RuntimeError("stop")
    assert not any(p.piece.gate._forward_hooks for p in handle.placed)


@dataclass(frozen=True, repr=False)
class Switched(Method, listed=False):
    """A method of one's own: one of two vectors, by the sign of the first unit."""

    at: Where = Where(("mlp",))

    @override
    def build(self, site: Site, shared: Shared) -> Switch:
        return Switch(site)


class First(nn.Module):
    @override
    def forward(self, y: Tensor) -> Tensor:
        on = (y[..., :1] > 0).to(y.dtype)
        return torch.cat((on, 1 - on), -1)


class Switch(Readable, OutputDelta):
    def __init__(self, site: Site):
        super().__init__()
        self.choice = First()
        self.vectors = nn.Parameter(torch.randn(2, site.d_out) * 0.1)

    @override
    def delta(self, x: Tensor, y: Tensor, context: PassContext) -> Tensor:
        return self.choice(y) @ self.vectors

    @override
    def readings(self) -> Sequence[Reading]:
        return [Reading("choice", "vector", ("plus", "minus"), self.choice)]


@pytest.mark.parametrize(
    "wrap", [lambda m: m, lambda m: Gate(inner=m), lambda m: AdapterDrop(inner=m)]
)
def test_a_piece_of_ones_own_inside_others(wrap) -> None:
    handle = inlay.attach(zoo.fresh("llama"), wrap(Switched()))
    read = [r for r in readings(handle, [batch(handle.model, 6, 3)]) if r.what == "choice"]
    assert [r.placed.site.layer for r in read] == [0, 1, 2]
    for reading in read:
        assert reading.names == ("plus", "minus") and reading.axis == "vector"
        torch.testing.assert_close(reading.values.sum(1), torch.ones(2))
        counts = reading.values[:, 0] * torch.tensor([6.0, 3.0])
        torch.testing.assert_close(counts, counts.round())


def test_nothing_to_read() -> None:
    handle = moved("llama", LoRA(rank=2))
    assert readings(handle, [batch(handle.model, 4)]) == []


def test_a_piece_that_did_not_run_says_nothing() -> None:
    """Neither of a text, nor, where it never ran, at all."""
    handle = inlay.attach(zoo.fresh("llama"), Switched())
    first = handle.placed[0].piece
    texts = batch(handle.model, 6)
    with recording(handle) as recorded, torch.no_grad():
        recorded.begin(texts)
        handle.model(**texts)
        recorded.begin(texts)
        first.choice(torch.ones(1, 6, 32))
    values = [reading.values for reading in recorded.readings()]
    assert values[0][1].tolist() == [1, 0] and not values[0].isnan().any()
    for later in recorded.readings()[1:]:
        assert later.values[1].isnan().all() and later.positions.tolist() == [6, 0]
        torch.testing.assert_close(later.mean, later.values[0])
    with recording(handle) as recorded:
        recorded.begin(texts)
    assert recorded.readings() == []
