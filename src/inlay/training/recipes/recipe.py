"""Recipe: a whole training run as one small YAML file.

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
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from transformers import PreTrainedModel

from inlay.budget import fit_budget
from inlay.core import own_files
from inlay.core.method import Spec, Sum
from inlay.core.parse import parse
from inlay.data.dataset import Dataset, Stream
from inlay.data.fields import FIELDS, RowParser
from inlay.data.loading import load, stream
from inlay.data.readers import FileForm
from inlay.data.template import Template
from inlay.errors import InlayError, RecipeError, TaskError, nearest, together
from inlay.tasks import Task, from_spec
from inlay.training.loop.options import PositiveInt, Seed, Training, explain
from inlay.training.recipes import yaml

FIELDS_FROM_DATA = ("template", "demonstrations")
"""The fields of a task that its method and its training data may change."""

RUN_FILES = "run_files"
"""The key of what validation is told: whether files of one's own may be run."""

STRICT = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

Kind = TypeVar("Kind", bound=BaseModel)


class Reading(BaseModel):
    """How rows are read; the fields are arguments of `inlay.data.load`."""

    model_config = STRICT

    columns: dict[str, str | list[str]] | None = None
    template: str | dict[str, str] | None = None
    format: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    separator: str | None = None

    @field_validator("columns", "template")
    @classmethod
    def _known_columns(cls, value: Any) -> Any:
        names = value if isinstance(value, dict) else ()
        faults = [
            f"there is no field {name!r} to fill{nearest(name, FIELDS)}"
            for name in names
            if name not in FIELDS
        ]
        if faults:
            raise ValueError(together(faults, "it"))
        return value

    @field_validator("columns")
    @classmethod
    def _valid_columns(cls, value: Any) -> Any:
        validate(lambda columns: RowParser(columns, None, ()), value)
        return value

    @field_validator("template")
    @classmethod
    def _valid_template(cls, value: Any) -> Any:
        templates = [] if value is None else [value]
        for template in value.values() if isinstance(value, dict) else templates:
            validate(Template, template)
        return value

    @property
    def templates(self) -> dict[str, str]:
        """The template that fills each field."""
        if isinstance(self.template, str):
            return {"text": self.template, "source": self.template}
        return dict(self.template or {})

    @field_validator("format")
    @classmethod
    def _valid_format(cls, value: str | None) -> str | None:
        validate(lambda name: FileForm(format=name), value)
        return value

    @field_validator("encoding")
    @classmethod
    def _valid_encoding(cls, value: str | None) -> str | None:
        validate(lambda name: FileForm(encoding=name), value)
        return value

    @field_validator("delimiter")
    @classmethod
    def _valid_delimiter(cls, value: str | None) -> str | None:
        validate(lambda character: FileForm(delimiter=character), value)
        return value


class Source(Reading):
    """Where rows come from; the fields are the arguments of `inlay.data.load`."""

    source: str
    split: str | None = None
    limit: PositiveInt | None = None
    shots: PositiveInt | None = None
    skip_bad: bool = False
    seed: Seed = 0

    def load(self, task: Task) -> Dataset:
        """The rows, with all fields that the task needs. Raises DataError."""
        return load(**self.model_dump(), need=task.required_fields, check=task.check)

    def stream(self, task: Task) -> Dataset | Stream:
        """The rows, read as they are needed, unless a sample of them is drawn. Raises DataError."""
        if self.limit is not None or self.shots is not None:
            return self.load(task)
        fields = self.model_dump(exclude={"limit", "shots", "seed"})
        return stream(**fields, need=task.required_fields, check=task.check)

    def without_bad(self) -> Source:
        """The same source without its bad rows."""
        return self.model_copy(update={"skip_bad": True})

    def read_as(self, shared: Reading) -> Source:
        """The same source, read as `shared` says where it says nothing itself.

        Of the columns each field counts by itself.
        """
        own = self.model_dump()
        common = shared.model_dump(include=set(Reading.model_fields))
        fields = {name: value for name, value in common.items() if own[name] is None}
        if self.columns and shared.columns:
            fields["columns"] = {**shared.columns, **self.columns}
        return self.model_copy(update=fields)


class Data(Reading):
    """The rows to train on (`train`), to choose the best pieces by (`dev`), and to test on.

    The other fields are read for every part that does not have them itself.
    """

    train: Source
    dev: Source | None = None
    test: Source | None = None

    def parts(self) -> dict[str, Source]:
        """The sources that there are, by part, with the fields that all parts share."""
        sources = {"train": self.train, "dev": self.dev, "test": self.test}
        return {part: s.read_as(self) for part, s in sources.items() if s is not None}


def _check_method(value: str, info: ValidationInfo) -> str:
    validate(partial(parse, run_files=_may_run_files(info)), value)
    return value


def check_name(value: str) -> str:
    """The name of an inlay as it is. Raises ValueError for one that no inlay can have."""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", value):
        raise ValueError(f"a name is letters, digits, '_' and '-', not {value!r}")
    return value


def _check_mapping(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(  # noqa: TRY004  # pydantic reports no TypeError
            f"write its fields, such as {{kind: classify}}, not {value!r:.80}"
        )
    return value


def _check_task(value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    if "kind" not in value:
        raise ValueError("the kind of task is missing, as in {kind: generate}")
    validate(partial(_task_of, run_files=_may_run_files(info)), value)
    return value


Quantize = Literal["int8", "nf4", "torchao-int8", "torchao-int4"]
"""How the matrices of a frozen base may be kept."""

MethodText = Annotated[str, AfterValidator(_check_method)]
"""A spec, written as in Python."""

Name = Annotated[str, AfterValidator(check_name)]
"""The name of an inlay."""

TaskFields = Annotated[dict[str, Any], BeforeValidator(_check_mapping), AfterValidator(_check_task)]
"""The `kind` of a task and its fields."""


class Recipe(BaseModel):
    """What `run` does. Paths are relative to the current folder.

    base: a bundled name, a folder, or what `from_pretrained` takes.
    dtype: of its weights; None keeps that of the files.
    quantize: how the matrices of the frozen base are kept, "int8", "nf4", "torchao-int8" or
        "torchao-int4"; None for as they are.
    method: what to attach, written as in Python, with `file.py:Name` for one of your own; None for
        nothing, where the base itself is trained (`training.base_lr`).
    budget: how many parameters the method may have: a number, "300k", "0.1%" of the base's, or the
        bytes of a file, "2MB". Its rank, bottleneck or length is fitted; None keeps it.
    name: of the inlay.
    start: a trained inlay's file, whose pieces the training goes on from; `method` has to have
        its methods. None for new pieces.
    task: its `kind` and fields.
    data: `train`, `dev`, `test`.
    training: the fields of `Training`.
    out: the folder for the inlay, the log, the checkpoint and the results.
    seed: of everything that is random.
    ensemble: how many inlays are trained, with seeds that count up from `seed`, and then vote.
    folds: for cross-validation, how many times to train, each time tested on another share of
        `train` and trained on the rest.
    fold: which one of these alone, from 1; None for all.
    """

    model_config = STRICT

    base: str
    dtype: Literal["float32", "bfloat16"] | None = None
    quantize: Quantize | None = None
    method: MethodText | None = None
    budget: str | None = None
    name: Name = "default"
    start: str | None = None
    task: TaskFields
    data: Data
    training: Training = Training()
    out: str
    seed: Seed = 0
    ensemble: Annotated[int, Field(ge=1, le=100)] = 1
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    fold: PositiveInt | None = None

    @model_validator(mode="after")
    def _something_is_trained(self) -> Recipe:
        if self.method is None and self.training.base_lr is None:
            raise ValueError(
                "nothing would be trained; give a method, such as LoRA, or training.base_lr to "
                "train the base itself"
            )
        if self.quantize is not None and self.training.base_lr is not None:
            raise ValueError(
                "a quantised base stays frozen; leave quantize or training.base_lr out"
            )
        if self.method is None and self.start is not None:
            raise ValueError("start is an inlay to train on from; give its method too")
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
                f"there is no fold {self.fold}: the recipe has {self.folds or 0} folds"
            )
        return self

    @staticmethod
    def load(
        path: str | Path | None,
        overrides: Mapping[str, str] | None = None,
        *,
        run_files: bool = True,
    ) -> Recipe:
        """Read a recipe from a file.

        Args:
            path: the file; None for a recipe of overrides alone.
            overrides: dotted names -> texts, such as `training.lr` -> `1e-4`. A text that is valid
                JSON is read as JSON, any other is the value itself.
            run_files: whether `file.py:Name`, a method or task in a file of one's own, runs that
                file. False for a recipe that was found and that no user named.

        Raises RecipeError, one sentence that names the field, for whatever is wrong with it.
        """
        return read(Recipe, path, overrides, run_files=run_files)

    def dump(self) -> str:
        """The recipe as YAML, with every default; `load` reads it back."""
        return yaml.write(self.model_dump(mode="json"))

    def fitted(self, model: PreTrainedModel) -> Recipe:
        """The same recipe with the method in the size that its budget allows.

        Raises RecipeError for a budget without exactly one method, and what `fit_budget` raises.
        """
        if self.budget is None:
            return self
        methods = self.make_spec().methods
        if len(methods) != 1:
            raise RecipeError(
                f"a budget sizes one method, and here are {len(methods)}; give the sizes of a sum "
                "by hand, or leave the others out"
            )
        file, colon, _ = str(self.method).rpartition(".py:")
        sized = repr(fit_budget(model, methods[0], self.budget))
        method = f"{file}{colon}{sized}" if colon else sized
        return self.model_copy(update={"method": method, "budget": None})

    def make_spec(self) -> Spec:
        """What to attach; an empty sum for nothing."""
        return Sum(()) if self.method is None else parse(self.method)

    def with_task(self, task: Task) -> Recipe:
        """The same recipe with the fields that its task got from its method and its data.

        These are a template with virtual tokens, and the demonstrations that were drawn: who only
        evaluates with the recipe has neither the method nor the training data.
        """
        before, after = self.make_task().describe(), task.describe()
        changed = {
            name: after[name]
            for name in FIELDS_FROM_DATA
            if name in after and before[name] != after[name]
        }
        return self.model_copy(update={"task": {**self.task, **changed}})

    def make_task(self) -> Task:
        """The task, not bound to a model yet."""
        return _task_of(self.task)


def read(
    kind: type[Kind],
    path: str | Path | None,
    overrides: Mapping[str, str] | None,
    *,
    run_files: bool = True,
) -> Kind:
    """Read a recipe of this class; the rest is as in `Recipe.load`."""
    values: Any = {}
    if path is not None:
        values = yaml.read_file(path, "the recipe")
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of fields to values")
    for name, value in (overrides or {}).items():
        _set(values, name, value)
    try:
        return kind.model_validate(values, context={RUN_FILES: run_files})
    except ValidationError as error:
        subject = "the recipe" if path is None else f"the recipe {path}"
        raise RecipeError(explain(error, kind, subject)) from None


def output_folder(out: str) -> Path:
    """The folder that a run writes into. Raises RecipeError where a file has that name."""
    if Path(out).exists() and not Path(out).is_dir():
        raise RecipeError(f"out is a folder to write into, and {out} is a file; name another")
    return Path(out)


def _task_of(fields: Mapping[str, Any], *, run_files: bool = True) -> Task:
    options = {name: value for name, value in fields.items() if name != "kind"}
    if "task" in options:
        raise RecipeError("there is no field 'task'; did you mean 'kind'?")
    kind = fields["kind"]
    own = own_files.split_name(kind) if isinstance(kind, str) else None
    if own is not None:
        path, name = own
        if not run_files:
            own_files.require_run(path, TaskError)
        kind = own_files.class_in(path, name, Task, TaskError).name
    return from_spec({"task": kind, **options})


def _may_run_files(info: ValidationInfo) -> bool:
    """Whether the recipe that is checked comes from a user, by a name or as an object in Python."""
    return info.context is None or bool(info.context[RUN_FILES])


def validate(construct: Callable[[Any], object], value: Any) -> None:
    """Turn an InlayError of `construct(value)` into an error that pydantic gives a field's path."""
    try:
        construct(value)
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
