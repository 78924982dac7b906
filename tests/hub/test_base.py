"""`load_base`: the class that a config asks for, and a tokenizer that is ready."""

import os
import socket
import subprocess
import sys
import textwrap

import pytest
import torch

from inlay.errors import FetchError
from inlay.hub import base, load_base
from tests.tasks.tiny import tokenizer
from tests.zoo import fresh


def saved(folder, model, **options):
    model.save_pretrained(folder)
    tokenizer("decoder", **options).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("family", "part", "expected", "side"),
    [
        ("llama", None, "LlamaForCausalLM", "left"),
        ("gpt2", None, "GPT2LMHeadModel", "left"),
        ("t5", None, "T5ForConditionalGeneration", "right"),
        ("bart", None, "BartForConditionalGeneration", "right"),
        ("bert", None, "BertForMaskedLM", "right"),
        ("bert", "bert", "BertModel", "right"),
        ("distilbert", "distilbert", "DistilBertModel", "right"),
    ],
)
def test_the_class_is_the_one_of_the_config(tmp_path, family, part, expected, side):
    model = fresh(family)
    saved(tmp_path, model if part is None else getattr(model, part))
    loaded, read = load_base(tmp_path)
    assert type(loaded).__name__ == expected
    assert read.padding_side == side
    assert not loaded.training
    weights = dict(loaded.named_parameters())
    for name, weight in (model if part is None else getattr(model, part)).named_parameters():
        assert torch.equal(weights[name], weight)


def test_an_encoder_that_its_config_makes_a_decoder(tmp_path):
    model = fresh("bert")
    model.config.is_decoder = True
    saved(tmp_path, model.bert)
    loaded, read = load_base(tmp_path)
    assert type(loaded).__name__ == "BertLMHeadModel"
    assert read.padding_side == "left"


@pytest.mark.processor
def test_what_a_cpu_only_emulates_goes_on_in_fp32(tmp_path, monkeypatch):
    saved(tmp_path, fresh("llama").bfloat16())
    reports = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(base, "is_emulated", lambda dtype: dtype == torch.bfloat16)
    loaded, _ = load_base(tmp_path, report=reports.append)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert reports == ["this processor only emulates products in bfloat16; going on in float32"]
    explicit, _ = load_base(tmp_path, dtype=torch.bfloat16, report=reports.append)
    assert explicit.dtype == torch.bfloat16
    kept, _ = load_base(tmp_path, dtype="stored", report=reports.append)
    assert kept.dtype == torch.bfloat16
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)  # it may be moved there
    assert load_base(tmp_path, report=reports.append)[0].dtype == torch.bfloat16
    away, _ = load_base(tmp_path, device="meta", report=reports.append)
    assert away.dtype == torch.bfloat16
    assert len(reports) == 1


@pytest.mark.parametrize("device", ["cudaa", "cuda:99", "no device"])
def test_a_device_that_is_not_here_is_refused_before_anything_is_loaded(tmp_path, device):
    with pytest.raises(FetchError, match=f"'{device}'; use cpu"):
        load_base(tmp_path / "nowhere", device=device)


def test_dtype_and_device(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "is_emulated", lambda dtype: False)
    saved(tmp_path, fresh("llama").bfloat16())
    assert load_base(tmp_path)[0].dtype == torch.bfloat16
    assert load_base(tmp_path, dtype=torch.float32)[0].dtype == torch.float32
    assert load_base(str(tmp_path), device="meta")[0].device.type == "meta"


def test_a_missing_pad_token_becomes_the_end_token(tmp_path):
    saved(tmp_path / "a", fresh("llama"), pad=None)
    assert load_base(tmp_path / "a")[1].pad_token == "</s>"
    read = tokenizer("decoder", pad=None)
    read.eos_token = None
    read.save_pretrained(tmp_path / "a")
    with pytest.raises(FetchError, match="pad token"):
        load_base(tmp_path / "a")


def test_a_bundled_name_is_fetched_unless_a_folder_has_it(tmp_path, monkeypatch):
    folder = saved(tmp_path / "made", fresh("llama"))
    monkeypatch.setattr(base, "fetch_model", lambda name, report: folder)
    assert type(load_base("smollm2")[0]).__name__ == "LlamaForCausalLM"
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "smollm2", fresh("gpt2"))
    assert type(load_base("smollm2")[0]).__name__ == "GPT2LMHeadModel"


@pytest.mark.parametrize(
    ("name", "cause"),
    [("smolm2", "'smolm2'; did you mean 'smollm2'?"), ("nobody/nothing", "'nobody/nothing' ")],
)
def test_a_name_that_is_nothing(name, cause):
    with pytest.raises(FetchError) as caught:
        load_base(name)
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)


ASKING = """
    import time
    from inlay.hub import base
    from inlay.errors import FetchError
    base.HUB_TIMEOUT = 0.5
    begun = time.monotonic()
    try:
        base.load_base("nobody/nothing")
    except FetchError as error:
        print(error)
    assert time.monotonic() - begun < 5
"""


@pytest.mark.parametrize("answers", ["nothing", "no"])
def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path, answers):
    with socket.create_server(("127.0.0.1", 0)) as hub:
        port = hub.getsockname()[1]
        if answers == "no":
            hub.close()  # then the connection is refused
        offline = {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://127.0.0.1:{port}"}
        env = {**os.environ, **offline, "HF_HOME": str(tmp_path), "NO_PROXY": "127.0.0.1"}
        program = [sys.executable, "-c", textwrap.dedent(ASKING)]
        done = subprocess.run(program, capture_output=True, text=True, env=env, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "'nobody/nothing' " in done.stdout
    assert "the hub cannot be reached: " in done.stdout
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_what_a_hub_gave_before_is_loaded_without_it(tmp_path, monkeypatch):
    requests = []

    class Stored:
        @staticmethod
        def from_pretrained(name, local_files_only):
            requests.append((name, local_files_only))
            raise OSError("enough")

    monkeypatch.setattr(base, "AutoConfig", Stored)
    answers = {"heard": None, "unheard": ConnectionError("no route")}
    monkeypatch.setattr(base, "hf_hub_url", lambda name, file: name)
    for name, error in answers.items():

        def ask(url, timeout, error=error):
            if error:
                raise error

        monkeypatch.setattr(base, "get_hf_file_metadata", ask)
        with pytest.raises(FetchError, match="enough" if error is None else "no route"):
            load_base(f"a/{name}")
    assert requests == [("a/heard", False), ("a/unheard", True)]


def test_a_folder_that_is_no_model(tmp_path):
    with pytest.raises(FetchError, match="cannot be loaded as a model"):
        load_base(tmp_path)
    saved(tmp_path, fresh("llama"))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FetchError, match="cannot be loaded as a model"):
        load_base(tmp_path)


@pytest.mark.real
@pytest.mark.processor
def test_smollm2_knows_the_capital_of_france():
    """In the type it is stored in, or, where this processor only emulates that, in fp32."""
    assert load_base("smollm2", dtype="stored")[0].dtype == torch.bfloat16
    model, read = load_base("smollm2")
    inputs = read("The capital of France is", return_tensors="pt")
    tokens = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert "Paris" in read.decode(tokens[0])
    slow = base.is_emulated(torch.bfloat16) and not torch.accelerator.is_available()
    assert model.dtype == (torch.float32 if slow else torch.bfloat16)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.real
@pytest.mark.processor
def test_minilm_tells_paraphrases():
    model, read = load_base("minilm")
    sentences = [
        "A man is playing a guitar.",
        "Someone is strumming an instrument.",
        "Stocks fell.",
    ]
    batch = read(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    pooled = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
    assert pooled[0] @ pooled[1] > 0.5
    assert pooled[0] @ pooled[2] < 0.2
