"""What a trained fusion listens to on the rows of its task, and the file of a pruned one."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from inlay.data.dataset import Dataset
from inlay.files.format import read
from inlay.fusing import AdapterWeights, prune_fusion, weights_of
from inlay.handle import Inlay, rows
from inlay.inspect.readings import readable_parts, recording
from inlay.methods.fusion import Fusion
from inlay.methods.head import Head
from inlay.tasks import Task, from_spec
from inlay.training.fusion.recipe import FuseRecipe
from inlay.training.fusion.results import PrunedResult
from inlay.training.loop.batches import batches_by_length
from inlay.training.loop.evaluation import evaluate
from inlay.training.loop.launch import processes
from inlay.training.loop.moving import on_device
from inlay.training.loop.progress import ProgressDisplay
from inlay.training.recipes.calibrate import calibrate
from inlay.training.recipes.outcome import Outcome

MOST_ROWS = 500
"""Rows that the weights are measured on: a mean over more of them hardly changes."""


def measure(
    recipe: FuseRecipe,
    outcome: Outcome,
    handle: Inlay,
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
) -> tuple[str, AdapterWeights]:
    """How much a trained fusion listens to each adapter, and on which rows that was measured."""
    task = _task(outcome, handle, tokenizer)
    part = "train" if recipe.data.dev is None else "dev"
    data = _rows(recipe, task, part)
    encoded = task.encode_all(data.examples[:MOST_ROWS])
    sizes = batches_by_length(
        [len(row) for row in encoded], rows=recipe.training.rows, tokens=recipe.training.tokens
    )
    with (
        ProgressDisplay(console) as display,
        display.counting(f"reading the fusion out on {part}", len(encoded)) as advance,
        recording(handle) as recorded,
    ):
        for numbers in sizes:
            collated = task.collate([encoded[number] for number in numbers])
            with on_device(handle.model, collated) as batch:
                recorded.begin(batch.inputs)
                task.outputs(handle.model, batch)
            advance(len(numbers))
    return part, weights_of(handle, recorded.readings())


def prune(
    recipe: FuseRecipe,
    outcome: Outcome,
    handle: Inlay,
    weights: AdapterWeights,
    tokenizer: PreTrainedTokenizerBase,
    console: Console,
) -> PrunedResult:
    """Write the fusion with its most used adapters alone, and score it."""
    assert recipe.prune is not None and outcome.path is not None
    copy = prune_fusion(handle, weights, recipe.prune, per=recipe.prune_per)
    task = _task(outcome, copy, tokenizer)
    training, calibration = recipe.training, None
    scores: dict[str, dict[str, float]] = {}
    with rows(copy.model, [copy.name]):
        for part in ("dev", "test"):
            if part not in recipe.data.parts():
                continue
            data = _rows(recipe, task, part)
            scores[part] = evaluate(
                copy.model,
                task,
                data,
                batch_size=training.rows,
                tokens=training.tokens,
                console=console,
                what=f"{part}, pruned",
            )
            if part == "dev":
                calibration = calibrate(
                    copy.model, task, data, console,
                    batch_size=training.rows, tokens=training.tokens,
                )  # fmt: skip
    usage = read(outcome.path).usage
    assert usage is not None
    fitted = None if calibration is None else asdict(calibration)
    path = Path(recipe.out) / f"{copy.name}.safetensors"
    if processes().is_main_process:
        copy.save(path, tokenizer=tokenizer, usage=replace(usage, calibration=fitted))
    copy.detach()
    return PrunedResult(path, _adapters_by_layer(copy), scores.get("dev"), scores.get("test"))


def _task(outcome: Outcome, handle: Inlay, tokenizer: PreTrainedTokenizerBase) -> Task:
    """The target's task as the fusion's file describes it, bound to the base."""
    assert outcome.path is not None
    usage = read(outcome.path).usage
    assert usage is not None
    task = from_spec(usage.task)
    for method in handle.spec.methods:
        if isinstance(method, Head):
            task.set_labels(method.labels)
    task.bind(handle.model, tokenizer)
    return task


def _rows(recipe: FuseRecipe, task: Task, part: str) -> Dataset:
    """The rows of a part of the target's data, without those that are left out."""
    source = recipe.data.parts()[part]
    data = source.load(task)
    return task.usable(data) if source.skip_bad else data


def _adapters_by_layer(handle: Inlay) -> dict[str, list[str]]:
    """The adapters that a fusion has in each layer."""
    layers: dict[str, list[str]] = {}
    for placed, reading in readable_parts(handle):
        if isinstance(placed.method, Fusion):
            layers.setdefault(str(placed.site.layer), list(reading.names))
    return layers
