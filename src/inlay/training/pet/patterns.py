"""Patterns: the ways to ask about one data set, as a small text file.

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
    """Templates with one `{mask}` each, and the words that may stand there.

    patterns: with the columns of the rows in braces; a decoder takes those that end in `{mask}`.
    verbalizer: label -> its word or words. label_names: see `Classify`.
    """

    model_config = STRICT

    patterns: Annotated[list[str], Field(min_length=1)]
    verbalizer: dict[str, str | list[str]]
    label_names: dict[str, str] | None = None

    @field_validator("patterns")
    @classmethod
    def _asking(cls, value: list[str]) -> list[str]:
        for one in value:
            try:
                count = count_masks(one)
            except InlayError as error:
                raise ValueError(str(error)) from None
            if count != 1:
                raise ValueError(
                    f"pattern {one!r} has {count or 'no'} {MASK}; it needs one, where the word "
                    "stands"
                )
        return value

    @staticmethod
    def load(path: str | Path) -> Patterns:
        """The patterns in a file. Raises RecipeError, one sentence, for what is wrong with it."""
        try:
            values = yaml.read(Path(path).read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"cannot read the patterns {path}: {error}") from None
        if not isinstance(values, dict):
            raise RecipeError(f"{path}: a file of patterns has the fields patterns and verbalizer")
        try:
            return Patterns.model_validate(values)
        except ValidationError as error:
            raise RecipeError(f"{path}: {explain(error, Patterns)}") from None

    @property
    def columns(self) -> tuple[str, ...]:
        """What the patterns read of a row, each once."""
        names = (name for one in self.patterns for name in Template(one).names)
        return tuple(dict.fromkeys(name for name in names if name != "mask"))

    def tasks(self, **fields: Any) -> list[Classify]:
        """A task for each pattern; fields: further ones of `Classify`. Raises TaskError."""
        return [
            Classify(
                template=one,
                by=Verbalizer(dict(self.verbalizer)),
                label_names=self.label_names,
                **fields,
            )
            for one in self.patterns
        ]

    def headed(self, **fields: Any) -> Classify:
        """The task of a trained head on what the patterns read, without their words."""
        pair = set(self.columns) == {"text", "text_pair"}  # which tokenizers join in their own way
        return Classify(
            by=TrainedHead(tuple(self.verbalizer)),
            label_names=self.label_names,
            template=None if pair else "\n".join(f"{{{name}}}" for name in self.columns),
            **fields,
        )
