"""Chart: what is where in one base, and its stacks."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from inlay.architectures.layout import (
    Family,
    output_head,
)
from inlay.core.modes import evaluating
from inlay.core.site import Site, Where, select


@dataclass(frozen=True, eq=False)
class Stack:
    """One stack of blocks in a base.

    window: how far back a block sees where some see less than everything, else None.
    """

    name: str
    module: PreTrainedModel
    layers: tuple[nn.Module, ...]
    embed: nn.Module | None
    causal: bool
    first_stays: bool
    position_start: int
    window: int | None

    def takes(self, argument: str) -> bool:
        """Whether the stack's forward has an argument of that name."""
        return argument in inspect.signature(type(self.module).forward).parameters

    @property
    def vocabulary(self) -> int:
        """How many tokens the embedding table has; 0 where the stack reads no words."""
        return self._table().shape[0]

    @property
    def width(self) -> int:
        """D, the width of the embedding table; 0 where the stack reads no words."""
        return self._table().shape[1]

    def _table(self) -> Tensor:
        """The embedding table, `[V, D]`; empty where the stack reads no words."""
        table = torch.empty(0, 0) if self.embed is None else self.embed.weight
        assert isinstance(table, Tensor)
        return table

    @property
    def keeps_state(self) -> bool:
        """Whether it goes on from a state of its own, where others have a cache of keys."""
        return self.takes("use_cache") and not self.takes("past_key_values")

    @property
    def checkpointed(self) -> list[GradientCheckpointingLayer]:
        """The blocks that are run again in backward, because they keep nothing for it."""
        return [
            layer
            for layer in self.layers
            if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing
        ]

    def states(self, **inputs: Any) -> Tensor:
        """The last hidden states, `[B, T, D]`."""
        if self.takes("use_cache"):
            inputs.setdefault("use_cache", False)
        return self.module(**inputs).last_hidden_state

    def alone(self, **inputs: Any) -> Tensor:
        """The last hidden states of inputs that no door, and no other hook on the stack, sees."""
        return self.module.forward(**inputs, use_cache=False, return_dict=True).last_hidden_state


@dataclass(frozen=True, eq=False)
class Chart:
    """What is where in one base."""

    family: Family
    base: PreTrainedModel
    stacks: tuple[Stack, ...]
    sites: tuple[Site, ...]

    @property
    def kind(self) -> str:
        """ "decoder", "encoder", "encoder-decoder" or "vision"."""
        if len(self.stacks) > 1:
            return "encoder-decoder"
        if self.stacks[0].embed is None:
            return "vision"
        return "decoder" if self.stacks[0].causal else "encoder"

    def stack(self, name: str) -> Stack:
        """The stack of that name."""
        return next(stack for stack in self.stacks if stack.name == name)

    @property
    def plain_head(self) -> bool:
        """Whether `logits` may be computed a few rows at a time."""
        return self.family.plain_head

    def find(self, where: Where) -> list[Site]:
        """The sites that `where` names. Raises SiteError where there are none."""
        return select(self.sites, where)

    def hidden(self, model: PreTrainedModel, **inputs: Any) -> Tensor:
        """The last hidden states `[B, T, D]` that the language-model head reads.

        inputs: what the backbone takes; for an encoder–decoder also `decoder_input_ids`, whose
        states are returned.
        """
        if len(self.stacks) == 1:
            return self.stacks[0].states(**inputs)
        encoder, decoder = self.stacks
        decoder_input_ids = inputs.pop("decoder_input_ids")
        decoder_mask = inputs.pop("decoder_attention_mask", None)
        mask = inputs.get("attention_mask")
        return decoder.states(
            input_ids=decoder_input_ids,
            attention_mask=decoder_mask,
            encoder_hidden_states=encoder.states(**inputs),
            encoder_attention_mask=mask,
        )

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """hidden `[..., D]` -> logits `[..., V]`, as the model's own forward computes them."""
        return self.family.logits(model, hidden)

    def features(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """hidden `[..., D]` -> what the output embeddings are given for it, `[..., D']`."""
        seen: list[Tensor] = []
        head = output_head(model)
        hook = head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self.logits(model, hidden)
        finally:
            hook.remove()
        return seen[-1]

    def max_length(self, model: PreTrainedModel) -> int | None:
        """The longest text the positions allow, or None where nothing limits it."""
        limit = getattr(model.config, "max_position_embeddings", None)
        return None if limit is None else limit - self.stacks[0].position_start

    def logits_follow(self, model: PreTrainedModel) -> bool:
        """Whether `logits` reproduces what the model's own forward computes (tried on 4 tokens)."""
        ids = torch.arange(4, device=model.device).unsqueeze(0) % model.config.vocab_size
        inputs: dict[str, Any] = {"input_ids": ids}
        if self.kind == "encoder-decoder":
            inputs["decoder_input_ids"] = ids
        with evaluating(model):
            own = model(**inputs).logits.float()
            ours = self.logits(model, self.hidden(model, **inputs)).float()
        return own.shape == ours.shape and torch.allclose(own, ours, rtol=1e-2, atol=1e-2)
