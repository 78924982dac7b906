"""ModernBERT: pre-norm encoder, fused projections, rotary positions, local and global layers."""

from typing import Any

from torch import Tensor

from inlay.architectures.layout import Family, Fused, Layout, Sub, output_head

MODERNBERT = Layout(
    stack="encoder",
    path="",
    layers="layers",
    embed="embeddings.tok_embeddings",
    core="attn",
    causal=False,
    first_stays=True,
    block={
        "attn": Sub("attn_norm", "attn.out_drop"),
        "attn.q": Fused("attn.Wqkv", 0, 3),
        "attn.k": Fused("attn.Wqkv", 1, 3),
        "attn.v": Fused("attn.Wqkv", 2, 3),
        "attn.o": "attn.Wo",
        "mlp": Sub("mlp_norm", "mlp.Wo"),
        "mlp.gate": Fused("mlp.Wi", 0, 2),
        "mlp.up": Fused("mlp.Wi", 1, 2),
        "mlp.down": "mlp.Wo",
        "norm.attn": "attn_norm",
        "norm.mlp": "mlp_norm",
    },
    norms={"norm.embed": "embeddings.norm", "norm.final": "final_norm"},
)


def modernbert_logits(model: Any, hidden: Tensor) -> Tensor:
    """ModernBERT's masked-language head: a dense layer and a norm in front of the decoder."""
    return output_head(model)(model.head(hidden))


CHARTS = (Family(("modernbert",), (MODERNBERT,), logits=modernbert_logits, plain_head=False),)
