"""bench/tasks.py: every cell is a recipe, and stored cells count only with the same setting."""

import json
from pathlib import Path

import pytest

from bench import tasks
from inlay.data.loading import load
from inlay.tasks import Task


@pytest.mark.parametrize("base", tasks.BASES)
@pytest.mark.parametrize("name", tasks.SETS)
def test_every_cell_is_a_recipe(name, base):
    data_set = tasks.SETS[name]
    for fields in tasks.METHODS.values():
        recipe = tasks.recipe_of(data_set, base, fields, 30, Path("data"), "out")
        assert recipe.training.minutes == 0.5
        assert isinstance(recipe.make_task(), Task)
        assert recipe.training.base_lr is not None or recipe.make_spec().methods
    assert data_set.of("minilm") is data_set.head and data_set.head.get("by") in (None, "head")


def test_the_most_frequent_answer_is_given_to_all():
    rows = [{"text": "a", "label": label} for label in ("no", "yes", "no")]
    assert tasks.most_frequent(tasks.SETS["sst2"], load(rows), load(rows[:2])) == ["no", "no"]
    tagged = load([{"tokens": ["a", "b"], "tags": ["O", "B-x"]}])
    assert tasks.most_frequent(tasks.SETS["wnut17"], tagged, tagged) == [["O", "O"]]


def test_cells_are_measured_once_and_again_with_another_budget(tmp_path, monkeypatch):
    cells = []
    monkeypatch.setattr(tasks, "cell", lambda *a: cells.append(a[:4]) or {"refused": "no"})
    assert tasks.measure_set("sst2", 60, Path(), tmp_path, 2) == 2
    assert tasks.measure_set("sst2", 60, Path(), tmp_path, 100) == 13
    assert len(cells) == len(set(cells)) == 15
    assert tasks.measure_set("sst2", 60, Path(), tmp_path, 100) == 0
    assert len(json.loads((tmp_path / "sst2.json").read_text())["cells"]) == 15
    assert tasks.measure_set("sst2", 30, Path(), tmp_path, 1) == 1
    assert len(json.loads((tmp_path / "sst2.json").read_text())["cells"]) == 1
