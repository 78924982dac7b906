"""Rows, exactly: E[token] + δ, trained and saved whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

import inlay
from inlay.errors import BaseError, MergeError, SpecError
from inlay.files import format as file_format
from tests import zoo
from tests.methods import exact
from tests.tasks import tiny as words

TOKENS = (9, 12, 99)


def with_new_token(family: str, seed: int) -> Any:
    """A model with one more token, whose row is random."""
    model = zoo.fresh(family)
    torch.manual_seed(seed)
    model.resize_token_embeddings(100, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[99].normal_()
        head = model.get_output_embeddings()
        if head is not None and head.weight is not model.get_input_embeddings().weight:
            head.weight[99].normal_()
    return model


def inputs() -> dict[str, torch.Tensor]:
    ids = torch.tensor([[9, 20, 99, 31, 12], [21, 22, 23, 24, 25]])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_equals_a_base_with_these_rows(family: str) -> None:
    model = with_new_token(family, 1)
    handle = inlay.attach(model, inlay.Rows(tokens=TOKENS))
    for placed in handle.placed:
        placed.piece.rows.data.normal_()
    output = exact.run(model, inputs())
    plain = with_new_token(family, 1)
    with torch.no_grad():
        for placed in handle.placed:
            host = plain.get_submodule(name_of(model, placed.site.host))
            host.weight[list(TOKENS)] = placed.piece.rows.detach()
    torch.testing.assert_close(output, exact.run(plain, inputs()), rtol=1e-4, atol=1e-4)


def name_of(model: Any, module: Any) -> str:
    return next(name for name, part in model.named_modules() if part is module)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_tied_head_has_the_same_rows(family: str) -> None:
    model = with_new_token(family, 1)
    handle = inlay.attach(model, inlay.Rows(tokens=TOKENS))
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    parameters = {id(placed.piece.rows) for placed in handle.placed}
    assert len(handle.placed) == 2 and len(parameters) == (1 if tied else 2)
    assert handle.count() == len(parameters) * 3 * 32


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_new_rows_are_learned_saved_and_brought_to_a_base_with_others(
    family: str, tmp_path: Path
) -> None:
    model = with_new_token(family, 1)
    handle = inlay.attach(model, inlay.Rows(tokens=(-1,)) + inlay.LoRA(rank=2))
    optimiser = torch.optim.AdamW(handle.parameters(), lr=0.1)
    for _ in range(3):
        model(**inputs()).logits.logsumexp(-1).mean().backward()
        optimiser.step()
    path = handle.save(tmp_path / "rows.safetensors")
    other = with_new_token(family, 2)
    assert not torch.equal(exact.run(other, inputs()), exact.run(model, inputs()))
    loaded = inlay.load(other, path)
    torch.testing.assert_close(
        exact.run(other, inputs()), exact.run(model, inputs()), rtol=1e-4, atol=1e-5
    )
    loaded.detach()
    fresh = exact.run(with_new_token(family, 2), inputs())
    assert torch.equal(exact.run(other, inputs()), fresh)
    with pytest.raises(inlay.InlayError, match="another base|no token"):
        inlay.load(zoo.fresh(family), path)  # its table was never resized
    assert any(name.endswith("rows/rows") for name in file_format.read(path).tensors)


def test_only_the_chosen_tokens_change() -> None:
    model = zoo.fresh("llama")
    base = exact.run(model, inputs_without_new())
    handle = inlay.attach(model, inlay.Rows(tokens=(9,), at="embed"))
    handle.placed[0].piece.rows.data.normal_()
    changed = exact.run(model, inputs_without_new())
    assert torch.equal(changed[1], base[1]) and not torch.equal(changed[0], base[0])


def inputs_without_new() -> dict[str, torch.Tensor]:
    return {name: tensor % 99 for name, tensor in inputs().items()}


def test_refusals() -> None:
    with pytest.raises(SpecError, match="tokens are ids, each once"):
        inlay.Rows(tokens=(3, 3))
    with pytest.raises(SpecError, match="there is no token 99 among the 99"):
        inlay.attach(zoo.fresh("llama"), inlay.Rows(tokens=(99,)))
    with pytest.raises(MergeError, match="cannot be folded"):
        inlay.attach(zoo.fresh("llama"), inlay.Rows()).merge()


def tokenizer_with(*tokens: str) -> Any:
    """The tokenizer of the tiny models with more tokens than their embeddings have rows."""
    tokenizer = words.tokenizer("decoder", bos=True)
    tokenizer.add_tokens([f"<filler-{n}>" for n in range(len(tokenizer), 99)])
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def fitted(family: str, tokenizer: Any) -> Any:
    """A model with a row for every token, new ones at random."""
    model = zoo.fresh(family)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    return model


def test_tokens_added_to_a_tokenizer_are_learned_saved_and_loaded(tmp_path: Path) -> None:
    """As a user does it: the tokenizer is saved by itself, and another base gets its rows."""
    tokenizer = tokenizer_with("<speaker>", "<stage>")
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    model = fitted("llama", tokenizer)
    tokens = tuple(tokenizer.convert_tokens_to_ids(["<speaker>", "<stage>"]))
    assert tokens == (99, 100)
    handle = inlay.attach(model, inlay.Rows(tokens=tokens) + inlay.LoRA(rank=2))
    text = tokenizer("<speaker> the film <stage> was good", return_tensors="pt")
    ids = {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
    assert {99, 100} <= set(ids["input_ids"].flatten().tolist())
    optimiser = torch.optim.AdamW(handle.parameters(), lr=0.1)
    for _ in range(3):
        model(**ids).logits.logsumexp(-1).mean().backward()
        optimiser.step()
    path = handle.save(tmp_path / "rows.safetensors", tokenizer=tokenizer)
    again = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    other = fitted("llama", again)
    inlay.load(other, path, tokenizer=again)
    torch.testing.assert_close(exact.run(other, ids), exact.run(model, ids), rtol=1e-4, atol=1e-5)
    for wrong in (tokenizer_with("<stage>", "<speaker>"), tokenizer_with("<speaker>")):
        with pytest.raises(BaseError, match="tokenizer"):
            inlay.load(fitted("llama", again), path, tokenizer=wrong)
    with pytest.raises(inlay.InlayError) as refusal:
        inlay.load(zoo.fresh("llama"), path)
    assert "resize_token_embeddings" in str(refusal.value)
