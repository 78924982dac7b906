"""LayerNorm tuning, exactly: (γ + g) ⊙ x̂ + β + c."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import inlay
from inlay.errors import SiteError
from inlay.laws.case import perturb
from tests import zoo
from tests.methods import exact

SPEC = inlay.LayerNorm()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "bart", "gemma3"])
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, SPEC)


@pytest.mark.parametrize("family", ["gpt2", "bert", "bart"])
def test_formula(family: str) -> None:
    _, handle = exact.moved(family, SPEC)
    placed = exact.first(handle)
    host, piece = placed.site.host, placed.piece
    x = exact.host_input(placed)
    normal = (x - x.mean(-1, keepdim=True)) / (
        x.var(-1, keepdim=True, correction=0) + host.eps
    ).sqrt()
    expected = (host.weight + piece.gain) * normal + host.bias + piece.bias
    torch.testing.assert_close(host(x), expected, rtol=1e-10, atol=1e-10)


def test_formula_of_an_rms_norm() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, SPEC)
    perturb(handle)
    placed = exact.first(handle)
    host = placed.site.host
    x = exact.host_input(placed).float()
    normal = x / (x.square().mean(-1, keepdim=True) + host.variance_epsilon).sqrt()
    assert placed.piece.bias is None
    torch.testing.assert_close(host(x), (host.weight + placed.piece.gain) * normal)


@pytest.mark.parametrize(
    ("family", "norms"),
    [
        ("bert", 2 * 3 + 1),  # two a layer and that of the embeddings
        ("gpt2", 2 * 3 + 1),  # two a layer and the last
        ("llama", 2 * 3 + 1),
        ("t5", 2 * 3 + 1 + 3 * 2 + 1),  # three a decoder layer
        ("bart", 2 * 2 + 1 + 3 * 3 + 1),
    ],
)
def test_every_norm_and_nothing_else(family: str, norms: int) -> None:
    handle = inlay.attach(zoo.fresh(family), SPEC)
    assert len(handle.placed) == norms
    assert all(placed.site.is_norm for placed in handle.placed)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5-gated", "gemma3"])
def test_merge(family: str) -> None:
    exact.check_merge(family, SPEC)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_training_leaves_the_base_alone(family: str) -> None:
    """Every tensor that is not a norm's, and the norms' own too, keep their bits; so disabling
    gives the base."""
    model, handle = exact.train(family, SPEC)
    handle.enabled = False
    inputs = exact.batch(family)
    assert torch.equal(exact.run(model, inputs), exact.run(zoo.fresh(family), inputs))


def test_published_share() -> None:
    """BERT-base: 38,400 of 109,482,240 parameters, which is published as 0.03 %."""
    import transformers as hf

    with torch.device("meta"):
        total = sum(p.numel() for p in hf.BertModel(hf.BertConfig()).parameters())
    assert 100 * (2 * 12 + 1) * 2 * 768 / total == pytest.approx(0.035, abs=5e-4)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_equals_peft(family: str) -> None:
    """peft trains a copy of each norm and swaps it in; we add the difference."""
    peft = exact.peft()
    model = zoo.fresh(family)
    handle = inlay.attach(model, SPEC)
    perturb(handle)
    ours = {placed.site.host: placed.piece for placed in handle.placed}
    paths = [path for path, module in model.named_modules() if module in ours]
    other = exact.with_peft(family, peft.LNTuningConfig(target_modules=paths))
    for path in paths:
        host, copied = model.get_submodule(path), other.get_submodule(f"base_model.model.{path}")
        norm: nn.Module = copied.ln_tuning_layers["default"]
        piece = ours[host]
        norm.weight.data = (host.weight + piece.gain).detach()
        if piece.bias is not None:
            norm.bias.data = (host.bias + piece.bias).detach()
    assert len(paths) == len(handle.placed) == 2 * 3 + 1
    exact.check_peft(handle, model, other, family)


def test_only_norms() -> None:
    with pytest.raises(SiteError, match="LayerNorm acts on norms such as 'norm.attn'"):
        inlay.attach(zoo.model("llama"), inlay.LayerNorm(at="attn.q"))
