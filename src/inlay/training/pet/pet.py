"""Pattern-exploiting training: a model for each pattern, and a classifier distilled from them all.

    1. every pattern's model is trained on the few labelled rows, as a cloze task
    2. their ensemble scores unlabelled texts:      s = Σ_m w_m s_m / Σ_m w_m
    3. one classifier is trained on these scores:   T² · KL(softmax(s / T) ‖ softmax(z / T))

Schick & Schütze, EACL 2021. With `generations` above 1 it is iPET: steps 1 and 2 are repeated, each
model trained on a growing set of texts that some of the others labelled.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from inlay.data.dataset import Dataset, Example
from inlay.data.loading import load
from inlay.files.atomic import write_whole
from inlay.handle import Inlay, rows
from inlay.tasks import Classify, Distillation, auxiliary
from inlay.training.fit import fit
from inlay.training.loop.evaluation import evaluate
from inlay.training.loop.full_model import BASE, require_full_precision, save_base
from inlay.training.loop.launch import processes
from inlay.training.loop.progress import print_line
from inlay.training.pet.distillation import weighted_mean, with_scores
from inlay.training.pet.pattern_models import PatternModels
from inlay.training.pet.patterns import Patterns
from inlay.training.pet.recipe import PetRecipe
from inlay.training.pet.results import PetResult
from inlay.training.preparation import prepare
from inlay.training.recipes.ensemble import attach_member
from inlay.training.recipes.reading import open_base, read_data, usable
from inlay.training.recipes.recipe import Recipe, Source, output_folder
from inlay.training.recipes.run import spec_with_head

CLASSIFIER = "classifier"


def pet(recipe: PetRecipe, console: Console | None = None, *, resume: bool = True) -> PetResult:
    """Run a recipe of pattern-exploiting training.

    Writes into the folder `out`: `pattern-1.safetensors` and so on, of the last generation (further
    seeds are `pattern-1-2`), `classifier.safetensors`, `pet.yaml`, `result.json`, and the
    classifier's own `recipe.yaml`, by which `inlay eval` evaluates it. Every training has its log
    and checkpoint in a folder of its own, from which the same recipe resumes.

    Where the base is trained (`training.base_lr`), every model starts from the base as it was, and
    keeps no checkpoint; of the trained bases, the classifier's alone is kept, in the folder `base`.

    Args:
        recipe: the run.
        console: where progress is shown; None for the error stream.
        resume: resume from checkpoints, where there are any.

    Raises what its parts raise: RecipeError, FetchError, DataError, TaskError, SpecError,
    SiteError, TrainingError.
    """
    main = processes().is_main_process
    console = (console or Console(stderr=True)) if main else Console(quiet=True)
    out = output_folder(recipe.out)
    patterns = Patterns.load(recipe.patterns)
    recipe.check(len(patterns.patterns))
    tasks = patterns.tasks(**recipe.task_fields())
    if recipe.classifier == "words":
        student = patterns.tasks(**recipe.task_fields())[0]
    else:
        student = patterns.head_task(**recipe.task_fields())
    student.objective = Distillation(temperature=recipe.temperature)
    sources = recipe.data.parts()
    data = read_data(
        sources, partial(_load, patterns), lambda _: _drafts(recipe, tasks, console), console
    )
    model, tokenizer = open_base(recipe.base, recipe.dtype, console)
    trains_base = recipe.training.base_lr is not None
    if trains_base:
        require_full_precision(model)
    for task in tasks:
        task.bind(model, tokenizer)
        auxiliary.check_weight(recipe.auxiliary_weight, task.bound)
    data = usable(tasks, data, {part: s.skip_bad for part, s in sources.items()}, console)
    train, test, unlabelled = data.get("train"), data.get("test"), list(data["unlabelled"])
    models = PatternModels(
        recipe,
        model,
        tasks,
        train=train,
        unlabelled=unlabelled,
        test=test,
        console=console,
        resume=resume,
    )
    models.score_untouched()
    generations = [models.train_generation(number) for number in range(recipe.generations)]
    if main:
        models.save(tokenizer)
    for inlay in models.inlays:
        inlay.detach()
    print_line(console, "the classifier")
    student.bind(model, tokenizer)
    spec = spec_with_head(recipe.make_spec(), student)
    scored = with_scores(unlabelled, weighted_mean(models.scores, models.weights))
    folder = out / CLASSIFIER
    prepared = prepare(
        model,
        spec,
        student,
        scored,
        batch_size=recipe.distilling.rows or 16,
        seed=recipe.seed,
        folder=folder,
        resume=resume,
        console=console,
    )
    handle = attach_member(model, spec, CLASSIFIER, recipe.seed, 0, prepared)
    with rows(model, [handle.name]):
        options = models.fit_options(recipe.distilling, folder)
        training = fit(model, handle, student, scored, prepared=prepared, **options)
        scores = None if test is None else evaluate(model, student, test, **models.sizes)
    result = PetResult(
        recipe=recipe,
        path=out / f"{CLASSIFIER}.safetensors" if handle.spec.methods else None,
        base=out / BASE if trains_base else None,
        metric=student.metric,
        untouched=tuple(models.patterns),
        generations=tuple(generations),
        test=scores,
        training=training,
    )
    if main:
        _write(result, student, handle, tokenizer)
    processes().wait_for_everyone()  # whoever is told of the files finds them there
    return result


def _load(patterns: Patterns, part: str, source: Source) -> Dataset:
    """The rows of a part; those without labels have no fields but what the patterns read."""
    texts_alone = part == "unlabelled"
    need = patterns.columns if texts_alone else (*patterns.columns, "label")
    data = load(**source.model_dump(), need=need)
    if not texts_alone:
        return data
    bare = tuple(
        Example({name: example.fields[name] for name in patterns.columns}, example.where)
        for example in data
    )
    return Dataset(data.source, bare, data.skipped)


def _drafts(recipe: PetRecipe, tasks: Sequence[Classify], console: Console) -> list[Classify]:
    """Copies of the patterns' tasks, bound to the base."""
    model, tokenizer = open_base(recipe.base, recipe.dtype, console)
    drafts = [deepcopy(task) for task in tasks]
    for draft in drafts:
        draft.bind(model, tokenizer)
    return drafts


def _write(
    result: PetResult, student: Classify, handle: Inlay, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Write the classifier, its recipe and the results into the folder of the run."""
    recipe = result.recipe
    if result.base is not None:
        save_base(handle.model, tokenizer, result.base)
    if result.path is not None:
        handle.save(result.path, tokenizer=tokenizer)
    task, parts = student.describe(), recipe.data.parts()
    classifier_recipe = Recipe.model_validate(
        {
            **recipe.model_dump(include={"base", "dtype", "method", "out", "seed"}),
            "name": CLASSIFIER,
            "task": {"kind": task.pop("task"), **task},
            "data": {"train": parts["unlabelled"], "test": parts.get("test")},
            "training": recipe.distilling,
        }
    )
    out = Path(recipe.out)
    write_whole(out / "recipe.yaml", classifier_recipe.dump().encode())
    write_whole(out / "pet.yaml", recipe.dump().encode())
    write_whole(out / "result.json", json.dumps(result.to_json(), indent=2).encode())
