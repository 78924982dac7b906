"""No pass asks its device for numbers: what needs them is known before, or is not done."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import DynamicCache, StaticCache

import inlay
from inlay.core.method import Spec
from inlay.errors import DataError
from inlay.laws.batches import pad_batch
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from inlay.runtime import stack_inputs
from inlay.runtime.container import stack_hooks
from inlay.runtime.openings import known_openings
from tests import zoo

SPECS: dict[str, Spec | Any] = {
    "LoRA": inlay.LoRA(rank=2),
    "Houlsby": inlay.Houlsby(bottleneck=3),
    "IA3": inlay.IA3(),
    "BitFit": inlay.BitFit(),
    "Prefix": inlay.Prefix(length=3, mlp=None),
    "Prefix with MLP": inlay.Prefix(length=3, mlp=5),
    "Prefix that shifts": inlay.Prefix(length=3, mlp=None, shifts=True),
    "Prompt": inlay.Prompt(length=4),
    "PTuning": inlay.PTuning(length=3, encoder="mlp"),
    "Infix": inlay.Infix(length=3),
    "Sparse": inlay.Sparse(keep=0.1),
    "DiffPruning": inlay.DiffPruning(gate=0.7),
    "sum": inlay.LoRA(rank=2)
    + inlay.Prompt(length=2)
    + inlay.Prefix(length=1, mlp=None, shifts=True),
}
WAITS = {
    "aten::_local_scalar_dense": "reads a number",
    "aten::equal": "compares",
    "aten::is_nonzero": "reads a truth value",
    "aten::nonzero": "counts",
    "aten::masked_select": "counts",
    "aten::bincount": "counts",
    "aten::_unique2": "counts",
    "aten::lift_fresh": "copies numbers to the device",
}
"""Operations for which a CPU waits for a device."""


class Waits(TorchDispatchMode):
    """Notes the operations for which a CPU would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict | None = None
    ) -> Any:
        name = func.name().split(".")[0]
        if name in WAITS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def _tensors_are_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack_inputs, "HOST", "no CPU")


def dressed(family: str, spec: Any) -> Any:
    model = zoo.fresh(family)
    for number, name in enumerate(("a", "b")):
        torch.manual_seed(number)
        perturb(inlay.attach(model, spec, name=name))
    return model


def batch(family: str, side: str = "right") -> dict[str, Tensor]:
    """Four rows of different lengths with a common opening."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in (14, 12, 14, 13):
        ids = torch.randint(8, 60, (1, length), generator=generator)
        ids[:, :10] = torch.arange(20, 30)
        rows.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    inputs = pad_batch(rows, side)
    if family == "t5":
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :5]
    return inputs


def train(model: Any, inputs: dict[str, Tensor]) -> None:
    output = model(**inputs)
    logits = output.get("logits")
    states: Tensor = output.last_hidden_state if logits is None else logits
    if states.requires_grad:
        states.float().sum().backward()


def decode(model: Any, inputs: dict[str, Tensor], cache: Any, masked: bool) -> None:
    ids = inputs["input_ids"][:, :12]
    mask = torch.ones_like(ids).index_fill(1, torch.tensor([0]), 0) if masked else None
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask, past_key_values=cache)
        for number in range(12, 14):
            mask = torch.ones(len(ids), number + 1, dtype=torch.long)
            model(input_ids=ids[:, :1], attention_mask=mask, past_key_values=cache)


def waits(model: Any, run: Any, rows: Any) -> Counter[str]:
    """What a pass waits for that is not its first one with these rows, and how often."""
    with nullcontext() if rows is None else inlay.rows(model, rows):
        run()
        with Waits() as noted:
            run()
    return Counter(noted.names)


ROWS = [["a"], ["a", None, "b", "a"], [None]]


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "mistral"])
@pytest.mark.parametrize("method", SPECS)
def test_a_pass_with_gradients_waits_for_nothing(family: str, method: str) -> None:
    if family == "t5" and method in ("Prefix that shifts", "sum"):
        pytest.skip("has no positions")
    model, inputs = dressed(family, SPECS[method]), batch(family)
    bare = waits(model, lambda: train(zoo.fresh(family), inputs), None)
    for rows in ROWS:
        assert not waits(model, lambda: train(model, inputs), rows) - bare, rows


DECODED = [(family, method) for family in ("llama", "gpt2") for method in SPECS]
IN_ROWS = [("olmo2", "Prompt"), ("olmo2", "sum"), ("gemma3", "Prompt")]
"""Prompts that run in their rows."""


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize(("family", "method"), [*DECODED, *IN_ROWS])
def test_decoding_waits_for_nothing(family: str, method: str, kind: Any) -> None:
    model, bare, inputs = dressed(family, SPECS[method]), zoo.model(family), batch(family)

    def run(model: Any) -> None:
        more = {"max_cache_len": 20} if kind is StaticCache else {}
        decode(model, inputs, kind(config=model.config, **more), masked)

    masked = (family, method) in IN_ROWS  # of a mask transformers asks the device itself
    expected = waits(model, lambda: run(bare), None)
    for rows in ROWS:
        assert not waits(model, lambda: run(model), rows) - expected, rows


def sizes(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
    """The logits of a pass, and the sizes `[rows, positions]` that the first block saw."""
    seen: list[tuple[int, int]] = []
    block = stack_hooks(model)[0].stack.layers[0]
    hook = block.register_forward_pre_hook(
        lambda module, args: seen.append(tuple(args[0].shape[:2]))
    )
    with torch.no_grad():
        logits = model(**inputs).logits
    hook.remove()
    return logits, seen


@pytest.mark.parametrize("method", ["LoRA", "Prefix with MLP", "Prompt"])
def test_an_opening_that_the_cpu_copy_shows_runs_once_without_asking(method: str) -> None:
    model, inputs = dressed("llama", SPECS[method]), batch("llama")
    prefix = stack_hooks(model)[0].prefix
    assert prefix is not None
    prompt = 4 if method == "Prompt" else 0
    with inlay.rows(model, ["a"]):
        plain, whole = sizes(model, inputs)
        moved = {name: tensor.clone() for name, tensor in inputs.items()}
        with known_openings([prefix.openings], [(inputs, moved)]), Waits() as noted:
            logits, parts = sizes(model, moved)
    assert whole[-1] == (4, 14)
    assert parts == [(1, 10 + prompt), (4, 4)]
    assert noted.names.count("aten::_local_scalar_dense") <= 2  # transformers' own, of the mask
    text = inputs["attention_mask"].bool()
    assert relative_error(logits[text], plain[text]) < 1e-4


def test_tensors_made_of_a_batch_with_an_opening_are_looked_at() -> None:
    model, inputs = dressed("llama", SPECS["LoRA"]), batch("llama")
    prefix = stack_hooks(model)[0].prefix
    assert prefix is not None
    flipped = {name: tensor.flip(0) for name, tensor in inputs.items()}
    with inlay.rows(model, ["a"]), known_openings([prefix.openings], [(inputs, inputs)]):
        assert sizes(model, flipped)[1] == [(1, 10), (4, 4)]
        flipped["input_ids"][2, 3] = 9
        assert sizes(model, flipped)[1] == [(4, 14)]


def test_other_tensors_than_those_of_the_batch_get_no_opening_of_it() -> None:
    model, inputs = dressed("llama", SPECS["LoRA"]), batch("llama")
    prefix = stack_hooks(model)[0].prefix
    assert prefix is not None
    other = dict(inputs, input_ids=torch.randint(8, 60, (4, 14)))
    with inlay.rows(model, ["a"]), known_openings([prefix.openings], [(other, other)]):
        assert sizes(model, inputs)[1] == [(4, 14)]


def moved(noted: Any) -> Any:
    """A batch on another device, as far as objects can tell."""
    return {name: tensor.clone() for name, tensor in noted.items()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("method", ["LoRA", "Prefix with MLP", "Prompt"])
def test_a_note_of_the_opening_goes_where_the_batch_goes(family: str, method: str) -> None:
    model, inputs = dressed(family, SPECS[method]), batch(family)
    noted = inlay.note_opening(inputs)
    assert noted.keys() - inputs.keys() == {"inlay_opening"}
    assert noted["inlay_opening"].shape == (4, 10, 0, 0)
    prompt = 4 if method == "Prompt" else 0
    with inlay.rows(model, ["a"]):
        plain, whole = sizes(model, inputs)
        with Waits() as waited:
            logits, parts = sizes(model, moved(noted))
        assert sizes(model, inputs)[1] == whole  # nothing of the note is left
    assert whole[-1] == (4, 14)
    assert parts == [(1, 10 + prompt), (4, 4)]
    assert waited.names.count("aten::_local_scalar_dense") <= 2  # transformers' own, of the mask
    text = inputs["attention_mask"].bool()
    assert relative_error(logits[text], plain[text]) < 1e-4


def test_a_note_is_of_the_batch_that_it_is_in() -> None:
    model, inputs = dressed("llama", SPECS["LoRA"]), batch("llama")
    with inlay.rows(model, ["a"]):
        with pytest.raises(ValueError, match="exactly one"):
            model(**inlay.note_opening(inputs), inputs_embeds=torch.zeros(4, 14, 32))
        other = torch.randint(8, 60, (4, 14))
        with torch.no_grad():
            model.base_model(input_ids=other, attention_mask=inputs["attention_mask"])
        assert sizes(model, dict(inputs, input_ids=other))[1] == [(4, 14)]


def test_a_table_of_positions_shares_no_opening_behind_padding() -> None:
    inputs = batch("llama", "left")
    noted = inlay.note_opening(inputs)
    assert noted["inlay_opening"].shape == (4, 10, 1, 0)
    for family, shared in (("llama", True), ("gpt2", False)):
        model = dressed(family, SPECS["LoRA"])
        with inlay.rows(model, ["a"]):
            logits, parts = sizes(model, moved(noted))
            plain, _ = sizes(model, inputs)
        assert (len(parts) > 1) == shared
        text = inputs["attention_mask"].bool()
        assert relative_error(logits[text], plain[text]) < 1e-4


def test_a_batch_on_a_device_gets_no_note() -> None:
    ids = torch.zeros(2, 9, dtype=torch.long, device="meta")
    with pytest.raises(DataError, match="on meta already"):
        inlay.note_opening({"input_ids": ids})
    positions = {"input_ids": torch.zeros(2, 9).long(), "position_ids": torch.arange(9)[None]}
    assert inlay.note_opening(positions) is positions


def test_a_virtual_token_without_a_vector_never_gets_one() -> None:
    model = dressed("llama", SPECS["PTuning"])
    ids = torch.tensor([[9, model.config.vocab_size + 3, 9]])
    with inlay.rows(model, ["a"]), pytest.raises(RuntimeError, match="index"):
        model(input_ids=ids)
