"""The command as a whole: help, errors, exit codes, colours, and how soon it answers."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import inlay as library
from inlay.errors import DataError
from inlay_cli import app, sites

COMMANDS = (
    *("demo", "methods", "sites", "train", "pet", "fuse"),
    *("eval", "generate", "check", "inspect", "merge", "export"),
)


def test_version(inlay):
    run = inlay("--version")
    assert (run.code, run.out.strip()) == (0, f"inlay {library.__version__}")


@pytest.mark.parametrize("words", [("--help",), ()])
def test_help_lists_every_command(inlay, words):
    run = inlay(*words)
    assert run.code == 0
    for command in COMMANDS:
        assert re.search(rf"^│ {command} +\w", run.out, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_page_has_an_example(inlay, command):
    run = inlay(command, "--help")
    assert run.code == 0
    _, _, examples = run.out.partition("Examples")
    assert re.search(rf"^ inlay {command}\b", examples, re.MULTILINE)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("sits",), "Did you mean 'sites'"),
        (("sites", "x", "--al"), "--all"),
        (("generate",), "BASE"),
        (("demo", "--minutes", "soon"), "--minutes"),
        (("check", "x"), "--method"),
        (("train",), "RECIPE"),
        (("train", "--set", "lr"), "training.lr=1e-4"),
    ],
)
def test_a_wrong_command_line_is_one_line(inlay, words, part):
    assert part in inlay(*words).error


def test_our_own_errors_are_one_line(inlay, monkeypatch):
    def refuse(*_):
        raise DataError("row 3 is\nno row; leave it out")

    monkeypatch.setattr(sites, "open_base", refuse)
    assert inlay("sites", "x").error == "error: row 3 is no row; leave it out"


def test_debug_shows_the_traceback_wherever_it_stands(inlay):
    for words in (("--debug", "sites", "smolm2"), ("sites", "--debug", "smolm2")):
        run = inlay(*words)
        assert run.code == 2
        assert "Traceback" in run.err
        assert "smollm2" in run.err.splitlines()[-1]


def test_an_unexpected_error_is_one_line_too(inlay, monkeypatch):
    def burst(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(sites, "open_base", burst)
    assert "unexpected ZeroDivisionError: oh; add --debug" in inlay("sites", "x").error


def test_a_full_disk_is_named(inlay, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(sites, "open_base", full)
    assert inlay("sites", "x").error == "error: somewhere: No space left on device"


def test_ctrl_c_is_one_line(inlay, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sites, "open_base", interrupt)
    run = inlay("sites", "x")
    assert (run.code, run.err) == (130, "stopped\n")


def test_a_command_with_its_own_message_on_ctrl_c_prints_no_other(inlay, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setattr(sites, "open_base", interrupt)
    run = inlay("sites", "x")
    assert (run.code, run.err) == (130, "")


def test_a_word_after_two_dashes_is_no_option(monkeypatch):
    lines = []
    monkeypatch.setattr(app, "app", lambda words, **_: lines.append(words))
    assert app.main(["generate", "base", "--", "--debug"]) == 0
    assert lines == [["generate", "base", "--", "--debug"]]


LIGHT = """
    import os, sys
    from inlay_cli.app import main
    for words in {words}:
        assert main(words) == 0, words
    heavy = {{"inlay", "torch", "transformers", "accelerate", "pandas"}} & set(sys.modules)
    assert not heavy, heavy
"""


def light(words, **env):
    program = [sys.executable, "-c", textwrap.dedent(LIGHT).format(words=words)]
    process = subprocess.run(program, capture_output=True, text=True, env=os.environ | env)
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_help_waits_for_nothing_heavy():
    output = light([["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
    assert "--patience" in output


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("inlay tr", "train"),
        ("inlay train --pat", "--patience"),
        ("inlay sites smo", "smollm2"),
        ("inlay methods Pfei", "Pfeiffer"),
        ("inlay train r.yaml --method Pfei", "Pfeiffer"),
        ("inlay train --task gen", "generate"),
        ("inlay train --task.truncate st", "start"),
        ("inlay train rec", "recipe.yaml"),
        ("inlay fuse rec", "recipe.yaml"),
        ("inlay fuse recipe.yaml --prune-per la", "layer"),
        ("inlay eval smollm2 --recipe rec", "recipe.yaml"),
        ("inlay check smollm2 ol", "old.safetensors"),
        ("inlay inspect smollm2 old.safetensors ol", "old.safetensors"),
        ("inlay train --train ro", "rows.csv"),
        ("inlay --import dia", "diagonal.py"),
        ("inlay check b --method diagonal.py : Dia", "Diagonal"),
    ],
)
def test_completion_waits_for_nothing_heavy(line, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("recipe.yaml", "old.safetensors", "rows.csv"):
        (tmp_path / name).touch()
    (tmp_path / "diagonal.py").write_text("class Diagonal(Method): pass")
    variables = {"_INLAY_COMPLETE": "complete_bash", "COMP_WORDS": line}
    assert light([[]], **variables, COMP_CWORD=str(line.count(" "))).split() == [word]


def test_a_pipe_gets_no_escape_codes(base):
    command = [sys.executable, "-m", "inlay_cli.app", "sites", str(base)]
    process = subprocess.run(command, capture_output=True, env={**os.environ, "TERM": "xterm"})
    assert process.returncode == 0
    assert "decoder.0.attn.q" in process.stdout.decode()
    assert b"\x1b" not in process.stdout + process.stderr


@pytest.mark.parametrize(("no_color", "escapes"), [("1", False), ("", True)])
def test_no_color_is_respected_in_a_terminal(monkeypatch, no_color, escapes):
    import io

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", no_color)
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    app.main(["sits"])
    assert "No such command" in screen.getvalue()
    assert ("\x1b[1;31m" in screen.getvalue()) is escapes


def test_nothing_of_the_package_imports_the_repository():
    """What the wheel does not hold, neither by an import nor by a name in a string."""
    folder = Path(app.__file__).parents[1]
    for path in folder.rglob("*.py"):
        text = path.read_text("utf-8")
        assert not re.search(r"^\s*(from|import) (bench|tests)\b", text, re.MULTILINE), path
        assert not re.search(r"[\"'](bench|tests)\.\w", text), path
