"""What runs shared prefix of all rows must equal what runs in every row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

import inlay
from inlay.laws.batches import pad_batch
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from inlay.runtime.container import stack_hooks
from tests import zoo

SPECS = {
    "prompt": inlay.Prompt(length=4),
    "short": inlay.Prompt(length=1),
    "lora": inlay.LoRA(rank=2),
    "prefix": inlay.Prefix(length=3, mlp=5),
    "all": inlay.LoRA(rank=1) + inlay.Prefix(length=1, mlp=None) + inlay.Prompt(length=2),
}
ROWS = ["prompt", None, "lora", "prefix", "short", ("lora", "prompt"), "all", "prompt"]
WHOLE = ["llama", "qwen2", "qwen3", "gpt2", "opt", "gpt_neox"]
NEW = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
OPENING = torch.randint(8, 99, (12,), generator=torch.Generator().manual_seed(7))


def dressed(family: str, names: Any = tuple(SPECS)) -> Any:
    model = zoo.fresh(family)
    for i, name in enumerate(names):
        torch.manual_seed(i)
        perturb(inlay.attach(model, SPECS[name], name=name))
    return model


def batch(count: int, side: str, opening: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for i in range(count):
        rest = torch.randint(8, 99, (3 + 2 * (i % 3),), generator=generator)
        ids = torch.cat((OPENING[:opening], rest))[None]
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return pad_batch(made, side)


@contextmanager
def plainly(model: Any) -> Iterator[None]:
    """Without anything running apart."""
    front = stack_hooks(model)[0].prefix
    assert front is not None
    front.enabled = False
    try:
        yield
    finally:
        front.enabled = True


def passes(model: Any, inputs: dict[str, Tensor]) -> list[tuple[int, int]]:
    """The sizes `[rows, positions]` that the first block saw in one pass."""
    seen: list[tuple[int, int]] = []
    block = stack_hooks(model)[0].stack.layers[0]  # type: ignore[union-attr]
    hook = block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2]))
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    return [tuple(shape) for shape in seen]


def gradients(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits on real positions, and the gradient of a loss that weighs them all differently."""
    model.zero_grad()
    logits = model(**inputs, use_cache=False).logits
    logits = logits[inputs["attention_mask"].bool()]
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3))
    (logits.log_softmax(-1) * weights).sum().backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return logits.detach(), found


@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("opening", [0, 12])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_states_and_gradients_equal_the_plain_way(
    family: str, side: str, opening: int, checkpointed: bool
) -> None:
    model = dressed(family)
    if checkpointed:
        model.activation_checkpointing_enable()
        model.train()
        zoo.drop_nothing(model)
    inputs = batch(16, side, opening)
    with inlay.rows(model, [name for name in ROWS for _ in range(2)]):
        logits, found = gradients(model, inputs)
        with plainly(model):
            plain, wanted = gradients(model, inputs)
    assert relative_error(logits, plain) < 1e-4
    assert found.keys() == wanted.keys()
    for name, grad in found.items():
        assert relative_error(grad, wanted[name]) < 2e-3, name


@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize("opening", [0, 12])
@pytest.mark.parametrize("side", ["left", "none"])
@pytest.mark.parametrize(
    "more",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}],
    ids=["greedy", "beams", "static", "no cache"],
)
def test_generation_equals_the_plain_way(
    family: str, opening: int, side: str, more: dict[str, Any]
) -> None:
    model = dressed(family)
    inputs = batch(8, "left", opening)
    if side == "none":
        inputs = {key: value[:1].expand(8, -1) for key, value in inputs.items()}
        inputs["input_ids"] = inputs["input_ids"].clone()
        inputs["input_ids"][:, -1] = torch.arange(20, 28)
    told = {"output_scores": True, "return_dict_in_generate": True}
    with torch.no_grad(), inlay.rows(model, ROWS):
        ours = model.generate(**inputs, **NEW, **more, **told)
        with plainly(model):
            plain = model.generate(**inputs, **NEW, **more, **told)
    assert torch.equal(ours.sequences, plain.sequences)
    for a, b in zip(ours.scores, plain.scores, strict=True):
        assert relative_error(a.exp(), b.exp()) < 1e-4


def test_a_prompt_runs_once_for_all_rows() -> None:
    model = dressed("llama", ["prompt"])
    assert passes(model, batch(6, "right")) == [(1, 4), (6, 7)]


def test_two_inlays_in_front_run_once_each() -> None:
    model = dressed("llama", ["prompt", "short", "lora"])
    with inlay.rows(model, ["prompt", "prompt", "lora", "short", ("lora", "prompt"), None]):
        model(**batch(6, "right"))  # measures how the base lays out rows and numbers positions
        assert passes(model, batch(6, "right")) == [(3, 4), (6, 7)]


@pytest.mark.parametrize("side", ["left", "right"])
def test_an_opening_that_all_rows_share_runs_once(side: str) -> None:
    model = dressed("llama", ["lora"])
    assert passes(model, batch(6, side, 12)) == [(1, 12), (6, 7)]
    single = batch(1, side, 12)
    assert passes(model, single) == [(1, 15)]
    different = batch(6, side, 12)
    column = different["attention_mask"][3].cumsum(0).eq(2).int().argmax()
    different["input_ids"][3, column] = 8 if different["input_ids"][3, column] != 8 else 9
    assert passes(model, different) == [(6, 19)]


def test_equal_rows_keep_one_token_each() -> None:
    model = dressed("llama", ["lora"])
    row = batch(1, "right", 12)
    inputs = {key: value.expand(5, -1) for key, value in row.items()}
    assert passes(model, inputs) == [(1, 14), (5, 1)]


def test_the_opening_of_every_row_is_found_in_generation_too() -> None:
    model = dressed("llama", ["prompt"])
    seen: list[tuple[int, ...]] = []
    block = model.model.layers[0]
    hook = block.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape[:2]))
    model.generate(**batch(4, "left", 12), **NEW)
    hook.remove()
    assert [tuple(shape) for shape in seen[:3]] == [(1, 16), (4, 7), (4, 1)]


def test_requested_hidden_states_come_whole() -> None:
    model = dressed("llama", ["lora", "prompt"])
    inputs = batch(4, "right", 12)
    with torch.no_grad(), inlay.rows(model, ["lora", "prompt", "lora", "prompt"]):
        ours = model(**inputs, output_hidden_states=True)
        with plainly(model):
            plain = model(**inputs, output_hidden_states=True)
    seen = inputs["attention_mask"].bool()
    for a, b in zip(ours.hidden_states, plain.hidden_states, strict=True):
        assert a.shape == b.shape
        assert relative_error(a[seen], b[seen]) < 1e-4


def test_given_positions_are_kept() -> None:
    model = dressed("gpt2", ["prompt", "lora"])
    inputs = batch(4, "left", 12)
    counted = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    seen = inputs["attention_mask"].bool()
    for positions in (counted, counted + 3):
        with torch.no_grad():
            ours = model(**inputs, position_ids=positions).logits
            with plainly(model):
                plain = model(**inputs, position_ids=positions).logits
        assert relative_error(ours[seen], plain[seen]) < 1e-4


def test_rows_requested_in_the_middle_of_a_text_are_refused() -> None:
    model = dressed("llama", ["prompt", "short"])
    inputs = batch(2, "right")
    cache = DynamicCache(config=model.config)
    following = torch.tensor([[9], [9]])
    with torch.no_grad():
        with inlay.rows(model, ["prompt", "prompt"]):
            model(**inputs, past_key_values=cache)
        mask = torch.cat((inputs["attention_mask"], torch.ones_like(following)), 1)
        with inlay.rows(model, ["prompt", "short"]), pytest.raises(inlay.errors.RowsError):
            model(following, attention_mask=mask, past_key_values=cache)


def test_a_prompt_that_takes_too_many_positions_is_refused() -> None:
    model = dressed("gpt2", ["prompt"])
    ids = torch.full((2, 61), 9)
    with pytest.raises(inlay.errors.DataError, match="64 positions"):
        model(ids)


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_sliding_windows_keep_the_plain_way_unless_all_is_within(family: str) -> None:
    model = dressed(family, ["prompt"])
    long = batch(3, "right")
    short = {key: value[:, :2] for key, value in long.items()}
    assert passes(model, long) == [(3, 11)]
    assert passes(model, {**short, "use_cache": False}) == [(1, 4), (3, 2)]
    with torch.no_grad():
        ours = model(**short, use_cache=False).logits
        with plainly(model):
            plain = model(**short, use_cache=False).logits
    assert relative_error(ours, plain) < 1e-4


def test_nothing_is_left_behind() -> None:
    model = dressed("llama", ["prompt"])
    before = set(vars(model.model.layers[0].self_attn))
    model(**batch(3, "right"))
    inlay.attached(model)["prompt"].detach()
    assert "inlay_extra_kv" in before
    assert "inlay_extra_kv" not in vars(model.model.layers[0].self_attn)
    assert model.config._attn_implementation == "sdpa"
