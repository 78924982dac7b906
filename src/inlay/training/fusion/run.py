"""train_fusion: train adapters where they are not there yet, then the attention over them.

    1. every adapter is trained on its own task, or comes as a file
    2. base and adapters are frozen; attention over the adapters is trained on the target's task

Pfeiffer et al., EACL 2021. The second stage is an ordinary recipe, which starts from a file of the
untrained fusion: it can be run again by `inlay train`, and resumes like any other.
"""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from inlay.architectures.resolve import resolve
from inlay.core.method import Method, Spec, sum_of
from inlay.core.parse import parse
from inlay.errors import InlayError, RecipeError, together
from inlay.files.atomic import write_whole
from inlay.fusing import fuse, read_adapter
from inlay.handle import attach, attached
from inlay.methods.fusion import Fusion
from inlay.training.fusion.pruning import measure, prune
from inlay.training.fusion.recipe import FuseRecipe
from inlay.training.fusion.results import AdapterResult, AdapterScores, FuseResult
from inlay.training.fusion.stages import Stage
from inlay.training.loop import rng
from inlay.training.loop.launch import processes
from inlay.training.loop.progress import print_line
from inlay.training.recipes.reading import open_base
from inlay.training.recipes.recipe import output_folder
from inlay.training.recipes.run import LoadedBase, check_data, run


def train_fusion(
    recipe: FuseRecipe, console: Console | None = None, *, resume: bool = True
) -> FuseResult:
    """Run a recipe of a fusion.

    Writes into the folder `out` what `run` writes for the second stage, with the adapters and what
    the fusion listens to in `result.json`; the recipe as `fuse.yaml`; in `adapters` a folder for
    each adapter that is trained here; and with `prune` a second file, `<name>-keep<k>`. An adapter
    that an earlier start has trained is not trained again; one that was being trained resumes.

    Whatever can be checked is checked before anything is trained: files, methods, rows.

    Args:
        recipe: the run.
        console: where progress is shown; None for the error stream.
        resume: go on from what is in the folder; False trains all adapters of the recipe anew.

    Raises what its parts raise: RecipeError, FileError, FetchError, DataError, TaskError,
    SpecError, SiteError, TrainingError.
    """
    main = processes().is_main_process
    console = (console or Console(stderr=True)) if main else Console(quiet=True)
    out = output_folder(recipe.out)
    stages = {name: Stage(recipe.stage_one(name)) for name in recipe.trained()}
    scores = {name: stage.scores() if resume else None for name, stage in stages.items()}
    opened = open_base(recipe.base, recipe.dtype, console, recipe.quantize)
    spec = _fusion(recipe, opened)
    _check_rows(recipe, spec, [s for n, s in stages.items() if scores[n] is None], opened, console)
    if main:
        write_whole(out / "fuse.yaml", recipe.dump().encode())
    results: list[AdapterResult] = []
    for number, name in enumerate(recipe.adapters, 1):
        path, stage, known = recipe.adapter_path(name), stages.get(name), scores.get(name)
        title = f"adapter {number} of {len(recipe.adapters)}, {name}"
        if stage is None or known is not None:
            print_line(console, f"{title}: trained before, in {path}")
            results.append(AdapterResult(name, path, False, known))
        else:
            print_line(console, title)
            trained = _train(stage, opened, console, resume)
            results.append(AdapterResult(name, path, True, trained))
    print_line(console, f"the fusion of {', '.join(recipe.adapters)}")
    if main:
        _write_start(recipe, opened)
    processes().wait_for_everyone()  # the others find the file there
    outcome = run(recipe.stage_two(spec), console, resume=resume, opened=opened)
    handle = attached(opened[0])[recipe.name]
    measured, weights = measure(recipe, outcome, handle, opened[1], console)
    pruned = None
    if recipe.prune is not None:
        pruned = prune(recipe, outcome, handle, weights, opened[1], console)
    result = FuseResult(recipe, tuple(results), outcome, measured, weights, pruned)
    if main:
        write_whole(out / "result.json", json.dumps(result.to_json(), indent=2).encode())
    processes().wait_for_everyone()  # whoever is told of the file finds it there
    return result


def _fusion(recipe: FuseRecipe, opened: LoadedBase) -> Spec:
    """What the second stage trains.

    Raises RecipeError, which names every adapter with a fault; SpecError, SiteError or PortError
    where the adapters fit one another or the base not.
    """
    model = opened[0]
    chart = resolve(model)
    adapters: list[Method] = []
    faults: list[str] = []
    for name, part in recipe.adapters.items():
        try:
            if part.file is None:
                adapters.extend(recipe.adapter_spec(name).exported().methods)
            else:
                adapters.append(read_adapter(part.file, chart).method)
        except InlayError as error:
            faults.append(f"adapters.{name}: {error}")
    if faults:
        raise RecipeError(together(faults, "the recipe"))
    fusion: Spec = Fusion(adapters=tuple(adapters), names=tuple(recipe.adapters), **recipe.fusion)
    spec = fusion if recipe.plus is None else fusion + parse(recipe.plus)
    fitting = [method for method in spec.methods if not method.needs_preparation]
    attach(model, sum_of(fitting), name="fits").detach()
    return spec


def _check_rows(
    recipe: FuseRecipe, spec: Spec, stages: list[Stage], opened: LoadedBase, console: Console
) -> None:
    """Raise RecipeError, which names all of them, where rows cannot be used."""
    faults = []
    recipes = {f"adapters.{stage.recipe.name}": stage.recipe for stage in stages}
    for place, part in {**recipes, "the target": recipe.stage_two(spec)}.items():
        try:
            check_data(part, opened, console)
        except InlayError as error:
            faults.append(f"{place}: {error}")
    if faults:
        raise RecipeError(together(faults, "the recipe"))


def _train(stage: Stage, opened: LoadedBase, console: Console, resume: bool) -> AdapterScores:
    """Train an adapter, and leave the base without it; returns its scores."""
    outcome = run(stage.recipe, console, resume=resume, opened=opened)
    for handle in attached(opened[0]).values():
        handle.detach()
    scores = AdapterScores(outcome.metric, outcome.dev, outcome.test)
    if processes().is_main_process:
        stage.finish(scores)
    return scores


def _write_start(recipe: FuseRecipe, opened: LoadedBase) -> Path:
    """Write the untrained fusion of all adapters alone; equal files give an equal one."""
    model, tokenizer = opened
    files = {name: recipe.adapter_path(name) for name in recipe.adapters}
    with rng.preserved():
        rng.seed(recipe.seed)
        handle = fuse(model, files, name="start", **recipe.fusion)
    try:
        return handle.save(recipe.start_path, tokenizer=tokenizer)
    finally:
        handle.detach()
