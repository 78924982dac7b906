"""Adapters: one a layer or two, after attention or after the feed-forward layer."""

from __future__ import annotations

from collections.abc import Mapping

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import accuracies
from bench.claims.plots import bars
from inlay import Houlsby, Pfeiffer

SETTINGS = {
    "base": "minilm",
    "dtype": "bfloat16",
    "data": ("trec",),
    "bottleneck": 64,
    "gap": 0.015,
    "steps": 300,
    "batch_size": 8,
    "train": 4000,
    "test": 500,
}


def measure(run: Run) -> Numbers:
    """Accuracy of one adapter a layer, and of two of half its width (equal) or as wide (double).

    Norms stay frozen in all of them.
    """
    width = run.settings["bottleneck"]
    return accuracies(
        run,
        {
            "one": Pfeiffer(bottleneck=width),
            "equal": Houlsby(bottleneck=width // 2, at=("attn", "mlp")),
            "double": Houlsby(bottleneck=width, at=("attn", "mlp")),
            "attention": Houlsby(bottleneck=width, at="attn"),
            "feed_forward": Houlsby(bottleneck=width, at="mlp"),
        },
    )


def margin(n: Mapping[str, float]) -> float:
    """How far one adapter is above 1.5 points below the better of two, equal or double."""
    return n["one"] - max(n["equal"], n["double"]) + SETTINGS["gap"]


CLAIM = Claim(
    name="pfeiffer",
    paper="Pfeiffer et al., EACL 2021",
    section="3.2.1",
    sentence="One adapter a layer, after the feed-forward layer, is at most 1.5 points behind two "
    "a layer, with as many parameters in all or with twice as many.",
    figures="no checked figure, only text",
    minutes=6,
    settings=SETTINGS,
    measure=measure,
    margin=margin,
    reported={
        "one": "accuracy, one a layer (Pfeiffer)",
        "equal": "two (Houlsby), as many parameters",
        "double": "twice as many",
        "attention": "Houlsby after attention alone",
        "feed_forward": "after the feed-forward layer alone",
    },
    plot=bars(
        one="one", equal="two, equal", double="two, double", attention="attn", feed_forward="mlp"
    ),
    data=("trec",),
)
