"""What the stacks of a base are called, and in which order they come.

A stack is called by what it reads and does: `decoder` and `encoder` read text (or the states of
another part), `vision` reads images, `audio` sound. Of several of one kind the second is `vision2`.
First comes the stack whose token embeddings are the base's own, or the encoder of an
encoder–decoder with its decoder behind it; then the rest, in the order of the base.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from inlay.architectures.config import is_decoder
from inlay.architectures.layout import Family, Layout
from inlay.architectures.logits import input_embeddings
from inlay.architectures.paths import submodule

MEDIA = {
    "images": frozenset({"pixel_values", "pixel_values_videos", "flattened_patches"}),
    "audio": frozenset({"input_features", "input_values", "audio_values", "audio_features"}),
}
"""The arguments under which a forward pass takes what is no text."""

MODALITIES = {"image": "images", "video": "images", "audio": "audio"}
"""What transformers calls what a model reads."""

TOWERS = {"images": "vision", "audio": "audio"}
"""What a stack is called that reads something else than text."""


@dataclass(frozen=True, eq=False)
class Draft:
    """A stack on the way to its name.

    known: the family that describes it, where one does.
    """

    layout: Layout
    module: nn.Module
    config: PreTrainedConfig
    known: Family | None = None

    @property
    def reads_encoder(self) -> bool:
        """Whether it can be the decoder of an encoder–decoder."""
        takes = inspect.signature(type(self.module).forward).parameters
        return is_decoder(self.config) or "encoder_hidden_states" in takes


def reads(stack: nn.Module, has_tokens: bool) -> str:
    """What a stack reads: "text", "images", "audio", or "states" of another part of the base."""
    if has_tokens:
        return "text"
    takes = set(inspect.signature(type(stack).forward).parameters)
    for medium, arguments in MEDIA.items():
        if takes & arguments:
            return medium
    modalities = type(stack).input_modalities if isinstance(stack, PreTrainedModel) else ()
    each = (modalities,) if isinstance(modalities, str) else modalities
    media = {MODALITIES.get(modality, "text") for modality in each}
    return media.pop() if len(media) == 1 and media != {"text"} else "states"


def named(drafts: Sequence[Draft], model: PreTrainedModel) -> list[Draft]:
    """The stacks of a base in their order, each with its name."""
    pair = _encoder_and_decoder(drafts, model) if model.config.is_encoder_decoder else []
    first = pair or _main(drafts, model)
    ordered = [*first, *(draft for draft in drafts if draft not in first)]
    result: list[Draft] = []
    taken: dict[str, int] = {}
    for draft in ordered:
        causal = draft is pair[1] if draft in pair else draft.layout.causal
        name = "decoder" if draft in pair and causal else _word(draft.layout.reads, causal)
        taken[name] = taken.get(name, 0) + 1
        name = name if taken[name] == 1 else f"{name}{taken[name]}"
        layout = replace(draft.layout, stack=name, causal=causal)
        result.append(replace(draft, layout=layout))
    return result


def _word(reads: str, causal: bool) -> str:
    return TOWERS.get(reads) or ("decoder" if causal else "encoder")


def _encoder_and_decoder(drafts: Sequence[Draft], model: PreTrainedModel) -> list[Draft]:
    """The two stacks of an encoder–decoder; none where they cannot be told apart.

    Of several encoders it is the one that reads the base's text, whatever tower stands before it.
    """
    decoders = [draft for draft in drafts if draft.reads_encoder]
    if len(decoders) == len(drafts):
        decoders = [draft for draft in drafts if is_decoder(draft.config)]
    decoders = decoders or list(drafts[-1:])
    encoders = [draft for draft in drafts if draft not in decoders] or list(drafts[:1])
    encoder = next(iter(_main(encoders, model)), encoders[0])
    return [encoder, decoders[-1]] if len(drafts) > 1 else []


def _main(drafts: Sequence[Draft], model: PreTrainedModel) -> list[Draft]:
    """The stack that reads the base's own tokens; else the first that reads any."""
    table = input_embeddings(model)
    texts = [draft for draft in drafts if draft.layout.embed is not None]
    own = [d for d in texts if table is not None and _table(d) is table]
    return (own or texts)[:1]


def _table(draft: Draft) -> nn.Module | None:
    """The token embeddings of a stack."""
    embed = draft.layout.embed
    return None if embed is None else submodule(draft.module, embed)
