"""run: from a recipe to a trained inlay, its scores, and files that say how it came about."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from inlay.attach import Inlay, attach, rows
from inlay.data import Dataset, left_out
from inlay.errors import RecipeError
from inlay.models import load_base
from inlay.piece import Tokens
from inlay.spec import Spec
from inlay.state import write_whole
from inlay.tasks import Task
from inlay.training import checkpoint, rng
from inlay.training.ensemble import Voted, vote
from inlay.training.entry import fit
from inlay.training.evaluation import evaluate
from inlay.training.folds import folds
from inlay.training.launch import processes
from inlay.training.log import Log
from inlay.training.loop import LOG
from inlay.training.progress import Shown
from inlay.training.recipe import Recipe
from inlay.training.results import Result
from inlay.training.whole import BASE, need_fine, save_base


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
    state = processes()
    console = console or Console(stderr=True)
    if not state.is_main_process:
        console = Console(quiet=True)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    task = recipe.make_task()
    sources = {"train": recipe.data.train, "dev": recipe.data.dev, "test": recipe.data.test}
    data = {}
    for part, source in sources.items():
        if source is not None:
            with Shown(console) as shown, shown.counting(f"reading {part}"):
                data[part] = source.load(task)
    for part, found in data.items():
        if found.skipped:
            say(f"{part}: {len(found.skipped)} malformed rows are left out")
    task.prepare(data["train"])
    if recipe.folds is not None and recipe.fold is not None:
        parts = folds(data["train"], task, recipe.folds, recipe.seed)
        data["train"], data["test"] = parts[recipe.fold - 1]
    spec = headed(recipe.make_spec(), task)
    with Shown(console) as shown, shown.counting(f"loading {recipe.base}"):
        model, tokenizer = load_base(
            recipe.base,
            dtype=None if recipe.dtype is None else getattr(torch, recipe.dtype),
            device=state.device,
            report=say,
        )
    joint = recipe.training.base_lr is not None
    if joint:
        need_fine(model)
    size = sum(p.numel() for p in model.parameters())
    with rng.kept():
        rng.seed(recipe.seed)
        handle = attach(model, spec, name=recipe.name)
    tokens = [piece for _, _, piece in handle.pieces() if isinstance(piece, Tokens)]
    virtual = sum(piece.length for piece in tokens)
    if virtual and not task.virtual:
        task.place(virtual, sum(piece.front for piece in tokens), data["train"])
        recipe = recipe.with_task(task)
        say(f"template: {recipe.task['template']}")
    task.bind(model, tokenizer)

    def score(part: str) -> dict[str, float] | None:
        if part not in data:
            return None
        o = recipe.training
        shown: dict[str, Any] = {"console": console, "what": part}
        return evaluate(model, task, data[part], batch_size=o.rows, tokens=o.tokens, **shown)

    reads = any(method.judges for method in spec.methods) or virtual > 0
    handle.enabled = reads
    untouched = score("dev")
    handle.enabled = True
    if untouched is not None:
        say(f"untouched: {task.metric} {untouched[task.metric]:.4f} on dev")

    out = Path(recipe.out)
    if state.is_main_process and not (resume and (out / checkpoint.NAME).exists()):
        write_whole(out / "recipe.yaml", recipe.dump().encode())

    def teach(member: Inlay, number: int, folder: Path) -> Result:
        with rows(model, [member.name]):
            return fit(
                model,
                member,
                task,
                data["train"],
                dev=data.get("dev"),
                folder=folder,
                resume=resume,
                console=console,
                seed=recipe.seed + number,
                **recipe.training.model_dump(),
            )

    result = teach(handle, 0, out)
    tested = score("test")
    members = [handle]
    for number in range(1, recipe.ensemble):
        say(f"member {number + 1} of {recipe.ensemble}")
        with rng.kept():
            rng.seed(recipe.seed + number)
            members.append(attach(model, spec, name=f"{recipe.name}-{number + 1}"))
        teach(members[-1], number, out / f"member-{number + 1}")
    voted = None
    if len(members) > 1 and ("test" in data or "dev" in data):
        asked = data["test"] if "test" in data else data["dev"]
        voted = vote(model, members, task, asked, batch_size=recipe.training.rows or 8)
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
        voted=voted,
    )
    if state.is_main_process:
        if outcome.base is not None:
            save_base(model, tokenizer, outcome.base)
        for member in members if spec.methods else []:
            member.save(out / f"{member.name}.safetensors", tokenizer=tokenizer)
        write_whole(out / "recipe.yaml", recipe.dump().encode())
        write_whole(out / "result.json", json.dumps(outcome.plain(), indent=2).encode())
        _log_skipped(out / LOG, data)
    if outcome.base is not None:
        fits = "" if outcome.path is None else f"; {outcome.path} fits only that base"
        say(f"the base has learned too, so all of it is saved, in {outcome.base}{fits}")
    for part, found in data.items():
        for line in left_out(found.skipped, part):
            say(line)
    return outcome


def _log_skipped(path: Path, data: Mapping[str, Dataset]) -> None:
    """Add to the log which rows were left out; a resumed run cuts this off and adds it anew."""
    log = Log(path, path.stat().st_size)
    for part, found in data.items():
        for one in found.skipped:
            log.write(skipped=part, where=one.where, reason=one.reason)
    log.close()


def headed(spec: Spec, task: Task) -> Spec:
    """The spec, with the head that the task reads where it has none yet."""
    if any(method.judges for method in spec.methods):
        return spec
    head = task.head()
    return spec if head is None else spec + head
