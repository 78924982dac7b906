"""DistilBERT: BERT with half the blocks, and other module names."""

from typing import Any

from torch import Tensor

from inlay.architectures.layout import Family, Layout, Sub
from inlay.architectures.logits import output_embeddings

DISTILBERT = Layout(
    stack="encoder",
    path="",
    layers="transformer.layer",
    embed="embeddings.word_embeddings",
    attention="attention",
    head_width="attention_head_size",
    causal=False,
    keeps_first=True,
    closing_norm="output_layer_norm",
    block={
        "attn": Sub("attention", "attention.out_lin"),
        "attn.q": "attention.q_lin",
        "attn.k": "attention.k_lin",
        "attn.v": "attention.v_lin",
        "attn.o": "attention.out_lin",
        "mlp": Sub("ffn", "ffn.dropout"),
        "mlp.up": "ffn.lin1",
        "mlp.down": "ffn.lin2",
        "norm.attn": "sa_layer_norm",
        "norm.mlp": "output_layer_norm",
    },
    norms={"norm.embed": "embeddings.LayerNorm"},
)


def distilbert_logits(model: Any, hidden: Tensor) -> Tensor:
    """DistilBERT's masked-language head: transform, norm, projector."""
    transformed = model.activation(model.vocab_transform(hidden))
    return output_embeddings(model)(model.vocab_layer_norm(transformed))


FAMILIES = (
    Family(
        ("distilbert",),
        (DISTILBERT,),
        logits=distilbert_logits,
        linear_head=False,
        position_table=True,
    ),
)
