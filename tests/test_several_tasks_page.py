"""The page on several tasks does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

import inlay
from inlay import hub
from inlay.budget import count_parameters
from inlay.hub import load_base
from inlay.training.recipes import reading
from inlay_cli.app import main
from tests import zoo
from tests.methods import exact
from tests.tasks import tiny

PAGE = Path(__file__).parents[1] / "docs" / "several_tasks.md"


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = zoo.fresh("llama")
    names: dict[str, Any] = {"model": model, "batch": exact.batch("llama")}
    with torch.no_grad():
        for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.S | re.M):
            exec(code, names)
    assert names["topics"].shape == (2, 7, 99)
    assert {placed.site.layer for placed in names["short"].placed} == {1, 2}
    assert 0 < names["mean"] < 1 and len(names["small"].spec.names) == 2
    assert [len(placed.piece.names) for placed in names["own"].placed] == [1, 1, 1]
    assert names["layer"] == 2 and names["gates"].shape == (2, 1)
    size = sum(p.numel() for p in zoo.fresh("llama").parameters())
    for method, budget in (("lora", size // 20), ("adapter", 20_000), ("prefix", 25_000)):
        assert 0.5 * budget < count_parameters(model, names[method]) <= budget


def test_the_recipe_and_the_commands_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a tiny base; the commands run in their order."""
    monkeypatch.chdir(tmp_path)
    real, words = load_base, tiny.tokenizer("encoder")
    zoo.fresh("bert").save_pretrained("tiny")
    words.save_pretrained("tiny")
    for module in (hub, reading):
        monkeypatch.setattr(module, "load_base", lambda name, **more: real("tiny", **more))
    model, tokenizer = real("tiny")
    inlay.attach(model, inlay.Pfeiffer(bottleneck=24)).save(
        "topics.safetensors", tokenizer=tokenizer
    )
    for name in ("reviews", "questions", "new", "more"):
        rows = [f"the {word} film,{label}" for word, label in (("good", "a"), ("bad", "b")) * 4]
        Path(f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    page = PAGE.read_text("utf-8")
    (recipe,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.S | re.M)
    Path("recipe.yaml").write_text(recipe)
    commands = re.findall(r"^inlay (.*?)(?: +#.*)?$", page, re.M)
    assert len(commands) == 6
    for command in commands:
        assert main(shlex.split(command)) == 0, capsys.readouterr().err
    assert Path("fused.html").is_file()
