"""Options: every setting of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from inlay.errors import TrainingError, nearest, together

PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


LONG = 50
"""From how many steps on a run is worth a step that measures what it will take."""


class Training(BaseModel):
    """How pieces are trained. Give `epochs`, `steps`, `minutes` or several: the first one ends it.

    lr: the highest learning rate, for all methods; None for each method's own.
    base_lr: the highest learning rate of the base's own parameters, which are then trained too;
        None leaves the base frozen. A trained base is saved whole.
    schedule: how the learning rate falls to 0 at the end, or "constant".
    warmup: the share of the run in which the learning rate rises from 0.
    epochs: passes over the data, 3 where no end is given.
    steps: steps of the optimiser.
    minutes: of wall-clock time, evaluations included.
    batch_size: rows in a batch, 16 where no size is given.
    tokens: instead, the most tokens in a batch, padding included (a longer row is alone).
    accumulate: batches in a step: the same as one batch as large as all of them.
    clip: the largest norm of the gradient; None for no limit.
    weight_decay, betas: of AdamW.
    dropout: whether the dropout of the base is on. Dropout of the pieces always is.
    eval_every: steps between evaluations on `dev`; None for one after every epoch. One comes at
        the end in any case.
    patience: stop after so many evaluations without a new best one.
    keep_best: end with the pieces of the best evaluation, not with the last ones.
    checkpoint_every: steps between checkpoints, 100 where a folder is given.
    reuse: where the activations of the blocks below every piece are kept, which are the same in
        every epoch: in "memory", or on "disk" in the run's folder while it lasts. "auto" does so
        where it pays and there is room, on disk if there is a folder; "never" computes them anew.
        The numbers are the same but for rounding.
    trackers: names of trackers that accelerate knows, such as "tensorboard".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: PositiveFloat | None = None
    base_lr: PositiveFloat | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Fraction = 0.06
    epochs: PositiveFloat | None = None
    steps: PositiveInt | None = None
    minutes: PositiveFloat | None = None
    batch_size: PositiveInt | None = None
    tokens: PositiveInt | None = None
    accumulate: PositiveInt = 1
    clip: PositiveFloat | None = 1.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    dropout: bool = True
    eval_every: PositiveInt | None = None
    patience: PositiveInt | None = None
    keep_best: bool = True
    checkpoint_every: PositiveInt | None = None
    reuse: Literal["auto", "memory", "disk", "never"] = "auto"
    trackers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_size(self) -> Training:
        if self.batch_size is not None and self.tokens is not None:
            raise ValueError("give batch_size or tokens, not both")
        return self

    @property
    def max_epochs(self) -> float | None:
        """How many epochs at most; None where only steps or minutes end the run."""
        endless = self.epochs is None and self.steps is None and self.minutes is None
        return 3.0 if endless else self.epochs

    @property
    def rows(self) -> int | None:
        """Rows in a batch, or None where `tokens` decides."""
        return 16 if self.batch_size is None and self.tokens is None else self.batch_size

    @property
    def is_long(self) -> bool:
        """Whether a run is worth a step that measures what it will take."""
        return (self.steps or LONG) >= LONG and (self.minutes or 1) >= 1


class Options(Training):
    """`Training`, and the seed of all that is random: the order of the rows, dropout."""

    seed: Seed = 0


def make_options(fields: Mapping[str, Any]) -> Options:
    """Options from fields by name. Raises TrainingError, with the nearest existing name."""
    try:
        return Options(**fields)
    except ValidationError as error:
        raise TrainingError(explain(error, Options)) from None


def explain(error: ValidationError, model: type[BaseModel], subject: str = "training") -> str:
    """All problems: of each the path of the field, the cause, and the nearest existing name.

    Fields that do not exist come before those that are missing, which are left out where one of
    the others could be meant: it is often that field, misspelt.

    subject: what has the problems, for the message.
    """
    problems = error.errors()
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    others = [p for p in problems if p["type"] != "extra_forbidden"]
    names = [str(p["loc"][-1]) for p in unknown]
    others = [
        p
        for p in others
        if p["type"] != "missing" or not get_close_matches(str(p["loc"][-1]), names, 1)
    ]
    first: dict[str, str] = {}  # of a place; a union has a problem for each of its types
    for problem in (*unknown, *others):
        path, _ = _path(problem["loc"], model)
        last = [str(problem["loc"][-1])] if problem["type"] == "extra_forbidden" else []
        first.setdefault(".".join([*path, *last]), _explain(problem, model))
    return together(first.values(), subject)


def _explain(problem: ErrorDetails, model: type[BaseModel]) -> str:
    """A problem in one sentence."""
    path, inner = _path(problem["loc"], model)
    at = ".".join(path)
    match problem["type"]:
        case "extra_forbidden":
            name = str(problem["loc"][-1])
            at = ".".join([*path, name])
            return f"{at}: there is no such field{nearest(name, inner.model_fields)}"
        case "missing" if isinstance(problem["loc"][-1], int):
            return f"{at} has too few values: {problem['input']!r:.80}"
        case "missing":
            return f"{at} is missing"
        case "dict_type":
            return (
                f"{at}: write a mapping, such as {{text: review}}, not {problem['input']!r:.80}; "
                f"on the command line also --set {at}.text=review"
            )
        case "tuple_type" | "list_type":
            return f"{at}: write a list, in brackets, not {problem['input']!r:.80}"
        case "model_type" | "model_attributes_type":
            fields = inner.model_fields
            required = [name for name, field in fields.items() if field.is_required()]
            name = (required or list(fields))[0]
            return f"{at}: write its fields, such as {{{name}: …}}, not {problem['input']!r:.80}"
        case "value_error":
            reason = str(problem["ctx"]["error"])
            return f"{at}: {reason}" if at else reason
    message = problem["msg"]
    return f"{at}: {message[:1].lower()}{message[1:]}, not {problem['input']!r:.80}"


def _path(
    steps: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[list[str], type[BaseModel]]:
    """The names of the fields that lead to a problem, and the model that the last one is in.

    What pydantic appends to them (the branch of a union, the entry of a list) is left out: no user
    has written it.
    """
    path: list[str] = []
    rest = map(str, steps)
    for step in rest:
        if step not in model.model_fields:
            break
        path.append(step)
        annotation = model.model_fields[step].annotation
        if get_origin(annotation) is dict:
            key = next(rest, None)
            if key is None:
                break
            path.append(key)
            annotation = get_args(annotation)[1]
        types = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type)]
        models = [t for t in types if issubclass(t, BaseModel)]
        if not models:
            break
        model = models[0]
    return path, model
