"""Completion of words with a colon, such as `diagonal.py:Diagonal`, in bash.

Bash takes a colon for the end of a word: it asks for the completion of `Dia` after the words
`diagonal.py` and `:`, and puts the answer in the place of `Dia` alone. So the words are joined
before the command line completes them, and what bash has already is cut off the answers.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import redirect_stdout

VARIABLE = "_INLAY_COMPLETE"


def join(words: Sequence[str], current: int) -> tuple[list[str], int, str]:
    """Join the words that a colon separates.

    words: as bash has split them. current: the number of the one to complete.

    Returns the words, the number of the one to complete, and what precedes in it the part that
    bash will replace.
    """
    joined: list[str] = []
    number, before, glued = 0, "", False
    for index, word in enumerate(words):
        colon = word == ":"
        if joined and (colon or glued) and index > 1:
            if index == current:
                before = joined[-1] if not colon else f"{joined[-1]}:"
            joined[-1] += word
        else:
            joined.append(word)
        glued = colon
        if index == current:
            number = len(joined) - 1
    if current >= len(words):
        if glued:
            number, before = len(joined) - 1, joined[-1]
        else:
            number = len(joined)
    return joined, number, before


def complete_with_colons(environ: MutableMapping[str, str], run: Callable[[], int]) -> int:
    """Run the command line, which completes words in bash, with joined words.

    environ: of the process. Returns what `run` returns.
    """
    text = environ.get("COMP_WORDS", "")
    words = text.split("\n") if "\n" in text else text.split(" ")
    if environ.get(VARIABLE) != "complete_bash" or ":" not in words:
        return run()
    joined, number, before = join(words, int(environ.get("COMP_CWORD", "0")))
    environ["COMP_WORDS"], environ["COMP_CWORD"] = "\n".join(joined), str(number)
    output = io.StringIO()
    try:
        with redirect_stdout(output):
            return run()
    finally:
        lines = output.getvalue().splitlines()
        sys.stdout.write("".join(f"{line.removeprefix(before)}\n" for line in lines))
