"""Every task on every kind of base, with every kind of method, on the same budget.

`python -m bench.tasks` measures the cells that bench/cells/ does not have yet, stores each as soon
as it is measured, and prints the table. Give data sets to measure only these; several processes can
share the work, a data set each. For comparison the table has the untouched base, if it can answer
at all, and the score of always giving the most frequent answer.

The budget of a cell is the processor's time of its training, so that other work on the machine does
not shorten it. Loading, encoding and testing do not count.
"""

from __future__ import annotations

import argparse
import json
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
from bench.data import data_folder
from bench.docs.tasks import page
from inlay.data.dataset import Dataset, Example
from inlay.errors import DataError, InlayError
from inlay.hub import load_base
from inlay.tasks import Generate, Task
from inlay.training import evaluate, predict
from inlay.training.loop import trainer
from inlay.training.recipes.recipe import Recipe
from inlay.training.recipes.run import run

OUT = Path(__file__).with_name("cells")
BASES = {"smollm2": "decoder", "minilm": "encoder", "flan-t5-small": "encoder–decoder"}
METHODS: dict[str, dict[str, Any]] = {
    "LoRA": {"method": "LoRA"},
    "prefix": {"method": "Prefix"},
    "Houlsby": {"method": "Houlsby"},
    "all weights": {"training": {"base_lr": 3e-5}, "dtype": "float32"},
}
UNTOUCHED = "untouched"
NO_HEAD = "the base writes its answer, because it has no head"
UNTRAINED_HEAD = "an untrained head predicts nothing"
SEED = 0
BATCH = 8
QUESTION = "{context}\nQuestion: {question}\nAnswer:"


@dataclass(frozen=True)
class DataSet:
    """A data set as a task.

    folder: of the data. head: the task for bases that cannot write, and for data that words do not
    fit. words: the task for bases that write; None if they use `head` too. test: the split;
    test_rows: how many of its rows. answer: of an example; the most frequent one is compared with.
    question: the template for an untouched base that writes, if only a head can be trained.
    """

    folder: str
    head: Mapping[str, Any]
    words: Mapping[str, Any] | None = None
    test: str = "test"
    test_rows: int = 300
    answer: Callable[[Example], Any] = lambda row: row.fields["label"]
    question: str | None = None

    def of(self, base: str) -> Mapping[str, Any]:
        """The fields of the task on a base."""
        return self.head if self.words is None or BASES[base] == "encoder" else self.words


def _classify(template: str, verbalizer: Mapping[str, str]) -> dict[str, Any]:
    return {"kind": "classify", "template": template, "by": {"words": dict(verbalizer)}}


def _outside(row: Example) -> list[str]:
    return ["O"] * len(row.fields["tokens"])


SETS = {
    "sst2": DataSet(
        "sst2",
        {"kind": "classify"},
        _classify("{text} It was", {"negative": " bad", "positive": " great"}),
    ),
    "trec": DataSet(
        "trec",
        {"kind": "classify"},
        _classify(
            "{text} This question asks for a",
            {"ABBR": " short", "DESC": " description", "ENTY": " thing", "HUM": " person",
             "LOC": " place", "NUM": " number"},
        ),
    ),
    "rte": DataSet(
        "glue_rte",
        {"kind": "classify", "template": "{premise} {hypothesis}"},
        _classify(
            "{premise} Question: {hypothesis} True or false? Answer:",
            {"entailment": " true", "not_entailment": " false"},
        ),
        test="dev",
    ),
    "wnut17": DataSet("wnut17", {"kind": "tag"}, answer=_outside),
    "roles": DataSet("up_english_ewt", {"kind": "tag", "scheme": "plain"}, answer=_outside),
    "xquad": DataSet(
        "xquad", {"kind": "extract", "stride": 64, "max_length": 256}, test_rows=60,
        answer=lambda row: row.fields["answers"][0]["text"], question=QUESTION,
    ),
    "copa": DataSet(
        "fewglue_32dev/COPA",
        {"kind": "choose", "by": "head", "template": "{premise} What was the {question}?",
         "choices": ["choice1", "choice2"]},
        {"kind": "choose", "by": "sum", "template": "{premise} What was the {question}?",
         "choices": ["choice1", "choice2"]},
        test="val",
    ),
    "e2e": DataSet(
        "e2e", {"kind": "generate", "metric": "bleu"}, test_rows=48,
        answer=lambda row: row.fields["target"],
    ),
}  # fmt: skip


def cell(name: str, base: str, method: str, seconds: float, data: Path) -> dict[str, Any]:
    """The score of one combination; or, in one sentence, why there is none."""
    data_set = SETS[name]
    with tempfile.TemporaryDirectory() as out, patch.object(trainer, "clock", time.process_time):
        try:
            fields = METHODS.get(method, {"method": "LoRA"})
            recipe = recipe_of(data_set, base, fields, seconds, data, out)
            if method == UNTOUCHED:
                return dict(_untouched(recipe, data_set))
            outcome = run(recipe, Console(stderr=True))
        except InlayError as error:
            return {"refused": str(error)}
    assert outcome.test is not None
    return {
        "metric": outcome.metric,
        "score": outcome.test[outcome.metric],
        "steps": outcome.training.steps,
        "seconds": outcome.training.seconds,
        "parameters": outcome.parameters,
    }


def recipe_of(
    data_set: DataSet, base: str, fields: Mapping[str, Any], seconds: float, data: Path, out: str
) -> Recipe:
    """The recipe of a cell. fields: those of the method."""
    task, folder = data_set.of(base), str(data / data_set.folder)
    training = {"minutes": seconds / 60, "batch_size": BATCH, **fields.get("training", {})}
    return Recipe.model_validate(
        {
            **fields,
            "base": base,
            "seed": SEED,
            "out": out,
            "task": {"truncate": "stride" not in task, **task},
            "data": {
                "train": {"source": folder, "split": "train"},
                "test": {"source": folder, "split": data_set.test, "limit": data_set.test_rows},
            },
            "training": training,
        }
    )


def _untouched(recipe: Recipe, data_set: DataSet) -> Iterator[tuple[str, Any]]:
    """The cell of the untouched base, and the score of the most frequent answer."""
    assert recipe.data.test is not None
    task, console = recipe.make_task(), Console(stderr=True)
    train, test = recipe.data.train.load(task), recipe.data.test.load(task)
    task.prepare(train)
    yield "metric", task.metric
    yield "rows", len(test)
    yield "most_frequent", _score(task, most_frequent(data_set, train, test), test)
    if task.head() is None:
        model, tokenizer = load_base(recipe.base)
        task.bind(model, tokenizer)
        score = evaluate(model, task, test, batch_size=2 * BATCH, console=console)
        yield "score", score[task.metric]
    elif data_set.question is not None and BASES[recipe.base] != "encoder":
        model, tokenizer = load_base(recipe.base)
        generate = Generate(template=data_set.question, generation={"max_new_tokens": 24})
        generate.bind(model, tokenizer)
        texts = predict(model, generate, test, batch_size=BATCH, console=console)
        first_lines = [(text.strip().splitlines() or [""])[0] for text in texts]
        yield "score", _score(task, first_lines, test)
        yield "note", NO_HEAD
    else:
        yield "refused", UNTRAINED_HEAD


def most_frequent(data_set: DataSet, train: Dataset, test: Dataset) -> list[Any]:
    """The most frequent answer of the training examples, once for each test example."""
    if data_set.answer is _outside:
        return [_outside(row) for row in test]
    [(answer, _)] = Counter(data_set.answer(row) for row in train).most_common(1)
    return [answer] * len(test)


def _score(task: Task, predictions: Sequence[Any], test: Dataset) -> float:
    return task.score(predictions, test)[task.metric]


def main() -> None:
    """Measure the missing cells, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.tasks", description=__doc__)
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"some of: {', '.join(SETS)} (all)")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of training for each cell (60)"
    )
    parser.add_argument("--cells", type=int, default=10**6, help="the most cells to measure")
    parser.add_argument(
        "--data",
        type=Path,
        help="the folder of the data sets (the variable INLAY_DATA, or shared/data next to the "
        "checkout)",
    )
    parser.add_argument("--out", type=Path, default=OUT, help="the folder of the results")
    options = parser.parse_args()
    if unknown := set(options.sets) - set(SETS):
        parser.error(f"no such data set: {', '.join(sorted(unknown))}")
    try:
        data = data_folder(options.data)
    except DataError as error:
        parser.error(str(error))
    if data is None:
        parser.error("there is no data folder; name it with --data FOLDER or INLAY_DATA")
    quiet()
    left = options.cells
    for name in options.sets or SETS:
        left -= measure_set(name, options.seconds, data, options.out, left)
    Console().print(Markdown(page(options.out)))


def measure_set(name: str, seconds: float, data: Path, out: Path, limit: int) -> int:
    """Measure the missing cells of one data set, at most `limit`; returns how many it measured."""
    path, data_set = out / f"{name}.json", SETS[name]
    setting = {
        "set": name,
        "seconds": seconds,
        "seed": SEED,
        "batch_size": BATCH,
        "test_rows": data_set.test_rows,
        "tasks": {base: data_set.of(base) for base in BASES},
        "methods": METHODS,
        "machine": machine(("torch", "transformers")),
    }
    stored = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if {key: stored.get(key) for key in setting} != setting:  # measured in another way
        stored = {**setting, "cells": {}}
    keys = [f"{base}/{method}" for base in BASES for method in (UNTOUCHED, *METHODS)]
    missing = [key for key in keys if key not in stored["cells"]][:limit]
    for key in missing:
        Console().print(f"{name}/{key}")
        base, _, method = key.partition("/")
        stored["cells"][key] = cell(name, base, method, seconds, data)
        out.mkdir(exist_ok=True)
        path.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return len(missing)


if __name__ == "__main__":
    main()
