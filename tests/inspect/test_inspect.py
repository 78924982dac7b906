"""inlay.inspect: what is near a prompt, how much attention it gets, and whether two agree."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

import inlay
from inlay import IA3, LoRA, Prefix, Prompt, PTuning, Where
from inlay import inspect as looking
from inlay.errors import DataError, PortError, SpecError
from inlay.inspect.attention import _Watch
from inlay.inspect.vectors import DRAWS
from inlay.runtime.container import stack_hooks
from tests import zoo
from tests.tasks import tiny

START = ((5,), (17,), (40,))
READERS = ["llama", "gemma2", "gemma3", "gpt2", "bert", "electra", "t5", "bart-scaled", "bart"]


def fresh(family):
    if family != "bart-scaled":
        return zoo.fresh(family)
    import transformers as hf

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = hf.BartConfig(**zoo.SEQ2SEQ, scale_embedding=True)
        return hf.BartForConditionalGeneration(config).eval()


def batch(model, *lengths):
    """Rows of random tokens, padded on the right."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(8, 99, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    made = {"input_ids": ids * mask, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        made |= {"decoder_input_ids": ids.flip(0) * mask, "decoder_attention_mask": mask}
    return made


# ------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("family", READERS)
def test_a_prompt_made_of_tokens_lies_on_them(family):
    handle = inlay.attach(fresh(family), Prompt(length=3, start=START))
    (one,) = looking.neighbours(handle, 4, {"it": [17, 60]})
    assert one.place == "embed/0"
    assert one.cosine.ids[:, 0].tolist() == one.distance.ids[:, 0].tolist() == [5, 17, 40]
    assert one.cosine.values[:, 0] == pytest.approx([1, 1, 1], abs=1e-5)
    assert one.distance.values[:, 0].tolist() == [0, 0, 0]
    assert one.ranks["it"][1] == 1
    assert one.cluster.nearest.value == pytest.approx(1, abs=1e-5)
    assert one.cluster.nearest.z > 5


def test_the_decoder_of_an_encoder_decoder_has_words_of_its_own():
    spec = Prompt(length=3, start=START) + Prompt(length=3, start=START, at="embed.target")
    found = looking.neighbours(inlay.attach(zoo.fresh("t5"), spec), 1)
    assert [one.place for one in found] == ["embed/0", "embed.target/1"]
    assert all(one.cosine.ids.flatten().tolist() == [5, 17, 40] for one in found)
    assert found[0].cluster.tightness is None


@pytest.mark.parametrize("chunk", [7, 99])
def test_neighbours_are_those_of_the_whole_vocabulary(monkeypatch, chunk):
    monkeypatch.setattr(looking.vectors, "CHUNK", chunk)
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Prompt(length=4, start="uniform"))
    (one,) = looking.neighbours(handle, 3, {"a": [50]})
    table, prompt = model.get_input_embeddings().weight, one.vectors
    cosines = torch.nn.functional.cosine_similarity(prompt[:, None], table[None], -1)
    order = cosines.argsort(1, descending=True)
    assert one.cosine.ids.tolist() == order[:, :3].tolist()
    lengths = (prompt[:, None] - table).norm(dim=-1).argsort(1)
    assert one.distance.ids.tolist() == lengths[:, :3].tolist()
    assert one.ranks["a"].tolist() == [1 + row.index(50) for row in order.tolist()]

    near = table[one.cosine.ids].double()
    pairs = [
        torch.nn.functional.cosine_similarity(near[:, i], near[:, j], -1)
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert one.cluster.tightness.value == pytest.approx(float(torch.stack(pairs).mean()), abs=1e-5)

    drawn = torch.randn(DRAWS * 4, 32, generator=torch.Generator().manual_seed(0))
    best = torch.nn.functional.cosine_similarity(drawn[:, None], table[None], -1).topk(3).indices
    unit = torch.nn.functional.normalize(table[best], dim=-1)
    mutual = (unit @ unit.mT).sum((1, 2)) - 3
    assert one.cluster.tightness.random == pytest.approx(float(mutual.mean()) / 6, abs=1e-5)


def test_chance_is_what_random_directions_give():
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Prompt(length=4, start="uniform"))
    (one,) = looking.neighbours(handle, 3)
    drawn = torch.randn(DRAWS * 4, 32, generator=torch.Generator().manual_seed(0))
    table = model.get_input_embeddings().weight
    best = torch.nn.functional.cosine_similarity(drawn[:, None], table[None], -1).amax(1)
    means = best.view(DRAWS, 4).mean(1)
    score = one.cluster.nearest
    assert score.random == pytest.approx(float(means.mean()), abs=1e-5)
    assert score.spread == pytest.approx(float(means.std()), abs=1e-5)
    assert score.z == pytest.approx((score.value - score.random) / score.spread)
    assert score.ratio == pytest.approx(score.value / score.random)
    assert abs(score.z) < 4  # a prompt of random numbers is what it is held against
    assert looking.neighbours(handle, 3)[0].cluster == one.cluster
    assert looking.neighbours(handle, 3, seed=1)[0].cluster != one.cluster


def test_positions_share_what_is_near_both():
    handle = inlay.attach(zoo.fresh("llama"), Prompt(length=3, start=((5,), (17,), (5,))))
    assert looking.neighbours(handle, 1)[0].shared == {5: [0, 2]}


def test_more_neighbours_than_tokens_are_all_tokens():
    handle = inlay.attach(zoo.fresh("llama"), Prompt(length=2))
    assert looking.neighbours(handle, 500)[0].cosine.ids.shape == (2, 99)


def test_neighbours_refuse_what_cannot_be():
    handle = inlay.attach(zoo.fresh("llama"), Prompt(length=2))
    with pytest.raises(SpecError, match="no 0 nearest tokens"):
        looking.neighbours(handle, 0)
    with pytest.raises(SpecError, match="'far'.*outside 99 tokens"):
        looking.neighbours(handle, 1, {"far": [99]})


def test_what_has_no_vectors_is_refused():
    handle = inlay.attach(zoo.fresh("llama"), LoRA(rank=1))
    with pytest.raises(SpecError, match="no soft prompt or prefix to look into"):
        looking.check_soft(handle)
    assert looking.neighbours(handle) == []
    assert looking.attention(handle, [batch(handle.model, 5)]) == []


def test_forms_of_a_word_are_single_tokens():
    words = tiny.tokenizer("decoder")
    assert looking.forms(words, "good") == tuple(words.encode("good", add_special_tokens=False))
    assert looking.forms(words, "Good") == looking.forms(words, "good")
    assert looking.forms(words, "goodness") == ()


# ------------------------------------------------------------------------- attention


def test_the_share_is_what_a_hand_computes():
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(**{**zoo.GQA, "num_hidden_layers": 1})).eval()
    handle = inlay.attach(model, Prefix(length=3, mlp=None))
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.normal_()
    (_, _, k, _) = looking.keys_of(handle)[0]
    given = batch(model, 6, 4)
    (share,) = looking.attention(handle, [given])

    layer, width = model.model.layers[0], 8
    total, even, count = torch.zeros(4), 0.0, 0
    with torch.no_grad():
        for ids, length in zip(given["input_ids"], (6, 4), strict=True):
            x = layer.input_layernorm(model.model.embed_tokens(ids[None, :length]))
            q = layer.self_attn.q_proj(x).view(1, length, 4, width).transpose(1, 2)
            text = layer.self_attn.k_proj(x).view(1, length, 2, width).transpose(1, 2)
            turns = model.model.rotary_emb(x, torch.arange(length)[None])
            q, text = apply_rotary_pos_emb(q, text, *turns)
            for head in range(4):
                for at in range(length):
                    seen = torch.cat((k[head // 2], text[0, head // 2, : at + 1]))
                    weights = (seen @ q[0, head, at] / width**0.5).softmax(0)
                    total[head] += weights[:3].sum()
            even += sum(3 / (3 + at + 1) for at in range(length))
            count += length
    assert (share.of, share.attention, share.layers) == ("prefix", "decoder.attn", (0,))
    assert share.shares.shape == (1, 4)
    assert torch.allclose(share.shares[0], total / count, atol=1e-5)
    assert float(share.even) == pytest.approx(even / count)
    assert float(share.shares.std()) > 1e-3


@pytest.mark.parametrize(("family", "first"), [("llama", 0), ("bert", 1), ("gemma3", 0)])
def test_a_prompt_gets_what_its_words_would_get(family, first):
    model = fresh(family)
    given = batch(model, 9)
    handle = inlay.attach(model, Prompt(length=3, start=START))
    (share,) = looking.attention(handle, [given])
    handle.detach()
    model.set_attn_implementation("eager")
    ids = given["input_ids"][0].tolist()
    ids = torch.tensor([[*ids[:first], 5, 17, 40, *ids[first:]]])
    weights = torch.cat(model(input_ids=ids, output_attentions=True).attentions)
    prompt = weights[..., first : first + 3].sum(-1)
    text = [n for n in range(12) if not first <= n < first + 3]
    assert torch.allclose(share.shares, prompt[..., text].mean(-1), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3", "gpt2", "bert", "t5", "bart"])
def test_padding_and_neighbours_in_a_batch_change_nothing(family):
    model = fresh(family)
    spec = Prefix(length=2, mlp=None) + Prompt(length=3)
    if model.config.is_encoder_decoder:
        spec = spec + Prompt(length=2, at="embed.target")
    handle = inlay.attach(model, spec)
    lengths = (9, 4)
    whole = batch(model, *lengths)
    together = looking.attention(handle, [whole])
    rows = [
        {name: t[n : n + 1, :length] for name, t in whole.items()}
        for n, length in enumerate(lengths)
    ]
    apart = looking.attention(handle, rows)
    alone = [looking.attention(handle, [row]) for row in rows]
    assert len(together) == len(apart) == (6 if model.config.is_encoder_decoder else 2)
    for a, b, one, two in zip(together, apart, *alone, strict=True):
        assert (a.of, a.attention) == (b.of, b.attention)
        assert torch.allclose(a.shares, b.shares, atol=1e-5)
        assert torch.allclose(a.even, b.even, atol=1e-5)
        assert torch.allclose((9 * one.shares + 4 * two.shares) / 13, a.shares, atol=1e-5)
        assert bool((a.shares > 0).all()) and bool((a.shares < 1).all())


@pytest.mark.parametrize("family", ["bert", "bart"])
@pytest.mark.parametrize(("push", "share"), [(-100, 0), (100, 1)])
def test_keys_pushed_far_away_get_nothing_or_everything(family, push, share):
    model = fresh(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("query.bias", "q_proj.bias")):
                parameter.fill_(10)  # every query points where the keys are pushed along
    handle = inlay.attach(model, Prefix(length=2, mlp=None))
    with torch.no_grad():
        for _, _, piece in zoo.pieces(handle):
            piece.k.fill_(push)
    found = looking.attention(handle, [batch(model, 7, 5)])
    sides = {"bert": ["encoder.attn"], "bart": ["encoder.attn", "decoder.attn", "decoder.cross"]}
    assert sorted(one.attention for one in found) == sorted(sides[family])
    for one in found:
        assert torch.allclose(one.shares, torch.full_like(one.shares, share), atol=1e-4)


def test_no_rounding_makes_a_share_more_than_all():
    handle = inlay.attach(zoo.fresh("bert"), Prefix(length=5, mlp=None))
    watch = _Watch(handle)
    watch.begin({"input_ids": torch.ones(1, 1, dtype=torch.long)})
    weights = torch.full((1, 4, 1, 6), 0.2, dtype=torch.bfloat16)  # five are more than 1
    assert float(weights[0, 0, 0, :5].float().sum()) > 1
    watch.tell("encoder.0.attn.kv", weights, None)
    assert watch.shares(handle.chart)[0].shares.tolist() == [[1] * 4]


@pytest.mark.parametrize("family", ["bert", "bart"])
def test_a_prefix_that_nobody_hears_takes_nothing_from_a_prompt(family):
    model = fresh(family)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("query.bias", "q_proj.bias")):
                parameter.fill_(10)
    given = batch(model, 7, 5)
    handle = inlay.attach(model, Prompt(length=3, start=START))
    alone = looking.attention(handle, [given])
    handle.detach()
    handle = inlay.attach(model, Prompt(length=3, start=START) + Prefix(length=2, mlp=None))
    with torch.no_grad():
        for key, _, piece in zoo.pieces(handle):
            if key.endswith("/1"):
                piece.k.fill_(-100)
    found = [one for one in looking.attention(handle, [given]) if one.of == "prompt"]
    assert len(found) == len(alone)
    for one, wanted in zip(found, alone, strict=True):
        assert one.attention == wanted.attention
        assert torch.allclose(one.shares, wanted.shares, atol=1e-4)


def test_layers_without_a_prefix_are_not_in_the_map():
    where = Where(("attn.kv",), layers=(0, 2))
    handle = inlay.attach(zoo.fresh("llama"), Prefix(length=2, mlp=None, at=where))
    (share,) = looking.attention(handle, [batch(handle.model, 5)])
    assert share.layers == (0, 2)
    assert share.shares.shape == (2, 4)


def test_looking_leaves_no_trace_and_sees_one_inlay():
    model = fresh("llama")
    handle = inlay.attach(model, Prefix(length=2, mlp=None))
    given = batch(model, 9, 9)
    alone = looking.attention(handle, [given])
    inlay.attach(model, Prefix(length=3, mlp=None) + Prompt(length=2) + IA3(), name="other")
    handle.enabled = False
    before = model(**given).logits
    kinds = model.config._attn_implementation
    found = looking.attention(handle, [given])
    assert torch.equal(model(**given).logits, before)
    assert not handle.enabled
    assert model.config._attn_implementation == kinds
    assert not model.training
    assert [one.of for one in found] == ["prefix"]
    assert torch.equal(found[0].shares, alone[0].shares)


def test_no_trace_either_where_a_pass_fails():
    model = fresh("llama")
    handle = inlay.attach(model, Prompt(length=2))
    kinds = model.config._attn_implementation
    with pytest.raises(IndexError):
        looking.attention(handle, [{"input_ids": torch.tensor([[1000]])}])
    (stack,) = stack_hooks(handle.model)
    assert stack.prefix.enabled
    assert stack.extra_kv.attention_pass.observer is None
    assert model.config._attn_implementation == kinds


def test_attention_without_a_way_in_is_not_measured():
    handle = inlay.attach(zoo.fresh("gptj"), Prompt(length=2))
    assert looking.attention(handle, [batch(handle.model, 5)]) == []


def test_a_model_of_images_is_refused():
    handle = inlay.attach(zoo.fresh("vit"), Prefix(length=2, mlp=None))
    with pytest.raises(PortError, match="reads no words"):
        looking.attention(handle, [])


def test_texts_become_batches():
    words = tiny.tokenizer("encoder-decoder")
    handle = inlay.attach(zoo.fresh("t5"), Prompt(length=2))
    texts = ["good bad", "the cat sat", "fine"]
    targets = ["yes", "no no no", "all"]
    (whole,) = looking.written(handle, words, texts, targets)
    assert whole["input_ids"].shape == whole["attention_mask"].shape == (3, 4)
    sources, read = ([words(text)["input_ids"] for text in said] for said in (texts, targets))
    first, second = looking.batches(handle, sources, read, size=2)
    assert first["input_ids"].shape == (2, 4)
    assert first["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    no = words.encode("no", add_special_tokens=False)[0]
    assert first["decoder_input_ids"][1].tolist() == [0, no, no, no]  # begins as a decoder does
    assert first["decoder_attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert second["input_ids"].shape == (1, 2)
    (alone,) = looking.written(handle, words, ["the cat sat"])
    assert alone["decoder_input_ids"].tolist() == [[0, *alone["input_ids"][0, :-1]]]


@pytest.mark.parametrize("family", ["llama", "bert", "t5"])
def test_virtual_tokens_are_a_prompt_wherever_they_stand(family):
    model = fresh(family)
    handle = inlay.attach(model, PTuning(length=2, encoder=None, start=((5,), (17,))))
    given = batch(model, 8)
    given["input_ids"][0, [2, 5]] = torch.tensor([99, 100])
    found = looking.attention(handle, [given])
    assert looking.attention(handle, [batch(model, 8)]) == []
    handle.detach()
    model.set_attn_implementation("eager")
    given["input_ids"][0, [2, 5]] = torch.tensor([5, 17])
    out = model(**given, output_attentions=True)
    queries = [0, 1, 3, 4, 6, 7]
    if family == "t5":
        maps = [(out.encoder_attentions, queries), (out.cross_attentions, slice(None))]
    else:
        maps = [(out.attentions, queries)]
    for one, (weights, text) in zip(found, maps, strict=True):
        assert one.of == "prompt"
        wanted = torch.cat(weights)[..., [2, 5]].sum(-1)[..., text].mean(-1)
        assert torch.allclose(one.shares, wanted, atol=1e-5)


def test_long_texts_are_cut_where_positions_end():
    words = tiny.tokenizer("encoder")
    handle = inlay.attach(zoo.fresh("bert"), Prompt(length=4))
    batches = list(looking.written(handle, words, ["good " * 100]))
    assert batches[0]["input_ids"].shape == (1, 60)
    assert len(looking.attention(handle, batches)) == 1


def test_a_text_without_tokens_is_refused():
    handle = inlay.attach(zoo.fresh("llama"), Prompt(length=4))
    with pytest.raises(DataError, match="has no tokens"):
        list(looking.written(handle, tiny.tokenizer("decoder"), [""]))


# ------------------------------------------------------------------------- two of them


def two(spec, other=None, family="llama"):
    model = zoo.fresh(family)
    return inlay.attach(model, spec, name="a"), inlay.attach(model, other or spec, name="b")


def test_a_prompt_agrees_with_itself():
    handle, _ = two(Prompt(length=5, start="uniform"))
    found = looking.neighbours(handle, 3)
    (one,) = looking.compare_prompts(found, found)
    assert one.pairs == tuple((n, n) for n in range(5))
    assert one.cosines == pytest.approx([1] * 5, abs=1e-5)
    assert one.overlaps == (1,) * 5
    assert one.overlap == 1


def test_positions_in_another_order_are_found_again():
    a, b = two(Prompt(length=5, start="uniform"))
    order = [3, 0, 4, 1, 2]
    with torch.no_grad():
        mine, theirs = next(a.parameters()), next(b.parameters())
        theirs.copy_(2 * mine[order] + 0.01 * torch.randn_like(mine))
    (one,) = looking.compare_prompts(looking.neighbours(a, 3), looking.neighbours(b, 3))
    assert one.pairs == tuple((row, order.index(row)) for row in range(5))
    assert min(one.cosines) > 0.99


def test_nearest_tokens_overlap_as_counted():
    a, b = two(Prompt(length=2, start=((5,), (6,))), Prompt(length=3, start=((5,), (7,), (8,))))
    (one,) = looking.compare_prompts(looking.neighbours(a, 1), looking.neighbours(b, 1))
    assert one.pairs[0] == (0, 0)
    assert one.overlaps == (1, 0)
    assert one.overlap == 1 / 4


def test_matching_takes_the_best_first():
    similarity = torch.tensor([[0.9, 0.8, 0.0], [0.8, 0.1, 0.0]])
    assert looking.matching(similarity) == [(0, 0), (1, 1)]


def test_prefixes_are_compared_position_by_position():
    a, b = two(Prefix(length=2, mlp=None))
    (same,) = looking.compare_prefixes(a, a)
    assert same.attention == "decoder.attn"
    assert same.keys.shape == (3, 2)
    assert torch.allclose(same.keys, torch.ones(3, 2)) and torch.allclose(same.values, same.keys)
    with torch.no_grad():
        for (_, _, mine), (_, _, theirs) in zip(zoo.pieces(a), zoo.pieces(b), strict=True):
            theirs.k.copy_(-3 * mine.k)
            theirs.v.copy_(torch.cat((mine.v[:, :1], -mine.v[:, 1:]), 1))
    (turned,) = looking.compare_prefixes(a, b)
    assert torch.allclose(turned.keys, -torch.ones(3, 2))
    assert torch.allclose(turned.values, torch.zeros(3, 2), atol=1e-6)


def test_a_prefix_that_still_learns_is_seen_as_it_is():
    handle = inlay.attach(zoo.fresh("llama"), Prefix(length=2, mlp=4))
    with torch.no_grad():
        handle.model(**batch(handle.model, 5))
        for parameter in handle.parameters():
            parameter.mul_(2)
    served = {key: piece.export() for key, _, piece in zoo.pieces(handle)}
    for key, _, k, v in looking.keys_of(handle):
        assert torch.equal(k, served[key]["k"]) and torch.equal(v, served[key]["v"])


def test_maps_correlate():
    handle, _ = two(Prefix(length=2, mlp=None))
    (share,) = looking.attention(handle, [batch(handle.model, 7)])
    assert looking.correlation(share, share) == pytest.approx(1)
    turned = looking.Share(share.of, share.attention, share.layers, 1 - share.shares, share.even)
    assert looking.correlation(share, turned) == pytest.approx(-1)
    flat = looking.Share(share.of, share.attention, share.layers, 0 * share.shares, share.even)
    assert math.isnan(looking.correlation(share, flat))


def test_what_does_not_belong_together_is_not_compared():
    a, b = two(Prefix(length=2, mlp=None), Prefix(length=3, mlp=None))
    with pytest.raises(SpecError, match="of 2 and of 3 positions"):
        looking.compare_prefixes(a, b)
    a, b = two(Prompt(length=2), Prompt(length=2, at="embed.target"), "t5")
    with pytest.raises(SpecError, match=r"different places \(embed/0, embed.target/0\)"):
        looking.compare_prompts(looking.neighbours(a), looking.neighbours(b))
    one = looking.Share("prefix", "decoder.attn", (0,), torch.ones(1, 4), torch.ones(1))
    other = looking.Share("prompt", "decoder.attn", (0,), torch.ones(1, 4), torch.ones(1))
    with pytest.raises(SpecError, match="the prefix in decoder.attn and of the prompt"):
        looking.correlation(one, other)
