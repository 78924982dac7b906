"""The chart of a base: which sites and stacks it has, and how to run it up to its hidden states."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from inlay.architectures.config import max_positions
from inlay.architectures.layout import Family
from inlay.architectures.logits import output_embeddings
from inlay.architectures.names import TOWERS
from inlay.core.site import Site, Where, select
from inlay.errors import PortError


def last_state(output: Any) -> Tensor:
    """The last hidden state in what a stack returns, `[B, T, D]`. Raises PortError without one."""
    if isinstance(output, tuple):
        states = output[0]
    else:
        states = output.get("last_hidden_state") if isinstance(output, Mapping) else output
    if not isinstance(states, Tensor):
        raise PortError(
            f"there is no last hidden state in a {type(output).__name__}; use a method inside the "
            "blocks, such as LoRA"
        )
    return states


@dataclass(frozen=True, eq=False)
class Stack:
    """One stack of blocks in a base.

    name:   "encoder", "decoder", "vision", "audio", as in the names of its sites.
    module: the module whose forward takes ids and masks, images, sound, or states of another part.
    config: what it was made from.
    layers: its blocks, in order.
    embed:  its token embeddings; None where it reads no tokens.
    reads:  "text", "images", "audio", or "states" of another part of the base.
    reads_encoder: whether it is the decoder of an encoder–decoder.
    causal: a position sees only the positions before it.
    keeps_first: the first position stays the first one, because heads read it (`[CLS]`); prompts
            are inserted after it.
    position_start: the position id of a text's first token.
    window: how many positions back a block sees, where some block sees fewer than all; else None.
    beside_ids: see `Layout`; what a pass without ids needs besides the embeddings.
    arguments: of the module's forward, in order.
    """

    name: str
    module: nn.Module
    config: PreTrainedConfig
    layers: tuple[nn.Module, ...]
    embed: nn.Module | None
    reads: str
    reads_encoder: bool
    causal: bool
    keeps_first: bool
    position_start: int
    window: int | None
    beside_ids: Callable[[Any, Tensor], dict[str, Tensor]] | None = None
    arguments: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        _, *arguments = inspect.signature(type(self.module).forward).parameters
        object.__setattr__(self, "arguments", tuple(arguments))

    def looked_up(self, ids: Tensor) -> dict[str, Tensor]:
        """What a pass without these ids `[B, T]` needs besides their embeddings, by argument."""
        return {} if self.beside_ids is None else self.beside_ids(self.module, ids)

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next((p.device for p in self.module.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """What its floating-point parameters are."""
        floats = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        return next(floats, torch.float32)

    def takes(self, argument: str) -> bool:
        """Whether the stack's forward has an argument of that name."""
        return argument in self.arguments

    @property
    def vocabulary(self) -> int:
        """V, how many tokens the embedding table has; 0 where the stack reads no tokens."""
        return self._embeddings().shape[0]

    @property
    def width(self) -> int:
        """D, the width of the embedding table; 0 where the stack reads no tokens."""
        return self._embeddings().shape[1]

    def _embeddings(self) -> Tensor:
        """The embedding table, `[V, D]`; empty where the stack reads no tokens."""
        table = torch.empty(0, 0) if self.embed is None else self.embed.weight
        assert isinstance(table, Tensor)
        return table

    @property
    def is_recurrent(self) -> bool:
        """Whether the stack caches a recurrent state instead of keys and values (Mamba)."""
        return self.takes("use_cache") and not self.takes("past_key_values")

    @property
    def checkpointed(self) -> list[GradientCheckpointingLayer]:
        """The blocks under gradient checkpointing."""
        return [
            layer
            for layer in self.layers
            if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing
        ]

    def last_hidden_state(self, **inputs: Any) -> Tensor:
        """Run the stack, with all of its hooks: inputs of its forward -> `[B, T, D]`.

        Nothing is cached unless the inputs say so.
        """
        if self.takes("use_cache"):
            inputs.setdefault("use_cache", False)
        return last_state(self.module(**inputs))

    def run_without_hooks(self, **inputs: Any) -> Tensor:
        """Run the stack without the hooks on the stack itself; those inside it still act.

        inputs: of its forward. Nothing is cached. Returns the last hidden states `[B, T, D]`.
        """
        return last_state(self.module.forward(**inputs, use_cache=False, return_dict=True))


@dataclass(frozen=True, eq=False)
class Chart:
    """What is where in one base.

    family: the description it was read with.
    base:   the model.
    stacks: its stacks of blocks. First the one that reads the text, in an encoder–decoder the
            encoder and then the decoder; then what else there is (a vision tower).
    sites:  every named place, in the order of the stacks.
    """

    family: Family
    base: PreTrainedModel
    stacks: tuple[Stack, ...]
    sites: tuple[Site, ...]

    @property
    def kind(self) -> str:
        """The kind of base.

        "decoder", "encoder" and "encoder-decoder" can read text alone, whatever else they read;
        "vision" and "audio" read no text; "vision-decoder" and "audio-decoder" write text about
        what their encoder reads (Whisper); "states-decoder" and "states" are everything else.
        """
        first = self.stacks[0]
        source = TOWERS.get(first.reads, first.reads)
        if self.decoder is not None:
            return "encoder-decoder" if first.reads == "text" else f"{source}-decoder"
        if first.reads != "text":
            return source
        return "decoder" if first.causal else "encoder"

    @property
    def reads_text(self) -> bool:
        """Whether the base can read text alone."""
        return self.stacks[0].reads == "text"

    @property
    def decoder(self) -> Stack | None:
        """The decoder of an encoder–decoder, which reads the states of the first stack."""
        return next((stack for stack in self.stacks if stack.reads_encoder), None)

    @property
    def vocabulary(self) -> int:
        """V, how many tokens the first stack that reads text knows; 0 where none does."""
        return next((stack.vocabulary for stack in self.stacks if stack.embed is not None), 0)

    def stack(self, name: str) -> Stack:
        """The stack of that name."""
        return next(stack for stack in self.stacks if stack.name == name)

    @property
    def linear_head(self) -> bool:
        """Whether a loss may compute `logits` a few positions at a time."""
        return self.family.linear_head

    def find(self, where: Where) -> list[Site]:
        """The sites that `where` names. Raises SiteError where there are none."""
        return select(self.sites, where)

    def last_hidden_state(self, model: PreTrainedModel, **inputs: Any) -> Tensor:
        """Run the backbone up to the states that the language-model head reads, `[B, T, D]`.

        inputs: what the backbone takes. For an encoder–decoder `input_ids` and `attention_mask`
            `[B, S]` are the encoder's, `decoder_input_ids` and `decoder_attention_mask` `[B, T]`
            the decoder's, and the states returned are the decoder's.
        """
        encoder, decoder = self.stacks[0], self.decoder
        if decoder is None:
            return encoder.last_hidden_state(**inputs)
        decoder_input_ids = inputs.pop("decoder_input_ids")
        decoder_mask = inputs.pop("decoder_attention_mask", None)
        mask = inputs.get("attention_mask")
        return decoder.last_hidden_state(
            input_ids=decoder_input_ids,
            attention_mask=decoder_mask,
            encoder_hidden_states=encoder.last_hidden_state(**inputs),
            encoder_attention_mask=mask,
        )

    def logits(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Last hidden states `[..., D]` -> logits `[..., V]`, as the model's forward gives them."""
        return self.family.logits(model, hidden)

    def output_embedding_inputs(self, model: PreTrainedModel, hidden: Tensor) -> Tensor:
        """Last hidden states `[..., D]` -> what the head gives its output embeddings, `[..., D']`.

        Where the head has layers before its output embeddings (BERT's transform) these are the
        outputs of those layers; elsewhere they are the hidden states, scaled in some families.
        """
        recorded: list[Tensor] = []
        embeddings, thread = output_embeddings(model), get_ident()

        def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if get_ident() == thread:  # another may be in a pass of its own
                recorded.append(args[0])

        hook = embeddings.register_forward_pre_hook(record)
        try:
            self.logits(model, hidden)
        finally:
            hook.remove()
        return recorded[-1]

    def max_length(self, model: PreTrainedModel) -> int | None:
        """How many tokens the position ids allow for; None where the config does not limit them."""
        positions = max_positions(self.stacks[0].config)
        return None if positions is None else positions - self.stacks[0].position_start
