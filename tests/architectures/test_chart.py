"""The chart of a base: running it up to its hidden states, and from there to its logits."""

import pytest
import torch
from transformers.utils import ModelOutput

import inlay
from inlay.architectures.families import FAMILIES
from inlay.architectures.resolve import resolve
from inlay.errors import PortError, SiteError
from inlay.runtime.trained_heads import head_inputs, token_states
from tests import zoo

TEXTS = [name for name in zoo.FAMILIES if resolve(zoo.model(name)).reads_text]
HEADS = [name for name in TEXTS if name != "deberta"]  # its head has no description
ENCODER_DECODERS = ["t5", "t5-gated", "mt5", "bart", "marian"]


def inputs(model):
    ids = torch.arange(8, 20).view(2, 6)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids.flip(0)[:, :4]
    return batch


@pytest.mark.parametrize("family", HEADS)
def test_hidden_states_and_logits_are_those_of_the_model(family):
    model = zoo.model(family)
    chart, batch = resolve(model), inputs(zoo.model(family))
    with torch.no_grad():
        hidden = chart.last_hidden_state(model, **batch)
        logits = chart.logits(model, hidden)
        expected = model(**batch).logits
    assert hidden.shape == (*expected.shape[:2], 32)
    assert torch.allclose(logits, expected, atol=1e-5)


@pytest.mark.parametrize("family", HEADS)
def test_inputs_of_the_output_embeddings(family):
    model = zoo.model(family)
    chart = resolve(model)
    hidden = torch.randn(3, 32)
    with torch.no_grad():
        features = chart.output_embedding_inputs(model, hidden)
        embeddings = model.get_output_embeddings()
        logits = embeddings(features)
        expected = chart.logits(model, hidden)
        if family in ("bart", "marian"):
            logits = logits + model.final_logits_bias
        if (
            family in ("gemma2", "gemma3", "gemma3n")
            and model.config.final_logit_softcapping is not None
        ):
            cap = model.config.final_logit_softcapping
            logits = torch.tanh(logits / cap) * cap
    assert features.shape == (3, embeddings.weight.shape[1])
    assert torch.allclose(logits, expected, atol=1e-5)
    assert not embeddings._forward_pre_hooks


@pytest.mark.parametrize("family", ["llama", "bert", "t5", "bart"])
def test_a_trained_head_reads_the_first_stack(family):
    model = zoo.fresh(family)
    chart, batch = resolve(model), inputs(model)
    batch.pop("decoder_input_ids", None)
    with torch.no_grad():
        states, mask = head_inputs(model, chart, **batch)
        assert states.shape == (2, 6, 32)
        assert torch.equal(mask, batch["attention_mask"])
        assert torch.equal(token_states(model, chart, **batch), states)
        inlay.attach(model, inlay.Prompt(length=3))
        states, mask = head_inputs(model, chart, **batch)
        positions = 9 if family in ENCODER_DECODERS else 6  # there the decoder reads the prompt too
        assert states.shape == (2, positions, 32)
        assert mask.shape == (2, positions)
        assert token_states(model, chart, **batch).shape == (2, 6, 32)


@pytest.mark.parametrize("family", TEXTS)
def test_the_longest_text(family):
    model = zoo.model(family)
    limits = {"roberta": 62, "bloom": None, **dict.fromkeys(("t5", "t5-gated", "mt5"))}
    if family in ("deberta", "llava") or model.config.model_type in FAMILIES:
        assert resolve(model).max_length(model) == limits.get(family, 64)


def test_a_model_without_a_language_model_head():
    model = zoo.model("bert").base_model
    with pytest.raises(
        SiteError, match="BertModel has no language-model head; load the model with"
    ):
        resolve(model).logits(model, torch.randn(1, 32))


def test_a_stack_without_a_last_hidden_state_is_refused_in_our_words(monkeypatch):
    model = zoo.fresh("llama")
    stack = resolve(model).stacks[0]
    inlay.attach(model, inlay.LST(reduction=2, start="random"))
    output = ModelOutput(states=torch.zeros(1, 3, 32))
    monkeypatch.setattr(type(model.model), "forward", lambda *_args, **_more: output)
    message = "no last hidden state in a ModelOutput; use a method inside the blocks"
    for run in (stack.last_hidden_state, model.model):
        with pytest.raises(PortError, match=message):
            run(input_ids=torch.tensor([[5, 6, 7]]))
