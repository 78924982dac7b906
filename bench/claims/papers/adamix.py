"""AdaMix: a mixture of adapters, one adapter of the deployed size, or all weights."""

from __future__ import annotations

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import accuracies
from bench.claims.plots import paired_bars
from inlay import AdaMix, Houlsby, Sum

DATA = ("trec",)

SETTINGS = {
    "base": "minilm",
    "data": DATA,
    "bottleneck": 16,
    "copies": 4,
    "steps": 300,
    "batch_size": 8,
    "lr_full": 1e-4,
    "train": 4000,
    "test": 500,
}


def measure(run: Run) -> Numbers:
    """Accuracy of a mixture, of one adapter and of full fine-tuning after as many steps."""
    one = Houlsby(bottleneck=run.settings["bottleneck"], at="mlp")
    mixture = AdaMix(inner=one, copies=run.settings["copies"])
    return accuracies(run, {"adamix": mixture, "one": one, "full": Sum(())})


CLAIM = Claim(
    name="adamix",
    paper="Wang et al., EMNLP 2022",
    section="4.2",
    sentence="A mixture of adapters, merged into one, is better than one adapter of that size and "
    "than full fine-tuning.",
    figures="better than full fine-tuning with 0.1 to 0.2 % of the parameters (RoBERTa-large, "
    "abstract)",
    minutes=7,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["adamix"] - max(n["one"], n["full"]),
    reported={"adamix": "accuracy, AdaMix", "one": "one adapter", "full": "all weights"},
    plot=paired_bars(DATA, "accuracy", 0.5, adamix="AdaMix", one="one adapter", full="all weights"),
    data=DATA,
    tried=(
        "as many steps for all, where the authors train for 20 to 40 epochs; no rate was varied",
    ),
)
