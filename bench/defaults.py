"""The accuracy of methods with their default fields, on movie reviews, after three minutes.

`python -m bench.defaults` trains each method on a fresh base for three minutes, all on the same
task, and tests it on a thousand held-out reviews; with three seeds. Writes bench/defaults.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console

import inlay
from bench.base import model, quiet, tokenizer
from inlay.core.piece import VirtualTokens
from inlay.data.dataset import Example
from inlay.data.loading import load
from inlay.hub import fetch_sentiment
from inlay.tasks import Classify, Task, Verbalizer
from inlay.training import evaluate

METHODS = ("Prompt", "Prefix", "PTuning", "PTuningV2")
SEEDS = (0, 1, 2)
MINUTES = 3.0
TEMPLATE = "{text} All in all, it was"
HELD_OUT = 1000
GOAL = 0.85
OUT = Path(__file__).with_name("defaults.json")


def review_task() -> Task:
    """Reviews as a question that is answered with a word."""
    return Classify(template=TEMPLATE, by=Verbalizer({"negative": " bad", "positive": " great"}))


def measure(
    method: str, seed: int, steps: int | None, minutes: float | None, console: Console
) -> dict[str, Any]:
    """Train and test one method. steps: instead of minutes, on a machine with other work."""
    task, base = review_task(), model()
    train = load(fetch_sentiment() / "movie" / "train.jsonl", need=("text", "label"))
    rows = reviews()
    task.prepare(train)
    spec = inlay.parse(method)
    torch.manual_seed(seed)
    handle = inlay.attach(base, spec)
    tokens = [p.piece for p in handle.placed if isinstance(p.piece, VirtualTokens)]
    if tokens:
        task.place(handle.virtual_tokens, sum(piece.before for piece in tokens), train)
    task.bind(base, tokenizer())
    start, cpu_start = time.perf_counter(), time.process_time()
    budget = {"minutes": minutes} if steps is None else {"steps": steps}
    result = inlay.fit(base, handle, task, train, console=console, seed=seed, **budget)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    accuracy = evaluate(base, task, rows, batch_size=32)["accuracy"]
    return {
        "method": method,
        "seed": seed,
        "steps": result.steps,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "accuracy": accuracy,
    }


def reviews() -> list[Example]:
    """The held-out reviews."""
    where = fetch_sentiment() / "movie" / "test.jsonl"
    return list(load(where, need=("text", "label"), limit=HELD_OUT))


def main() -> None:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(prog="python -m bench.defaults", description=__doc__)
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, help="train for a number of steps, not of minutes")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    quiet()
    console = Console(stderr=True)
    runs = []
    for method in options.methods:
        for seed in options.seeds:
            runs.append(measure(method, seed, options.steps, options.minutes, console))
            console.print(runs[-1])
    means = {
        method: fmean(run["accuracy"] for run in runs if run["method"] == method)
        for method in options.methods
    }
    results = {"goal": GOAL, "mean": means, "runs": runs}
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    console.print(means)


if __name__ == "__main__":
    main()
