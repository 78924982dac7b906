"""AdapterDrop: several tasks on one input, whose lowest layers run once."""

from __future__ import annotations

from collections.abc import Mapping

from bench import layers, timing
from bench.claims.claim import Claim, Numbers, Run
from bench.claims.plots import curves

SETTINGS = {
    "base": "minilm",
    "tasks": layers.TASKS,
    "dropped": layers.SHARES,
    "rows": 2,
    "tokens": 128,
    "steps": 3,
}


def measure(run: Run) -> Numbers:
    """Processor seconds for several tasks in one pass, as ratios to one pass for each.

    Nothing is random: seeds are repetitions.
    """
    run.show("tasks")
    with timing.processor_seconds():
        times = layers.tasks(run.settings["base"], run.settings["steps"])
    return {
        f"dropped{100 * share:.0f}_{count}": times[f"{count} tasks, {share:.0%} dropped"]
        for count in layers.TASKS
        for share in layers.SHARES
    }


def faster(n: Mapping[str, float], count: int) -> float:
    """By which part of the time dropping half of the layers makes a number of tasks faster."""
    return 1 - n[f"dropped50_{count}"] / n[f"dropped0_{count}"]


CLAIM = Claim(
    name="shared_trunk",
    paper="Rücklé et al., EMNLP 2021",
    section="",
    sentence="For 2 to 16 tasks on one input, adapters without those of the lower half of the "
    "layers are faster by a fifth at least.",
    figures="21 to 42 % faster by the number of tasks, 39 % with 8, without 5 of 12 layers "
    "(BERT-base)",
    minutes=4,
    settings=SETTINGS,
    measure=measure,
    margin=lambda n: min(faster(n, count) for count in layers.TASKS) - 0.2,
    reported={
        "dropped0_8": "8 tasks in one pass / 8 passes, nothing dropped",
        "dropped25_8": "25 % dropped",
        "dropped50_8": "50 % dropped",
        "dropped0_2": "2 tasks, nothing dropped",
        "dropped50_2": "50 % dropped",
        "dropped0_16": "16 tasks, nothing dropped",
        "dropped50_16": "50 % dropped",
    },
    plot=curves(
        "tasks",
        layers.TASKS,
        True,
        dropped0_="nothing dropped",
        dropped25_="25 %",
        dropped50_="50 %",
    ),
)
