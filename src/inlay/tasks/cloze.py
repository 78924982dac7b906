"""cloze: a template with a blank, and the words of the labels that may stand there.

    score(label) = mean over the label's words of logits[word] at the blank

Schick & Schütze, EACL 2021, section 3.1: the other words of the vocabulary do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inlay.data.template import Template
from inlay.errors import TaskError
from inlay.tasks.base import Bound

MASK = "{mask}"

SENTINEL = "<extra_id_0>"
"""What stands for the first missing span in a T5's pretraining."""

Verbalizer = Mapping[str, str | Sequence[str]]
"""Label -> its word, or its words."""


def masks(template: str) -> int:
    """How often a template has `{mask}`."""
    return sum(name == "mask" for _, name in Template(template).parts)


def written(template: str, bound: Bound, worded: bool) -> tuple[str, int | None]:
    """The template as a tokenizer reads it, and the id of the token that stands for `{mask}`.

    worded: whether a word decides; else a trained head. None where nothing stands there: the word
    comes behind a decoder's text, or begins what an encoder–decoder writes.

    Raises TaskError where the base has no use for the template's masks, or lacks one.
    """
    kind, count = bound.chart.kind, masks(template)
    if kind == "encoder":
        if count != 1 and (worded or count):
            raise TaskError(f"template {template!r}: an encoder needs {MASK} where the word stands")
        token = bound.tokenizer.mask_token
    elif not count:
        return template, None
    elif not worded:
        raise TaskError(
            f"template {template!r}: {MASK} is for words and for encoders, and here a trained "
            "head decides; leave it out"
        )
    elif kind == "decoder":
        before = template.rstrip().removesuffix(MASK)
        if count != 1 or before == template.rstrip():
            raise TaskError(
                f"template {template!r}: {MASK} must be its end, for a decoder says the word "
                "behind the text"
            )
        return before.rstrip(), None
    elif count != 1:
        raise TaskError(f"template {template!r}: the word stands at one {MASK}, not at {count}")
    else:
        token = SENTINEL if SENTINEL in bound.tokenizer.get_vocab() else None
    if not count:
        return template, None
    if token is None:
        what = f"the sentinel {SENTINEL}" if kind == "encoder-decoder" else "a mask token"
        raise TaskError(f"{MASK} needs a tokenizer with {what}")
    return template.replace(MASK, token), bound.tokenizer.get_vocab()[token]


def words_of(word: str | Sequence[str]) -> list[str]:
    """The words of one label."""
    return [word] if isinstance(word, str) else list(word)


@dataclass(frozen=True)
class Words:
    """The labels' words as tokens.

    ids: of all words, `[N]`. owners: the number of the label that each speaks for, `[N]`.
    """

    ids: Tensor
    owners: Tensor

    @staticmethod
    def of(verbalizer: Verbalizer, names: Sequence[str], bound: Bound) -> Words:
        """The words of the labels in their order.

        Raises TaskError for a word that is not one known token, or that is there twice.
        """
        ids: list[int] = []
        words: list[str] = []
        owners: list[int] = []
        for number, name in enumerate(names):
            for word in words_of(verbalizer[name]):
                token = _token(word, bound)
                if token in ids:
                    raise TaskError(
                        f"the words {words[ids.index(token)]!r} and {word!r} are the same token"
                    )
                ids.append(token)
                words.append(word)
                owners.append(number)
        return Words(torch.tensor(ids), torch.tensor(owners))

    def scores(self, logits: Tensor) -> Tensor:
        """The scores of the labels, `[B, C]`, fp32, from logits `[B, V]`."""
        ids, owners = self.ids.to(logits.device), self.owners.to(logits.device)
        counts = torch.bincount(owners)
        picked = logits.index_select(1, ids).float()
        return picked.new_zeros(len(picked), len(counts)).index_add(1, owners, picked) / counts


def _token(word: str, bound: Bound) -> int:
    """The one token of a word."""
    tokens = bound.tokenizer(word, add_special_tokens=False)["input_ids"]
    if len(tokens) != 1:
        spelled = bound.tokenizer.convert_ids_to_tokens(tokens)
        raise TaskError(
            f"the word {word!r} must be one token, and is {len(tokens)}: {spelled}; the task "
            "choose scores answers of any length"
        )
    if tokens[0] == bound.tokenizer.unk_token_id:
        raise TaskError(f"the tokenizer does not know the word {word!r}")
    return int(tokens[0])
