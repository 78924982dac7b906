"""Adapters: how large the weights are that they start with."""

from __future__ import annotations

from collections.abc import Mapping

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import accuracies
from bench.claims.plots import curves
from inlay import Houlsby

DEVIATIONS = (1e-3, 1e-2, 1e-1, 1.0)

SETTINGS = {
    "base": "minilm",
    "data": ("trec",),
    "bottleneck": 64,
    "deviations": DEVIATIONS,
    "steps": 300,
    "batch_size": 8,
    "train": 4000,
    "test": 500,
}


def measure(run: Run) -> Numbers:
    """Accuracy at each standard deviation of the starting weights."""
    width = run.settings["bottleneck"]
    deviations = run.settings["deviations"]
    return accuracies(run, {f"{std:g}": Houlsby(bottleneck=width, std=std) for std in deviations})


def margin(n: Mapping[str, float]) -> float:
    """How far the worst of the small deviations, up to 0.01, is above 1."""
    return min(n[f"{std:g}"] for std in DEVIATIONS if std <= 1e-2) - n["1"]


CLAIM = Claim(
    name="adapter_init",
    paper="Houlsby et al., ICML 2019",
    section="3.6",
    sentence="Adapters that start near the identity, with weights of a standard deviation up to "
    "0.01, learn well; with large starting weights they do not.",
    figures="no checked figure, only text and a plot",
    minutes=7,
    settings=SETTINGS,
    measure=measure,
    margin=margin,
    reported={
        f"{std:g}": f"accuracy, σ {std:g}" if std == DEVIATIONS[0] else f"{std:g}"
        for std in DEVIATIONS
    },
    plot=curves("standard deviation", DEVIATIONS, logarithmic=True, **{"": "accuracy"}),
    data=("trec",),
    tried=("σ = 0 is refused by the method: down and up would both be zero, and never learn",),
)
