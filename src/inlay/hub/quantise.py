"""In which types a base's matrices can be kept, and transformers' configurations for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import BitsAndBytesConfig, TorchAoConfig
from transformers.utils.import_utils import is_bitsandbytes_available, is_torchao_available

from inlay.errors import FetchError, nearest


def _int8(dtype: torch.dtype) -> Any:
    return BitsAndBytesConfig(load_in_8bit=True)


def _nf4(dtype: torch.dtype) -> Any:
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def _torchao_int8(dtype: torch.dtype) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    return TorchAoConfig(Int8WeightOnlyConfig())


def _torchao_int4(dtype: torch.dtype) -> Any:
    from torchao.quantization import IntxWeightOnlyConfig

    int4: Any = vars(torch)["int4"]  # torch's annotations leave it out
    return TorchAoConfig(IntxWeightOnlyConfig(weight_dtype=int4))


QUANTISATIONS: dict[str, Callable[[torch.dtype], Any]] = {
    "int8": _int8,
    "nf4": _nf4,
    "torchao-int8": _torchao_int8,
    "torchao-int4": _torchao_int4,
}
"""8 bits by row with outliers kept apart (bitsandbytes; Dettmers et al., NeurIPS 2022); 4 bits of
normal floats in blocks of 64 with quantised scales (bitsandbytes; Dettmers et al., NeurIPS 2023);
8 bits by row, and 4 by row that are stored in 8 (torchao)."""


def quantisation_config(name: str, dtype: torch.dtype) -> Any:
    """What `from_pretrained` takes as `quantization_config`.

    name: from `QUANTISATIONS`. dtype: what the base computes in.

    Raises FetchError for an unknown name, and where the library is not installed.
    """
    if name not in QUANTISATIONS:
        known = ", ".join(QUANTISATIONS)
        raise FetchError(
            f"no quantisation is called {name!r}{nearest(name, QUANTISATIONS)}; known: {known}"
        )
    torchao = name.startswith("torchao")
    available = is_torchao_available() if torchao else is_bitsandbytes_available()
    if not available:
        library, extra = ("torchao",) * 2 if torchao else ("bitsandbytes", "quantised")
        raise FetchError(
            f"quantising to {name} needs {library}, which is not installed; "
            f"pip install 'inlay[{extra}]'"
        )
    return QUANTISATIONS[name](dtype)
