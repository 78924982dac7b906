"""GPT-2: queries, keys and values in one Conv1D, which stores its matrix transposed.

GPT-BigCode (StarCoder) has a Linear in its place, with one key-value head after all queries, or
with as many as for queries, head by head.
"""

from dataclasses import replace

from inlay.architectures.layout import Family, Fused, Layout, Sub

GPT2 = Layout(
    stack="decoder",
    path="",
    layers="h",
    embed="wte",
    attention="attn",
    block={
        "attn": Sub("ln_1", "attn.resid_dropout"),
        "attn.q": Fused("attn.c_attn", 0, 3),
        "attn.k": Fused("attn.c_attn", 1, 3),
        "attn.v": Fused("attn.c_attn", 2, 3),
        "attn.o": "attn.c_proj",
        "mlp": Sub("ln_2", "mlp.dropout"),
        "mlp.up": "mlp.c_fc",
        "mlp.down": "mlp.c_proj",
        "norm.attn": "ln_1",
        "norm.mlp": "ln_2",
    },
    norms={"norm.final": "ln_f"},
)

BIGCODE = replace(
    GPT2,
    block={
        **GPT2.block,
        "attn.q": Fused("attn.c_attn", 0, 3, per_head=True),
        "attn.k": Fused("attn.c_attn", 1, 3, per_head=True),
        "attn.v": Fused("attn.c_attn", 2, 3, per_head=True),
    },
)

FAMILIES = (
    Family(("gpt2",), (GPT2,), position_table=True, shares_prefix=True),
    Family(("gpt_bigcode",), (BIGCODE,), position_table=True, shares_prefix=True),
)
