"""The page on several tasks does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from inlay.budget import count_parameters
from tests import zoo
from tests.methods import exact

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
    size = sum(p.numel() for p in zoo.fresh("llama").parameters())
    for method, budget in (("lora", size // 20), ("adapter", 20_000), ("prefix", 25_000)):
        assert 0.5 * budget < count_parameters(model, names[method]) <= budget
