"""Every interface of methods and pieces, by small methods that use each of them once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import inlay
from inlay.core.method import Method, Preset
from inlay.core.piece import OncePerPass
from inlay.errors import PortError, RowsError, SpecError, TrainingError
from inlay.laws.batches import pad_batch
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error
from inlay.laws.traces import snapshot
from inlay.testing import laws_hold
from tests import zoo
from tests.core import interfaces
from tests.core.interfaces import (
    Experts,
    FirstTokenKV,
    Gated,
    Halves,
    LowRank,
    Masked,
    Scheduled,
    SharedBases,
    SideAttention,
    SideSum,
    Sized,
    TextMean,
)

ALWAYS = {
    "no trace", "only pieces learn", "save → load", "rows do not meet", "padding is inert",
    "gradient checkpointing", "copies are independent",
}  # fmt: skip

ALSO: dict[type[Method], set[str]] = {
    SharedBases: {"shared modules", "identity"},
    Experts: {"draws"},
    Scheduled: {"penalty and schedule", "indices and masks"},
}
"""What must be said about a method beside what is said about all."""

WIDE = {"t5", "bert", "llama"}
NARROW = {"gpt2", "gemma2", "bart"}
"""Families for the methods that look at other positions."""


def cases() -> Iterator[Any]:
    for spec in interfaces.SPECS:
        relates = any(isinstance(m, (TextMean, FirstTokenKV, SideAttention)) for m in spec.methods)
        side = any(isinstance(m, (SideSum, SideAttention)) for m in spec.methods)
        families = (WIDE | NARROW if relates else WIDE) - ({"bert"} if side else set())
        for family in sorted(families):
            yield pytest.param(spec, family, id=f"{spec!r}-{family}")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with interfaces.registered():
        yield


@pytest.mark.parametrize(("spec", "family"), list(cases()))
def test_laws(spec: Any, family: str) -> None:
    verdict = laws_hold(spec, family)
    assert verdict.refusal is None
    expected = ALWAYS | {law for m in spec.methods for law in ALSO.get(type(m), ())}
    expected |= set() if family == "bert" else {"generation"}
    expected |= {"shared prefix"} if family in ("llama", "gpt2", "gemma2") else set()
    assert expected <= set(verdict.spoke), verdict.silent


ROWS = ["side", None, "mean", "kv", "prefix", "prompt", "mean"]


def many(family: str) -> tuple[Any, list[dict[str, Tensor]], dict[str, Tensor]]:
    """A model with inlays of all kinds, seven rows, and the rows as one batch."""
    model = zoo.fresh(family)
    specs = {
        "side": SideAttention(),
        "mean": TextMean(),
        "kv": FirstTokenKV() + inlay.Prefix(length=3, mlp=None),
        "prefix": inlay.Prefix(length=4, mlp=None) + inlay.LoRA(rank=2),
        "prompt": inlay.Prompt(length=3),
    }
    for name, spec in specs.items():
        perturb(inlay.attach(model, spec, name=name))
    rows = []
    for number in range(len(ROWS)):
        ids = torch.randint(8, 99, (1, 4 + number))
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    side = "left" if family == "llama" else "right"
    return model, rows, pad_batch(rows, side)


@pytest.mark.parametrize("family", ["llama", "bart"])
def test_rows_of_all_kinds_generate_together(family: str) -> None:
    model, rows, batch = many(family)
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    for beams in (1, 3):
        with inlay.rows(model, ROWS):
            together = model.generate(**batch, **options, num_beams=beams)
            if beams == 1:
                uncached = model.generate(**batch, **options, use_cache=False)
                assert torch.equal(together, uncached)
        for number, (name, row) in enumerate(zip(ROWS, rows, strict=True)):
            with inlay.rows(model, [name]):
                alone = model.generate(**row, **options, num_beams=beams)
            assert torch.equal(alone[0, -4:], together[number, -4:]), (name, beams)


def test_a_static_cache_tells_pieces_the_padding_too() -> None:
    model, _, batch = many("llama")
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with inlay.rows(model, ROWS):
        dynamic = model.generate(**batch, **options)
        static = model.generate(**batch, **options, cache_implementation="static")
    assert torch.equal(dynamic, static)


def test_a_cache_begun_without_a_piece_is_refused() -> None:
    model = zoo.fresh("llama")
    inlay.attach(model, SideAttention(), name="side")
    ids, cache = torch.randint(8, 99, (1, 5)), DynamicCache(config=model.config)
    with inlay.rows(model, [None]):
        model(input_ids=ids, past_key_values=cache, use_cache=True)
    with pytest.raises(RowsError):
        model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)


def test_nothing_of_a_generation_is_kept_or_copied_afterwards() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, SideAttention(), name="a")
    inlay.attach(model, FirstTokenKV(), name="c")
    inlay.attach(model, inlay.Prefix(length=2, mlp=None), name="b")
    model.generate(torch.randint(8, 99, (1, 5)), max_new_tokens=2, pad_token_id=0)
    hooks = model.inlays.stacks[0]
    assert hooks.state.context.cache is None
    with inlay.rows(model, [None]):
        embeds = torch.randn(1, 5, 32, requires_grad=True)
        model(inputs_embeds=embeds).logits.sum().backward()
    assert all(site._entered.x is None for site in hooks.extra_kv.sites.values())
    twin = copy.deepcopy(model)
    assert inlay.attached(twin)["a"].count() == handle.count()


def test_what_relates_positions_alone_is_given_the_mask() -> None:
    model = zoo.fresh("bert")
    ids = torch.randint(8, 99, (2, 5))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inlay.attach(model, inlay.LoRA(rank=2), name="lora")
    model(**inputs)
    assert model.inlays.stacks[0].state.context.mask is None
    inlay.attach(model, TextMean(), name="mean")
    model(**inputs)
    assert model.inlays.stacks[0].state.context.mask is not None


def test_a_side_network_leaves_the_base_without_a_graph() -> None:
    model = zoo.fresh("llama").train()
    inlay.attach(model, SideSum(), name="side")
    states = model.model(input_ids=torch.randint(8, 99, (1, 5)), output_hidden_states=True)
    assert states.last_hidden_state.requires_grad
    assert not any(state.requires_grad for state in states.hidden_states[:-1])


def test_two_side_networks_are_refused_and_nothing_has_changed() -> None:
    model = zoo.fresh("llama")
    before = snapshot(model)
    with pytest.raises(PortError):
        inlay.attach(model, SideSum() + SideAttention())
    assert snapshot(model) == before and not inlay.attached(model)
    inlay.attach(model, inlay.Prefix(length=2, mlp=None), name="first")
    with pytest.raises(PortError):
        inlay.attach(model, inlay.LoRA(rank=2) + SideSum() + SideAttention())
    assert list(inlay.attached(model)) == ["first"]
    model(input_ids=torch.randint(8, 99, (1, 5)))
    inlay.attached(model)["first"].detach()
    assert snapshot(model) == before


def test_shared_modules_count_once_and_frozen_parts_are_not_trained() -> None:
    model = zoo.fresh("t5")
    handle = inlay.attach(model, SharedBases(rank=3))
    own = sum(p.numel() for placed in handle.placed for p in placed.piece.parameters())
    assert handle.count() == own + 32 * 3  # the frozen half is in the file, and not trained
    names = [name for name in handle.named_tensors() if name.startswith("shared/")]
    assert names == ["shared/0/sharedbases/bases/down", "shared/0/sharedbases/bases/up"]


def test_what_was_prepared_reaches_the_pieces_and_their_file(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    sites = [
        site for site in inlay.architectures.resolve.resolve(model).sites if site.role == "mlp.up"
    ]
    with pytest.raises(SpecError):
        inlay.attach(model, Scheduled())
    prepared = {0: Scheduled().prepare(model, sites, [])}
    handle = inlay.attach(model, Scheduled(), prepared=prepared)
    (index,) = {tuple(p.piece.index.tolist()) for p in handle.placed if p.site.role == "mlp.up"}  # type: ignore[attr-defined]
    assert index == tuple(range(31, -1, -1))
    path = handle.save(tmp_path / "a.safetensors")
    handle.detach()
    loaded = inlay.load(model, path)
    assert {tuple(p.piece.index.tolist()) for p in loaded.placed if p.site.role == "mlp.up"} == {
        index
    }  # type: ignore[attr-defined]


@dataclass(frozen=True, repr=False)
class Hidden(Preset, listed=False):
    """A preset of a method that must be prepared."""

    def expand(self, sites: Any) -> Any:
        return inlay.LoRA(rank=2) + Scheduled()


def test_a_preset_is_what_it_stands_for() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Halves(rank=2))
    assert [type(m).__name__ for m in handle.spec.methods] == ["LoRA", "BitFit"]
    handle.detach()
    with pytest.raises(SpecError):
        inlay.attach(model, Hidden())
    assert inlay.attach(model, Hidden(), prepared={1: {}}).spec == inlay.LoRA(rank=2) + Scheduled()


def test_penalty_and_groups_have_their_values_by_hand() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Scheduled(weight=0.5), prepared={0: {}})
    squares = sum(float(p.detach().square().sum()) for p in handle.parameters())
    penalty = handle.penalty()
    assert penalty is not None and float(penalty.detach()) == pytest.approx(0.5 * squares, rel=1e-5)
    down, up = handle.parameter_groups(0.01)
    assert (down.learning_rate, down.weight_decay) == (0.01, None)
    assert (up.learning_rate, up.weight_decay) == (0.16, 0.0)


def test_passes_are_compared_as_the_method_says() -> None:
    assert Experts.passes == 2 and inlay.LoRA.passes == 1
    assert float(Experts().consistency(torch.tensor(3.0))) == 1.5


@pytest.mark.parametrize("fast", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str)
def test_every_optimiser_of_torch_is_noticed(fast: dict[str, bool]) -> None:
    model = zoo.fresh("llama").train()
    handle = inlay.attach(model, Scheduled(), prepared={0: {}})
    optimiser = torch.optim.AdamW(handle.parameters(), **fast)  # type: ignore[arg-type]
    batch = {"input_ids": torch.randint(8, 99, (1, 5))}

    def train() -> None:
        for _ in range(4):
            model(**batch).logits.sum().backward()
            optimiser.step()
            optimiser.zero_grad()

    with pytest.raises(TrainingError):
        train()


def test_accumulated_passes_are_one_step() -> None:
    model = zoo.fresh("llama").train()
    handle = inlay.attach(model, Scheduled(), prepared={0: {}})
    optimiser = torch.optim.SGD(handle.parameters(), lr=0.01)
    batch = {"input_ids": torch.randint(8, 99, (1, 5))}
    for step in range(3):
        for _ in range(4):
            model(**batch).logits.sum().backward()
        penalty = handle.penalty()
        assert penalty is not None
        penalty.backward()
        optimiser.step()
        handle.after_step((step + 1) / 3)
        optimiser.zero_grad()
    masks = [p.piece.mask for p in handle.placed if isinstance(p.piece, Masked)]
    assert all(int(mask.sum()) == 2 for mask in masks)


def test_sizes_come_from_files_and_checkpoints(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Sized(rank=4))
    for number, placed in enumerate(handle.placed):
        assert isinstance(placed.piece, LowRank)
        placed.piece.cut(1 + number % 3)
    batch = {"input_ids": torch.randint(8, 99, (1, 5))}
    output, count = model_output(model, batch), handle.count()
    path, state = handle.save(tmp_path / "a.safetensors"), handle.training_state()
    handle.detach()
    loaded = inlay.load(model, path)
    assert loaded.count() == count and torch.equal(model_output(model, batch), output)
    loaded.detach()
    resumed = inlay.attach(model, Sized(rank=4))
    resumed.load_training_state(state)
    assert resumed.count() == count and torch.equal(model_output(model, batch), output)
    ids = {id(p) for p in resumed.parameters()}
    assert ids == {id(p) for group in resumed.parameter_groups() for p in group.parameters}


def test_a_piece_inside_a_piece_exports_what_it_says_itself(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Gated(inner=inlay.Prefix(length=2, mlp=4)))
    perturb(handle)
    names = {name.rsplit("/", 1)[1] for name in handle.named_tensors()}
    assert names == {"gate", "inner.k", "inner.v"}
    loaded = inlay.load(model, handle.save(tmp_path / "a.safetensors"), name="loaded")
    assert not [m for m in model.inlays.pieces("loaded").modules() if isinstance(m, OncePerPass)]
    batch = {"input_ids": torch.randint(8, 99, (1, 5))}
    with inlay.rows(model, ["default"]):
        expected = model_output(model, batch)
    with inlay.rows(model, [loaded.name]):
        assert relative_error(model_output(model, batch), expected) < 1e-5


def test_methods_with_a_method_in_a_field_can_be_written() -> None:
    spec = Gated(inner=inlay.LoRA(rank=3), start=0.25)
    assert inlay.parse(repr(spec)) == spec
    assert inlay.parse("Gated(inner=LoRA(rank=3), start=0.25)") == spec
