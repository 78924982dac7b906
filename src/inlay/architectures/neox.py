"""GPT-NeoX: queries, keys and values interleaved head by head; attention and MLP in parallel.

Persimmon has the same matrix, and its sub-layers one after the other.
"""

from dataclasses import replace

from inlay.architectures.layout import Family, Fused, Layout, Sub

NEOX = Layout(
    stack="decoder",
    path="",
    layers="layers",
    embed="embed_in",
    attention="attention",
    head_width="head_size",
    block={
        "attn": Sub("input_layernorm", "post_attention_dropout"),
        "attn.q": Fused("attention.query_key_value", 0, 3, per_head=True),
        "attn.k": Fused("attention.query_key_value", 1, 3, per_head=True),
        "attn.v": Fused("attention.query_key_value", 2, 3, per_head=True),
        "attn.o": "attention.dense",
        "mlp": Sub("post_attention_layernorm", "post_mlp_dropout"),
        "mlp.up": "mlp.dense_h_to_4h",
        "mlp.down": "mlp.dense_4h_to_h",
        "norm.attn": "input_layernorm",
        "norm.mlp": "post_attention_layernorm",
    },
    norms={"norm.final": "final_layer_norm"},
)

PERSIMMON = replace(
    NEOX,
    embed="embed_tokens",
    attention="self_attn",
    head_width="head_dim",
    block={
        **NEOX.block,
        "attn": Sub("input_layernorm", "self_attn.dense"),
        "attn.q": Fused("self_attn.query_key_value", 0, 3, per_head=True),
        "attn.k": Fused("self_attn.query_key_value", 1, 3, per_head=True),
        "attn.v": Fused("self_attn.query_key_value", 2, 3, per_head=True),
        "attn.o": "self_attn.dense",
        "mlp": Sub("post_attention_layernorm", "mlp.dense_4h_to_h"),
    },
    norms={"norm.final": "final_layernorm"},
)

FAMILIES = (
    Family(("gpt_neox",), (NEOX,), shares_prefix=True),
    Family(("persimmon",), (PERSIMMON,)),
)
