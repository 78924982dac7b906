"""inlay merge: fold an inlay into its base, and write an ordinary transformers model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inlay_cli.console import busy, err, write
from inlay_cli.shared import (
    DtypeOption,
    Opened,
    examples,
    open_model,
    refuse_existing,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from inlay.classifier import Problem
    from inlay.files.usage import Usage
    from inlay.handle import Inlay
    from inlay.tasks import Task

HEAD = "head.safetensors"
"""The file of a trained head, which cannot be folded."""


def register(app: typer.Typer, panel: str) -> None:
    """Add the command to the application."""
    app.command(
        rich_help_panel=panel,
        epilog=examples(
            ("inlay merge legal.safetensors --out ./smollm2-legal", "write the merged model"),
            ('inlay generate ./smollm2-legal "Dear Sir"', "use it like any other model"),
            ("inlay merge smollm2 legal.safetensors ./smollm2-legal", "say which base it is for"),
        ),
    )(merge)


def merge(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[BASE] FILE [OUT]",
            help="A trained inlay, before it another base than that of its training, and after it "
            "the folder to write, which must not exist yet.",
            show_default=False,
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Option("--out", help="The folder to write, instead of OUT.", show_default=False),
    ] = None,
    dtype: DtypeOption = None,
    dequantize: Annotated[
        bool,
        typer.Option(
            "--dequantize",
            help="Make the matrices of a quantised base ordinary ones; it is refused otherwise.",
        ),
    ] = False,
) -> None:
    """Fold an inlay into its base's weights, and write a transformers folder.

    The folder is written completely or not at all. With a trained head it is one of transformers'
    own classifiers, where there is one that computes the same; otherwise the head is written into
    the folder as a file of its own, which loads on the merged model.
    """
    base, file, folder = _places(words, target)
    from inlay.files.atomic import write_folder

    refuse_existing(folder, "folder")
    opened = open_model(file, base, dtype or "stored")
    assert opened.handle is not None
    with busy("merging"):
        spec = opened.handle.spec
        whole = _merged(opened, dequantize)
    with busy(f"writing {folder}"):
        write_folder(folder, whole.write)
    megabytes = sum(path.stat().st_size for path in folder.rglob("*")) / 1e6
    head = f", with its head in {HEAD}" if (folder / HEAD).exists() else ""
    kind = "" if whole.classifier is None else f", a {type(whole.classifier).__name__}"
    write(f"merged {spec!r} into {folder}{kind}{head} ({megabytes:,.0f} MB)")
    for line in whole.remarks:
        write(line, err())


def _places(words: list[str], target: Path | None) -> tuple[str | None, Path, Path]:
    """The base, if it is given, the inlay's file, and the folder to write."""
    places = [*words, *([] if target is None else [str(target)])]
    if len(places) == 2:
        return None, Path(places[0]), Path(places[1])
    if len(places) == 3:
        return places[0], Path(places[1]), Path(places[2])
    raise typer.BadParameter("give a FILE and the folder to write: inlay merge FILE --out FOLDER")


@dataclass(frozen=True)
class _Merged:
    """What is written into the folder.

    model: the merged base. head: the trained head that stays beside it, or None. classifier: both
    in one, instead of them, or None. remarks: lines for the user.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    head: Inlay | None
    classifier: PreTrainedModel | None
    usage: Usage | None
    remarks: list[str]

    def write(self, folder: Path) -> None:
        """Write everything into a folder."""
        if self.classifier is not None:
            self.classifier.save_pretrained(folder)
        else:
            if self.head is not None:
                self.head.save(folder / HEAD, tokenizer=self.tokenizer, usage=self.usage)
                self.head.detach()
            self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _merged(opened: Opened, dequantize: bool) -> _Merged:
    """Merge an inlay, and make a classifier of the base and its head where there is one.

    Raises MergeError.
    """
    from dataclasses import replace

    from inlay.classifier import as_classifier
    from inlay.core.quantised import memory_of, quantised_modules
    from inlay.handle import attached
    from inlay.methods.head import Classifier
    from inlay.runtime.trained_heads import head_of
    from inlay.tasks import Classify, Regress, Tag, from_spec
    from inlay.tasks.templated import Templated

    model, tokenizer, usage, handle = opened.model, opened.tokenizer, opened.usage, opened.handle
    task = Classify() if usage is None else from_spec(usage.task)
    assert handle is not None
    remarks: list[str] = []
    classifier = None
    alone = all(method.has_head for method in handle.spec.methods)
    before = memory_of(model)
    quantised = len(quantised_modules(model))
    if not alone:
        handle.merge(dequantise=dequantize)
    if quantised and not alone:
        after = memory_of(model)
        remarks.append(
            f"{quantised} matrices were dequantised: the base takes {after / 2**20:,.0f} MiB "
            f"instead of {before / 2**20:,.0f}"
        )
    heads = list(attached(model).values())
    piece = head_of(model, heads[0].name) if heads else None
    if isinstance(piece, Classifier) and isinstance(task, Classify | Tag | Regress):
        classifier, reason = as_classifier(
            model, piece, pad_token_id=tokenizer.pad_token_id, problem=_problem(task)
        )
        if classifier is None:
            remarks.append(f"not one of transformers' classifiers: {reason}")
        elif isinstance(task, Templated) and task.template is not None:
            remarks.append(f"it reads texts written as {task.template!r}")
    if alone and classifier is None:
        handle.merge()  # says why nothing can be merged
    here = None if usage is None else replace(usage, base=".", beside=True)
    return _Merged(model, tokenizer, heads[0] if heads else None, classifier, here, remarks)


def _problem(task: Task) -> Problem | None:
    """What a classifier of transformers learns, if it is trained on for this task."""
    from inlay.tasks import BinaryCrossEntropy, Classify, Regress

    if isinstance(task, Regress):
        return "regression"
    if not isinstance(task, Classify):
        return None
    several = isinstance(task.objective, BinaryCrossEntropy)
    return "multi_label_classification" if several else "single_label_classification"
