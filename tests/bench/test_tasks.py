"""bench/tasks.py: every cell is a recipe, and what is stored counts only as it was made."""

import json
from pathlib import Path

import pytest

from bench import tasks
from inlay.data.loading import load
from inlay.tasks import Task


@pytest.mark.parametrize("base", tasks.BASES)
@pytest.mark.parametrize("name", tasks.SETS)
def test_every_cell_is_a_recipe(name, base):
    one = tasks.SETS[name]
    for how in tasks.METHODS.values():
        recipe = tasks._recipe(one, base, how, 30, Path("data"), "out")
        assert recipe.training.minutes == 0.5
        assert isinstance(recipe.make_task(), Task)
        assert recipe.training.base_lr is not None or recipe.make_spec().methods
    assert (one.of("minilm") is one.head) and "verbalizer" not in one.head


def test_the_commonest_answer_is_given_to_all():
    rows = [{"text": "a", "label": label} for label in ("no", "yes", "no")]
    assert tasks._commonest(tasks.SETS["sst2"], load(rows), load(rows[:2])) == ["no", "no"]
    tagged = load([{"tokens": ["a", "b"], "tags": ["O", "B-x"]}])
    assert tasks._commonest(tasks.SETS["wnut17"], tagged, tagged) == [["O", "O"]]


def test_cells_are_measured_once_and_anew_where_the_budget_differs(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(tasks, "cell", lambda *a: asked.append(a[:4]) or {"refused": "no"})
    assert tasks._measure("sst2", 60, Path(), tmp_path, 2) == 2
    assert tasks._measure("sst2", 60, Path(), tmp_path, 100) == 13
    assert len(asked) == len(set(asked)) == 15
    assert tasks._measure("sst2", 60, Path(), tmp_path, 100) == 0
    assert len(json.loads((tmp_path / "sst2.json").read_text())["cells"]) == 15
    assert tasks._measure("sst2", 30, Path(), tmp_path, 1) == 1
    assert len(json.loads((tmp_path / "sst2.json").read_text())["cells"]) == 1
