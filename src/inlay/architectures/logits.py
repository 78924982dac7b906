"""From hidden states to logits: the output embeddings, and the heads that are nothing else."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from inlay.core.modes import evaluating
from inlay.errors import SiteError


def input_embeddings(model: nn.Module) -> nn.Embedding | None:
    """The table of token embeddings; None where a model reads no tokens."""
    try:
        table = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    except (NotImplementedError, AttributeError):  # how transformers says that there is none
        return None
    return table if isinstance(table, nn.Embedding) else None


def output_matrix(model: PreTrainedModel) -> nn.Module | None:
    """The module that maps hidden states to logits over a vocabulary; None where there is none."""
    try:
        module = model.get_output_embeddings()
    except (NotImplementedError, AttributeError):  # how transformers says that there is none
        return None
    return module if isinstance(module, nn.Module) and "weight" in module._parameters else None


def output_embeddings(model: PreTrainedModel) -> nn.Module:
    """The module that maps hidden states to logits. Raises SiteError where there is none."""
    module = output_matrix(model)
    if module is None:
        raise SiteError(
            f"{type(model).__name__} has no language-model head; load the model with "
            "AutoModelForCausalLM (or Seq2SeqLM, MaskedLM), or train a Head"
        )
    return module


def plain_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """Logits of a head that is its output embeddings and nothing else: `[..., D] -> [..., V]`."""
    return output_embeddings(model)(hidden)


_verified: WeakSet[nn.Module] = WeakSet()


def verified_logits(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """`plain_logits` for families that nobody described: `[..., D] -> [..., V]`.

    The first call for a model runs two tokens through it and compares its logits with the output
    of its output embeddings.

    Raises SiteError where they differ: the head then does more, and nobody described what.
    """
    embeddings = output_embeddings(model)
    if model not in _verified:
        outputs: list[Tensor] = []
        hook = embeddings.register_forward_hook(lambda module, args, output: outputs.append(output))
        ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
        inputs: dict[str, Any] = {"input_ids": ids}
        if model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
        try:
            with evaluating(model):
                logits = model(**inputs).logits
        finally:
            hook.remove()
        if not outputs or not torch.equal(outputs[-1], logits):
            raise SiteError(
                f"the head of {type(model).__name__} does more than its output embeddings, and "
                "its family has no description; use your own loss on model(...).logits"
            )
        _verified.add(model)
    return embeddings(hidden)
