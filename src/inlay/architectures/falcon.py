"""Falcon: all queries of a key-value head, its key and its value side by side in one matrix."""

from inlay.architectures.layout import Family, Fused, Layout, Sub

FALCON = Layout(
    stack="decoder",
    path="",
    layers="h",
    embed="word_embeddings",
    attention="self_attention",
    block={
        "attn": Sub(("ln_attn", "input_layernorm"), "self_attention.dense"),
        "attn.q": Fused("self_attention.query_key_value", 0, 3, per_head=True),
        "attn.k": Fused("self_attention.query_key_value", 1, 3, per_head=True),
        "attn.v": Fused("self_attention.query_key_value", 2, 3, per_head=True),
        "attn.o": "self_attention.dense",
        "mlp": Sub(("ln_mlp", "post_attention_layernorm", "input_layernorm"), "mlp.dense_4h_to_h"),
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
        "norm.attn": "input_layernorm",
        "norm.mlp": "post_attention_layernorm",
    },
    norms={"norm.final": "ln_f"},
)

FAMILIES = (Family(("falcon",), (FALCON,)),)
