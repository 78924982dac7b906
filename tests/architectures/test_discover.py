"""Reading a model by its structure: it finds what the descriptions of families say."""

import pytest
import torch
import transformers as hf

from inlay.architectures.chart import Chart
from inlay.architectures.discover import discover
from inlay.architectures.families import FAMILIES
from inlay.architectures.resolve import resolve
from inlay.errors import SiteError
from tests import zoo

DESCRIBED = [name for name in zoo.FAMILIES if zoo.model(name).config.model_type in FAMILIES]
PROJECTIONS = ("q", "k", "v", "o", "up", "gate", "down")
FUSED = {"phi3", "gpt2", "gpt_neox", "modernbert", "falcon", "bloom"}
# q, k and v share a matrix, which has a place as a whole


def discovered(model: hf.PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> Chart:
    """The chart of a model whose family's description is hidden."""
    monkeypatch.delitem(FAMILIES, model.config.model_type)
    return resolve(model)


@pytest.mark.parametrize("family", DESCRIBED)
def test_it_finds_what_the_description_says(family, monkeypatch):
    model = zoo.model(family)
    described = {site.name: site for site in resolve(model).sites}
    chart = discovered(model, monkeypatch)
    compared = 0
    for site in chart.sites:
        if site.role.rpartition(".")[2] in PROJECTIONS:
            compared += 1
            expected = described[site.name]
            assert site.host is expected.host
            assert (site.d_in, site.d_out, site.part) == (
                expected.d_in,
                expected.d_out,
                expected.part,
            )
        if site.role.endswith(".kv") or site.role.startswith("embed"):
            expected = described[site.name]
            assert site.host is expected.host
            assert (site.heads, site.head_dim) == (expected.heads, expected.head_dim)
    assert compared > 0 or family in FUSED


@pytest.mark.parametrize("family", DESCRIBED)
def test_it_finds_the_same_stacks(family, monkeypatch):
    model = zoo.model(family)
    described = resolve(model)
    chart = discovered(model, monkeypatch)
    assert chart.kind == described.kind
    for stack, expected in zip(chart.stacks, described.stacks, strict=True):
        assert stack.name == expected.name
        if family != "opt":  # described is the decoder inside the backbone, found the backbone
            assert stack.module is expected.module
        assert stack.layers == expected.layers
        assert stack.embed is expected.embed
        assert (stack.causal, stack.keeps_first) == (expected.causal, expected.keeps_first)


@pytest.mark.parametrize("family", [name for name in DESCRIBED if name not in FUSED])
def test_it_finds_every_projection_of_attention(family, monkeypatch):
    model = zoo.model(family)
    described = {
        site.name
        for site in resolve(model).sites
        if site.role[-2:] in (".q", ".k", ".v", ".o", "kv")
    }
    chart = discovered(model, monkeypatch)
    assert {site.name for site in chart.sites} >= described


def test_a_model_of_images_has_no_embeddings(monkeypatch):
    chart = discovered(zoo.model("vit"), monkeypatch)
    assert chart.kind == "vision"
    assert "embed" not in {site.role for site in chart.sites}


def test_a_model_without_blocks_is_refused():
    config = hf.GPT2Config(n_layer=0, n_embd=8, n_head=1, vocab_size=9)
    with pytest.raises(SiteError, match="GPT2Model has no list of equal blocks"):
        discover(hf.GPT2Model(config))


@pytest.mark.parametrize("family", ["gptj", "olmo2"])
def test_logits_are_those_of_the_model(family):
    model = zoo.model(family)
    chart = resolve(model)
    ids = torch.arange(8, 14)[None]
    with torch.no_grad():
        logits = chart.logits(model, chart.last_hidden_state(model, input_ids=ids))
        assert torch.equal(logits, model(input_ids=ids).logits)


def test_a_head_that_does_more_than_its_output_embeddings_is_refused(monkeypatch):
    model = zoo.model("gemma2")
    chart = discovered(model, monkeypatch)
    hidden = torch.randn(1, 2, 32)
    with pytest.raises(SiteError, match="does more than its output embeddings"):
        chart.logits(model, hidden)
