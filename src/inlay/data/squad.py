"""SQuAD's two forms: articles with paragraphs, and rows whose answers are lists by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from inlay.data.raw import BadRow, kind_of


def is_article(row: object) -> bool:
    """Whether a row is an article with paragraphs and their questions."""
    return isinstance(row, Mapping) and isinstance(row.get("paragraphs"), list)


def questions(articles: Sequence[object]) -> Iterator[object]:
    """A row for each question of the articles; a BadRow for a part that is not in that form."""
    for article in articles:
        if not isinstance(article, Mapping) or not isinstance(article.get("paragraphs"), list):
            yield BadRow(f"expected an article with paragraphs, found {kind_of(article)}")
            continue
        for paragraph in article["paragraphs"]:
            asked = paragraph.get("qas") if isinstance(paragraph, Mapping) else None
            if not isinstance(asked, list) or not all(isinstance(q, Mapping) for q in asked):
                yield BadRow("expected a paragraph with a context and a list of questions, qas")
                continue
            for question in asked:
                yield {"title": article.get("title"), "context": paragraph.get("context")} | {
                    name: question[name]
                    for name in ("id", "question", "answers", "is_impossible")
                    if name in question
                }


def answers_as_list(value: Any) -> Any:
    """Answers as a list of `{"text": …, "start": …}`; a value of another form is left as it is.

    SQuAD's are `{"text": [a, b], "answer_start": [m, n]}` or a list with `answer_start`.
    """
    if isinstance(value, Mapping) and "text" in value:
        texts, starts = value["text"], value.get("answer_start", value.get("start"))
        if not isinstance(texts, list | tuple):
            texts, starts = [texts], [starts]
        if not isinstance(starts, list | tuple) or len(texts) != len(starts):
            raise BadRow("its answers have not as many texts as starts")
        return [{"text": text, "start": start} for text, start in zip(texts, starts, strict=True)]
    if isinstance(value, list | tuple):
        return [
            {"text": item.get("text"), "start": item["answer_start"]}
            if isinstance(item, Mapping) and "answer_start" in item and "start" not in item
            else item
            for item in value
        ]
    return value
