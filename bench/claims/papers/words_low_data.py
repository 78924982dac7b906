"""Prefix tuning: starting from real words, or at random, with a hundred examples."""

from __future__ import annotations

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, restaurants
from bench.claims.plots import bars
from inlay import Prefix, words
from inlay.tasks import Generate

SETTINGS = {
    "base": "flan-t5-small",
    "dtype": "bfloat16",
    "relevant": "Write the table as text:",
    "irrelevant": "elephant keyboard divide active banana music",
    "length": 6,
    "mlp": None,
    "steps": 30,
    "batch_size": 8,
    "lr": 1e-2,
    "train": 100,
    "test": 48,
}


def measure(run: Run) -> Numbers:
    """Loss on held-out restaurants from each start."""
    settings = run.settings
    experiment = Experiment(run)
    task = experiment.bind(Generate())
    train = restaurants(run, "train")
    test = restaurants(run, "test")
    starts = {
        name: words(experiment.tokenizer, settings[name]) for name in ("relevant", "irrelevant")
    }
    ids = {
        name: tuple(i for (i,) in groups)[: settings["length"]] for name, groups in starts.items()
    }
    numbers: Numbers = {}
    for name, start in {**ids, "random": None}.items():
        handle = experiment.fit(
            f"{name} start",
            Prefix(length=settings["length"], mlp=settings["mlp"], start=start),
            task,
            train,
        )
        numbers[f"loss_{name}"] = experiment.loss(task, test)
        handle.detach()
    return numbers


CLAIM = Claim(
    name="words_low_data",
    paper="Li & Liang, ACL 2021",
    section="7.4",
    sentence="With few examples a prefix that starts from real words does better than one that "
    "starts at random.",
    figures="50 to 500 examples, Fig. 5, without numbers",
    minutes=6,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["loss_random"] - n["loss_relevant"],
    reported={
        "loss_relevant": "loss a token, relevant words",
        "loss_irrelevant": "other words",
        "loss_random": "random",
    },
    plot=bars(loss_relevant="relevant", loss_irrelevant="other words", loss_random="random"),
    data=("e2e",),
    tried=("one rate for all starts, without the MLP; neither was varied",),
)
