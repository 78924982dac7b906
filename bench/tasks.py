"""Every task on every kind of base, with every kind of method, on the same budget.

`python -m bench.tasks` measures the cells that bench/cells/ does not have yet, stores each as soon
as it is measured, and prints the table. Name data sets to measure these alone; several processes
may share the work, a data set each. Beside the trained cells stand the untouched base, where it can
answer at all, and what always giving the commonest answer scores.

The budget of a cell is that of its training, in seconds of the processor's time: other work on the
machine takes nothing from it. Loading, encoding and testing are not in it.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from rich.console import Console
from rich.markdown import Markdown

from bench.base import machine, quiet
from inlay.data.dataset import Dataset, Example
from inlay.errors import InlayError
from inlay.hub import load_base
from inlay.tasks import Generate
from inlay.tasks import Task as Asked
from inlay.training import evaluate, predict
from inlay.training.loop import trainer
from inlay.training.recipes.recipe import Recipe
from inlay.training.recipes.run import run
from inlay_cli.docs import tasks_page

OUT = Path(__file__).with_name("cells")
BASES = {"smollm2": "decoder", "minilm": "encoder", "flan-t5-small": "encoder–decoder"}
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"method": "LoRA"},
    "prefix": {"method": "Prefix"},
    "Houlsby": {"method": "Houlsby"},
    "all weights": {"training": {"base_lr": 3e-5}, "dtype": "float32"},
}
UNTOUCHED = "untouched"
SEED = 0
BATCH = 8
PRINTED = "{context}\nQuestion: {question}\nAnswer:"


@dataclass(frozen=True)
class Task:
    """A data set as a task.

    folder: of the data. words: the task where the base writes; head: where it does not, or where
    words would make no sense. test: the split; test_rows: how many are asked. answer: an example's
    own, of which the commonest is given to all. asked: what an untouched base that writes is asked
    where only a head can be trained.
    """

    folder: str
    head: Mapping[str, Any]
    words: Mapping[str, Any] | None = None
    test: str = "test"
    test_rows: int = 300
    answer: Callable[[Example], Any] = lambda row: row.fields["label"]
    asked: str | None = None

    def of(self, base: str) -> Mapping[str, Any]:
        """The task as this base does it."""
        return self.head if self.words is None or BASES[base] == "encoder" else self.words


def _classify(template: str, verbalizer: Mapping[str, str]) -> dict[str, Any]:
    return {"kind": "classify", "template": template, "verbalizer": dict(verbalizer)}


def _outside(row: Example) -> list[str]:
    return ["O"] * len(row.fields["tokens"])


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
    "wnut17": Task("wnut17", {"kind": "tag"}, answer=_outside),
    "roles": Task("up_english_ewt", {"kind": "tag", "scheme": "plain"}, answer=_outside),
    "xquad": Task(
        "xquad", {"kind": "extract", "stride": 64, "max_length": 256}, test_rows=60,
        answer=lambda row: row.fields["answers"][0]["text"], asked=PRINTED,
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
        "e2e", {"kind": "generate", "metric": "bleu"}, test_rows=48,
        answer=lambda row: row.fields["target"],
    ),
}  # fmt: skip


def cell(name: str, base: str, method: str, seconds: float, data: Path) -> dict[str, Any]:
    """What one combination scores; or, in one sentence, why it cannot be."""
    one = SETS[name]
    with tempfile.TemporaryDirectory() as out, patch.object(trainer, "clock", time.process_time):
        try:
            recipe = _recipe(one, base, METHODS.get(method, {"method": "LoRA"}), seconds, data, out)
            if method == UNTOUCHED:
                return dict(_untouched(recipe, one))
            outcome = run(recipe, Console(stderr=True))
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


def _recipe(
    one: Task, base: str, how: Mapping[str, Any], seconds: float, data: Path, out: str
) -> Recipe:
    task, folder = one.of(base), str(data / one.folder)
    training = {"minutes": seconds / 60, "batch_size": BATCH, **how.get("training", {})}
    return Recipe.model_validate(
        {
            **how,
            "base": base,
            "seed": SEED,
            "out": out,
            "task": {"truncate": "stride" not in task, **task},
            "data": {
                "train": {"source": folder, "split": "train"},
                "test": {"source": folder, "split": one.test, "limit": one.test_rows},
            },
            "training": training,
        }
    )


def _untouched(recipe: Recipe, one: Task) -> Iterator[tuple[str, Any]]:
    """The bare base's score, and that of the commonest answer."""
    assert recipe.data.test is not None
    task, console = recipe.make_task(), Console(stderr=True)
    train, test = recipe.data.train.load(task), recipe.data.test.load(task)
    task.prepare(train)
    yield "metric", task.metric
    yield "rows", len(test)
    yield "commonest", _score(task, _commonest(one, train, test), test)
    if task.head() is None:
        model, tokenizer = load_base(recipe.base)
        task.bind(model, tokenizer)
        score = evaluate(model, task, test, batch_size=2 * BATCH, console=console)
        yield "score", score[task.metric]
    elif one.asked is not None and BASES[recipe.base] != "encoder":
        model, tokenizer = load_base(recipe.base)
        writing = Generate(template=one.asked, generation={"max_new_tokens": 24})
        writing.bind(model, tokenizer)
        said = predict(model, writing, test, batch_size=BATCH, console=console)
        yield "score", _score(task, [(text.strip().splitlines() or [""])[0] for text in said], test)
        yield "how", "writes its answer, for it has no head"
    else:
        yield "refused", "a head that was not trained says nothing"


def _commonest(one: Task, train: Dataset, test: Dataset) -> list[Any]:
    """The answer that most training examples have, once for each of the test's."""
    if one.answer is _outside:
        return [_outside(row) for row in test]
    [(answer, _)] = Counter(one.answer(row) for row in train).most_common(1)
    return [answer] * len(test)


def _score(task: Asked, said: Sequence[Any], test: Dataset) -> float:
    return task.score(said, test)[task.metric]


def main() -> None:
    """Measure what is missing, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.tasks", description=__doc__)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"some of: {', '.join(SETS)} (all)")
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, a cell (60)")
    parser.add_argument("--cells", type=int, default=10**6, help="measure at most so many")
    shared = Path(__file__).parents[2] / "shared" / "data"
    data = Path(os.environ.get("INLAY_DATA", shared))
    parser.add_argument("--data", type=Path, default=data, help="the folder of the data sets")
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the results")
    asked = parser.parse_args()
    if unknown := set(asked.sets) - set(SETS):
        parser.error(f"no such data set: {', '.join(sorted(unknown))}")
    quiet()
    for name in asked.sets or SETS:
        asked.cells -= _measure(name, asked.seconds, asked.data, asked.out, asked.cells)
    Console().print(Markdown(tasks_page(asked.out)))


def _measure(name: str, seconds: float, data: Path, out: Path, most: int) -> int:
    """Measure what one data set lacks, at most so many cells; returns how many."""
    path, one = out / f"{name}.json", SETS[name]
    made = {
        "set": name,
        "seconds": seconds,
        "seed": SEED,
        "batch_size": BATCH,
        "test_rows": one.test_rows,
        "tasks": {base: one.of(base) for base in BASES},
        "methods": METHODS,
        "machine": machine(("torch", "transformers")),
    }
    stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if {key: stored.get(key) for key in made} != made:  # made otherwise: nothing of it counts
        stored = {**made, "cells": {}}
    asked = [f"{base}/{method}" for base in BASES for method in (UNTOUCHED, *METHODS)]
    missing = [key for key in asked if key not in stored["cells"]][:most]
    for key in missing:
        Console().print(f"{name}/{key}")
        base, _, method = key.partition("/")
        stored["cells"][key] = cell(name, base, method, seconds, data)
        out.mkdir(exist_ok=True)
        path.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(missing)


if __name__ == "__main__":
    main()
