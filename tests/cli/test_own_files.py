"""Methods and tasks in files of one's own, on the command line: named, completed, and needed."""

import json

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from inlay.files.format import digest
from inlay_cli import completion, names
from tests.core.test_own_files import METHOD, TASK, forget


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "diag.py").write_text(METHOD)
    (tmp_path / "shout.py").write_text(TASK)
    yield
    forget()


def test_a_method_of_ones_own_from_training_to_use(inlay, base, recipe, tmp_path):
    run = inlay("train", recipe, "--method", "diag.py:Diag(start=0.1) + LoRA(rank=2)")
    assert run.code == 0, run.err
    file = tmp_path / "run" / "default.safetensors"
    assert "--import diag.py" in run.out.splitlines()[-1]
    forget()  # as in another process
    needed = "uses the method 'Diag', which is not part of inlay but in 'diag.py'; run that file"
    for words in (
        ("eval", base, file),
        ("generate", base, file, "the cat"),
        ("merge", base, file, "o"),
    ):
        message = inlay(*words).error
        assert needed in message or "add --import diag.py" in message
    run = inlay("eval", base, file, "--import", "diag.py", "--json")
    assert run.code == 0, run.err
    forget()
    assert inlay("--import=diag.py", "generate", base, file, "the cat").code == 0


def test_a_recipe_next_to_a_file_runs_no_program(inlay, base, recipe, tmp_path):
    """Whoever sends a trained file may send a recipe with it."""
    assert inlay("train", recipe).code == 0
    path = tmp_path / "run" / "recipe.yaml"
    path.write_text(path.read_text().replace("LoRA(rank=2)", "diag.py:Diag"))
    file = path.with_name("default.safetensors")
    assert "diag.py is a program" in inlay("eval", base, file).error
    assert inlay("generate", base, file, "the cat").code == 0, "it reads no recipe"
    assert not (tmp_path / "runs.txt").exists()
    assert inlay("eval", base, file, "--recipe", path).code == 0, "named by the user, it does"
    assert (tmp_path / "runs.txt").exists()


def test_a_file_that_names_a_program_as_its_task_runs_none(inlay, base, trained, tmp_path):
    with safe_open(trained, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    usage = json.loads(header["usage"])
    usage["task"]["task"] = "diag.py:Diag"
    header["usage"] = json.dumps(usage)
    save_file(tensors, trained, metadata={**header, "digest": digest(header, tensors)})
    for words in (("eval", base, trained), ("generate", base, trained, "the cat")):
        assert "there is no task 'diag.py:Diag'" in inlay(*words).error
    trained.with_name("recipe.yaml").unlink()
    assert "there is no task" in inlay("eval", base, trained, "--data", "rows.jsonl").error
    assert not (tmp_path / "runs.txt").exists()


def test_a_task_of_ones_own(inlay, base, recipe, tmp_path):
    words = ("--task", "shout.py:Shout", "--set", "task.volume=2", "--fresh")
    run = inlay("train", recipe, *words)
    assert run.code == 0, run.err
    text = (tmp_path / "run" / "recipe.yaml").read_text()
    assert "kind: shout.py:Shout" in text
    assert "volume: 2" in text
    forget()
    file = tmp_path / "run" / "default.safetensors"
    assert (
        "the task 'shout' is not part of inlay but in 'shout.py'" in inlay("eval", base, file).error
    )
    assert inlay("eval", base, file, "--import", "shout.py").code == 0


def test_check_and_methods_take_a_file(inlay, base):
    run = inlay("methods", "diag.py:Diag")
    assert run.code == 0, run.err
    assert "of g." in run.out
    assert '--method "diag.py:Diag(start=0.0)"' in run.out
    assert "did you mean 'Diag'?" in inlay("check", base, "--method", "diag.py:Diga").error


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("sites", "x", "--import"), "--import takes a Python file"),
        (("sites", "x", "--import", "gone.py"), "there is no file gone.py"),
        (("train", "--task", "gone.py:Shout"), "there is no file gone.py"),
    ],
)
def test_a_wrong_file_is_named(inlay, words, part):
    more = ("--base", "x", "--method", "LoRA", "--train", "r.jsonl", "--out", "o")
    assert part in inlay(*words, *(more if words[0] == "train" else ())).error


def test_classes_in_a_file_complete_without_running_it(tmp_path):
    assert names.methods("diag.py:")[-1] == "diag.py:Diag"
    assert "shout.py:Shout" in names.tasks("shout.py:Sh", ["generate"])
    assert "diag.py:" in names.methods("di")
    assert not [name for name in names.methods("shout.py:") if name.startswith("shout")]
    (tmp_path / "broken.py").write_text("class A(:")
    assert not [name for name in names.methods("broken.py:") if name.startswith("broken")]
    assert not (tmp_path / "runs.txt").exists()


def test_paths_complete_with_what_folders_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "deep").mkdir(parents=True)
    (tmp_path / "recipes" / "one.yaml").touch()
    (tmp_path / "recipes" / "rows.jsonl").touch()
    (tmp_path / "rest.yml").touch()
    (tmp_path / ".hidden.yaml").touch()
    assert names.recipes("re") == ["recipes/", "recipes/deep", "recipes/one.yaml", "rest.yml"]
    assert names.recipes("recipes/") == ["recipes/deep/", "recipes/one.yaml"]
    assert names.recipes("./res") == ["./rest.yml"]
    assert names.data("recipes/r") == ["recipes/rows.jsonl"]
    assert names.inlays("gone/") == []


@pytest.mark.parametrize(
    ("words", "current", "joined"),
    [
        (
            ["inlay", "check", "b", "--method", "diag.py", ":", "Di"],
            6,
            ("diag.py:Di", 4, "diag.py:"),
        ),
        (["inlay", "check", "b", "--method", "diag.py", ":"], 5, ("diag.py:", 4, "diag.py:")),
        (["inlay", "check", "b", "--method", "diag.py", ":", ""], 6, ("diag.py:", 4, "diag.py:")),
        (["inlay", "train", "a", ":", "b", "--met"], 5, ("--met", 3, "")),
        (["inlay", "sites", "smo"], 2, ("smo", 2, "")),
    ],
)
def test_words_with_a_colon_are_joined_for_bash(words, current, joined):
    texts, number, before = completion.join(words, current)
    assert (texts[number] if number < len(texts) else "", number, before) == joined
