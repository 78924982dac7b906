"""generate: a source text -> a target text."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from inlay.data.dataset import Example, Value
from inlay.data.template import Template
from inlay.errors import DataError, TaskError
from inlay.tasks import auxiliary, metrics
from inlay.tasks.auxiliary import AuxiliaryWeight
from inlay.tasks.base import Bound, Prediction
from inlay.tasks.chat import Chat, tokens_within
from inlay.tasks.demonstrations import (
    Demonstration,
    chat_messages,
    demonstration,
    first_target,
    with_demonstrations,
)
from inlay.tasks.generation_config import (
    GenerationCall,
    check_options,
    end_tokens,
    generation_config,
)
from inlay.tasks.messages import ASSISTANT, call_names, check_turns, messages_of
from inlay.tasks.outputs import TokenStates
from inlay.tasks.reader import Reader
from inlay.tasks.records import PREDICTION, Column, Mistake, Record
from inlay.tasks.requirements import require_decoder_start, require_language_head
from inlay.tasks.rows import Row, field_of, require_labels, texts_of
from inlay.tasks.special_tokens import count_trailing
from inlay.tasks.targets import ChatRow, GenerateBatch, left_padded, target_batch
from inlay.tasks.templated import Templated


@dataclass(kw_only=True)
class Generate(Templated[GenerateBatch, TokenStates]):
    """A source text -> a target text, by a decoder or an encoder–decoder.

    In a decoder a row is source, target and end token; the loss is on target and end token. Source
    and target are tokenised separately, so that training and generation read the same source.

    template: how the source is written; None for "{source}" and, in a decoder without `chat`, a
        line break after it.
    target: the field that holds the target: a text, or a list of them such as `targets`, of which
        the first is learned, and the best one for a prediction counts.
    chat: write the source in the tokenizer's chat template, as the user's message; or "messages",
        where rows have whole chats, `messages`, a list of `{"role": …, "content": …}`, with
        `tool_calls` and, in the row, `tools` where the template writes them. Of a chat all that the
        assistant writes is learned, its texts, its calls and the tokens that end its turns, but no
        turn with `loss` false or `weight` 0. Its last turn, where the chat ends with it, is the
        target.
    system: the system message at its beginning, unless a chat has its own.
    demonstrations: how many worked examples come before every source, the same for all, as
        turns of the chat with `chat`. They are drawn from the training data (`prepare`), where
        they stay too; or they are given, each as its fields.
    seed: which examples are drawn.
    metric: the primary metric.
    generation: options of `model.generate`, such as `num_beams: 4`, or `do_sample: true` with
        `temperature` and `top_p`. Without any, decoding is greedy and ends after 64 tokens at the
        latest, or where a decoder's context is full.
    empty_targets: whether an empty target, or an empty turn of the assistant, is learned, as "say
        nothing"; otherwise its row is refused.
    auxiliary_weight: the weight in training, from 0 to below 1, of a language-model loss on all
        that a decoder reads, source and target.
    """

    name: ClassVar[str] = "generate"
    moved_fields: ClassVar[Mapping[str, str]] = {"auxiliary": "auxiliary_weight: 0.1"}

    target: str = "target"
    chat: bool | Literal["messages"] = False
    system: str | None = None
    demonstrations: int | tuple[dict[str, Any], ...] = 0
    seed: int = 0
    metric: metrics.GenerationMetric = "bleu"
    generation: dict[str, Any] = field(default_factory=dict)
    empty_targets: bool = False
    auxiliary_weight: AuxiliaryWeight = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.generation, Mapping):
            self.generation = {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self.generation.items()
            }
        examples: Any = self.demonstrations
        self.demonstrations = tuple(examples) if isinstance(examples, list) else examples
        super().__post_init__()
        if self.system is not None and not self.chat:
            raise TaskError("generate: a system message needs chat, which is off")
        if isinstance(self.demonstrations, int) and self.demonstrations < 0:
            raise TaskError(f"generate: demonstrations={self.demonstrations} is less than none")
        if self.chat == "messages":
            self._check_whole_chats()
        check_options(self.generation)

    def _check_whole_chats(self) -> None:
        """Raise TaskError for fields that mean nothing where rows have whole chats."""
        for name in ("template", "target", "demonstrations", "truncate"):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise TaskError(
                    f'generate: {name} is for rows of texts; leave it out with chat="messages"'
                )

    @override
    def place_virtual_tokens(self, count: int, before: int, examples: Sequence[Example]) -> None:
        if self.chat == "messages":
            raise TaskError(f"rows of chats have no template for {count} virtual tokens")
        super().place_virtual_tokens(count, before, examples)

    @override
    def default_template(self, examples: Sequence[Example]) -> str:
        return "{source}"

    @property
    @override
    def required_fields(self) -> tuple[str, ...]:
        if self.chat == "messages":
            return ("messages",)
        return (*Template(self.template or "{source}").names, self.target)

    @property
    @override
    def gold_fields(self) -> tuple[str, ...]:
        return ("messages",) if self.chat == "messages" else (self.target,)

    @property
    @override
    def target_fields(self) -> tuple[str, ...]:
        """Of a whole chat the last turn is the target, where it is the assistant's."""
        return () if self.chat == "messages" else (self.target,)

    @override
    def inputs_of_text(self, text: str) -> dict[str, Value]:
        if self.chat == "messages":
            return {"messages": [{"role": "user", "content": text}]}
        return super().inputs_of_text(text)

    @override
    def prepare(self, examples: Iterable[Example]) -> None:
        """Draw the demonstrations, unless they are given. Raises DataError for too few rows."""
        if not isinstance(self.demonstrations, int) or self.demonstrations == 0:
            return
        pool, count = list(examples), self.demonstrations
        if len(pool) < count:
            raise DataError(f"{len(pool)} rows are fewer than demonstrations={count}")
        drawn = random.Random(self.seed).sample(pool, count)
        self.demonstrations = tuple(
            {
                name: first_target(row, name) if name == self.target else field_of(row, name)
                for name in self.required_fields
            }
            for row in drawn
        )

    @override
    def check(self, example: Example) -> None:
        if self.chat == "messages":
            if "messages" in example.fields and not self.empty_targets:
                check_turns(example)
        elif self.target in example.fields:
            self._target(example)

    def _target(self, example: Example) -> str:
        """The target that is learned. Raises DataError where it is empty and that is not asked."""
        target = first_target(example, self.target)
        if not target.strip() and not self.empty_targets:
            raise DataError(
                f"{example.where}: its {self.target} is empty; set empty_targets "
                "(--task.empty_targets true) to learn to say nothing"
            )
        return target

    # ------------------------------------------------------------------------------- its model

    @override
    def on_bind(self, bound: Bound, model: PreTrainedModel) -> None:
        kind, tokenizer = bound.chart.kind, bound.tokenizer
        if kind == "encoder":
            raise TaskError(f"{type(model).__name__} is an encoder and cannot generate text")
        self._decoder = kind == "decoder"
        require_language_head(model, "generating text")
        auxiliary.check_weight(self.auxiliary_weight, bound)
        if tokenizer.eos_token_id is None:
            raise TaskError("generate needs an end token; set tokenizer.eos_token")
        if self.chat:
            self._check_chat(bound)
        self._config = generation_config(model, bound, self.generation)
        if not self._decoder:
            start = self._config.decoder_start_token_id
            self._start = require_decoder_start(model) if start is None else start
        default = "{source}\n" if self._decoder and not self.chat else "{source}"
        template = Template(default if self.template is None else self.template)
        demonstrations = self._demonstrations(template)
        before = chat_messages(self.system, demonstrations)
        self._chat = Chat(tokenizer, before, end_tokens(self._config, bound))
        separator = "" if self._decoder else "\n"
        self._reader = Reader(
            tokenizer=tokenizer,
            template=template,
            separator=None,
            wrap=(
                self._chat.user_message()
                if self.chat
                else with_demonstrations(demonstrations, separator)
            ),
            add_special_tokens=not self.chat,
            drop_trailing=count_trailing(tokenizer) if self._decoder and not self.chat else 0,
            token_type_ids=False,
            truncate=self.truncate,
            first_virtual_id=bound.first_virtual_id,
        )

    def _check_chat(self, bound: Bound) -> None:
        """Raise TaskError where the model or its tokenizer cannot chat."""
        tokenizer = bound.tokenizer
        if not self._decoder:
            raise TaskError("chat is for decoders; leave it out for an encoder–decoder")
        if not tokenizer.chat_template:
            raise TaskError("chat needs a tokenizer with a chat template, and this one has none")
        if self.chat == "messages" and not tokenizer.is_fast:
            raise TaskError(f"chats need a fast tokenizer, not {type(tokenizer).__name__}")

    def _demonstrations(self, template: Template) -> list[Demonstration]:
        """The demonstrations. Raises TaskError where they are not drawn yet."""
        if isinstance(self.demonstrations, int):
            if self.demonstrations:
                raise TaskError(
                    "generate: the demonstrations are not drawn yet; call prepare(training "
                    "examples), or give demonstrations=[...]"
                )
            return []
        return [
            demonstration(Example(fields, f"demonstration {number}"), template, self.target)
            for number, fields in enumerate(self.demonstrations, 1)
        ]

    # --------------------------------------------------------------------------- its arithmetic

    @override
    def encode_some(self, examples: Sequence[Example], first_index: int) -> list[Row]:
        if self.chat == "messages":
            return [self._chat_row(row, index) for index, row in enumerate(examples, first_index)]
        limit = self.bound.max_length
        targets = self._targets(examples)
        max_lengths: list[int | None] = []
        for example, target in zip(examples, targets, strict=True):
            length = 0 if target is None else len(target)
            room = None if limit is None else limit - length
            if room is not None and room < (1 if self._decoder else 0):
                raise DataError(
                    f"{example.where}: its target alone is {length} tokens long and only {limit} "
                    "fit; shorten it"
                )
            max_lengths.append(room if self._decoder else limit)
        sources = self._reader.read(examples, max_lengths)
        triples = zip(examples, sources, targets, strict=True)
        return [
            Row(source.ids, target, index, example.where, len(source.ids) + len(target or ()))
            for index, (example, source, target) in enumerate(triples, first_index)
        ]

    def _chat_row(self, example: Example, index: int) -> Row:
        """A whole chat as a row."""
        if not self.empty_targets:
            check_turns(example)
        chat, limit, tokenizer = self._chat.read(example), self.bound.max_length, self.bound.tokenizer  # fmt: skip  # noqa: E501
        encoding = tokenizer(
            chat.prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        reply = None
        if chat.reply is not None:
            reply = tokenizer(chat.reply, add_special_tokens=False, verbose=False)["input_ids"]
        ids = encoding["input_ids"]
        cost = len(ids) + len(reply or ())
        if limit is not None and cost > limit:
            raise DataError(
                f"{example.where}: its messages are {cost} tokens long and only {limit} fit; "
                "shorten them, or leave the first ones out"
            )
        turns = tokens_within(encoding["offset_mapping"], chat.turns)
        return ChatRow(ids, reply, index, example.where, cost, earlier_turns=turns)

    def _targets(self, examples: Sequence[Example]) -> list[list[int] | None]:
        """The target of each example with the end token last, or None where it has none."""
        tokenizer = self.bound.tokenizer
        places = [n for n, example in enumerate(examples) if self.target in example.fields]
        texts = [self._target(examples[place]) for place in places]
        targets: list[list[int] | None] = [None] * len(examples)
        if not texts:
            return targets
        if self._decoder:
            tokens = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            tokens = tokenizer(text_target=texts, verbose=False)["input_ids"]
        end = tokenizer.eos_token_id
        for place, ids in zip(places, tokens, strict=True):
            complete = not self._decoder and ids[-1:] == [end]
            if len(ids) == complete and not self.empty_targets:
                raise DataError(
                    f"{examples[place].where}: its {self.target} leaves no tokens; set "
                    "empty_targets (--task.empty_targets true) to learn to say nothing"
                )
            targets[place] = ids if complete else [*ids, end]
        return targets

    @override
    def collate(self, rows: Sequence[Row]) -> GenerateBatch:
        start = None if self._decoder else self._start
        return target_batch(rows, self.bound.pad_id, start)

    @override
    def outputs(self, model: PreTrainedModel, batch: GenerateBatch) -> TokenStates:
        """The states at the positions where a token of a target is predicted.

        Raises DataError where the rows had no targets.
        """
        positions, chart = require_labels(batch.positions), self.chart(model)
        inputs, text_targets = batch.inputs, None
        if auxiliary.is_used(self.auxiliary_weight):
            inputs, text_targets = auxiliary.language_model_targets(self.bound, inputs, positions)
        hidden = chart.last_hidden_state(model, **inputs).flatten(0, 1)
        text = None if text_targets is None else text_targets.states(chart, model, hidden)
        return TokenStates(chart, model, hidden.index_select(0, positions), text)

    @override
    def loss(self, outputs: TokenStates, batch: GenerateBatch) -> tuple[Tensor, int]:
        """Cross entropy of the target's tokens, and how many there are."""
        targets = require_labels(batch.targets)
        loss = outputs.loss(targets)
        if outputs.text is not None:
            loss = auxiliary.mixed(self.auxiliary_weight, loss, outputs.text)
        return loss, len(targets)

    def generation_call(
        self, model: PreTrainedModel, batch: GenerateBatch
    ) -> GenerationCall | None:
        """How `model.generate` is called; None where a decoder's context has no room left."""
        ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
        config = self._config
        if batch.prompt_lengths is None:
            return GenerationCall(ids, mask, config, 0)
        ids, mask = left_padded(ids, batch.prompt_lengths, self.bound.pad_id)
        prompt_length = ids.shape[1]
        limit = self.chart(model).max_length(model)
        if limit is not None and prompt_length + config.max_new_tokens > limit:
            if prompt_length >= limit:
                return None
            config = copy.deepcopy(config)
            config.max_new_tokens = limit - prompt_length
        return GenerationCall(ids, mask, config, prompt_length)

    @torch.no_grad()
    @override
    def predict(self, model: PreTrainedModel, batch: GenerateBatch) -> list[Prediction]:
        """The generated text, without special tokens and white space around it."""
        call = self.generation_call(model, batch)
        if call is None:
            return [""] * len(batch)
        new_tokens = call.run(model)[:, call.prompt_length :]
        texts = self.bound.tokenizer.batch_decode(new_tokens, skip_special_tokens=True)
        return [text.strip() for text in texts]

    @property
    @override
    def record_columns(self) -> tuple[Column, ...]:
        return (Column(PREDICTION, "text", "the text that is written"),)

    @override
    def mistake(self, record: Record, example: Example) -> Mistake | None:
        """The cost is one minus the F1 of words with the most similar reference."""
        references = self._references(example)
        text = record[PREDICTION].strip()
        if text in [reference.strip() for reference in references]:
            return None
        return Mistake(1 - metrics.extraction([text], [references])["f1"], references[0])

    @override
    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        references = [self._references(example) for example in examples]
        return metrics.generation(predictions, references)

    def _references(self, example: Example) -> list[str]:
        """The texts that a prediction is compared with."""
        if self.chat != "messages":
            return texts_of(example, self.target)
        last = messages_of(example)[-1]
        if last["role"] != ASSISTANT:
            raise DataError(f"{example.where}: its last message is not the assistant's")
        if not call_names(last):
            return [last["content"]]
        reply = self._chat.read(example).reply
        tokenizer = self.bound.tokenizer
        ids = tokenizer(reply, add_special_tokens=False, verbose=False)["input_ids"]
        return [str(tokenizer.decode(ids, skip_special_tokens=True)).strip()]
