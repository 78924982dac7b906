"""Methods and tasks in files of one's own: run when they are named, and only then."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import inlay
from inlay.core import own_files
from inlay.errors import FileError, RecipeError, SpecError, TaskError
from inlay.files.format import digest
from inlay.laws.case import perturb
from inlay.tasks.base import TASKS
from inlay.training import Recipe
from tests import zoo

METHOD = '''
from __future__ import annotations
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from inlay.core.method import Method
from inlay.core.piece import OutputDelta
from inlay.core.site import Where

with Path("runs.txt").open("a") as file:
    file.write("run\\n")


@dataclass(frozen=True, repr=False)
class Diag(Method):
    """y + g * y.

    start: of g.
    """

    start: float = 0.0
    at: Where = Where(("attn.q",))

    def build(self, site, shared):
        return Gains(site.d_out, self.start)


class Gains(OutputDelta):
    def __init__(self, width, start):
        super().__init__()
        self.gain = nn.Parameter(torch.full((width,), start))

    def delta(self, x, y, context):
        return y * self.gain
'''

TASK = '''
from dataclasses import dataclass
from typing import ClassVar

from inlay.tasks import Generate


@dataclass(kw_only=True)
class Shout(Generate):
    """As generate."""

    name: ClassVar[str] = "shout"
    volume: int = 1
'''


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with a file of a method and one of a task; all that it defines is forgotten."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diag.py").write_text(METHOD)
    (tmp_path / "shout.py").write_text(TASK)
    yield tmp_path
    forget()


def forget() -> None:
    """What another process would not know."""
    inlay.METHODS.pop("Diag", None)
    TASKS.pop("shout", None)
    for name in [name for name in sys.modules if name.startswith(own_files.PREFIX)]:
        del sys.modules[name]


def runs() -> int:
    path = Path("runs.txt")
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_method_is_named_by_its_file_anywhere_in_a_spec(tmp_path: Path) -> None:
    spec = inlay.parse("diag.py:Diag(start=0.5) + LoRA(rank=2)")
    assert repr(spec) == "Diag(start=0.5) + LoRA(rank=2)"
    for text in (
        "Gate(inner=diag.py:Diag(start=0.5), start=0.5)",
        f"LoRA(rank=2)+{tmp_path}/diag.py:Diag",
        "../" + tmp_path.name + "/diag.py:Diag()",
    ):
        inlay.parse(text)
    assert runs() == 1, "a file is run once, however it is written"


def test_a_text_in_quotes_runs_nothing() -> None:
    for text in ("Prompt(start='diag.py:Diag')", 'Prompt(start="it\\"s diag.py:Diag")'):
        with pytest.raises(SpecError):
            inlay.parse(text)
    assert runs() == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.py:Diag", "there is no file nowhere.py; paths are read from the current folder"),
        ("diag.py:Dig", r"diag.py has no method 'Dig'; did you mean 'Diag'\?"),
        (
            "shout.py:Shout",
            "shout.py has no method 'Shout'; define it there, as a class based on Method",
        ),
        ("diag.py:Diag(begin=1)", "Diag has no field 'begin'"),
        ("diag.py", r"write the name of the method after the file, .* my_method.py:MyMethod"),
        ("broken.py:Diag", "broken.py cannot be run: ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_wrong_is_one_sentence(text: str, message: str) -> None:
    Path("broken.py").write_text("1 / 0\n")
    with pytest.raises(SpecError, match=message) as error:
        inlay.parse(text)
    assert "\n" not in str(error.value)


def test_a_file_that_broke_can_be_mended() -> None:
    Path("mended.py").write_text(METHOD + "\n1 / 0\n")
    with pytest.raises(SpecError, match="cannot be run"):
        inlay.parse("mended.py:Diag")
    Path("mended.py").write_text(METHOD)
    assert repr(inlay.parse("mended.py:Diag()")) == "Diag()"


def test_a_name_that_is_taken_is_refused() -> None:
    Path("second.py").write_text(METHOD.replace("Diag", "LoRA"))
    with pytest.raises(SpecError, match="there is a method 'LoRA' already, in inlay.methods.lora"):
        inlay.parse("second.py:LoRA")
    Path("third.py").write_text(TASK.replace('"shout"', '"classify"'))
    with pytest.raises(TaskError, match="there is a task 'classify' already"):
        own_files.run_file("third.py", SpecError)
    assert inlay.parse("LoRA()") == inlay.LoRA()


def test_an_imported_file_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    __import__("diag")
    try:
        inlay.parse("diag.py:Diag")
        assert runs() == 1
    finally:
        del sys.modules["diag"]


def recipe(**fields: str) -> dict[str, str]:
    needed = {"base": "x", "method": "LoRA", "task.kind": "generate", "out": "run"}
    return {**needed, "data.train.source": "rows.jsonl", **fields}


def test_a_recipe_names_methods_and_tasks_of_ones_own() -> None:
    plan = Recipe.load(
        None, recipe(method="diag.py:Diag", **{"task.kind": "shout.py:Shout", "task.volume": "3"})
    )
    assert type(plan.make_task()).__name__ == "Shout"
    assert plan.make_task().describe()["volume"] == 3
    Path("saved.yaml").write_text(plan.dump())
    assert Recipe.load("saved.yaml") == plan
    with pytest.raises(RecipeError, match=r"task.*has no field 'volum'; did you mean 'volume'"):
        Recipe.load(None, recipe(**{"task.kind": "shout.py:Shout", "task.volum": "3"}))


def test_a_recipe_that_was_found_runs_nothing() -> None:
    for fields in ({"method": "diag.py:Diag"}, {"task.kind": "shout.py:Shout"}):
        with pytest.raises(RecipeError, match="is a program, .* add --import (diag|shout).py"):
            Recipe.load(None, recipe(**fields), run_files=False)
    assert runs() == 0
    own_files.run_file("diag.py", SpecError)
    assert Recipe.load(None, recipe(method="diag.py:Diag"), run_files=False).method


def saved() -> Path:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.parse("diag.py:Diag(start=0.1) + LoRA(rank=2)"))
    perturb(handle)
    return handle.save("one.safetensors")


def test_a_saved_inlay_says_which_file_it_needs() -> None:
    path = saved()
    forget()
    before = runs()
    model = zoo.fresh("llama")
    with pytest.raises(
        FileError, match="uses the method 'Diag', .* but in 'diag.py'; run that file"
    ):
        inlay.load(model, path)
    assert runs() == before, "a file never makes a program run"
    assert not inlay.attached(model)
    own_files.run_file("diag.py", SpecError)
    handle = inlay.load(model, path)
    assert repr(handle.spec) == "Diag(start=0.1) + LoRA(rank=2)"
    (gain,) = {t.shape for n, t in handle.named_tensors().items() if n.endswith("diag/gain")}
    assert gain == torch.Size([32])


@pytest.mark.parametrize(
    ("origins", "message"),
    [
        ({"Diag": "__main__"}, "in the program that trained it; define it before"),
        (
            {"Diag": "my_package.diagonal"},
            "in the module 'my_package.diagonal'; install and import",
        ),
        ({"Diag": "os; import evil"}, "install and import"),
        ([], "is damaged"),
        ("no", "is damaged"),
    ],
)
def test_what_a_header_says_is_text_alone(origins: object, message: str) -> None:
    path = saved()
    forget()
    with safe_open(path, "pt") as file:
        header = {**file.metadata(), "origins": json.dumps(origins)}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata={**header, "digest": digest(header, tensors)})
    modules = set(sys.modules)
    with pytest.raises(FileError, match=message):
        inlay.load(zoo.fresh("llama"), path)
    assert {n for n in set(sys.modules) - modules if "evil" in n or "my_package" in n} == set()
