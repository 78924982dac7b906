"""Outcome: what a recipe led to, and the files that document it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from inlay.core.method import Spec
from inlay.core.own_files import origin_of
from inlay.data.dataset import Dataset, describe_skipped
from inlay.files.atomic import write_whole
from inlay.files.usage import Usage
from inlay.handle import Inlay
from inlay.tasks import Task
from inlay.tasks.calibration import Calibration
from inlay.training.loop.full_model import BASE, save_base
from inlay.training.loop.log import Log
from inlay.training.loop.progress import print_line
from inlay.training.loop.results import Result
from inlay.training.loop.trainer import LOG
from inlay.training.recipes.ensemble import EnsembleResult
from inlay.training.recipes.recipe import Recipe


@dataclass(frozen=True)
class Outcome:
    """What a recipe led to. Of an ensemble all but `ensemble` is about its first member.

    recipe: as it was run.
    path: the inlay's file; None where nothing was attached.
    base: the folder of the base, where it was trained too; else None.
    parameters: how many were trained.
    saved_parameters: how many numbers are saved, in the inlay's file and, where it was trained,
        the base. What only helps in training, such as the MLP of a prefix, is dropped.
    base_parameters: how many the base has.
    metric: the task's primary metric.
    untouched: scores on `dev` before training; None without such data.
    dev: scores on `dev` after training; None without such data.
    test: scores on `test` after training; None without such data.
    training: how the training went.
    calibration: the temperature of the probabilities, fitted on `dev`, and the expected
        calibration error before and after; None without such data or probabilities.
    ensemble: the scores of all members and of their vote, on `test` where there is one, else on
        `dev`; None for a single inlay.
    """

    recipe: Recipe
    path: Path | None
    base: Path | None
    parameters: int
    saved_parameters: int
    base_parameters: int
    metric: str
    untouched: dict[str, float] | None
    dev: dict[str, float] | None
    test: dict[str, float] | None
    training: Result
    calibration: Calibration | None = None
    ensemble: EnsembleResult | None = None

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "path": None if self.path is None else str(self.path),
            "base": None if self.base is None else str(self.base),
            "parameters": self.parameters,
            "saved_parameters": self.saved_parameters,
            "base_parameters": self.base_parameters,
            "metric": self.metric,
            "untouched": self.untouched,
            "dev": self.dev,
            "test": self.test,
            "training": asdict(self.training),
            "calibration": None if self.calibration is None else asdict(self.calibration),
            "ensemble": None if self.ensemble is None else asdict(self.ensemble),
        }


def write_outcome(
    out: Path,
    outcome: Outcome,
    members: Sequence[Inlay],
    usages: Sequence[Usage],
    tokenizer: PreTrainedTokenizerBase,
    data: Mapping[str, Dataset],
) -> None:
    """Write the inlays, the base where it was trained, and the results into the folder of a run.

    usages: of the members, for their files.
    """
    if outcome.base is not None:
        save_base(members[0].model, tokenizer, outcome.base)
    for handle, usage in zip(members, usages, strict=True) if outcome.path is not None else []:
        handle.save(out / f"{handle.name}.safetensors", tokenizer=tokenizer, usage=usage)
    write_whole(out / "recipe.yaml", outcome.recipe.dump().encode())
    write_whole(out / "result.json", json.dumps(outcome.to_json(), indent=2).encode())
    _log_skipped(out / LOG, data)


def describe_size(spec: Spec, trained: int, saved: int, base: int) -> str:
    """A line that says how many parameters are trained, and how many numbers the file will hold."""
    what = repr(spec) if spec.methods else "the base"
    line = f"{what}: {trained:,} parameters are trained ({trained / base:.2%} of the base)"
    return line if saved == trained else f"{line}, {saved:,} are saved ({saved / base:.2%})"


def describe_usage(
    recipe: Recipe,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    calibration: Calibration | None,
) -> Usage:
    """What the file of a recipe's inlay says of its use."""
    source, description = recipe.data.parts()["train"], task.describe()
    trains_base = recipe.training.base_lr is not None
    chats = bool(description.get("chat")) and isinstance(tokenizer.chat_template, str)
    return Usage(
        base=BASE if trains_base else recipe.base,
        beside=trains_base,
        dtype=recipe.dtype,
        quantize=recipe.quantize,
        task=description,
        columns=dict(source.columns or {}),
        templates=source.templates,
        separator=source.separator,
        chat_template=tokenizer.chat_template if chats else None,
        calibration=None if calibration is None else asdict(calibration),
        origin=origin_of(type(task)),
    )


def report_outcome(outcome: Outcome, data: Mapping[str, Dataset], console: Console) -> None:
    """Print whether the base was saved too, the calibration, and which rows were left out."""
    if outcome.calibration is not None:
        entry = outcome.calibration
        print_line(
            console,
            f"calibrated on dev: temperature {entry.temperature:.3g}, expected calibration error "
            f"{entry.error_before:.3f} before and {entry.error_after:.3f} after",
        )
    if outcome.base is not None:
        fits = "" if outcome.path is None else f"; {outcome.path} fits only that base"
        print_line(console, f"the base was trained too and is saved in {outcome.base}{fits}")
    for part, dataset in data.items():
        for line in describe_skipped(dataset.skipped, part):
            print_line(console, line)


def _log_skipped(path: Path, data: Mapping[str, Dataset]) -> None:
    """Append the rows that were left out to the log; a resumed run cuts them off and adds anew."""
    log = Log(path, path.stat().st_size)
    for part, dataset in data.items():
        for row in dataset.skipped:
            log.write(skipped=part, where=row.where, reason=row.reason)
    log.close()
