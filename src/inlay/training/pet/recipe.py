"""PetRecipe: a run of pattern-exploiting training as one small YAML file.

base: smollm2
method: LoRA(rank=8)
patterns: patterns.yaml
data:
  train: {source: reviews.csv, shots: 25}
  unlabelled: {source: reviews.csv, limit: 1000}
  test: {source: more.csv}
training: {lr: 2e-3, steps: 50, batch_size: 4}
out: runs/pet
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, field_validator, model_validator

from inlay.core.method import Spec, Sum
from inlay.core.parse import parse
from inlay.errors import RecipeError
from inlay.tasks.metrics import ClassificationMetric
from inlay.training.loop.options import Fraction, PositiveFloat, PositiveInt, Seed, Training
from inlay.training.recipes import yaml
from inlay.training.recipes.recipe import STRICT, Reading, Source, read, validate


class PetData(Reading):
    """Labelled rows (`train`, which may be missing), unlabelled texts, and rows to test on.

    The other fields are read for every part that does not have them itself.
    """

    train: Source | None = None
    unlabelled: Source
    test: Source | None = None

    def parts(self) -> dict[str, Source]:
        """The sources that there are, by part, with the fields that all parts share."""
        sources = {"train": self.train, "unlabelled": self.unlabelled, "test": self.test}
        return {part: s.read_as(self) for part, s in sources.items() if s is not None}


class PetRecipe(BaseModel):
    """What `pet` does. Paths are relative to the current folder; other fields are as in `Recipe`.

    method: what to attach for each pattern, and for the classifier; None for nothing, where the
        base itself is trained (`training.base_lr`), as in the paper.
    patterns: the file of the patterns.
    seeds: models for each pattern, whose seeds count up from `seed`.
    data: `train`, `unlabelled`, `test`. Without `train` the untouched base labels the first rows.
    training: of the patterns' models.
    distil: training of the classifier; None for that of `training`. Its batch size is also that in
        which texts are scored.
    classifier: a trained "head", or the "words" of the first pattern.
    weights: of the models in their ensemble: the "accuracy" of their pattern on `train` before
        training, or "uniform".
    auxiliary_weight: of the language model's own loss in `training`, 1e-4 in the paper: with every
        labelled row an unlabelled text is read. An epoch is then a pass over these texts.
    temperature: of the distillation.
    generations: how often all patterns' models are trained; above 1 it is iPET, in the paper 3.
    growth: how many times as many rows each generation is trained on.
    share: of the other models, how many label texts for a model; at least one does.
    first: without `train`, how many texts of each label the first set has.
    metric, truncate, max_length: as in `Classify`.
    """

    model_config = STRICT

    base: str
    dtype: Literal["float32", "bfloat16"] | None = None
    method: str | None = None
    patterns: str
    seeds: PositiveInt = 1
    data: PetData
    training: Training = Training()
    distil: Training | None = None
    classifier: Literal["head", "words"] = "head"
    weights: Literal["accuracy", "uniform"] = "accuracy"
    auxiliary_weight: Fraction = 0.0
    temperature: PositiveFloat = 2.0
    generations: PositiveInt = 1
    growth: Annotated[int, Field(ge=2)] = 5
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    first: PositiveInt = 10
    metric: ClassificationMetric = "accuracy"
    truncate: bool | Literal["end", "start"] = False
    max_length: PositiveInt | None = None
    out: str
    seed: Seed = 0

    @field_validator("method")
    @classmethod
    def _method(cls, value: str | None) -> str | None:
        if value is not None:
            validate(parse, value)
            if any(method.has_head for method in parse(value).methods):
                raise ValueError(
                    "a pattern is scored by words, without a trained head; leave the head out"
                )
        return value

    @model_validator(mode="after")
    def _fields_agree(self) -> PetRecipe:
        if self.method is None and self.training.base_lr is None:
            raise ValueError(
                "nothing would be trained; give a method, such as LoRA, or training.base_lr to "
                "train the base itself"
            )
        if (self.training.base_lr is None) != (self.distilling.base_lr is None):
            raise ValueError("training and distil must both have base_lr, or neither")
        for part, training in {"training": self.training, "distil": self.distilling}.items():
            options = {"eval_every": training.eval_every, "patience": training.patience}
            for name, value in options.items():
                if value is not None:
                    raise ValueError(
                        f"there is no dev data to evaluate on; leave {part}.{name} out"
                    )
        if self.data.train is None and self.weights == "accuracy":
            raise ValueError("without data.train there is no accuracy; give weights: uniform")
        return self

    @staticmethod
    def load(path: str | Path | None, overrides: Mapping[str, str] | None = None) -> PetRecipe:
        """Read a recipe from a file; arguments as in `Recipe.load`."""
        return read(PetRecipe, path, overrides)

    def dump(self) -> str:
        """The recipe as YAML, with every default; `load` reads it back."""
        return yaml.write(self.model_dump(mode="json"))

    def check(self, patterns: int) -> None:
        """Raise RecipeError where there are too few models to label texts for each other.

        patterns: how many there are. Of the untouched base there is one model for each.
        """
        models = patterns if self.data.train is None else patterns * self.seeds
        if models < 2 and (self.generations > 1 or self.data.train is None):
            raise RecipeError(
                "no model labels texts for itself, so there must be at least two; give more "
                "patterns" + ("" if self.data.train is None else ", or seeds")
            )

    @property
    def distilling(self) -> Training:
        """The training of the classifier."""
        return self.training if self.distil is None else self.distil

    def make_spec(self) -> Spec:
        """What to attach; an empty sum for nothing."""
        return Sum(()) if self.method is None else parse(self.method)

    def task_fields(self) -> dict[str, Any]:
        """The fields of `Classify` that patterns and classifier share."""
        return self.model_dump(include={"metric", "truncate", "max_length"})
