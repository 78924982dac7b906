"""CLIP and SigLIP: pre-norm towers for images and for text; CLIP's text tower is causal."""

from dataclasses import replace

from inlay.architectures.layout import Family, Layout, Sub

VISION = Layout(
    stack="vision",
    path="",
    layers="encoder.layers",
    embed=None,
    reads="images",
    attention="self_attn",
    causal=False,
    keeps_first=True,
    block={
        "attn": Sub("layer_norm1", "self_attn.out_proj"),
        "attn.q": "self_attn.q_proj",
        "attn.k": "self_attn.k_proj",
        "attn.v": "self_attn.v_proj",
        "attn.o": "self_attn.out_proj",
        "mlp": Sub("layer_norm2", "mlp.fc2"),
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
        "norm.attn": "layer_norm1",
        "norm.mlp": "layer_norm2",
    },
    norms={"norm.embed": "pre_layrnorm"},
)

SIGLIP_VISION = replace(VISION, keeps_first=False, norms={"norm.final": "post_layernorm"})

TEXT = replace(
    VISION,
    stack="decoder",
    embed="embeddings.token_embedding",
    reads="text",
    causal=True,
    keeps_first=False,
    norms={"norm.final": "final_layer_norm"},
)

FAMILIES = (
    Family(("clip_vision_model",), (VISION,)),
    Family(("siglip_vision_model",), (SIGLIP_VISION,)),
    Family(("clip_text_model",), (TEXT,), position_table=True),
    Family(
        ("siglip_text_model",),
        (replace(TEXT, stack="encoder", causal=False),),
        position_table=True,
    ),
)
