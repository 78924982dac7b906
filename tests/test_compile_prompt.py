"""A compiled prompt answers as the prompt does, and costs no positions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay.laws.batches import pad_batch
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from tests import zoo
from tests.runtime.test_shared_prefix import NEW, WHOLE, batch

SPECS = {
    "prompt": inlay.Prompt(length=4),
    "two": inlay.Prompt(length=2) + inlay.LoRA(rank=2) + inlay.Prompt(length=3),
    "behind a prefix": inlay.Prefix(length=2, mlp=5) + inlay.Prompt(length=3),
    "behind tokens' room": inlay.Prefix(length=2, mlp=None, shifts=True) + inlay.Prompt(length=3),
}


@pytest.mark.parametrize("family", WHOLE)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_and_texts_stay(family: str, spec: Any, side: str) -> None:
    model = zoo.fresh(family)
    perturb(inlay.attach(model, spec))
    inputs, left = batch(4, side), batch(4, "left")
    seen = inputs["attention_mask"].bool()
    with torch.no_grad():
        prompted = model(**inputs).logits[seen]
        texts = model.generate(**left, **NEW)
        handle = inlay.compile_prompt(inlay.attached(model)["default"])
        assert not any(stack.prompts.pieces for stack in model.inlays.stacks)
        assert relative_error(model(**inputs).logits[seen], prompted) < 1e-4
        assert torch.equal(model.generate(**left, **NEW), texts)
        cached = model.generate(**left, **NEW, cache_implementation="static")
        assert torch.equal(cached, texts)
    assert handle.name == "default"


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_the_file_is_an_ordinary_prefix(family: str, tmp_path: Path) -> None:
    model = zoo.fresh(family)
    perturb(inlay.attach(model, inlay.Prompt(length=4)))
    inputs = batch(3, "right")
    with torch.no_grad():
        prompted = model(**inputs).logits
    file = inlay.compile_prompt(inlay.attached(model)["default"]).save(tmp_path / "p.safetensors")
    other = zoo.fresh(family)
    handle = inlay.load(other, file)
    assert handle.spec == inlay.Prefix(length=4, mlp=None, start=None, shifts=True)
    with torch.no_grad():
        assert relative_error(other(**inputs).logits, prompted) < 1e-4


def test_compiled_and_not_in_one_batch() -> None:
    model = zoo.fresh("gpt2")
    for name in ("a", "b"):
        perturb(inlay.attach(model, inlay.Prompt(length=4 if name == "a" else 2), name=name))
    inputs = batch(3, "left")
    positions = (inputs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    seen = inputs["attention_mask"].bool()
    names = ["a", "b", None]
    with torch.no_grad(), inlay.rows(model, names):
        prompted = model(**inputs, position_ids=positions).logits[seen]
    inlay.compile_prompt(inlay.attached(model)["a"])
    with torch.no_grad(), inlay.rows(model, names):
        after = model(**inputs, position_ids=positions).logits[seen]
    assert relative_error(after, prompted) < 1e-4


@pytest.mark.parametrize(
    ("family", "spec", "why"),
    [
        ("llama", inlay.LoRA(rank=2), "no prompt"),
        ("mistral", inlay.Prompt(length=2), "window|forgets"),
        ("bert", inlay.Prompt(length=2), "causal"),
        ("t5", inlay.Prompt(length=2), "causal"),
    ],
)
def test_what_cannot_be_compiled_stays(family: str, spec: Any, why: str) -> None:
    model = zoo.fresh(family)
    handle = inlay.attach(model, spec)
    with pytest.raises(inlay.errors.MergeError, match=why):
        inlay.compile_prompt(handle)
    assert inlay.attached(model) == {"default": handle}


def test_no_room_is_made_where_positions_are_not_given() -> None:
    with pytest.raises(inlay.errors.PortError, match="shifts=False"):
        inlay.attach(zoo.fresh("t5"), inlay.Prefix(length=2, mlp=None, shifts=True))


def test_a_text_that_no_longer_fits_is_refused() -> None:
    model = zoo.fresh("gpt2")
    inlay.attach(model, inlay.Prefix(length=4, mlp=None, shifts=True))
    with torch.no_grad():
        model(torch.full((1, 60), 9))
    with pytest.raises(inlay.errors.DataError, match="64 positions"):
        model(torch.full((1, 61), 9))


def test_shift_is_what_stands_between_positions() -> None:
    """A shifting prefix of the words' own keys is the words themselves."""
    model = zoo.fresh("gpt2")
    words = torch.tensor([[11, 12, 13]])
    text = torch.tensor([[21, 22, 23, 24]])
    with torch.no_grad():
        whole = model(torch.cat((words, text), 1)).logits[:, 3:]
        inlay.attach(model, inlay.Prefix(length=3, mlp=None, start=(11, 12, 13), shifts=True))
        assert relative_error(model(text).logits, whole) < 1e-4
        assert relative_error(model(**pad_batch([{"input_ids": text, "attention_mask": torch.ones_like(text)}]))
                   .logits, whole) < 1e-4  # fmt: skip
