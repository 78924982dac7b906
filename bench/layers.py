"""What leaving adapters out of the lowest layers saves: `python -m bench.layers`.

A training step and a pass for inference with Pfeiffer adapters in the upper layers alone, for one
task and for several tasks on one input, beside full fine-tuning and the bare base (Rücklé et al.,
EMNLP 2021). Times are wall-clock, in turns, as ratios within a round; the result is stored in
bench/layers.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import AutoModel

import inlay
from bench.base import ROWS, batch, device, machine, quiet
from bench.timing import Times, take_turns
from inlay import Pfeiffer, Where
from inlay.hub import fetch_model

MODELS = ("minilm", "smollm2")
TASKS = (2, 4, 8, 16)
SHARES = (0.0, 0.25, 0.5)
"""Fractions of the layers, from the input, that have no adapter."""

PAPER = {
    "training step of adapters against all weights": "up to 60 % faster",
    "inference of adapters against the base": "94-96 % of its speed",
    "8 tasks on one input without 5 of 12 adapters": "39 % faster",
    "2 to 16 tasks on one input without 5 of 12 adapters": "21-42 % faster",
}


def base(name: str) -> Any:
    """A new backbone in fp32."""
    model = AutoModel.from_pretrained(fetch_model(name), dtype=torch.float32)
    return model.to(device())


def upper(model: Any, share: float) -> Pfeiffer:
    """Pfeiffer adapters in the layers above the lowest share of them."""
    depth = model.config.num_hidden_layers
    return Pfeiffer(at=Where(("block",), tuple(range(round(share * depth), depth))))


def step(model: Any, parameters: list[nn.Parameter]) -> Callable[[], None]:
    """A training step on the mean of the last states."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    rows = batch()

    def run() -> None:
        model(input_ids=rows.ids, attention_mask=rows.mask).last_hidden_state.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def training(name: str, rounds: int) -> dict[str, float]:
    """Seconds of a step with adapters as ratios to those of full fine-tuning."""
    whole = base(name)
    runs = {"all weights": step(whole, list(whole.parameters()))}
    for share in SHARES:
        model = base(name)
        handle = inlay.attach(model, upper(model, share))
        runs[f"{share:.0%} dropped"] = step(model, list(handle.parameters()))
    return ratios(take_turns(runs, rounds), "all weights")


@torch.no_grad()
def inference(name: str, rounds: int) -> dict[str, float]:
    """Seconds of a pass as ratios to the base's."""
    rows = batch()
    runs: dict[str, Callable[[], object]] = {}
    for share in (None, *SHARES):
        model = base(name).eval()
        if share is not None:
            inlay.attach(model, upper(model, share))

        def run(model: Any = model) -> None:
            model(input_ids=rows.ids, attention_mask=rows.mask)

        runs["the base" if share is None else f"{share:.0%} dropped"] = run
    return ratios(take_turns(runs, rounds), "the base")


@torch.no_grad()
def tasks(name: str, rounds: int) -> dict[str, float]:
    """Seconds for several tasks on one input as ratios to one pass for each, nothing dropped."""
    rows = batch(2)
    inputs = {"input_ids": rows.ids, "attention_mask": rows.mask}
    results: dict[str, float] = {}
    models = {}
    for share in SHARES:
        models[share] = base(name).eval()
        for number in range(max(TASKS)):
            inlay.attach(models[share], upper(models[share], share), name=f"task-{number}")
    for count in TASKS:
        names = [f"task-{number}" for number in range(count)]

        def each(names: list[str] = names) -> None:
            for task in names:
                with inlay.rows(models[0.0], [task] * 2):
                    models[0.0](**inputs)

        runs: dict[str, Callable[[], object]] = {"each alone": each}
        for share in SHARES:

            def together(share: float = share, names: list[str] = names) -> None:
                inlay.ask_all(models[share], names, **inputs)

            runs[f"{count} tasks, {share:.0%} dropped"] = together
        results |= ratios(take_turns(runs, rounds), "each alone")
    return results


def ratios(times: Times, reference: str) -> dict[str, float]:
    """The median ratio within a round of every run to one of them."""
    return {
        name: round(median(a / b for a, b in times.pairs(name, reference)), 3)
        for name in times.seconds
        if name != reference
    }


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("layers.json"))
    options = parser.parse_args()
    quiet()
    results: dict[str, Any] = {"machine": machine(), "rows": ROWS, "paper": PAPER}
    for name in MODELS:
        results[name] = {
            "training step / all weights": training(name, options.rounds),
            "inference / the base": inference(name, options.rounds),
            "tasks on one input / each alone": tasks(name, options.rounds),
        }
        print(json.dumps({name: results[name]}, indent=1), flush=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
