"""A tiny base as a folder, rows to teach it, and a way to run the command line."""

import json
from dataclasses import dataclass

import pytest

from inlay_cli.app import main
from tests import zoo
from tests.tasks import tiny


@dataclass
class Run:
    """The exit code and the output of one command line."""

    code: int
    out: str
    err: str

    @property
    def error(self):
        """The error message, which must be the last line and the only one of its kind."""
        lines = [line for line in self.err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0]
        assert self.code == 2
        assert "Traceback" not in self.err
        return lines[0]


@pytest.fixture
def inlay(capsys, monkeypatch, tmp_path):
    """`inlay("sites", base)` runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "150")

    def run(*words):
        capsys.readouterr()
        code = main([str(word) for word in words])
        output = capsys.readouterr()
        return Run(code, output.out, output.err)

    return run


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A decoder of three blocks with a tokenizer of a hundred words."""
    return _saved(tmp_path_factory, "llama", "decoder")


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    """A BERT of three blocks with a tokenizer of a hundred words."""
    return _saved(tmp_path_factory, "bert", "encoder")


def _saved(factory, family, kind):
    folder = factory.mktemp("bases") / family
    zoo.fresh(family).save_pretrained(folder)
    tiny.tokenizer(kind).save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path):
    """Twelve rows of sources and targets."""
    words = tiny.WORDS
    rows = [{"source": f"the {words[n]}", "target": words[n + 1]} for n in range(12)]
    return _written(tmp_path / "rows.jsonl", rows)


@pytest.fixture
def reviews(tmp_path):
    """Twelve rows of texts and labels."""
    rows = [
        {"text": f"the film was {word}", "label": label}
        for word, label in [("good", "yes"), ("bad", "no"), ("fine", "yes"), ("dull", "no")] * 3
    ]
    return _written(tmp_path / "reviews.jsonl", rows)


def _written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tmp_path, base, rows):
    """A recipe of three steps."""
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"base: {base}\n"
        "method: LoRA(rank=2)\n"
        "task: {kind: generate}\n"
        f"data:\n  train: {{source: {rows}}}\n  dev: {{source: {rows}, limit: 4}}\n"
        "training: {steps: 3, batch_size: 4}\n"
        f"out: {tmp_path / 'run'}\n"
    )
    return path


@pytest.fixture
def trained(inlay, recipe, tmp_path):
    """The file that training `recipe` writes."""
    run = inlay("train", recipe)
    assert run.code == 0, run.err
    return tmp_path / "run" / "default.safetensors"
