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

from inlay.errors import FetchError, nearest
from inlay.hub.convert import quiet
from inlay.hub.models import MODELS, announce, fetch_model
from inlay.hub.packages import Report
from inlay.hub.processor import is_emulated

HUB_TIMEOUT = 3.0
"""Seconds that a model hub has to answer."""


def load_base(
    name_or_path: str | Path,
    *,
    dtype: torch.dtype | Literal["stored"] | None = None,
    device: torch.device | str | None = None,
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
    model, tokenizer = _load(name, "auto" if dtype in (None, "stored") else dtype, level)
    if device is not None:
        model = model.to(device)
    stays = device is not None or not torch.accelerator.is_available()
    if dtype is None and stays and model.device.type == "cpu" and is_emulated(model.dtype):
        stored = str(model.dtype).removeprefix("torch.")
        report(f"this processor only emulates products in {stored}; going on in float32")
        model = model.float()
    return model, tokenizer


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):  # unknown, absent, or not built in
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        known = "cpu" if accelerator is None else f"cpu or {accelerator.type}"
        raise FetchError(f"this machine has no device {str(device)!r}; use {known}") from None


def _load(name: str, dtype: torch.dtype | str, level: int) -> tuple[Any, Any]:
    """The model and tokenizer of a folder or of the hub. level: what transformers may log."""
    hub_problem = None if Path(name).exists() else _hub_problem(name)
    options: dict[str, Any] = {"local_files_only": hub_problem is not None}
    try:
        with quiet(level):
            config = AutoConfig.from_pretrained(name, **options)
            model = _model_class(config).from_pretrained(name, dtype=dtype, **options)
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
