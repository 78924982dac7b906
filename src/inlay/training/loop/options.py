"""Options: every number and choice of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from inlay.errors import TrainingError, nearest

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Whole = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]


class Training(BaseModel):
    """How pieces are trained. Give `epochs`, `steps`, `minutes` or several: the first one ends it.

    lr: the highest learning rate, for all methods; None for each method's own (`Method.rate`).
    base_lr: the highest rate of all of the base's own numbers, which then learn too; None leaves
        the base frozen. The whole base is then what is saved.
    schedule: how the rate falls to 0 at the end, or "constant". warmup: the share of the run in
        which it rises from 0.
    epochs: passes over the data, 3 where no end is given. steps: of the optimiser. minutes: of
        wall-clock time, evaluations included.
    batch_size: rows a batch, 16 where no size is given. tokens: instead, the most tokens a batch
        may hold, padding included (a longer row stands alone).
    accumulate: batches a step: the same as one batch as large as all of them.
    clip: the largest norm of the gradient; None for no limit.
    weight_decay, betas: of AdamW.
    dropout: whether the dropout of the base is on. Dropout of the pieces always is.
    eval_every: steps between evaluations on `dev`; None for one after every epoch. One comes at
        the end in any case.
    patience: stop after so many evaluations without a new best one.
    keep_best: end with the pieces of the best evaluation, not with the last ones.
    checkpoint_every: steps between checkpoints, 100 where a folder is given.
    trackers: names of trackers that accelerate knows, such as "tensorboard".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    lr: Positive | None = None
    base_lr: Positive | None = None
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup: Share = 0.06
    epochs: Positive | None = None
    steps: Whole | None = None
    minutes: Positive | None = None
    batch_size: Whole | None = None
    tokens: Whole | None = None
    accumulate: Whole = 1
    clip: Positive | None = 1.0
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    betas: tuple[Share, Share] = (0.9, 0.999)
    dropout: bool = True
    eval_every: Whole | None = None
    patience: Whole | None = None
    keep_best: bool = True
    checkpoint_every: Whole | None = None
    trackers: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_size(self) -> Training:
        if self.batch_size is not None and self.tokens is not None:
            raise ValueError("give batch_size or tokens, not both")
        return self

    @property
    def passes(self) -> float | None:
        """How many epochs at most."""
        endless = self.epochs is None and self.steps is None and self.minutes is None
        return 3.0 if endless else self.epochs

    @property
    def rows(self) -> int | None:
        """Rows a batch, or None where `tokens` decides."""
        return 16 if self.batch_size is None and self.tokens is None else self.batch_size


class Options(Training):
    """`Training`, and the seed of everything that is drawn: order of the rows, dropout."""

    seed: Seed = 0


def options(given: Mapping[str, Any]) -> Options:
    """Options by name. Raises TrainingError with the nearest right name."""
    try:
        return Options(**given)
    except ValidationError as error:
        raise TrainingError(explain(error, Options)) from None


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """The first problem in one sentence: path of the field, cause, and the nearest right name.

    A field that does not exist comes before one that is missing: it is often that one, misspelt.
    """
    problems = error.errors()
    first = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
    path, inner = _path(first["loc"], model)
    at = ".".join(path)
    match first["type"]:
        case "extra_forbidden":
            name = str(first["loc"][-1])
            at = ".".join([*path, name])
            return f"{at}: there is no such field{nearest(name, inner.model_fields)}"
        case "missing" if isinstance(first["loc"][-1], int):
            return f"{at} has too few values: {first['input']!r:.80}"
        case "missing":
            return f"{at} is missing"
        case "tuple_type" | "list_type":
            return f"{at}: write a list, in brackets, not {first['input']!r:.80}"
        case "model_type" | "model_attributes_type":
            one = next(iter(inner.model_fields))
            return f"{at}: write its fields, such as {{{one}: …}}, not {first['input']!r:.80}"
        case "value_error":
            reason = str(first["ctx"]["error"])
            return f"{at}: {reason}" if at else reason
    message = first["msg"]
    return f"{at}: {message[:1].lower()}{message[1:]}, not {first['input']!r:.80}"


def _path(
    steps: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[list[str], type[BaseModel]]:
    """The names of the fields that lead to a problem, and the model that the last one is in.

    What pydantic adds behind them (which branch of a union, which entry) no user has written.
    """
    path: list[str] = []
    for step in map(str, steps):
        if step not in model.model_fields:
            break
        path.append(step)
        kind = model.model_fields[step].annotation
        inner = [k for k in (kind, *get_args(kind)) if isinstance(k, type)]
        inner = [k for k in inner if issubclass(k, BaseModel)]
        if not inner:
            break
        model = inner[0]
    return path, model
