"""Patterns: several templates for one data set, as a small YAML file.

patterns:
  - "{text} All in all, it was {mask}"
  - "Is this film good? {text} It is {mask}"
verbalizer: {negative: " bad", positive: [" great", " good"]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError, field_validator

from inlay.data.template import Template
from inlay.errors import InlayError, RecipeError
from inlay.tasks import Classify, TrainedHead, Verbalizer
from inlay.tasks.masks import MASK, count_masks
from inlay.training.loop.options import explain
from inlay.training.recipes import yaml
from inlay.training.recipes.recipe import STRICT


class Patterns(BaseModel):
    """Templates with one `{mask}` each, and the words that are scored there.

    patterns: with the columns of the rows in braces; a decoder takes those that end in `{mask}`.
    verbalizer: label -> its word or words.
    label_names: as in `Classify`.
    """

    model_config = STRICT

    patterns: Annotated[list[str], Field(min_length=1)]
    verbalizer: dict[str, str | list[str]]
    label_names: dict[str, str] | None = None

    @field_validator("patterns")
    @classmethod
    def _have_one_mask(cls, value: list[str]) -> list[str]:
        for pattern in value:
            try:
                count = count_masks(pattern)
            except InlayError as error:
                raise ValueError(str(error)) from None
            if count != 1:
                raise ValueError(
                    f"pattern {pattern!r} has {count or 'no'} {MASK}; put exactly one where the "
                    "word belongs"
                )
        return value

    @staticmethod
    def load(path: str | Path) -> Patterns:
        """Read patterns from a file. Raises RecipeError for whatever is wrong with it."""
        values = yaml.read_file(path, "the patterns")
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: a file of patterns has the fields patterns and verbalizer")
        try:
            return Patterns.model_validate(values)
        except ValidationError as error:
            raise RecipeError(f"{path}: {explain(error, Patterns)}") from None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that the patterns read, each once."""
        names = (name for pattern in self.patterns for name in Template(pattern).names)
        return tuple(dict.fromkeys(name for name in names if name != "mask"))

    def tasks(self, **fields: Any) -> list[Classify]:
        """A task for each pattern; fields: further ones of `Classify`. Raises TaskError."""
        return [
            Classify(
                template=pattern,
                by=Verbalizer(dict(self.verbalizer)),
                label_names=self.label_names,
                **fields,
            )
            for pattern in self.patterns
        ]

    def head_task(self, **fields: Any) -> Classify:
        """The same task by a trained head, on the columns of the patterns without their words.

        fields: further ones of `Classify`.
        """
        pair = set(self.columns) == {"text", "text_pair"}  # joined by the tokenizer itself
        return Classify(
            by=TrainedHead(tuple(self.verbalizer)),
            label_names=self.label_names,
            template=None if pair else "\n".join(f"{{{name}}}" for name in self.columns),
            **fields,
        )
