"""MPT: queries, keys and values in one matrix; attention weighs by distance."""

from inlay.architectures.layout import Family, Fused, Layout, Sub

MPT = Layout(
    stack="decoder",
    path="",
    layers="blocks",
    embed="wte",
    attention="attn",
    block={
        "attn": Sub("norm_1", "resid_attn_dropout"),
        "attn.q": Fused("attn.Wqkv", 0, 3),
        "attn.k": Fused("attn.Wqkv", 1, 3),
        "attn.v": Fused("attn.Wqkv", 2, 3),
        "attn.o": "attn.out_proj",
        "mlp": Sub("norm_2", "ffn.down_proj"),
        "mlp.up": "ffn.up_proj",
        "mlp.down": "ffn.down_proj",
        "norm.attn": "norm_1",
        "norm.mlp": "norm_2",
    },
    norms={"norm.final": "norm_f"},
)

FAMILIES = (Family(("mpt",), (MPT,)),)
