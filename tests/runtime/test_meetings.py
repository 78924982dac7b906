"""Where parts meet: methods × rows × beams × caches × padding × checkpointing, all at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import inlay
from inlay.laws.batches import pad_batch
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error, weighted_sum
from tests import zoo

FOUR = {
    "lora": inlay.LoRA(rank=2),
    "prefix": inlay.Prefix(length=3, mlp=5),
    "prompt": inlay.Prompt(length=4),
    "houlsby": inlay.Houlsby(bottleneck=3),
    "short": inlay.Prompt(length=1),
    "all": inlay.LoRA(rank=1) + inlay.Prefix(length=1, mlp=None) + inlay.Prompt(length=2),
}
DECODERS = ["llama", "mistral", "gemma2", "gemma3", "gpt2", "gpt_neox", "opt", "phi3", "qwen3"]


def dressed(family: str) -> Any:
    model = zoo.fresh(family)
    for i, (name, spec) in enumerate(FOUR.items()):
        torch.manual_seed(i)
        perturb(inlay.attach(model, spec, name=name))
    return model


def singles(count: int, seq2seq: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(2)
    made = []
    for i in range(count):
        row = torch.randint(8, 99, (1, 4 + 2 * (i % 4)), generator=generator)
        made.append({"input_ids": row, "attention_mask": torch.ones_like(row)})
        if seq2seq:
            made[-1]["decoder_input_ids"] = torch.randint(8, 99, (1, 3), generator=generator)
    return made


ROWS = ["prompt", None, "lora", "prefix", "houlsby", "short", ("lora", "prompt"), "all"]
NEW = {"max_new_tokens": 5, "min_new_tokens": 5, "do_sample": False, "pad_token_id": 0}


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(
    "more",
    [{}, {"num_beams": 3}, {"cache_implementation": "static"}, {"use_cache": False}],
    ids=["greedy", "beams", "static", "no cache"],
)
def test_eight_inlays_in_one_left_padded_generation(family: str, more: dict[str, Any]) -> None:
    model = dressed(family)
    rows = singles(8)
    with torch.no_grad():
        with inlay.rows(model, ROWS):
            together = model.generate(**pad_batch(rows, "left"), **NEW, **more)
        for i, (name, row) in enumerate(zip(ROWS, rows, strict=True)):
            with inlay.rows(model, [name]):
                alone = model.generate(**row, **NEW, **more)
            assert torch.equal(alone[0, -5:], together[i, -5:]), f"row {i}: {name}"


@pytest.mark.parametrize("family", ["t5", "mt5", "bart", "marian"])
@pytest.mark.parametrize("more", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_eight_inlays_in_one_encoder_decoder(family: str, more: dict[str, Any]) -> None:
    model = dressed(family)
    rows = singles(8)
    with torch.no_grad():
        with inlay.rows(model, ROWS):
            together = model.generate(**pad_batch(rows), **NEW, **more)
        for i, (name, row) in enumerate(zip(ROWS, rows, strict=True)):
            with inlay.rows(model, [name]):
                alone = model.generate(**row, **NEW, **more)
            assert torch.equal(alone[0, -5:], together[i, -5:]), f"row {i}: {name}"


@pytest.mark.parametrize("family", [*DECODERS, "bert", "roberta", "modernbert", "t5", "bart"])
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_of_a_mixed_padded_batch(family: str, checkpointed: bool) -> None:
    """Each inlay's gradient from the mixed batch is the sum of its rows' gradients alone."""
    model = dressed(family)
    rows = singles(8, model.config.is_encoder_decoder)
    handles = inlay.attached(model)

    def gradients() -> dict[str, list[torch.Tensor]]:
        made = {
            n: [p.grad for p in h.parameters() if p.grad is not None] for n, h in handles.items()
        }
        for handle in handles.values():
            for parameter in handle.parameters():
                parameter.grad = None
        return made

    for name, row in zip(ROWS, rows, strict=True):
        with inlay.rows(model, [name]):
            out = model_output(model, row)
        if out.requires_grad:
            weighted_sum(out).backward()
    alone = gradients()
    if checkpointed:
        model.train()
        zoo.drop_nothing(model)
        model.activation_checkpointing_enable({"use_reentrant": False})
    with inlay.rows(model, ROWS):
        out = model_output(model, pad_batch(rows))
    total = 0
    for i, row in enumerate(rows):
        length = out.shape[1] if "decoder_input_ids" in row else row["input_ids"].shape[1]
        total = total + weighted_sum(out[i : i + 1, :length])
    total.backward()
    mixed = gradients()
    for name in handles:
        assert len(alone[name]) == len(mixed[name]) > 0
        size = max(float(g.abs().max()) for g in alone[name])
        for x, y in zip(alone[name], mixed[name], strict=True):
            assert float((x - y).abs().max()) < 3e-4 * size, name


def test_sampling_and_several_returned_sequences_keep_their_rows() -> None:
    model = dressed("llama")
    rows = singles(3)
    names = ["prompt", None, "prefix"]
    with torch.no_grad():
        with inlay.rows(model, names):
            made = model.generate(
                **pad_batch(rows, "left"), max_new_tokens=4, min_new_tokens=4, do_sample=True,
                num_return_sequences=3, top_k=1, pad_token_id=0,
            )  # fmt: skip
        for i, (name, row) in enumerate(zip(names, rows, strict=True)):
            with inlay.rows(model, [name]):
                alone = model.generate(
                    **row, max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0
                )
            for copy in made[3 * i : 3 * i + 3]:
                assert torch.equal(copy[-4:], alone[0, -4:])


def test_a_full_context_leaves_room_for_keys_but_not_for_slots() -> None:
    """Keys take no positions: a prefix works at the very end of the context (64 here)."""
    model = zoo.fresh("bert")
    perturb(inlay.attach(model, inlay.Prefix(length=20, mlp=None)))
    assert model_output(model, {"input_ids": torch.ones(1, 64, dtype=torch.long)}).isfinite().all()


@pytest.mark.processor
def test_bf16_base_and_fp32_pieces() -> None:
    model = dressed("llama").bfloat16()
    for handle in inlay.attached(model).values():
        for parameter in handle.parameters():
            parameter.data = parameter.data.float()
    rows = singles(8)
    with inlay.rows(model, ROWS):
        out = model(**pad_batch(rows)).logits
        assert out.dtype == torch.bfloat16
        out.float().square().mean().backward()
    for handle in inlay.attached(model).values():
        assert all(
            p.grad is not None and p.grad.dtype == torch.float32 for p in handle.parameters()
        )


@pytest.mark.processor
def test_attach_to_a_bf16_base_makes_fp32_pieces() -> None:
    model = zoo.fresh("llama").bfloat16()
    for name, spec in FOUR.items():
        handle = inlay.attach(model, spec, name=name)
        assert {p.dtype for p in handle.parameters()} == {torch.float32}
    out = model_output(model, {"input_ids": torch.ones(1, 4, dtype=torch.long)})
    assert out.isfinite().all()


def test_a_cache_filled_without_the_prompt_is_refused() -> None:
    from inlay.errors import RowsError

    model = zoo.fresh("llama")
    out = model(input_ids=torch.ones(1, 4, dtype=torch.long), use_cache=True)
    inlay.attach(model, inlay.Prompt(length=3))
    with pytest.raises(RowsError, match="filled without the prompt"):
        model(
            input_ids=torch.ones(1, 1, dtype=torch.long),
            past_key_values=out.past_key_values,
            attention_mask=torch.ones(1, 5, dtype=torch.long),
        )


def test_rows_alone_equal_rows_together_forward() -> None:
    for family in ("llama", "t5", "bert"):
        model = dressed(family)
        rows = singles(8, family == "t5")
        with torch.no_grad():
            with inlay.rows(model, ROWS):
                together = model_output(model, pad_batch(rows))
            for i, (name, row) in enumerate(zip(ROWS, rows, strict=True)):
                with inlay.rows(model, [name]):
                    alone = model_output(model, row)
                assert relative_error(together[i : i + 1, : alone.shape[1]], alone) < 3e-5, (
                    family,
                    name,
                )


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_prefix_is_made_once_for_all_that_is_written(family: str, beams: int) -> None:
    model = zoo.fresh(family).eval()
    for number, length in enumerate((2, 3)):
        torch.manual_seed(number)
        perturb(inlay.attach(model, inlay.Prefix(length=length, mlp=None), name=f"p{number}"))
    made = []
    pieces = [p for one in inlay.attached(model).values() for _, _, p in zoo.pieces(one)]
    for piece in pieces:
        piece.register_forward_hook(lambda *_: made.append(1))
    inputs = {"input_ids": torch.arange(8, 20).reshape(2, 6), "attention_mask": torch.ones(2, 6)}

    def written() -> torch.Tensor:
        made.clear()
        with inlay.rows(model, ["p0", "p1"]):
            return model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, num_beams=beams)

    first = written()
    assert len(made) == len(pieces)
    for piece in pieces:
        for parameter in piece.parameters():
            parameter.data.mul_(-9)
    assert not torch.equal(written(), first)
    assert len(made) == len(pieces)
