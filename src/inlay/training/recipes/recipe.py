"""Recipe: a whole run as one small YAML file.

base: smollm2
method: LoRA(rank=8) + Prefix(length=10)
task: {kind: generate, template: "{source}"}
data:
  train: {source: e2e, split: train}
  dev: {source: e2e, split: dev, limit: 100}
training: {lr: 2e-3, minutes: 2}
out: runs/e2e
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from inlay.core.method import Spec, Sum
from inlay.core.parse import parse
from inlay.data.dataset import Dataset, Stream
from inlay.data.fields import FIELDS
from inlay.data.loading import load, stream
from inlay.data.template import Template
from inlay.errors import InlayError, RecipeError, nearest
from inlay.tasks import Task, from_spec
from inlay.training.loop.options import Seed, Training, Whole, explain
from inlay.training.recipes import yaml

WRITTEN = ("template", "demonstrations")
"""The fields of a task that preparing it may change, and its rows show."""

STRICT = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

Kind = TypeVar("Kind", bound=BaseModel)


class Source(BaseModel):
    """Where rows come from; the fields are the arguments of `inlay.data.load`."""

    model_config = STRICT

    source: str
    split: str | None = None
    columns: dict[str, str] | None = None
    template: str | dict[str, str] | None = None
    limit: Whole | None = None
    shots: Whole | None = None
    skip_bad: bool = False
    seed: Seed = 0

    @field_validator("columns", "template")
    @classmethod
    def _known(cls, value: Any) -> Any:
        for name in value if isinstance(value, dict) else ():
            if name not in FIELDS:
                raise ValueError(f"there is no field {name!r} to fill{nearest(name, FIELDS)}")
        return value

    @field_validator("template")
    @classmethod
    def _written(cls, value: Any) -> Any:
        for one in value.values() if isinstance(value, dict) else [value] if value else []:
            sound(Template, one)
        return value

    def load(self, task: Task) -> Dataset:
        """The rows, with all fields that the task needs. Raises DataError."""
        return load(**self.model_dump(), need=task.required_fields)

    def stream(self, task: Task) -> Dataset | Stream:
        """The rows, read as they are needed, unless a sample of them is drawn. Raises DataError."""
        if self.limit is not None or self.shots is not None:
            return self.load(task)
        drawing = {"limit", "shots", "seed"}
        return stream(**self.model_dump(exclude=drawing), need=task.required_fields)


class Data(BaseModel):
    """The rows to train on, to choose by, and to report on."""

    model_config = STRICT

    train: Source
    dev: Source | None = None
    test: Source | None = None


class Recipe(BaseModel):
    """What `run` does. Paths are relative to where it is run.

    base: a bundled name, a folder, or what `from_pretrained` takes. dtype: of its weights; None
        keeps the one they are stored in.
    method: what to set in, written as in Python; None for nothing, where the base learns
        (`training.base_lr`). name: of the inlay.
    task: its `kind` and fields.
    data: `train`, `dev`, `test`.
    training: the fields of `Training`.
    out: the folder for the inlay, the log, the checkpoint and the results.
    seed: of everything that is drawn.
    ensemble: how many inlays are trained, with seeds from `seed` on, whose majority then decides.
    folds: for cross-validation, how many times to train, each time tested on another share of
        `train` and trained on the rest. fold: which one of these alone, from 1 on; None for all.
    """

    model_config = STRICT

    base: str
    dtype: Literal["float32", "bfloat16"] | None = None
    method: str | None = None
    name: str = "default"
    task: dict[str, Any]
    data: Data
    training: Training = Training()
    out: str
    seed: Seed = 0
    ensemble: Annotated[int, Field(ge=1, le=100)] = 1
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    fold: Whole | None = None

    @field_validator("method")
    @classmethod
    def _method(cls, value: str | None) -> str | None:
        if value is not None:
            sound(parse, value)
        return value

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", value):
            raise ValueError(f"a name is letters, digits, '_' and '-', not {value!r}")
        return value

    @field_validator("task", mode="before")
    @classmethod
    def _mapping(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError(  # noqa: TRY004  # pydantic tells of no TypeError
                f"write its fields, such as {{kind: classify}}, not {value!r:.80}"
            )
        return value

    @field_validator("task")
    @classmethod
    def _task(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "kind" not in value:
            raise ValueError("the kind of task is missing, as in {kind: generate}")
        sound(_task_of, value)
        return value

    @model_validator(mode="after")
    def _something_learns(self) -> Recipe:
        if self.method is None and self.training.base_lr is None:
            raise ValueError(
                "nothing would learn; give a method, such as LoRA, or training.base_lr, at which "
                "the base itself learns"
            )
        if self.ensemble > 1 and self.training.base_lr is not None:
            raise ValueError(
                "an ensemble shares one frozen base; leave training.base_lr or ensemble out"
            )
        return self

    @model_validator(mode="after")
    def _folds(self) -> Recipe:
        if self.folds is not None and self.data.test is not None:
            raise ValueError("folds are tested on shares of data.train; leave data.test out")
        if self.fold is not None and (self.folds is None or self.fold > self.folds):
            raise ValueError(
                f"fold={self.fold} is none of the folds, of which there are {self.folds or 0}"
            )
        return self

    @staticmethod
    def load(path: str | Path | None, overrides: Mapping[str, str] | None = None) -> Recipe:
        """The recipe in a file (None: in none), with some fields set anew.

        overrides: dotted names -> texts, such as `training.lr` -> `1e-4`. A text that is JSON
        counts as what it says, any other as itself.

        Raises RecipeError, one sentence that names the field, for whatever is wrong with it.
        """
        return read(Recipe, path, overrides)

    def dump(self) -> str:
        """The recipe as YAML, with every default; `load` reads it back as it was."""
        return yaml.write(self.model_dump(mode="json"))

    def make_spec(self) -> Spec:
        """What to set in; an empty sum for nothing."""
        return Sum(()) if self.method is None else parse(self.method)

    def with_task(self, task: Task) -> Recipe:
        """The same recipe with what its task was made to write into every row.

        That is a template that was made for its method, and the demonstrations that were drawn:
        who only measures with the recipe has neither the method nor the training data.
        """
        before, after = self.make_task().describe(), task.describe()
        made = {
            name: after[name] for name in WRITTEN if name in after and before[name] != after[name]
        }
        return self.model_copy(update={"task": {**self.task, **made}})

    def make_task(self) -> Task:
        """The task, not bound to a model yet."""
        return _task_of(self.task)


def read(kind: type[Kind], path: str | Path | None, overrides: Mapping[str, str] | None) -> Kind:
    """A recipe of this kind; the rest is as in `Recipe.load`."""
    values: Any = {}
    if path is not None:
        try:
            written = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the recipe {path}: {error}") from None
        values = yaml.read(written, str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of fields to values")
    for name, value in (overrides or {}).items():
        _set(values, name, value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, kind)) from None


def folder_of(out: str) -> Path:
    """The folder that a run writes into. Raises RecipeError where a file has its name."""
    if Path(out).exists() and not Path(out).is_dir():
        raise RecipeError(f"out is a folder to write into, and {out} is a file; name another")
    return Path(out)


def _task_of(fields: Mapping[str, Any]) -> Task:
    rest = {name: value for name, value in fields.items() if name != "kind"}
    if "task" in rest:
        raise RecipeError("there is no field 'task'; did you mean 'kind'?")
    return from_spec({"task": fields["kind"], **rest})


def sound(make: Any, value: Any) -> None:
    """Have pydantic say, with the path of the field, what this library refuses."""
    try:
        make(value)
    except InlayError as error:
        raise ValueError(str(error)) from None


def _set(values: dict[str, Any], name: str, value: str) -> None:
    """Set a field by its dotted name."""
    *path, last = name.split(".")
    for step in path:
        inner = values.setdefault(step, {})
        if inner is None:
            inner = values[step] = {}
        if not isinstance(inner, dict):
            raise RecipeError(f"{name}: {step!r} has no fields")
        values = inner
    try:
        values[last] = json.loads(value)
    except ValueError:
        values[last] = value
