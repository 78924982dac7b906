"""The memory of an evaluation by how many rows it has: `python -m bench.evaluation`.

A random base of two layers answers rows that are made for the purpose, in a process of its own for
each number of rows. What is told is the largest set of pages that the process held while it
evaluated (`VmHWM`, in MiB), beside that of 1,000 rows, and for comparison what the same rows take
when they are read into memory and encoded all at once. The rows stand in a file, as they would.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

import inlay
from bench.base import quiet
from bench.memory import MIB, RESET, status
from inlay import LoRA
from inlay.data.dataset import Dataset
from inlay.data.loading import load, stream
from inlay.files.atomic import write_whole
from inlay.tasks import Regress
from inlay.training import evaluate
from inlay.training.recipes.run import headed

OUT = Path(__file__).parent / "evaluation.json"
COUNTS = (1_000, 10_000, 100_000)
WORDS = [f"w{number}" for number in range(500)]
LENGTH = 12
"""Words a row."""

ROWS, BATCH = 64, 64
"""Rows of the warm-up, and of a batch."""


def write_rows(path: Path, count: int) -> None:
    """Texts with one of five labels; the same for the same count."""
    draw = random.Random(count)

    def line(number: int) -> bytes:
        row = {"text": " ".join(draw.choices(WORDS, k=LENGTH)), "label": number % 5}
        return json.dumps(row).encode() + b"\n"

    write_whole(path, (line(number) for number in range(count)))


def base() -> tuple[hf.PreTrainedModel, hf.PreTrainedTokenizerBase]:
    """A random encoder of two layers, and a tokenizer whose tokens are words."""
    numbers = {word: number for number, word in enumerate(["<pad>", "<unk>", *WORDS])}
    made = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    read = hf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", model_max_length=64
    )
    config = hf.BertConfig(
        vocab_size=len(numbers), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return hf.BertForMaskedLM(config).eval(), read


def measure(path: Path, whole: bool) -> dict[str, float]:
    """Peak and seconds of one evaluation in this process.

    whole: read and encode everything first, and keep it, as a loop over a list would.
    """
    model, tokenizer = base()
    task = Regress()
    inlay.attach(model, headed(LoRA(rank=2), task))
    task.bind(model, tokenizer)
    need = task.needs
    evaluate(model, task, islice(stream(path, need=need), ROWS), batch_size=BATCH)  # first use
    gc.collect()
    before = status("VmRSS")
    RESET.write_text("5")
    begun = time.monotonic()
    data = load(path, need=need) if whole else stream(path, need=need)
    kept = task.encode_all(data) if isinstance(data, Dataset) else []
    scores = evaluate(model, task, data, batch_size=BATCH)
    return {
        "peak": round(status("VmHWM"), 1),
        "grown": round(status("VmHWM") - before, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "kept": len(kept),
        "score": scores[task.metric],
    }


def apart(path: Path, whole: bool) -> dict[str, float]:
    """`measure` in a process of its own."""
    run = [sys.executable, "-m", "bench.evaluation", "--rows", str(path)]
    done = subprocess.run(run + ["--whole"] * whole, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"measuring {path} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure one, or all."""
    parser = argparse.ArgumentParser(description="Peak memory of evaluation by number of rows.")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    quiet()
    if given.rows:
        print(json.dumps(measure(given.rows, given.whole)))
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for count in COUNTS:
            path = Path(folder) / f"{count}.jsonl"
            write_rows(path, count)
            size = round(path.stat().st_size / MIB, 1)
            for whole in (False, True) if count == max(COUNTS) else (False,):
                made = {"rows": count, "file": size, "whole": whole} | apart(path, whole)
                print(made, flush=True)
                found.append(made)
    write_whole(given.out, json.dumps({"unit": "MiB", "found": found}, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
