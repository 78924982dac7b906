"""What the defaults reach: a method's name and nothing else, on movie reviews, in three minutes.

`python -m bench.defaults` trains each method on a fresh base for three minutes, all on one and the
same task, and asks a thousand reviews that it was not trained on; three seeds. Writes
bench/defaults.json.
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
from inlay.hub.models import fetch_sentiment
from inlay.tasks import Classify, Task
from inlay.training import evaluate

METHODS = ("Prompt", "Prefix", "PTuning", "PTuningV2")
SEEDS = (0, 1, 2)
MINUTES = 3.0
TEMPLATE = "{text} All in all, it was"
HELD_OUT = 1000
GOAL = 0.85
OUT = Path(__file__).with_name("defaults.json")


def reviewing() -> Task:
    """Reviews as a question that is answered in words."""
    return Classify(template=TEMPLATE, verbalizer={"negative": " bad", "positive": " great"})


def measure(
    method: str, seed: int, steps: int | None, minutes: float | None, console: Console
) -> dict[str, Any]:
    """Train and ask. steps: in place of minutes, where the machine is not alone."""
    task, base = reviewing(), model()
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
    begun, spent = time.perf_counter(), time.process_time()
    end = {"minutes": minutes} if steps is None else {"steps": steps}
    result = inlay.fit(base, handle, task, train, console=console, seed=seed, **end)
    seconds, cpu = time.perf_counter() - begun, time.process_time() - spent
    accuracy = evaluate(base, task, rows, batch_size=32)["accuracy"]
    return {
        "method": method,
        "seed": seed,
        "steps": result.steps,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu, 1),
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
    parser.add_argument("--steps", type=int, help="train so many steps, not three minutes")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    quiet()
    console = Console(stderr=True)
    found = []
    for method in asked.methods:
        for seed in asked.seeds:
            one = measure(method, seed, asked.steps, asked.minutes, console)
            found.append(one)
            console.print(one)
    means = {m: fmean(f["accuracy"] for f in found if f["method"] == m) for m in asked.methods}
    asked.out.write_text(json.dumps({"goal": GOAL, "mean": means, "runs": found}, indent=1) + "\n")
    console.print(means)


if __name__ == "__main__":
    main()
