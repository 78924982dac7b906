"""Tokenizers of a hundred words in the ways of the three kinds of model; tasks bound to them."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import inlay
from inlay import LoRA, Prompt
from inlay.data.dataset import Example
from inlay.errors import TaskError
from tests import zoo

KINDS = {"llama": "decoder", "bert": "encoder", "t5": "encoder-decoder"}

TEXT = (
    "a good bad fine the cat dog sat on mat it was all in film plot very dull bright not "
    "and no yes red blue one two three four five six seven eight nine ten old new big small"
)
WORDS = TEXT.split()
SPECIAL = {
    "decoder": ["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
    "encoder": ["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
    "encoder-decoder": ["<pad>", "</s>", "<unk>", "<mask>", "<s>"],
}
LETTERS = "abcdefghijklmnopqrstuvwxyz!?.:"

CHAT = (
    "{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s> {% endfor %}"
    "{% if add_generation_prompt %}good :{% endif %}"
)


def tokenizer(kind, *, bos=False, pad="<pad>", chat=None):
    """Words are tokens; an unknown word falls into letters. Ids are the zoo's."""
    vocabulary = [*SPECIAL[kind], *WORDS, *(f"##{x}" for x in LETTERS), *LETTERS]
    vocabulary = list(dict.fromkeys(vocabulary))[:99]
    numbers = {token: number for number, token in enumerate(vocabulary)}
    made = Tokenizer(models.WordPiece(numbers, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece()
    special = [(token, numbers[token]) for token in ("<s>", "</s>")]
    frame = {
        "decoder": ("<s> $A", "<s> $A $B"),
        "encoder": ("<s> $A </s>", "<s> $A </s> $B:1 </s>:1"),
        "encoder-decoder": ("$A </s>", "$A </s> $B </s>"),
    }[kind]
    if kind != "decoder" or bos:
        made.post_processor = processors.TemplateProcessing(
            single=frame[0], pair=frame[1], special_tokens=special
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        pad_token=pad,
        chat_template=chat,
        model_input_names=["input_ids", "attention_mask"],
    )


def examples(*rows):
    return [Example(row, f"rows#{number}") for number, row in enumerate(rows, 1)]


def words(family):
    return tokenizer(KINDS[family], bos=True)


def bind(task, family, base=None):
    task.bind(zoo.model(family) if base is None else base, words(family))
    return task


def add_head(base, task, spec=None, name="default", std=0.2):
    """A method and the task's head, away from where they start."""
    spec = LoRA(rank=2) if spec is None else spec
    handle = inlay.attach(base, spec + task.head(), name=name)
    for parameter in handle.parameters():
        torch.nn.init.normal_(parameter, std=std)


def add_two_heads(base, task):
    """Two methods called north and south, each with a head of its own."""
    for name, spec in {"north": LoRA(rank=2), "south": Prompt(length=2)}.items():
        add_head(base, task, spec, name, std=0.3)


def loss_of(task, model, batch):
    """The loss of one run over a batch, and how many count."""
    return task.loss(task.outputs(model, batch), batch)


def sentinels():
    """The tokenizer of an encoder–decoder, with a sentinel."""
    text = tokenizer("encoder-decoder").backend_tokenizer.to_str()
    result = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(text.replace("<mask>", "<extra_id_0>")),
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>",
    )
    result.add_special_tokens({"additional_special_tokens": ["<extra_id_0>"]})
    return result


def refused(call, *needles, error=TaskError):
    """The call fails with one line, in which the needles stand."""
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message, message
    for needle in needles:
        assert needle in message, message
