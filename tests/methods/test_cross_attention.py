"""Cross-attention only, exactly: nothing but cross-attention learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import inlay
from inlay.architectures.resolve import resolve
from inlay.errors import SiteError
from inlay.laws.compare import model_output
from tests import zoo
from tests.methods import exact

SPEC = inlay.CrossAttention()
FAMILIES = ["t5", "t5-gated", "mt5", "bart", "marian"]


def encoded(model: Any, family: str) -> torch.Tensor:
    """What the encoder computes."""
    with torch.no_grad():
        return model(**exact.batch(family)).encoder_last_hidden_state


@pytest.mark.parametrize("family", FAMILIES)
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, SPEC)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_formula(family: str) -> None:
    _, handle = exact.moved(family, inlay.CrossAttention(at="cross.o"))
    placed = exact.first(handle)
    site, piece = placed.site, placed.piece
    x = exact.host_input(placed)
    expected = x @ (site.weight() + piece.weight).T
    if family == "bart":
        expected = expected + site.bias() + piece.bias
    torch.testing.assert_close(site.host(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_encoder_states_are_those_of_the_base_for_ever(family: str) -> None:
    before = encoded(zoo.fresh(family), family)
    model, handle = exact.train(family, SPEC)
    assert torch.equal(encoded(model, family), before)
    assert {placed.site.role for placed in handle.placed} == {
        *("cross.q", "cross.k", "cross.v", "cross.o", "norm.cross")
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pieces_sit_in_cross_attention_alone(family: str) -> None:
    model = zoo.fresh(family)
    handle = inlay.attach(model, SPEC)
    names = {module: name for name, module in model.named_modules()}
    hosts = [names[p.site.host] for p in handle.placed if not p.site.is_norm]
    part = "encoder_attn." if family in ("bart", "marian") else "EncDecAttention."
    assert all(part in host and host.startswith(("model.decoder", "decoder")) for host in hosts)
    assert len(hosts) == 4 * len(resolve(zoo.fresh(family)).stacks[1].layers)


def test_no_gradient_enters_the_encoder() -> None:
    model = zoo.fresh("bart")
    inlay.attach(model, SPEC)
    seen: list[torch.Tensor] = []
    model.get_encoder().register_forward_hook(
        lambda module, args, out: seen.append(out.last_hidden_state)
    )
    model_output(model, exact.batch("bart")).sum().backward()
    assert not seen[0].requires_grad


@pytest.mark.parametrize("family", ["t5", "bart", "marian"])
def test_merge(family: str) -> None:
    exact.check_merge(family, SPEC)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_refused_without_cross_attention(family: str) -> None:
    with pytest.raises(SiteError, match=r"^CrossAttention on \w+: this model has no 'cross\.q'"):
        inlay.attach(zoo.model(family), SPEC)
    assert not inlay.attached(zoo.model(family))
