"""What each card of the methods asks to be exactly so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import inlay
from inlay.core.context import PassContext
from inlay.errors import MergeError, SiteError, SpecError
from inlay.laws.case import perturb
from inlay.laws.compare import model_output, relative_error
from tests import zoo
from tests.methods import exact

PRE_NORM = ("llama", "gpt2", "t5", "gpt_neox", "modernbert", "gemma2")
POST_NORM = ("bert", "roberta", "distilbert", "bart", "marian")


def batch(family: str, count: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(8, 99, (count, length), generator=generator)
    made = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family in ("t5", "t5-gated", "mt5", "bart", "marian"):
        made["decoder_input_ids"] = torch.randint(8, 99, (count, 4), generator=generator)
    return made


def run(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model_output(model, inputs)


# --- LoRA ------------------------------------------------------------------------------------


def test_lora_is_alpha_over_r_times_b_a() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=3, alpha=12, at="attn.q"))
    perturb(handle)
    _, site, piece = next(zoo.pieces(handle))
    x = torch.randn(2, 5, 32)
    expected = x @ site.weight().T + 4.0 * x @ piece.a.T @ piece.b.T
    torch.testing.assert_close(site.host(x), expected)
    assert torch.linalg.matrix_rank(piece.b @ piece.a) <= 3


def test_lora_merge_and_back() -> None:
    model = zoo.fresh("gpt2")
    before = model.transformer.h[0].attn.c_attn.weight.clone()
    handle = inlay.attach(model, inlay.LoRA(rank=2))
    perturb(handle)
    deltas = {
        name: (site, piece.scale * piece.b.detach() @ piece.a.detach())
        for name, site, piece in zoo.pieces(handle)
    }
    assert handle.merge() is model
    after = model.transformer.h[0].attn.c_attn.weight
    keys = after[:, 32:64]
    assert torch.equal(keys, before[:, 32:64])  # the keys' third of c_attn is not LoRA's
    for site, delta in deltas.values():
        if site.layer == 0:
            start = site.part.start
            torch.testing.assert_close(
                after[:, start : start + 32].T - delta, before[:, start : start + 32].T
            )


def test_lora_rank_larger_than_the_matrix() -> None:
    model = zoo.model("llama")
    with pytest.raises(
        SpecError, match=r"rank 17 is larger than the matrix at .*attn.v.*at most 16"
    ):
        inlay.attach(model, inlay.LoRA(rank=17))
    assert not inlay.attached(model)


def test_lora_drops_out_in_training_only() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=2, dropout=0.5))
    perturb(handle)
    inputs = batch("llama")
    assert torch.equal(run(model, inputs), run(model, inputs))
    model.train()
    assert not torch.equal(run(model, inputs), model_output(model, inputs, seed=1).detach())


# --- adapters --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [*PRE_NORM, *POST_NORM])
@pytest.mark.parametrize(
    "spec", [inlay.Houlsby(bottleneck=4), inlay.Pfeiffer(bottleneck=4)], ids=repr
)
def test_adapter_with_a_zeroed_up_projection_is_the_base(family: str, spec: inlay.Method) -> None:
    model = zoo.fresh(family)
    inputs = batch(family)
    base = run(model, inputs)
    handle = inlay.attach(model, spec)
    for name, parameter in handle._pieces.named_parameters():
        if "up" in name.rsplit(".", 1)[-1]:
            parameter.data.zero_()
    assert relative_error(run(model, inputs), base) < 1e-6


@pytest.mark.parametrize("family", POST_NORM)
def test_pfeiffer_reads_the_normalised_sum_and_normalises_again(family: str) -> None:
    """out = LN(s + U f(D LN(s))), s = the sum in front of the block's last norm."""
    model = zoo.fresh(family)
    handle = inlay.attach(model, inlay.Pfeiffer(bottleneck=4))
    perturb(handle)
    _, site, piece = next(zoo.pieces(handle))
    assert site.norm is site.host
    s = torch.randn(2, 5, 32)
    u = site.host.forward(s)
    inner = torch.relu(u @ piece.inner.down.T + piece.inner.down_bias)
    up = inner @ piece.inner.up.T + piece.inner.up_bias
    torch.testing.assert_close(site.host(s), site.host.forward(s + up))


def test_pfeiffer_sits_behind_the_feed_forward_layer_only() -> None:
    handle = inlay.attach(zoo.fresh("bert"), inlay.Pfeiffer(bottleneck=4))
    assert {site.role for _, site, _ in zoo.pieces(handle)} == {"block"}


def test_houlsby_order_in_bert_is_dense_dropout_adapter_norm() -> None:
    model = zoo.fresh("bert")
    handle = inlay.attach(model, inlay.Houlsby(bottleneck=4, at=("attn", "mlp")))
    hosts = {site.role: site.host for _, site, _ in zoo.pieces(handle) if site.layer == 0}
    layer = model.bert.encoder.layer[0]
    assert hosts == {"attn": layer.attention.output.dropout, "mlp": layer.output.dropout}


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_parallel_doubles_with_its_scale(family: str) -> None:
    """Doubling s doubles the added term exactly; the bottleneck reads the residual stream."""
    model = zoo.fresh(family)
    handle = inlay.attach(model, inlay.Parallel(bottleneck=4, scale=1.0))
    perturb(handle)
    _, site, piece = next(zoo.pieces(handle))
    x, y = torch.randn(2, 3, 32), torch.randn(2, 3, 32)
    delta = piece(x, y, PassContext())
    piece.inner.scale = 2.0
    torch.testing.assert_close(piece(x, y, PassContext()), 2 * delta)
    seen: list[torch.Tensor] = []
    site.enter.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    caught: list[torch.Tensor] = []
    piece.register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    run(model, batch(family))
    assert torch.equal(seen[0], caught[0])


# --- (IA)³, BitFit ---------------------------------------------------------------------------


def test_ia3_places_and_starting_values() -> None:
    handle = inlay.attach(zoo.fresh("t5"), inlay.IA3())
    roles = {site.role for _, site, _ in zoo.pieces(handle)}
    assert roles == {"attn.k", "attn.v", "cross.k", "cross.v", "mlp.down"}
    assert all(torch.equal(p, torch.ones_like(p)) for p in handle.parameters())


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama", "t5-gated", "phi3"])
def test_ia3_merges_exactly_bias_included(family: str) -> None:
    model = zoo.fresh(family)
    handle = inlay.attach(model, inlay.IA3())
    perturb(handle)
    inputs = batch(family)
    whole = run(model, inputs)
    handle.merge()
    assert relative_error(run(model, inputs), whole) < 1e-5


def test_bitfit_leaves_every_matrix_alone_and_key_biases_do_nothing() -> None:
    """A key bias adds the same to every score of a query (card 18), so its gradient vanishes."""
    model = zoo.fresh("bert")
    matrices = {n: p.clone() for n, p in model.named_parameters() if p.dim() > 1}
    handle = inlay.attach(model, inlay.BitFit())
    model_output(model, batch("bert")).square().mean().backward()
    sizes = {
        site.role: piece.shift.grad.abs().max().item()
        for _, site, piece in zoo.pieces(handle)
        if site.layer == 1
    }
    assert sizes["attn.k"] < 1e-6 < 1e-4 < sizes["attn.q"]
    handle.merge()
    assert all(torch.equal(model.get_parameter(n), p) for n, p in matrices.items())


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_bitfit_on_its_subset_trains_two_biases_a_layer(family: str) -> None:
    """Query and feed-forward up (card 18); matrices and all other biases stay bit for bit."""
    spec = inlay.BitFit(at=inlay.Where(("attn.q", "mlp.up")))
    model, handle = exact.train(family, spec)
    layers = 1 + max(site.layer for _, site, _ in zoo.pieces(handle))
    assert len(handle.named_tensors()) == 2 * layers
    assert {name.split(".", 2)[2] for name in handle.named_tensors()} == {
        "attn.q/0/bitfit/shift",
        "mlp.up/0/bitfit/shift",
    }
    width = {role: s.d_out for _, s, _ in zoo.pieces(handle) for role in [s.role]}
    assert handle.count() == layers * (width["attn.q"] + width["mlp.up"])
    before = dict(zoo.fresh(family).named_parameters())
    handle.merge()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert len(changed) == 2 * layers and all(name.endswith("bias") for name in changed)
    for name in changed & {n for n in changed if "c_attn" in n}:  # queries, keys, values in one
        third = len(before[name]) // 3
        assert torch.equal(model.get_parameter(name)[third:], before[name][third:])


def test_bitfit_creates_biases_or_leaves_the_places_out() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.BitFit())
    with pytest.raises(MergeError, match="no bias here"):
        handle.merge()
    handle.detach()
    with pytest.raises(SiteError, match="finds nothing to do"):
        inlay.attach(model, inlay.BitFit(create=False))
    assert not inlay.attached(model)
    model = zoo.fresh("qwen2")  # biases on q, k, v alone
    handle = inlay.attach(model, inlay.BitFit(create=False))
    assert {site.role for _, site, _ in zoo.pieces(handle)} == {"attn.q", "attn.k", "attn.v"}


# --- prefix ----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "qwen3", "opt"])
@pytest.mark.parametrize("mlp", [None, 16])
def test_prefix_from_words_is_running_the_words_as_context(family: str, mlp: int | None) -> None:
    model = zoo.fresh(family)
    words = (11, 12, 13)
    inputs = batch(family, length=3)
    with torch.no_grad():
        whole = torch.cat((torch.tensor([words] * 2), inputs["input_ids"]), 1)
        expected = model(input_ids=whole).logits[:, 3:]
        handle = inlay.attach(model, inlay.Prefix(length=3, mlp=mlp, start=words))
        positions = torch.arange(3, 6).expand(2, -1)
        got = model(**inputs, position_ids=positions).logits
    assert relative_error(got, expected) < (1e-5 if mlp is None else 1e-3)
    handle.detach()


def test_a_prefix_may_be_longer_than_the_base_reads() -> None:
    """Its words are run in parts then; keys take no positions."""
    model = zoo.fresh("gpt2")
    words = tuple(10 + number % 80 for number in range(70))
    assert model.config.n_positions == 64
    handle = inlay.attach(model, inlay.Prefix(length=70, mlp=None, start=words))
    k = {site.name: piece.k for _, site, piece in zoo.pieces(handle)}["decoder.0.attn.kv"]
    rest = inlay.attach(model, inlay.Prefix(length=6, mlp=None, start=words[64:]), name="rest")
    expected = {site.name: piece.k for _, site, piece in zoo.pieces(rest)}["decoder.0.attn.kv"]
    assert k.shape[1] == 70
    torch.testing.assert_close(k[:, 64:], expected)


def test_prefix_slots_have_no_order() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.Prefix(length=4, mlp=None))
    perturb(handle)
    inputs = batch("llama")
    before = run(model, inputs)
    for _, _, piece in zoo.pieces(handle):
        piece.k.data = piece.k.data[:, [2, 0, 3, 1]]
        piece.v.data = piece.v.data[:, [2, 0, 3, 1]]
    assert relative_error(run(model, inputs), before) < 1e-5


def test_a_zero_prefix_is_not_the_base() -> None:
    model = zoo.fresh("llama")
    inputs = batch("llama")
    base = run(model, inputs)
    handle = inlay.attach(model, inlay.Prefix(length=4, mlp=None))
    for parameter in handle.parameters():
        parameter.data.zero_()
    assert relative_error(run(model, inputs), base) > 1e-2


def test_prefix_in_an_encoder_decoder_is_three_independent_sets() -> None:
    model = zoo.fresh("t5")  # three encoder blocks, two decoder blocks
    handle = inlay.attach(model, inlay.Prefix(length=2, mlp=5))
    places = [(site.stack, site.role) for _, site, _ in zoo.pieces(handle)]
    assert places.count(("encoder", "attn.kv")) == 3
    assert places.count(("decoder", "attn.kv")) == places.count(("decoder", "cross.kv")) == 2
    assert len(handle._pieces.shared) == 3
    assert len({id(p) for p in handle._pieces.shared.parameters()}) == 3 * 5


def test_prefix_is_seen_beyond_a_sliding_window() -> None:
    import transformers as hf

    config = hf.MistralConfig(**{**zoo.GQA, "num_hidden_layers": 1}, head_dim=8, sliding_window=4)
    model = hf.MistralForCausalLM(config).eval()
    handle = inlay.attach(model, inlay.Prefix(length=2, mlp=None))
    logits = model(input_ids=torch.randint(8, 99, (1, 20))).logits
    logits[0, -1].sum().backward()
    assert all(p.grad.abs().max() > 0 for p in handle.parameters())


def test_prefix_runs_its_mlp_once_a_step() -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.Prefix(length=2, mlp=5))
    calls = []
    net = next(iter(handle._pieces.shared.values())).net
    net.register_forward_hook(lambda *_: calls.append(1))
    model_output(model, batch("llama", count=4)).sum().backward()
    assert len(calls) == 1
    with torch.no_grad():
        model.generate(**batch("llama"), max_new_tokens=5, pad_token_id=0)
    assert len(calls) == 2  # nothing changed between the tokens


def test_prefix_needs_as_many_words_as_positions() -> None:
    with pytest.raises(SpecError, match="2 token ids for 10 positions"):
        inlay.Prefix(start=(1, 2))
    with pytest.raises(SpecError, match="token id 99 is outside"):
        inlay.attach(zoo.model("llama"), inlay.Prefix(length=1, start=(99,)))


@pytest.mark.parametrize(
    "spec",
    [
        inlay.Prompt(length=1, start=((99,),)),
        inlay.PTuning(length=1, encoder=None, start=((-1,),)),
        inlay.WARP(length=1, start=((3, 99),)),
        inlay.WARP(words=((3,), (99,))),
    ],
    ids=repr,
)
def test_words_are_the_base_s(spec: inlay.Method) -> None:
    kind, wrong = type(spec).__name__, -1 if isinstance(spec, inlay.PTuning) else 99
    with pytest.raises(SpecError, match=f"{kind}: token id {wrong} is outside 99 tokens"):
        inlay.attach(zoo.model("roberta"), spec)


# --- prompts ---------------------------------------------------------------------------------


NO_WORDS = {"vit", "clip-vision", "whisper", "wav2vec2"}
OTHERWISE = {"mamba2", "gemma3n"}  # takes no prompt; looks up more than embeddings by ids


@pytest.mark.parametrize("family", [f for f in zoo.FAMILIES if f not in NO_WORDS | OTHERWISE])
def test_prompt_of_words_is_feeding_the_words(family: str) -> None:
    """Rotary, relative and absolute positions alike: the prompt's vectors stand where they should."""
    model = zoo.fresh(family)
    words = ((11,), (12,), (13,))
    inputs = batch(family)
    ids = inputs["input_ids"]
    prompt = torch.tensor([[11, 12, 13]] * 2)
    kept = 1 if inlay.architectures.resolve.resolve(model).stacks[0].keeps_first else 0
    whole = torch.cat((ids[:, :kept], prompt, ids[:, kept:]), 1)
    wide = {**inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
    expected = run(model, wide)
    inlay.attach(model, inlay.Prompt(length=3, start=words))
    got = run(model, inputs)
    if "decoder_input_ids" not in inputs:
        expected = torch.cat((expected[:, :kept], expected[:, kept + 3 :]), 1)
    assert relative_error(got, expected) < 2e-5


def test_cls_stays_first_for_the_pooler() -> None:
    import transformers as hf

    model = hf.BertModel(hf.BertConfig(**zoo.DIMS, **zoo.IDS)).eval()
    inputs = batch("bert")
    ids = inputs["input_ids"]
    prompt = torch.tensor([[11, 12]] * 2)
    whole = torch.cat((ids[:, :1], prompt, ids[:, 1:]), 1)
    with torch.no_grad():
        expected = model(input_ids=whole).pooler_output
        inlay.attach(model, inlay.Prompt(length=2, start=((11,), (12,))))
        got = model(**inputs).pooler_output
    assert relative_error(got, expected) < 1e-5


def test_prompt_starting_values() -> None:
    model = zoo.fresh("gemma3")
    embed = model.model.embed_tokens
    handle = inlay.attach(model, inlay.Prompt(length=4, start=((3, 5),)))
    values = next(zoo.pieces(handle))[2].values.detach()
    table = embed(torch.arange(99)).detach()
    torch.testing.assert_close(values[0], (table[3] + table[5]) / 2)
    matches = [(row == table).all(1).nonzero().flatten().tolist() for row in values[1:]]
    assert all(len(m) == 1 for m in matches)  # sampled words
    assert len({m[0] for m in matches}) == 3  # without replacement
    handle.detach()
    uniform = inlay.attach(model, inlay.Prompt(length=50, start="uniform"))
    values = next(zoo.pieces(uniform))[2].values
    assert values.abs().max() <= 0.5 and values.std() > 0.25


def test_prompt_longer_than_the_positions_left() -> None:
    from inlay.errors import DataError

    model = zoo.fresh("gpt2")
    inlay.attach(model, inlay.Prompt(length=4))
    run(model, {"input_ids": torch.ones(1, 60, dtype=torch.long)})
    with pytest.raises(DataError, match="61 tokens and a prompt of 4 are longer than the 64"):
        run(model, {"input_ids": torch.ones(1, 61, dtype=torch.long)})


# --- heads -----------------------------------------------------------------------------------


def test_head_pools_over_the_text_only() -> None:
    head = inlay.Head(labels=("a", "b"), pool="mean").build(
        inlay.architectures.resolve.resolve(zoo.model("llama")).find(inlay.Where(("final",)))[0],
        None,
    )
    hidden = torch.randn(2, 5, 32)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 0]])
    padded = hidden.clone()
    padded[0, :2], padded[1, 4:] = 99, 99
    torch.testing.assert_close(head(hidden, mask), head(padded, mask))
    for pool, places in (("last", (4, 3)), ("first", (2, 0))):
        head.pool = pool
        rows = hidden[torch.arange(2), torch.tensor(places)]
        torch.testing.assert_close(head(hidden, mask), rows @ head.weight.T + head.bias)
    head.pool = "each"
    each = torch.stack([row @ head.weight.T + head.bias for row in hidden])
    torch.testing.assert_close(head(hidden, mask), each)
