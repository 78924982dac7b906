"""inlay inspect: what is near a prompt, and how much attention a prompt or prefix gets."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inlay_cli import report as reports
from inlay_cli.console import busy, err
from inlay_cli.eval import RECIPE
from inlay_cli.page import page
from inlay_cli.report import Report, Second
from inlay_cli.screen import show
from inlay_cli.shared import (
    BaseArgument,
    DeviceOption,
    DtypeOption,
    FileArgument,
    examples,
    open_base,
)

if TYPE_CHECKING:
    from inlay.data.dataset import Example
    from inlay.handle import Inlay
    from inlay.inspect import AttentionShare, Neighbours
    from inlay.tasks import Task


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(
        epilog=examples(
            ("inlay inspect smollm2 run/default.safetensors", "what is near, and who listens"),
            ("inlay inspect smollm2 a.safetensors b.safetensors", "do two seeds agree?"),
            ('inlay inspect smollm2 a.safetensors --words "good,bad" --html a.html', "as a page"),
        )
    )(inspect)


def inspect(
    base: BaseArgument,
    file: FileArgument,
    other: Annotated[
        Path | None,
        typer.Argument(
            metavar="OTHER", help="Another one, to compare it with.", show_default=False
        ),
    ] = None,
    count: Annotated[
        int, typer.Option("--neighbours", min=1, help="How many tokens near a position.")
    ] = 5,
    words: Annotated[
        str | None,
        typer.Option(
            help="Words to look for near a prompt, with commas between. By default the labels of "
            "the recipe.yaml beside FILE.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(help="A text to measure attention on; may be given several times."),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Rows to measure attention on, any file that training reads. By default a few "
            "sentences.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many rows of --data.")] = 32,
    template: Annotated[
        str | None,
        typer.Option(
            help="How a row is written, such as '{text} It was'; {p*3} are three virtual tokens. "
            "By default as the recipe.yaml beside FILE says, or else as it stands.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="OUT", help="Write a page with everything here.")
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="OUT", help="Write every number here.")
    ] = None,
    dtype: DtypeOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Look inside a soft prompt or prefix: the tokens near it, and the attention it gets."""
    if text and data is not None:
        raise typer.BadParameter("give --text or --data, not both")
    rows = _rows(text, data, limit)
    model, tokenizer = open_base(base, dtype, device)
    with busy(f"looking into {file}"):
        from inlay.handle import load

        handle = load(model, file, name="this", tokenizer=tokenizer)
        task = _task(file)
        forms = _forms(tokenizer, _words(words, task, handle))
        look = Look(tokenizer, count, forms, rows, _template(template, task, rows))
        report = Report(
            base,
            str(file),
            repr(handle.spec),
            *look(handle, file),
            len(rows),
            look.written(handle),
            tokenizer,
        )
    if other is not None:
        with busy(f"looking into {other}"):
            beside = load(model, other, name="other", tokenizer=tokenizer)
            second = _compared(report, handle, other, beside, look)
            report = replace(report, second=second)
    if as_json is not None:
        _write(as_json, json.dumps(reports.as_json(report), indent=1, ensure_ascii=False))
    if html is not None:
        _write(html, page(report))
    show(report)


@dataclass(frozen=True)
class Look:
    """What is looked for in one file, or in two."""

    tokenizer: Any
    count: int
    forms: dict[str, tuple[int, ...]]
    rows: list[Example]
    template: str

    def __call__(self, handle: Inlay, file: Path) -> tuple[list[Neighbours], list[AttentionShare]]:
        """Neighbours and shares of an inlay. Raises SpecError where there is nothing to see."""
        from inlay.errors import SpecError
        from inlay.inspect import attention_shares, neighbours, require_vectors, token_batches

        try:
            require_vectors(handle)
        except SpecError as error:
            raise SpecError(f"{file}: {error}") from None
        pad = self.tokenizer.pad_token_id or 0
        read = token_batches(handle, self._sources(handle), self._targets(), pad=pad)
        return neighbours(handle, self.count, self.forms), attention_shares(handle, read)

    def written(self, handle: Inlay) -> str:
        """The template, with places for the inlay's virtual tokens if it has none."""
        from inlay.core.piece import VirtualTokens
        from inlay.data.template import Template
        from inlay.errors import SpecError
        from inlay.tasks.templated import with_virtual

        pieces = [placed.piece for placed in handle.placed if placed.site.role == "embed"]
        tokens = [piece for piece in pieces if isinstance(piece, VirtualTokens)]
        if not tokens and Template(self.template).virtual_tokens:
            raise SpecError(
                f"the template {self.template!r} has virtual tokens and the inlay has none; leave "
                "{p} out of it"
            )
        if not tokens or Template(self.template).virtual_tokens:
            return self.template
        count, front = (sum(getattr(p, name) for p in tokens) for name in ("length", "before"))
        return with_virtual(self.template, count, front)

    def _sources(self, handle: Inlay) -> list[list[int]]:
        from inlay.data.template import Template
        from inlay.inspect import max_tokens
        from inlay.tasks.rows import Reader, trailing

        chart = handle.chart
        mask = self.tokenizer.mask_token or ""
        reader = Reader(
            tokenizer=self.tokenizer,
            template=Template(self.written(handle).replace("{mask}", mask)),
            joint=None,
            frame=None,
            special=True,
            ends=trailing(self.tokenizer) if chart.kind == "decoder" else 0,
            types=False,
            truncate="end" if self.tokenizer.is_fast else False,
            first=handle.first_virtual_id,
        )
        return [one.ids for one in reader.read(self.rows, [max_tokens(handle)] * len(self.rows))]

    def _targets(self) -> list[list[int]] | None:
        """The tokens of the rows' targets, where all have one."""
        if not all("target" in row.fields for row in self.rows):
            return None
        texts = [str(row.fields["target"]) for row in self.rows]
        return [self.tokenizer(text_target=text)["input_ids"] for text in texts]


def _compared(report: Report, here: Inlay, file: Path, there: Inlay, look: Look) -> Second:
    from inlay.inspect import compare_prefixes, compare_prompts, share_correlation

    prompts, shares = look(there, file)
    maps = {(one.kind, one.attention, one.layers): one for one in shares}
    same = [maps.get((one.kind, one.attention, one.layers)) for one in report.shares]
    pairs = zip(report.shares, same, strict=True)
    return Second(
        str(file),
        repr(there.spec),
        compare_prompts(report.prompts, prompts),
        compare_prefixes(here, there),
        shares,
        [None if b is None else share_correlation(a, b) for a, b in pairs],
    )


def _rows(given: list[str] | None, data: str | None, limit: int) -> list[Example]:
    """The rows to measure on. Raises DataError."""
    from inlay.data.dataset import Example
    from inlay.data.loading import load
    from inlay.inspect import TEXTS

    if data is not None:
        return list(load(data, limit=limit))
    texts = given or TEXTS
    return [Example({"text": t, "source": t}, f"text {n}") for n, t in enumerate(texts, 1)]


def _task(file: Path) -> Task | None:
    """The task of the recipe that training has put beside the file, if it is there."""
    from inlay.training.recipes.recipe import Recipe

    recipe = file.parent / RECIPE
    return Recipe.load(recipe).make_task() if recipe.is_file() else None


def _template(given: str | None, task: Task | None, rows: list[Example]) -> str:
    """How a row is written: as asked for, as the task does it, or as it stands.

    Raises DataError for rows that have nothing to write.
    """
    from inlay.data.template import Template
    from inlay.errors import DataError
    from inlay.tasks import Classify, Generate

    if given is not None:
        return given
    known = {"mask"} | set.intersection(*({*row.fields} for row in rows))
    own = task.template if isinstance(task, Classify | Generate) else None
    if own is not None and {*Template(own).names} <= known:
        return own
    for name in ("text", "source"):
        if name in known:
            return f"{{{name}}}"
    raise DataError("not every row has a 'text', nor every row a 'source'; give --template")


def _words(given: str | None, task: Task | None, handle: Inlay) -> list[str]:
    """The words to look for: those given, or what the labels of the task are said with."""
    from inlay.methods.head import Head
    from inlay.tasks import Classify
    from inlay.tasks.cloze import words_of

    if given is not None:
        return [word.strip() for word in given.split(",") if word.strip()]
    if isinstance(task, Classify) and task.verbalizer is not None:
        return [word.strip() for said in task.verbalizer.values() for word in words_of(said)]
    if isinstance(task, Classify) and task.labels is not None:
        return list(task.labels)
    return [label for one in handle.spec.methods if isinstance(one, Head) for label in one.labels]


def _forms(tokenizer: Any, words: list[str]) -> dict[str, tuple[int, ...]]:
    """Each word's tokens; what is no single token is left out, and that is said."""
    from inlay.inspect import word_forms

    found = {word: word_forms(tokenizer, word) for word in words}
    for word, ids in found.items():
        if not ids:
            line = f"left out: {word!r} is no single token"
            err().print(line, markup=False, soft_wrap=True)
    return {word: ids for word, ids in found.items() if ids}


def _write(path: Path, text: str) -> None:
    from inlay.files.atomic import write_whole

    write_whole(path, text.encode())
