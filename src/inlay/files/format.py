"""The file of an inlay: one safetensors file, and a fingerprint of the base it belongs to.

Tensors are named by place and part, `decoder.3.attn.q/0/lora/a`. The header holds the format
version, the spec as JSON, a digest of the whole file, and the fingerprint: the shape of the base,
and a few of its numbers, taken at sites, so that the same base under another task head is still the
same base.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor
from transformers import PreTrainedModel

from inlay._version import __version__
from inlay.architectures.chart import Chart
from inlay.architectures.resolve import resolve
from inlay.core.method import Spec
from inlay.core.parse import from_json, to_json
from inlay.core.site import Site
from inlay.errors import BaseError, FileError, InlayError, SpecError
from inlay.handle import Inlay, attach

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

FORMAT = "1"
MAX_HEADER = 16 * 2**20
SAMPLES = 16
PROJECTIONS = (
    *(f"{side}.{part}" for side in ("attn", "cross") for part in ("q", "k", "v", "o")),
    *(f"mlp.{part}" for part in ("up", "gate", "down")),
)
FLOATS = {"F64", "F32", "F16", "BF16"}


def save(handle: Inlay, path: str | Path, tokenizer: Any = None) -> Path:
    """Write an inlay to one file, whole or not at all.

    Raises FileError where a tensor is not finite or the folder cannot be written.
    """
    tensors = {name: t.detach().cpu().contiguous() for name, t in handle.named_tensors().items()}
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FileError(f"{name} holds numbers that are not finite; nothing was written")
    chart = handle.root.chart
    header = {
        "format": FORMAT,
        "inlay": __version__,
        "name": handle.name,
        "spec": to_json(handle.spec.exported()),
        "trained_as": to_json(handle.spec),
        "base": json.dumps(fingerprint(chart)),
    }
    if tokenizer is not None:
        header["tokenizer"] = tokenizer_print(tokenizer)
    header["digest"] = digest(header, tensors)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    return write_whole(path, to_bytes(copies, metadata=header))


def write_whole(path: str | Path, data: bytes | Iterable[bytes]) -> Path:
    """Write a file so that it is there whole or not at all, even if the machine stops.

    data: all of it, or part after part.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                for part in (data,) if isinstance(data, bytes) else data:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(partial, 0o666 & ~_umask())
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        _sync_names(path.parent)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror}") from None
    return path


def write_folder(path: Path, fill: Callable[[Path], object]) -> Path:
    """Write a folder so that it is there whole or not at all, in place of one of that name.

    fill: writes everything into the folder that it is given, beside the final one.

    Raises FileError where that cannot be written.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        new = partial / "new"
        new.mkdir()
        fill(new)
        if path.exists():
            os.rename(path, partial / "old")
        os.rename(new, path)
    except OSError as error:
        raise FileError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
    return path


def _sync_names(folder: Path) -> None:
    """Have the disk hold the names in a folder, and so a rename, where that can be asked for."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network disks sync no folders
            raise
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's mask for new files, which `mkstemp` does not go by."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load(
    model: PreTrainedModel,
    path: str | Path,
    *,
    name: str | None = None,
    strict: bool = True,
    tokenizer: Any = None,
) -> Inlay:
    """Attach the inlay of a file. `name` replaces the one it was saved under.

    Raises FileError for a file that is truncated, altered or not an inlay, and BaseError for one
    made for another base (or tokenizer, where one is given); `strict=False` allows another base
    whose places and shapes fit. Then the model is as it was.
    """
    path = Path(path)
    header, tensors = read(path)
    spec = _spec(path, header)
    chart = resolve(model)
    if strict:
        _same_base(path, header, chart)
        _same_tokenizer(path, header, tokenizer)
    with torch.random.fork_rng(devices=[]):  # what pieces start from is overwritten
        handle = attach(model, spec, name=header["name"] if name is None else name)
    try:
        _fill(path, handle, tensors)
    except InlayError:
        handle.detach()
        raise
    return handle


def read(path: str | Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Header and tensors of an inlay file. Raises FileError for anything that is not one."""
    path = Path(path)
    _check_header(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            missing = {"format", "spec", "name", "base", "digest"} - header.keys()
            if missing:
                raise FileError(f"{path} is not an inlay file: its header has no {min(missing)!r}")
            if header["format"] != FORMAT:
                raise FileError(
                    f"{path} has format {header['format']!r:.20}, and this version of inlay reads "
                    f"{FORMAT!r}; install the inlay that wrote it ({header.get('inlay')!r:.20})"
                )
            for name in file.keys():  # noqa: SIM118  # safe_open is no mapping
                if file.get_slice(name).get_dtype() not in FLOATS:
                    kind = file.get_slice(name).get_dtype()
                    raise FileError(f"{path}: {name!r:.120} has dtype {kind}, not a float")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise FileError(f"{path} is damaged or not an inlay file: {error!s:.200}") from None
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise FileError(f"{path}: {name!r:.120} holds numbers that are not finite")
    if header["digest"] != digest(header, tensors):
        raise FileError(
            f"{path} is damaged or was altered: it does not hold what was saved; copy it anew"
        )
    return header, tensors


def digest(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 of all that a file says and holds, but for the digest itself."""
    said = sorted((key, value) for key, value in header.items() if key != "digest")
    made = hashlib.sha256(json.dumps(said).encode())
    for name, tensor in sorted(tensors.items()):
        made.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        made.update(tensor.flatten().view(torch.uint8).numpy().data)
    return made.hexdigest()


def _check_header(path: Path) -> None:
    """Refuse, before anything is parsed, a header that is larger than any real one."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
    except OSError as error:
        raise FileError(f"cannot read {path}: {error.strerror}") from None
    if len(start) < 8:
        raise FileError(f"{path} is truncated: {size} bytes")
    (length,) = struct.unpack("<Q", start)
    if length > MAX_HEADER:
        raise FileError(f"{path} claims a header of {length:,} bytes; no inlay file has one")
    if 8 + length > size:
        raise FileError(f"{path} is truncated or not an inlay file: its header ends after its end")


def _spec(path: Path, header: Mapping[str, str]) -> Spec:
    try:
        return from_json(header["spec"])
    except SpecError as error:
        raise FileError(f"{path}: {error}") from None


def _fill(path: Path, handle: Inlay, tensors: dict[str, Tensor]) -> None:
    expected = handle.named_tensors()
    missing = sorted(expected.keys() - tensors.keys())
    surplus = sorted(tensors.keys() - expected.keys())
    if missing:
        raise FileError(f"{path} lacks {len(missing)} tensors, among them {missing[0]!r}")
    if surplus:
        raise FileError(f"{path} has {len(surplus)} unknown tensors, such as {surplus[0]!r:.120}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise FileError(
                f"{path}: {name} has shape {list(tensor.shape)}, "
                f"and this model needs {list(expected[name].shape)}"
            )
    kinds = [type(method).__name__.lower() for method in handle.spec.methods]
    for key, _, piece in handle.pieces():
        prefix = f"{key}/{kinds[int(key.rsplit('/', 1)[1])]}/"
        piece.load({part: tensors[prefix + part] for part in piece.export()})


# --- fingerprints ----------------------------------------------------------------------------


def fingerprint(chart: Chart) -> dict[str, Any]:
    """What tells one base from another: family, sizes, and samples of the weights at some sites."""
    shape = {site.name: [site.d_in, site.d_out] for site in _telling(chart)}
    samples = {site.name: _sample(site) for site in _telling(chart)}
    return {
        "family": chart.base.config.model_type,
        "depth": [len(stack.layers) for stack in chart.stacks],
        "shape": shape,
        "samples": samples,
    }


def _telling(chart: Chart) -> list[Site]:
    """Each stack's first, middle and last projection of every kind."""
    chosen = []
    for stack in chart.stacks:
        for role in PROJECTIONS:
            found = [s for s in chart.sites if s.role == role and s.stack == stack.name]
            if found:
                picks = sorted({0, len(found) // 2, len(found) - 1})
                chosen += [found[i] for i in picks]
    return chosen


def _sample(site: Site) -> list[float]:
    weight = site.weight().detach()
    flat = torch.linspace(0, weight.numel() - 1, SAMPLES, dtype=torch.float64).long()
    rows, columns = flat // weight.shape[1], flat % weight.shape[1]
    picked = weight[rows.to(weight.device), columns.to(weight.device)]
    return [round(value, 6) for value in picked.float().tolist()]


def _same_base(path: Path, header: Mapping[str, str], chart: Chart) -> None:
    try:
        theirs = json.loads(header["base"])
        samples = {name: torch.tensor(s) for name, s in theirs["samples"].items()}
        family, depth, shape = theirs["family"], theirs["depth"], theirs["shape"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise FileError(f"{path}: the fingerprint of its base cannot be read") from None
    ours = fingerprint(chart)
    cure = "load it into that base; in Python strict=False takes it all the same"
    for word, a, b in (
        ("family", family, ours["family"]),
        ("number of blocks", depth[: len(ours["depth"])], ours["depth"][: len(depth)]),
    ):
        if a != b:
            raise BaseError(f"{path} was made for another base: {word} {a}, here {b}; {cure}")
    for name, sizes in ours["shape"].items():
        if name in shape and shape[name] != sizes:
            raise BaseError(
                f"{path} was made for another base: {name} is {shape[name]}, here {sizes}; {cure}"
            )
    common = [name for name in ours["samples"] if name in samples]
    if not common:
        raise BaseError(f"{path} was made for another base: no place in common; {cure}")
    for name in common:
        here = torch.tensor(ours["samples"][name])
        there = samples[name]
        # copies of one base in other dtypes differ by rounding, and by no more than that
        alike = here.shape == there.shape and bool(
            ((here - there).abs() <= 2**-7 * there.abs() + 1e-4 * there.std()).all()
        )
        if not alike:
            raise BaseError(
                f"{path} was made for another base: the weights at {name} differ; {cure}"
            )


def tokenizer_print(tokenizer: Any) -> str:
    """A fingerprint of a tokenizer: its vocabulary."""
    words = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=True)
    return hashlib.sha256(words.encode()).hexdigest()[:32]


def _same_tokenizer(path: Path, header: Mapping[str, str], tokenizer: Any) -> None:
    theirs = header.get("tokenizer")
    if tokenizer is not None and theirs is not None and tokenizer_print(tokenizer) != theirs:
        raise BaseError(
            f"{path} was made with another tokenizer; load the one of its base; "
            "in Python strict=False takes it all the same"
        )
