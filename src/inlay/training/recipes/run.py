"""run: from a recipe to a trained inlay, its scores, and files that say how it came about."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inlay.core.method import Spec
from inlay.core.piece import VirtualTokens
from inlay.data.dataset import Dataset, describe_skipped
from inlay.errors import RecipeError
from inlay.files.atomic import write_whole
from inlay.handle import Inlay, rows
from inlay.hub import load_base
from inlay.runtime.install import Prepared
from inlay.tasks import Task
from inlay.training.fit import fit
from inlay.training.loop import checkpoint
from inlay.training.loop.evaluation import evaluate
from inlay.training.loop.full_model import BASE, need_fine, save_base
from inlay.training.loop.launch import processes
from inlay.training.loop.log import Log
from inlay.training.loop.progress import Shown
from inlay.training.loop.results import Result
from inlay.training.loop.trainer import LOG
from inlay.training.preparation import needs_preparation, prepare
from inlay.training.recipes.ensemble import Voted, member, others, vote
from inlay.training.recipes.folds import folds
from inlay.training.recipes.recipe import Recipe, folder_of


@dataclass(frozen=True)
class Outcome:
    """What a recipe led to.

    path: the inlay's file, None where nothing was set in. base: the folder of the base, where it
    learned too. parameters: how many numbers learned; of: how many the base has.
    untouched, dev, test: scores by metric, of the base before and with the inlay after; None where
    the recipe has no such data. metric: the task's own. training: how it went.
    voted: what the members of an ensemble score, on `test` where there is one, else on `dev`; all
    else is about the first of them.
    """

    recipe: Recipe
    path: Path | None
    base: Path | None
    parameters: int
    of: int
    metric: str
    untouched: dict[str, float] | None
    dev: dict[str, float] | None
    test: dict[str, float] | None
    training: Result
    voted: Voted | None = None

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        recipe = self.recipe.model_dump(mode="json")
        facts = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            **facts,
            "recipe": recipe,
            "path": None if self.path is None else str(self.path),
            "base": None if self.base is None else str(self.base),
            "training": asdict(self.training),
            "voted": None if self.voted is None else asdict(self.voted),
        }


def run(recipe: Recipe, console: Console | None = None, *, resume: bool = True) -> Outcome:
    """Do what a recipe says.

    Writes into the folder `out`: `<name>.safetensors`, `recipe.yaml`, `log.jsonl`, `result.json`
    and, as it goes, a checkpoint, from which the same recipe goes on (`resume=False`: starts
    anew). Of a recipe with `folds` it does one, `fold`; `cross_validate` does all. Where the task
    reads a trained head, one is added to the method, and virtual tokens that no template places
    are placed around the text; the untouched score is then that of pieces that have learned
    nothing, else that of the bare base. A base that has learned is written to the folder `base`,
    whole or not at all, and the inlay's file then fits only that base. Rows that `skip_bad` leaves
    out are named at the end, the first of them on the console and all in the log.

    Raises what its parts raise: FetchError, DataError, TaskError, SpecError, SiteError,
    TrainingError; and RecipeError for folds without a fold.
    """
    if recipe.folds is not None and recipe.fold is None:
        raise RecipeError("run does one fold; give fold, or call cross_validate for all of them")
    out = folder_of(recipe.out)
    main = processes().is_main_process
    console = (console or Console(stderr=True)) if main else Console(quiet=True)
    task = recipe.make_task()
    data = _read(recipe, task, console)
    if recipe.folds is not None and recipe.fold is not None:
        _know_labels(task, recipe, data["train"])
        parts = folds(data["train"], task, recipe.folds, recipe.seed)
        data["train"], data["test"] = parts[recipe.fold - 1]
    task.prepare(data["train"])
    spec = headed(recipe.make_spec(), task)
    model, tokenizer = opened(recipe.base, recipe.dtype, console)
    joint = recipe.training.base_lr is not None
    if joint:
        need_fine(model)
    size = sum(p.numel() for p in model.parameters())
    prepared = _prepared(recipe, out, model, tokenizer, spec, task, data["train"], console, resume)
    handle = member(model, spec, recipe.name, recipe.seed, 0, prepared)
    recipe = _placed(recipe, task, handle, data["train"], console).with_task(task)
    task.bind(model, tokenizer)
    course = _Course(recipe, out, model, task, data, console, resume, prepared)
    untouched = course.untouched(handle)
    if main and not (resume and (out / checkpoint.NAME).exists()):
        write_whole(out / "recipe.yaml", recipe.dump().encode())
    result = course.teach(handle, 0)
    tested = course.score("test")
    members = [handle, *others(model, handle, recipe.ensemble, recipe.seed, course.teach, prepared)]
    outcome = Outcome(
        recipe=recipe,
        path=out / f"{recipe.name}.safetensors" if spec.methods else None,
        base=out / BASE if joint else None,
        parameters=handle.count() + (size if joint else 0),
        of=size,
        metric=task.metric,
        untouched=untouched,
        dev=None if result.best is None else result.best.scores,
        test=tested,
        training=result,
        voted=course.vote(members),
    )
    if main:
        _write(out, outcome, members, tokenizer, data)
    _tell(outcome, data, console)
    return outcome


@dataclass(frozen=True)
class _Course:
    """What every member of a run learns from and is asked: a base, a task bound to it, and rows."""

    recipe: Recipe
    out: Path
    model: PreTrainedModel
    task: Task
    data: Mapping[str, Dataset]
    console: Console
    resume: bool
    prepared: Prepared

    def untouched(self, handle: Inlay) -> dict[str, float] | None:
        """The scores on `dev` before anything has learned; see `run`."""
        has_head = any(method.has_head for method in handle.spec.methods)
        handle.enabled = has_head or handle.virtual_tokens > 0
        scores = self.score("dev")
        handle.enabled = True
        if scores is not None:
            metric = self.task.metric
            say(self.console, f"untouched: {metric} {scores[metric]:.4f} on dev")
        return scores

    def score(self, part: str) -> dict[str, float] | None:
        """The scores on some rows, by metric; None where the recipe has no such rows."""
        if part not in self.data:
            return None
        o = self.recipe.training
        shown: dict[str, Any] = {"console": self.console, "what": part}
        rows = self.data[part]
        return evaluate(self.model, self.task, rows, batch_size=o.rows, tokens=o.tokens, **shown)

    def teach(self, handle: Inlay, number: int) -> Result:
        """Train one member; the first has the run's own folder."""
        if number:
            say(self.console, f"member {number + 1} of {self.recipe.ensemble}")
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
                seed=self.recipe.seed + number,
                **self.recipe.training.model_dump(),
            )

    def vote(self, members: Sequence[Inlay]) -> Voted | None:
        """What several members say together on `test`, or else on `dev`."""
        asked = self.data.get("test", self.data.get("dev"))
        if len(members) == 1 or asked is None:
            return None
        return vote(
            self.model, members, self.task, asked, batch_size=self.recipe.training.rows or 8
        )


def say(console: Console, line: str) -> None:
    """Print one line that stays."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _read(recipe: Recipe, task: Task, console: Console) -> dict[str, Dataset]:
    """The rows of every part that the recipe names."""
    sources = {"train": recipe.data.train, "dev": recipe.data.dev, "test": recipe.data.test}
    data = {}
    for part, source in sources.items():
        if source is not None:
            with Shown(console) as shown, shown.counting(f"reading {part}"):
                data[part] = source.load(task)
    for part, found in data.items():
        if found.skipped:
            say(console, f"{part}: {len(found.skipped)} malformed rows are left out")
    return data


def _know_labels(task: Task, recipe: Recipe, data: Dataset) -> None:
    """Tell a task that reads a trained head the labels of all folds.

    Of the rows held out it learns nothing else: neither how frequent labels are there, nor
    demonstrations.
    """
    whole = recipe.make_task()
    whole.prepare(data)
    head = whole.head()
    if head is not None:
        task.set_labels(tuple(head.labels))


def opened(
    base: str, dtype: str | None, console: Console
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The base of a recipe and its tokenizer; shows that they load."""
    with Shown(console) as shown, shown.counting(f"loading {base}"):
        return load_base(
            base,
            dtype=None if dtype is None else getattr(torch, dtype),
            device=processes().device,
            report=lambda line: say(console, line),
        )


def _prepared(
    recipe: Recipe,
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    spec: Spec,
    task: Task,
    data: Dataset,
    console: Console,
    resume: bool,
) -> Prepared:
    """What the methods compute from the training data before they are attached."""
    if not needs_preparation(model, spec):
        return {}
    draft = deepcopy(task)  # the task itself is bound when virtual tokens are in its template
    draft.bind(model, tokenizer)
    return prepare(
        model,
        spec,
        draft,
        data,
        batch_size=recipe.training.rows or 16,
        seed=recipe.seed,
        folder=out,
        resume=resume,
        console=console,
    )


def _placed(recipe: Recipe, task: Task, handle: Inlay, data: Dataset, console: Console) -> Recipe:
    """The recipe, with the template in which the task has a place for every virtual token."""
    if not handle.virtual_tokens or task.virtual_tokens:
        return recipe
    before = sum(p.piece.before for p in handle.placed if isinstance(p.piece, VirtualTokens))
    task.place_virtual_tokens(handle.virtual_tokens, before, data)
    recipe = recipe.with_task(task)
    say(console, f"template: {recipe.task['template']}")
    return recipe


def _write(
    out: Path,
    outcome: Outcome,
    members: Sequence[Inlay],
    tokenizer: PreTrainedTokenizerBase,
    data: Mapping[str, Dataset],
) -> None:
    """Put what a run led to into its folder."""
    if outcome.base is not None:
        save_base(members[0].model, tokenizer, outcome.base)
    for one in members if outcome.path is not None else []:
        one.save(out / f"{one.name}.safetensors", tokenizer=tokenizer)
    write_whole(out / "recipe.yaml", outcome.recipe.dump().encode())
    write_whole(out / "result.json", json.dumps(outcome.plain(), indent=2).encode())
    _log_skipped(out / LOG, data)


def _tell(outcome: Outcome, data: Mapping[str, Dataset], console: Console) -> None:
    """Say whether the base was saved too, and which rows were left out."""
    if outcome.base is not None:
        fits = "" if outcome.path is None else f"; {outcome.path} fits only that base"
        said = f"the base has learned too, so all of it is saved, in {outcome.base}{fits}"
        say(console, said)
    for part, found in data.items():
        for line in describe_skipped(found.skipped, part):
            say(console, line)


def _log_skipped(path: Path, data: Mapping[str, Dataset]) -> None:
    """Add to the log which rows were left out; a resumed run cuts this off and adds it anew."""
    log = Log(path, path.stat().st_size)
    for part, found in data.items():
        for one in found.skipped:
            log.write(skipped=part, where=one.where, reason=one.reason)
    log.close()


def headed(spec: Spec, task: Task) -> Spec:
    """The spec, with the head that the task reads where it has none yet."""
    if any(method.has_head for method in spec.methods):
        return spec
    head = task.head()
    return spec if head is None else spec + head
