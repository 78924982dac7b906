"""The worst mistakes of an evaluation: what a model is surest of and wrong about."""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from inlay.data.dataset import Example
from inlay.tasks import Task
from inlay.tasks.records import PREDICTION, Record


@dataclass(frozen=True)
class WrongRow:
    """A row with a wrong prediction.

    where: the file and line. text: what the task reads of the row. gold: the right answer.
    prediction: what was predicted. probability: of the prediction; None where the task has none.
    cost: how wrong it is; comparable within a task.
    """

    where: str
    text: str
    gold: Any
    prediction: Any
    probability: float | None
    cost: float

    def to_json(self) -> dict[str, Any]:
        """The row as JSON."""
        return asdict(self)


class WorstMistakes:
    """Keeps the rows with the worst mistakes, and no others.

    task: says how wrong a prediction is. count: how many rows are kept. wrong: how many there were.
    """

    def __init__(self, task: Task, count: int):
        self.task = task
        self.count = count
        self.wrong = 0
        self._heap: list[tuple[float, int, WrongRow]] = []

    def watch(self, pairs: Iterable[tuple[Example, Record]]) -> Iterator[tuple[Example, Record]]:
        """Look at every record, and yield it on."""
        for example, record in pairs:
            self.add(example, record)
            yield example, record

    def add(self, example: Example, record: Record) -> None:
        """Look at one record. Raises DataError where the example has no gold answer."""
        mistake = self.task.mistake(record, example)
        if mistake is None or not self.count:
            return
        self.wrong += 1
        if len(self._heap) == self.count and mistake.cost <= self._heap[0][0]:
            return
        fields = [example.fields.get(name, "") for name in self.task.input_fields]
        row = WrongRow(
            example.where,
            " | ".join(field if isinstance(field, str) else _text(field) for field in fields),
            mistake.gold,
            record[PREDICTION],
            record.get("probability", record.get("score")),
            mistake.cost,
        )
        # Of equal mistakes the first ones are kept: a later one has a lower number.
        entry = (mistake.cost, -self.wrong, row)
        if len(self._heap) < self.count:
            heapq.heappush(self._heap, entry)
        else:
            heapq.heapreplace(self._heap, entry)

    def rows(self) -> list[WrongRow]:
        """The rows kept, the worst first."""
        return [row for *_, row in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def _text(value: Any) -> str:
    """A field that is no text: words with spaces between them, anything else as JSON."""
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return " ".join(value)
    return json.dumps(value, ensure_ascii=False, default=str)
