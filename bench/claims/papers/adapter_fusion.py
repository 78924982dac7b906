"""AdapterFusion: against the target's own adapter, with few examples of the target."""

from __future__ import annotations

from dataclasses import replace

from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import accuracy
from bench.claims.fusing import adapter_alone, source, texts, train_adapter, train_fusion
from bench.claims.plots import bars
from inlay.core.method import Sum

SOURCES = ("trec", "subj", "sst2", "movie")

SETTINGS = {
    "base": "minilm",
    "dtype": "bfloat16",
    "sources": SOURCES,
    "target": "amazon",
    "steps": 300,
    "batch_size": 16,
    "train": 4800,
    "few": 100,
    "test": 400,
}


def measure(run: Run) -> Numbers:
    """Accuracy on the target of a head alone, of its own adapter, and of a fusion with four others.

    All three learn from the same few examples in as many steps; so has the adapter in the fusion.
    """
    settings = run.settings
    others = {name: source(run, name) for name in settings["sources"]}
    everything = texts(run, settings["target"])
    data = replace(everything, train=everything.train[: settings["few"]])
    numbers = {"head": accuracy(run, "head alone", Sum(()), data)}
    own = train_adapter(run, "the target's adapter", data)
    numbers["own"] = own.experiment.score(own.task, data.test)
    fusion = train_fusion(run, {**others, settings["target"]: adapter_alone(own)}, data)
    numbers["fusion"] = fusion.experiment.score(fusion.task, data.test)
    return numbers


CLAIM = Claim(
    name="adapter_fusion",
    paper="Pfeiffer et al., EACL 2021",
    section="",
    sentence="On a target with few examples a fusion of its own adapter with those of other tasks "
    "is better than that adapter alone.",
    figures="better than full fine-tuning and multi-task training on average over 16 tasks; the "
    "largest gains on small sets such as RTE",
    minutes=10,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: n["fusion"] - n["own"],
    reported={
        "head": "accuracy, head alone",
        "own": "the target's own adapter",
        "fusion": "the fusion",
    },
    plot=bars(head="head alone", own="own adapter", fusion="fusion"),
    data=("trec", "subj", "sst2"),
)
