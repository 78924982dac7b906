"""`python -m bench`: measure everything, print a table, write bench/results.json."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console

from bench import learning, memory, report, serving, steps
from bench.base import LENGTH, ROWS, quiet
from bench.report import Row, rated, timed
from bench.timing import Times, take_turns

LIMIT = "the limit"
PEFT = "peft"
NARROW = "peft, bf16 adapter"


def of_steps(quick: bool) -> list[Row]:
    """A LoRA step compared with the limit and peft's, and the steps of other methods."""
    amount = ROWS * LENGTH
    runs: dict[str, Callable[[], float]] = {
        "lora": steps.ours("lora"),
        LIMIT: steps.limit(),
        PEFT: steps.theirs("lora"),
        NARROW: steps.theirs("lora", narrow=True),
    }
    agree({name: runs[name]() for name in ("lora", PEFT, NARROW)})
    times = take_turns(runs, 3 if quick else 9, warm=1)

    def against_peft(name: str, other: str, times: Times, at_least: float | None = None) -> Row:
        return rated(f"{name} step", times, name, other, other, "tokens/s", amount, at_least)

    rows = [
        timed("lora step", times, "lora", LIMIT, LIMIT, at_most=1.10),
        against_peft("lora", PEFT, times, at_least=1.8),
        against_peft("lora", NARROW, times),
    ]
    for name in ("prompt", "prefix"):
        times = take_turns({name: steps.ours(name), PEFT: steps.theirs(name)}, 2 if quick else 5)
        rows.append(against_peft(name, PEFT, times))
    times = take_turns({"prompt": steps.ours("prompt"), "lora": runs["lora"]}, 2 if quick else 7)
    rows.append(timed("prompt step", times, "prompt", "lora", "a lora step", at_most=1.15))
    times = take_turns({"houlsby": steps.ours("houlsby"), LIMIT: runs[LIMIT]}, 2 if quick else 5)
    return [*rows, timed("houlsby step", times, "houlsby", LIMIT, LIMIT)]


def of_steps_in_fp32(quick: bool) -> list[Row]:
    """The same steps with a base in fp32, as a processor without bf16 products runs them."""
    amount, fp32 = ROWS * LENGTH, torch.float32
    runs: dict[str, Callable[[], float]] = {
        "lora": steps.ours("lora", fp32),
        LIMIT: steps.limit(fp32),
        PEFT: steps.theirs("lora", fp32),
    }
    agree({name: runs[name]() for name in ("lora", PEFT)})
    times = take_turns(runs, 3 if quick else 9, warm=1)
    rows = [
        timed("lora step, fp32", times, "lora", LIMIT, LIMIT),
        rated("lora step, fp32", times, "lora", PEFT, PEFT, "tokens/s", amount),
    ]
    for name in ("prompt", "prefix"):
        kinds = {name: steps.ours(name, fp32), PEFT: steps.theirs(name, fp32)}
        times = take_turns(kinds, 2 if quick else 5)
        rows.append(rated(f"{name} step, fp32", times, name, PEFT, PEFT, "tokens/s", amount))
    return rows


def agree(losses: dict[str, float]) -> None:
    """Exit unless the losses before the first update are the same, as comparable steps must be."""
    if max(losses.values()) - min(losses.values()) > 0.02:
        raise SystemExit(f"the losses of the first step differ: {losses}")


def of_memory(quick: bool) -> list[Row]:
    """The memory of a LoRA step, by torch's count and by the kernel's."""
    ours, limit, theirs = (memory.measured(kind) for kind in ("ours", "limit", "theirs"))
    unit, what = "MiB", "lora step, memory"
    rows = [
        Row(f"{what}: live tensors", PEFT, unit, ((ours["live"], theirs["live"]),), at_most=0.6),
        Row(f"{what}: live tensors", LIMIT, unit, ((ours["live"], limit["live"]),)),
    ]
    if "resident" in ours:
        keys = {"resident, without the model": "resident", "resident, in all": "total"}
        rows += [
            Row(f"{what}: {name}", PEFT, unit, ((ours[key], theirs[key]),))
            for name, key in keys.items()
        ]
    return rows


def of_learning(quick: bool) -> list[Row]:
    """Training on movie reviews: examples per second, and the accuracy afterwards."""
    seeds, number = ((0,), 10) if quick else ((0, 1, 2), 20)
    train = learning.reviews("train", 4000)
    test = learning.reviews("test", 200)
    rows = []
    for name, at_least in (("lora", 2.5), ("prompt", 3.2)):
        pairs = []
        for seed in seeds:
            libraries = [learning.ours, learning.theirs]
            order = libraries if seed % 2 else libraries[::-1]
            runs = {train_with: train_with(name, seed, number, train, test) for train_with in order}
            pairs.append((runs[learning.ours], runs[learning.theirs]))
        rows += _learning_rows(f"{name} on reviews, {number} steps of 16", pairs, at_least)
    return rows


def _learning_rows(
    what: str, pairs: list[tuple[learning.Run, learning.Run]], at_least: float
) -> list[Row]:
    def row(unit: str, field: str, at_least: float) -> Row:
        rounds = tuple((getattr(a, field), getattr(b, field)) for a, b in pairs)
        return Row(what, PEFT, unit, rounds, at_least=at_least)

    return [
        row("examples/s", "examples_per_second", at_least),
        row("accuracy", "accuracy", 0.97),
    ]


def of_serving(quick: bool) -> list[Row]:
    """Generation with a prefix, and a batch with a different inlay for every row."""
    amount = ROWS * serving.WRITTEN
    times = take_turns(serving.generation(), 2 if quick else 15, warm=1)
    generation = rated(
        "generation, prefix of 20",
        times,
        "prefix",
        "bare",
        "the base alone",
        "tokens/s",
        amount,
        0.95,
    )
    times = take_turns(serving.mixed(), 3 if quick else 9)
    alone = min((name for name in times.seconds if name != "mixed"), key=times.median)
    mixed = timed("8 rows, 8 inlays", times, "mixed", alone, "the fastest alone", at_most=1.5)
    return [generation, mixed]


STEPS: dict[str, Callable[[bool], list[Row]]] = {
    "bfloat16": of_steps,
    "float32": of_steps_in_fp32,
}
"""What measures the steps with a base in each type."""

PARTS: dict[str, Callable[[bool], list[Row]]] = {
    "steps": lambda quick: [row for measure in STEPS.values() for row in measure(quick)],
    "memory": of_memory,
    "serving": of_serving,
    "learning": of_learning,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of: {', '.join(PARTS)} (all of them)")
    parser.add_argument("--dtype", choices=STEPS, help="steps with a base in this type (both)")
    parser.add_argument("--quick", action="store_true", help="a third of the rounds, one seed")
    parser.add_argument("--add", action="store_true", help="add to the rounds measured before")
    parser.add_argument("--out", type=Path, default=report.RESULTS, help="the JSON file")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    parts = PARTS
    if options.dtype is not None:
        if options.parts != ["steps"]:
            parser.error("--dtype is for `steps` alone")
        parts = {"steps": STEPS[options.dtype]}
    quiet()
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    runs, before = report.read(options.out, options.quick) if options.add else ([], [])
    rows: list[Row] = []
    for name in options.parts or parts:
        console.print(f"measuring {name} …", style="dim")
        rows += parts[name](options.quick)
    rows = report.pooled(before, rows)
    report.show(rows, console)
    report.write([*runs, report.today()], rows, options.quick, options.out)


if __name__ == "__main__":
    main()
