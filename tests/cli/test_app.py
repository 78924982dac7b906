"""The command as a whole: help, errors, exit codes, colours, and how soon it answers."""

import os
import re
import subprocess
import sys
import textwrap

import pytest

import inlay as library
from inlay.errors import DataError
from inlay_cli import app, sites

COMMANDS = ("demo", "train", "eval", "generate", "check", "methods", "sites", "merge", "export")


def test_version(inlay):
    ran = inlay("--version")
    assert (ran.code, ran.out.strip()) == (0, f"inlay {library.__version__}")


@pytest.mark.parametrize("words", [("--help",), ()])
def test_help_lists_every_command(inlay, words):
    ran = inlay(*words)
    assert ran.code == 0
    for command in COMMANDS:
        assert re.search(rf"^│ {command} +\w", ran.out, re.MULTILINE), command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_page_has_an_example(inlay, command):
    ran = inlay(command, "--help")
    assert ran.code == 0
    _, _, shown = ran.out.partition("Examples")
    assert f"inlay {command} " in shown or f"inlay {command}\n" in shown.replace(" ", "") + "\n"


@pytest.mark.parametrize(
    ("words", "said"),
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
def test_a_wrong_command_line_is_one_line(inlay, words, said):
    assert said in inlay(*words).error


def test_our_own_errors_are_one_line(inlay, monkeypatch):
    def refuse(*_):
        raise DataError("row 3 is\nno row; leave it out")

    monkeypatch.setattr(sites, "open_base", refuse)
    assert inlay("sites", "x").error == "error: row 3 is no row; leave it out"


def test_debug_shows_the_traceback_wherever_it_stands(inlay):
    for words in (("--debug", "sites", "smolm2"), ("sites", "--debug", "smolm2")):
        ran = inlay(*words)
        assert ran.code == 2
        assert "Traceback" in ran.err
        assert "smollm2" in ran.err.splitlines()[-1]


def test_what_nobody_expected_is_one_line_too(inlay, monkeypatch):
    def burst(*_):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr(sites, "open_base", burst)
    assert "ZeroDivisionError: oh" in inlay("sites", "x").error


def test_a_full_disk_is_named(inlay, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", "somewhere")

    monkeypatch.setattr(sites, "open_base", full)
    assert inlay("sites", "x").error == "error: somewhere: No space left on device"


def test_ctrl_c_is_one_line(inlay, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sites, "open_base", interrupt)
    ran = inlay("sites", "x")
    assert (ran.code, ran.err) == (130, "stopped\n")


def test_who_has_said_that_it_stopped_is_not_repeated(inlay, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt("stopped after step 3")

    monkeypatch.setattr(sites, "open_base", interrupt)
    ran = inlay("sites", "x")
    assert (ran.code, ran.err) == (130, "")


def test_a_word_behind_two_dashes_is_no_option(monkeypatch):
    seen = []
    monkeypatch.setattr(app, "app", lambda words, **_: seen.append(words))
    assert app.main(["generate", "base", "--", "--debug"]) == 0
    assert seen == [["generate", "base", "--", "--debug"]]


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
    done = subprocess.run(program, capture_output=True, text=True, env=os.environ | env)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help_waits_for_nothing_heavy():
    shown = light([["--help"], ["--version"], *([command, "--help"] for command in COMMANDS)])
    assert "--patience" in shown


@pytest.mark.parametrize(
    ("line", "word"),
    [("inlay tr", "train"), ("inlay train --pat", "--patience"), ("inlay sites smo", "smollm2")],
)
def test_completion_waits_for_nothing_heavy(line, word):
    asked = {"_INLAY_COMPLETE": "complete_bash", "COMP_WORDS": line}
    assert light([[]], **asked, COMP_CWORD=str(line.count(" "))).split() == [word]


def test_a_pipe_gets_no_escape_codes(base):
    command = [sys.executable, "-m", "inlay_cli.app", "sites", str(base)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "TERM": "xterm"})
    assert done.returncode == 0
    assert "decoder.0.attn.q" in done.stdout.decode()
    assert b"\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(("no_color", "escapes"), [("1", False), ("", True)])
def test_no_color_is_heard_in_a_terminal(monkeypatch, no_color, escapes):
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
