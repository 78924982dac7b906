"""generate, check, merge and export: commands that use a trained file."""

import io
import stat
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import inlay as library
from inlay import laws
from inlay.errors import FetchError
from inlay.hub import load_base
from inlay.laws import Broken
from inlay_cli import names
from tests import zoo
from tests.tasks import tiny


def test_generate_with_and_without_an_inlay(inlay, base, trained):
    alone = inlay("generate", base, "the cat sat", "--max-new-tokens", "5")
    adapted = inlay("generate", base, trained, "the cat sat", "--max-new-tokens", "5")
    assert (alone.code, adapted.code) == (0, 0)
    assert alone.out.strip()
    assert adapted.out.strip()


def test_generate_writes_as_the_model_does(inlay, base):
    model, tokenizer = load_base(base)
    ids = tokenizer("the cat", return_tensors="pt")
    with torch.no_grad():
        tokens = model.generate(**ids, max_new_tokens=4, do_sample=False)
    answer = tokenizer.decode(tokens[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert inlay("generate", base, "the cat", "--max-new-tokens", "4").out == answer.strip() + "\n"


def test_generate_reads_a_pipe(inlay, base, monkeypatch):
    direct = inlay("generate", base, "the cat")
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat"))
    assert inlay("generate", base, "-").out == direct.out


def test_generate_samples_with_a_seed(inlay, base):
    hot = ("generate", base, "the cat", "--temperature", "2", "--seed")
    assert inlay(*hot, "1").out == inlay(*hot, "1").out
    assert len({inlay(*hot, str(seed)).out for seed in range(4)}) > 1


@pytest.fixture
def chatty(inlay, tmp_path, rows):
    """A base with a chat format, and an inlay that was trained in it."""
    folder = tmp_path / "chatty"
    zoo.fresh("llama").save_pretrained(folder)
    tiny.tokenizer("decoder", chat=tiny.CHAT).save_pretrained(folder)
    run = inlay(
        *("train", "--base", folder, "--method", "LoRA(rank=4)", "--task", "generate"),
        *("--task.chat", "true", "--task.system", "a dog", "--train", rows, "--out", "run"),
        *("--task.generation", '{"max_new_tokens": 3}', "--steps", "2", "--lr", "0.5"),
    )
    assert run.code == 0, run.err
    return folder, tmp_path / "run" / "default.safetensors"


def test_generate_writes_the_prompt_as_training_did(inlay, chatty):
    base, file = chatty
    given = ("--chat", "--system", "a dog", "--max-new-tokens", "3")
    default = inlay("generate", base, file, "the cat")
    assert default.code == 0, default.err
    assert inlay("generate", base, file, "the cat", *given).out == default.out
    plain = inlay("generate", base, file, "the cat", "--no-chat", "--template", "{source}")
    assert plain.out != default.out
    longer = inlay("generate", base, file, "the cat", "--max-new-tokens", "9")
    assert len(longer.out.split()) > len(default.out.split())


def test_a_file_knows_its_chat_format_without_a_recipe(inlay, chatty):
    base, file = chatty
    before = inlay("generate", base, file, "the cat")
    (file.parent / "recipe.yaml").unlink()
    for words in ((base, file), (file,)):
        assert inlay("generate", *words, "the cat").out == before.out
    plain = inlay("generate", file, "the cat", "--no-chat", "--template", "{source}")
    assert plain.code == 0, plain.err
    assert plain.out != before.out


def test_generate_of_a_file_without_a_task_reads_the_recipe_beside_it(inlay, chatty):
    """As files of earlier versions are, and those that Python saved."""
    base, file = chatty
    expected = inlay("generate", base, file, "the cat").out
    model, tokenizer = load_base(base)
    library.load(model, file).save(file, tokenizer=tokenizer)
    assert inlay("generate", base, file, "the cat").out == expected
    recipe = file.parent / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("chat: true", "chat: messages"))
    whole = inlay("generate", base, file, "the cat")
    assert whole.code == 0, whole.err
    assert whole.out == expected, "a prompt is a chat of one message"


def test_a_template_of_several_columns_is_no_template_for_a_prompt(inlay, base, trained):
    message = inlay("generate", base, trained, "the cat", "--template", "{name}: {food}").error
    assert "name, food" in message
    assert "--template" in message


def test_generate_refuses_a_wrong_command_line(inlay, base, trained):
    assert "quotes" in inlay("generate", base, trained, "two", "words").error
    assert "chat" in inlay("generate", base, "hello", "--chat").error
    assert "is a FILE; give a PROMPT" in inlay("generate", base, trained).error
    assert "gone.safetensors" in inlay("generate", base, "gone.safetensors", "hello").error


def test_a_file_of_another_base_is_refused(inlay, encoder, trained):
    assert "another base" in inlay("check", encoder, trained).error


@pytest.fixture
def two_laws(monkeypatch):
    few = {name: laws.LAWS[name] for name in ("identity", "no trace")}
    for name in ("inlay.laws.check", "inlay.laws.examination", "inlay.laws"):
        module = sys.modules[name]
        monkeypatch.setattr(module, "LAWS", few)
    return few


def test_check_of_a_file(inlay, base, trained, two_laws):
    run = inlay("check", base, trained)
    assert run.code == 0, run.err
    assert "law 1 of 2: identity" in run.err
    assert "no trace" in run.out


def test_check_of_a_method(inlay, base, two_laws):
    run = inlay("check", base, "--method", "LoRA(rank=2) + Prompt(length=3)")
    assert run.code == 0, run.err


def test_check_of_one_law(inlay, base):
    assert names.laws() == [*laws.LAWS, *laws.SLOW_LAWS]
    run = inlay("check", base, "--method", "LoRA(rank=2)", "--law", "identity")
    assert run.code == 0 and "law 1 of 1: identity" in run.err
    assert (
        "did you mean 'merge'?"
        in inlay("check", base, "--method", "LoRA(rank=2)", "--law", "merg").error
    )


def test_check_exits_with_1_if_a_law_does_not_hold(inlay, base, two_laws):
    def broken(case):
        raise Broken("off by 7")

    two_laws["no trace"] = broken
    run = inlay("check", base, "--method", "LoRA(rank=2)")
    assert run.code == 1
    assert "off by 7" in run.out
    assert "no trace: this law does not hold" in run.err


def test_check_refuses_a_method_before_it_loads(inlay):
    assert "did you mean 'LoRA'?" in inlay("check", "nowhere", "--method", "Lora").error


def test_merge_writes_an_ordinary_model(inlay, base, trained, tmp_path):
    run = inlay("merge", base, trained, tmp_path / "merged")
    assert run.code == 0, run.err
    assert "LoRA(rank=2)" in run.out
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "merged").iterdir()}
    (tmp_path / "plain").touch()
    assert modes == {stat.S_IMODE((tmp_path / "plain").stat().st_mode)}
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(tmp_path / "merged")
    model, _ = load_base(base)
    library.load(model, trained)
    ids = torch.arange(5, 14)[None]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.processor
def test_merge_keeps_the_type_that_a_base_is_stored_in(inlay, base, trained, tmp_path, monkeypatch):
    """Also on a processor that only emulates this type."""
    monkeypatch.setattr("inlay.hub.base.is_emulated", lambda dtype: True)
    monkeypatch.setattr("torch.accelerator.is_available", lambda: False)
    half = tmp_path / "half"
    model, tokenizer = load_base(base, dtype=torch.bfloat16)
    model.save_pretrained(half)
    tokenizer.save_pretrained(half)
    assert load_base(half)[0].dtype == torch.float32
    run = inlay("merge", half, trained, tmp_path / "merged")
    assert run.code == 0, run.err
    assert load_base(tmp_path / "merged", dtype="stored")[0].dtype == torch.bfloat16


def test_an_accelerator_is_used_where_there_is_one(inlay, base, monkeypatch):
    devices = []

    def load(name, **options):
        devices.append(options["device"])
        raise FetchError("enough")

    monkeypatch.setattr("inlay.hub.load_base", load)
    for words in ([], ["--device", "cpu"]):
        inlay("generate", base, "hello", *words)
    gpu = torch.device("cuda:0")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **options: gpu)
    inlay("generate", base, "hello")
    inlay("check", base, "--method", "LoRA")
    assert devices == ["cpu", "cpu", gpu, "cpu"]


def test_merge_writes_the_head_next_to_the_model(inlay, base, tmp_path):
    model, tokenizer = load_base(base)
    handle = library.attach(model, library.LoRA(rank=2) + library.Head(labels=("no", "yes")))
    handle.save(tmp_path / "both.safetensors", tokenizer=tokenizer)
    run = inlay("merge", base, tmp_path / "both.safetensors", tmp_path / "merged")
    assert run.code == 0, run.err
    assert "with its head in head.safetensors" in run.out
    merged, tokenizer = load_base(tmp_path / "merged")
    path = tmp_path / "merged" / "head.safetensors"
    head = library.load(merged, path, tokenizer=tokenizer)
    assert head.spec == library.Head(labels=("no", "yes"))


def test_merge_overwrites_nothing(inlay, base, trained, tmp_path):
    (tmp_path / "there").mkdir()
    assert "exists already" in inlay("merge", base, trained, tmp_path / "there").error


def test_what_cannot_be_merged_leaves_nothing_behind(inlay, base, tmp_path):
    model, tokenizer = load_base(base)
    library.attach(model, library.Prompt(length=2)).save("p.safetensors", tokenizer=tokenizer)
    assert "cannot be folded" in inlay("merge", base, "p.safetensors", tmp_path / "out").error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p.safetensors"]


def test_a_merge_that_cannot_be_written_leaves_nothing_behind(
    inlay, base, trained, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    before = sorted(tmp_path.iterdir())
    assert "No space left" in inlay("merge", base, trained, tmp_path / "out").error
    assert sorted(tmp_path.iterdir()) == before


def test_export_writes_an_equal_prefix(inlay, base, tmp_path):
    model, tokenizer = load_base(base)
    handle = library.attach(model, library.Prompt(length=3))
    prompt = handle.save(tmp_path / "p.safetensors", tokenizer=tokenizer)
    run = inlay("export", base, prompt, tmp_path / "prefix.safetensors")
    assert run.code == 0, run.error
    assert "Prefix(length=3, mlp=None, start=None, shifts=True)" in run.out
    options = ("--max-new-tokens", "5")
    before = inlay("generate", base, prompt, "the cat sat", *options)
    after = inlay("generate", base, tmp_path / "prefix.safetensors", "the cat sat", *options)
    assert before.out == after.out
    assert "exists already" in inlay("export", base, prompt, prompt).error


def test_an_inlay_without_a_prompt_is_not_exported(inlay, base, trained, tmp_path):
    run = inlay("export", base, trained, tmp_path / "out.safetensors")
    assert run.code == 2
    assert "no prompt" in run.error
    assert not (tmp_path / "out.safetensors").exists()
