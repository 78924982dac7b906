"""The memory of an evaluation, by its number of rows: `python -m bench.evaluation`.

A random base of two layers predicts random rows, which are read from a file, in a process of its
own for each number of rows. Measured is the largest resident memory of the process during the
evaluation (`VmHWM`, in MiB); for comparison also with all rows read and encoded at once.
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
from bench.live import MIB
from bench.memory import RESET, status
from inlay import LoRA
from inlay.data.dataset import Dataset
from inlay.data.loading import load, stream
from inlay.files.atomic import write_whole
from inlay.tasks import Regress
from inlay.training import evaluate
from inlay.training.recipes.run import spec_with_head

OUT = Path(__file__).parent / "evaluation.json"
COUNTS = (1_000, 10_000, 100_000)
WORDS = [f"w{number}" for number in range(500)]
LENGTH = 12
"""Words in a row."""

ROWS, BATCH = 64, 64
"""Rows of the warm-up, and of a batch."""


def write_rows(path: Path, count: int) -> None:
    """Write texts with one of five labels; the same texts for the same count."""
    generator = random.Random(count)

    def line(number: int) -> bytes:
        row = {"text": " ".join(generator.choices(WORDS, k=LENGTH)), "label": number % 5}
        return json.dumps(row).encode() + b"\n"

    write_whole(path, (line(number) for number in range(count)))


def base() -> tuple[hf.PreTrainedModel, hf.PreTrainedTokenizerBase]:
    """A random encoder of two layers, and a tokenizer whose tokens are words."""
    numbers = {word: number for number, word in enumerate(["<pad>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", unk_token="<unk>", model_max_length=64
    )
    config = hf.BertConfig(
        vocab_size=len(numbers), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    return hf.BertForMaskedLM(config).eval(), tokenizer


def measure(path: Path, whole: bool) -> dict[str, float]:
    """Memory and seconds of one evaluation in this process.

    whole: read and encode all rows first and keep them, as a loop over a list would.
    """
    model, tokenizer = base()
    task = Regress()
    inlay.attach(model, spec_with_head(LoRA(rank=2), task))
    task.bind(model, tokenizer)
    need = task.required_fields
    evaluate(model, task, islice(stream(path, need=need), ROWS), batch_size=BATCH)  # first use
    gc.collect()
    before = status("VmRSS")
    RESET.write_text("5")
    start = time.monotonic()
    data = load(path, need=need) if whole else stream(path, need=need)
    encoded = task.encode_all(data) if isinstance(data, Dataset) else []
    scores = evaluate(model, task, data, batch_size=BATCH)
    return {
        "peak": round(status("VmHWM"), 1),
        "grown": round(status("VmHWM") - before, 1),
        "seconds": round(time.monotonic() - start, 1),
        "encoded": len(encoded),
        "score": scores[task.metric],
    }


def in_own_process(path: Path, whole: bool) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "bench.evaluation", "--rows", str(path)]
    process = subprocess.run(
        command + ["--whole"] * whole, capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise RuntimeError(f"measuring {path} failed:\n{process.stderr[-2000:]}")
    numbers: dict[str, float] = json.loads(process.stdout.splitlines()[-1])
    return numbers


def main() -> None:
    """Measure one file of rows in this process, or every number of rows."""
    parser = argparse.ArgumentParser(description="Peak memory of evaluation by number of rows.")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--whole", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet()
    if options.rows:
        print(json.dumps(measure(options.rows, options.whole)))
        return
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for count in COUNTS:
            path = Path(folder) / f"{count}.jsonl"
            write_rows(path, count)
            size = round(path.stat().st_size / MIB, 1)
            for whole in (False, True) if count == max(COUNTS) else (False,):
                run = {"rows": count, "file": size, "whole": whole} | in_own_process(path, whole)
                print(run, flush=True)
                runs.append(run)
    write_whole(options.out, json.dumps({"unit": "MiB", "runs": runs}, indent=2).encode() + b"\n")


if __name__ == "__main__":
    main()
