"""Every task on every kind of base, with every kind of method, in so many minutes a cell.

`python -m bench.tasks --minutes 3` measures the cells that bench/tasks.json does not have yet with
this budget, stores each as soon as it is measured, and prints the table. Name data sets to measure
these alone. Beside the trained cells stand the untouched base, where it can answer at all, and what
always saying the commonest answer scores.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.base import machine, quiet
from inlay.errors import InlayError
from inlay.models import load_base
from inlay.training import evaluate
from inlay.training.recipe import Recipe
from inlay.training.run import run

OUT = Path(__file__).with_name("tasks.json")
BASES = {"smollm2": "decoder", "minilm": "encoder", "flan-t5-small": "encoder–decoder"}
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"method": "LoRA"},
    "prefix": {"method": "Prefix"},
    "Houlsby": {"method": "Houlsby"},
    "all weights": {"training.base_lr": 3e-5, "dtype": "float32"},
}
UNTOUCHED = "untouched"
SEED = 0


@dataclass(frozen=True)
class Task:
    """A data set as a task.

    folder: of the data. train, test: files, or the split. words: the task where the base has a
    language-model head; head: where it has none, or where words would make no sense. answer: the
    field whose commonest value is the majority's. test_rows: how many are asked.
    """

    folder: str
    head: Mapping[str, Any]
    words: Mapping[str, Any] | None = None
    train: str = "train"
    test: str = "test"
    answer: str | None = "label"
    columns: Mapping[str, str] = field(default_factory=dict)
    test_rows: int = 300

    def of(self, base: str) -> Mapping[str, Any]:
        """The task as this base does it."""
        return self.head if self.words is None or BASES[base] == "encoder" else self.words


def _classify(template: str, verbalizer: Mapping[str, str]) -> dict[str, Any]:
    return {"kind": "classify", "template": template, "verbalizer": dict(verbalizer)}


SETS = {
    "sst2": Task(
        "sst2",
        {"kind": "classify"},
        _classify("{text} It was", {"negative": " bad", "positive": " great"}),
    ),
    "trec": Task(
        "trec",
        {"kind": "classify"},
        _classify(
            "{text} This question asks for a",
            {"ABBR": " short", "DESC": " description", "ENTY": " thing", "HUM": " person",
             "LOC": " place", "NUM": " number"},
        ),
    ),
    "rte": Task(
        "glue_rte",
        {"kind": "classify", "template": "{premise} {hypothesis}"},
        _classify(
            "{premise} Question: {hypothesis} True or false? Answer:",
            {"entailment": " true", "not_entailment": " false"},
        ),
        test="dev",
    ),
    "wnut17": Task("wnut17", {"kind": "tag"}, answer=None),
    "roles": Task("up_english_ewt", {"kind": "tag", "scheme": "plain"}, answer=None),
    "xquad": Task(
        "xquad", {"kind": "extract", "stride": 64, "max_length": 256}, answer=None, test_rows=100
    ),
    "copa": Task(
        "fewglue_32dev/COPA",
        {"kind": "choose", "by": "head", "template": "{premise} What was the {question}?",
         "choices": ["choice1", "choice2"]},
        {"kind": "choose", "by": "sum", "template": "{premise} What was the {question}?",
         "choices": ["choice1", "choice2"]},
        test="val",
    ),
    "e2e": Task(
        "e2e", {"kind": "generate", "metric": "bleu"}, answer=None, test_rows=48
    ),
}  # fmt: skip


def cell(name: str, base: str, method: str, minutes: float, data: Path) -> dict[str, Any]:
    """What one combination scores; or, in one sentence, why it cannot be."""
    one, console = SETS[name], Console(stderr=True)
    folder = str(data / one.folder)
    with tempfile.TemporaryDirectory() as out:
        asked = {
            "base": base,
            "seed": SEED,
            "out": out,
            "task": {"truncate": "stride" not in one.of(base), **one.of(base)},
            "data": {
                "train": {"source": folder, "split": one.train, "columns": dict(one.columns)},
                "test": {"source": folder, "split": one.test, "limit": one.test_rows},
            },
            "training": {"minutes": minutes, "batch_size": 8},
        }
        for key, value in METHODS.get(method, METHODS["LoRA"]).items():
            if key.startswith("training."):
                asked["training"][key.partition(".")[2]] = value
            else:
                asked[key] = value
        try:
            recipe = Recipe(**asked)
            if method == UNTOUCHED:
                return _untouched(recipe, one, console)
            outcome = run(recipe, console)
        except InlayError as error:
            return {"refused": str(error)}
        assert outcome.test is not None
        return {
            "metric": outcome.metric,
            "score": outcome.test[outcome.metric],
            "steps": outcome.training.steps,
            "seconds": outcome.training.seconds,
            "numbers": outcome.parameters,
        }


def _untouched(recipe: Recipe, one: Task, console: Console) -> dict[str, Any]:
    """The bare base's score, and that of the commonest answer."""
    task = recipe.make_task()
    train, test = recipe.data.train.load(task), recipe.data.test.load(task)  # type: ignore[union-attr]
    task.prepare(train)
    found: dict[str, Any] = {"metric": task.metric}
    if one.answer is not None:
        said = [str(row.fields[one.answer]) for row in test]
        common = Counter(str(row.fields[one.answer]) for row in train).most_common(1)[0][0]
        found["majority"] = sum(answer == common for answer in said) / len(said)
    if task.head() is not None:
        return {**found, "refused": "a head that was not trained says nothing"}
    model, tokenizer = load_base(recipe.base)
    task.bind(model, tokenizer)
    score = evaluate(model, task, test, batch_size=16, console=console)[task.metric]
    return {**found, "score": score}


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.tasks", description=__doc__)
    parser.add_argument("sets", nargs="*", default=list(SETS), metavar="SET")
    parser.add_argument("--minutes", type=float, default=3.0, help="training, a cell")
    parser.add_argument("--cells", type=int, default=10**6, help="measure at most so many")
    shared = Path(__file__).parents[2] / "shared" / "data"
    data = Path(os.environ.get("INLAY_DATA", shared))
    parser.add_argument("--data", type=Path, default=data)
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    quiet()
    console = Console()
    stored = json.loads(asked.out.read_text()) if asked.out.exists() else {}
    if stored.get("minutes") != asked.minutes:
        stored = {"minutes": asked.minutes, "machine": machine(), "cells": {}}
    for name in asked.sets:
        for base in BASES:
            for method in (UNTOUCHED, *METHODS):
                key = f"{name}/{base}/{method}"
                if key in stored["cells"] or not asked.cells:
                    continue
                asked.cells -= 1
                console.print(key)
                stored["cells"][key] = cell(name, base, method, asked.minutes, asked.data)
                asked.out.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n")
    console.print(table(stored))


def table(stored: Mapping[str, Any]) -> Table:
    """Scores by data set and base; what could not be is a dash."""
    shown = Table(title=f"{stored['minutes']:g} minutes of training a cell")
    for column in ("data", "base", "metric", "majority", UNTOUCHED, *METHODS):
        shown.add_column(column)
    for name in SETS:
        for base in BASES:
            cells = [stored["cells"].get(f"{name}/{base}/{m}", {}) for m in (UNTOUCHED, *METHODS)]
            metric = next((c["metric"] for c in cells if "metric" in c), "")
            scores = [f"{c['score']:.3f}" if "score" in c else "–" for c in cells]
            majority = f"{cells[0]['majority']:.3f}" if "majority" in cells[0] else ""
            if any(cells):
                shown.add_row(name, base, metric, majority, *scores)
    return shown


if __name__ == "__main__":
    main()
