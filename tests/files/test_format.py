"""Files: what is written is what is read, and nothing dishonest is."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import struct
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import save_file

import inlay
from inlay.errors import BaseError, FileError, NamingError
from inlay.files.format import digest, write_whole
from inlay.laws.case import perturb
from inlay.laws.traces import snapshot
from tests import zoo


def written(model: Any, path: Path, spec: Any = None) -> dict[str, torch.Tensor]:
    handle = inlay.attach(model, spec or inlay.LoRA(rank=2) + inlay.Prefix(length=2, mlp=None))
    perturb(handle)
    handle.save(path)
    tensors = {name: t.clone() for name, t in handle.named_tensors().items()}
    handle.detach()
    return tensors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    written(zoo.fresh("llama"), tmp_path / "one.safetensors")
    return tmp_path / "one.safetensors"


def parts(file: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(file, "pt") as opened:
        return opened.metadata(), {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118


def refused(model: Any, file: Path, kind: type[Exception], said: str, **more: Any) -> None:
    before = snapshot(model)
    with pytest.raises(kind, match=said) as error:
        inlay.load(model, file, **more)
    assert "\n" not in str(error.value)
    assert snapshot(model) == before


def test_names_and_header(file: Path) -> None:
    header, tensors = parts(file)
    assert "decoder.2.attn.q/0/lora/a" in tensors and "decoder.0.attn.kv/1/prefix/k" in tensors
    assert inlay.core.parse.from_json(header["spec"]) == inlay.LoRA(rank=2) + inlay.Prefix(
        length=2, mlp=None, start=None
    )
    assert json.loads(header["base"])["family"] == "llama"


def test_loads_under_another_head_and_into_the_bare_backbone(tmp_path: Path) -> None:
    causal = zoo.fresh("llama")
    tensors = written(causal, tmp_path / "x.safetensors")
    classifier = hf.LlamaForSequenceClassification(causal.config).eval()
    classifier.model.load_state_dict(causal.model.state_dict())
    ids = torch.randint(8, 99, (2, 6))
    inlay.load(causal, tmp_path / "x.safetensors")
    with torch.no_grad():
        expected = causal.model(ids).last_hidden_state
        for model in (causal.model, classifier.model, classifier):
            bare = model if model is not causal.model else hf.LlamaModel(causal.config).eval()
            if bare is not model:
                state = {k: v for k, v in causal.model.state_dict().items() if "inlays" not in k}
                bare.load_state_dict(state)
            handle = inlay.load(bare, tmp_path / "x.safetensors")
            assert handle.named_tensors().keys() == tensors.keys()
            body = bare.model if isinstance(bare, hf.LlamaForSequenceClassification) else bare
            assert torch.equal(body(ids).last_hidden_state, expected)
            handle.detach()


def test_a_new_process_computes_the_same_bits(tmp_path: Path) -> None:
    cases = {
        "llama": inlay.LoRA(rank=2) + inlay.Prefix(length=2, mlp=5),
        "gpt2": inlay.Prompt(length=3) + inlay.IA3(),
        "t5": inlay.Houlsby(bottleneck=3) + inlay.Prefix(length=2, mlp=None),
        "bert": inlay.Pfeiffer(bottleneck=3) + inlay.BitFit(),
        "bart": inlay.Parallel(bottleneck=3) + inlay.Prompt(length=2),
    }
    for family, spec in cases.items():
        written(zoo.fresh(family), tmp_path / f"{family}.safetensors", spec)
        model = zoo.fresh(family)
        inlay.load(model, tmp_path / f"{family}.safetensors")
        torch.save(out(model), tmp_path / f"{family}.pt")
    script = (
        "import sys, torch; from pathlib import Path; import inlay; from tests import zoo\n"
        "from tests.files.test_format import out\n"
        "torch.set_num_threads(1)\n"
        "for path in sorted(Path(sys.argv[1]).glob('*.safetensors')):\n"
        "    model = zoo.fresh(path.stem); inlay.load(model, path)\n"
        "    assert torch.equal(out(model), torch.load(path.with_suffix('.pt'))), path.stem\n"
        "    print(path.stem)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, str(tmp_path)],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == sorted(cases)


def out(model: Any) -> torch.Tensor:
    ids = torch.arange(10, 22).view(2, 6)
    more = {"decoder_input_ids": ids[:, :3]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def test_another_base(file: Path) -> None:
    other = zoo.fresh("llama")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.copy_(torch.randn_like(parameter))
    refused(other, file, BaseError, "made for another base: the weights at decoder.0.attn.q differ")
    handle = inlay.load(other, file, strict=False)
    assert handle.attached
    tuned = zoo.fresh("llama")  # the same model, trained on a little
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
    refused(tuned, file, BaseError, "the weights at decoder.0.attn.q differ")
    refused(zoo.fresh("mistral"), file, BaseError, "family llama, here mistral")
    config = hf.LlamaConfig(**{**zoo.GQA, "num_hidden_layers": 2})
    shallow = hf.LlamaForCausalLM(config)
    refused(shallow, file, BaseError, "number of blocks")
    refused(shallow, file, FileError, "no place for, such as", strict=False)
    wide = hf.LlamaForCausalLM(hf.LlamaConfig(**{**zoo.GQA, "hidden_size": 64}))
    refused(wide, file, BaseError, r"decoder.0.attn.q is \[32, 32\], here \[64, 64\]")
    refused(wide, file, FileError, "has shape", strict=False)


@pytest.mark.parametrize("role", ["self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj"])
def test_a_base_that_differs_in_one_kind_of_projection(file: Path, role: str) -> None:
    """As one does into which an update of values alone was merged."""
    other = zoo.fresh("llama")
    with torch.no_grad():
        for layer in other.model.layers:
            layer.get_submodule(role).weight.mul_(1.1)
    refused(other, file, BaseError, "made for another base: the weights at decoder.0")


@pytest.mark.processor
def test_the_same_base_in_sixteen_bits_is_the_same_base(file: Path) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        assert inlay.load(zoo.fresh("llama").to(dtype), file).attached


def test_another_tokenizer(tmp_path: Path) -> None:
    class Words:
        def __init__(self, *words: str):
            self.words = words

        def get_vocab(self) -> dict[str, int]:
            return {word: i for i, word in enumerate(self.words)}

    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=2))
    handle.save(tmp_path / "x.safetensors", tokenizer=Words("a", "b"))
    handle.detach()
    inlay.load(model, tmp_path / "x.safetensors", tokenizer=Words("a", "b")).detach()
    refused(
        model, tmp_path / "x.safetensors", BaseError, "another tokenizer", tokenizer=Words("b", "a")
    )


@pytest.mark.parametrize("keep", [0, 5, 8, 40, 1000, -1])
def test_truncated(file: Path, keep: int) -> None:
    data = file.read_bytes()
    file.write_bytes(data[:keep])
    refused(zoo.model("llama"), file, FileError, "truncated|damaged")


@pytest.mark.parametrize(
    "place", [-1, -5, -1000, rb"alpha\D+(\d)", rb'"name":"(\w)', rb"samples.*?\.(\d)\d\d"], ids=str
)
def test_one_flipped_bit(file: Path, place: int | bytes) -> None:
    """Numbers that are finite and a header that can be read: nothing else would notice."""
    raw = bytearray(file.read_bytes())
    if isinstance(place, bytes):
        found = re.search(place, raw)
        assert found is not None
        place = found.start(1)
    raw[place] ^= 1
    file.write_bytes(raw)
    refused(zoo.model("llama"), file, FileError, "is damaged or was altered")


def test_garbage(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for data in (b"PK\x03\x04" * 50, os.urandom(4000), b"\x80\x04\x95" + b"x" * 100):
        path.write_bytes(data)
        refused(zoo.model("llama"), path, FileError, "not an inlay file|damaged|truncated")
    refused(zoo.model("llama"), tmp_path, FileError, "cannot read|damaged")
    refused(zoo.model("llama"), tmp_path / "none.safetensors", FileError, "No such file")


def test_huge_header(file: Path) -> None:
    data = file.read_bytes()
    for length in (2**63, 2**40, 17 * 2**20):
        file.write_bytes(struct.pack("<Q", length) + data[8:])
        refused(zoo.model("llama"), file, FileError, "is not an inlay file; give|truncated")


def rewrite(file: Path, change: Any, header: dict[str, str] | None = None) -> None:
    metadata, tensors = parts(file)
    change(tensors)
    metadata |= header or {}
    save_file(tensors, file, metadata={**metadata, "digest": digest(metadata, tensors)})


def test_tensors_that_are_not_those_expected(file: Path) -> None:
    model = zoo.model("llama")
    original = file.read_bytes()
    name = "decoder.0.attn.q/0/lora/a"

    def case(change: Any, said: str) -> None:
        file.write_bytes(original)
        rewrite(file, change)
        refused(model, file, FileError, said)

    case(lambda t: t.pop(name), f"lacks 1 tensors that this model needs, among them '{name}'")
    case(
        lambda t: t.update(more=torch.ones(1)),
        "1 tensors that this model has no place for, such as 'more'",
    )
    case(lambda t: t.update({"../../etc/passwd": torch.ones(1)}), "no place for, such as '../..")
    case(
        lambda t: t.update({name: t[name].T.contiguous()}),
        r"has shape \[32, 2\], .* needs \[2, 32\]",
    )
    case(lambda t: t.update({name: t[name].long()}), "dtype torch.int64, and this method needs")
    case(lambda t: t[name].fill_(float("nan")), "not finite")
    case(lambda t: t[name].fill_(float("inf")), "not finite")
    case(lambda t: t.update({name + "x": t.pop(name)}), "lacks 1 tensors")


@pytest.mark.parametrize(
    ("header", "said"),
    [
        ({"spec": "[]"}, "not empty"),
        ({"spec": "{"}, "not JSON"),
        ({"spec": '[{"method": "Lorax"}]'}, "no method is called 'Lorax'"),
        ({"spec": '[{"method": "LoRA", "rank": 8, "exec": "x"}]'}, "no field 'exec'"),
        ({"format": "99"}, "format '99', and this version of inlay reads '1'"),
        ({"base": "{}"}, "fingerprint of its base cannot be read"),
        ({"base": "[1]"}, "fingerprint of its base cannot be read"),
        ({"base": '{"samples": {"a": "b"}, "family": 1, "depth": [], "shape": {}}'}, "fingerprint"),
    ],
)
def test_dishonest_headers(file: Path, header: dict[str, str], said: str) -> None:
    rewrite(file, lambda tensors: None, header)
    refused(zoo.model("llama"), file, FileError, said)


def test_a_hostile_name_in_the_header(file: Path) -> None:
    rewrite(file, lambda tensors: None, {"name": "../x"})
    refused(zoo.model("llama"), file, NamingError, "letters, digits")
    assert inlay.load(zoo.fresh("llama"), file, name="fine").name == "fine"


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=2))
    path = handle.save(tmp_path / "x.safetensors")
    before = path.read_bytes()
    next(handle.parameters()).data.fill_(float("nan"))
    with pytest.raises(FileError, match="not finite, and nothing was written"):
        handle.save(path)
    next(handle.parameters()).data.zero_()
    monkeypatch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(FileError, match="disk full"):
        handle.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_no_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    torch.save({"a": torch.ones(1)}, path)
    refused(zoo.model("llama"), path, FileError, "is not an inlay file|damaged")


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    model = zoo.fresh("llama")
    written(model, tmp_path / "x.safetensors", inlay.Prompt(length=3) + inlay.LoRA(rank=2))
    torch.manual_seed(5)
    inlay.load(model, tmp_path / "x.safetensors")
    one = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(one, torch.rand(3))


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be synced there")
def test_the_disk_holds_the_name_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "new" / "file", []

    def fsync(handle: int) -> None:
        synced.append((stat.S_ISDIR(os.fstat(handle).st_mode), path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    write_whole(path, b"all of it")
    assert path.read_bytes() == b"all of it"
    assert synced == [(False, False), (True, True)]  # the data before the name, the name after


@pytest.mark.skipif(os.name != "posix", reason="folders cannot be synced there")
@pytest.mark.parametrize(("number", "written"), [(errno.EINVAL, True), (errno.EIO, False)])
def test_a_disk_that_syncs_no_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, written: bool
) -> None:
    def fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    with nullcontext() if written else pytest.raises(FileError, match="cannot write"):
        write_whole(tmp_path / "file", b"all of it")


def test_saving_again_writes_the_same_bytes(tmp_path: Path) -> None:
    """The library behind it orders headers at random."""
    model = zoo.fresh("llama")
    handle = inlay.attach(model, inlay.LoRA(rank=2) + inlay.Prefix(length=2) + inlay.Prompt())
    paths = [handle.save(tmp_path / f"{number}.safetensors") for number in range(6)]
    assert len({path.read_bytes() for path in paths}) == 1
    with safe_open(paths[0], "pt") as file:
        assert set(file.keys()) == set(handle.named_tensors())
