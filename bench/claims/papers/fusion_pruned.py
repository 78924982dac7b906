"""AdapterFusion: eight adapters, pruned to the two that the fusion listens to most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import inlay
from bench import layers, timing
from bench.claims.claim import Claim, Numbers, Run
from bench.claims.experiment import LabelledTexts
from bench.claims.fusing import (
    Trained,
    adapter_alone,
    source,
    texts,
    train_adapter,
    train_fusion,
)
from bench.claims.plots import bars
from inlay import Fusion

SOURCES = ("trec", "subj", "sst2", "movie", "tweets", "nyt", "glue_rte")

SETTINGS = {
    "base": "minilm",
    "dtype": "bfloat16",
    "sources": SOURCES,
    "target": "amazon",
    "kept": 2,
    "lost": 0.02,
    "rounds": 5,
    "steps": 300,
    "batch_size": 16,
    "train": 4800,
    "few": 100,
    "test": 400,
}


def measure(run: Run) -> Numbers:
    """Accuracy of a fusion before and after it is pruned, and how long a pass takes afterwards."""
    settings = run.settings
    adapters = {name: source(run, name) for name in settings["sources"]}
    everything = texts(run, settings["target"])
    data = replace(everything, train=everything.train[: settings["few"]])
    own = train_adapter(run, "the target's adapter", data)
    adapters[settings["target"]] = adapter_alone(own)
    fusion = train_fusion(run, adapters, data)
    numbers = {"own": own.experiment.score(own.task, data.test)}
    numbers["whole"] = fusion.experiment.score(fusion.task, data.test)
    kept = prune(fusion, data, settings["kept"])
    numbers["pruned"] = fusion.experiment.score(fusion.task, data.test)
    numbers["own_kept"] = float(settings["target"] in kept)
    run.show("time")
    with timing.processor_seconds():
        times = layers.pruned(settings["base"], settings["rounds"])
    numbers["time"] = times[f"{settings['kept']} adapters"]
    numbers["time_base"] = times["the base"]
    return numbers


def prune(fusion: Trained, data: LabelledTexts, keep: int) -> tuple[str, ...]:
    """Leave the adapters alone that the fusion listens to most; returns their names."""
    weights = inlay.adapter_weights(fusion.handle, batches(fusion, data))
    pruned = inlay.prune_fusion(fusion.handle, weights, keep)
    fusion.handle.detach()
    [method] = [method for method in pruned.spec.methods if isinstance(method, Fusion)]
    return method.names


def batches(fusion: Trained, data: LabelledTexts) -> Iterator[dict[str, Any]]:
    """The examples of the target, as the base takes them."""
    encoded = fusion.task.encode_all(data.train)
    for start in range(0, len(encoded), 16):
        yield dict(fusion.task.collate(encoded[start : start + 16]).inputs)


CLAIM = Claim(
    name="fusion_pruned",
    paper="Rücklé et al., EMNLP 2021",
    section="",
    sentence="A fusion of eight adapters that is pruned to the two it listens to most is faster, "
    "and loses less than two points of accuracy.",
    figures="inference 68 % faster with 2 of 8 adapters, at a comparable score",
    minutes=12,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: min(1 - n["time"], SETTINGS["lost"] - (n["whole"] - n["pruned"])),
    reported={
        "time": "time of a pass with 2 adapters / with 8",
        "time_base": "without any / with 8",
        "whole": "accuracy with 8",
        "pruned": "with 2",
        "own": "the target's own adapter",
    },
    plot=bars(own="own adapter", whole="fusion of 8", pruned="pruned to 2"),
    data=("trec", "subj", "sst2", "glue_rte"),
)
