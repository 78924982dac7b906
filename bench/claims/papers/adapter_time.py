"""Adapters: the time of a training step and of a pass, against full fine-tuning and the base."""

from __future__ import annotations

from bench import layers, timing
from bench.claims.claim import Claim, Numbers, Run
from bench.claims.plots import bars

SETTINGS = {"base": "minilm", "rows": 8, "tokens": 128, "slower": 0.1, "steps": 5}


def measure(run: Run) -> Numbers:
    """Processor seconds of a training step and of a pass with adapters, as ratios.

    Nothing is random: seeds are repetitions.
    """
    name, steps = run.settings["base"], run.settings["steps"]
    with timing.processor_seconds():
        run.show("training")
        training = layers.training(name, steps)
        run.show("inference")
        inference = layers.inference(name, steps)
    return {"training": training["0% dropped"], "inference": inference["0% dropped"]}


CLAIM = Claim(
    name="adapter_time",
    paper="Rücklé et al., EMNLP 2021",
    section="",
    sentence="A training step with adapters is faster than one of all weights, and a pass with "
    "them slower than the base's by less than a tenth.",
    figures="a step up to 60 % faster than full fine-tuning, inference at 94 to 96 % of its speed "
    "(BERT-base)",
    minutes=2,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: min(1 - n["training"], 1 + SETTINGS["slower"] - n["inference"]),
    reported={
        "training": "time of a step / of full fine-tuning",
        "inference": "time of a pass / of the base",
    },
    plot=bars(training="step / all weights", inference="pass / base"),
)
