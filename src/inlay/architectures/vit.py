"""ViT: a pre-norm encoder over image patches. Without token embeddings it takes no prompts."""

from inlay.architectures.layout import Family, Layout, Sub

VIT = Layout(
    stack="vision",
    path="",
    layers="layers",
    embed=None,
    reads="images",
    attention="attention",
    causal=False,
    keeps_first=True,
    block={
        "attn": Sub("layernorm_before", "attention.o_proj"),
        "attn.q": "attention.q_proj",
        "attn.k": "attention.k_proj",
        "attn.v": "attention.v_proj",
        "attn.o": "attention.o_proj",
        "mlp": Sub("layernorm_after", "mlp.fc2"),
        "mlp.up": "mlp.fc1",
        "mlp.down": "mlp.fc2",
        "norm.attn": "layernorm_before",
        "norm.mlp": "layernorm_after",
    },
    norms={"norm.final": "layernorm"},
)

FAMILIES = (Family(("vit",), (VIT,)),)
