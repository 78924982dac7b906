"""A run that is killed at any instant ends with the same numbers as one that is not."""

import json
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file

from tests.training import tiny


def log(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines]


def test_killed_at_any_instant_and_then_on(tmp_path):
    program = [sys.executable, "-m", "tests.training.loop.killed", str(tmp_path)]
    root = Path(__file__).parents[3]
    done = subprocess.run(program, cwd=root, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    at_random, at_writes = map(int, done.stdout.split())
    assert at_random >= 2
    assert at_writes >= 15
    whole = load_file(tmp_path / "whole" / "end.safetensors")
    for kind in ("random", "writes"):
        assert tiny.same(load_file(tmp_path / kind / "end.safetensors"), whole), kind
        assert log(tmp_path / kind) == log(tmp_path / "whole"), kind
        names = sorted(path.name for path in (tmp_path / kind).iterdir())
        assert names == ["checkpoint.safetensors", "end.safetensors", "log.jsonl"]
