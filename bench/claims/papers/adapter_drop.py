"""AdapterDrop: accuracy without the adapters of the lowest layers, after both trainings."""

from __future__ import annotations

from collections.abc import Mapping

import inlay
from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, accuracy, labelled
from bench.claims.plots import curves
from inlay import AdapterDrop, Pfeiffer, Where

LAYERS = 6
DROPPED = (0, 2, 3, 5)

SETTINGS = {
    "base": "minilm",
    "dtype": "bfloat16",
    "set": "trec",
    "dropped": DROPPED,
    "judged": 2,
    "kept": 0.95,
    "steps": 300,
    "batch_size": 16,
    "train": 4800,
    "test": 500,
}


def above(dropped: int) -> Pfeiffer:
    """Adapters in all layers but the lowest."""
    return Pfeiffer(at=Where(("block",), tuple(range(dropped, LAYERS))))


def measure(run: Run) -> Numbers:
    """Accuracy for every k, of adapters trained for it alone, and of robust ones trained once."""
    data = labelled(run, run.settings["set"])
    numbers: Numbers = {}
    for dropped in DROPPED:
        step = f"specialised, k = {dropped}"
        numbers[f"special{dropped}"] = accuracy(run, step, above(dropped), data)
    experiment = Experiment(run)
    task = experiment.by_head(data.labels)
    head = task.head()
    assert head is not None
    robust = experiment.fit("robust", AdapterDrop(inner=Pfeiffer()) + head, task, data.train)
    robust.enabled = False
    for dropped in DROPPED:
        rest = inlay.drop_layers(robust, dropped)
        numbers[f"robust{dropped}"] = experiment.score(task, data.test)
        rest.detach()
    return numbers


def margin(n: Mapping[str, float]) -> float:
    """How much more than 95 % is kept, of what adapters in all layers reach."""
    judged = SETTINGS["judged"]
    left = min(n[f"special{judged}"], n[f"robust{judged}"])
    return left / n["special0"] - SETTINGS["kept"]


CLAIM = Claim(
    name="adapter_drop",
    paper="Rücklé et al., EMNLP 2021",
    section="",
    sentence="Without the adapters of the lowest third of the layers both trainings keep more than "
    "95 % of the score.",
    figures="97.1 % with specialised, 95.4 % with robust training without 5 of 12 layers "
    "(RoBERTa-base, GLUE)",
    minutes=8,
    settings=SETTINGS,
    measure=measure,
    margin=margin,
    reported={
        **{f"special{k}": f"{'accuracy, specialised, ' * (not k)}k = {k}" for k in DROPPED},
        **{f"robust{k}": f"{'robust, ' * (not k)}k = {k}" for k in DROPPED},
    },
    plot=curves("layers without adapters", DROPPED, special="specialised", robust="robust"),
    data=("trec",),
)
