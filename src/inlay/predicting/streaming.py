"""Text that is yielded while it is written."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, StoppingCriteria, StoppingCriteriaList
from transformers import TextIteratorStreamer as TextStreamer
from typing_extensions import override

from inlay.core.modes import evaluating
from inlay.data.dataset import Example
from inlay.errors import TaskError
from inlay.handle import Inlay, rows
from inlay.tasks import Generate


class _Abandoned(StoppingCriteria):
    """Ends generation when nobody reads the text any more."""

    def __init__(self) -> None:
        self.event = threading.Event()

    @override
    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        ids: torch.Tensor = input_ids
        return torch.full((len(ids),), self.event.is_set(), dtype=torch.bool, device=ids.device)


def stream_text(
    model: PreTrainedModel, task: Generate, example: Example, handle: Inlay
) -> Iterator[str]:
    """Yield the text for an example, piece by piece.

    Generation runs in a thread of its own, and ends where the iterator is closed. White space at
    the end of a piece is kept back until more follows, so that the pieces together are the text
    that `Generate.predict` returns.

    Raises TaskError for a search with beams, and what generation itself raises.
    """
    row = task.encode(example, 0)
    batch = task.collate([row]).to(model.device)
    call = task.generation_call(model, batch)
    if call is None:
        return
    if call.config.num_beams > 1:
        raise TaskError(
            "a search with beams writes nothing before its end; stream with num_beams=1"
        )
    streamer: Any = TextStreamer(task.bound.tokenizer, skip_prompt=True, skip_special_tokens=True)
    abandoned, failures = _Abandoned(), list[BaseException]()

    def write() -> None:
        try:
            with evaluating(model), rows(model, [handle.name]):
                call.run(
                    model, streamer=streamer, stopping_criteria=StoppingCriteriaList([abandoned])
                )
        except BaseException as error:  # handed to the thread that reads
            failures.append(error)
            streamer.end()

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    started, held = False, ""
    try:
        for piece in streamer:
            text = held + piece
            if not started:
                text = text.lstrip()
            kept = text.rstrip()
            held = text[len(kept) :]
            if kept:
                started = True
                yield kept
    finally:
        abandoned.event.set()
        thread.join()
    if failures:
        raise failures[0]
