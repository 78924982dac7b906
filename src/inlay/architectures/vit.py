"""ViT: a pre-norm encoder over image patches. It has no token embeddings, hence no slots."""

from inlay.architectures.layout import Family, Layout, Sub

VIT = Layout(
    stack="encoder",
    path="",
    layers="layers",
    embed=None,
    core="attention",
    causal=False,
    first_stays=True,
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

CHARTS = (Family(("vit",), (VIT,)),)
