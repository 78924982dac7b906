"""OPT: pre-norm decoder with separate projections and learned positions."""

from inlay.architectures.layout import Family, Layout, Sub

OPT = Layout(
    stack="decoder",
    path="decoder",
    layers="layers",
    embed="embed_tokens",
    attention="self_attn",
    block={
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
    },
    norms={"norm.final": "final_layer_norm"},
)

FAMILIES = (Family(("opt",), (OPT,), position_table=True, shares_prefix=True),)
