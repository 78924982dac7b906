"""AdaMix: copies that have their up- or their down-projections in common, or nothing."""

from __future__ import annotations

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import accuracies
from bench.claims.plots import bars
from inlay import AdaMix, Houlsby

SETTINGS = {
    "base": "minilm",
    "data": ("trec",),
    "bottleneck": 16,
    "copies": 4,
    "steps": 300,
    "batch_size": 8,
    "train": 4000,
    "test": 500,
}


def measure(run: Run) -> Numbers:
    """Accuracy with each projection shared, and with none."""
    inner = Houlsby(bottleneck=run.settings["bottleneck"], at="mlp")
    copies = run.settings["copies"]
    return accuracies(
        run,
        {
            "up": AdaMix(inner=inner, copies=copies, share="up"),
            "down": AdaMix(inner=inner, copies=copies, share="down"),
            "none": AdaMix(inner=inner, copies=copies, share=None),
        },
    )


CLAIM = Claim(
    name="adamix_sharing",
    paper="Wang et al., EMNLP 2022",
    section="4.3",
    sentence="Copies of an adapter that share their up-projection learn better than copies that "
    "share nothing.",
    figures="no checked figure, only text",
    minutes=8,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["up"] - n["none"],
    reported={"up": "accuracy, up shared", "down": "down shared", "none": "nothing shared"},
    plot=bars(up="up shared", down="down shared", none="nothing"),
    data=("trec",),
    tried=("a learned gate, which the paper compares random routes with, is not in this library",),
)
