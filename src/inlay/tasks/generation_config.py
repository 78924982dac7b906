"""The options of `model.generate` that a task gives, on top of the model's own."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from inlay.errors import TaskError, nearest
from inlay.tasks.base import Bound

MAX_NEW_TOKENS = 64

SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff"),
)
"""Options of a model's own generation config that mean nothing without sampling."""

RESERVED = (
    *("num_return_sequences", "return_dict_in_generate", "output_scores", "output_logits"),
    *("output_attentions", "output_hidden_states", "max_length", "transformers_version"),
)
"""Fields of GenerationConfig that the task sets itself: it returns one text for each source."""


@dataclass(frozen=True, eq=False)
class GenerationCall:
    """A call of `model.generate`.

    ids, mask: what the model reads, `[B, S]`. config: the options. prompt_length: how many of the
    returned tokens are what was read.
    """

    ids: Tensor
    mask: Tensor
    config: GenerationConfig
    prompt_length: int

    def run(self, model: PreTrainedModel, **options: Any) -> Tensor:
        """The tokens, `[B, T]`. options: further arguments of `generate`."""
        generate: Any = model.generate
        return generate(
            input_ids=self.ids,
            attention_mask=self.mask,
            generation_config=self.config,
            **options,
        )


def check_options(options: Mapping[str, Any]) -> None:
    """Raise TaskError for an option that `generate` does not have or the task sets itself."""
    known = set(GenerationConfig().to_dict()) - set(RESERVED)
    for option in options:
        if option not in known:
            raise TaskError(f"generate cannot set {option!r} here{nearest(option, known)}")


def generation_config(
    model: PreTrainedModel, bound: Bound, options: Mapping[str, Any]
) -> GenerationConfig:
    """The model's own generation config, made greedy, with the user's options on top.

    Raises TaskError for options that do not fit together.
    """
    defaults = model.generation_config
    config = GenerationConfig() if defaults is None else copy.deepcopy(defaults)
    values = {"do_sample": False, "num_beams": 1, "max_new_tokens": MAX_NEW_TOKENS, **options}
    config.max_length = None
    if not values["do_sample"]:
        for name in SAMPLING:
            setattr(config, name, None)
    for name, value in values.items():
        setattr(config, name, value)
    if config.eos_token_id is None:
        config.eos_token_id = bound.tokenizer.eos_token_id
    config.pad_token_id = bound.pad_id
    if config.decoder_start_token_id is None and bound.chart.kind == "encoder-decoder":
        config.decoder_start_token_id = model.config.decoder_start_token_id
    try:
        config.validate(strict=True, user_set_attributes=set(values))
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise TaskError(f"generation options that do not fit together: {reason}") from None
    return config


def end_tokens(config: GenerationConfig, bound: Bound) -> tuple[str, ...]:
    """The tokens that end what is generated, as text."""
    ends = config.eos_token_id
    ids = {bound.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    return tuple(bound.tokenizer.convert_ids_to_tokens(sorted(ids)))
