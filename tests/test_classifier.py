"""A merged base with its head as a classifier of transformers: equal logits, or the reason."""

import pytest
import torch
import transformers as hf

import inlay
from inlay import Head, LoRA
from inlay.architectures.resolve import resolve
from inlay.classifier import classifier_model
from inlay.errors import MergeError
from inlay.handle import attached
from inlay.runtime.trained_heads import classify, head_inputs, head_of, token_states
from tests import zoo

LABELS = ("no", "maybe", "yes")


def small(kind, **fields):
    """A tiny model of a family with large weights; its own classifier may have a pooler."""
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    config = hf.AutoConfig.for_model(
        kind, **{**sizes, "vocab_size": 60, "pad_token_id": 0, **fields}
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = hf.AutoModel.from_config(config).eval()
        for parameter in model.parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, 0, 0.5)
    return model


def merged(model, head):
    """The model with LoRA and a head, both away from their start, and merged; and its own logits."""
    handle = inlay.attach(model, LoRA(rank=2) + head)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for parameter in handle.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    ids = torch.tensor([[5, 9, 11, 7], [8, 6, 0, 0]])
    mask = (ids != 0).long()
    with torch.no_grad():
        if head.pool == "each":
            states = token_states(model, resolve(model), input_ids=ids, attention_mask=mask)
            logits = classify(model, states, mask)
        else:
            logits = classify(
                model, *head_inputs(model, resolve(model), input_ids=ids, attention_mask=mask)
            )
    handle.merge()
    piece = head_of(model, "default")
    attached(model)["default"].detach()
    return piece, ids, mask, logits


SEQUENCES = {
    "bert": ({}, Head(labels=LABELS, pool="first")),  # pooler, tanh
    "roberta": ({"pad_token_id": 0}, Head(labels=LABELS, pool="first")),  # two maps, tanh
    "electra": ({"embedding_size": 16}, Head(labels=LABELS, pool="first")),  # two maps, gelu
    "distilbert": (
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
        Head(labels=LABELS, pool="first"),
    ),
    "llama": ({}, Head(labels=LABELS, pool="last", bias=False)),
    "gpt2": (
        {"n_embd": 16, "n_layer": 2, "n_head": 2},
        Head(labels=LABELS, pool="last", bias=False),
    ),
}


@pytest.mark.parametrize("kind", SEQUENCES)
def test_a_sequence_classifier_has_equal_logits(kind, tmp_path):
    fields, head = SEQUENCES[kind]
    model = small(kind, **fields)
    piece, ids, mask, wanted = merged(model, head)
    result = classifier_model(model, piece, pad_token_id=0, problem="single_label_classification")
    result.save_pretrained(tmp_path)
    loaded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = loaded(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(logits, wanted, rtol=1e-4, atol=1e-4)
    assert loaded.config.id2label == dict(enumerate(LABELS))
    assert loaded.config.problem_type == "single_label_classification"


@pytest.mark.parametrize("kind", ["bert", "llama", "distilbert"])
def test_a_token_classifier_has_equal_logits(kind, tmp_path):
    fields, _ = SEQUENCES[kind]
    model = small(kind, **fields)
    piece, ids, mask, wanted = merged(model, Head(labels=LABELS, pool="each"))
    classifier_model(model, piece, pad_token_id=0).save_pretrained(tmp_path)
    loaded = hf.AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        logits = loaded(input_ids=ids, attention_mask=mask).logits
    assert torch.allclose(logits[mask.bool()], wanted[mask.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "head", "reason"),
    [
        (
            "bert",
            Head(labels=LABELS),
            r"BertForSequenceClassification reads the first token, and the trained head reads the mean; train with Head\(labels=.*pool='first'\)",
        ),
        (
            "llama",
            Head(labels=LABELS, pool="last"),
            r"LlamaForSequenceClassification has no bias.*Head\(.*bias=False\)",
        ),
        (
            "llama",
            Head(labels=LABELS, bias=False),
            "reads the last token, and the trained head reads the mean",
        ),
        ("modernbert", Head(labels=LABELS, pool="first"), "computes something else"),
    ],
)
def test_a_head_of_another_shape_is_told_why(kind, head, reason):
    fields, _ = SEQUENCES.get(
        kind,
        (
            {
                "bos_token_id": 1,
                "eos_token_id": 2,
                "cls_token_id": 1,
                "sep_token_id": 2,
                "pad_token_id": 0,
            },
            None,
        ),
    )
    model = small(kind, **fields)
    piece, *_ = merged(model, head)
    with pytest.raises(MergeError, match=reason):
        classifier_model(model, piece, pad_token_id=0)


def test_an_encoder_decoder_has_none():
    model = zoo.fresh("t5")
    handle = inlay.attach(model, Head(labels=LABELS))
    piece = head_of(model, "default")
    handle.detach()
    with pytest.raises(MergeError, match="encoder-decoder"):
        classifier_model(model, piece, pad_token_id=0)
