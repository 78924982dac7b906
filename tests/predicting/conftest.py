"""Tiny bases in folders, and inlays that were trained on them for a few steps."""

import io
import json

import pytest
from rich.console import Console

import inlay
from inlay.training import Recipe, run
from tests import zoo
from tests.tasks import tiny

REVIEWS = [
    {"text": f"the film was {word} {extra}", "label": label}
    for word, label in [("good", "yes"), ("bad", "no"), ("fine", "yes"), ("dull", "no")] * 5
    for extra in ("and new", "it was old")
]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """The bases `llama` and `bert`."""
    folder = tmp_path_factory.mktemp("predicting")
    for family, kind in (("llama", "decoder"), ("bert", "encoder")):
        zoo.fresh(family).save_pretrained(folder / family)
        tiny.tokenizer(kind).save_pretrained(folder / family)
    return folder


def train(folder, name, base, task, rows, dev=None, **fields):
    """Train for three steps; returns the outcome."""
    data = {"train": {"source": str(write(folder / f"{name}.jsonl", rows))}}
    if dev is not None:
        data["dev"] = {"source": str(write(folder / f"{name}-dev.jsonl", dev))}
    recipe = Recipe.model_validate(
        {
            "base": str(folder / base),
            "method": "LoRA(rank=2)",
            "task": task,
            "data": data,
            "training": {"steps": 3, "batch_size": 8},
            "out": str(folder / name),
            **fields,
        }
    )
    return run(recipe, Console(file=io.StringIO()))


@pytest.fixture(scope="package")
def reviews(folder):
    """The file of a classifier that was calibrated."""
    return train(folder, "reviews", "bert", {"kind": "classify"}, REVIEWS, REVIEWS[:12]).path


@pytest.fixture(scope="package")
def writer(folder):
    """The file of an inlay that writes."""
    rows = [
        {"source": f"the {a}", "target": f"{b} {a}"}
        for a, b in zip(tiny.WORDS, tiny.WORDS[1:], strict=False)
    ]
    task = {"kind": "generate", "generation": {"max_new_tokens": 6}}
    return train(folder, "writer", "llama", task, rows).path


@pytest.fixture
def predictor(reviews):
    """The classifier, opened."""
    return inlay.open(reviews)
