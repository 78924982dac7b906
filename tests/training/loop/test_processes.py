"""Two processes train as one does, and go on from their checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inlay.errors import TrainingError
from inlay.training.loop.launch import processes
from tests.training.loop import side_by_side


def end(folder):
    result = json.loads((folder / "result.json").read_text())
    return result, load_file(folder / "end.safetensors")


def test_two_processes_are_as_one_and_go_on_as_two(tmp_path):
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    program = [sys.executable, *launch, "-m", "tests.training.loop.side_by_side", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    if torch.accelerator.is_available():  # one device is no place for two
        env["ACCELERATE_USE_CPU"] = "true"
    root = Path(__file__).parents[3]
    done = subprocess.run(program, cwd=root, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, done.stderr
    side_by_side.main(tmp_path / "one", 0)
    single, single_state = end(tmp_path / "one")
    double, double_state = end(tmp_path / "whole")
    resumed, resumed_state = end(tmp_path / "parts")
    assert (single["processes"], double["processes"], resumed["processes"]) == (1, 2, 2)
    assert single["steps"] == double["steps"] == 6
    assert single["tokens"] == double["tokens"]
    assert double["loss"] == pytest.approx(single["loss"], rel=1e-6)  # told in fp32
    assert double["best"]["score"] == pytest.approx(single["best"]["score"], rel=1e-9)
    for name, tensor in single_state.items():
        torch.testing.assert_close(double_state[name], tensor, rtol=1e-8, atol=1e-10)
        assert torch.equal(double_state[name], resumed_state[name])
    assert resumed == double


def test_processes_that_are_not_joined_are_refused(monkeypatch):
    processes()  # by now it is too late to join
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(TrainingError, match="2 processes were launched, and accelerate knows of 1"):
        processes()
