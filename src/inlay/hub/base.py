"""`load_base`: a pretrained model and its tokenizer, ready for a task."""

from __future__ import annotations

from difflib import get_close_matches
from logging import ERROR, WARNING
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
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

from inlay.core.quantised import keep_layout, memory_of, quantised_modules
from inlay.errors import FetchError, nearest
from inlay.hub.convert import quiet
from inlay.hub.models import MODELS, announce, fetch_model
from inlay.hub.packages import Report
from inlay.hub.processor import is_emulated
from inlay.hub.quantise import quantisation_config

NF4_BLOCK = 64
"""How many numbers share a scale. On a CPU bitsandbytes 0.50 starts a block with every row, where
quantising did not, and so reads other matrices than it wrote."""

HUB_TIMEOUT = 3.0
"""Seconds that a model hub has to answer."""


def load_base(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | Literal["stored"] | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
    report: Report = announce,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base and its tokenizer.

    A decoder comes with its language-model head and a tokenizer that pads on the left; an
    encoder–decoder with its head; an encoder with its masked-language head where one was trained,
    and without a head otherwise (a classification head is a piece of an inlay). The tokenizer
    always has a pad token; where the model has none it is the end token.

    Args:
        name_or_path: a bundled name, a local folder, or what `from_pretrained` takes.
        dtype: of the weights; "stored" for the one they are stored in. None does the same, except
            where the model stays on a CPU that only emulates that type (see `is_emulated`): there
            it is loaded in float32.
        device: where to put the model. None leaves it on the CPU; it then counts as staying there
            only if the machine has no accelerator.
        quantize: keep the matrices of the frozen base in fewer bits: "int8", "nf4", "torchao-int8"
            or "torchao-int4" (see `QUANTISATIONS`); `dtype` is then what it computes in.
        report: called with one line of text at each step of a fetch, and where weights are not
            kept in their stored type.

    A hub that does not answer within seconds is not waited for: the model is then loaded from
    what was downloaded before.

    Raises FetchError: nothing of that name can be found or loaded, the tokenizer has neither a pad
    nor an end token, or the machine has no such device.
    """
    if device is not None:
        _check_device(device)
    name = str(name_or_path)
    level = WARNING
    if not Path(name).exists() and "/" not in name and get_close_matches(name, MODELS, 1, 0.8):
        name = str(fetch_model(name, report))  # a typing error is refused, not searched on a hub
        level = ERROR  # nobody here can change what transformers warns of in these files
    stays = torch.device(device).type == "cpu" if device is not None else _has_no_accelerator()
    if quantize is not None:
        return _load_quantised(name, quantize, dtype, device, level, stays, report)
    model, tokenizer = _load(name, "auto" if dtype in (None, "stored") else dtype, level)
    if device is not None:
        model = model.to(device)
    if dtype is None and stays and is_emulated(model.dtype):
        _report_emulated(model.dtype, report)
        model = model.float()
    return model, tokenizer


def _load_quantised(
    name: str,
    quantize: str,
    dtype: torch.dtype | Literal["stored"] | None,
    device: torch.device | str | None,
    level: int,
    stays: bool,
    report: Report,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a base with quantised matrices, which have to be made where they will stay."""
    quantisation_config(quantize, torch.float32)  # refuse before anything is read
    problem = None if Path(name).exists() else _hub_problem(name)
    try:
        stored = AutoConfig.from_pretrained(name, local_files_only=problem is not None).dtype
    except (OSError, ValueError, KeyError) as error:
        raise FetchError(_load_message(name, problem or _first_line(error))) from error
    computes = dtype if isinstance(dtype, torch.dtype) else stored or torch.float32
    if dtype is None and stays and is_emulated(computes):
        _report_emulated(computes, report)
        computes = torch.float32
    options: dict[str, Any] = {"quantization_config": quantisation_config(quantize, computes)}
    if device is not None:
        options["device_map"] = {"": device}
    model, tokenizer = _load(name, computes, level, **options)
    _check_quantised(name, model, quantize)
    keep_layout(model.modules())
    report(f"{name} is quantised to {quantize}: {memory_of(model) / 2**20:,.0f} MiB")
    return model, tokenizer


def _check_quantised(name: str, model: PreTrainedModel, quantize: str) -> None:
    """Raise FetchError where nothing was quantised, or a library computes wrongly with it."""
    modules = quantised_modules(model)
    if not modules:
        raise FetchError(
            f"nothing of {name} was quantised to {quantize}: none of its matrices is a torch.nn."
            "Linear; use int8 or nf4, which know Conv1D too"
        )
    for path, module in modules.items():
        if quantize == "nf4" and module.in_features % NF4_BLOCK and model.device.type == "cpu":
            raise FetchError(
                f"{name} cannot be used in nf4 on a CPU: {path} has rows of {module.in_features}, "
                f"and bitsandbytes computes rightly there with multiples of {NF4_BLOCK} alone; use "
                "int8"
            )


def _has_no_accelerator() -> bool:
    return not torch.accelerator.is_available()


def _report_emulated(dtype: torch.dtype, report: Report) -> None:
    stored = str(dtype).removeprefix("torch.")
    report(f"this processor only emulates products in {stored}; going on in float32")


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # unknown, absent, or not built in
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        known = "cpu" if accelerator is None else f"cpu or {accelerator.type}"
        raise FetchError(f"this machine has no device {str(device)!r}; use {known}") from None


def _load(name: str, dtype: torch.dtype | str, level: int, **loading: Any) -> tuple[Any, Any]:
    """The model and tokenizer of a folder or of the hub.

    level: what transformers may log. loading: more arguments for the model.
    """
    hub_problem = None if Path(name).exists() else _hub_problem(name)
    options: dict[str, Any] = {"local_files_only": hub_problem is not None}
    try:
        with quiet(level):
            config = AutoConfig.from_pretrained(name, **options)
            kind = _model_class(config)
            model = kind.from_pretrained(name, dtype=dtype, **options, **loading)
            tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, KeyError) as error:
        missing = isinstance(error, OSError)
        reason = hub_problem if hub_problem is not None and missing else _first_line(error)
        raise FetchError(_load_message(name, reason)) from error
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise FetchError(
                f"the tokenizer of {name} has neither a pad token nor an end token; "
                "add a pad token to its tokenizer_config.json"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if _is_decoder(config):
        tokenizer.padding_side = "left"
    return model, tokenizer


def _is_decoder(config: PreTrainedConfig) -> bool:
    if config.is_encoder_decoder or config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return False
    # The family of an encoder has causal classes too, for configs with is_decoder=True.
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


def _hub_problem(name: str) -> str | None:
    """Why the model hub does not answer, asked once for this model; None where it does.

    Without this, transformers tries for half a minute to reach the hub.
    """
    try:
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=HUB_TIMEOUT)
    except HfHubHTTPError as error:  # "no such model" is an answer
        return _first_line(error) if error.response.status_code >= 500 else None
    except HFValidationError:
        return None
    except Exception as error:  # whatever the hub's client raises where there is no network
        return f"the hub cannot be reached: {_first_line(error)}"
    return None


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _load_message(name: str, reason: str) -> str:
    if Path(name).exists():
        return f"{name} cannot be loaded as a model: {reason}"
    return (
        f"{name!r} is neither a bundled model nor a folder, and no model hub provides it"
        f"{nearest(name, MODELS)} ({reason})"
    )
