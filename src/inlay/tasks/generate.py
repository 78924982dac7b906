"""generate: a source text -> a target text."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from inlay.data.dataset import Example
from inlay.data.template import VIRTUAL_TOKEN, Template
from inlay.errors import DataError, TaskError, nearest
from inlay.tasks import auxiliary, metrics
from inlay.tasks.auxiliary import Share
from inlay.tasks.base import (
    Batch,
    Bound,
    Prediction,
    Row,
    field_of,
    labelled,
    mask_of,
    need_labels,
    need_language_head,
    padded,
    texts_of,
)
from inlay.tasks.chat import ASSISTANT, Chat, Message, messages_of, within
from inlay.tasks.loss import token_loss
from inlay.tasks.rows import Reader, trailing
from inlay.tasks.templated import Templated

MAX_NEW_TOKENS = 64

SAMPLING = (
    *("temperature", "top_k", "top_p", "min_p", "top_h", "typical_p"),
    *("epsilon_cutoff", "eta_cutoff"),
)
"""Options of a model's own generation config that mean nothing without sampling."""

FIXED = (
    *("num_return_sequences", "return_dict_in_generate", "output_scores", "output_logits"),
    *("output_attentions", "output_hidden_states", "max_length", "transformers_version"),
)
"""Fields of GenerationConfig that are not the user's: one text comes back for each source."""


@dataclass(frozen=True, slots=True)
class Talk(Row):
    """A chat up to the assistant's last turn, which is the target.

    said: the places in `input_ids` of what the assistant wrote before, which is learned too.
    """

    said: tuple[int, ...] = ()


@dataclass(kw_only=True)
class Generate(Templated):
    """A source text -> a target text, by a decoder or an encoder–decoder.

    In a decoder a row is source, target and end token; the loss is on target and end token. Source
    and target are tokenised apart, so that training and generation see the same source.

    template: how the source is written; None for "{source}" and, in a decoder without `chat`, a
        line break behind it.
    target: the field that holds the target: a text, or a list of them such as `targets`, of which
        the first is learned, and the best one for a prediction counts.
    chat: put the source into the tokenizer's chat template, as the user's message; or "messages",
        where rows bring whole chats, `messages`, a list of `{"role": …, "content": …}`. Of a chat
        all that the assistant writes is learned, its texts and the tokens that end its turns, and
        its last turn, where it has the last word, is the target.
    system: the system message in front of it, unless a chat brings its own.
    demonstrations: how many worked examples stand in front of every source, the same for all, as
        turns of the chat with `chat`. They are drawn from the training data (`prepare`); or they
        are given, each as its fields. A row that is drawn stays in the training data too.
    seed: which examples are drawn.
    metric: the primary metric.
    generation: options of `model.generate`, such as `num_beams: 4`, or `do_sample: true` with
        `temperature` and `top_p`. Without any, decoding is greedy and ends after 64 tokens at the
        latest, or where a decoder's context is full.
    auxiliary: the share of the loss, in training, that is for predicting all that a decoder reads,
        source and target, token by token.
    """

    name: ClassVar[str] = "generate"

    target: str = "target"
    chat: bool | Literal["messages"] = False
    system: str | None = None
    demonstrations: int | tuple[dict[str, Any], ...] = 0
    seed: int = 0
    metric: metrics.GenerationMetric = "bleu"
    generation: dict[str, Any] = field(default_factory=dict)
    auxiliary: Share = 0.0

    def __post_init__(self) -> None:
        self.generation = _plain(self.generation)
        given: Any = self.demonstrations
        self.demonstrations = tuple(given) if isinstance(given, list) else given
        super().__post_init__()
        if self.system is not None and not self.chat:
            raise TaskError("generate: a system message needs chat, which is off")
        if isinstance(self.demonstrations, int) and self.demonstrations < 0:
            raise TaskError(f"generate: demonstrations={self.demonstrations} is less than none")
        if self.chat == "messages":
            self._check_chats()
        known = set(GenerationConfig().to_dict()) - set(FIXED)
        for option in self.generation:
            if option not in known:
                raise TaskError(f"generate cannot set {option!r} here{nearest(option, known)}")

    def _check_chats(self) -> None:
        """Raise TaskError for fields that mean nothing where rows bring whole chats."""
        for name in ("template", "target", "demonstrations", "truncate"):
            default = type(self).__dataclass_fields__[name].default
            if getattr(self, name) != default:
                raise TaskError(
                    f'generate: {name} is for rows of texts; leave it out with chat="messages"'
                )

    def place(self, virtual: int, front: int, examples: Sequence[Example]) -> None:
        """See `Task`."""
        if self.chat == "messages":
            raise TaskError(f"rows of chats have no template for {virtual} virtual tokens")
        super().place(virtual, front, examples)

    def bare(self, examples: Sequence[Example]) -> str:
        """See `Templated`."""
        return "{source}"

    @property
    def needs(self) -> tuple[str, ...]:
        """See `Task`."""
        if self.chat == "messages":
            return ("messages",)
        return (*Template(self.template or "{source}").names, self.target)

    @property
    def gold(self) -> tuple[str, ...]:
        """See `Task`."""
        return ("messages",) if self.chat == "messages" else (self.target,)

    def prepare(self, examples: Iterable[Example]) -> None:
        """Draw the demonstrations, unless they were given. Raises DataError for too few rows."""
        if not isinstance(self.demonstrations, int) or self.demonstrations == 0:
            return
        those, count = list(examples), self.demonstrations
        if len(those) < count:
            raise DataError(f"{len(those)} rows are fewer than demonstrations={count}")
        drawn = random.Random(self.seed).sample(those, count)
        self.demonstrations = tuple(
            {
                name: _reference(one, name) if name == self.target else field_of(one, name)
                for name in self.needs
            }
            for one in drawn
        )

    # ----------------------------------------------------------------- its model

    def check(self, bound: Bound, model: PreTrainedModel) -> None:
        """See `Task`."""
        kind, tokenizer = bound.chart.kind, bound.tokenizer
        if kind == "encoder":
            raise TaskError(f"{type(model).__name__} is an encoder and cannot generate text")
        self._decoder = kind == "decoder"
        need_language_head(model, "generating text")
        auxiliary.check(self.auxiliary, bound)
        if tokenizer.eos_token_id is None:
            raise TaskError("generate needs an end token; set tokenizer.eos_token")
        if self.chat and not self._decoder:
            raise TaskError("chat is for decoders; leave it out for an encoder–decoder")
        if self.chat and not tokenizer.chat_template:
            raise TaskError("chat needs a tokenizer with a chat template, and this one has none")
        if self.chat == "messages" and not tokenizer.is_fast:
            raise TaskError(f"chats need a fast tokenizer, not {type(tokenizer).__name__}")
        self._config = self._decoding(model, bound)
        self._start = self._config.decoder_start_token_id
        if not self._decoder and self._start is None:
            raise TaskError("the model's config has no decoder_start_token_id")
        default = "{source}\n" if self._decoder and not self.chat else "{source}"
        template = Template(default if self.template is None else self.template)
        shown = self._shown(template)
        self._chat = Chat(tokenizer, self._before(shown), self._ends(bound))
        self._reader = Reader(
            tokenizer=tokenizer,
            template=template,
            joint=None,
            frame=self._chat.asked if self.chat else self._behind(shown),
            special=not self.chat,
            ends=trailing(tokenizer) if self._decoder and not self.chat else 0,
            types=False,
            truncate=self.truncate,
            first=bound.first,
        )

    def _shown(self, template: Template) -> list[tuple[str, str]]:
        """The sources and targets of the demonstrations, without virtual tokens."""
        if isinstance(self.demonstrations, int):
            if self.demonstrations:
                raise TaskError(
                    "generate: the demonstrations are not drawn yet; call prepare(training "
                    "examples), or give demonstrations=[...]"
                )
            return []
        shown = []
        for number, fields in enumerate(self.demonstrations, 1):
            example = Example(fields, f"demonstration {number}")
            texts = {name: str(field_of(example, name)) for name in template.names}
            source = template.fill(texts).replace(VIRTUAL_TOKEN, "")
            shown.append((source, _reference(example, self.target)))
        return shown

    def _before(self, shown: Sequence[tuple[str, str]]) -> tuple[Message, ...]:
        """The messages in front of every chat."""
        system = [] if self.system is None else [("system", self.system)]
        turns = [turn for a, b in shown for turn in (("user", a), (ASSISTANT, b))]
        return tuple({"role": role, "content": content} for role, content in [*system, *turns])

    def _behind(self, shown: Sequence[tuple[str, str]]) -> Callable[[str], str] | None:
        """What puts a source behind the demonstrations, with an empty line behind each."""
        if not shown:
            return None
        joint = "" if self._decoder else "\n"
        opening = "".join(f"{source}{joint}{target}\n\n" for source, target in shown)
        return lambda text: opening + text

    def _ends(self, bound: Bound) -> tuple[str, ...]:
        """The tokens that end what is generated, as text."""
        given = self._config.eos_token_id
        numbers = {bound.tokenizer.eos_token_id, *(given if isinstance(given, list) else [given])}
        return tuple(bound.tokenizer.convert_ids_to_tokens(sorted(numbers)))

    def _decoding(self, model: PreTrainedModel, bound: Bound) -> GenerationConfig:
        """The model's own generation config, made greedy, with the user's options on top."""
        own = model.generation_config
        config = GenerationConfig() if own is None else copy.deepcopy(own)
        given = {"do_sample": False, "num_beams": 1, "max_new_tokens": MAX_NEW_TOKENS}
        given |= self.generation
        config.max_length = None
        if not given["do_sample"]:
            for name in SAMPLING:
                setattr(config, name, None)
        for name, value in given.items():
            setattr(config, name, value)
        if config.eos_token_id is None:
            config.eos_token_id = bound.tokenizer.eos_token_id
        config.pad_token_id = bound.pad
        if config.decoder_start_token_id is None and bound.chart.kind == "encoder-decoder":
            config.decoder_start_token_id = model.config.decoder_start_token_id
        try:
            config.validate(strict=True, user_set_attributes=set(given))
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise TaskError(f"generation options that do not fit together: {reason}") from None
        return config

    # ---------------------------------------------------------------- arithmetic

    def _encode(self, examples: Sequence[Example], first: int) -> list[Row]:
        if self.chat == "messages":
            return [self._talk(example, first + at) for at, example in enumerate(examples)]
        limit = self.bound.limit
        targets = self._targets(examples)
        rooms: list[int | None] = []
        for example, target in zip(examples, targets, strict=True):
            length = 0 if target is None else len(target)
            room = None if limit is None else limit - length
            if room is not None and room < (1 if self._decoder else 0):
                raise DataError(
                    f"{example.where}: its target alone is {length} tokens long where {limit} fit; "
                    "shorten it"
                )
            rooms.append(room if self._decoder else limit)
        sources = [read.ids for read in self._reader.read(examples, rooms)]
        return [
            Row(source, target, first + place, example.where, len(source) + len(target or ()))
            for place, (example, source, target) in enumerate(
                zip(examples, sources, targets, strict=True)
            )
        ]

    def _talk(self, example: Example, index: int) -> Row:
        """A chat as a row."""
        chat, limit, tokenizer = self._chat.read(example), self.bound.limit, self.bound.tokenizer
        read = tokenizer(
            chat.prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        reply = None
        if chat.reply is not None:
            reply = tokenizer(chat.reply, add_special_tokens=False, verbose=False)["input_ids"]
        ids = read["input_ids"]
        cost = len(ids) + len(reply or ())
        if limit is not None and cost > limit:
            raise DataError(
                f"{example.where}: its messages are {cost} tokens long where {limit} fit; shorten "
                "them, or leave the first ones out"
            )
        said = within(read["offset_mapping"], chat.turns)
        return Talk(ids, reply, index, example.where, cost, said=said)

    def _targets(self, examples: Sequence[Example]) -> list[list[int] | None]:
        """The target of each example with the end token last, or None where it has none."""
        tokenizer = self.bound.tokenizer
        places = [at for at, example in enumerate(examples) if self.target in example.fields]
        texts = [_reference(examples[place], self.target) for place in places]
        targets: list[list[int] | None] = [None] * len(examples)
        if not texts:
            return targets
        if self._decoder:
            read = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        else:
            read = tokenizer(text_target=texts, verbose=False)["input_ids"]
        end = tokenizer.eos_token_id
        for place, ids in zip(places, read, strict=True):
            complete = not self._decoder and ids[-1:] == [end]
            targets[place] = ids if complete else [*ids, end]
        return targets

    def collate(self, rows: Sequence[Row]) -> Batch:
        """See `Task`. The last token of a target is never read, so it is no input."""
        given = labelled(rows)
        sources = [row.input_ids for row in rows]
        targets = [row.labels or [] for row in rows]
        pad = self.bound.pad
        if self._decoder:
            written = [[*a, *b[:-1]] for a, b in zip(sources, targets, strict=True)]
            batch = {"input_ids": padded(written, pad), "attention_mask": mask_of(written)}
            batch["prompt_lengths"] = torch.tensor([len(ids) for ids in sources])
            starts, width = [len(ids) - 1 for ids in sources], batch["input_ids"].shape[1]
        else:
            batch = {"input_ids": padded(sources, pad), "attention_mask": mask_of(sources)}
            starts, width = [0] * len(rows), max(map(len, targets))
            if given:
                shifted = [[self._start, *target[:-1]] for target in targets]
                batch["decoder_input_ids"] = padded(shifted, pad)
        if given:
            # Where in the flat [B·T] a token is predicted, and which: nothing else meets the head.
            pairs = [
                (number * width + place, token)
                for number, (row, start) in enumerate(zip(rows, starts, strict=True))
                for place, token in (*_before_last(row), *enumerate(row.labels or (), start))
            ]
            batch["positions"], batch["targets"] = torch.tensor(pairs).unbind(1)
        return batch

    def loss(self, model: PreTrainedModel, batch: Batch) -> tuple[Tensor, int]:
        """See `Task`: cross entropy of the target's tokens, and how many they are."""
        targets, chart = need_labels(batch, "targets"), self.chart(model)
        names = ("input_ids", "attention_mask", "decoder_input_ids")
        asked = None
        if auxiliary.wanted(self.auxiliary):
            batch, asked = auxiliary.ask(self.bound, batch)
        hidden = chart.last_hidden_state(
            model, **{name: batch[name] for name in names if name in batch}
        )
        hidden = hidden.flatten(0, 1)
        loss = token_loss(chart, model, hidden.index_select(0, batch["positions"]), targets)
        if asked is not None:
            text = auxiliary.own(asked, chart, model, hidden)
            loss = auxiliary.mixed(self.auxiliary, loss, text)
        return loss, len(targets)

    @torch.no_grad()
    def predict(self, model: PreTrainedModel, batch: Batch) -> list[Prediction]:
        """See `Task`: the generated text, without special tokens and outer white space."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        config, given = self._config, 0
        if self._decoder:
            ids, mask = self._prompts(batch)
            given = ids.shape[1]
            limit = self.chart(model).max_length(model)
            if limit is not None and given + config.max_new_tokens > limit:
                if given >= limit:
                    return [""] * len(ids)
                config = copy.deepcopy(config)
                config.max_new_tokens = limit - given
        generate: Any = model.generate
        made = generate(input_ids=ids, attention_mask=mask, generation_config=config)
        texts = self.bound.tokenizer.batch_decode(made[:, given:], skip_special_tokens=True)
        return [text.strip() for text in texts]

    def _prompts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sources of a decoder's batch, padded on the left, and their mask."""
        ids, lengths = batch["input_ids"], batch["prompt_lengths"]
        width = int(lengths.max())
        places = torch.arange(width, device=ids.device) - (width - lengths).unsqueeze(1)
        mask = (places >= 0).long()
        moved = ids[:, :width].gather(1, places.clamp(min=0))
        return moved.masked_fill(mask == 0, self.bound.pad), mask

    def score(
        self, predictions: Sequence[Prediction], examples: Sequence[Example]
    ) -> dict[str, float]:
        """See `Task`."""
        return metrics.generation(predictions, [self._references(one) for one in examples])

    def _references(self, example: Example) -> list[str]:
        """The texts that a prediction may be."""
        if self.chat != "messages":
            return texts_of(example, self.target)
        last = messages_of(example)[-1]
        if last["role"] != ASSISTANT:
            raise DataError(f"{example.where}: its last message is not the assistant's")
        return [last["content"]]


def _reference(example: Example, name: str) -> str:
    """The target that is learned: the first of several."""
    return texts_of(example, name)[0]


def _before_last(row: Row) -> list[tuple[int, int]]:
    """Where in a row an earlier token of the assistant is predicted, and which token it is."""
    said = row.said if isinstance(row, Talk) else ()
    return [(place - 1, row.input_ids[place]) for place in said if place]


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(v) if isinstance(v, tuple) else v for name, v in options.items()}
