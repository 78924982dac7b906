"""Pet: a run of pattern-exploiting training as one small YAML file.

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
from inlay.training.loop.options import Positive, Seed, Share, Training, Whole
from inlay.training.recipes import yaml
from inlay.training.recipes.recipe import STRICT, Source, read, sound


class Few(BaseModel):
    """Rows with a label, None where there are none; texts, whose labels are not read; tests."""

    model_config = STRICT

    train: Source | None = None
    unlabelled: Source
    test: Source | None = None


class Pet(BaseModel):
    """What `pet` does. Paths are relative to where it is run; `Recipe` has the other fields.

    method: what to set in for each pattern, and for the classifier; None for nothing, where the
        base learns (`training.base_lr`), as in the paper.
    patterns: the file of the patterns. seeds: models a pattern, whose seeds go from `seed` on.
    data: `train`, `unlabelled`, `test`. Without `train` the untouched base labels the first rows.
    training: of the patterns' models. distil: of the classifier, by `training` where None; its
        batches are also those in which texts are scored.
    classifier: a trained "head", or the "words" of the first pattern.
    weights: of the models in their ensemble: the "accuracy" of their pattern on `train` before
        training, or "uniform".
    auxiliary: the share of the language model's own loss in `training`, 1e-4 in the paper: beside
        every labelled row an unlabelled text is read. A pass over the data is then one over all of
        these texts.
    temperature: of the distillation.
    generations: how often all patterns learn; above 1 it is iPET, in the paper 3.
    growth: how many times as many rows each generation learns from.
    share: of the other models, how many label for a model, and one at least.
    first: without `train`, how many texts of each label begin.
    metric, truncate, max_length: see `Classify`.
    """

    model_config = STRICT

    base: str
    dtype: Literal["float32", "bfloat16"] | None = None
    method: str | None = None
    patterns: str
    seeds: Whole = 1
    data: Few
    training: Training = Training()
    distil: Training | None = None
    classifier: Literal["head", "words"] = "head"
    weights: Literal["accuracy", "uniform"] = "accuracy"
    auxiliary: Share = 0.0
    temperature: Positive = 2.0
    generations: Whole = 1
    growth: Annotated[int, Field(ge=2)] = 5
    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    first: Whole = 10
    metric: ClassificationMetric = "accuracy"
    truncate: bool | Literal["end", "start"] = False
    max_length: Whole | None = None
    out: str
    seed: Seed = 0

    @field_validator("method")
    @classmethod
    def _method(cls, value: str | None) -> str | None:
        if value is not None:
            sound(parse, value)
            if any(method.has_head for method in parse(value).methods):
                raise ValueError("words judge in a pattern; leave the trained head out")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Pet:
        if self.method is None and self.training.base_lr is None:
            raise ValueError(
                "nothing would learn; give a method, such as LoRA, or training.base_lr, at which "
                "the base itself learns"
            )
        if (self.training.base_lr is None) != (self.distilling.base_lr is None):
            raise ValueError("training and distil must both have base_lr, or neither")
        for part, own in {"training": self.training, "distil": self.distilling}.items():
            for name in ("eval_every", "patience"):
                if getattr(own, name) is not None:
                    raise ValueError(f"there are no rows to choose by; leave {part}.{name} out")
        if self.data.train is None and self.weights == "accuracy":
            raise ValueError("without data.train there is no accuracy; give weights: uniform")
        return self

    @staticmethod
    def load(path: str | Path | None, overrides: Mapping[str, str] | None = None) -> Pet:
        """The recipe in a file, with some fields set anew; see `Recipe.load`."""
        return read(Pet, path, overrides)

    def dump(self) -> str:
        """The recipe as YAML, with every default; `load` reads it back as it was."""
        return yaml.write(self.model_dump(mode="json"))

    def check(self, patterns: int) -> None:
        """Raise RecipeError where so many patterns are too few for models that label others' rows.

        Of the untouched base there is one model a pattern.
        """
        models = patterns if self.data.train is None else patterns * self.seeds
        if models < 2 and (self.generations > 1 or self.data.train is None):
            raise RecipeError(
                "no model labels rows for itself, so there must be two at least; give more "
                "patterns" + ("" if self.data.train is None else ", or seeds")
            )

    @property
    def distilling(self) -> Training:
        """How the classifier is trained."""
        return self.training if self.distil is None else self.distil

    def make_spec(self) -> Spec:
        """What to set in; an empty sum for nothing."""
        return Sum(()) if self.method is None else parse(self.method)

    def reading(self) -> dict[str, Any]:
        """The fields of `Classify` that patterns and classifier share."""
        names = ("metric", "truncate", "max_length")
        return {name: getattr(self, name) for name in names}
