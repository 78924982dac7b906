"""The share of attention that falls on prompts and prefixes, by layer and head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from inlay.core.modes import evaluating
from inlay.errors import PortError
from inlay.handle import Inlay
from inlay.inspect.passes import served_alone
from inlay.inspect.recorder import AttentionRecorder, AttentionShare
from inlay.runtime.attention import eagerly
from inlay.runtime.observation import observed


def attention_shares(
    handle: Inlay, batches: Iterable[Mapping[str, Tensor]]
) -> list[AttentionShare]:
    """Measure on texts which share of attention the prompts and prefixes of an inlay get.

    batches: what the backbone takes, `input_ids` `[B, T]` and, where there is padding,
        `attention_mask`; in an encoder–decoder also `decoder_input_ids` and
        `decoder_attention_mask`.

    The weights are those of the model's own eager attention, with all of its masks, biases and
    caps; a prompt runs as part of its row. Queries are the tokens of the text, without padding
    and without the prompt itself. Virtual tokens (ids from V on) count as a prompt wherever they
    are in the text. The first position of a causal model gets much attention whatever it holds.

    Returns one result per kind of attention and kind of piece; none where nothing can be measured:
    without a prompt, prefix or virtual token in the texts, or where attention does not accept
    extra keys and values.

    Raises PortError for a base that reads no texts.
    """
    chart = handle.chart
    if not chart.reads_text:
        raise PortError(
            f"{type(chart.base).__name__} reads no text alone, and attention is measured on texts; "
            "use a base that reads texts"
        )
    recorder = AttentionRecorder(handle)
    with (
        evaluating(handle.model),
        served_alone(handle),
        eagerly(handle.model),
        observed(handle.model, recorder.add),
    ):
        for batch in batches:
            recorder.begin(batch)
            chart.last_hidden_state(handle.model, **batch)
    return recorder.shares(chart)
