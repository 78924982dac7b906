"""A base of 2 layers and a task that needs no tokenizer: for runs of a few milliseconds a step."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import ClassVar

import torch
import transformers as hf
from rich.console import Console
from torch.nn import functional as F

import inlay
from inlay import LoRA
from inlay.architectures.resolve import resolve
from inlay.data.dataset import Example
from inlay.tasks.base import TASKS, Bound, Task
from inlay.tasks.batch import Batch
from inlay.tasks.outputs import TokenStates
from inlay.tasks.rows import Row, padded_inputs

CONFIG = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 31,
    "pad_token_id": 0,
}


def base():
    """A new base with the same numbers every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**CONFIG)).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, 0, 0.6 * parameter.shape[-1] ** -0.5)
        return model


def spec():
    """Pieces that draw random numbers while they train."""
    return LoRA(rank=2, dropout=0.1)


def attached(what=None, *, model=None, name="default"):
    """A base and an inlay in it, with the same numbers every time."""
    model = base() if model is None else model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return model, inlay.attach(model, what or spec(), name=name)


def examples(count, seed=0, longest=9):
    """Counting modulo 29 from random starts, in rows of 2 to `longest` tokens."""
    draw = torch.Generator().manual_seed(seed)
    rows = []
    for number in range(count):
        start = int(torch.randint(29, (), generator=draw))
        length = int(torch.randint(2, longest + 1, (), generator=draw))
        ids = " ".join(str(1 + (start + step) % 29) for step in range(length))
        rows.append(Example({"ids": ids}, f"rows.jsonl:{number + 1}"))
    return rows


def quiet():
    """A console that shows nothing."""
    return Console(file=io.StringIO())


@dataclass(kw_only=True)
class Recite(Task):
    """Numbers -> the next number at every place; scored by mean log-likelihood."""

    name: ClassVar[str] = "recite"
    metric: str = "likelihood"

    def bind(self, model, tokenizer=None):
        chart = resolve(model)
        self._bound = Bound(chart, tokenizer, None, 0, chart.vocabulary)

    def on_bind(self, bound, model):
        pass

    @property
    def required_fields(self):
        return ("ids",)

    def encode_some(self, examples, first_index):
        rows = [[int(word) for word in str(example.fields["ids"]).split()] for example in examples]
        return [
            Row(ids, ids[1:], first_index + number, example.where, len(ids))
            for number, (ids, example) in enumerate(zip(rows, examples, strict=True))
        ]

    def collate(self, rows):
        return Batch(padded_inputs([row.input_ids for row in rows], 0))

    def outputs(self, model, batch):
        chart = self.bound.chart
        return TokenStates(chart, model, chart.last_hidden_state(model, **batch.inputs))

    def losses(self, outputs, batch):
        """The loss of every token, and which of them count."""
        logits = outputs.chart.logits(outputs.model, outputs.hidden)[:, :-1]
        targets = batch.inputs["input_ids"][:, 1:]
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view_as(targets) * (targets != 0), targets != 0

    def loss(self, outputs, batch):
        losses, counts = self.losses(outputs, batch)
        return losses.sum(), int(counts.sum())

    def predict(self, model, batch):
        losses, counts = self.losses(self.outputs(model, batch), batch)
        return [str(x) for x in (-losses.sum(1) / counts.sum(1)).tolist()]

    def score(self, predictions, examples):
        return {"likelihood": sum(map(float, predictions)) / len(predictions)}


@dataclass(kw_only=True)
class Scripted(Recite):
    """Recite with the scores decided beforehand."""

    name: ClassVar[str] = "scripted"
    script: tuple[float, ...] = ()
    calls: ClassVar[int] = 0

    def score(self, predictions, examples):
        self.calls += 1
        return {"likelihood": self.script[self.calls - 1]}


for task in (Recite, Scripted):  # tests of the registry should not find them
    del TASKS[task.name]


def task(model, kind=Recite, **fields):
    """A task bound to a model."""
    task = kind(**fields)
    task.bind(model)
    return task


def state(handle):
    """What learns, as it is now."""
    return {name: tensor.clone() for name, tensor in handle.training_state().items()}


def same(a, b):
    """Bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def numbers(result):
    """A result without its clock."""
    plain = dataclasses.asdict(result)
    del plain["seconds"]
    for evaluation in [*plain["evaluations"], plain["best"] or {}]:
        evaluation.pop("seconds", None)
    return plain
