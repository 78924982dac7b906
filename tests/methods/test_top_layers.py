"""Top layers, exactly: the last blocks learn as they are, and what lies below is the base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import inlay
from inlay.architectures.resolve import resolve
from inlay.errors import SiteError, SpecError
from inlay.laws.compare import model_output
from tests import zoo
from tests.methods import exact

SPEC = inlay.TopLayers(layers=1)
FAMILIES = ["llama", "gpt2", "gpt_neox", "bert", "t5", "bart"]
POST_NORM = ("bert", "bart")
"""Families without a norm after the last block."""


def states(model: Any, family: str) -> tuple[Tensor, ...]:
    """The embeddings and every block's output, of the stack that the head reads."""
    with torch.no_grad():
        out = model(**exact.batch(family), output_hidden_states=True)
    return out.decoder_hidden_states if family in exact.TWO_STACKS else out.hidden_states


@pytest.mark.parametrize("family", FAMILIES)
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, SPEC)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("role", ["attn.q", "mlp.down"])
def test_formula(family: str, role: str) -> None:
    _, handle = exact.moved(family, SPEC)
    placed = next(p for p in handle.placed if p.site.role == role)
    site, piece = placed.site, placed.piece
    x = exact.host_input(placed)
    expected = x @ (site.weight() + piece.weight).T
    if site.bias() is not None:
        expected = expected + site.bias() + piece.bias
    y = site.host(x)
    y = y if site.part is None else site.part.take(y)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_lies_below_is_the_base_for_ever(family: str) -> None:
    before = states(zoo.fresh(family), family)
    model, handle = exact.train(family, SPEC)
    after = states(model, family)
    assert len(after) == len(before)
    for below, base in zip(after[:-1], before[:-1], strict=True):
        assert torch.equal(below, base)
    assert not torch.equal(after[-1], before[-1])
    top = len(before) - 2
    assert {p.site.layer for p in handle.placed} == {top} | (
        {None} if family not in POST_NORM else set()
    )


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_no_gradient_is_computed_below(family: str) -> None:
    """What leaves the block below the trained one is no part of a graph."""
    model = zoo.fresh(family)
    inlay.attach(model, SPEC)
    reached: list[Tensor] = []
    stack = resolve(zoo.fresh(family)).stacks[-1]
    below = model.get_decoder().layers[len(stack.layers) - 2]
    below.register_forward_hook(
        lambda module, args, out: reached.append(out[0] if isinstance(out, tuple) else out)
    )
    model_output(model, exact.batch(family)).sum().backward()
    assert not reached[0].requires_grad


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "bart", "opt", "gpt_neox"])
def test_every_parameter_of_the_blocks_learns(family: str) -> None:
    """With k = L the set is that of full fine-tuning but for embeddings and head."""
    model = zoo.fresh(family)
    stack = resolve(model).stacks[-1]
    depth = len(stack.layers)
    blocks = sum(p.numel() for layer in stack.layers for p in layer.parameters())
    handle = inlay.attach(model, inlay.TopLayers(layers=depth))
    final = sum(
        p.numel()
        for placed in handle.placed
        if placed.site.layer is None
        for p in placed.piece.parameters()
    )
    assert handle.count() == blocks + final
    assert (final == 0) == (family in POST_NORM)


def test_the_stack_is_a_choice() -> None:
    model = zoo.fresh("t5")  # three encoder blocks, two decoder blocks
    for stacks, expected in (
        (None, {"decoder"}),
        (("encoder",), {"encoder"}),
        (("encoder", "decoder"), {"encoder", "decoder"}),
    ):
        handle = inlay.attach(model, inlay.TopLayers(layers=1, stacks=stacks))
        assert {placed.site.stack for placed in handle.placed} == expected
        handle.detach()


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "phi3", "bert", "t5"])
def test_merge(family: str) -> None:
    exact.check_merge(family, inlay.TopLayers())


def test_more_layers_than_there_are() -> None:
    with pytest.raises(SiteError, match="there is no layer -4: the decoder has 3"):
        inlay.attach(zoo.model("llama"), inlay.TopLayers(layers=4))
    with pytest.raises(SpecError, match="the decoder has 2 layers, not 3; use at most layers=2"):
        inlay.attach(zoo.model("t5"), inlay.TopLayers(layers=3))
    with pytest.raises(SpecError, match="no stack is called 'top'"):
        inlay.TopLayers(stacks=("top",))
