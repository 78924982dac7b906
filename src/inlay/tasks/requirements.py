"""Checks that a model has the head that a task reads."""

from __future__ import annotations

from transformers import PreTrainedModel

from inlay.errors import TaskError
from inlay.handle import attached
from inlay.methods.head import Head
from inlay.runtime.trained_heads import head_of


def require_head(model: PreTrainedModel, head: Head) -> None:
    """Check that an attached inlay has a trained head for the same labels in the same order.

    It must classify each token where `head` does; otherwise any pooling is accepted.

    Raises TaskError where none has.
    """
    heads = [piece for name in attached(model) if (piece := head_of(model, name)) is not None]
    each = head.pool == "each"
    if not any(tuple(piece.labels) == head.labels and piece.each == each for piece in heads):
        labels = (f"{list(h.labels)}{' for each token' if h.each else ''}" for h in heads)
        present = f"; its heads: {', '.join(labels)}" if heads else ""
        raise TaskError(
            f"no attached inlay has a trained head for this task; add {head!r} to it{present}"
        )


def require_language_head(model: PreTrainedModel, purpose: str) -> None:
    """Check that the model has a language-model head, which `purpose` needs.

    Raises TaskError where it has none.
    """
    if model.get_output_embeddings() is None:
        raise TaskError(
            f"{purpose} needs a language-model head, and {type(model).__name__} has none; load it "
            "with AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForMaskedLM"
        )


def require_decoder_start(model: PreTrainedModel) -> int:
    """The token that an encoder–decoder's decoder starts with. Raises TaskError without one."""
    start = model.config.decoder_start_token_id
    if start is None:
        raise TaskError("the model has no start token; set config.decoder_start_token_id")
    return int(start)
