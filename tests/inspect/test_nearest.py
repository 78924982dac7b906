"""Which tokens are near a prompt, and whether it lies among words."""

import pytest
import torch

import inlay
from inlay import Prompt
from inlay.errors import SpecError
from inlay.inspect import nearest, neighbours, word_forms
from inlay.inspect.nearest import RANDOM_PROMPTS
from tests import zoo
from tests.inspect.models import START, fresh
from tests.tasks import tiny

READERS = ["llama", "gemma2", "gemma3", "gpt2", "bert", "electra", "t5", "bart-scaled", "bart"]


@pytest.mark.parametrize("family", READERS)
def test_a_prompt_made_of_tokens_lies_on_them(family):
    handle = inlay.attach(fresh(family), Prompt(length=3, start=START))
    (prompt,) = neighbours(handle, 4, {"it": [17, 60]})
    assert prompt.place == "embed/0"
    assert prompt.cosine.ids[:, 0].tolist() == prompt.distance.ids[:, 0].tolist() == [5, 17, 40]
    assert prompt.cosine.values[:, 0] == pytest.approx([1, 1, 1], abs=1e-5)
    assert prompt.distance.values[:, 0].tolist() == [0, 0, 0]
    assert prompt.ranks["it"][1] == 1
    assert prompt.cluster.nearest.value == pytest.approx(1, abs=1e-5)
    assert prompt.cluster.nearest.z > 5


def test_the_decoder_of_an_encoder_decoder_has_words_of_its_own():
    spec = Prompt(length=3, start=START) + Prompt(length=3, start=START, at="embed.target")
    prompts = neighbours(inlay.attach(zoo.fresh("t5"), spec), 1)
    assert [prompt.place for prompt in prompts] == ["embed/0", "embed.target/1"]
    assert all(prompt.cosine.ids.flatten().tolist() == [5, 17, 40] for prompt in prompts)
    assert prompts[0].cluster.tightness is None


@pytest.mark.parametrize("chunk", [7, 99])
def test_neighbours_are_those_of_the_whole_vocabulary(monkeypatch, chunk):
    monkeypatch.setattr(nearest, "CHUNK", chunk)
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Prompt(length=4, start="uniform"))
    (prompt,) = neighbours(handle, 3, {"a": [50]})
    table, vectors = model.get_input_embeddings().weight, prompt.vectors
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], table[None], -1)
    order = cosines.argsort(1, descending=True)
    assert prompt.cosine.ids.tolist() == order[:, :3].tolist()
    lengths = (vectors[:, None] - table).norm(dim=-1).argsort(1)
    assert prompt.distance.ids.tolist() == lengths[:, :3].tolist()
    assert prompt.ranks["a"].tolist() == [1 + row.index(50) for row in order.tolist()]

    near = table[prompt.cosine.ids].double()
    pairs = [
        torch.nn.functional.cosine_similarity(near[:, i], near[:, j], -1)
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert prompt.cluster.tightness.value == pytest.approx(
        float(torch.stack(pairs).mean()), abs=1e-5
    )

    drawn = torch.randn(RANDOM_PROMPTS * 4, 32, generator=torch.Generator().manual_seed(0))
    best = torch.nn.functional.cosine_similarity(drawn[:, None], table[None], -1).topk(3).indices
    unit = torch.nn.functional.normalize(table[best], dim=-1)
    mutual = (unit @ unit.mT).sum((1, 2)) - 3
    assert prompt.cluster.tightness.random == pytest.approx(float(mutual.mean()) / 6, abs=1e-5)


def test_chance_is_what_random_directions_give():
    model = zoo.fresh("llama")
    handle = inlay.attach(model, Prompt(length=4, start="uniform"))
    (prompt,) = neighbours(handle, 3)
    drawn = torch.randn(RANDOM_PROMPTS * 4, 32, generator=torch.Generator().manual_seed(0))
    table = model.get_input_embeddings().weight
    best = torch.nn.functional.cosine_similarity(drawn[:, None], table[None], -1).amax(1)
    means = best.view(RANDOM_PROMPTS, 4).mean(1)
    score = prompt.cluster.nearest
    assert score.random == pytest.approx(float(means.mean()), abs=1e-5)
    assert score.spread == pytest.approx(float(means.std()), abs=1e-5)
    assert score.z == pytest.approx((score.value - score.random) / score.spread)
    assert score.ratio == pytest.approx(score.value / score.random)
    assert abs(score.z) < 4  # a prompt of random numbers is what it is held against
    assert neighbours(handle, 3)[0].cluster == prompt.cluster
    assert neighbours(handle, 3, seed=1)[0].cluster != prompt.cluster


def test_positions_share_what_is_near_both():
    handle = inlay.attach(zoo.fresh("llama"), Prompt(length=3, start=((5,), (17,), (5,))))
    assert neighbours(handle, 1)[0].shared == {5: [0, 2]}


def test_more_neighbours_than_tokens_are_all_tokens():
    handle = inlay.attach(zoo.fresh("llama"), Prompt(length=2))
    assert neighbours(handle, 500)[0].cosine.ids.shape == (2, 99)


def test_neighbours_refuse_what_cannot_be():
    handle = inlay.attach(zoo.fresh("llama"), Prompt(length=2))
    with pytest.raises(SpecError, match=" 0 "):
        neighbours(handle, 0)
    with pytest.raises(SpecError, match="'far'.* 99 tokens"):
        neighbours(handle, 1, {"far": [99]})


def test_forms_of_a_word_are_single_tokens():
    words = tiny.tokenizer("decoder")
    assert word_forms(words, "good") == tuple(words.encode("good", add_special_tokens=False))
    assert word_forms(words, "Good") == word_forms(words, "good")
    assert word_forms(words, "goodness") == ()
