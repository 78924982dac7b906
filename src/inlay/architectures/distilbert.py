"""DistilBERT: BERT with half the blocks and names of its own."""

from typing import Any

from torch import Tensor

from inlay.architectures.layout import Family, Layout, Sub, output_head

DISTILBERT = Layout(
    stack="encoder",
    path="",
    layers="transformer.layer",
    embed="embeddings.word_embeddings",
    core="attention",
    width="attention_head_size",
    causal=False,
    first_stays=True,
    closing="output_layer_norm",
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
    return output_head(model)(model.vocab_layer_norm(transformed))


CHARTS = (
    Family(
        ("distilbert",), (DISTILBERT,), logits=distilbert_logits, plain_head=False, absolute=True
    ),
)
