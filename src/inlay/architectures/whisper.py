"""Whisper: an encoder over sound and a decoder that writes what was said, both pre-norm."""

from typing import Any

from inlay.architectures.layout import Family, Layout, Place, Sub

BLOCK: dict[str, Place] = {
    "attn": Sub("self_attn_layer_norm", "self_attn.out_proj"),
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.out_proj",
    "mlp": Sub("final_layer_norm", "fc2"),
    "mlp.up": "fc1",
    "mlp.down": "fc2",
    "norm.attn": "self_attn_layer_norm",
    "norm.mlp": "final_layer_norm",
}
CROSS: dict[str, Place] = {
    "cross": Sub("encoder_attn_layer_norm", "encoder_attn.out_proj"),
    "cross.q": "encoder_attn.q_proj",
    "cross.k": "encoder_attn.k_proj",
    "cross.v": "encoder_attn.v_proj",
    "cross.o": "encoder_attn.out_proj",
    "norm.cross": "encoder_attn_layer_norm",
}
COMMON: dict[str, Any] = {
    "layers": "layers",
    "attention": "self_attn",
    "norms": {"norm.final": "layer_norm"},
}
ENCODER = Layout(
    stack="audio",
    path="encoder",
    embed=None,
    reads="audio",
    block=BLOCK,
    causal=False,
    **COMMON,
)
DECODER = Layout(
    stack="decoder",
    path="decoder",
    embed="embed_tokens",
    block={**BLOCK, **CROSS},
    cross_attention="encoder_attn",
    **COMMON,
)

FAMILIES = (Family(("whisper",), (ENCODER, DECODER)),)
