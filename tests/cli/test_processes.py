"""Commands in processes of their own: several that train together, and one whose hashes differ."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def started(folder, *words, **variables):
    """A process that runs Python with these arguments in a new folder."""
    folder.mkdir()
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **variables}
    if torch.accelerator.is_available():  # one device is no place for two
        env["ACCELERATE_USE_CPU"] = "true"
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, *map(str, words)], cwd=folder, env=env, text=True, stdout=pipe, stderr=pipe
    )


def test_two_processes_train_and_report_as_one(recipe, tmp_path):
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    process = started(
        tmp_path / "two",
        *(*launch, "-m", "inlay_cli.app", "train", recipe, "--out", "run"),
        COLUMNS="150",
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert out.count("saved in") == out.count("3 steps") == 1
    assert (tmp_path / "two" / "run" / "default.safetensors").exists()


def test_two_processes_score_and_report_as_one(trained, rows, tmp_path):
    launch = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone")
    words = ("eval", trained, "--data", rows, "--json", "--predictions", "each.jsonl")
    process = started(tmp_path / "two", *launch, "-m", "inlay_cli.app", *words)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert json.loads(out)["rows"] == 4  # one report, of as many rows as dev has
    assert len((tmp_path / "two" / "each.jsonl").read_text().splitlines()) == 4


def test_a_command_that_shares_no_work_runs_in_the_first_process_alone(
    inlay, trained, rows, tmp_path, monkeypatch
):
    for rank in ("1", "0"):
        launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        for name, value in launched.items():
            monkeypatch.setenv(name, value)
        run = inlay("predict", trained, rows, "--out", tmp_path / "answers.jsonl")
        assert run.code == 0, run.err
        assert (tmp_path / "answers.jsonl").exists() == (rank == "0")
        assert not run.out and ("wrote 12 rows" in run.err) == (rank == "0")


def test_the_same_run_writes_the_same_bytes_whatever_python_hashes(recipe, tmp_path, inlay):
    words = ("train", recipe, "--out", "run", "--method", "LoRA(rank=2) + Prefix(length=2)")
    process = started(tmp_path / "other", "-m", "inlay_cli.app", *words, PYTHONHASHSEED="7")
    run = inlay(*words)
    assert run.code == 0, run.err
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    path = Path("run", "default.safetensors")
    assert (tmp_path / path).read_bytes() == (tmp_path / "other" / path).read_bytes()
