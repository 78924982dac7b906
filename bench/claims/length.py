"""Prompt tuning: how much a longer prompt helps a small model."""

from __future__ import annotations

from bench.claims.base import Claim, Numbers, Run, curves
from bench.claims.setting import Bench, sentences
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
    s = run.settings
    bench = Bench(run)
    task = bench.by_label()
    train = sentences(run, "train")
    test = sentences(run, "test")
    found: Numbers = {}
    for length in s["lengths"]:
        handle = bench.teach(f"length {length}", Prompt(length=length), task, train)
        found[f"accuracy_{length}"] = bench.score(task, test)
        found[f"loss_{length}"] = bench.loss(task, test)
        handle.detach()
    return found


def margin(n: Numbers) -> float:
    """The rise from 1 to 20 counts, and what comes behind 20 must be less."""
    rise = n["accuracy_20"] - n["accuracy_1"]
    return min(rise, rise - (n["accuracy_50"] - n["accuracy_20"]))


CLAIM = Claim(
    name="length",
    paper="Lester et al., EMNLP 2021",
    section="3.2",
    sentence="In a small model more than one position is needed, and beyond 20 there is little "
    "to gain.",
    figures="curves over 1, 5, 20, 100, 150",
    sized=8,
    settings=SETTINGS,
    measure=measure,
    margin=margin,
    told={f"accuracy_{n}": f"accuracy, {n} positions" if n == 1 else f"{n}" for n in LENGTHS},
    plot=curves("positions", LENGTHS, logarithmic=True, accuracy_="accuracy"),
)
