"""AdaMix: what the consistency pass costs in training, in memory and time."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

import inlay
from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import Experiment, labelled
from bench.claims.plots import bars
from bench.live import live
from inlay import AdaMix, Houlsby

SETTINGS = {
    "base": "minilm",
    "bottleneck": 16,
    "copies": 4,
    "steps": 20,
    "batch_size": 16,
    "train": 320,
    "test": 16,
}


def measure(run: Run) -> Numbers:
    """MiB of live tensors in a step, and processor seconds a step, of the same batches."""
    settings = run.settings
    data = labelled(run, "sst2")
    inner = Houlsby(bottleneck=settings["bottleneck"], at="mlp")
    numbers: Numbers = {}
    for name, spec in {
        "one": inner,
        "without": AdaMix(inner=inner, copies=settings["copies"], consistency_weight=0.0),
        "with": AdaMix(inner=inner, copies=settings["copies"]),
    }.items():
        experiment = Experiment(run)
        task = experiment.by_head(data.labels)
        torch.manual_seed(run.seed)
        handle = inlay.attach(experiment.model, spec + task.head())

        def train(steps: int) -> None:
            inlay.fit(
                *(experiment.model, handle, task, data.train),  # noqa: B023  # called right here
                console=run.console,
                seed=run.seed,
                steps=steps,
                batch_size=settings["batch_size"],
            )

        run.show(name)
        train(1)
        numbers[f"memory_{name}"] = live(lambda: train(1))
        start = time.process_time()
        train(settings["steps"])
        numbers[f"seconds_{name}"] = (time.process_time() - start) / settings["steps"]
    for cost in ("memory", "seconds"):
        numbers[f"{cost}_ratio"] = numbers[f"{cost}_with"] / numbers[f"{cost}_without"]
    return numbers


def margin(n: Mapping[str, float]) -> float:
    """By how much of it both grow; none may grow to more than 2.2 times."""
    ratios = n["memory_ratio"], n["seconds_ratio"]
    return min(min(ratios) - 1, 2.2 - max(ratios))


CLAIM = Claim(
    name="adamix_cost",
    paper="Wang et al., EMNLP 2022",
    section="3.2",
    sentence="The consistency pass costs a mixture of adapters up to twice the memory and time in "
    "training.",
    figures="no figure; two forward passes in the authors' code",
    minutes=1.5,
    settings=SETTINGS,
    measure=measure,
    margin=margin,
    reported={
        "memory_one": "MiB of live tensors in a step, one adapter",
        "memory_without": "AdaMix without the pass",
        "memory_with": "with it",
        "memory_ratio": "with it to without",
        "seconds_one": "processor seconds a step, one adapter",
        "seconds_without": "AdaMix without the pass",
        "seconds_with": "with it",
        "seconds_ratio": "with it to without",
    },
    plot=bars(memory_ratio="memory", seconds_ratio="time"),
    data=("sst2",),
)
