"""Batches: what the model reads apart from the rest, on any device."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from inlay.tasks import (
    Batch,
    Choose,
    Classify,
    Extract,
    Generate,
    Regress,
    Tag,
    TrainedHead,
    Verbalizer,
)
from tests.tasks.tiny import bind, examples
from tests.zoo import model

ROWS = {
    "classify": examples({"text": "a cat", "label": "yes"}, {"text": "dull", "label": "no"}),
    "generate": examples({"source": "a", "target": "b"}, {"source": "the cat", "target": "dog"}),
    "choose": examples(
        {"text": "the cat", "choices": ["red", "blue", "dog"], "label": 0},
        {"text": "a", "choices": ["cat", "mat"], "label": 1},
    ),
    "extract": examples(
        {"question": "a", "context": "the cat", "answers": [{"text": "cat", "start": 4}]},
        {"question": "a", "context": "dog", "answers": []},
    ),
    "tag": examples(
        {"tokens": ["a", "cat"], "tags": ["O", "B-a"]}, {"tokens": ["b"], "tags": ["O"]}
    ),
    "regress": examples({"text": "a cat", "label": 1}, {"text": "dull", "label": 2}),
}
TASKS = [
    Classify(by=TrainedHead(("no", "yes"))),
    Classify(by=Verbalizer({"no": "bad", "yes": "good"}), template="{text} was"),
    Generate(),
    Choose(),
    Choose(by="sum"),
    Extract(),
    Tag(labels=("O", "B-a")),
    Regress(),
]


@dataclass(frozen=True, eq=False)
class Nested(Batch):
    parts: tuple[Batch, ...]
    by_name: dict[str, Tensor]
    missing: Tensor | None = None


def test_every_tensor_moves_however_deep_it_is():
    ids = torch.zeros(2, 3, dtype=torch.long)
    batch = Nested({"input_ids": ids}, (Batch({"input_ids": ids}),), {"a": torch.ones(2)})
    moved = batch.to("meta")
    assert isinstance(moved, Nested) and len(moved) == 2
    for tensor in (
        moved.inputs["input_ids"],
        moved.parts[0].inputs["input_ids"],
        moved.by_name["a"],
    ):
        assert tensor.device.type == "meta"
    assert moved.missing is None
    assert batch.inputs["input_ids"].device.type == "cpu", "the batch itself stays"


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_inputs_are_exactly_what_the_model_reads(task):
    bind(task, "llama")
    batch = task.collate(task.encode_all(ROWS[task.name]))
    assert len(batch) == 2
    with torch.no_grad():
        model("llama").model(**batch.inputs)
    assert task.collate(task.encode_all(ROWS[task.name])[:1]).to("cpu") is not None
