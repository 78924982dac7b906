"""run: from a recipe to a trained inlay, its scores, and the files that document them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inlay.budget import count_parameters
from inlay.core.method import Spec
from inlay.core.piece import VirtualTokens
from inlay.data.dataset import Dataset
from inlay.errors import RecipeError
from inlay.files.atomic import write_whole
from inlay.files.format import InlayFile
from inlay.handle import Inlay, rows
from inlay.runtime.install import Prepared
from inlay.tasks import Task
from inlay.tasks.calibration import Calibration
from inlay.training.fit import fit
from inlay.training.loop import checkpoint
from inlay.training.loop.evaluation import evaluate
from inlay.training.loop.full_model import BASE, require_full_precision
from inlay.training.loop.launch import processes
from inlay.training.loop.progress import print_line
from inlay.training.loop.results import Result
from inlay.training.planning import Plan, describe_plan, plan
from inlay.training.preparation import needs_preparation, prepare
from inlay.training.recipes.calibrate import calibrate
from inlay.training.recipes.ensemble import (
    EnsembleResult,
    attach_member,
    train_further_members,
    vote,
)
from inlay.training.recipes.folds import split_folds
from inlay.training.recipes.outcome import (
    Outcome,
    describe_size,
    describe_usage,
    report_outcome,
    write_outcome,
)
from inlay.training.recipes.reading import open_base, read_data, usable
from inlay.training.recipes.recipe import Recipe, output_folder
from inlay.training.recipes.start import adopt_labels, read_start, start_from

LoadedBase = tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A base that is loaded, and its tokenizer."""


def run(
    recipe: Recipe,
    console: Console | None = None,
    *,
    resume: bool = True,
    opened: LoadedBase | None = None,
) -> Outcome:
    """Do what a recipe says.

    Writes into the folder `out`: `<name>.safetensors`, `recipe.yaml`, `log.jsonl`, `result.json`
    and meanwhile a checkpoint, from which the same recipe resumes (`resume=False` starts anew).
    Of a recipe with `folds` it runs one, `fold`; `cross_validate` runs all. Where the task reads a
    trained head, one is added to the method, and virtual tokens that no template places are placed
    around the text. `untouched` is then the score of untrained pieces, else that of the bare base;
    with `start` it is that of the inlay that training goes on from. Probabilities are calibrated on
    `dev`, if there is one, and the inlay's file says so, and what base and task it is for.
    A trained base is written to the folder `base`, whole or not at all, and the inlay's file then
    fits only that base. Rows that `skip_bad` leaves out are named at the end, the first of them on
    the console and all in the log.

    Args:
        recipe: the run.
        console: where progress is shown; None for the error stream.
        resume: resume from the folder's checkpoint, where there is one.
        opened: the recipe's base, where it is loaded already. The trained inlay stays attached.

    Raises what its parts raise: FetchError, DataError, TaskError, SpecError, SiteError,
    TrainingError; and RecipeError for folds without a fold.
    """
    ready = open_run(recipe, console, resume=resume, opened=opened)
    context, handle, recipe = ready.context, ready.handle, ready.context.recipe
    out, console, main = context.out, context.console, processes().is_main_process
    untouched = context.score_untouched(handle)
    if main and not (resume and (out / checkpoint.NAME).exists()):
        write_whole(out / "recipe.yaml", recipe.dump().encode())
    if recipe.training.is_long:
        print_line(console, describe_plan(context.plan(handle), context.model.device))
    result = context.train(handle, 0)
    test = context.score("test")
    further = train_further_members(
        context.model, handle, recipe.ensemble, recipe.seed, context.train, context.prepared
    )
    members = [handle, *further]
    calibrations = [context.calibrate(member) for member in members]
    outcome = Outcome(
        recipe=recipe,
        path=out / f"{recipe.name}.safetensors" if handle.spec.methods else None,
        base=out / BASE if recipe.training.base_lr is not None else None,
        parameters=ready.parameters,
        saved_parameters=handle.saved_count() + ready.trained_base_parameters,
        base_parameters=ready.base_parameters,
        metric=context.task.metric,
        untouched=untouched,
        dev=None if result.best is None else result.best.scores,
        test=test,
        training=result,
        calibration=calibrations[0],
        ensemble=context.vote(members),
    )
    if main:
        usages = [
            describe_usage(recipe, context.task, context.tokenizer, entry) for entry in calibrations
        ]
        write_outcome(out, outcome, members, usages, context.tokenizer, context.data)
    processes().wait_for_everyone()  # whoever is told of the files finds them there
    report_outcome(outcome, context.data, console)
    return outcome


@dataclass(frozen=True)
class RunContext:
    """What all members of a run share.

    recipe: the run. out: its folder. model: the base. tokenizer: its own. task: bound to it.
    data: by part. console: where progress is shown. resume: from checkpoints. prepared: of the
    spec. start: the file that the pieces start from, or None.
    """

    recipe: Recipe
    out: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    task: Task
    data: Mapping[str, Dataset]
    console: Console
    resume: bool
    prepared: Prepared
    start: InlayFile | None

    def plan(self, handle: Inlay) -> Plan:
        """What training will take, measured on one step."""
        options = self.recipe.training.model_dump()
        return plan(
            self.model, handle, self.task, self.data["train"], seed=self.recipe.seed, **options
        )

    def score_untouched(self, handle: Inlay) -> dict[str, float] | None:
        """The scores on `dev` before training; see `run`."""
        has_head = any(method.has_head for method in handle.spec.methods)
        started = self.start is not None
        handle.enabled = has_head or handle.virtual_tokens > 0 or started
        scores = self.score("dev")
        handle.enabled = True
        if scores is not None:
            metric, what = self.task.metric, "start" if started else "untouched"
            print_line(self.console, f"{what}: {metric} {scores[metric]:.4f} on dev")
        return scores

    def score(self, part: str) -> dict[str, float] | None:
        """The scores on a part of the data, by metric; None where the recipe has no such part."""
        if part not in self.data:
            return None
        training = self.recipe.training
        return evaluate(
            self.model,
            self.task,
            self.data[part],
            batch_size=training.rows,
            tokens=training.tokens,
            console=self.console,
            what=part,
        )

    def train(self, handle: Inlay, number: int) -> Result:
        """Train member `number`; the first has the run's own folder."""
        if number:
            print_line(self.console, f"member {number + 1} of {self.recipe.ensemble}")
            if self.start is not None:
                start_from(handle, self.start, self.tokenizer)
        with rows(self.model, [handle.name]):
            return fit(
                self.model,
                handle,
                self.task,
                self.data["train"],
                dev=self.data.get("dev"),
                folder=self.out / f"member-{number + 1}" if number else self.out,
                resume=self.resume,
                console=self.console,
                prepared=self.prepared,
                start=None if self.start is None else self.start.header["digest"],
                seed=self.recipe.seed + number,
                **self.recipe.training.model_dump(),
            )

    def calibrate(self, handle: Inlay) -> Calibration | None:
        """The temperature of a member's probabilities, fitted on `dev` where there is one."""
        if "dev" not in self.data:
            return None
        training = self.recipe.training
        with rows(self.model, [handle.name]):
            return calibrate(
                self.model,
                self.task,
                self.data["dev"],
                self.console,
                batch_size=training.rows,
                tokens=training.tokens,
            )

    def vote(self, members: Sequence[Inlay]) -> EnsembleResult | None:
        """The scores of several members and their vote on `test`, or else on `dev`."""
        data = self.data.get("test", self.data.get("dev"))
        if len(members) == 1 or data is None:
            return None
        batch_size = self.recipe.training.rows or 8
        return vote(self.model, members, self.task, data, batch_size=batch_size)


@dataclass(frozen=True)
class ReadyRun:
    """A run before its first step.

    handle: the inlay that will be trained. parameters, base_parameters: as in `Outcome`.
    trained_base_parameters: those of the base, if it is trained too, else 0.
    """

    context: RunContext
    handle: Inlay
    parameters: int
    base_parameters: int
    trained_base_parameters: int


def open_run(
    recipe: Recipe,
    console: Console | None = None,
    *,
    resume: bool = True,
    opened: LoadedBase | None = None,
) -> ReadyRun:
    """All of `run` that comes before its first score: rows, base and inlay are ready then.

    Arguments and exceptions are those of `run`.
    """
    if recipe.folds is not None and recipe.fold is None:
        raise RecipeError("run trains one fold; give fold, or call cross_validate for all of them")
    out = output_folder(recipe.out)
    main = processes().is_main_process
    console = (console or Console(stderr=True)) if main else Console(quiet=True)
    task = recipe.make_task()
    start = read_start(recipe.start)
    if start is not None:
        adopt_labels(task, start)
    data = _read_data(recipe, task, opened, console)
    if recipe.folds is not None and recipe.fold is not None:
        _set_all_labels(task, recipe, data["train"])
        splits = split_folds(data["train"], task, recipe.folds, recipe.seed)
        data["train"], data["test"] = splits[recipe.fold - 1]
    task.prepare(data["train"])
    model, tokenizer = opened or open_base(recipe.base, recipe.dtype, console, recipe.quantize)
    recipe = recipe.fitted(model)
    spec = spec_with_head(recipe.make_spec(), task)
    trains_base = recipe.training.base_lr is not None
    if trains_base:
        require_full_precision(model)
    base_parameters = sum(p.numel() for p in model.parameters())
    prepared: Prepared = {}
    skipping = {part: source.skip_bad for part, source in recipe.data.parts().items()}
    if recipe.folds is not None:
        skipping["test"] = skipping["train"]
    if needs_preparation(model, spec):
        draft = deepcopy(task)  # the task itself is bound once its template has virtual tokens
        draft.bind(model, tokenizer)
        data = usable([draft], data, skipping, console)
        prepared = prepare(
            model,
            spec,
            draft,
            data["train"],
            batch_size=recipe.training.rows or 16,
            seed=recipe.seed,
            folder=out,
            resume=resume,
            console=console,
        )
    handle = attach_member(model, spec, recipe.name, recipe.seed, 0, prepared)
    if start is not None:
        start_from(handle, start, tokenizer)
    recipe = _place_virtual_tokens(recipe, task, handle, data["train"], console).with_task(task)
    task.bind(model, tokenizer)
    of_base = base_parameters if trains_base else 0
    parameters = handle.count() + of_base
    saved = handle.saved_count() if handle.settled else count_parameters(model, handle.spec)
    print_line(console, describe_size(spec, parameters, saved + of_base, base_parameters))
    data = usable([task], data, skipping, console)
    _print_skipped(data, console)
    context = RunContext(
        recipe, out, model, tokenizer, task, data, console, resume, prepared, start
    )
    return ReadyRun(context, handle, parameters, base_parameters, of_base)


def check_data(recipe: Recipe, opened: LoadedBase, console: Console) -> None:
    """Read and encode all rows of a recipe, as `run` will; nothing is trained.

    Raises DataError and TaskError where `run` would.
    """
    task = recipe.make_task()
    data = _read_data(recipe, task, opened, console)
    task.prepare(data["train"])
    task.bind(*opened)
    skipping = {part: source.skip_bad for part, source in recipe.data.parts().items()}
    usable([task], data, skipping, console)


def spec_with_head(spec: Spec, task: Task) -> Spec:
    """The spec, with the trained head that the task reads added where it has none."""
    if any(method.has_head for method in spec.methods):
        return spec
    head = task.head()
    return spec if head is None else spec + head


def _read_data(
    recipe: Recipe, task: Task, opened: LoadedBase | None, console: Console
) -> dict[str, Dataset]:
    """The rows of every part. opened: the base, where it is loaded already."""

    def drafts(data: Mapping[str, Dataset]) -> list[Task]:
        if "train" not in data:
            return []
        draft = deepcopy(task)
        draft.prepare(data["train"])
        base = opened or open_base(recipe.base, recipe.dtype, console, recipe.quantize)
        draft.bind(*base)
        return [draft]

    sources = recipe.data.parts()
    return read_data(sources, lambda part, source: source.load(task), drafts, console)


def _print_skipped(data: Mapping[str, Dataset], console: Console) -> None:
    """Say how many rows of each part are left out."""
    for part, dataset in data.items():
        if dataset.skipped:
            rows = "1 row is" if len(dataset.skipped) == 1 else f"{len(dataset.skipped)} rows are"
            print_line(console, f"{part}: {rows} left out")


def _set_all_labels(task: Task, recipe: Recipe, data: Dataset) -> None:
    """Give a task that reads a trained head the labels of all folds.

    It learns nothing else of the held-out rows: neither how frequent labels are there, nor
    demonstrations.
    """
    prepared = recipe.make_task()
    prepared.prepare(data)
    head = prepared.head()
    if head is not None:
        task.set_labels(tuple(head.labels))


def _place_virtual_tokens(
    recipe: Recipe, task: Task, handle: Inlay, data: Dataset, console: Console
) -> Recipe:
    """Write the inlay's virtual tokens into a template without any; returns the new recipe."""
    if not handle.virtual_tokens or task.virtual_tokens:
        return recipe
    before = sum(p.piece.before for p in handle.placed if isinstance(p.piece, VirtualTokens))
    task.place_virtual_tokens(handle.virtual_tokens, before, data)
    recipe = recipe.with_task(task)
    print_line(console, f"template: {recipe.task['template']}")
    return recipe
