"""The file of an inlay: one safetensors file.

Tensors are named by site, number of the method, method and part: `decoder.3.attn.q/0/lora/a`;
those of a module that several pieces share `shared/0/vera/bases/a`. The header holds the format
version, the spec as JSON, a digest of the whole file, and the fingerprint of the base.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from inlay._version import __version__
from inlay.architectures.chart import Chart
from inlay.core.method import METHODS, Spec
from inlay.core.own_files import how_to_get
from inlay.core.parse import from_json, origins, to_json
from inlay.core.piece import OncePerPass, Piece, resize_parts
from inlay.core.piece_set import PieceSet
from inlay.errors import FileError, SpecError
from inlay.files.atomic import write_whole
from inlay.files.fingerprint import fingerprint, tokenizer_fingerprint
from inlay.files.ordered import to_bytes
from inlay.files.usage import Usage, usage_of

FORMAT = "1"
MAX_HEADER = 16 * 2**20
FLOATS = {"F64", "F32", "F16", "BF16"}
OTHERS = {"I64", "I32", "I16", "I8", "U8", "BOOL"}
"""Dtypes of indices and masks."""


@dataclass(frozen=True)
class InlayFile:
    """What an inlay file holds."""

    path: Path
    header: Mapping[str, str]
    tensors: Mapping[str, Tensor]

    @property
    def spec(self) -> Spec:
        """The spec that reads the tensors. Raises FileError where it cannot be read."""
        _check_origins(self.path, self.header)
        try:
            return from_json(self.header["spec"])
        except SpecError as error:
            raise FileError(f"{self.path}: {error}") from None

    @property
    def usage(self) -> Usage | None:
        """How it is used; None for a file that does not say. Raises FileError."""
        return usage_of(self.path, self.header)


def save(
    pieces: PieceSet,
    name: str,
    chart: Chart,
    path: str | Path,
    tokenizer: Any = None,
    usage: Usage | None = None,
) -> Path:
    """Write an inlay to one file, whole or not at all.

    name: the inlay's. chart: of its base. tokenizer: where given, its fingerprint goes in too.
    usage: where given, how the inlay is used.

    Raises FileError where a tensor is not finite or the folder cannot be written.
    """
    tensors = {key: t.detach().cpu().contiguous() for key, t in tensors_of(pieces).items()}
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FileError(
                f"{key} holds values that are not finite, and nothing was written; train again, "
                "with a lower learning rate"
            )
    header = {
        "format": FORMAT,
        "inlay": __version__,
        "name": name,
        "spec": to_json(pieces.spec.exported()),
        "trained_as": to_json(pieces.spec),
        "base": json.dumps(fingerprint(chart, brought(pieces))),
    }
    foreign = origins(pieces.spec.exported())
    if foreign:
        header["origins"] = json.dumps(foreign)
    if tokenizer is not None:
        header["tokenizer"] = tokenizer_fingerprint(tokenizer)
    if usage is not None:
        header |= usage.to_header()
    header["digest"] = digest(header, tensors)
    copies = {key: tensor.clone() for key, tensor in tensors.items()}
    return write_whole(path, to_bytes(copies, header))


def brought(pieces: PieceSet) -> set[str]:
    """The names of the sites of which the file itself holds all weights."""
    return {placed.site.name for placed in pieces.placed if placed.piece.brings_weights}


def read(path: str | Path) -> InlayFile:
    """Read an inlay file. Raises FileError for anything that is not one, whole and unaltered."""
    path = Path(path)
    _check_header_size(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            _check_header(path, header)
            names = list(file.keys())
            for name in names:
                dtype = file.get_slice(name).get_dtype()
                if dtype not in FLOATS | OTHERS:
                    raise FileError(
                        f"{path}: {name!r:.120} has dtype {dtype}, which inlay never writes; it is "
                        "not the file that was saved"
                    )
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is damaged or not an inlay file: {error!s:.200}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FileError(
                f"{path}: {name!r:.120} holds values that are not finite, which inlay never "
                "writes; it is not the file that was saved"
            )
    if header["digest"] != digest(header, tensors):
        raise FileError(
            f"{path} is damaged or was altered: it does not hold what was saved; copy it anew"
        )
    return InlayFile(path, header, tensors)


def renamed(file: InlayFile, chart: Chart) -> InlayFile:
    """A file with the names that the places of a base have today.

    A stack that reads images was once called `encoder`, and is called `vision`.
    """
    stacks = {stack.name for stack in chart.stacks}
    if "encoder" in stacks or "vision" not in stacks:
        return file

    def today(name: str) -> str:
        return f"vision.{name.removeprefix('encoder.')}" if name.startswith("encoder.") else name

    try:
        base = json.loads(file.header["base"])
        for part in ("shape", "samples"):
            base[part] = {today(name): value for name, value in base[part].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return file  # whoever compares fingerprints says what is wrong
    header = {**file.header, "base": json.dumps(base)}
    return InlayFile(file.path, header, {today(n): t for n, t in file.tensors.items()})


def tensors_of(pieces: PieceSet) -> dict[str, Tensor]:
    """What a file holds of an inlay, by name; detached, sharing memory where nothing is dropped."""
    named: dict[str, Tensor] = {}
    for prefix, piece in _pieces(pieces):
        named |= {prefix + part: tensor for part, tensor in piece.export().items()}
    for prefix, module in _shared(pieces):
        named |= {prefix + part: t.detach() for part, t in module.state_dict().items()}
    return named


def fill(file: InlayFile, pieces: PieceSet) -> None:
    """Copy the tensors of a file into pieces that were built from its spec.

    Raises FileError, with the pieces half filled, where a tensor is missing, unknown, or of another
    shape or kind than this base needs.
    """
    for prefix, piece in _pieces(pieces):
        piece.resize({part: t.shape for part, t in _under(file, prefix).items()})
    for prefix, module in _shared(pieces):
        resize_parts(module, {part: t.shape for part, t in _under(file, prefix).items()})
    _check_tensors(file, tensors_of(pieces))
    for prefix, piece in _pieces(pieces):
        piece.load(_under(file, prefix))
    for prefix, module in _shared(pieces):
        module.load_state_dict(_under(file, prefix))


def digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of all that a file says and holds, but for the digest itself."""
    entries = sorted((key, value) for key, value in header.items() if key != "digest")
    sha = hashlib.sha256(json.dumps(entries).encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _kinds(pieces: PieceSet) -> list[str]:
    """The names in a file of the methods, which are those of the spec that reads it."""
    return [type(method).__name__.lower() for method in pieces.spec.exported().methods]


def _pieces(pieces: PieceSet) -> Iterator[tuple[str, Piece]]:
    """Every piece, and how its tensors' names begin."""
    kinds = _kinds(pieces)
    return ((f"{p.name}/{kinds[p.index]}/", p.piece) for p in pieces.placed)


def _shared(pieces: PieceSet) -> Iterator[tuple[str, nn.Module]]:
    """Every shared module that a file holds, and how its tensors' names begin."""
    kinds = _kinds(pieces)
    for index, part in enumerate(pieces.parts()):
        for key, module in part.shared.items():
            if not isinstance(module, OncePerPass):
                yield f"shared/{index}/{kinds[index]}/{key}/", module


def _under(file: InlayFile, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, by the rest of their names."""
    tensors = file.tensors.items()
    return {name.removeprefix(prefix): t for name, t in tensors if name.startswith(prefix)}


def _check_tensors(file: InlayFile, expected: Mapping[str, Tensor]) -> None:
    path, tensors = file.path, file.tensors
    missing = sorted(expected.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - expected.keys())
    if missing:
        raise FileError(
            f"{path} lacks {len(missing)} tensors that this model needs, among them "
            f"{missing[0]!r}; load it into the base that it was made for"
        )
    if surplus:
        raise FileError(
            f"{path} has {len(surplus)} tensors that this model has no place for, such as "
            f"{surplus[0]!r:.120}; load it into the base that it was made for"
        )
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise FileError(
                f"{path}: {name} has shape {list(tensor.shape)}, "
                f"and this model needs {list(expected[name].shape)}; load it into the base that "
                "it was made for"
            )
        dtypes = {tensor.dtype, expected[name].dtype}
        if len(dtypes) > 1 and not all(dtype.is_floating_point for dtype in dtypes):
            raise FileError(
                f"{path}: {name} has dtype {tensor.dtype}, and this method needs "
                f"{expected[name].dtype}"
            )


def _check_header(path: Path, header: Mapping[str, str]) -> None:
    missing = {"format", "spec", "name", "base", "digest"} - header.keys()
    if missing:
        raise FileError(
            f"{path} is not an inlay file: its header has no {min(missing)!r}; give a file that "
            "inlay has saved"
        )
    if header["format"] != FORMAT:
        raise FileError(
            f"{path} has format {header['format']!r:.20}, and this version of inlay reads "
            f"{FORMAT!r}; install the inlay that wrote it ({header.get('inlay')!r:.20})"
        )


def _check_origins(path: Path, header: Mapping[str, str]) -> None:
    """Refuse a file whose methods are not there, and say where they come from.

    The header's word is text for a message: nothing that it names is run or imported.
    """
    try:
        foreign = json.loads(header.get("origins", "{}"))
        entries = [(str(name), str(origin)) for name, origin in foreign.items()]
    except (ValueError, AttributeError):
        raise FileError(
            f"{path} is damaged: its header does not list methods; copy it anew"
        ) from None
    for name, origin in entries:
        if name not in METHODS:
            raise FileError(
                f"{path} uses the method {name!r:.80}, which is not part of inlay but "
                f"{how_to_get(origin)}"
            )


def _check_header_size(path: Path) -> None:
    """Refuse, before anything is parsed, a header that is larger than any real one."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from None
    if len(start) < 8:
        raise FileError(f"{path} is truncated: it has {size} bytes; copy it anew")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER:
        raise FileError(
            f"{path} is not an inlay file; give a .safetensors file that inlay has saved"
        )
    if 8 + length > size:
        raise FileError(
            f"{path} is truncated or not an inlay file: its header ends after its end; copy it anew"
        )
