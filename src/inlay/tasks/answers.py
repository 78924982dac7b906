"""The questions, contexts and gold answers of `extract` examples."""

from __future__ import annotations

from collections.abc import Sequence

from inlay.data.dataset import Example
from inlay.errors import DataError
from inlay.tasks.rows import field_of, list_of

Offsets = Sequence[tuple[int, int]]
"""Where in a text its tokens begin and end, in characters."""

Answer = tuple[str, int]
"""The text of an answer, and the position of its first character in the context."""


def text_of(example: Example, name: str) -> str:
    """A field that holds a text which is not empty. Raises DataError, which names the example."""
    text = str(field_of(example, name))
    if not text.strip():
        raise DataError(f"{example.where}: its {name} is empty")
    return text


def gold_answers(example: Example) -> list[Answer]:
    """The gold answers of an example; an empty list where its context has none.

    Raises DataError, which names the example.
    """
    answers = []
    for item in list_of(example, "answers"):
        text, start = (item.get("text"), item.get("start")) if isinstance(item, dict) else (0, 0)
        if not isinstance(text, str) or isinstance(start, bool) or not isinstance(start, int):
            raise DataError(
                f'{example.where}: an answer is {{"text": "…", "start": 0}}, not {item!r:.80}'
            )
        if not text.strip():
            raise DataError(f"{example.where}: the text of an answer is empty")
        answers.append((text, start))
    return answers


def checked_answers(example: Example) -> list[Answer] | None:
    """The gold answers of an example, checked against its context; None without `answers`.

    Raises DataError, which names the example, where an answer is not where it says.
    """
    if "answers" not in example.fields:
        return None
    context = str(field_of(example, "context"))
    answers = gold_answers(example)
    for text, start in answers:
        if start < 0 or not context.startswith(text, start):
            place = context.find(text)
            cure = "it is nowhere in it" if place < 0 else f"its first place is {place}"
            raise DataError(
                f"{example.where}: the answer {text!r:.80} is not in its context at character "
                f"{start}; {cure}"
            )
    return answers


def tokens_of(answer: Answer, offsets: Offsets) -> tuple[int, int] | None:
    """The first and last token of an answer; None where the tokenizer drops all of it.

    offsets: where the tokens of the context begin and end, in characters.
    """
    text, start = answer
    stop = start + len(text)
    inside = [n for n, (begin, end) in enumerate(offsets) if begin < stop and start < end]
    return (inside[0], inside[-1]) if inside else None
