"""AdaMix: without its consistency loss, and with random routes in place of the means."""

from __future__ import annotations

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, labelled
from bench.claims.plots import bars
from inlay import AdaMix, Houlsby
from inlay.methods.adamix import Mixture

SETTINGS = {
    "base": "minilm",
    "bottleneck": 16,
    "copies": 4,
    "steps": 300,
    "batch_size": 8,
    "train": 4000,
    "test": 500,
}


def measure(run: Run) -> Numbers:
    """Accuracy of the means and of random routes, both trained with the consistency loss or not."""
    data = labelled(run, "trec")
    inner = Houlsby(bottleneck=run.settings["bottleneck"], at="mlp")
    numbers: Numbers = {}
    for name, weight in (("mean", 1.0), ("no_consistency", 0.0)):
        experiment = Experiment(run)
        task = experiment.by_head(data.labels)
        spec = AdaMix(inner=inner, copies=run.settings["copies"], consistency_weight=weight)
        handle = experiment.fit(name, spec + task.head(), task, data.train)
        numbers[name] = experiment.score(task, data.test)
        for placed in handle.placed:
            if isinstance(placed.piece, Mixture):
                placed.piece.random = True
        numbers["random" if weight else "random_no_consistency"] = experiment.score(task, data.test)
    return numbers


CLAIM = Claim(
    name="adamix_ablation",
    paper="Wang et al., EMNLP 2022",
    section="4.3",
    sentence="A mixture of adapters is worse without the consistency loss, and with random routes "
    "at inference in place of the means of the copies.",
    figures="no checked figure, only text",
    minutes=5,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["mean"] - max(n["no_consistency"], n["random"]),
    reported={
        "mean": "accuracy, means",
        "no_consistency": "without the consistency loss",
        "random": "random routes",
        "random_no_consistency": "random routes without the consistency loss",
    },
    plot=bars(
        mean="means",
        no_consistency="no consistency",
        random="random",
        random_no_consistency="neither",
    ),
    data=("trec",),
)
