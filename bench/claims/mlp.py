"""Prefix tuning: with and without the MLP, over learning rates."""

from __future__ import annotations

from statistics import stdev

from bench.claims.base import Claim, Numbers, Run, curves
from bench.claims.setting import Bench, restaurants
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
    """Loss on held-out restaurants at each rate, and its standard deviation over the rates."""
    s = run.settings
    bench = Bench(run)
    task = bench.bind(Generate())
    train = restaurants(run, "train")
    test = restaurants(run, "test")
    found: Numbers = {}
    for name, mlp in (("with", s["mlp"]), ("without", None)):
        losses = []
        for rate in s["rates"]:
            handle = bench.teach(
                f"{name} MLP, rate {rate:g}",
                Prefix(length=s["length"], mlp=mlp, start=None),
                task,
                train,
                lr=rate,
            )
            losses.append(bench.loss(task, test))
            found[f"{name}_{rate:g}"] = losses[-1]
            handle.detach()
        found[f"spread_{name}"] = stdev(losses)
        found[f"best_{name}"] = min(losses)
    return found


CLAIM = Claim(
    name="mlp",
    paper="Li & Liang, ACL 2021",
    section="4.3",
    sentence="With the MLP training depends less on the learning rate than without.",
    figures="no figure, only text; Liu et al., ACL 2022 disagree for understanding",
    sized=12,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["spread_without"] - n["spread_with"],
    told={
        "spread_with": "sd of the loss over rates, with MLP",
        "spread_without": "without",
        "best_with": "best loss, with",
        "best_without": "without",
    },
    plot=curves("learning rate", RATES, True, with_="with MLP", without_="without"),
    needs=("e2e",),
    tried=(
        "one grid of rates for both, and no other: with the MLP the lowest rate was the best one, "
        "without it the highest, so other grids may say something else",
    ),
)
