"""Task, what is taught: examples -> rows -> a batch -> outputs -> a loss, and their scores.

rows = task.encode_all(examples)
batch = task.collate(rows).to(model.device)
outputs = task.outputs(model, batch)            # one run of the model
loss, count = task.loss(outputs, batch)         # summed, and over how many
task.score(task.merge_windows(rows, task.predict(model, batch), examples), examples)
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, Literal, Self, TypeVar, get_type_hints

from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inlay.architectures.chart import Chart
from inlay.architectures.resolve import resolve
from inlay.core.arguments import check_arguments
from inlay.data.dataset import Dataset, Example, Value, bad_rows
from inlay.errors import DataError, TaskError, nearest, together
from inlay.methods.head import Head
from inlay.tasks.batch import Batch
from inlay.tasks.options import (
    ImpossibleValue,
    check_fields,
    option_classes,
    option_from,
    plain,
)
from inlay.tasks.outputs import Outputs
from inlay.tasks.records import PREDICTION, Column, Mistake, Record
from inlay.tasks.rows import Row
from inlay.tasks.text_alone import require_text
from inlay.tasks.usable import ENCODED_TOGETHER, encode_usable, with_usable
from inlay.tasks.voting import most_frequent

Prediction = Any
"""What a task predicts for an example: a text, a label or several, a number, a list of tags."""

Truncation = bool | Literal["end", "start"]
"""From which side a text that is too long is shortened, if at all; True is "end"."""

B = TypeVar("B", bound=Batch)
O = TypeVar("O", bound=Outputs)  # noqa: E741

NO_LIMIT = 10**20
"""From here on a tokenizer's `model_max_length` is a placeholder for none."""

TASKS: dict[str, type[Task]] = {}
"""Every task that a recipe can name. Filled by subclassing."""


@dataclass(frozen=True)
class Bound:
    """What a task knows of the model and the tokenizer it is bound to.

    max_length: the longest row, in tokens; None where nothing limits it.
    pad_id: the token that pads rows.
    first_virtual_id: the id of the first virtual token; the next ones follow it.
    """

    chart: Chart
    tokenizer: PreTrainedTokenizerBase
    max_length: int | None
    pad_id: int
    first_virtual_id: int


@dataclass(kw_only=True)
class Task(ABC, Generic[B, O]):
    """What is taught: as data (the fields, which `describe` writes as JSON) and as arithmetic.

    A task is created, then bound to a model and its tokenizer, then used. It changes neither of
    them. It is generic in its batch and in the outputs of its runs. An example is one row, or
    several windows where the task cuts it; `merge_windows` then makes one prediction of theirs.

    metric: the primary metric.
    truncate: shorten the free text of rows that are too long, from its "end" (or True), or from
        its "start". Without it such a row is refused.
    max_length: a limit below that of the model, in tokens, for a whole row; in an
        encoder–decoder for source and target each. A model without a limit of its own, such as a
        T5, otherwise has that of its tokenizer.
    """

    name: ClassVar[str]
    calibrates: ClassVar[bool] = False
    """Whether it predicts probabilities, which a temperature can calibrate (`class_scores`)."""
    moved_fields: ClassVar[Mapping[str, str]] = {}
    """Fields that recipes may still have, and where they are now, for the message."""

    metric: str
    truncate: Truncation = False
    max_length: int | None = None

    def __init_subclass__(cls, listed: bool = True) -> None:
        super().__init_subclass__()
        if not listed:
            return
        known = TASKS.get(cls.name)
        if known is not None and known.__module__ != cls.__module__:
            raise TaskError(
                f"there is a task {cls.name!r} already, in {known.__module__}; give the one in "
                f"{cls.__module__} another name"
            )
        TASKS[cls.name] = cls

    def __new__(cls, *positional: Any, **named: Any) -> Self:
        """Refuse an unknown field with the name of the nearest one."""
        check_arguments(cls, positional, named, TaskError)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        check_fields(self, self.name)
        if self.max_length is not None and self.max_length < 1:
            raise TaskError(f"{self.name}: max_length={self.max_length} leaves no tokens")
        self._bound: Bound | None = None

    # ------------------------------------------------------------------------------- as data

    def describe(self) -> dict[str, Any]:
        """The task as JSON: `Task.from_spec(task.describe()) == task`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"task": self.name, **{name: plain(value) for name, value in fields.items()}}

    @staticmethod
    def from_spec(spec: Mapping[str, Any]) -> Task:
        """The task that `describe` wrote; fields left out have their defaults.

        Raises TaskError for an unknown task or field, or an impossible value.
        """
        fields = dict(spec)
        name = fields.pop("task", None)
        if not isinstance(name, str) or name not in TASKS:
            raise TaskError(f"there is no task {name!r}{nearest(str(name), TASKS)}")
        task = TASKS[name]
        known = {field.name for field in dataclasses.fields(task)}
        faults = []
        for field in fields:
            if field in task.moved_fields:
                faults.append(f"{name}: {field} is now written {task.moved_fields[field]}")
            elif field not in known:
                faults.append(f"task {name!r} has no field {field!r}{nearest(field, known)}")
        fields = {field: value for field, value in fields.items() if field in known}
        hints = get_type_hints(task)
        for field, value in list(fields.items()):
            if options := option_classes(hints[field]):
                try:
                    fields[field] = option_from(value, options, f"{name}: {field}")
                except TaskError as error:
                    faults.append(str(error))
                    del fields[field]
        try:
            complete = task(**fields)
        except ImpossibleValue as error:
            faults.append(str(error))
        except TaskError:  # it may only follow from a field that is left out
            if not faults:
                raise
        if faults:
            raise TaskError(together(faults, f"task {name!r}"))
        return complete

    # ---------------------------------------------------------------------------- its model

    def bind(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Get ready for this model and tokenizer.

        Raises TaskError where they cannot do the task.
        """
        chart = resolve(model)
        require_text(model, chart, self.name)
        vocabulary = _vocabulary(model)
        if len(tokenizer) > vocabulary:
            raise TaskError(
                f"the tokenizer has {len(tokenizer)} tokens and the model {vocabulary}; "
                "load both from the same place"
            )
        eos, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        pad = eos if pad is None else pad
        if pad is None:
            raise TaskError("the tokenizer has no pad token; set tokenizer.pad_token")
        if self.truncate and not tokenizer.is_fast:
            raise TaskError(f"truncate needs a fast tokenizer, not {type(tokenizer).__name__}")
        limit = chart.max_length(model)
        if limit is None and self.max_length is None and tokenizer.model_max_length < NO_LIMIT:
            limit = tokenizer.model_max_length
        limits = [limit for limit in (limit, self.max_length) if limit is not None]
        bound = Bound(chart, tokenizer, min(limits, default=None), pad, vocabulary)
        self.on_bind(bound, model)
        self._bound = bound

    @abstractmethod
    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        """Keep what the task needs of the model and tokenizer.

        Raises TaskError where they cannot do the task.
        """

    @property
    def bound(self) -> Bound:
        """What the task is bound to.

        Raises TaskError before `bind`, and where the model's embedding table has been resized
        since: the ids of virtual tokens, which begin after it, would mean other tokens.
        """
        bound = self._bound
        if bound is None:
            raise TaskError(f"{self.name}: call bind(model, tokenizer) first")
        vocabulary = _vocabulary(bound.chart.base)
        if vocabulary != bound.first_virtual_id:
            raise TaskError(
                f"{self.name}: the model had {bound.first_virtual_id} tokens when the task was "
                f"bound to it, and has {vocabulary} now; call bind(model, tokenizer) again, and "
                "encode the rows anew"
            )
        return bound

    def chart(self, model: PreTrainedModel) -> Chart:
        """The chart of this model, which is the bound one or a copy of it."""
        chart = self.bound.chart
        return chart if chart.base is model else resolve(model)

    @property
    def virtual_tokens(self) -> int:
        """How many virtual tokens the template has, for a method such as `PTuning` to fill."""
        return 0

    def place_virtual_tokens(self, count: int, before: int, examples: Sequence[Example]) -> None:
        """Write virtual tokens into a template that has none. To be called before `bind`.

        Args:
            count: how many.
            before: how many of them come before the text.
            examples: some of the data, for the default template where none is given.

        Raises TaskError where the task has no template.
        """
        raise TaskError(f"{self.name} has no template for {count} virtual tokens")

    def head(self) -> Head | None:
        """The trained head that the task reads, or None.

        Raises TaskError while its labels are not known.
        """
        return None

    def set_labels(self, labels: tuple[str, ...]) -> None:
        """Take the labels of a trained head, where the task reads one and has no labels yet."""

    @property
    @abstractmethod
    def required_fields(self) -> tuple[str, ...]:
        """The fields that a training example must have, for `load(..., need=…)`."""

    @property
    def gold_fields(self) -> tuple[str, ...] | None:
        """The fields of an example that `score` and `confusion` read; None for all.

        In an evaluation nothing else of an example is kept in memory.
        """
        return None

    @property
    def target_fields(self) -> tuple[str, ...]:
        """The fields that hold what is to be predicted; rows to predict need none of them."""
        return self.gold_fields or ()

    @property
    def input_fields(self) -> tuple[str, ...]:
        """The fields that a row must have to be predicted."""
        return tuple(name for name in self.required_fields if name not in self.target_fields)

    def inputs_of_text(self, text: str) -> dict[str, Value]:
        """A bare text as the fields of a row to predict.

        Raises TaskError where the task reads several fields.
        """
        if len(self.input_fields) != 1:
            fields = ", ".join(map(repr, self.input_fields))
            raise TaskError(
                f"{self.name} reads {fields} of every row, which one text cannot give; give rows "
                "with these fields"
            )
        return {self.input_fields[0]: text}

    def complete_inputs(self, fields: Mapping[str, Value]) -> Mapping[str, Value]:
        """The fields of a row to predict, with those that can be made of its others."""
        return fields

    def prepare(self, examples: Iterable[Example]) -> None:
        """Learn from the training examples what encoding needs, such as the labels."""

    def check(self, example: Example) -> None:
        """Check an example as far as that needs no tokenizer, for `load(..., check=…)`.

        A field that it does not have is not looked at.

        Raises DataError, which names the example, where it cannot be used.
        """

    def stratum(self, example: Example) -> str | None:
        """What folds of the data should have equal shares of, such as its label; None for none."""
        return None

    # ------------------------------------------------------------------------ its arithmetic

    def encode(self, example: Example, index: int) -> Row:
        """One example as one row.

        Raises DataError, which names the example, where it cannot be used, and TaskError where it
        is several rows.
        """
        rows = self.encode_some([example], index)
        if len(rows) > 1:
            raise TaskError(f"{example.where}: it is {len(rows)} rows; call encode_all([example])")
        return rows[0]

    def encode_all(
        self, examples: Sequence[Example], report: Callable[[int], None] | None = None
    ) -> list[Row]:
        """All examples as rows, in order, indexed from 0.

        report: called now and then with how many more examples are encoded.

        Raises DataError, which names the first example that cannot be used, and says how many
        more there are; `usable` leaves them out.
        """
        rows: list[Row] = []
        for start in range(0, len(examples), ENCODED_TOGETHER):
            part = examples[start : start + ENCODED_TOGETHER]
            try:
                rows += self.encode_some(part, start)
            except DataError as error:
                bad = encode_usable(self.encode_some, examples[start:], start).bad
                raise bad_rows(bad, "task.usable(data)") if bad else error from None
            if report is not None:
                report(len(part))
        return rows

    def usable(self, data: Dataset) -> Dataset:
        """The data set without the examples that cannot be encoded, which it lists as skipped.

        Raises DataError where none is left.
        """
        usable = encode_usable(self.encode_some, data.examples)
        return with_usable(data, usable)

    @abstractmethod
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        """Examples as rows, with one call of the tokenizer; the first has index `first_index`.

        Raises DataError, which names the example.
        """

    @abstractmethod
    def collate(self, rows: Sequence[Row]) -> B:
        """Rows as a batch on the CPU, padded on the right, for `outputs` and `predict` alike.

        Raises DataError where only some of the rows have labels.
        """

    @abstractmethod
    def outputs(self, model: PreTrainedModel, batch: B) -> O:
        """Run the model once over a batch on its device.

        Raises TaskError where the model lacks the head that the task reads.
        """

    @abstractmethod
    def loss(self, outputs: O, batch: B) -> tuple[Tensor, int]:
        """The loss summed over what counts (a scalar, fp32), and how many count.

        Raises DataError where the rows had no labels.
        """

    @abstractmethod
    def predict(self, model: PreTrainedModel, batch: B) -> list[Any]:
        """A prediction for each row, without gradients; the model should be in evaluation mode."""

    def merge_windows(
        self, rows: Sequence[Row], predictions: Sequence[Any], examples: Sequence[Example]
    ) -> list[Prediction]:
        """One prediction for each example, from those of all rows of the examples."""
        return list(predictions)

    @property
    def record_columns(self) -> tuple[Column, ...]:
        """The columns of the task's records, `prediction` first."""
        return (Column(PREDICTION, "json", "what the task predicts"),)

    def records(self, model: PreTrainedModel, batch: B, temperature: float = 1.0) -> list[Record]:
        """A record for each row, without gradients: its prediction, and what is known of it.

        temperature: what scores are divided by before they become probabilities.
        """
        return [{PREDICTION: prediction} for prediction in self.predict(model, batch)]

    def merge_records(
        self, rows: Sequence[Row], records: Sequence[Record], examples: Sequence[Example]
    ) -> list[Record]:
        """One record for each example, from those of all rows of the examples."""
        predictions = [record[PREDICTION] for record in records]
        merged = self.merge_windows(rows, predictions, examples)
        if len(records) != len(examples):
            return [{PREDICTION: prediction} for prediction in merged]
        return [
            {**record, PREDICTION: prediction}
            for record, prediction in zip(records, merged, strict=True)
        ]

    def class_scores(self, outputs: O, batch: B) -> tuple[Tensor, Tensor] | None:
        """Scores `[N, C]` of which a softmax makes probabilities, and the right class `[N]`.

        None where the task predicts no probabilities, or the batch has no gold labels.
        """
        return None

    def mistake(self, record: Record, example: Example) -> Mistake | None:
        """How wrong a record is; None where it is right.

        Raises DataError where the example has no gold answer.
        """
        score = self.score([record[PREDICTION]], [example])[self.metric]
        names = self.gold_fields or ()
        gold = [example.fields[name] for name in names if name in example.fields]
        return None if score >= 1 else Mistake(1 - score, gold[0] if len(gold) == 1 else gold)

    def vote(self, model: PreTrainedModel, batch: B, members: int) -> tuple[list[Any], list[Any]]:
        """Predict each example `members` times, and decide by majority.

        Of several that are equally frequent the prediction that comes first wins.

        Args:
            model: the base, in which `members` inlays serve the rows by turns.
            batch: with each example in `members` rows that follow each other.
            members: how many vote.

        Returns the prediction of every row, and the winner of every example.
        """
        votes = self.predict(model, batch)
        return votes, most_frequent(votes, members)

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


def _vocabulary(model: PreTrainedModel) -> int:
    """V, how many tokens the model embeds; known where its table is spread over processes too."""
    embeddings: Any = model.get_input_embeddings()
    if isinstance(embeddings, nn.Embedding):
        return embeddings.num_embeddings
    return len(embeddings.weight)
