"""open: an inlay's file, the base it was trained on and its task, ready to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from inlay.core.own_files import how_to_get
from inlay.dropping import in_place_of
from inlay.errors import FetchError, FileError, RecipeError
from inlay.files.format import InlayFile, read
from inlay.files.usage import Usage
from inlay.handle import load
from inlay.hub import load_base
from inlay.hub.models import announce
from inlay.hub.packages import Report
from inlay.methods.head import Head
from inlay.predicting.predictor import Predictor
from inlay.tasks import TASKS, Task, from_spec
from inlay.training.recipes.recipe import Recipe

RECIPE = "recipe.yaml"
"""The recipe that training writes next to an inlay's file."""

DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}


def open_inlay(
    path: str | Path,
    *,
    base: str | Path | None = None,
    task: Mapping[str, Any] | None = None,
    dtype: torch.dtype | Literal["stored"] | None = None,
    device: torch.device | str = "auto",
    quantize: str | None = None,
    drop_layers: int = 0,
    report: Report = announce,
) -> Predictor:
    """Open a trained inlay with everything it needs: its base, its tokenizer and its task.

        reviews = inlay.open("run/default.safetensors")
        reviews.predict("A fine film.")     # {"prediction": "positive", "probability": 0.97, …}

    Args:
        path: the file that training wrote.
        base: another place of its base than the one it was trained from.
        task: what it does, for a file that does not say: its `task` and its fields.
        dtype: of the base's weights; by default as in training.
        quantize: how the base's matrices are kept, as for `load_base`; by default as in training.
        device: where the base is put; "auto" takes an accelerator if there is one.
        drop_layers: how many of the lowest layers it leaves out, as `inlay.drop_layers` does.
        report: called with one line of text where something takes time.

    Raises FileError for a file that is damaged or says neither base nor task, BaseError for
    another base, FetchError where the base cannot be found, and SpecError where layers cannot be
    left out.
    """
    path = Path(path)
    usage = read_usage(path, base=base, task=task)
    place = usage.base_path(path) if base is None else str(base)
    if dtype is None and usage.dtype is not None:
        dtype = DTYPES[usage.dtype]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    target = (accelerator or "cpu") if device == "auto" else device
    try:
        model, tokenizer = load_base(
            place,
            dtype=dtype,
            device=target,
            quantize=quantize or usage.quantize,
            report=report,
        )
    except FetchError as error:
        if base is not None:
            raise
        raise FetchError(
            f"{path} was trained on {place!r}, which is not to be found from here; say where that "
            f"base is (--base, or base=… in Python): {error}"
        ) from None
    if usage.chat_template is not None:
        tokenizer.chat_template = usage.chat_template
    handle = in_place_of(load(model, path, tokenizer=tokenizer), drop_layers)
    model.eval()  # for good: threads that predict side by side have no mode to put back
    bound = task_of(usage, handle.spec.methods)
    bound.bind(model, tokenizer)
    return Predictor(model, tokenizer, handle, bound, usage)


def task_of(usage: Usage, methods: Any = ()) -> Task:
    """The task of a file, not bound yet, with the labels of its trained head where it has none.

    Raises FileError for a task of one's own that is not there: no file makes its program run.
    """
    name = usage.task.get("task")
    if usage.origin and name not in TASKS:
        raise FileError(
            f"the task {name!r:.80} is not part of inlay but {how_to_get(usage.origin)}"
        )
    task = from_spec(usage.task)
    for method in methods:
        if isinstance(method, Head):
            task.set_labels(method.labels)
    return task


def read_usage(
    path: str | Path,
    *,
    base: str | Path | None = None,
    task: Mapping[str, Any] | None = None,
) -> Usage:
    """How a file is used: what its header says, or else the recipe next to it.

    Args:
        path: the file.
        base, task: win over both.

    Raises FileError where neither says it.
    """
    path = Path(path)
    file = read(path)
    usage = file.usage or _usage_of_recipe(file)
    if usage is None:
        if base is None or task is None:
            raise FileError(
                f"{path} says neither its base nor its task, as files do that `inlay train` "
                f"writes, and no {RECIPE} stands next to it; give both"
            )
        usage = Usage(base=str(base), task=dict(task))
    if base is not None:
        usage = replace(usage, base=str(base), beside=False)
    return usage if task is None else replace(usage, task=dict(task))


def _usage_of_recipe(file: InlayFile) -> Usage | None:
    """The usage of a file of an earlier version, from the recipe that lies next to it."""
    recipe_path = file.path.parent / RECIPE
    if not recipe_path.is_file():
        return None
    try:
        recipe = Recipe.load(recipe_path, run_files=False)
    except RecipeError as error:
        raise FileError(f"{file.path} is of an earlier version, and its recipe: {error}") from None
    source = recipe.data.parts()["train"]
    fields = {name: value for name, value in recipe.task.items() if name != "kind"}
    trained = recipe.training.base_lr is not None
    return Usage(
        base="base" if trained else recipe.base,
        beside=trained,
        dtype=recipe.dtype,
        quantize=recipe.quantize,
        task={"task": recipe.make_task().name, **fields},
        columns=dict(source.columns or {}),
        templates=source.templates,
        separator=source.separator,
    )
