"""Sparse changes, exactly: positions, what they compute, and the bytes of their files."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import transformers as hf

import inlay
from inlay.blocks.sparse import SparseDelta, decode, encode, largest, spread
from inlay.errors import FileError, SpecError
from inlay.files import format as file_format
from tests import zoo
from tests.methods import exact
from tests.training import tiny

SPEC = inlay.Sparse(keep=0.1)


def test_the_code_by_hand() -> None:
    """Of 16 weights 3, 6, 14: the ones say 0, 1, 3 by 1 01 001; the two low bits are 11 10 10."""
    code = encode(torch.tensor([3, 6, 14]), 16)
    assert code.dtype == torch.uint8
    assert code.tolist() == [0b100101, 0b101011]  # the first bit of a byte is its lowest
    assert decode(code, 3, 16).tolist() == [3, 6, 14]


@pytest.mark.parametrize("positions", [[], [0], [0, 1], [7], [0, 999], [500], [*range(1000)]])
def test_every_position_comes_back(positions: list[int]) -> None:
    code = encode(torch.tensor(positions, dtype=torch.long), 1000)
    assert decode(code, len(positions), 1000).tolist() == positions


def test_many_positions_come_back() -> None:
    draw = torch.Generator().manual_seed(1)
    for share in (0.9, 0.3, 0.01, 0.0002):
        chosen = (torch.rand(300_000, generator=draw) < share).nonzero().flatten()
        assert torch.equal(decode(encode(chosen, 300_000), len(chosen), 300_000), chosen)
    far = torch.tensor([2**33, 2**34 - 1])
    assert torch.equal(decode(encode(far, 2**34), 2, 2**34), far)


def test_bytes_that_are_no_positions_are_refused() -> None:
    code = encode(torch.tensor([3, 6, 14]), 16)
    for changed in (code ^ 1, code | 0b1010000):  # fewer ones, more ones
        with pytest.raises(FileError, match="a file holds no 3 positions of 16 weights"):
            decode(changed, 3, 16)
    with pytest.raises(FileError, match="a file holds no 1 positions of 9 weights"):
        decode(torch.tensor([0b10, 0b111], dtype=torch.uint8), 1, 9)  # 15


def test_one_of_each_stretch_is_drawn() -> None:
    drawn = spread(10, 105, torch.Generator().manual_seed(0))
    assert [int(p) * 10 // 105 for p in drawn] == [*range(10)]
    assert spread(4, 4).tolist() == [0, 1, 2, 3]


def test_the_largest_of_all_places() -> None:
    scores = {"a": torch.tensor([1.0, 9.0, 2.0]), "b": torch.tensor([0.0]), "c": torch.arange(5.0)}
    chosen = largest(scores, 3)
    assert {name: part.tolist() for name, part in chosen.items()} == {
        "a": [1],
        "b": [],
        "c": [3, 4],
    }


def changes(handle: inlay.Inlay) -> dict[str, tuple[torch.Tensor, ...]]:
    """What every piece changes of its site's matrix or gain, and of its bias if there is one."""
    parts = {}
    for placed in handle.placed:
        assert isinstance(placed.piece, SparseDelta)
        flat = torch.zeros(placed.piece.count, dtype=torch.float64)
        flat[placed.piece.positions] = placed.piece.values.detach().double()
        matrix, *bias = flat.split(placed.piece.sizes)
        parts[placed.site.name] = (matrix.view(placed.piece.shape), *bias)
    return parts


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "bert", "phi3"])
def test_formula(family: str) -> None:
    _, handle = exact.moved(family, SPEC)
    for placed in handle.placed:
        site = placed.site
        change, *bias = changes(handle)[site.name]
        x = exact.host_input(placed)
        y = site.host(x)
        y = y if site.part is None else site.part.take(y)
        if site.is_norm:
            expected = site.normalised()(x) * (site.weight() + change)
        else:
            expected = x @ (site.weight() + change).T
        if site.bias() is not None:
            expected = expected + site.bias() + bias[0]
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_starts_as_the_base(family: str) -> None:
    exact.check_start(family, SPEC)


def differing(before: dict[str, torch.Tensor], model: torch.nn.Module) -> int:
    """How many weights differ in a bit."""
    return sum(int((p != before[name]).sum()) for name, p in model.named_parameters())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_all_other_weights_stay_what_they_are_bit_for_bit(family: str, tmp_path: Path) -> None:
    before = {name: p.detach().clone() for name, p in zoo.fresh(family).named_parameters()}
    _, handle = exact.train(family, SPEC)  # checks the base itself
    path = handle.save(tmp_path / "sparse.safetensors")
    other = zoo.fresh(family)
    loaded = inlay.load(other, path)
    assert all(torch.equal(other.get_parameter(name), p) for name, p in before.items())
    count = sum(int((p.piece.values != 0).sum()) for p in loaded.placed)
    assert 0 < count <= handle.count()
    loaded.merge()
    assert differing(before, other) == count


def test_the_file_is_as_small_as_positions_and_values_can_be(tmp_path: Path) -> None:
    """Within 10 % of 4 bytes for each value and the entropy of which weights are chosen."""
    config = hf.LlamaConfig(
        hidden_size=384,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=1536,
        vocab_size=31,
    )
    with torch.random.fork_rng(devices=[]):
        model = hf.LlamaForCausalLM(config)
    for keep in (0.2, 0.05, 0.02, 0.005, 0.0005):
        handle = inlay.attach(model, inlay.Sparse(keep=keep))
        total = sum(placed.piece.count for placed in handle.placed)
        chosen = handle.count()
        entropy = math.lgamma(total + 1) - math.lgamma(chosen + 1) - math.lgamma(total - chosen + 1)
        implied = 4 * chosen + entropy / math.log(2) / 8
        path = handle.save(tmp_path / f"{keep}.safetensors")
        payload = sum(t.numel() * t.element_size() for t in handle.named_tensors().values())
        assert payload < 1.1 * implied, keep
        if keep >= 0.005:  # below that the header of so small a file weighs more
            assert path.stat().st_size < 1.1 * implied, (keep, path.stat().st_size / implied)
        handle.detach()


def test_positions_do_not_count_as_saved_numbers() -> None:
    handle = inlay.attach(zoo.fresh("llama"), SPEC)
    assert handle.saved_count() == handle.count()


def test_a_place_without_chosen_weights_has_no_tensors(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.Sparse(at="attn.q"))
    handle.placed[1].piece.resize({})
    path = handle.save(tmp_path / "some.safetensors")
    names = {name.split("/")[0] for name in file_format.read(path).tensors}
    assert names == {"decoder.0.attn.q", "decoder.2.attn.q"}
    other = inlay.load(zoo.fresh("llama"), path)
    assert [p.piece.values.numel() > 0 for p in other.placed] == [True, False, True]


def test_a_file_of_another_base_is_refused(tmp_path: Path) -> None:
    path = inlay.attach(zoo.fresh("llama"), inlay.Sparse(at=inlay.Where("mlp.up", layers=(0, 1))))
    path = path.save(tmp_path / "other.safetensors")
    with pytest.raises(
        FileError, match=r"has shape \[.*load it into the base that it was made for"
    ):
        inlay.load(tiny.base(), path, strict=False)


def test_a_checkpoint_brings_its_own_positions() -> None:
    first = inlay.attach(zoo.fresh("llama"), SPEC)
    second = inlay.attach(zoo.fresh("llama"), inlay.Sparse(keep=0.05, seed=3))
    second.load_training_state(first.training_state())
    for ours, theirs in zip(second.placed, first.placed, strict=True):
        assert torch.equal(ours.piece.positions, theirs.piece.positions)


def test_merging_keeps_every_bit_of_all_other_weights() -> None:
    """In half precision, and of a zero with a sign."""
    model = zoo.fresh("llama").bfloat16()
    host = model.get_decoder().layers[0].self_attn.q_proj
    host.weight.data[1] = -0.0
    before = host.weight.detach().clone()
    piece = inlay.attach(model, inlay.Sparse(at="attn.q")).placed[0].piece
    piece.values.data.fill_(1.0)
    inlay.attached(model)["default"].merge()
    changed = host.weight.detach().view(torch.int16) != before.view(torch.int16)
    assert changed.flatten().nonzero().flatten().tolist() == piece.positions.tolist()


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "bert", "t5"])
def test_merge(family: str) -> None:
    exact.check_merge(family, SPEC)


def test_refusals() -> None:
    with pytest.raises(SpecError, match="keep is a share of at most 1, not 1.5"):
        inlay.Sparse(keep=1.5)
    with pytest.raises(SpecError, match="keep must be a number above 0"):
        inlay.Sparse(keep=0)
    with pytest.raises(inlay.InlayError, match="acts on projections and norms"):
        inlay.attach(zoo.fresh("llama"), inlay.Sparse(at="mlp"))
