"""Bases of several stacks, and of stacks that read no text: what they are called and made of."""

import pytest
import torch
import transformers as hf

import inlay
from inlay import Houlsby, LoRA, Prefix, Prompt
from inlay.architectures.resolve import resolve
from inlay.core.site import Where
from inlay.errors import PortError, SiteError, SpecError, TaskError
from inlay.tasks.generate import Generate
from tests import zoo
from tests.every.tiny import tiny_configs, tiny_model
from tests.tasks.tiny import tokenizer

TOWER = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
CLIP_TEXT = {**TOWER, "vocab_size": 99, "max_position_embeddings": 20, "eos_token_id": 98}


def clip():
    return hf.CLIPModel(
        hf.CLIPConfig(
            text_config=CLIP_TEXT,
            vision_config={**TOWER, "image_size": 8, "patch_size": 4},
            projection_dim=16,
        )
    )


def swin():
    return hf.SwinModel(
        hf.SwinConfig(
            image_size=16,
            patch_size=2,
            embed_dim=16,
            depths=[1, 2],
            num_heads=[2, 4],
            window_size=4,
        )
    )


def bert_to_bert():
    size = hf.BertConfig(**zoo.DIMS, **zoo.IDS)
    return hf.EncoderDecoderModel(hf.EncoderDecoderConfig.from_encoder_decoder_configs(size, size))


def detr():
    """Its encoder reads the states of a backbone of convolutions."""
    config = hf.DetrConfig(
        d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_queries=5,
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None,
        backbone_config=hf.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
        ),
    )  # fmt: skip
    return hf.DetrModel(config)


BASES = {
    "llava": (lambda: zoo.fresh("llava"), "decoder", {"decoder": 3, "vision": 2}),
    "whisper": (lambda: zoo.fresh("whisper"), "audio-decoder", {"audio": 2, "decoder": 3}),
    "wav2vec2": (lambda: zoo.fresh("wav2vec2"), "audio", {"audio": 3}),
    "clip": (clip, "decoder", {"decoder": 2, "vision": 2}),
    "clip-vision": (lambda: zoo.fresh("clip-vision"), "vision", {"vision": 2}),
    "swin": (swin, "vision", {"vision": 3}),
    "bert2bert": (bert_to_bert, "encoder-decoder", {"encoder": 3, "decoder": 3}),
    "detr": (detr, "vision-decoder", {"vision": 2, "decoder": 2}),
}


@pytest.mark.parametrize("name", BASES)
def test_the_stacks_of_a_base(name):
    make, kind, depths = BASES[name]
    model = make()
    chart = resolve(model)
    assert chart.kind == kind
    assert {stack.name: len(stack.layers) for stack in chart.stacks} == depths
    names = [site.name for site in chart.sites]
    assert len(set(names)) == len(names)
    for stack, depth in depths.items():
        for layer in range(depth):
            wanted = {f"{stack}.{layer}.{role}" for role in ("attn.q", "attn.v", "mlp", "block")}
            assert wanted <= set(names)


def test_stacks_are_the_models_inside():
    model = zoo.model("llava")
    decoder, vision = resolve(model).stacks
    assert decoder.module is model.model.language_model
    assert vision.module is model.model.vision_tower
    audio, decoder = resolve(zoo.model("whisper")).stacks
    assert (audio.module, decoder.module) == (
        zoo.model("whisper").model.encoder,
        zoo.model("whisper").model.decoder,
    )
    assert resolve(zoo.model("whisper")).decoder is not None


def test_a_tower_alone_has_the_names_that_it_has_in_the_whole():
    model = clip()
    whole = {site.name: site.host for site in resolve(model).sites}
    alone = {site.name: site.host for site in resolve(model.vision_model).sites}
    alone = {name: host for name, host in alone.items() if not name.endswith(("final", "kv"))}
    assert alone.items() <= whole.items()


def test_the_encoder_of_a_pair_is_the_one_that_reads_text_behind_any_tower():
    config = next(tiny_configs(hf.Florence2Config))
    model = tiny_model(hf.Florence2ForConditionalGeneration, config)
    chart = resolve(model)
    assert chart.kind == "encoder-decoder"
    assert [stack.name for stack in chart.stacks] == ["encoder", "decoder", "vision"]
    text = model.model.language_model
    assert chart.stacks[0].module is text.encoder
    assert chart.decoder is not None and chart.decoder.module is text.decoder
    inlay.attach(model, LoRA(rank=2) + Prefix(length=2, mlp=None))
    ids = torch.tensor([[5, 6, 7]])
    model(input_ids=ids, decoder_input_ids=ids).logits.sum().backward()
    with pytest.raises(PortError, match="given vectors by the rest of the base"):
        inlay.attach(model, inlay.PTuning(length=3, encoder=None), name="ids")


def test_a_second_attention_in_a_block_may_be_of_another_kind():
    """GroupViT assigns its tokens to groups by an attention without heads."""
    model = tiny_model(hf.GroupViTModel, next(tiny_configs(hf.GroupViTConfig)))
    chart = resolve(model)
    seconds = [site.host for site in chart.sites if site.role == "cross.q"]
    assert seconds  # there are second attentions, and keys are added where heads are known
    keyed = [site for site in chart.sites if site.heads]
    assert keyed and all(site.head_dim == site.host.head_dim for site in keyed)
    inlay.attach(model, LoRA(rank=2))


def test_the_widths_of_stages_are_their_own():
    sites = {site.name: site for site in resolve(swin()).sites}
    assert [sites[f"vision.{n}.attn"].d_in for n in range(3)] == [16, 32, 32]
    assert sites["vision.0.block"].d_out == 16


def test_prefix_and_prompts_go_where_the_text_is():
    model = zoo.fresh("llava")
    handle = inlay.attach(model, Prefix(length=2) + Prompt(length=2) + LoRA(rank=2))
    by_method = {type(placed.method).__name__: set() for placed in handle.placed}
    for placed in handle.placed:
        by_method[type(placed.method).__name__].add(placed.site.stack)
    assert by_method == {
        "Prefix": {"decoder"},
        "Prompt": {"decoder"},
        "LoRA": {"decoder", "vision"},
    }
    handle.detach()
    model = zoo.fresh("whisper")
    handle = inlay.attach(model, Prefix(length=2) + Prompt(length=2))
    assert {placed.site.stack for placed in handle.placed} == {"decoder"}


def test_one_stack_of_several():
    model = zoo.fresh("llava")
    handle = inlay.attach(model, LoRA(rank=2, at=Where(("attn.q",), stacks=("vision",))))
    assert {placed.site.stack for placed in handle.placed} == {"vision"}
    with pytest.raises(SiteError, match="has no audio; it has: decoder, vision"):
        inlay.attach(model, LoRA(at=Where(("attn.q",), stacks=("audio",))), name="b")
    with pytest.raises(SpecError, match="no stack is called 'visoin'; known: encoder, decoder"):
        Where(("attn.q",), stacks=("visoin",))


def inputs(name, model):
    pixels, ids = torch.randn(2, 3, 8, 8), torch.arange(8, 20).view(2, 6)
    return {
        "llava": {
            "input_ids": torch.cat((torch.full((2, 4), 98), ids), 1),
            "pixel_values": pixels,
        },
        "clip": {"input_ids": ids, "pixel_values": pixels},
        "clip-vision": {"pixel_values": pixels},
        "whisper": {"input_features": torch.randn(2, 8, 20), "decoder_input_ids": ids},
        "wav2vec2": {"input_values": torch.randn(2, 800)},
        "swin": {"pixel_values": torch.randn(2, 3, 16, 16)},
    }[name]


@pytest.mark.parametrize("name", ["llava", "clip", "clip-vision", "whisper", "wav2vec2", "swin"])
def test_every_piece_learns_in_every_stack(name):
    """LoRA and adapters in all stacks at once: each tensor gets a gradient, the base gets none."""
    model = BASES[name][0]()
    zoo.drop_nothing(model)
    batch = inputs(name, model)
    with torch.no_grad():
        bare = first(model(**batch))
    handle = inlay.attach(model, LoRA(rank=2) + Houlsby(bottleneck=4) + inlay.BitFit())
    assert torch.allclose(first(model(**batch)), bare, atol=0.05)  # adapters start near nothing
    for parameter in handle.parameters():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    output = model(**batch)
    kinds = [output.text_embeds, output.image_embeds] if name == "clip" else [first(output)]
    sum((kind * torch.randn_like(kind)).sum() for kind in kinds).backward()
    stacks = {placed.site.stack for placed in handle.placed}
    assert stacks == set(BASES[name][2])
    last_alone = {"llava": ("vision.1.",), "clip": ()}.get(name, ())  # LLaVA reads the last but one
    for placed in handle.placed:
        if placed.name.startswith(last_alone or ("nothing",)):
            continue
        grads = [parameter.grad for parameter in placed.piece.parameters()]
        assert all(grad is not None for grad in grads), placed.name
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("inlays"))
    handle.detach()
    with torch.no_grad():
        assert torch.equal(first(model(**batch)), bare)


def first(output):
    """The first tensor of an output that is no loss and no cache."""
    return next(value for value in output.to_tuple() if isinstance(value, torch.Tensor))


@pytest.mark.parametrize(
    ("family", "what"), [("wav2vec2", "audio"), ("whisper", "audio"), ("clip-vision", "images")]
)
def test_a_task_of_texts_refuses_what_reads_none(family, what):
    model = zoo.model(family)
    name = type(model).__name__
    with pytest.raises(TaskError, match=f"generate works on text, and {name} reads {what}; write"):
        Generate().bind(model, tokenizer("decoder"))


def test_a_task_of_texts_trains_the_text_of_a_model_that_sees():
    """LLaVA reads text alone as its language model does."""
    model = zoo.model("llava")
    chart = resolve(model)
    ids = torch.arange(8, 20).view(2, 6)
    with torch.no_grad():
        states = chart.last_hidden_state(model, input_ids=ids)
        assert torch.allclose(chart.logits(model, states), model(input_ids=ids).logits, atol=1e-6)
    assert chart.max_length(model) == 64
