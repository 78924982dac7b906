"""The pages on writing a method and a task are right: their files run, and do what is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import inlay
import inlay.hub
from inlay.core.own_files import run_file
from inlay.data import load
from inlay.errors import SpecError, TaskError
from inlay.tasks.base import TASKS
from inlay.testing import check_method
from inlay.training import Recipe, predict
from tests import zoo
from tests.core.test_own_files import forget
from tests.tasks import tiny

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    return [content for kind, content in fenced if kind == language]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    inlay.METHODS.pop("Diagonal", None)
    for name in ("shout", "read"):
        TASKS.pop(name, None)
    forget()


def test_the_method_of_the_page_passes_the_laws():
    file, test = blocks("writing_a_method.md", "python")
    Path("diagonal.py").write_text(file, encoding="utf-8")
    commands = " ".join(blocks("writing_a_method.md", ""))
    for text in re.findall(r'--method "(.*?)"', commands):
        inlay.parse(text)
    method = inlay.METHODS["Diagonal"]
    assert inlay.parse("Diagonal()") == method()
    check_method(method, families=["llama", "gpt2", "t5"])
    assert "from inlay.testing import FAMILIES, check_method" in test


@pytest.fixture
def tasks():
    """The tasks of the page, by name."""
    shout, read, _ = blocks("writing_a_task.md", "python")
    Path("shout.py").write_text(shout, encoding="utf-8")
    Path("read.py").write_text(read, encoding="utf-8")
    for name in ("shout.py", "read.py"):
        run_file(name, SpecError)
    return TASKS


def test_the_first_task_of_the_page_teaches_capitals(tasks):
    recipe = blocks("writing_a_task.md", "yaml")[0]
    Path("recipe.yaml").write_text(
        f"base: x\nmethod: LoRA\n{recipe}data: {{train: {{source: r.jsonl}}}}\nout: run\n"
    )
    task = Recipe.load("recipe.yaml").make_task()
    assert type(task) is tasks["shout"]
    model = zoo.fresh("llama")
    task.bind(model, tiny.tokenizer("decoder"))
    rows = load([{"source": "the cat", "target": "sat"}])
    (row,) = task.encode_some(list(rows), 0)
    text = task.bound.tokenizer.decode(row.labels).replace(" ", "")
    assert "sat" not in text
    assert task.score(["ABC", "d"], rows) == {"loudness": 0.75}
    handle = inlay.attach(model, inlay.LoRA(rank=2))
    inlay.fit(model, handle, task, rows, steps=2)
    assert len(predict(model, task, [{"source": "the dog"}])) == 1


def test_the_second_task_of_the_page_learns_as_the_page_says(tasks, monkeypatch):
    def load_base(name):
        assert name == "smollm2"
        return zoo.fresh("llama"), tiny.tokenizer("decoder")

    monkeypatch.setattr(inlay.hub, "load_base", load_base)
    proof = blocks("writing_a_task.md", "python")[2].replace(
        "an inlay is a thin piece set into a solid surface", "the cat sat on a mat"
    )
    names = {"Read": tasks["read"]}
    exec(compile(proof, "writing_a_task.md", "exec"), names)
    assert names["evaluate"](names["model"], names["task"], names["rows"])["likelihood"] < 0
    with pytest.raises(TaskError, match="BertForMaskedLM is no decoder"):
        tasks["read"]().bind(zoo.fresh("bert"), tiny.tokenizer("encoder"))
