"""Task, what is taught: examples -> rows -> a batch -> a loss, and predictions -> a score."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor
from torch.nn.functional import one_hot
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inlay.architectures.chart import Chart
from inlay.architectures.resolve import resolve
from inlay.data.dataset import Example, Value
from inlay.data.raw import kind_of
from inlay.errors import DataError, TaskError, nearest
from inlay.handle import attached
from inlay.heads import head_of
from inlay.methods.head import Head

Batch = dict[str, Tensor]

Prediction = Any
"""What a task says to an example: a text, a label or several, a number, or a list of tags."""

TOGETHER = 1000
"""How many examples the tokenizer gets at once: all its threads have work, and one sees it go."""

UNLIMITED = 10**20
"""From here on a tokenizer's `model_max_length` is a placeholder for none."""

TASKS: dict[str, type[Task]] = {}
"""Every task that a recipe can name. Filled by subclassing."""


@dataclass(frozen=True, slots=True)
class Row:
    """One encoded example, or a part of one.

    input_ids: the tokens of the input, without padding.
    labels: the tokens of the target with the end token last, the numbers of its labels, the
        scores of all labels, or its value; None where the example has no target.
    index: the example's place in its data set. where: the example's own `where`.
    token_type_ids: which of two texts a token belongs to, where the model wants to know.
    cost: how many tokens the row puts through the model.
    """

    input_ids: list[int]
    labels: list[Any] | None
    index: int
    where: str
    cost: int
    token_type_ids: list[int] | None = None

    def __len__(self) -> int:
        return self.cost


@dataclass(frozen=True)
class Bound:
    """What `bind` found out.

    limit: the longest row, in tokens; None where nothing limits it. pad: the id that fills rows.
    first: the id of the first virtual token.
    """

    chart: Chart
    tokenizer: PreTrainedTokenizerBase
    limit: int | None
    pad: int
    first: int


@dataclass(kw_only=True)
class Task(ABC):
    """What is taught, as data (the fields, which `describe` writes down) and as arithmetic.

    A task is made, then bound to a model and its tokenizer, then used. It never changes either. An
    example is one row, or several where a task says so; then its `whole` makes one prediction of
    what is said to each.

    truncate: shorten the free text of rows that are too long, from its "end" (or True), or from
        its "start". Without it such a row is refused.
    max_length: a limit below that of the model, in tokens, for a whole row; in an
        encoder–decoder for source and target each. A model without a limit of its own, such as a
        T5, otherwise has that of its tokenizer.
    """

    name: ClassVar[str]

    metric: str
    truncate: bool | Literal["end", "start"] = False
    max_length: int | None = None

    def __init_subclass__(cls, listed: bool = True) -> None:
        if listed:
            TASKS[cls.name] = cls

    def __post_init__(self) -> None:
        for name, adapter in _adapters(type(self)).items():
            value = getattr(self, name)
            try:
                adapter.validate_python(value, strict=True)
            except ValidationError as error:
                reason = error.errors()[0]["msg"]
                raise TaskError(f"{self.name}: {name}={value!r} is impossible: {reason}") from None
        if self.max_length is not None and self.max_length < 1:
            raise TaskError(f"{self.name}: max_length={self.max_length} leaves no tokens")
        self._bound: Bound | None = None

    # --------------------------------------------------------------- as data

    def describe(self) -> dict[str, Any]:
        """The task as JSON: `Task.from_spec(task.describe()) == task`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {name: list(v) if isinstance(v, tuple) else v for name, v in values.items()}
        return {"task": self.name, **plain}

    @staticmethod
    def from_spec(spec: Mapping[str, Any]) -> Task:
        """The task that `describe` wrote down; fields left out have their defaults.

        Raises TaskError: an unknown task or field, or an impossible value.
        """
        fields = dict(spec)
        name = fields.pop("task", None)
        if not isinstance(name, str) or name not in TASKS:
            raise TaskError(f"there is no task {name!r}{nearest(str(name), TASKS)}")
        known = {field.name for field in dataclasses.fields(TASKS[name])}
        for field in fields:
            if field not in known:
                raise TaskError(f"task {name!r} has no field {field!r}{nearest(field, known)}")
        return TASKS[name](**fields)

    # ------------------------------------------------------------- its model

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Get ready for this model and tokenizer.

        Raises TaskError where they cannot do the task.
        """
        chart = resolve(model)
        if chart.kind == "vision":
            raise TaskError(f"{self.name} works on text, and {type(model).__name__} reads images")
        weight: Any = model.get_input_embeddings().weight
        if len(tokenizer) > len(weight):
            raise TaskError(
                f"the tokenizer knows {len(tokenizer)} tokens and the model {len(weight)}; "
                "load both from the same place"
            )
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if pad is None:
            raise TaskError("the tokenizer has no pad token; set tokenizer.pad_token")
        if self.truncate and not tokenizer.is_fast:
            raise TaskError(f"truncate needs a fast tokenizer, not {type(tokenizer).__name__}")
        own = chart.max_length(model)
        if own is None and self.max_length is None and tokenizer.model_max_length < UNLIMITED:
            own = tokenizer.model_max_length
        limits = [own, self.max_length]
        limit = min((limit for limit in limits if limit is not None), default=None)
        bound = Bound(chart, tokenizer, limit, pad, len(weight))
        self.check(bound, model)
        self._bound = bound

    @abstractmethod
    def check(self, bound: Bound, model: PreTrainedModel) -> None:
        """Raise TaskError unless the task can be done there; keep what it needs of it."""

    @property
    def bound(self) -> Bound:
        """What `bind` found out. Raises TaskError before that."""
        if self._bound is None:
            raise TaskError(f"{self.name}: call bind(model, tokenizer) first")
        return self._bound

    def chart(self, model: PreTrainedModel) -> Chart:
        """The chart of this very model: the bound one, or a copy of it."""
        chart = self.bound.chart
        return chart if chart.base is model else resolve(model)

    @property
    def virtual(self) -> int:
        """How many virtual tokens its template has, for a method such as `PTuning` to fill."""
        return 0

    def place(self, virtual: int, front: int, examples: Sequence[Example]) -> None:
        """Write so many virtual tokens into a template without any, `front` of them in front.

        Raises TaskError where the task has no template. To be called before `bind`.
        """
        raise TaskError(f"{self.name} has no template for {virtual} virtual tokens")

    def head(self) -> Head | None:
        """The trained head that the task reads, or None. Raises TaskError before `prepare`."""
        return None

    def adopt(self, labels: tuple[str, ...]) -> None:  # noqa: B027 - most have nothing to take
        """Take the labels of a trained head, where the task reads one and knows none itself."""

    @property
    @abstractmethod
    def needs(self) -> tuple[str, ...]:
        """The fields that a training example must have, for `load(..., need=task.needs)`."""

    @property
    def gold(self) -> tuple[str, ...] | None:
        """The fields of an example that `score` and `confusion` read; None for all of them.

        Of examples without end nothing else has to stay in memory.
        """
        return None

    def prepare(self, examples: Iterable[Example]) -> None:  # noqa: B027 - most need nothing
        """Learn from the training examples what encoding needs to know, such as the label set."""

    def stratum(self, example: Example) -> str | None:
        """What shares of the data should have alike, such as its label; None for nothing."""
        return None

    # -------------------------------------------------------- its arithmetic

    def encode(self, example: Example, index: int) -> Row:
        """One example as a row. Raises DataError, which names the example.

        Raises TaskError where the example is several rows.
        """
        rows = self._encode([example], index)
        if len(rows) > 1:
            raise TaskError(f"{example.where}: it is {len(rows)} rows; call encode_all([example])")
        return rows[0]

    def encode_all(
        self, examples: Sequence[Example], report: Callable[[int], None] | None = None
    ) -> list[Row]:
        """All examples as rows, in order, indexed from 0, with many to a call of the tokenizer.

        report: is told, now and then, how many more examples are done.
        """
        rows: list[Row] = []
        for first in range(0, len(examples), TOGETHER):
            some = examples[first : first + TOGETHER]
            rows += self._encode(some, first)
            if report is not None:
                report(len(some))
        return rows

    @abstractmethod
    def _encode(self, examples: Sequence[Example], first: int) -> list[Row]: ...

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> Batch:
        """Rows, padded on the right, as tensors on the CPU: for `loss` and `predict` alike."""

    @abstractmethod
    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """The loss summed over what counts (a scalar, fp32), and how many count."""

    @abstractmethod
    def predict(self, model: PreTrainedModel, batch: Batch) -> list[Any]:
        """What is said to each row, without gradients. The model should be in evaluation mode."""

    def whole(
        self, rows: Sequence[Row], said: Sequence[Any], examples: Sequence[Example]
    ) -> list[Prediction]:
        """One prediction an example, from what `predict` said to all rows of the examples."""
        return list(said)

    def ballot(
        self, model: PreTrainedModel, batch: Batch, members: int
    ) -> tuple[list[Any], list[Any]]:
        """What every row says, and what wins where each example stands there `members` times.

        The most frequent prediction wins, the first of several that are equally frequent.
        """
        said = self.predict(model, batch)
        groups = [said[at : at + members] for at in range(0, len(said), members)]
        return said, [max(group, key=group.count) for group in groups]

    @abstractmethod
    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """Metrics by name, `metric` among them; higher is better."""

    def confusion(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, dict[str, int]]:
        """How often each gold label was predicted as each label: gold -> predicted -> count.

        Empty where a prediction is not one of a set of labels.
        """
        return {}


@cache
def _adapters(task: type[Task]) -> dict[str, TypeAdapter]:
    hints = get_type_hints(task, include_extras=True)
    loose = ConfigDict(arbitrary_types_allowed=True)
    names = [field.name for field in dataclasses.fields(task)]
    return {name: TypeAdapter(hints[name], config=loose) for name in names}


def field_of(example: Example, name: str) -> str | int | float:
    """A field that the task needs. Raises DataError, which names the example, where it lacks."""
    value = _value_of(example, name)
    if isinstance(value, list):
        raise DataError(f"{example.where}: field {name!r} is a list, not text or a number")
    return value


def list_of(example: Example, name: str) -> list[Any]:
    """A field that must be a list. Raises DataError, which names the example, where it is not."""
    value = _value_of(example, name)
    if not isinstance(value, list):
        raise DataError(
            f"{example.where}: field {name!r} is {kind_of(value)}, not a list; csv files cannot "
            "hold lists, jsonl, json and parquet files can"
        )
    return value


def texts_of(example: Example, name: str) -> list[str]:
    """A field that is a text or number, or a list of texts, as one or more texts.

    Raises DataError, which names the example, where it is none, an empty list or has other items.
    """
    value = _value_of(example, name)
    if not isinstance(value, list):
        return [str(value)]
    if not value or not all(isinstance(one, str) for one in value):
        raise DataError(
            f"{example.where}: {name} is a list of at least one text, not {value!r:.80}"
        )
    return value


def _value_of(example: Example, name: str) -> Value:
    try:
        return example.fields[name]
    except KeyError:
        known = nearest(name, example.fields)
        raise DataError(f"{example.where}: there is no field {name!r}{known}") from None


def padded(sequences: Sequence[Sequence[int]], fill: int) -> Tensor:
    """Sequences as one tensor `[B, longest]`, filled up on the right."""
    width = max(map(len, sequences))
    return torch.tensor([[*ids, *[fill] * (width - len(ids))] for ids in sequences])


def mask_of(sequences: Sequence[Sequence[int]]) -> Tensor:
    """1 where `padded` put a token, 0 where it filled up, `[B, longest]`."""
    lengths = torch.tensor([len(ids) for ids in sequences])
    return (torch.arange(int(lengths.max())) < lengths.unsqueeze(1)).long()


def labelled(rows: Sequence[Row]) -> bool:
    """Whether these rows have labels: all, or none. Raises DataError on a mixture."""
    without = [row for row in rows if row.labels is None]
    if without and len(without) < len(rows):
        raise DataError(f"{without[0].where}: it has no label or target, and others here have")
    return not without


def need_labels(batch: Batch, name: str) -> Tensor:
    """The labels of a batch. Raises DataError where its rows had none."""
    if name not in batch:
        raise DataError("there is nothing to learn from rows without a label or target")
    return batch[name]


def majority(logits: Tensor, members: int) -> tuple[Tensor, Tensor]:
    """What every row says, `[B, …]`, and what wins where `members` rows belong together.

    logits `[B, …, C]`. Of equally many votes the highest mean logit wins: `[B / members, …]`.
    """
    said = logits.argmax(-1)
    votes = one_hot(said, logits.shape[-1]).unflatten(0, (-1, members)).sum(1)
    means = logits.unflatten(0, (-1, members)).mean(1)
    tied = votes == votes.amax(-1, keepdim=True)
    return said, means.masked_fill(~tied, -torch.inf).argmax(-1)


def need_head(model: PreTrainedModel, wanted: Head) -> None:
    """Raise TaskError unless an attached inlay has a head for the same labels in their order.

    It must classify each token where `wanted` does; otherwise any pooling will do.
    """
    heads = [head for name in attached(model) if (head := head_of(model, name)) is not None]
    each = wanted.pool == "each"
    if not any(tuple(h.labels) == wanted.labels and h.each == each for h in heads):
        told = (f"{list(h.labels)}{' for each token' if h.each else ''}" for h in heads)
        found = f"; its heads: {', '.join(told)}" if heads else ""
        raise TaskError(
            f"no attached inlay has a trained head for this task; add {wanted!r} to it{found}"
        )


def need_language_head(model: PreTrainedModel, what: str) -> None:
    """Raise TaskError unless the model has a language-model head, for `what` needs one."""
    if model.get_output_embeddings() is None:
        raise TaskError(
            f"{what} needs a language-model head, and {type(model).__name__} has none; load it "
            "with AutoModelForCausalLM, AutoModelForSeq2SeqLM or AutoModelForMaskedLM"
        )
