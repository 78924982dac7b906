"""Pattern-exploiting training: a model for each way of asking, and one that learns from them all.

    1. every pattern's model learns from the few labelled rows, as a cloze
    2. together they give unlabelled texts scores:  s = Σ_m w_m s_m / Σ_m w_m
    3. one classifier learns these:  T² · KL(softmax(s / T) ‖ softmax(z / T))

Schick & Schütze, EACL 2021. With `generations` above 1 it is iPET: steps 1 and 2 again and again,
each model on what some of the others labelled, a growing set of texts.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inlay.data.dataset import Dataset, Example
from inlay.data.loading import load
from inlay.errors import DataError
from inlay.files.atomic import write_whole
from inlay.handle import Inlay, rows
from inlay.tasks import Classify, Distillation, Task, auxiliary
from inlay.training.fit import fit
from inlay.training.loop.evaluation import evaluate
from inlay.training.loop.full_model import BASE, need_fine, restored, save_base
from inlay.training.loop.launch import processes
from inlay.training.loop.progress import Shown
from inlay.training.pet.auxiliary_text import Beside, beside
from inlay.training.pet.distillation import ensemble, scores, softly
from inlay.training.pet.generations import committee, picked, wanted
from inlay.training.pet.patterns import Patterns
from inlay.training.pet.recipe import Pet
from inlay.training.pet.results import Asked, Generation, Member, Petted, Scores
from inlay.training.recipes.ensemble import member
from inlay.training.recipes.recipe import Recipe, folder_of
from inlay.training.recipes.run import headed, opened, say

CLASSIFIER = "classifier"


def pet(recipe: Pet, console: Console | None = None, *, resume: bool = True) -> Petted:
    """Do what a recipe of pattern-exploiting training says.

    Writes into the folder `out`: `pattern-1.safetensors` and so on, of the last generation (further
    seeds are `pattern-1-2`), `classifier.safetensors`, `pet.yaml`, `result.json`, and the
    classifier's own `recipe.yaml`, by which `inlay eval` measures it. Every training has its log
    and checkpoint in a folder of its own, from which the same recipe goes on.

    Where the base learns (`training.base_lr`), every model begins with the base as it was, and
    keeps no checkpoint; of the bases that come about, the classifier's alone is kept, in the folder
    `base`.

    Raises what its parts raise: RecipeError, FetchError, DataError, TaskError, SpecError,
    SiteError, TrainingError.
    """
    main = processes().is_main_process
    console = (console or Console(stderr=True)) if main else Console(quiet=True)
    out = folder_of(recipe.out)
    patterns = Patterns.load(recipe.patterns)
    recipe.check(len(patterns.patterns))
    tasks = patterns.tasks(**recipe.reading())
    if recipe.classifier == "words":
        student = patterns.tasks(**recipe.reading())[0]
    else:
        student = patterns.headed(**recipe.reading())
    student.objective = Distillation(temperature=recipe.temperature)
    train, unlabelled, test = _read(recipe, patterns, console)
    model, tokenizer = opened(recipe.base, recipe.dtype, console)
    if recipe.training.base_lr is not None:
        need_fine(model)
    for task in tasks:
        task.bind(model, tokenizer)
        auxiliary.check_weight(recipe.auxiliary, task.bound)
    course = _Course(recipe, model, tasks, train, unlabelled, test, console, resume)
    course.untouched()
    made = [course.generation(number) for number in range(recipe.generations)]
    if main:
        course.save(tokenizer)
    for handle in course.members:
        handle.detach()
    say(console, "the classifier")
    student.bind(model, tokenizer)
    handle = member(model, headed(recipe.make_spec(), student), CLASSIFIER, recipe.seed, 0)
    taught = softly(unlabelled, ensemble(course.said, course.weights))
    with rows(model, [handle.name]):
        result = fit(model, handle, student, taught, **course.how(recipe.distilling, CLASSIFIER))
        scored = None if test is None else evaluate(model, student, test, **course.sizes)
    joint = recipe.training.base_lr is not None
    outcome = Petted(
        recipe=recipe,
        path=out / f"{CLASSIFIER}.safetensors" if handle.spec.methods else None,
        base=out / BASE if joint else None,
        metric=student.metric,
        untouched=tuple(course.asked),
        generations=tuple(made),
        test=scored,
        training=result,
    )
    if main:
        _write(outcome, student, handle, tokenizer)
    return outcome


class _Course:
    """The models of all patterns, generation after generation.

    members: the inlays of the last generation, attached. said: what its models say to the
    unlabelled texts, `[M, N, C]`; before the first what the patterns say on the untouched base,
    `[P, N, C]`. weights: of each of them.
    """

    def __init__(
        self,
        recipe: Pet,
        model: PreTrainedModel,
        tasks: Sequence[Classify],
        train: Dataset | None,
        unlabelled: Sequence[Example],
        test: Dataset | None,
        console: Console,
        resume: bool,
    ):
        self.recipe, self.model, self.tasks = recipe, model, tasks
        self.train, self.unlabelled, self.test = train, unlabelled, test
        self.console, self.resume = console, resume
        self.spec = recipe.make_spec()
        self.members: list[Inlay] = []
        self.asked: list[Asked] = []
        self.draw = random.Random(recipe.seed)
        self.chance = torch.Generator().manual_seed(recipe.seed)
        self.sizes: dict[str, Any] = {
            "batch_size": recipe.distilling.rows, "tokens": recipe.distilling.tokens,
            "console": console,
        }  # fmt: skip
        names = tasks[0].labels
        if train is None:
            self.counts = [recipe.first] * len(names)
        else:
            found = Counter(tasks[0].stratum(example) for example in train)
            self.counts = [found[name] for name in names]
        last = self._wanted(recipe.generations - 1)
        if sum(last) > len(unlabelled):
            raise DataError(
                f"generation {recipe.generations} takes {sum(last)} unlabelled texts, and there "
                f"are {len(unlabelled)}; give more, or lower generations or growth"
            )

    def untouched(self) -> None:
        """Ask the base as it is in every pattern, and weigh the patterns."""
        train, test = self.train, self.test
        accuracies: list[float | None] = [None] * len(self.tasks)
        if train is not None:
            found = self._scored(self._ask(self.tasks, None, train, "train"), train)
            accuracies = [one["accuracy"] for one in found]
        tested: Sequence[Scores] = [None] * len(self.tasks)
        if test is not None:
            tested = self._scored(self._ask(self.tasks, None, test, "test"), test)
        for task, accuracy, scored in zip(self.tasks, accuracies, tested, strict=True):
            weight = 1.0
            if self.recipe.weights == "accuracy":
                assert accuracy is not None
                weight = accuracy
            self.asked.append(Asked(str(task.template), weight, accuracy, scored))
            known = "" if scored is None else f"{task.metric} {scored[task.metric]:.4f} on test: "
            say(self.console, f"untouched: {known}{task.template!r}")
        self.weights = torch.tensor([one.weight for one in self.asked])
        if train is None:
            self.said = self._ask(self.tasks, None, self.unlabelled, "unlabelled")

    def generation(self, number: int) -> Generation:
        """Teach all models anew, generation `number` from 0 on, and ask them."""
        sets = [self._rows(place, number) for place in range(self._count)]
        for handle in self.members:
            handle.detach()
        self.members = []
        # Models that share a frozen base are asked together; else each while the base is its own.
        joint = self.recipe.training.base_lr is not None
        groups = [[place] for place in range(self._count)] if joint else [range(self._count)]
        said, tested = [], []
        for group in groups:
            with restored(self.model) if joint else nullcontext():
                handles = [self._teach(number, place, sets[place]) for place in group]
                names = [handle.name for handle in handles]
                tasks = [self._task(place) for place in group]
                said.append(self._ask(tasks, names, self.unlabelled, "unlabelled"))
                if self.test is not None:
                    tested.append(self._ask(tasks, names, self.test, "test"))
            if joint:
                handles[0].detach()
            else:
                self.members = handles
        self.said = torch.cat(said)
        self.weights = torch.tensor(
            [self.asked[self._place(place)[0]].weight for place in range(self._count)]
        )
        return self._told(sets, torch.cat(tested) if tested else None)

    def how(self, training: Any, folder: str) -> dict[str, Any]:
        """What `fit` takes by name for one of the models."""
        kept = folder == CLASSIFIER or training.base_lr is None
        return {
            **training.model_dump(),
            "folder": Path(self.recipe.out) / folder if kept else None,
            "resume": self.resume,
            "console": self.console,
            "seed": self.recipe.seed,
        }

    def save(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the inlay of every pattern; none where the base learned."""
        for one in self.members:
            one.save(Path(self.recipe.out) / f"{one.name}.safetensors", tokenizer=tokenizer)

    # ------------------------------------------------------------------------------- its parts

    @property
    def _count(self) -> int:
        return len(self.tasks) * self.recipe.seeds

    def _place(self, number: int) -> tuple[int, int]:
        """The pattern of a model, and which of the pattern's models it is."""
        return divmod(number, self.recipe.seeds)

    def _task(self, number: int) -> Classify:
        return self.tasks[self._place(number)[0]]

    def _wanted(self, generation: int) -> list[int]:
        return wanted(self.counts, self.recipe.growth, generation, self.train is not None)

    def _rows(self, number: int, generation: int) -> list[Example]:
        """What a model learns from: rows labelled by hand, and those that others label for it."""
        train = [] if self.train is None else list(self.train)
        counts = self._wanted(generation)
        if not any(counts):
            return train
        # Before the first generation a pattern's models are all one: the untouched base.
        me = number if generation else self._place(number)[0]
        others = committee(me, len(self.said), self.recipe.share, self.draw)
        together = ensemble(self.said[others], self.weights[others])
        found = picked(together, counts, self.chance if generation else None)
        names = self.tasks[0].labels
        return train + [
            Example({**self.unlabelled[place].fields, "label": names[label]},
                    self.unlabelled[place].where)
            for place, label in found
        ]  # fmt: skip

    def _teach(self, generation: int, number: int, data: Sequence[Example]) -> Inlay:
        """One model, attached and trained."""
        recipe = self.recipe
        pattern, seed = self._place(number)
        handle = member(self.model, self.spec, f"pattern-{pattern + 1}", recipe.seed, seed)
        of = [f"generation {generation + 1} of {recipe.generations}"] * (recipe.generations > 1)
        of += [f"pattern {pattern + 1} of {len(self.tasks)}"]
        of += [f"seed {seed + 1} of {recipe.seeds}"] * (recipe.seeds > 1)
        say(self.console, f"{', '.join(of)}: {len(data)} rows")
        told = self.how(recipe.training, f"generation-{generation + 1}/{handle.name}")
        told["seed"] += seed
        task: Task = self._task(number)
        if recipe.auxiliary:
            task = Beside(task=task, share=recipe.auxiliary)
            data = beside(data, self.unlabelled, told["seed"])
        with rows(self.model, [handle.name]):
            fit(self.model, handle, task, data, **told)
        return handle

    def _ask(
        self,
        tasks: Sequence[Classify],
        names: Sequence[str] | None,
        data: Sequence[Example],
        what: str,
    ) -> Tensor:
        return scores(self.model, tasks, names, data, **self.sizes, what=what)

    def _scored(self, said: Tensor, data: Sequence[Example]) -> list[dict[str, float]]:
        """The metrics of scores `[M, N, C]`, model by model."""
        task = self.tasks[0]
        return [
            task.score([task.labels[best] for best in one], data)
            for one in said.argmax(-1).tolist()
        ]

    def _told(self, sets: Sequence[Sequence[Example]], tested: Tensor | None) -> Generation:
        singles: Sequence[Scores] = [None] * self._count
        together: Scores = None
        if tested is not None and self.test is not None:
            singles = self._scored(tested, self.test)
            (together,) = self._scored(ensemble(tested, self.weights)[None], self.test)
            metric = self.tasks[0].metric
            say(self.console, f"together: {metric} {together[metric]:.4f} on test")
        members = []
        for place, (data, scored) in enumerate(zip(sets, singles, strict=True)):
            pattern, seed = self._place(place)
            members.append(Member(pattern + 1, seed + 1, len(data), scored))
        return Generation(tuple(members), together)


def _read(
    recipe: Pet, patterns: Patterns, console: Console
) -> tuple[Dataset | None, list[Example], Dataset | None]:
    """Labelled rows, texts without their labels, and rows to be tested on."""
    with Shown(console) as shown:

        def one(part: str, need: Sequence[str]) -> Dataset | None:
            source = getattr(recipe.data, part)
            if source is None:
                return None
            with shown.counting(f"reading {part}"):
                return load(**source.model_dump(), need=need)

        labelled = (*patterns.columns, "label")
        train, test = one("train", labelled), one("test", labelled)
        texts = one("unlabelled", patterns.columns)
    assert texts is not None
    bare = [
        Example({name: example.fields[name] for name in patterns.columns}, example.where)
        for example in texts
    ]
    return train, bare, test


def _write(
    outcome: Petted, student: Classify, handle: Inlay, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Put the classifier, and what led to it, into its folder."""
    recipe = outcome.recipe
    if outcome.base is not None:
        save_base(handle.model, tokenizer, outcome.base)
    if outcome.path is not None:
        handle.save(outcome.path, tokenizer=tokenizer)
    described = student.describe()
    own = Recipe.model_validate(
        {
            **recipe.model_dump(include={"base", "dtype", "method", "out", "seed"}),
            "name": CLASSIFIER,
            "task": {"kind": described.pop("task"), **described},
            "data": {"train": recipe.data.unlabelled, "test": recipe.data.test},
            "training": recipe.distilling,
        }
    )
    out = Path(recipe.out)
    write_whole(out / "recipe.yaml", own.dump().encode())
    write_whole(out / "pet.yaml", recipe.dump().encode())
    write_whole(out / "result.json", json.dumps(outcome.plain(), indent=2).encode())
