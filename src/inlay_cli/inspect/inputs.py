"""What inlay inspect measures with: texts, a template, and words to look for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inlay.core.piece import VirtualTokens
from inlay.data.dataset import Example
from inlay.data.loading import load
from inlay.data.template import VIRTUAL_TOKEN, Template
from inlay.errors import DataError, SpecError
from inlay.handle import Inlay
from inlay.inspect import (
    TEXTS,
    AttentionShare,
    Neighbours,
    PlaceReading,
    attention_shares,
    has_vectors,
    max_tokens,
    neighbours,
    readings,
    require_inspectable,
    token_batches,
)
from inlay.methods.head import Head
from inlay.tasks import Classify, Generate, Task, Verbalizer
from inlay.tasks.reader import Reader
from inlay.tasks.special_tokens import count_trailing
from inlay.tasks.templated import with_virtual_tokens
from inlay.training.recipes.recipe import Recipe
from inlay_cli.inspect.report import VIRTUAL_SIGN
from inlay_cli.shared import RECIPE


@dataclass(frozen=True)
class Measured:
    """What was measured of one inlay.

    prompts: the tokens near its prompts. shares: the attention on its prompts and prefixes.
    readings: what its pieces decide on the texts, such as the values of gates.
    """

    prompts: list[Neighbours]
    shares: list[AttentionShare]
    readings: list[PlaceReading]


@dataclass(frozen=True)
class Probe:
    """What is measured alike in each file.

    count: tokens for each position. tokens: the words to look for, each with the tokens of its
    forms. rows, template: the texts to measure attention on, and how they are written.
    """

    tokenizer: Any
    count: int
    tokens: dict[str, tuple[int, ...]]
    rows: list[Example]
    template: str

    def measure(self, handle: Inlay, file: Path) -> Measured:
        """Everything that can be measured of an inlay.

        Raises SpecError if there is nothing.
        """
        try:
            require_inspectable(handle)
        except SpecError as error:
            raise SpecError(f"{file}: {error}") from None
        texts = list(
            token_batches(
                handle,
                self._sources(handle),
                self._targets(),
                pad=self.tokenizer.pad_token_id or 0,
            )
        )
        near, shares = [], []
        if has_vectors(handle):
            near = neighbours(handle, self.count, self.tokens)
            shares = attention_shares(handle, texts)
        return Measured(near, shares, readings(handle, texts))

    def template_for(self, handle: Inlay) -> str:
        """The template, with the inlay's virtual tokens if it names none itself.

        Raises SpecError if the template names virtual tokens and the inlay has none.
        """
        pieces = [placed.piece for placed in handle.placed if placed.site.role == "embed"]
        virtual = [piece for piece in pieces if isinstance(piece, VirtualTokens)]
        named = Template(self.template).virtual_tokens
        if named and not virtual:
            raise SpecError(
                f"the template {self.template!r} has virtual tokens and the inlay has none; leave "
                "{p} out"
            )
        if named or not virtual:
            return self.template
        before = sum(piece.before for piece in virtual)
        return with_virtual_tokens(self.template, handle.virtual_tokens, before)

    def texts(self, handle: Inlay) -> list[str]:
        """The rows as the base reads them, with a sign where each virtual token stands."""
        template = self._filled_template(handle)
        fields = [{name: row.fields[name] for name in template.names} for row in self.rows]
        return [template.fill(values).replace(VIRTUAL_TOKEN, VIRTUAL_SIGN) for values in fields]

    def _filled_template(self, handle: Inlay) -> Template:
        """The template with the tokenizer's mask in the place of `{mask}`."""
        return Template(
            self.template_for(handle).replace("{mask}", self.tokenizer.mask_token or "")
        )

    def _sources(self, handle: Inlay) -> list[list[int]]:
        """The token ids of the rows."""
        chart = handle.chart
        reader = Reader(
            tokenizer=self.tokenizer,
            template=self._filled_template(handle),
            separator=None,
            wrap=None,
            add_special_tokens=True,
            drop_trailing=count_trailing(self.tokenizer) if chart.kind == "decoder" else 0,
            token_type_ids=False,
            truncate="end" if self.tokenizer.is_fast else False,
            first_virtual_id=handle.first_virtual_id,
        )
        return [row.ids for row in reader.read(self.rows, [max_tokens(handle)] * len(self.rows))]

    def _targets(self) -> list[list[int]] | None:
        """The token ids of the rows' targets; None unless every row has one."""
        if not all("target" in row.fields for row in self.rows):
            return None
        texts = [str(row.fields["target"]) for row in self.rows]
        return [self.tokenizer(text_target=text)["input_ids"] for text in texts]


def rows_of(texts: Sequence[str] | None, data: str | None, limit: int) -> list[Example]:
    """The rows to measure on: of a file, of the texts, or of a few sentences. Raises DataError."""
    if data is not None:
        return list(load(data, limit=limit))
    return [
        Example({"text": text, "source": text}, f"text {number}")
        for number, text in enumerate(texts or TEXTS, 1)
    ]


def task_of(file: Path) -> Task | None:
    """The task of the recipe next to a file, if there is one."""
    recipe = file.parent / RECIPE
    return Recipe.load(recipe, run_files=False).make_task() if recipe.is_file() else None


def template_of(option: str | None, task: Task | None, rows: Sequence[Example]) -> str:
    """How a row is written: as the option says, as the task writes it, or the text as it is.

    Raises DataError if the rows have neither a text nor a source.
    """
    if option is not None:
        return option
    columns = {"mask"} | set.intersection(*({*row.fields} for row in rows))
    template = task.template if isinstance(task, Classify | Generate) else None
    if template is not None and {*Template(template).names} <= columns:
        return template
    for column in ("text", "source"):
        if column in columns:
            return f"{{{column}}}"
    raise DataError("the rows have no column 'text' or 'source' in common; give --template")


def words_of(option: str | None, task: Task | None, handle: Inlay) -> list[str]:
    """The words to look for: those of the option, or the labels of the task or of a head."""
    if option is not None:
        return [word.strip() for word in option.split(",") if word.strip()]
    if isinstance(task, Classify) and isinstance(task.by, Verbalizer):
        words = [word for label in task.by.labels for word in task.by.words_of(label)]
        return [word.strip() for word in words]
    if isinstance(task, Classify) and task.by.labels is not None:
        return list(task.by.labels)
    heads = [method for method in handle.spec.methods if isinstance(method, Head)]
    return [label for head in heads for label in head.labels]
