"""Prompt tuning: how much a longer prompt helps a small model."""

from __future__ import annotations

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, sentences
from bench.claims.plots import curves
from inlay import Prompt

LENGTHS = (1, 5, 20, 50)

SETTINGS = {
    "base": "flan-t5-small",
    "dtype": "bfloat16",
    "lengths": LENGTHS,
    "template": "{text}",
    "steps": 40,
    "batch_size": 8,
    "lr": 0.3,
    "train": 320,
    "test": 150,
}


def measure(run: Run) -> Numbers:
    """Accuracy and loss on held-out movie reviews at each length."""
    settings = run.settings
    experiment = Experiment(run)
    task = experiment.by_label()
    train = sentences(run, "train")
    test = sentences(run, "test")
    numbers: Numbers = {}
    for length in settings["lengths"]:
        handle = experiment.fit(f"length {length}", Prompt(length=length), task, train)
        numbers[f"accuracy_{length}"] = experiment.score(task, test)
        numbers[f"loss_{length}"] = experiment.loss(task, test)
        handle.detach()
    return numbers


def margin(n: Numbers) -> float:
    """The gain from 1 to 20 positions; the gain beyond 20 must be smaller."""
    gain = n["accuracy_20"] - n["accuracy_1"]
    return min(gain, gain - (n["accuracy_50"] - n["accuracy_20"]))


CLAIM = Claim(
    name="length",
    paper="Lester et al., EMNLP 2021",
    section="3.2",
    sentence="In a small model more than one position is needed, and beyond 20 there is little "
    "to gain.",
    figures="curves over 1, 5, 20, 100, 150",
    minutes=8,
    settings=SETTINGS,
    measure=measure,
    margin=margin,
    reported={f"accuracy_{n}": f"accuracy, {n} positions" if n == 1 else f"{n}" for n in LENGTHS},
    plot=curves("positions", LENGTHS, logarithmic=True, accuracy_="accuracy"),
)
