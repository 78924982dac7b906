"""What the claims about AdapterFusion share: adapters of several sources, fused for a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

import inlay
from bench.claims.claim import Run
from bench.claims.experiment import LABELS, Experiment, LabelledTexts, labelled, sample
from inlay import Fusion, Pfeiffer
from inlay.data.dataset import Example
from inlay.data.loading import load
from inlay.hub import fetch_sentiment
from inlay.hub.sentiment import DOMAINS
from inlay.methods.head import Head
from inlay.tasks import Classify

LONGEST = 120
"""Characters of the longest text, so that no source takes much longer than another."""

Tensors = dict[str, Tensor]
"""Those of an adapter by their names in a file: `encoder.3.block/0/pfeiffer/inner.down`."""

TRAINED: dict[tuple[object, ...], Tensors] = {}
"""The adapters of sources, which each process trains once: they do not depend on the seed."""


@dataclass(frozen=True)
class Trained:
    """What was trained on a base: an inlay of one method and a head, and the task bound to both."""

    experiment: Experiment
    task: Classify
    handle: inlay.Inlay
    head: Head


def texts(run: Run, name: str) -> LabelledTexts:
    """A sample of a source: of a data set of the folder, or of a domain of short reviews.

    Domains are tested on both their dev and their test rows, because they have few.
    """
    if name not in DOMAINS:
        data = labelled(run, name)
        return replace(data, train=_short(data.train))
    rows = {
        split: _short(load(fetch_sentiment() / name / f"{split}.jsonl", need=("text", "label")))
        for split in ("train", "dev", "test")
    }
    return LabelledTexts(
        labels=LABELS,
        train=sample(run, "train", rows["train"]),
        test=sample(run, "test", [*rows["dev"], *rows["test"]]),
    )


def source(run: Run, name: str) -> Tensors:
    """The adapter of a source."""
    settings = ("base", "steps", "batch_size", "train", "test")
    key = (name, *(run.settings[setting] for setting in settings))
    if key not in TRAINED:
        first = replace(run, seed=0)
        TRAINED[key] = adapter_alone(train_adapter(first, name, texts(first, name)))
    return TRAINED[key]


def train_adapter(run: Run, step: str, data: LabelledTexts) -> Trained:
    """Train an adapter and a head on a fresh base. step: what to show as progress."""
    experiment = Experiment(run)
    task = experiment.by_head(data.labels)
    head = task.head()
    assert head is not None
    handle = experiment.fit(step, Pfeiffer() + head, task, data.train)
    return Trained(experiment, task, handle, head)


def adapter_alone(trained: Trained) -> Tensors:
    """The tensors of an adapter without its head's."""
    alone = inlay.attach(trained.experiment.model, Pfeiffer(), name="alone")
    alone.copy_from(trained.handle, {0: 0})
    alone.detach()
    return alone.named_tensors()


def train_fusion(run: Run, adapters: Mapping[str, Tensors], data: LabelledTexts) -> Trained:
    """Train the fusion of some adapters, and a head, on a fresh base."""
    experiment = Experiment(run)
    task = experiment.by_head(data.labels)
    head = task.head()
    assert head is not None
    spec = Fusion(adapters=(Pfeiffer(),) * len(adapters), names=tuple(adapters))
    start: Tensors = {}
    for number, tensors in enumerate(adapters.values()):
        for key, tensor in tensors.items():
            site, _, part = key.partition("/0/pfeiffer/")
            start[f"{site}/{number}/{part}"] = tensor
    handle = experiment.fit("fusion", spec + head, task, data.train, prepared={0: start})
    return Trained(experiment, task, handle, head)


def _short(rows: Sequence[Example]) -> list[Example]:
    """The rows whose texts are short."""
    return [
        row
        for row in rows
        if sum(len(str(row.fields.get(name, ""))) for name in ("text", "text_pair")) <= LONGEST
    ]
