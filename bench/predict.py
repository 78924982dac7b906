"""The memory of `inlay predict` over a long file: `python -m bench.predict [ROWS]`.

A tiny random base labels 2,000 rows of a CSV file, then ROWS rows (100,000 by default), in one
process. `peak` is the largest resident memory meanwhile, as the Linux kernel counts it, in MiB.
What grows with a file would show as a difference between the two.
"""

from __future__ import annotations

import csv
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

import inlay
from bench.base import quiet
from bench.memory import RESET, status
from inlay import Head, LoRA
from inlay.files.usage import Usage
from inlay.predicting import predict_file
from inlay.tasks import Classify, TrainedHead

WORDS = [f"word{number}" for number in range(500)]
LABELS = ("no", "yes")
FIRST_ROWS = 2_000


def trained(folder: Path) -> Path:
    """The file of an inlay on a base of two blocks, both random."""
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]"
    )
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = hf.BertConfig(**sizes, intermediate_size=64, vocab_size=len(vocabulary))
    torch.manual_seed(0)
    base = hf.BertModel(config)
    base.save_pretrained(folder / "base")
    fast.save_pretrained(folder / "base")
    handle = inlay.attach(base, LoRA(rank=2) + Head(labels=LABELS))
    task = Classify(by=TrainedHead(labels=LABELS))
    usage = Usage(base="base", beside=True, task=task.describe())
    return handle.save(folder / "default.safetensors", tokenizer=fast, usage=usage)


def write_rows(path: Path, count: int) -> Path:
    """A CSV file of drawn texts, with a column of 200 characters beside each."""
    draw = random.Random(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "note"])
        for number in range(count):
            words = " ".join(draw.choices(WORDS, k=draw.randint(3, 20)))
            writer.writerow([number, words, f"{number:0200}"])
    return path


def measure(rows: int) -> dict[str, float]:
    """The peaks of a short and a long file, and how many rows a second."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        predictor = inlay.open(trained(folder))
        numbers: dict[str, float] = {"loaded": round(status("VmRSS"), 1)}
        for label, count in (("short", FIRST_ROWS), ("long", rows)):
            source = write_rows(folder / f"{label}.csv", count)
            RESET.write_text("5")
            start = time.monotonic()
            result = predict_file(predictor, source, folder / f"{label}-out.csv", batch_size=32)
            assert result.rows == count
            numbers |= {
                f"{label} rows": count,
                f"{label} peak": round(status("VmHWM"), 1),
                f"{label} rows/s": round(count / (time.monotonic() - start)),
            }
            with (folder / f"{label}-out.csv").open(encoding="utf-8") as file:
                assert sum(1 for _ in file) == count + 1
        return numbers


if __name__ == "__main__":
    quiet()
    print(json.dumps(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)))
