"""Moving a batch to the base's device, with what only its copy on the CPU shows for nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from transformers import PreTrainedModel

from inlay.runtime.container import openings_of
from inlay.runtime.openings import known_openings
from inlay.tasks import Batch

B = TypeVar("B", bound=Batch)


@contextmanager
def on_device(model: PreTrainedModel, batch: B) -> Iterator[B]:
    """Yield the batch on the base's device; inside, passes know what its rows begin with.

    What all rows begin with runs once (`runtime.shared_prefix`). Whether they do is seen on the
    CPU copy, once a batch, so that no pass has to ask the device.
    """
    moved = batch.to(model.device, non_blocking=True)
    openings = openings_of(model)
    if model.device.type == "cpu" or not openings:
        yield moved
        return
    pairs = zip(batch.batches(), moved.batches(), strict=True)
    copies = [(host.inputs, device.inputs) for host, device in pairs if "input_ids" in host.inputs]
    with known_openings(openings, copies):
        yield moved
