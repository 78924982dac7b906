"""Passes under others' control: what a pass leaves to the base, to its caller and to backward."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

import inlay
from inlay.errors import PortError, RowsError, SiteError
from inlay.laws.case import perturb
from inlay.laws.compare import relative_error
from inlay.laws.learning import checkpointed
from inlay.runtime import attention
from tests import zoo

PREFIX = inlay.Prefix(length=3, mlp=None)
PROMPT = inlay.Prompt(length=4)
MLP = inlay.Prefix(length=3, mlp=5)


def large(model: Any) -> Any:
    """The model with weights so large that every mistake shows."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        with torch.no_grad():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.6 * parameter.shape[-1] ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


OWN: dict[str, Callable[[], Any]] = {
    "falcon": lambda: hf.FalconForCausalLM(
        hf.FalconConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, **zoo.IDS
        )
    ),
    "bloom": lambda: hf.BloomForCausalLM(
        hf.BloomConfig(vocab_size=99, hidden_size=32, n_layer=2, n_head=4, **zoo.IDS)
    ),
    "cohere2": lambda: hf.Cohere2ForCausalLM(
        hf.Cohere2Config(**zoo.GQA, head_dim=8, sliding_window=6)
    ),
}


def base(name: str) -> Any:
    """A new tiny base."""
    return large(OWN[name]()) if name in OWN else zoo.fresh(name)


def ids(rows: int, length: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(8, 99, (rows, length), generator=generator)


@torch.no_grad()
def logits(model: Any, **inputs: Any) -> Tensor:
    output: Tensor = model(**inputs).logits
    return output


class TestNamesOfAttention:
    @pytest.mark.parametrize(
        "spec", [inlay.LoRA(rank=2, at="mlp.up"), inlay.BitFit(at="mlp.down")], ids=repr
    )
    def test_a_base_that_compares_the_name_keeps_its_mask(self, spec: Any) -> None:
        model, text = base("falcon"), ids(2, 9)
        alone = logits(model, input_ids=text)
        inlay.attach(model, spec, name="a")
        with inlay.rows(model, [None]):
            assert torch.equal(logits(model, input_ids=text), alone)
        inlay.attached(model)["a"].enabled = False
        assert torch.equal(logits(model, input_ids=text), alone)

    def test_keys_are_refused_where_attention_does_not_ask_for_them(self) -> None:
        with pytest.raises((PortError, SiteError)):
            inlay.attach(base("falcon"), PREFIX)

    @pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
    def test_the_config_keeps_its_name(self, family: str) -> None:
        model = zoo.fresh(family)
        name = model.config._attn_implementation
        handle = inlay.attach(model, PREFIX)
        names = {c._attn_implementation for c in attention.configs(model)}
        assert names == {name}
        handle.detach()
        assert not any(
            isinstance(vars(m).get("config"), attention.Redirected) for m in model.modules()
        )

    def test_an_attention_that_compares_the_name_has_no_port(self) -> None:
        config = hf.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=99, n_positions=64)
        assert attention.has_port(hf.GPT2Model(config).h[0].attn)
        config.reorder_and_upcast_attn = True
        assert not attention.has_port(hf.GPT2Model(config).h[0].attn)


def continuously(model: Any, text: Tensor) -> list[Any]:
    """What continuous batching returns for each text."""
    results = model.generate_batch(
        [row.tolist() for row in text],
        generation_config=hf.GenerationConfig(
            max_new_tokens=3, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=hf.ContinuousBatchingConfig(
            num_blocks=16, block_size=32, max_batch_tokens=64
        ),
    )
    return [results[key] for key in sorted(results)]


class TestContinuousBatching:
    def test_what_adds_no_keys_works(self) -> None:
        model, text = base("llama"), ids(2, 5)
        perturb(inlay.attach(model, inlay.LoRA(rank=2), name="a"))
        expected = model.generate(text, max_new_tokens=3, do_sample=False, eos_token_id=None)
        results = continuously(model, text)
        assert [r.generated_tokens for r in results] == expected[:, 5:].tolist()

    def test_rows_that_its_thread_does_not_know_are_refused(self) -> None:
        model, text = base("llama"), ids(2, 5)
        inlay.attach(model, inlay.LoRA(rank=2), name="a")
        with inlay.rows(model, [None]):
            assert all("handle.enabled" in result.error for result in continuously(model, text))

    @pytest.mark.parametrize("spec", [PREFIX, PROMPT], ids=repr)
    def test_what_adds_keys_is_refused_in_our_words(self, spec: Any) -> None:
        model, text = base("llama"), ids(2, 5)
        inlay.attach(model, spec, name="a")
        for result in continuously(model, text):
            assert "generate_batch" in result.error and not result.generated_tokens


class TestPacked:
    @pytest.mark.parametrize("family", ["gemma3", "olmo2", "cohere2", "gptj", "llama", "gpt2"])
    def test_right_or_refused(self, family: str) -> None:
        model = base(family)
        perturb(inlay.attach(model, PROMPT, name="a"))
        one, two = ids(1, 5, 1), ids(1, 7, 2)
        packed = torch.cat((one, two), 1)
        positions = torch.cat((torch.arange(5), torch.arange(7)))[None]
        alone = torch.cat([logits(model, input_ids=x, use_cache=False) for x in (one, two)], 1)
        inputs = {"input_ids": packed, "position_ids": positions, "use_cache": False}
        if family in ("llama", "gpt2"):
            assert relative_error(logits(model, **inputs), alone) < 5e-6
        else:
            with pytest.raises(PortError, match="a row of its own"):
                logits(model, **inputs)

    def test_an_opening_that_only_the_first_text_has_is_not_shared(self) -> None:
        model = base("llama")
        perturb(inlay.attach(model, inlay.LoRA(rank=2), name="a"))
        first, others = ids(1, 10, 1), [ids(1, 6, 2), ids(1, 6, 3)]
        packed = torch.cat([torch.cat((first, other), 1) for other in others])
        positions = torch.cat((torch.arange(10), torch.arange(6)))[None].expand(2, -1)
        output = logits(model, input_ids=packed, position_ids=positions, use_cache=False)
        for row, other in enumerate(others):
            alone = logits(model, input_ids=other)
            assert relative_error(output[row : row + 1, 10:], alone) < 5e-6


class TestContinuedCache:
    @pytest.mark.parametrize("family", ["gemma3", "olmo2", "cohere2", "gptj", "bloom", "llama"])
    def test_what_callers_count_is_the_text(self, family: str) -> None:
        model, text = base(family), ids(2, 9)
        perturb(inlay.attach(model, PROMPT, name="a"))
        whole = logits(model, input_ids=text, use_cache=False)
        with torch.no_grad():
            begun = model(text[:, :5], use_cache=True)
            cache = begun.past_key_values
            assert cache.get_seq_length() == 5
            copied = copy.deepcopy(cache)
            assert copied.get_seq_length() == 5
            mask = torch.ones(2, cache.get_seq_length() + 4, dtype=torch.long)
            rest = model(text[:, 5:], past_key_values=cache, attention_mask=mask)
            assert cache.get_seq_length() == 9 and copied.get_seq_length() == 5
        assert relative_error(torch.cat((begun.logits, rest.logits), 1), whole) < 1e-5
        expected = model.generate(text, max_new_tokens=3, do_sample=False, eos_token_id=None)
        result = model.generate(
            text, past_key_values=copied, max_new_tokens=3, do_sample=False, eos_token_id=None
        )
        assert torch.equal(result, expected)

    @pytest.mark.parametrize("family", ["olmo2", "gemma3", "gptj", "llama"])
    @pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
    def test_a_static_cache_is_one_pass(self, family: str, masked: bool) -> None:
        model, text = base(family), ids(3, 9)
        perturb(inlay.attach(model, PROMPT, name="a"))
        perturb(inlay.attach(model, inlay.Prompt(length=2), name="b"))
        cache = hf.StaticCache(config=model.config, max_cache_len=14)
        with inlay.rows(model, ["a", None, "b"]):
            whole = logits(model, input_ids=text, use_cache=False)
            parts = [logits(model, input_ids=text[:, :5], past_key_values=cache)]
            for end in range(6, 10):
                more = {"attention_mask": torch.ones_like(text[:, :end])} if masked else {}
                token = text[:, end - 1 : end]
                parts.append(logits(model, input_ids=token, past_key_values=cache, **more))
        assert relative_error(torch.cat(parts, 1), whole) < 1e-4

    @pytest.mark.parametrize("family", ["olmo2", "gemma3", "gptj", "llama"])
    def test_generate_computes_the_same_with_a_static_cache(self, family: str) -> None:
        model, text = base(family), ids(3, 9)
        mask = torch.ones_like(text)
        if family != "gptj":  # which is not inert to padding
            mask[1, :3] = 0
        perturb(inlay.attach(model, PROMPT, name="a"))
        perturb(inlay.attach(model, inlay.Prompt(length=2), name="b"))
        options: dict[str, Any] = {
            "max_new_tokens": 4, "do_sample": False, "eos_token_id": None, "pad_token_id": 0,
            "return_dict_in_generate": True, "output_logits": True, "disable_compile": True,
        }  # fmt: skip
        with inlay.rows(model, ["a", None, "b"]):
            written = [
                model.generate(text, attention_mask=mask, **options, **more)
                for more in ({}, {"cache_implementation": "static"})
            ]
        grown, static = (torch.stack(output.logits) for output in written)
        assert torch.equal(written[0].sequences, written[1].sequences)
        assert relative_error(static, grown) < 1e-4

    @pytest.mark.parametrize("family", ["gemma3", "llama"])
    def test_other_rows_are_refused(self, family: str) -> None:
        model, text = base(family), ids(2, 9)
        inlay.attach(model, PROMPT, name="a")
        cache = model(text[:, :5], use_cache=True).past_key_values
        with inlay.rows(model, [None]), pytest.raises(RowsError, match="start the generation"):
            model(text[:, 5:], past_key_values=cache)


class TestPositions:
    """GPT-2, left padding, no position ids: the base gives a padded row other positions."""

    @pytest.mark.parametrize("spec", [PREFIX, PROMPT, inlay.PTuning(length=2)], ids=repr)
    def test_what_does_not_serve_moves_nothing(self, spec: Any) -> None:
        model, text = base("gpt2"), ids(3, 8)
        mask = torch.ones_like(text)
        mask[0, :3] = 0
        mask[1, :2] = 0
        alone = logits(model, input_ids=text, attention_mask=mask)
        lora = inlay.attach(model, inlay.LoRA(rank=2), name="lora")
        perturb(lora)
        tuned = logits(model, input_ids=text, attention_mask=mask)
        perturb(inlay.attach(model, spec, name="a"))
        with inlay.rows(model, ["a", None, "lora"]):
            mixed = logits(model, input_ids=text, attention_mask=mask)
        with inlay.rows(model, ["lora"]):
            assert relative_error(logits(model, input_ids=text, attention_mask=mask), tuned) < 1e-6
        assert relative_error(mixed[1, 2:], alone[1, 2:]) < 5e-6
        assert relative_error(mixed[2], tuned[2]) < 5e-6
        lora.enabled = inlay.attached(model)["a"].enabled = False
        assert torch.equal(logits(model, input_ids=text, attention_mask=mask), alone)

    def test_a_base_that_counts_by_itself(self) -> None:
        model, text = base("opt"), ids(2, 8)
        mask = torch.ones_like(text)
        mask[1, :3] = 0
        text = text * mask
        alone = logits(model, input_ids=text, attention_mask=mask)
        perturb(inlay.attach(model, PREFIX, name="a"))
        with inlay.rows(model, ["a", None]):
            mixed = logits(model, input_ids=text, attention_mask=mask)
        assert relative_error(mixed[1, 3:], alone[1, 3:]) < 5e-6


class TextsLast(nn.Module):
    """A block that lays out `[T, B, D]`, around one that lays out `[B, T, D]`."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        turned: Tensor = self.inner(x.transpose(0, 1)).transpose(0, 1)
        return turned


class Streams(nn.Module):
    """A block that stacks two streams, `[2, B, T, D]`."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        streams = self.inner(torch.stack((x, 2 * x)))
        return (streams[0] + streams[1]) / 3


class TestRowAxis:
    @pytest.mark.parametrize("layout", [TextsLast, Streams])
    def test_rows_that_do_not_come_first_are_refused(self, layout: type[nn.Module]) -> None:
        model, text = base("llama"), ids(2, 4)
        handle = inlay.attach(model, inlay.LoRA(rank=2, at=("attn.q", "mlp.down")), name="a")
        for layer in model.model.layers:
            layer.mlp.down_proj = layout(layer.mlp.down_proj)  # hooks stay on the inner module
        perturb(handle)
        served = logits(model, input_ids=text)
        with inlay.rows(model, ["a", "a"]):
            assert torch.equal(logits(model, input_ids=text), served)
        with inlay.rows(model, ["a", None]), pytest.raises(RowsError, match="rows do not come fir"):
            logits(model, input_ids=text)
        with inlay.rows(model, ["a", "a", None]), pytest.raises(RowsError, match="names 3 rows"):
            logits(model, input_ids=text)

    def test_beams_and_flattened_positions_are_rows(self) -> None:
        model, text = base("llama"), ids(2, 4)
        perturb(inlay.attach(model, inlay.LoRA(rank=2), name="a"))
        with inlay.rows(model, ["a", None]):
            mixed = logits(model, input_ids=text)
        with inlay.rows(model, [None]):
            assert relative_error(mixed[1], logits(model, input_ids=text)[1]) < 1e-6


SHARED = {
    "prefix with MLP": MLP,
    "prompt": PROMPT,
    "LoRA after an opening": inlay.LoRA(rank=2),
    "IPT": inlay.IPT(length=2, code=4, inner=5),
}


class TestBackward:
    @pytest.mark.parametrize("name", SHARED)
    def test_nothing_outlives_the_pass(self, name: str) -> None:
        model = base("llama")
        perturb(inlay.attach(model, SHARED[name], name="a"))
        opening = ids(1, 12).expand(3, -1)
        output = model(torch.cat((opening, ids(3, 4, 1)), 1)).logits
        copy.deepcopy(model)
        output.square().mean().backward()
        copy.deepcopy(model)

    @pytest.mark.parametrize("name", SHARED)
    def test_reentrant_checkpointing_gives_the_same_gradients(self, name: str) -> None:
        model = base("llama")
        handle = inlay.attach(model, SHARED[name], name="a")
        perturb(handle)
        text = torch.cat((ids(1, 12).expand(3, -1), ids(3, 4, 1)), 1)

        def gradients() -> list[Tensor]:
            model.train()
            model(text, use_cache=False).logits.square().mean().backward()
            grads = [p.grad for p in handle.parameters()]
            for parameter in handle.parameters():
                parameter.grad = None
            return grads

        plain = gradients()
        with checkpointed(model, reentrant=True):
            recomputed = gradients()
        for a, b in zip(recomputed, plain, strict=True):
            assert relative_error(a, b) < 1e-5


def mixture_with_flat_positions() -> Any:
    """A Llama 4, whose mixture of experts returns the positions of all rows in one dimension."""
    config = hf.Llama4TextConfig(
        **{**zoo.GQA, "num_local_experts": 4, "intermediate_size_mlp": 48},
        interleave_moe_layer_step=2,
        head_dim=8,
    )
    torch.manual_seed(0)
    return hf.Llama4ForCausalLM(config).eval()


def test_a_piece_beside_a_sub_layer_that_flattens_positions() -> None:
    model = mixture_with_flat_positions()
    ids = torch.tensor([[5, 17, 40, 8], [63, 22, 71, 9]])
    block = model.model.layers[1]
    reads: list[torch.Tensor] = []
    block.post_attention_layernorm.register_forward_hook(lambda _m, args, _y: reads.append(args[0]))
    block.feed_forward.register_forward_hook(lambda _m, _args, output: reads.append(output[0]))
    with torch.no_grad():
        model(input_ids=ids)
        x, bare = reads
        assert (x.dim(), bare.dim()) == (3, 2)
        where = inlay.Where(("mlp",), layers=(1,))
        handle = inlay.attach(model, inlay.Parallel(bottleneck=4, at=where))
        ((_, _, piece),) = zoo.pieces(handle)
        torch.nn.init.normal_(piece.inner.up)
        model(input_ids=ids)
        expected = bare + piece.inner(x.flatten(0, 1))
        torch.testing.assert_close(reads[-1], expected)
        with inlay.rows(model, ["default", None]):
            rows = model(input_ids=ids).logits
        torch.testing.assert_close(rows[:1], model(input_ids=ids[:1]).logits)


def test_what_does_not_fit_beside_a_sub_layer_is_refused_in_our_words() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.Parallel(bottleneck=2, at="mlp"))
    host = handle.placed[0].site.host
    host.forward = lambda x: torch.nn.functional.linear(x, host.weight)[:, ::2]
    ids = torch.arange(8, 15)[None]
    with pytest.raises(PortError, match=r"computes \[1, 4, 32\] from \[1, 7, 32\]; use other"):
        model(input_ids=ids)


def blocks_that_return_lists() -> Any:
    """The first GPT, whose blocks return lists."""
    torch.manual_seed(0)
    config = hf.OpenAIGPTConfig(vocab_size=99, n_positions=32, n_embd=32, n_layer=2, n_head=4)
    return hf.OpenAIGPTLMHeadModel(config).eval()


def test_a_piece_at_blocks_that_return_lists() -> None:
    model = blocks_that_return_lists()
    where = inlay.Where(("block",), layers=(1,))
    handle = inlay.attach(model, inlay.Pfeiffer(bottleneck=4, at=where), name="a")
    perturb(handle)
    ((_, _, piece),) = zoo.pieces(handle)
    last, seen = model.transformer.h[1], {}
    last.ln_2.register_forward_hook(lambda _m, _args, y: seen.update(y=y))
    last.register_forward_hook(lambda _m, _args, output: seen.update(block=output))
    ids = torch.tensor([[5, 17, 40, 8], [63, 22, 71, 9]])
    with torch.no_grad(), inlay.rows(model, ["a", None]):
        model(input_ids=ids)
    assert isinstance(seen["block"], list)
    y = seen["y"]
    expected = torch.stack((y[0] + piece.inner(y[0]), y[1]))
    torch.testing.assert_close(seen["block"][0], expected)


def test_questions_to_several_inlays_over_blocks_that_return_lists() -> None:
    model = blocks_that_return_lists()
    for name in ("a", "b"):  # all blocks run once, for both
        perturb(inlay.attach(model, inlay.LoRA(rank=2, at="head"), name=name))
    ids = torch.tensor([[5, 17, 40, 8], [63, 22, 71, 9]])
    with torch.no_grad():
        outputs = inlay.ask_all(model, ["a", "b"], input_ids=ids)
        for name in ("a", "b"):
            with inlay.rows(model, [name] * 2):
                expected = model(input_ids=ids).logits
            torch.testing.assert_close(outputs[name].logits, expected)


@pytest.mark.parametrize("streams", [True, False])
def test_a_side_network_refuses_blocks_that_do_not_hand_on_states(streams: bool) -> None:
    """Some bases keep streams between their blocks, flatten rows, or leave blocks out."""
    model = zoo.fresh("llama")
    first, second = model.model.layers[:2]
    if streams:
        first.register_forward_hook(lambda _m, _args, y: y[:, :, None])
        second.register_forward_pre_hook(lambda _m, args: (args[0].squeeze(2), *args[1:]))
        hand_on = r"hand on 4 of \[1, 7, 32\], \[1, 7, 1, 32\]"
    else:
        hand_on = r"hand on 3 of \[1, 7, 32\]"
    inlay.attach(model, inlay.LST(reduction=2, start="random"))
    model.config.num_hidden_layers = 3 if streams else 2
    with pytest.raises(PortError, match=hand_on + "; use a method inside its blocks"):
        model(input_ids=torch.arange(8, 15)[None])


def test_a_side_network_refuses_positions_that_a_base_adds_by_itself() -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 4, "vocab_size": 60}
    config = hf.VideoPrismTextConfig(**sizes)
    model = hf.VideoPrismTextModel(config)
    inlay.attach(model, inlay.LST(reduction=2, start="random"))
    ids = torch.arange(8, 15)[None]
    with pytest.raises(PortError, match="its mask has 7, and it returns 8, .* use a method inside"):
        model(input_ids=ids, attention_mask=torch.ones_like(ids))


def test_a_place_that_computes_no_vectors_is_refused_in_our_words() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.Houlsby(bottleneck=2, at="mlp"))
    host = handle.placed[0].site.host
    host.forward = lambda x: {"states": torch.nn.functional.linear(x, host.weight)}
    with pytest.raises(PortError, match="computes a dict, and no vectors; use other places"):
        model(input_ids=torch.arange(8, 15)[None])


def test_a_place_that_computes_another_layout_is_refused_in_our_words() -> None:
    """Some bases lay out images by channel, `[B, C, H, W]`; nothing can be added along the width."""
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.Houlsby(bottleneck=2, at="mlp"))
    host = handle.placed[0].site.host
    host.forward = lambda x: torch.nn.functional.linear(x, host.weight).mT
    ids = torch.arange(8, 15)[None]
    with pytest.raises(PortError, match=r"computes \[1, 32, 7\], and not vectors of 32; use"):
        model(input_ids=ids)
