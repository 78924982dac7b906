"""Verbalizer: a word for each label, and the language-model head decides which is likeliest.

    score(label) = mean over the label's words of logits[word] at the mask

Schick & Schütze, EACL 2021, section 3.1: the other words of the vocabulary do not count.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.architectures.chart import Chart
from inlay.data.labels import label_name
from inlay.errors import TaskError
from inlay.tasks import auxiliary
from inlay.tasks.auxiliary import AuxiliaryWeight
from inlay.tasks.base import Bound
from inlay.tasks.masks import MASK, count_masks, mask_token
from inlay.tasks.options import Option
from inlay.tasks.outputs import TextStates
from inlay.tasks.requirements import require_decoder_start, require_language_head
from inlay.tasks.scorer import ClassifyBatch, Scorer, flat_positions

SENTINEL = "<extra_id_0>"
"""What stands for the first missing span in the pretraining of a T5."""


@dataclass(frozen=True)
class Verbalizer(Option):
    """The language-model head decides: that label wins whose word is likeliest at one position.

    That is the position after the text in a decoder; `{mask}` in an encoder; and in an
    encoder–decoder `{mask}`, its sentinel, or without one the beginning of the decoder's text.

    words: label -> its word, one token as it is in the text, or a list of words, whose mean
        logit counts: `{"good": [" great", " fine"]}`. The labels have this order.
    auxiliary_weight: the weight in training, from 0 to below 1, of a language-model loss on the
        text that is read: in a decoder on every token, in an encoder on 15 % of them, masked.
    """

    kind: ClassVar[str] = "verbalizer"

    words: dict[str, str | list[str]]
    auxiliary_weight: AuxiliaryWeight = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.words, Mapping):
            self.normalise("words", {label_name(label): w for label, w in self.words.items()})
        super().__post_init__()
        for label in self.words:
            if not self.words_of(label):
                raise TaskError(f"verbalizer: label {label!r} has no word")

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the labels in their order."""
        return tuple(self.words)

    def words_of(self, label: str) -> list[str]:
        """The words of one label."""
        words = self.words[label]
        return [words] if isinstance(words, str) else words

    def scorer(self, bound: Bound, model: PreTrainedModel, template: str) -> WordScorer:
        """How a model that the task is bound to scores the labels.

        Raises TaskError for a model without a language-model head, a template with its `{mask}` in
        the wrong place, or a word that is not one token.
        """
        require_language_head(model, "a verbalizer")
        auxiliary.check_weight(self.auxiliary_weight, bound)
        if bound.chart.kind == "encoder-decoder":
            require_decoder_start(model)
        ids, owners = self._tokens(bound)
        text, mask_id = _written(bound, template)
        return WordScorer(text, mask_id, bound, ids, owners, self.auxiliary_weight)

    def _tokens(self, bound: Bound) -> tuple[Tensor, Tensor]:
        """The token of each word `[N]`, and the number of the label it speaks for `[N]`."""
        words: dict[int, str] = {}
        owners: list[int] = []
        for number, label in enumerate(self.labels):
            for word in self.words_of(label):
                token = _token(word, bound)
                if token in words:
                    raise TaskError(
                        f"verbalizer: {words[token]!r} and {word!r} are the same token; give one "
                        "of them only"
                    )
                words[token] = word
                owners.append(number)
        return torch.tensor(list(words)), torch.tensor(owners)


@dataclass(frozen=True)
class WordScorer(Scorer):
    """Scores by the words of the labels.

    ids: the tokens of all words, `[N]`. owners: the number of the label of each, `[N]`.
    """

    bound: Bound
    ids: Tensor
    owners: Tensor
    auxiliary_weight: float

    @override
    def positions(self, texts: Sequence[Sequence[int]], width: int) -> Tensor | None:
        if self.bound.chart.kind == "encoder-decoder":
            return None
        mask = self.mask_id
        columns = [len(ids) - 1 if mask is None else list(ids).index(mask) for ids in texts]
        return flat_positions(columns, width)

    @override
    def scores(
        self, chart: Chart, model: PreTrainedModel, batch: ClassifyBatch
    ) -> tuple[Tensor, TextStates | None]:
        if batch.positions is None:
            return self.word_scores(chart.logits(model, self._decoded(chart, model, batch))), None
        text, inputs = None, batch.inputs
        if auxiliary.is_used(self.auxiliary_weight):
            inputs, targets = auxiliary.language_model_targets(self.bound, inputs, batch.positions)
            hidden = chart.last_hidden_state(model, **inputs).flatten(0, 1)
            text = targets.states(chart, model, hidden)
        else:
            hidden = chart.last_hidden_state(model, **inputs).flatten(0, 1)
        states = hidden.index_select(0, batch.positions)
        return self.word_scores(chart.logits(model, states)), text

    def text_states(self, chart: Chart, model: PreTrainedModel, batch: ClassifyBatch) -> TextStates:
        """The states for a language-model loss on the texts of a batch alone."""
        assert batch.positions is not None
        inputs, targets = auxiliary.language_model_targets(
            self.bound, batch.inputs, batch.positions
        )
        return targets.states(chart, model, chart.last_hidden_state(model, **inputs).flatten(0, 1))

    def word_scores(self, logits: Tensor) -> Tensor:
        """The scores of the labels `[B, C]`, fp32, from logits `[B, V]`."""
        ids, owners = self.ids.to(logits.device), self.owners.to(logits.device)
        counts = torch.bincount(owners)
        logits = logits.index_select(1, ids).float()
        return logits.new_zeros(len(logits), len(counts)).index_add(1, owners, logits) / counts

    def _decoded(self, chart: Chart, model: PreTrainedModel, batch: ClassifyBatch) -> Tensor:
        """The state of an encoder–decoder that predicts the word, `[B, D]`."""
        start = [require_decoder_start(model)]
        start += [] if self.mask_id is None else [self.mask_id]
        ids = batch.inputs["input_ids"]
        inputs: dict[str, Any] = {
            **batch.inputs, "decoder_input_ids": ids.new_tensor(start).expand(len(ids), -1)
        }  # fmt: skip
        return chart.last_hidden_state(model, **inputs)[:, -1]


def _written(bound: Bound, template: str) -> tuple[str, int | None]:
    """The template as the tokenizer reads it, and the token that stands for `{mask}`, if any.

    Raises TaskError where the model has no use for its masks, or lacks one.
    """
    kind, count = bound.chart.kind, count_masks(template)
    if kind == "encoder":
        return mask_token(bound, template)
    if not count:
        return template, None
    if kind == "decoder":
        text = template.rstrip()
        if count != 1 or not text.endswith(MASK):
            raise TaskError(
                f"template {template!r}: a decoder predicts the word after the text, so {MASK} "
                "must be at its end"
            )
        return text.removesuffix(MASK).rstrip(), None
    if count != 1:
        raise TaskError(f"template {template!r}: give one {MASK}, not {count}")
    vocabulary = bound.tokenizer.get_vocab()
    if SENTINEL not in vocabulary:
        raise TaskError(f"{MASK} needs a tokenizer with the sentinel {SENTINEL}")
    return template.replace(MASK, SENTINEL), vocabulary[SENTINEL]


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
