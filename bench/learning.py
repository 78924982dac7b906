"""A training run on movie reviews: `inlay.fit`, and peft with transformers.Trainer.

Both see the same rows in batches of 16, take the same number of steps with the same peak learning
rate and schedule, and are tested with the same question about the same held-out reviews.
"""

from __future__ import annotations

import io
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import peft
import torch
from rich.console import Console
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

import inlay
from bench.base import model, tokenizer
from bench.steps import OURS, THEIRS
from bench.timing import synchronise
from inlay.data.dataset import Dataset
from inlay.data.loading import load
from inlay.hub import fetch_sentiment
from inlay.tasks import Classify, Verbalizer

TEMPLATE = "{text} All in all, it was"
WORDS = {"negative": " bad", "positive": " great"}
RATES = {"lora": 1e-3, "prompt": 1e-2}
WARMUP, ROWS = 0.06, 16


@dataclass(frozen=True)
class Run:
    """The speed of the training steps, and the accuracy afterwards."""

    examples_per_second: float
    accuracy: float


def reviews(split: str, limit: int) -> Dataset:
    """Movie reviews, the same ones every time."""
    path = fetch_sentiment() / "movie" / f"{split}.jsonl"
    return load(path, need=("text", "label"), limit=limit)


def ours(name: str, seed: int, steps: int, train: Dataset, test: Dataset) -> Run:
    """`inlay.fit` on the task `classify` with a word for each label."""
    set_seed(seed)
    base, words = model(), tokenizer()
    task = Classify(template=TEMPLATE, by=Verbalizer(WORDS))
    task.bind(base, words)
    handle = inlay.attach(base, OURS[name])
    console = Console(file=io.StringIO())
    options = {
        "lr": RATES[name],
        "warmup": WARMUP,
        "batch_size": ROWS,
        "steps": steps,
        "seed": seed,
    }
    result = inlay.fit(base, handle, task, train, console=console, **options)
    return Run(steps * ROWS / result.seconds, accuracy(base, words, test))


def theirs(name: str, seed: int, steps: int, train: Dataset, test: Dataset) -> Run:
    """peft's method, trained on the word as the next token."""
    set_seed(seed)
    base, words = model(), tokenizer()
    words.padding_side = "right"
    adapted = peft.get_peft_model(base, THEIRS[name])
    rows = [_row(words, example.fields) for example in train]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=ROWS,
            max_steps=steps,
            learning_rate=RATES[name],
            warmup_steps=WARMUP,
            lr_scheduler_type="linear",
            seed=seed,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        collator = DataCollatorForSeq2Seq(words)
        trainer = Trainer(adapted, arguments, train_dataset=rows, data_collator=collator)
        trainer.remove_callback(PrinterCallback)
        start = time.perf_counter()
        trainer.train()
        synchronise()
        seconds = time.perf_counter() - start
    return Run(steps * ROWS / seconds, accuracy(adapted, words, test))


def _row(words: Any, fields: Any) -> dict[str, list[int]]:
    source = words(TEMPLATE.format(text=fields["text"]))["input_ids"]
    word = words(WORDS[fields["label"]])["input_ids"]
    return {
        "input_ids": source + word,
        "attention_mask": [1] * (len(source) + len(word)),
        "labels": [-100] * len(source) + word,
    }


@torch.no_grad()
def accuracy(model: Any, words: Any, test: Dataset) -> float:
    """How often the right one of the two words is more probable."""
    model.eval()
    choices = [words(word)["input_ids"][0] for word in WORDS.values()]
    right = 0
    for start in range(0, len(test), 2 * ROWS):
        examples = test[start : start + 2 * ROWS]
        texts = [TEMPLATE.format(text=example.fields["text"]) for example in examples]
        batch = words(texts, padding=True, padding_side="right", return_tensors="pt")
        batch = batch.to(model.device)
        logits = model(**batch, use_cache=False).logits
        prompt = logits.shape[1] - batch["input_ids"].shape[1]  # peft gives logits for it as well
        last = prompt + batch["attention_mask"].sum(1) - 1
        scores = logits[torch.arange(len(logits)), last][:, choices]
        labels = [list(WORDS)[best] for best in scores.argmax(1).tolist()]
        pairs = zip(labels, examples, strict=True)
        right += sum(label == example.fields["label"] for label, example in pairs)
    return right / len(test)
