"""The examples that bring their own tiny bases run, and what they train learns."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("name", "stacks"),
    [
        ("whisper_words.py", {"audio", "decoder"}),
        ("llava_pictures.py", {"vision", "decoder"}),
    ],
)
def test_bases_of_several_stacks_learn_with_trainer(capsys, name, stacks):
    scope = runpy.run_path(str(ROOT / "examples" / name))
    handle = scope["words" if "words" in scope else "colours"]
    assert {placed.site.stack for placed in handle.placed} == stacks
    losses = re.search(r"loss ([\d.]+) -> ([\d.]+)", capsys.readouterr().out)
    assert losses is not None
    first, last = map(float, losses.groups())
    assert last < first / 2
