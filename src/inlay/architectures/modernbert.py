"""ModernBERT: pre-norm encoder, fused projections, rotary positions, local and global layers."""

from typing import Any

from torch import Tensor

from inlay.architectures.layout import Family, Fused, Layout, Sub
from inlay.architectures.logits import output_embeddings

MODERNBERT = Layout(
    stack="encoder",
    path="",
    layers="layers",
    embed="embeddings.tok_embeddings",
    attention="attn",
    causal=False,
    keeps_first=True,
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
    """ModernBERT's masked-language head: a dense layer and a norm before the output embeddings."""
    return output_embeddings(model)(model.head(hidden))


FAMILIES = (Family(("modernbert",), (MODERNBERT,), logits=modernbert_logits, linear_head=False),)
