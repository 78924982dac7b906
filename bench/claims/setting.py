"""What several claims share: a base, rows, and a run of training that ends in a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

import inlay
from bench.claims.base import Run
from inlay.core.modes import evaluating
from inlay.data.dataset import Example
from inlay.data.loading import load
from inlay.hub import fetch_sentiment, load_base
from inlay.tasks import Classify, Task
from inlay.training import evaluate
from inlay.training.loop.batches import by_length

LABELS = ("negative", "positive")


class Bench:
    """The frozen base of a claim, on which one method after the other learns and is measured."""

    def __init__(self, run: Run):
        self.run = run
        dtype = run.settings.get("dtype")
        self.model, self.tokenizer = load_base(
            run.settings["base"], dtype=None if dtype is None else getattr(torch, dtype)
        )

    def bind(self, task: Task) -> Task:
        """The task, ready for the base."""
        task.bind(self.model, self.tokenizer)
        return task

    def by_label(self) -> Task:
        """The task of saying a review's label as a word, in the claim's template."""
        template, words = self.run.settings["template"], {name: name for name in LABELS}
        return self.bind(Classify(template=template, verbalizer=words))

    def teach(
        self,
        what: str,
        spec: Any,
        task: Task,
        rows: Sequence[Example],
        *,
        name: str = "default",
        lr: float | None = None,
        base_lr: float | None = None,
        seed: int | None = None,
    ) -> inlay.Inlay:
        """A method attached and trained, for the steps and in the batches of the claim.

        lr: the claim's own where None. base_lr: that of the base, which does not learn where None.
        Everything that is drawn follows from the seed, the run's where None.
        """
        s = self.run.settings
        seed = self.run.seed if seed is None else seed
        torch.manual_seed(seed)
        handle = inlay.attach(self.model, spec, name=name)
        self.run.say(what)
        inlay.fit(
            self.model,
            handle,
            task,
            rows,
            console=self.run.console,
            seed=seed,
            steps=s["steps"],
            lr=s["lr"] if lr is None else lr,
            base_lr=base_lr,
            batch_size=s["batch_size"],
        )
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


def sentences(run: Run, split: str, domain: str = "movie", longest: int = 90) -> list[Example]:
    """Short sentences of one domain with their labels, as many as the claim takes of this split."""
    rows = load(fetch_sentiment() / domain / f"{split}.jsonl", need=("text", "label"))
    return drawn(run, split, [row for row in rows if len(str(row.fields["text"])) <= longest])


def restaurants(run: Run, split: str) -> list[Example]:
    """Rows of E2E, `source` -> `target`, as many as the claim takes of this split."""
    return drawn(run, split, load(run.folder("e2e"), split=split))


def drawn(run: Run, split: str, rows: Sequence[Example]) -> list[Example]:
    """As many rows as the claim takes of this split: other ones a seed to learn from, and always
    the same to be tested on."""
    return sample(rows, run.settings[split], run.seed if split == "train" else 0)


def sample(rows: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """So many rows, drawn with the seed; all where there are fewer."""
    draw = torch.Generator().manual_seed(seed)
    return [rows[number] for number in torch.randperm(len(rows), generator=draw)[:limit].tolist()]
