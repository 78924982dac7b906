"""Whether two inlays agree."""

import math

import pytest
import torch

import inlay
from inlay import Prefix, Prompt
from inlay.errors import SpecError
from inlay.inspect import (
    AttentionShare,
    attention_shares,
    compare_prefixes,
    compare_prompts,
    match_positions,
    neighbours,
    prefix_keys,
    share_correlation,
)
from tests import zoo
from tests.inspect.models import batch


def two(spec, other=None, family="llama"):
    model = zoo.fresh(family)
    return inlay.attach(model, spec, name="a"), inlay.attach(model, other or spec, name="b")


def test_a_prompt_agrees_with_itself():
    handle, _ = two(Prompt(length=5, start="uniform"))
    prompts = neighbours(handle, 3)
    (matched,) = compare_prompts(prompts, prompts)
    assert matched.pairs == tuple((n, n) for n in range(5))
    assert matched.cosines == pytest.approx([1] * 5, abs=1e-5)
    assert matched.overlaps == (1,) * 5
    assert matched.overlap == 1


def test_positions_in_another_order_are_found_again():
    a, b = two(Prompt(length=5, start="uniform"))
    order = [3, 0, 4, 1, 2]
    with torch.no_grad():
        first, second = next(a.parameters()), next(b.parameters())
        second.copy_(2 * first[order] + 0.01 * torch.randn_like(first))
    (matched,) = compare_prompts(neighbours(a, 3), neighbours(b, 3))
    assert matched.pairs == tuple((row, order.index(row)) for row in range(5))
    assert min(matched.cosines) > 0.99


def test_nearest_tokens_overlap_as_counted():
    a, b = two(Prompt(length=2, start=((5,), (6,))), Prompt(length=3, start=((5,), (7,), (8,))))
    (matched,) = compare_prompts(neighbours(a, 1), neighbours(b, 1))
    assert matched.pairs[0] == (0, 0)
    assert matched.overlaps == (1, 0)
    assert matched.overlap == 1 / 4


def test_matching_takes_the_best_first():
    similarity = torch.tensor([[0.9, 0.8, 0.0], [0.8, 0.1, 0.0]])
    assert match_positions(similarity) == [(0, 0), (1, 1)]


def test_prefixes_are_compared_position_by_position():
    a, b = two(Prefix(length=2, mlp=None))
    (same,) = compare_prefixes(a, a)
    assert same.attention == "decoder.attn"
    assert same.keys.shape == (3, 2)
    assert torch.allclose(same.keys, torch.ones(3, 2)) and torch.allclose(same.values, same.keys)
    with torch.no_grad():
        for (_, _, first), (_, _, second) in zip(zoo.pieces(a), zoo.pieces(b), strict=True):
            second.k.copy_(-3 * first.k)
            second.v.copy_(torch.cat((first.v[:, :1], -first.v[:, 1:]), 1))
    (turned,) = compare_prefixes(a, b)
    assert torch.allclose(turned.keys, -torch.ones(3, 2))
    assert torch.allclose(turned.values, torch.zeros(3, 2), atol=1e-6)


def test_a_prefix_that_still_learns_is_seen_as_it_is():
    handle = inlay.attach(zoo.fresh("llama"), Prefix(length=2, mlp=4))
    with torch.no_grad():
        handle.model(**batch(handle.model, 5))
        for parameter in handle.parameters():
            parameter.mul_(2)
    exported = {key: piece.export() for key, _, piece in zoo.pieces(handle)}
    for key, _, k, v in prefix_keys(handle):
        assert torch.equal(k, exported[key]["k"]) and torch.equal(v, exported[key]["v"])


def test_maps_correlate():
    handle, _ = two(Prefix(length=2, mlp=None))
    (share,) = attention_shares(handle, [batch(handle.model, 7)])
    assert share_correlation(share, share) == pytest.approx(1)
    turned = AttentionShare(
        share.kind, share.attention, share.layers, 1 - share.shares, share.uniform
    )
    assert share_correlation(share, turned) == pytest.approx(-1)
    flat = AttentionShare(
        share.kind, share.attention, share.layers, 0 * share.shares, share.uniform
    )
    assert math.isnan(share_correlation(share, flat))


def test_what_does_not_belong_together_is_not_compared():
    a, b = two(Prefix(length=2, mlp=None), Prefix(length=3, mlp=None))
    with pytest.raises(SpecError, match="of 2 and of 3 positions"):
        compare_prefixes(a, b)
    a, b = two(Prompt(length=2), Prompt(length=2, at="embed.target"), "t5")
    with pytest.raises(SpecError, match=r"embed/0 and embed.target/0"):
        compare_prompts(neighbours(a), neighbours(b))
    prefix = AttentionShare("prefix", "decoder.attn", (0,), torch.ones(1, 4), torch.ones(1))
    prompt = AttentionShare("prompt", "decoder.attn", (0,), torch.ones(1, 4), torch.ones(1))
    with pytest.raises(SpecError, match="prefix in decoder.attn.* prompt in decoder.attn"):
        share_correlation(prefix, prompt)
