"""Predictor: a base with a trained inlay, and its task: predictions for rows and texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inlay.core.modes import evaluating
from inlay.data.dataset import Example
from inlay.data.fields import Columns
from inlay.data.inputs import InputParser, InputRow, memory_rows
from inlay.errors import DataError, TaskError
from inlay.files.usage import Usage
from inlay.handle import Inlay, rows
from inlay.predicting.streaming import stream_text
from inlay.tasks import Generate, Task
from inlay.tasks.records import PREDICTION, Column, Record
from inlay.training.loop.evaluation import records_of

PlainInput = str | Mapping[str, Any]
"""A text, or the columns of a row."""

CHUNK_BATCHES = 16
"""How many batches' worth of rows are read at once, to put rows of similar lengths together."""


class Predictor:
    """A trained inlay with its base and its task; `inlay.open` makes one.

    model: the base, with the inlay attached. tokenizer: its own. handle: the inlay.
    task: bound to the base. usage: what the file says.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        handle: Inlay,
        task: Task,
        usage: Usage,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.handle = handle
        self.task = task
        self.usage = usage

    def __repr__(self) -> str:
        return f"Predictor({self.handle.name!r}: {self.task.name} on {self.usage.base})"

    @property
    def columns(self) -> tuple[Column, ...]:
        """What a record of this task holds: the name, kind and meaning of each column."""
        return self.task.record_columns

    def parser(self, columns: Columns | None = None, separator: str | None = None) -> InputParser:
        """What reads rows for this task.

        columns: field -> the column that holds it. separator: of lists that are written as texts.
        """
        task, usage = self.task, self.usage
        return InputParser(
            task.input_fields,
            task.target_fields,
            columns or {},
            usage.columns,
            usage.templates,
            usage.separator if separator is None else separator,
            task.complete_inputs,
        )

    @overload
    def predict(self, data: PlainInput, *, batch_size: int = 16, columns: Columns | None = None) -> Record: ...  # type: ignore[overload-overlap]  # fmt: skip  # noqa: E501
    @overload
    def predict(self, data: Iterable[PlainInput], *, batch_size: int = 16, columns: Columns | None = None) -> list[Record]: ...  # fmt: skip  # noqa: E501
    def predict(
        self,
        data: PlainInput | Iterable[PlainInput],
        *,
        batch_size: int = 16,
        columns: Columns | None = None,
    ) -> Record | list[Record]:
        """Predict a row or several.

        Args:
            data: a text or the columns of a row; or a list of these, a data frame of pandas or
                polars, or a `datasets.Dataset`. Gold answers in it are not read.
            batch_size: rows in a batch.
            columns: field -> the column that holds it, such as `{"text": "review"}`; by default as
                in training, where the rows have such columns.

        Returns a record for each row, in their order, and for a single row that of it. A record is
        a dictionary: its `prediction`, and what `columns` describes.

        Raises DataError, which names the row, for one that cannot be used.
        """
        single = isinstance(data, str | Mapping)
        inputs = [data] if isinstance(data, str | Mapping) else data
        records: list[Record] = []
        for chunk in chunked(self.read(inputs, columns), batch_size * CHUNK_BATCHES):
            for row in chunk:
                if row.problem is not None:
                    raise DataError(f"{row.where}: {row.problem}")
            records += self.records(chunk, batch_size=batch_size)
        return records[0] if single else records

    def read(
        self, data: Iterable[PlainInput], columns: Columns | None = None
    ) -> Iterator[InputRow]:
        """Texts and rows in memory as rows to predict; the arguments are those of `predict`."""
        parse = self.parser(columns)
        for where, row in memory_rows(data):
            yield self.text_row(where, row) if isinstance(row, str) else parse(where, row)

    def text_row(self, where: str, text: str) -> InputRow:
        """A bare text as a row to predict. Raises TaskError where the task reads several fields."""
        return InputRow(where, {"text": text}, self.task.inputs_of_text(text))

    def records(
        self, inputs: Sequence[InputRow], *, batch_size: int = 16, advance: Any = None
    ) -> list[Record]:
        """A record for every one of these rows, which have no problems.

        advance: called after every batch with how many more rows are done.

        Raises DataError, which names the row.
        """
        examples = [Example(row.fields or {}, row.where) for row in inputs]
        with evaluating(self.model), rows(self.model, [self.handle.name]):
            return records_of(
                self.model,
                self.task,
                examples,
                temperature=self.usage.temperature,
                batch_size=batch_size,
                advance=advance,
            )

    def problem_of(self, row: InputRow) -> str | None:
        """Why a row cannot be encoded; None where it can."""
        try:
            self.task.encode_all([Example(row.fields or {}, row.where)])
        except DataError as error:
            return str(error).removeprefix(f"{row.where}: ")
        return None

    # ------------------------------------------------------------------------- writing text

    @overload
    def generate(self, data: PlainInput, *, batch_size: int = 16, **options: Any) -> str: ...
    @overload
    def generate(self, data: Iterable[PlainInput], *, batch_size: int = 16, **options: Any) -> list[str]: ...  # fmt: skip  # noqa: E501
    def generate(
        self, data: PlainInput | Iterable[PlainInput], *, batch_size: int = 16, **options: Any
    ) -> str | list[str]:
        """Write the text for a row or several, which are given as in `predict`.

        options: of `model.generate`, such as `max_new_tokens=200` or `do_sample=True`, in place of
            those of training.

        Raises TaskError where the inlay's task is another than generate, or for unknown options.
        """
        writer = self._with_options(options)
        if isinstance(data, str | Mapping):
            return str(writer.predict(data, batch_size=batch_size)[PREDICTION])
        records = writer.predict(data, batch_size=batch_size)
        return [record[PREDICTION] for record in records]

    def stream(self, data: PlainInput, **options: Any) -> Iterator[str]:
        """Write the text for one row, and yield it piece by piece as it is written.

        Together the pieces are what `generate` returns. options: as there, but no beams.
        """
        writer = self._with_options(options)
        task = writer.task
        assert isinstance(task, Generate)
        (row,) = writer.read([data])
        if row.problem is not None:
            raise DataError(f"{row.where}: {row.problem}")
        return stream_text(self.model, task, Example(row.fields or {}, row.where), self.handle)

    def _with_options(self, options: Mapping[str, Any]) -> Predictor:
        """The same predictor with other options of generation."""
        if not isinstance(self.task, Generate):
            raise TaskError(
                f"the inlay {self.handle.name!r} was trained to {self.task.name}, not to write "
                "text; use predict"
            )
        if not options:
            return self
        generation = {**self.task.generation, **options}
        task = dataclasses.replace(self.task, generation=generation)
        task.bind(self.model, self.tokenizer)
        return Predictor(self.model, self.tokenizer, self.handle, task, self.usage)


def chunked(inputs: Iterable[InputRow], size: int) -> Iterator[list[InputRow]]:
    """Rows in lists of at most `size`."""
    chunk: list[InputRow] = []
    for row in inputs:
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
