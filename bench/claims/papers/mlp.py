"""Prefix tuning: with and without the MLP, over learning rates."""

from __future__ import annotations

from statistics import stdev

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, restaurants
from bench.claims.plots import curves
from inlay import Prefix
from inlay.tasks import Generate

RATES = (1e-3, 1e-2, 1e-1)

SETTINGS = {
    "base": "flan-t5-small",
    "dtype": "bfloat16",
    "length": 10,
    "mlp": 512,
    "rates": RATES,
    "steps": 16,
    "batch_size": 8,
    "train": 128,
    "test": 32,
}


def measure(run: Run) -> Numbers:
    """Loss on held-out restaurants at each learning rate, and its standard deviation over them."""
    settings = run.settings
    experiment = Experiment(run)
    task = experiment.bind(Generate())
    train = restaurants(run, "train")
    test = restaurants(run, "test")
    numbers: Numbers = {}
    for name, mlp in (("with", settings["mlp"]), ("without", None)):
        losses = []
        for rate in settings["rates"]:
            handle = experiment.fit(
                f"{name} MLP, rate {rate:g}",
                Prefix(length=settings["length"], mlp=mlp, start=None),
                task,
                train,
                lr=rate,
            )
            losses.append(experiment.loss(task, test))
            numbers[f"{name}_{rate:g}"] = losses[-1]
            handle.detach()
        numbers[f"spread_{name}"] = stdev(losses)
        numbers[f"best_{name}"] = min(losses)
    return numbers


CLAIM = Claim(
    name="mlp",
    paper="Li & Liang, ACL 2021",
    section="4.3",
    sentence="With the MLP training depends less on the learning rate than without.",
    figures="no figure, only text; Liu et al., ACL 2022 disagree for understanding",
    minutes=12,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["spread_without"] - n["spread_with"],
    reported={
        "spread_with": "sd of the loss over rates, with MLP",
        "spread_without": "without",
        "best_with": "best loss, with",
        "best_without": "without",
    },
    plot=curves("learning rate", RATES, True, with_="with MLP", without_="without"),
    data=("e2e",),
    tried=(
        "one grid of rates for both, and no other: with the MLP the lowest rate was the best one, "
        "without it the highest, so other grids may say something else",
    ),
)
