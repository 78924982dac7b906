"""What several claims share: a base, rows, and a run of training that ends in a score."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import inlay
from bench.claims.base import Run
from inlay.data import Example, load
from inlay.layout import evaluating
from inlay.models import fetch_sentiment, load_base
from inlay.tasks import Task
from inlay.training import evaluate
from inlay.training.batches import by_length

LABELS = ("negative", "positive")


class Bench:
    """A frozen base on which one method after the other learns and is measured."""

    def __init__(self, run: Run, base: str, dtype: torch.dtype | None = None):
        self.run = run
        self.model, self.tokenizer = load_base(base, dtype=dtype)

    def bind(self, task: Task) -> Task:
        """The task, ready for the base."""
        task.bind(self.model, self.tokenizer)
        return task

    def teach(
        self,
        what: str,
        spec: Any,
        task: Task,
        rows: Sequence[Example],
        *,
        name: str = "default",
        **options: Any,
    ) -> inlay.Inlay:
        """A method attached and trained; everything that is drawn follows from the seed."""
        torch.manual_seed(options.setdefault("seed", self.run.seed))
        handle = inlay.attach(self.model, spec, name=name)
        self.run.say(what)
        inlay.fit(self.model, handle, task, rows, console=self.run.console, **options)
        return handle

    def score(self, task: Task, rows: Sequence[Example]) -> float:
        """The task's own metric on some rows."""
        return float(evaluate(self.model, task, rows, batch_size=32)[task.metric])

    def loss(self, task: Task, rows: Sequence[Example]) -> float:
        """The mean loss of what counts in some rows (nats a token, or a row)."""
        return loss(self.model, task, rows)


@torch.no_grad()
def loss(model: Any, task: Task, rows: Sequence[Example]) -> float:
    """The mean loss of what counts in some rows (nats a token, or a row)."""
    read = task.encode_all(rows)
    total, count = 0.0, 0
    with evaluating(model):
        for numbers in by_length([len(row) for row in read], rows=16, tokens=None):
            one, counted = task.loss(model, task.collate([read[number] for number in numbers]))
            total, count = total + float(one), count + counted
    return total / count


def sentiment(domain: str, split: str, limit: int, seed: int, longest: int = 90) -> list[Example]:
    """Short sentences of one domain, a sample of so many drawn with the seed."""
    rows = load(fetch_sentiment() / domain / f"{split}.jsonl", need=("text", "label"))
    short = [row for row in rows if len(str(row.fields["text"])) <= longest]
    return sample(short, limit, seed)


def restaurants(folder: Path, split: str, limit: int, seed: int) -> list[Example]:
    """Rows of E2E, `source` -> `target`: a sample of so many drawn with the seed."""
    return sample(load(folder, split=split), limit, seed)


def sample(rows: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """So many rows, drawn with the seed; all where there are fewer."""
    draw = torch.Generator().manual_seed(seed)
    return [rows[number] for number in torch.randperm(len(rows), generator=draw)[:limit].tolist()]
