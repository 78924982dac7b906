"""What a pass cannot do with the inlays that serve it, noticed before it begins."""

from __future__ import annotations

from typing import Any

from transformers.generation.continuous_batching import PagedAttentionCache

from inlay.errors import PortError
from inlay.runtime.extra_kv import ExtraKVPort
from inlay.runtime.port import StackState
from inlay.runtime.positions import is_packed
from inlay.runtime.prompts import PromptPort
from inlay.runtime.routing import Routing
from inlay.runtime.stack_inputs import main_input


def check_rows(routing: Routing, inputs: dict[str, Any]) -> None:
    """Raise RowsError where rows were chosen for another number of rows than the pass has."""
    rows = main_input(inputs)
    if rows is not None:
        routing.times(len(rows))


def check_continuous_batching(state: StackState, inputs: dict[str, Any]) -> None:
    """Raise PortError where an inlay cannot act on texts whose keys lie in shared pages.

    transformers runs these passes in a thread of its own, and asks nothing of the base in the
    caller's: the message is the `error` of each result.
    """
    if not isinstance(inputs.get("cache"), PagedAttentionCache):
        return
    if state.routing.chosen_elsewhere:
        raise PortError(
            "continuous batching (generate_batch) runs in a thread of its own, which rows chosen "
            "in another do not reach; set handle.enabled of every inlay instead of choosing rows"
        )
    serving = state.routing.serving()
    adding = serving & (state.port(ExtraKVPort).names | state.port(PromptPort).pieces.keys())
    relating = serving & state.relating
    if adding or relating:
        name = sorted(adding | relating)[0]
        does = "adds keys or a prompt" if adding else "relates the positions of a text"
        raise PortError(
            f"the inlay {name!r} {does}, which continuous batching (generate_batch) cannot take; "
            "call model.generate, or use LoRA, adapters or virtual tokens"
        )


def check_packed(state: StackState, inputs: dict[str, Any]) -> None:
    """Raise PortError where an inlay cannot act on several texts in one row."""
    serving = state.routing.serving()
    relating = serving & state.relating
    if relating and is_packed(state.stack, inputs):
        raise PortError(
            f"the inlay {sorted(relating)[0]!r} relates the positions of a text, and these rows "
            "hold several texts each; give every text a row of its own"
        )
