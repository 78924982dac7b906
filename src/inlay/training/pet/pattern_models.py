"""PatternModels: the models of all patterns, trained generation after generation."""

from __future__ import annotations

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
from inlay.errors import DataError
from inlay.handle import Inlay, rows
from inlay.tasks import Classify, Task
from inlay.training.fit import fit
from inlay.training.loop.full_model import base_restored
from inlay.training.loop.progress import print_line
from inlay.training.pet.auxiliary_text import AuxiliaryText, pair_with_texts
from inlay.training.pet.distillation import score_examples, weighted_mean
from inlay.training.pet.generations import labelling_models, select_texts, texts_per_label
from inlay.training.pet.recipe import PetRecipe
from inlay.training.pet.results import Generation, ModelResult, PatternResult, Scores
from inlay.training.preparation import prepare
from inlay.training.recipes.ensemble import attach_member


class PatternModels:
    """The models of all patterns. A model is numbered by its pattern and its seed.

    inlays: those of the last generation, attached; none where the base itself is trained.
    patterns: the results of the patterns on the untouched base.
    scores: of the unlabelled texts by the models of the last generation, `[M, N, C]`; before the
        first generation by the patterns on the untouched base, if there are no labelled rows.
    weights: of those models, `[M]`.

    Args:
        recipe: the run.
        model: the base.
        tasks: one for each pattern, bound to the base.
        train: labelled rows, or None.
        unlabelled: texts.
        test: rows to test on, or None.
        console: where progress is shown.
        resume: resume trainings from their checkpoints.

    Raises DataError where there are fewer texts than the last generation needs.
    """

    def __init__(
        self,
        recipe: PetRecipe,
        model: PreTrainedModel,
        tasks: Sequence[Classify],
        *,
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
        self.trains_base = recipe.training.base_lr is not None
        self.count = len(tasks) * recipe.seeds
        self.inlays: list[Inlay] = []
        self.patterns: list[PatternResult] = []
        self.model_generator = random.Random(recipe.seed)
        self.text_generator = torch.Generator().manual_seed(recipe.seed)
        self.sizes: dict[str, Any] = {
            "batch_size": recipe.distilling.rows,
            "tokens": recipe.distilling.tokens,
            "console": console,
        }
        labels = tasks[0].labels
        if train is None:
            self.label_counts = [recipe.first] * len(labels)
        else:
            frequency = Counter(tasks[0].stratum(example) for example in train)
            self.label_counts = [frequency[label] for label in labels]
        needed = sum(self._texts_per_label(recipe.generations - 1))
        if needed > len(unlabelled):
            raise DataError(
                f"generation {recipe.generations} takes {needed} unlabelled texts, and there "
                f"are {len(unlabelled)}; give more, or lower generations or growth"
            )

    def score_untouched(self) -> None:
        """Score the untouched base with every pattern, and weight the patterns."""
        train, test = self.train, self.test
        accuracies: list[float | None] = [None] * len(self.tasks)
        if train is not None:
            scores = self._score_examples(self.tasks, None, train, "train")
            accuracies = [metrics["accuracy"] for metrics in self._metrics(scores, train)]
        test_metrics: Sequence[Scores] = [None] * len(self.tasks)
        if test is not None:
            scores = self._score_examples(self.tasks, None, test, "test")
            test_metrics = self._metrics(scores, test)
        for task, accuracy, metrics in zip(self.tasks, accuracies, test_metrics, strict=True):
            weight = 1.0
            if self.recipe.weights == "accuracy":
                assert accuracy is not None
                weight = accuracy
            self.patterns.append(PatternResult(str(task.template), weight, accuracy, metrics))
            known = "" if metrics is None else f"{task.metric} {metrics[task.metric]:.4f} on test: "
            print_line(self.console, f"untouched: {known}{task.template!r}")
        self.weights = torch.tensor([pattern.weight for pattern in self.patterns])
        if train is None:
            self.scores = self._score_examples(self.tasks, None, self.unlabelled, "unlabelled")

    def train_generation(self, generation: int) -> Generation:
        """Train all models anew and score them; generation: its number, from 0."""
        sets = [self._training_set(number, generation) for number in range(self.count)]
        for handle in self.inlays:
            handle.detach()
        self.inlays = []
        # Models on one frozen base are scored together; where the base is trained, one by one.
        every: list[list[int]] = [[*range(self.count)]]
        groups = [[number] for number in range(self.count)] if self.trains_base else every
        scores, test_scores = [], []
        for group in groups:
            with base_restored(self.model) if self.trains_base else nullcontext():
                handles = [self._train_model(generation, n, sets[n]) for n in group]
                names = [handle.name for handle in handles]
                tasks = [self._task(number) for number in group]
                scores.append(self._score_examples(tasks, names, self.unlabelled, "unlabelled"))
                if self.test is not None:
                    test_scores.append(self._score_examples(tasks, names, self.test, "test"))
            if self.trains_base:
                handles[0].detach()
            else:
                self.inlays = handles
        self.scores = torch.cat(scores)
        weights = [self.patterns[self._pattern(n)[0]].weight for n in range(self.count)]
        self.weights = torch.tensor(weights)
        return self._result(sets, torch.cat(test_scores) if test_scores else None)

    def fit_options(self, training: Any, folder: Path | None) -> dict[str, Any]:
        """What `fit` takes by name for a model; folder: None where it keeps no checkpoint."""
        return {
            **training.model_dump(),
            "folder": folder,
            "resume": self.resume,
            "console": self.console,
            "seed": self.recipe.seed,
        }

    def save(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write the inlay of every model; none where the base was trained."""
        for handle in self.inlays:
            handle.save(Path(self.recipe.out) / f"{handle.name}.safetensors", tokenizer=tokenizer)

    # ------------------------------------------------------------------------------- its parts

    def _pattern(self, number: int) -> tuple[int, int]:
        """The pattern of a model, and which of the pattern's models it is, both from 0."""
        return divmod(number, self.recipe.seeds)

    def _task(self, number: int) -> Classify:
        return self.tasks[self._pattern(number)[0]]

    def _texts_per_label(self, generation: int) -> list[int]:
        labelled = self.train is not None
        return texts_per_label(self.label_counts, self.recipe.growth, generation, labelled)

    def _training_set(self, number: int, generation: int) -> list[Example]:
        """The rows for a model: those labelled by hand, and texts that others label for it."""
        train = [] if self.train is None else list(self.train)
        counts = self._texts_per_label(generation)
        if not any(counts):
            return train
        # Before the first generation all models of a pattern are the same: the untouched base.
        own = number if generation else self._pattern(number)[0]
        others = labelling_models(own, len(self.scores), self.recipe.share, self.model_generator)
        mean = weighted_mean(self.scores[others], self.weights[others])
        selected = select_texts(mean, counts, self.text_generator if generation else None)
        labels = self.tasks[0].labels
        texts = [(self.unlabelled[text], labels[label]) for text, label in selected]
        return train + [Example({**t.fields, "label": label}, t.where) for t, label in texts]

    def _train_model(self, generation: int, number: int, data: Sequence[Example]) -> Inlay:
        """Attach and train one model."""
        recipe = self.recipe
        pattern, seed = self._pattern(number)
        name = f"pattern-{pattern + 1}"
        parts = [f"generation {generation + 1} of {recipe.generations}"] * (recipe.generations > 1)
        parts += [f"pattern {pattern + 1} of {len(self.tasks)}"]
        parts += [f"seed {seed + 1} of {recipe.seeds}"] * (recipe.seeds > 1)
        print_line(self.console, f"{', '.join(parts)}: {len(data)} rows")
        folder = None
        if not self.trains_base:
            member = f"{name}-{seed + 1}" if seed else name
            folder = Path(recipe.out) / f"generation-{generation + 1}" / member
        task: Task = self._task(number)
        prepared = prepare(
            self.model,
            self.spec,
            task,
            data,
            batch_size=recipe.training.rows or 16,
            seed=recipe.seed,
            folder=folder,
            resume=self.resume,
            console=self.console,
        )
        handle = attach_member(self.model, self.spec, name, recipe.seed, seed, prepared)
        options = self.fit_options(recipe.training, folder)
        options["seed"] += seed
        if recipe.auxiliary_weight:
            task = AuxiliaryText(task=task, weight=recipe.auxiliary_weight)
            data = pair_with_texts(data, self.unlabelled, options["seed"])
        with rows(self.model, [handle.name]):
            fit(self.model, handle, task, data, prepared=prepared, **options)
        return handle

    def _score_examples(
        self,
        tasks: Sequence[Classify],
        names: Sequence[str] | None,
        data: Sequence[Example],
        what: str,
    ) -> Tensor:
        return score_examples(self.model, tasks, names, data, **self.sizes, what=what)

    def _metrics(self, scores: Tensor, data: Sequence[Example]) -> list[dict[str, float]]:
        """The metrics of scores `[M, N, C]`, model by model."""
        task = self.tasks[0]
        return [
            task.score([task.labels[label] for label in labels], data)
            for labels in scores.argmax(-1).tolist()
        ]

    def _result(self, sets: Sequence[Sequence[Example]], test_scores: Tensor | None) -> Generation:
        metrics: Sequence[Scores] = [None] * self.count
        ensemble: Scores = None
        if test_scores is not None and self.test is not None:
            metrics = self._metrics(test_scores, self.test)
            mean = weighted_mean(test_scores, self.weights)
            (ensemble,) = self._metrics(mean[None], self.test)
            metric = self.tasks[0].metric
            print_line(self.console, f"ensemble: {metric} {ensemble[metric]:.4f} on test")
        models = []
        for number, (data, scores) in enumerate(zip(sets, metrics, strict=True)):
            pattern, seed = self._pattern(number)
            models.append(ModelResult(pattern + 1, seed + 1, len(data), scores))
        return Generation(tuple(models), ensemble)
