"""messages.md holds every message of an error, and every message reads as one sentence."""

import difflib
from pathlib import Path

import pytest

from tests.messages.collect import document, messages

GOLDEN = Path(__file__).with_name("messages.md")


def test_messages_are_those_of_the_golden_file():
    stored, current = GOLDEN.read_text("utf-8"), document(messages())
    changes = "\n".join(
        difflib.unified_diff(stored.splitlines(), current.splitlines(), lineterm="", n=0)
    )
    assert stored == current, (
        f"messages have changed; read them, then write the file: python -m tests.messages\n{changes}"
    )


@pytest.fixture
def source(tmp_path):
    """`source(text)` gives the messages of a file with this text, as (class, message)."""

    def read(text):
        (tmp_path / "file.py").write_text(text)
        return [(message.error, message.text) for message in messages(tmp_path)]

    return read


def test_a_message_is_found_with_what_is_computed_in_braces(source):
    text = """
class OwnError(InlayError): ...

def f(x, many):
    kind = "rows" if many else f"row {x!r}"
    if x:
        raise errors.DataError("one " + f"{x + 1} of {x:>3} {kind}; give another")
    if many:
        raise DataError(f"{x}: {_cause(x)}" + (f"; {CURE}" if x else ""))
    return OwnError(f"{'a' if x else 'b'} is wrong")

class DataError(InlayError): ...
CURE = "try again"
def _cause(x): return f"no {x.y}"
def g(): raise ValueError("not ours")
def h(message): raise DataError(message)
"""
    assert source(text) == [
        ("DataError", "one {x + 1} of {x} (rows | row {x}); give another"),
        ("DataError", "{x}: no {x.y}[; try again]"),
        ("OwnError", "(a | b) is wrong"),
        ("DataError", "{message}"),
    ]
