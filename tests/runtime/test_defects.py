"""What goes wrong elsewhere, each defect by its number, and how it is here.

The defects were found in Hugging Face peft 0.21.2 by running it; a test says what happens there.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as hf

import inlay
from inlay.errors import PortError
from inlay.laws.batches import pad_batch
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error, weighted_sum
from tests import zoo

DECODERS = ("llama", "gpt2", "opt", "gpt_neox", "qwen2", "phi3")
NEW = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0}


def rows(count: int, longest: int = 9, seq2seq: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    made = []
    for number in range(count):
        ids = torch.randint(8, 99, (1, longest - 2 * number), generator=generator)
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        if seq2seq:
            made[-1]["decoder_input_ids"] = torch.randint(8, 99, (1, 4), generator=generator)
    return made


def unequal(kind: str) -> Any:
    """An encoder–decoder whose decoder is deeper than its encoder."""
    if kind == "bart":
        config = hf.BartConfig(**{**zoo.SEQ2SEQ, "encoder_layers": 2, "decoder_layers": 3})
        return hf.BartForConditionalGeneration(config).eval()
    config = hf.T5Config(**{**zoo.T5, "num_layers": 2, "num_decoder_layers": 3})
    return hf.T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("kind", ["t5", "bart", "t5 unequal", "bart unequal"])
@pytest.mark.parametrize(
    "spec",
    [
        inlay.Prefix(length=3, mlp=None),
        inlay.Prompt(length=3),
        inlay.Prompt(length=3, at="embed.target"),
    ],
    ids=["prefix", "prompt", "prompt of the target"],
)
def test_d1_every_trained_number_of_an_encoder_decoder_learns(kind: str, spec: Any) -> None:
    """There half of a prefix, a prompt or the vectors of P-tuning never get a gradient."""
    model = unequal(kind.split()[0]) if "unequal" in kind else zoo.fresh(kind)
    handle = inlay.attach(model, spec)
    perturb(handle)
    weighted_sum(model_output(model, pad_batch(rows(2, seq2seq=True)))).backward()
    for key, _, piece in zoo.pieces(handle):
        for name, parameter in piece.named_parameters():
            assert parameter.grad is not None, key
            seldom = parameter.grad.flatten(0, -2).abs().sum(-1)
            assert (seldom > 0).all(), f"{key}/{name}"


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "bart", "bert"])
@pytest.mark.parametrize(
    "spec", [inlay.Prefix(length=3, mlp=5), inlay.Prompt(length=3), inlay.PTuningV2(length=3)]
)
def test_d2_checkpointing_turned_on_afterwards(family: str, spec: Any) -> None:
    """There a prefix then crashes, for checkpointed blocks drop the cache that it lives in."""
    seq2seq = family in ("t5", "bart")
    model = zoo.fresh(family)
    handle = inlay.attach(model, spec)
    batch = pad_batch(rows(2, seq2seq=seq2seq))
    weighted_sum(model_output(model, batch)).backward()
    plain = [p.grad.clone() for p in handle.parameters()]
    for p in handle.parameters():
        p.grad = None
    model.activation_checkpointing_enable()
    model.train()
    zoo.drop_nothing(model)
    weighted_sum(model_output(model, batch)).backward()
    for p, before in zip(handle.parameters(), plain, strict=True):
        assert relative_error(p.grad, before) < 1e-3


@pytest.mark.parametrize(
    "spec",
    [
        inlay.PTuning(length=3, encoder="lstm"),
        inlay.PTuning(length=3, encoder="mlp"),
        inlay.Prefix(length=3, mlp=5),
        inlay.PTuningV2(length=3, mlp=5),
    ],
    ids=repr,
)
def test_d3_a_checkpoint_goes_back_where_it_came_from(spec: Any, tmp_path: Any) -> None:
    """There P-tuning loads what its MLP returned as what its MLP is given, without a word."""
    model = zoo.fresh("llama")
    virtual = torch.tensor([[99, 100, 101]]) if isinstance(spec, inlay.PTuning) else None
    single = rows(1)[0]["input_ids"]
    ids = single if virtual is None else torch.cat((virtual, single), 1)
    handle = inlay.attach(model, spec)
    perturb(handle)
    with torch.no_grad():
        trained = model(ids).logits
    state = {name: tensor.clone() for name, tensor in handle.training_state().items()}
    path = handle.save(tmp_path / "served.safetensors")
    perturb(handle)
    with torch.no_grad():
        assert relative_error(model(ids).logits, trained) > 1e-2
        handle.load_training_state(state)
        assert torch.equal(model(ids).logits, trained)
        handle.detach()
        served = inlay.load(model, path)
        assert relative_error(model(ids).logits, trained) < 1e-5
    assert served.spec == spec.exported()


@pytest.mark.parametrize(
    "specs",
    [
        (inlay.Prefix(length=3), inlay.Prefix(length=2, mlp=None)),
        (inlay.Prompt(length=3), inlay.Prompt(length=1)),
        (inlay.IA3(), inlay.IA3()),
        (inlay.PTuningV2(length=2), inlay.Prompt(length=3)),
    ],
    ids=["prefix", "prompt", "ia3", "mixed"],
)
def test_d4_every_row_is_served_by_the_inlay_it_names(specs: Any) -> None:
    """There `adapter_names` is accepted and all rows silently get the active adapter."""
    model = zoo.fresh("llama")
    for number, (name, spec) in enumerate(zip("ab", specs, strict=True)):
        torch.manual_seed(number)
        perturb(inlay.attach(model, spec, name=name))
    singles = rows(3)
    names = ["a", None, "b"]
    with torch.no_grad():
        with inlay.rows(model, names):
            mixed = model(**pad_batch(singles)).logits
        for number, (name, single) in enumerate(zip(names, singles, strict=True)):
            with inlay.rows(model, [name]):
                alone = model(**single).logits
            assert relative_error(mixed[number : number + 1, : alone.shape[1]], alone) < 1e-4


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize("spec", [inlay.Prefix(length=3), inlay.Prompt(length=3)], ids=repr)
@pytest.mark.parametrize("more", [{"cache_implementation": "static"}, {"use_cache": False}],
                         ids=["static", "no cache"])  # fmt: skip
def test_d5_static_caches_and_none(family: str, spec: Any, more: dict[str, Any]) -> None:
    """There both raise."""
    model = zoo.fresh(family)
    perturb(inlay.attach(model, spec))
    batch = pad_batch(rows(3), "left")
    with torch.no_grad():
        assert torch.equal(model.generate(**batch, **NEW, **more), model.generate(**batch, **NEW))


@pytest.mark.parametrize("spec", [inlay.Prompt(length=3), inlay.PTuningV2(length=3)], ids=repr)
def test_d7_labels_of_tokens_and_a_pooler_that_reads_cls(spec: Any) -> None:
    """There logits are longer than the labels, and the pooler reads a virtual token."""
    config = hf.BertConfig(**zoo.DIMS, **zoo.IDS, num_labels=3)
    batch = pad_batch(rows(2))
    tagger = hf.BertForTokenClassification(config).eval()
    perturb(inlay.attach(tagger, spec))
    out = tagger(**batch, labels=torch.ones_like(batch["input_ids"]))
    assert out.logits.shape == (2, 9, 3)
    assert torch.isfinite(out.loss)
    judge = hf.BertForSequenceClassification(config).eval()
    perturb(inlay.attach(judge, spec))
    seen = []
    judge.bert.pooler.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    states = []
    layer = judge.bert.encoder.layer[-1]
    layer.register_forward_hook(lambda module, args, out: states.append(out))
    with torch.no_grad():
        judge(**batch)
    last = states[0][0] if isinstance(states[0], tuple) else states[0]
    assert torch.equal(seen[0][:, 0], last[:, 0])


def test_d8_a_model_with_a_state_is_prompted_once_or_not_at_all() -> None:
    """There Mamba-2 is given the prompt anew at every step, and generates what it would not say."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "vocab_size": 99}
    config = hf.MambaConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model = hf.MambaForCausalLM(config).eval()
    with pytest.raises(PortError, match="PTuning"):
        inlay.attach(model, inlay.Prompt(length=3))
    perturb(inlay.attach(model, inlay.PTuning(length=3)))
    ids = torch.tensor([[99, 100, 101, 11, 12, 13]])
    told = {"return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad():
        made = model.generate(ids, attention_mask=torch.ones_like(ids), **NEW, **told)
        forced = model(made.sequences[:, :-1]).logits[:, -4:]
    assert relative_error(torch.stack(made.logits, 1), forced) < 1e-4


@pytest.mark.parametrize("family", ["t5", "mt5", "bart"])
@pytest.mark.parametrize(
    "spec",
    [
        inlay.Prompt(length=3),
        inlay.Prompt(length=2, at="embed.target"),
        inlay.Prompt(length=3) + inlay.Prompt(length=2, at="embed.target"),
        inlay.PTuningV2(length=2),
    ],
    ids=["encoder", "decoder", "both", "keys"],
)
def test_d9_training_and_generation_see_the_same_prompts(family: str, spec: Any) -> None:
    """There training prompts encoder and decoder, and generation the encoder alone."""
    model = zoo.fresh(family)
    perturb(inlay.attach(model, spec))
    batch = pad_batch(rows(2))
    told = {"return_dict_in_generate": True, "output_logits": True}
    with torch.no_grad():
        made = model.generate(**batch, **NEW, **told)
        forced = model(**batch, decoder_input_ids=made.sequences[:, :-1]).logits[:, -4:]
    assert relative_error(torch.stack(made.logits, 1), forced) < 1e-4


@pytest.mark.parametrize("family", DECODERS)
@pytest.mark.parametrize(
    "spec", [inlay.Prefix(length=3), inlay.Prompt(length=3), inlay.PTuning(length=2)], ids=repr
)
def test_d10_left_padding_does_not_change_a_row(family: str, spec: Any) -> None:
    """There the answer depends on the rest of the batch."""
    model = zoo.fresh(family)
    perturb(inlay.attach(model, spec))
    singles = rows(3)
    for single in singles:
        if isinstance(spec, inlay.PTuning):
            single["input_ids"][0, :2] = torch.tensor([99, 100])
    together = pad_batch(singles, "left")
    with torch.no_grad():
        whole = model(**together).logits
        for number, single in enumerate(singles):
            length = single["input_ids"].shape[1]
            assert relative_error(whole[number, -length:], model(**single).logits[0]) < 1e-4


@pytest.mark.parametrize("family", ["bert", "gpt2", "opt", "bart"])
def test_d11_a_prefix_takes_no_context(family: str) -> None:
    """There 59 of 64 tokens are the most behind a prefix of 5."""
    model = zoo.fresh(family)
    perturb(inlay.attach(model, inlay.Prefix(length=5)))
    ids = torch.full((1, 64), 9)
    more = {"decoder_input_ids": ids} if family == "bart" else {}
    with torch.no_grad():
        assert torch.isfinite(model(ids, **more).logits).all()


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_d12_a_prefix_is_seen_from_behind_a_sliding_window(family: str) -> None:
    """There the prefix leaves the window with the first tokens."""
    model = zoo.fresh(family)
    handle = inlay.attach(model, inlay.Prefix(length=3, mlp=None))
    perturb(handle)
    model(torch.randint(8, 99, (1, 20))).logits[0, -1].square().sum().backward()
    for key, _, piece in zoo.pieces(handle):
        for parameter in piece.parameters():
            assert parameter.grad is not None
            assert (parameter.grad.abs().sum((0, 2)) > 0).all(), key


@pytest.mark.parametrize(
    "spec",
    [
        inlay.Prefix(length=3, mlp=5),
        inlay.PTuning(length=3, encoder="lstm"),
        inlay.PTuning(length=3, encoder="mlp"),
        inlay.PTuningV2(length=3, mlp=5),
    ],
    ids=repr,
)
def test_d16_what_is_dropped_later_runs_once_a_step(spec: Any) -> None:
    """There the MLP computes the same rows for every row of the batch."""
    model = zoo.fresh("llama")
    inlay.attach(model, spec)
    seen: list[tuple[int, ...]] = []
    for module in model.inlays.pieces("default").shared.modules():
        if isinstance(module, (torch.nn.Linear, torch.nn.LSTM)):
            module.register_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape)))
    ids = torch.randint(8, 99, (16, 9))
    if isinstance(spec, inlay.PTuning):
        ids[:, :3] = torch.tensor([99, 100, 101])
    model(ids)
    parts = len(seen)
    assert parts in (2, 3)
    assert all(shape[-2] == 3 and len(shape) < 4 and shape.count(16) == 0 for shape in seen)


def test_d17_a_prefix_beside_a_lora_leaves_it_learning() -> None:
    """There the second method freezes the first and leaves it out of the checkpoint."""
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=2) + inlay.Prefix(length=3))
    perturb(handle)
    weighted_sum(model_output(model, pad_batch(rows(2)))).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in handle.parameters())
    kinds = {name.split("/")[2] for name in handle.named_tensors()}
    assert kinds == {"lora", "prefix"}
