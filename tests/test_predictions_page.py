"""The page on predictions is right: all of its commands and its Python run, in its order."""

from __future__ import annotations

import io
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from inlay.tasks import TASKS, Classify, Tag, TrainedHead, Verbalizer
from inlay_cli.app import main
from tests import zoo
from tests.tasks import tiny

PAGE = Path(__file__).parents[1] / "docs" / "predictions.md"

FILMS = [("good", "yes"), ("bad", "no"), ("fine", "yes"), ("dull", "no")]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with everything that the page speaks of, but for what it makes itself."""
    monkeypatch.chdir(tmp_path)
    for name, family, kind in (("BASE", "bert", "encoder"), ("writer", "llama", "decoder")):
        zoo.fresh(family).save_pretrained(name)
        tiny.tokenizer(kind).save_pretrained(name)
    rows = [{"text": f"the film was {word}", "label": label} for word, label in FILMS * 4]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name in ("reviews.jsonl", "reviews-dev.jsonl"):
        Path(name).write_text(lines)
    Path("new.csv").write_text('id,text\n1,the film was good\n2,"dull, old film"\n')
    Path("lines.txt").write_text("the film was good\na dull film\n")
    Path("titles.jsonl").write_text('{"source": "the cat", "target": "cat"}\n' * 4)
    words = "train --base writer --task generate --train titles.jsonl --method LoRA --steps 1 --out runs/titles"
    assert main(words.split()) == 0
    return tmp_path


def test_everything_on_the_page_runs(place, monkeypatch, capsys):
    blocks = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert [language for language, _ in blocks].count("bash") == 7
    names: dict[str, object] = {}
    for language, text in blocks:
        capsys.readouterr()
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), names)
            continue
        program, *words = shlex.split(text)
        assert program == "inlay"
        if "<" in words:
            monkeypatch.setattr(sys, "stdin", io.StringIO(Path(words.pop()).read_text()))
            words.remove("<")
        assert main(words) == 0, f"{text}\n{capsys.readouterr().err}"
    assert (
        Path("answers.csv").read_text().splitlines()[0]
        == "id,text,prediction,probability,probabilities"
    )
    assert {row["prediction"] for row in names["records"]} <= {"yes", "no"}
    assert Path("merged/config.json").exists()


def test_the_table_has_every_task_with_its_columns():
    lines = [
        line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")
    ]
    documented = {line.split("|")[1].strip(): line.split("|")[3] for line in lines}
    for name, kind in TASKS.items():
        if kind.__module__.startswith("inlay."):
            assert f"`{name}`" in documented
    labelled = Classify(by=TrainedHead(labels=("a", "b")))
    words = Classify(by=Verbalizer(words={"a": "x", "b": "y"}), template="{text} is")
    for task in (
        labelled,
        words,
        Tag(),
        *(TASKS[name]() for name in ("extract", "regress", "generate", "choose")),
    ):
        for column in task.record_columns:
            assert f"`{column.name}`" in documented[f"`{task.name}`"], (task.name, column.name)
