"""What several claims share: a base, rows, and training that ends in a score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

import inlay
from bench.claims.claim import Numbers, Run
from inlay.core.method import Spec
from inlay.core.modes import evaluating
from inlay.data.dataset import Example
from inlay.data.loading import load
from inlay.hub import fetch_sentiment, load_base
from inlay.runtime.install import Prepared
from inlay.tasks import Classify, Task, TrainedHead, Verbalizer
from inlay.training import evaluate
from inlay.training.loop.batches import batches_by_length

LABELS = ("negative", "positive")
PAIRS = {"glue_rte": {"text": "premise", "text_pair": "hypothesis"}}
"""What holds the two texts of the data sets of pairs."""


class Experiment:
    """The frozen base of a claim, on which methods are trained and scored one after another."""

    def __init__(self, run: Run):
        self.run = run
        dtype = run.settings.get("dtype")
        self.model, self.tokenizer = load_base(
            run.settings["base"], dtype=None if dtype is None else getattr(torch, dtype)
        )

    def bind(self, task: Task) -> Task:
        """The task, bound to the base."""
        task.bind(self.model, self.tokenizer)
        return task

    def by_label(self) -> Task:
        """The task of answering with a review's label as a word, in the claim's template."""
        template, words = self.run.settings["template"], {name: name for name in LABELS}
        return self.bind(Classify(template=template, by=Verbalizer(words)))

    def by_head(self, labels: tuple[str, ...]) -> Classify:
        """The task of classifying a text, or a pair, with a trained head."""
        task = Classify(by=TrainedHead(labels))
        task.bind(self.model, self.tokenizer)
        return task

    def fit(
        self,
        step: str,
        spec: Any,
        task: Task,
        rows: Sequence[Example],
        *,
        name: str = "default",
        lr: float | None = None,
        base_lr: float | None = None,
        seed: int | None = None,
        prepared: Prepared | None = None,
    ) -> inlay.Inlay:
        """Attach a method and train it, with the steps and the batch size of the claim.

        step: what to show as progress. lr: the claim's if None, and where the claim has none each
        method's own. base_lr: the base's learning rate; the base is frozen if None. seed: of
        everything random; the run's if None. prepared: see `inlay.attach`.
        """
        settings = self.run.settings
        seed = self.run.seed if seed is None else seed
        torch.manual_seed(seed)
        handle = inlay.attach(self.model, spec, name=name, prepared=prepared)
        self.run.show(step)
        inlay.fit(
            self.model,
            handle,
            task,
            rows,
            console=self.run.console,
            seed=seed,
            prepared=prepared,
            steps=settings["steps"],
            lr=settings.get("lr") if lr is None else lr,
            base_lr=base_lr,
            batch_size=settings["batch_size"],
        )
        return handle

    def score(self, task: Task, rows: Sequence[Example]) -> float:
        """The task's metric on some rows."""
        return float(evaluate(self.model, task, rows, batch_size=32)[task.metric])

    def loss(self, task: Task, rows: Sequence[Example]) -> float:
        """The mean loss on some rows, in nats a token or a row."""
        return loss(self.model, task, rows)


@torch.no_grad()
def loss(model: Any, task: Task, rows: Sequence[Example]) -> float:
    """The mean loss on some rows, in nats a token or a row."""
    encoded = task.encode_all(rows)
    total, count = 0.0, 0
    with evaluating(model):
        for numbers in batches_by_length([len(row) for row in encoded], rows=16, tokens=None):
            batch = task.collate([encoded[number] for number in numbers])
            batch_loss, batch_count = task.loss(task.outputs(model, batch), batch)
            total, count = total + float(batch_loss), count + batch_count
    return total / count


@dataclass(frozen=True)
class LabelledTexts:
    """Rows of `text`, of pairs with `text_pair`, and `label`, and all labels that there are."""

    labels: tuple[str, ...]
    train: list[Example]
    test: list[Example]


def labelled(run: Run, name: str) -> LabelledTexts:
    """A sample of a data set of labelled texts: "sst2", "trec", "subj" or "glue_rte".

    GLUE keeps the labels of its test rows to itself; there the dev rows are tested on.
    """
    folder, columns = run.folder(name), PAIRS.get(name)
    train = load(folder, split="train", columns=columns, need=("text", "label"))
    held_out = "dev" if name == "glue_rte" else "test"
    test = load(folder, split=held_out, columns=columns, need=("text", "label"))
    return LabelledTexts(
        labels=tuple(sorted({str(row.fields["label"]) for row in train})),
        train=sample(run, "train", train),
        test=sample(run, "test", test),
    )


def accuracy(run: Run, step: str, spec: Spec, data: LabelledTexts) -> float:
    """The accuracy on test rows of a method and a head, trained on a fresh base.

    step: what to show as progress. spec: `Sum(())` for full fine-tuning, at the rate `lr_full`; a
    head alone where the claim has no such rate.
    """
    experiment = Experiment(run)
    task = experiment.by_head(data.labels)
    head = task.head()
    assert head is not None
    base_lr = None if spec.methods else run.settings.get("lr_full")
    experiment.fit(step, spec + head, task, data.train, base_lr=base_lr)
    return experiment.score(task, data.test)


def accuracies(run: Run, specs: Mapping[str, Spec]) -> Numbers:
    """The accuracy of methods on every data set of the claim, each trained on a fresh base.

    All train a head too. `Sum(())`, no method, stands for full fine-tuning, at the rate `lr_full`.

    Returns `METHOD_DATA` for each of the claim's `data`, and `METHOD` for the mean over them.
    """
    numbers: Numbers = {}
    names = run.settings["data"]
    for name in names:
        data = labelled(run, name)
        for method, spec in specs.items():
            numbers[f"{method}_{name}"] = accuracy(run, f"{method}, {name}", spec, data)
    for method in specs:
        numbers[method] = fmean(numbers[f"{method}_{name}"] for name in names)
    return numbers


def sentences(run: Run, split: str, domain: str = "movie", longest: int = 90) -> list[Example]:
    """A sample of the short sentences of one domain, with their labels.

    longest: characters of the longest sentence.
    """
    rows = load(fetch_sentiment() / domain / f"{split}.jsonl", need=("text", "label"))
    return sample(run, split, [row for row in rows if len(str(row.fields["text"])) <= longest])


def restaurants(run: Run, split: str) -> list[Example]:
    """A sample of E2E: rows `source` -> `target`."""
    return sample(run, split, load(run.folder("e2e"), split=split))


def sample(run: Run, split: str, rows: Sequence[Example]) -> list[Example]:
    """As many rows as the claim's settings say for a split.

    Rows to train on differ by seed; rows to test on are always the same.
    """
    return drawn(rows, run.settings[split], run.seed if split == "train" else 0)


def drawn(rows: Sequence[Example], limit: int, seed: int) -> list[Example]:
    """At most `limit` rows, drawn at random with a seed."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    return [rows[number] for number in order[:limit].tolist()]
